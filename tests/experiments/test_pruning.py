"""Energies are those of the moves, masks prune what they should, and a toy run."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from experiments.pruning import __main__ as command
from experiments.pruning import scores, summary
from experiments.pruning.runs import SPARSITIES, WAYS


@pytest.fixture(scope="module")
def trained():
    return scores.Trained(0, scores.TOY)


def test_energy_in_all_directions_is_that_of_all_moves(trained):
    moved = trained.recorder.columns.moved[:-1]
    torch.testing.assert_close(scores.energy(trained, 0.0), moved.square().sum(0), rtol=1e-9, atol=1e-12)
    few = scores.energy(trained, 0.5)
    assert bool((few <= scores.energy(trained, 0.0) + 1e-12).all()) and float(few.sum()) > 0
    # with the real gradient's coordinates the moves are those of the run
    real, moved = trained.end - trained.start, trained.recorder.columns.moved
    told = trained.operators.coordinates(trained.operators.gradient) @ moved[:-1] + moved[-1]
    assert float((told - real).norm() / real.norm()) < 0.02


def test_saliency_is_the_diagonal_of_the_curvature(trained):
    v = torch.zeros_like(trained.end)
    v[3] = 1.0
    trained.space.write(trained.model, trained.end)
    lin = scores.linearize(trained.objective)
    diagonal = lin.vjp(trained.objective.loss.hvp(lin.u, lin.jvp(v)))[3]
    assert float(trained.saliency[3]) == pytest.approx(float(trained.end[3] ** 2 * diagonal), rel=1e-9)


@pytest.mark.parametrize("scope", scores.SCOPES)
def test_the_least_weights_go_and_biases_stay(trained, scope):
    values = torch.arange(trained.space.size).double()
    mask = scores.kept(trained, values, 0.25, scope, "")
    assert bool(mask[~trained.weights].all())
    gone = (~mask).nonzero().squeeze(1)
    assert len(gone) == round(0.25 * int(trained.weights.sum()))
    layers = trained.layer[gone].unique()
    assert len(layers) == (2 if scope == "per layer" else 1)
    for layer in layers:
        own = (trained.layer == layer) & trained.weights
        assert values[own & ~mask].max() < values[own & mask].min()


def test_every_ranking_has_four_ways_and_random_is_no_other(trained):
    assert {len(scores.options(name)) for name in scores.SCORES} == {4}
    first, again, other = (scores.score(trained, "random", 0.0, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_verdicts_follow_from_rows():
    accuracies = {"channel": 0.6, "magnitude": 0.5, "movement": 0.7, "random": 0.6}
    rows = [
        {"seed": seed, "score": name, "way": way, "accuracy": [accuracies.get(name, 0.1)] * len(SPARSITIES)}
        for seed in range(3) for name in scores.SCORES for way in WAYS
    ]  # fmt: skip
    assert [line["verdict"] for line in summary.verdicts(rows)] == ["held", "held", "refuted", "refuted"]


def test_the_command_at_toy_size(tmp_path, monkeypatch):
    arguments = ["pruning", "--quick", "--seeds", "1", "--no-progress", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    command.main()
    content = json.loads((tmp_path / "results.json").read_text())
    assert {(row["score"], row["way"]) for row in content["rows"]} == {(s, w) for s in scores.SCORES for w in WAYS}
    assert (tmp_path / "pruning.png").is_file()
