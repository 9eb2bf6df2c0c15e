"""Implicit bias: times to half, modes of a kernel that stands still against their closed form, and a toy run."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

from experiments import implicit_bias
from experiments.anatomy import Training, smooth


def test_times_to_half_are_between_looks_on_a_logarithmic_axis():
    assert implicit_bias.when([1, 10, 100], [0.0, 0.25, 0.75]) == pytest.approx(10 * math.sqrt(10))
    assert implicit_bias.when([3, 10], [0.6, 0.7]) == 3
    assert implicit_bias.when([1, 10], [0.1, 0.4]) is None


def test_modes_fill_as_the_frozen_kernel_says_where_it_stands_still(monkeypatch):
    monkeypatch.setitem(implicit_bias.SCALES, "standing", 1e4)
    row = implicit_bias.run("standing", 0, smooth(8, 5, 2, 0.5, 0), Training(30, share=0.5, momentum=0.0), 6)
    for found, expected in zip(row["modes"], row["frozen"], strict=True):
        assert found == pytest.approx(expected, abs=1e-6)
    assert row["moved"] == pytest.approx(1, abs=1e-6) and row["turned"] == pytest.approx(1, abs=1e-6)
    assert row["frozen"][-1][0] > 0.99 > 0.5 > row["frozen"][-1][-1]


def test_modes_that_are_later_than_the_frozen_kernel_says_are_counted():
    def row(kernel, half, frozen):
        course = [{"test": 2.0, "true learned": 0.1, "learned": 0.1, "reservoir": 0.9},
                  {"test": 1.0, "true learned": 0.9, "learned": 0.3, "reservoir": 0.7},
                  {"test": 3.0, "true learned": 1.0, "learned": 0.9, "reservoir": 0.1}]  # fmt: skip
        values = torch.tensor([4.0, 3.0, 2.0, 1.0])
        return {"kernel": kernel, "eigenvalues": values, "half": half, "frozen half": frozen, "course": course}

    rows = [row("standing", [1, 10, 20, None], [1, 10, 20, 90]), row("moving", [5, 6, 7, 8], [10, 12, 14, 16]),
            row("moving far", [4, 30, 20, 50], [8, 20, 40, 100])]  # fmt: skip
    found = implicit_bias.measured(rows)
    assert (found["forecast"], found["sooner"], found["spread"]) == (1.0, 0.5, 0.25)
    assert math.isnan(implicit_bias.order(rows[0])) and found["order"] != found["order"]  # of two modes there is none
    assert implicit_bias.order(rows[2]) == pytest.approx(-0.8)
    assert (found["true first"], found["trapped"]) == (pytest.approx(0.6), 0.7)


@pytest.mark.filterwarnings("ignore:Recorder")
def test_the_command_at_toy_size(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["", "--quick", "--seeds", "1", "--no-progress", "--out", str(tmp_path)])
    threads = torch.get_num_threads()
    try:
        implicit_bias.main()
    finally:
        torch.set_num_threads(threads)
    content = json.loads((tmp_path / "results.json").read_text())
    assert [row["kernel"] for row in content["rows"]] == list(implicit_bias.SCALES)
    moved = [row["moved"] for row in content["rows"]]
    assert moved[0] == pytest.approx(1, abs=0.02) and moved[2] > 1.3
    assert (tmp_path / "implicit_bias.png").stat().st_size > 10_000
    assert "refuted if" in implicit_bias.page(content)
