"""Whether the loss on other points foretells the error: what counts as stopped, ranks, and a toy run."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch

from experiments.pinn import parted
from experiments.pinn.equations import EQUATIONS


def course(*pairs):
    return [{"best": loss, "error": error} for loss, error in pairs]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (course((1, 1), (1e-1, 0.5), (1e-3, 0.4), (1e-4, 0.45)), True),  # another hundredfold, and less than half
        (course((1, 1), (1e-1, 0.5), (1e-3, 0.4), (1e-4, 0.1)), False),
        (course((1, 1), (0.5, 0.9), (0.2, 0.8)), None),  # the loss never fell so far
        (course((1e-4, 1)), None), ([], None), ([{"best": 1.0}], None),
    ],
)  # fmt: skip
def test_an_error_has_stopped_if_it_did_not_halve_while_the_loss_fell_a_hundredfold(history, expected):
    assert parted.stopped(history) is expected


def test_ranks():
    rising = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert parted.ranked(rising, [math.exp(v) for v in rising]) == pytest.approx(1.0)
    assert parted.ranked(rising, rising[::-1]) == pytest.approx(-1.0)
    assert parted.ranked(rising[:5], rising[:5]) is None  # of few
    assert parted.ranked(rising, [1.0] * 6) is None  # of nothing


def test_given_points_are_those_of_the_domains():
    equation = EQUATIONS["heat"]
    model = equation.network(1)
    given, drawn = parted.given(equation, model, 0.1), equation.objective(model, 0.1)
    theta = drawn.theta()
    assert given.value(theta) == pytest.approx(drawn.value(theta), rel=1e-12)
    assert not given.drawn and len(drawn.drawn) == 3
    assert torch.equal(given.parts[0].points, drawn.parts[0].points)


def test_summary_counts_warnings_where_the_error_stopped_and_where_it_did_not():
    def row(way, stopped, warned, rank):
        return {"way": way, "stopped": stopped, "warned": warned, "rank of unseen": rank, "rank of loss": None}

    rows = [
        row(parted.FIRST, True, True, 0.5), row(parted.FIRST, True, False, 1.0), row(parted.FIRST, False, False, 0.9),
        row(parted.FIRST, None, True, None), row(parted.RENEWED, True, False, 0.2),
    ]  # fmt: skip
    by = {line["way"]: line for line in parted.summarized(rows)}
    assert (by[parted.FIRST]["stopped, warned"], by[parted.FIRST]["falling, warned"]) == ("1/2", "0/1")
    assert (by[parted.FIRST]["unseen"], by[parted.FIRST]["unseen, lowest"]) == (0.9, 0.5)
    assert "stopped, warned" not in by[parted.RENEWED]
    assert by[parted.GIVEN]["runs"] == 0


def test_the_command_at_toy_size(tmp_path):
    command = [sys.executable, "-m", "experiments.pinn.parted", "--quick", "--seeds", "1", "--no-progress"]
    found = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    content = json.loads((tmp_path / "results.json").read_text())
    assert {row["way"] for row in content["rows"]} == set(parted.WAYS)
    assert parted.page(content)
