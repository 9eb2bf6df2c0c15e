"""What a skip says that it has cost is what the network was really asked, counted by the network itself."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from jumpstart.skipping.skip import Skipper
from jumpstart.skipping.windows import Conditions

from .loops import Counting, Loop
from .optimizers import KINDS


def loop(make, *layers, seed=0, warm=10, **options):
    torch.manual_seed(seed)
    model = Counting(*layers)
    x = torch.randn(30, 4).double()
    found = Loop(model, x, torch.sin(x[:, :1]), x, optimizer=make(model.parameters()), options=options)
    return found.take(warm)


CASES = {
    "SGD": (lambda p: torch.optim.SGD(p, 0.02), (), {}),
    "AdamW": (lambda p: torch.optim.AdamW(p, 0.003), (), {}),
    "Adagrad": (lambda p: torch.optim.Adagrad(p, 0.005), (), {}),
    "unstable": (lambda p: torch.optim.SGD(p, 1.0, momentum=0.95), (), {}),
    "too dear": (KINDS["Adafactor"], (), {}),
    "normalized": (lambda p: torch.optim.SGD(p, 0.02), (nn.BatchNorm1d(16),), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_ledger_is_what_the_network_was_asked(case):
    make, layers, options = CASES[case]
    run = loop(make, *layers, **options)
    objective = run.objective()
    skipper = Skipper(objective, run.optimizer)
    outcomes = []
    _ = run.model.asked
    first = skipper.skip(1)
    assert first.gradient_evaluations == pytest.approx(run.model.asked)
    assert first.cost == first.dense_work, "what is asked once of a model is no cost of a skip"
    for _ in range(4):
        _ = run.model.asked
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = skipper.skip(20)
        asked = run.model.asked
        assert result.gradient_evaluations == pytest.approx(asked, abs=1e-9), result
        assert result.cost == pytest.approx(asked + result.dense_work)
        assert result.saved == pytest.approx(result.steps - result.cost)
        outcomes.append(result.outcome.name)
        run.take(3)
    accepted = {"SKIPPED", "SHORT"} & set(outcomes)
    assert not accepted if case in ("unstable", "too dear") else accepted


def test_chunks_are_counted_once():
    """Several parts are asked twice: forwards together, then each with its share of the gradient."""
    run = loop(lambda p: torch.optim.SGD(p, 0.02), chunk=10)
    skipper = Skipper(run.objective(), run.optimizer)
    skipper.skip(10)
    _ = run.model.asked
    result = skipper.skip(10)
    assert result.gradient_evaluations == pytest.approx(run.model.asked, abs=1e-9)


def test_a_gradient_that_is_known_is_not_asked_for_again():
    run = loop(lambda p: torch.optim.SGD(p, 0.02))
    objective = run.objective()
    theta = objective.theta()
    gradient = objective.evaluate(theta)[1]
    run.take(1)
    result = Skipper(objective, run.optimizer).skip(10, Conditions(known=((theta, gradient),)))
    alone = loop(lambda p: torch.optim.SGD(p, 0.02), warm=11)
    without = Skipper(alone.objective(), alone.optimizer).skip(10)
    assert result.steps == without.steps == 10
    assert result.error < without.error
    assert result.gradient_evaluations <= without.gradient_evaluations
