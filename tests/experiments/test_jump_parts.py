"""Parts of a jump, varied: each variant is another, batches cost what they are, redrawn points are the points."""

from __future__ import annotations

import itertools

import pytest
import torch

from experiments.jump_parts import run
from experiments.jump_parts.kinds import KINDS


@pytest.mark.parametrize("name", KINDS)
def test_what_is_drawn_anew_is_the_objective_of_those_rows(name):
    kind = KINDS[name]()
    net = kind.start(0)
    first, other = torch.arange(kind.rows // 2), torch.arange(kind.rows // 2, 2 * (kind.rows // 2))
    again = kind.redrawn(kind.build(net, first), net, other)
    expected = kind.build(net, other)
    assert again.value(again.theta()) == pytest.approx(expected.value(expected.theta()), rel=1e-12)
    assert again.value(again.theta()) != kind.objective(net).value(again.theta())
    named = [variant for part in run.variants(kind).values() for variant in part]
    assert named[0] == run.USUAL and len(set(named)) == len(named)


def test_a_batch_costs_what_it_is_of_all_samples():
    kind = KINDS["regression"]()
    costs = {}
    for divisor in (1, 4):
        net = kind.start(0)
        steps = list(itertools.islice(run.batches(kind, divisor)(net, kind.objective(net)), 2))
        costs[divisor] = [step["gradient_evaluations"] for step in steps]
        result = steps[-1]["tried"][0][1]
        assert costs[divisor][1] - costs[divisor][0] == pytest.approx(result.gradient_evaluations / divisor)


def test_lines_are_medians_over_seeds_beside_the_usual(tmp_path):
    lines = run.measure("regression", 2, True, tmp_path, False)
    assert [line["kind"] for line in lines] == ["regression"] * len(lines) and lines[0]["variant"] == run.USUAL
    assert lines[0]["ratio"] is None and all(line["below"].endswith("/2") for line in lines[1:])
    assert run.measure("regression", 2, True, tmp_path, False) == lines  # from the folder
