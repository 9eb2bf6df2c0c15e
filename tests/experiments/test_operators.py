"""The experiment on operators at toy size, and how its rows become orders and verdicts."""

from __future__ import annotations

import sys

import pytest

from experiments import operators
from jumpstart.report import records


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    folder = tmp_path_factory.mktemp("operators")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["x", "--quick", "--seeds", "1", "--no-progress", "--out", str(folder)])
        operators.main()
    assert (folder / "operators.png").is_file()
    return records.read(folder)


def test_errors_fall_by_the_order_and_what_is_exact_is(content):
    rows = [row for row in content["rows"] if row["part"] == "identities"]
    assert {row["loss"] for row in rows} == set(operators.LOSSES)
    assert all(row["beyond the bound"] == 0 for row in rows)
    assert all(row["D = B⁻¹(I − P)"] < 1e-12 for row in rows if row["loss"] == "mse")
    for line in content["settings"]["identities"]:
        assert line["outputs, falls as"] > line["order"] - 0.4, line


def test_few_modes_say_what_all_say_of_the_gradient(content):
    rows = {row["recorder"]: row for row in content["rows"] if row["part"] == "costs"}
    assert rows["8 modes"]["off from all"] < 1e-10
    assert rows["8 modes"]["MiB"] < 0.5 * rows["all directions"]["MiB"]


def test_a_readout_that_does_no_better_than_chance_is_refuted(content):
    rows = [row for row in content["rows"] if row["part"] == "coupling"]
    for row in rows:
        assert row["holds"] is (row["error"] <= 0.5 and row["chance"] <= 0.05)
    assert rows[0]["judged on"] == "its own run" and rows[0]["correlation"] > 0.9
