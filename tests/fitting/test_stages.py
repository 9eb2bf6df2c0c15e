"""The stages of a fit: what is compared after new points, decay and chosen parameters, causes, landing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart import errors
from jumpstart.fitting import stages
from jumpstart.fitting.fit import Fit
from jumpstart.fitting.stages import Event
from jumpstart.fitting.state import FitState, Stage
from jumpstart.linearization.linearize import linearize
from jumpstart.surrogate import select as choose

from ..problems import flat, mlp, problem_of, randn
from .test_fit import X, Y, net, pinn, regression


def penalized(model, decay):
    misses = 0.5 * float((model(X) - Y).square().sum().detach())
    return misses + 0.5 * decay * float(flat(model).square().sum())


def test_weight_decay_counts_in_the_start_the_best_and_the_result():
    model = net()
    objective = regression(model=model)
    start = penalized(model, 0.3)
    result = js.fit(objective, jumps=20, weight_decay=0.3)
    assert result.start == pytest.approx(start, rel=1e-12)
    assert result.loss == pytest.approx(penalized(model, 0.3), rel=1e-10)
    assert result.loss < start


def test_a_start_of_low_loss_and_large_weights_is_not_the_best_under_decay():
    model = net()
    js.fit(regression(model=model), jumps=60)
    with torch.no_grad():
        model[4].weight.mul_(10)
        model[2].weight.mul_(0.1)  # another loss, larger weights
    before = penalized(model, 1.0)
    result = js.fit(regression(model=model), jumps=10, weight_decay=1.0)
    assert penalized(model, 1.0) == pytest.approx(result.loss)
    assert result.loss < before


def test_chosen_parameters_are_chosen_once():
    model = net()
    frozen = model[0].weight.detach().clone()
    built = []
    objective = regression(model=model)
    original = type(objective).subset
    type(objective).subset = lambda self, params: built.append(params) or original(self, params)
    try:
        result = js.fit(objective, jumps=5, params=["2", "4"], weight_decay=0.1)
    finally:
        type(objective).subset = original
    assert built == [["2", "4"]]
    assert torch.equal(model[0].weight, frozen)
    assert result.accepted > 0


def test_new_points_reset_what_is_compared():
    """The loss on other points is no progress and no stagnation, and no height that a bold step must stay below."""

    def points(jump):
        return {"inside": randn(jump, 12, 1) * (1 if jump % 2 else 30)}

    run, bold = Fit(pinn(net()), jumps=45, resample=points, every=3).steps(), 0
    for state in run:
        if state.jumps % 3 == 1 and state.jumps > 1:  # the first jump on new points
            assert state.mark >= min(state.best_loss, state.loss)
            if state.stage is Stage.CLIMB:
                bold += 1
                assert state.memory.best >= state.best_loss
    assert bold > 1


@pytest.mark.parametrize("kind", ["nan", "contradiction"])
def test_causes_are_told_apart(kind):
    model = net()
    start = flat(model).clone()

    def nan_off(f, x):
        moved = (f["0.weight"].reshape(-1) - start[: f["0.weight"].numel()]).abs().sum()
        return f(x) * torch.where(moved > 0, math.nan, 1.0)

    terms = {
        "nan": [js.Term(nan_off, X)],
        "contradiction": [js.Term(lambda f, x: f(x) - 1, X, name="up"), js.Term(lambda f, x: f(x) + 1, X, name="down")],
    }[kind]
    result = js.fit(js.residual(model, *terms), jumps=200, patience=5, restarts=0)
    assert result.outcome is js.FitOutcome.STAGNANT
    assert ("not finite" in result.cause) == (kind == "nan")
    assert ("contradict" in result.cause) == (kind == "contradiction")
    assert bool(torch.isfinite(flat(model)).all())


def stages_of(monkeypatch, jumps):
    monkeypatch.setattr(stages, "CAUTION", 3)
    return list(Fit(regression(), jumps=jumps).steps())


def test_a_bold_run_approaches_from_where_it_is_and_lands(monkeypatch):
    states = stages_of(monkeypatch, 20)
    names = [state.stage for state in states]
    assert names[:12] == [Stage.DESCEND] * 3 + [Stage.CLIMB] * 9  # 60% of the jumps
    assert names[12:14] == [Stage.APPROACH] * 2 and set(names[14:]) == {Stage.LAND}  # the third has been judged
    losses = [state.loss for state in states[11:]]
    lower = min(losses[:4]) < min(state.best_loss for state in states[:12]) * (1 - stages.CALM)
    if not lower:
        assert losses[3] == states[13].best_loss
    assert losses[3:] == sorted(losses[3:], reverse=True)
    assert all(state.stage is Stage.LAND for state in Fit(regression(), jumps=4, nonmonotone=False).steps())


def test_an_approach_is_judged_on_the_weights_of_the_moment():
    """Where a rule weighs points anew, what it has to be lower than is weighed anew, too."""
    fit = Fit(regression(), jumps=100)
    for state in fit.steps():
        if state.stage is Stage.CLIMB and not torch.equal(state.theta, state.best):
            break
    near = fit.run.met(state, Event.STUCK)
    other = js.supervised(near_model := fit.objective.model, X, Y + 0.5)
    moved = fit.run.moved(near, other, 0.0)
    assert moved.mark == pytest.approx(near.mark * other.value(near.best) / near.best_loss, rel=1e-12)
    assert near_model is fit.objective.model and moved.stage is Stage.APPROACH


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("late", [True, False])
def test_what_follows_from_an_approach(monkeypatch, lower, late):
    """Lower than anything before: the climb goes on from there, or the landing; otherwise from the best weights."""
    fit = Fit(regression(), jumps=100)
    for state in fit.steps():
        if state.stage is Stage.CLIMB and not torch.equal(state.theta, state.best):
            break
    near = fit.run.met(state, Event.STUCK)
    assert near.stage is Stage.APPROACH and near.theta is state.theta and near.since == state.jumps
    assert near.mark == state.best_loss and near.memory.horizon == stages.LAND_HORIZON / state.loss
    early = replace(near, jumps=near.jumps + 1)
    assert fit.run.followed(early) is early
    over = replace(near, jumps=90 if late else near.jumps + stages.BRIEF)
    if lower:
        over = replace(over, theta=over.theta + 1e-9, best=over.theta + 1e-9, best_loss=0.5 * near.mark)
    after = fit.run.followed(over)
    assert after.stage is (Stage.LAND if late or not lower else Stage.CLIMB)
    assert after.theta is (over.theta if lower else over.best)
    refused = replace(early, refused=stages.REFUSED)
    assert fit.run.followed(refused).stage is Stage.LAND


def test_a_march_that_is_stuck_turns_bold_before_it_lands(monkeypatch):
    monkeypatch.setattr(stages, "CAUTION", 1000)
    monkeypatch.setattr(stages, "DESCENT", 0.0)
    up, down = js.Term(lambda f, x: f(x) - 1, X), js.Term(lambda f, x: f(x) + 1, X)
    run = Fit(js.residual(net(), up, down), jumps=60, patience=5).steps()
    found, restarts = zip(*[(s.stage, s.restarts) for s in run], strict=True)
    assert 0 < found.index(Stage.CLIMB) < found.index(Stage.APPROACH) < found.index(Stage.LAND)
    assert restarts[found.index(Stage.LAND)] == 0


@pytest.mark.parametrize("slow", [True, False])
def test_a_march_may_climb_once_it_has_come_down_or_after_a_while(slow, monkeypatch):
    monkeypatch.setattr(stages, "DESCENT", 0.0 if slow else 0.1)
    seen = [(s.stage is Stage.CLIMB, s.best_loss / s.start) for s in Fit(regression(), jumps=50).steps()]
    first = next(k for k, (bold, _) in enumerate(seen) if bold)
    if slow:
        assert first == stages.CAUTION
    else:
        assert 0 < first < stages.CAUTION
        assert seen[first - 1][1] <= 0.1 < seen[first - 2][1]


def test_a_saddle_is_no_constant():
    """Zero weights in the last layer: the residual u² does not move to first order, but it depends on the network."""
    model = net()
    nn.init.zeros_(model[4].weight)
    nn.init.zeros_(model[4].bias)
    objective = js.residual(model, js.Term(lambda f, x: f(x) ** 2 - 1, X))
    assert js.jump(objective).outcome is js.Outcome.STATIONARY
    with pytest.raises(errors.NoParametersError):
        js.residual(model, js.Term(lambda f, x: x, X))


def test_a_march_on_a_batch_counts_its_jacobian_in_the_memory_plan():
    model = mlp(0, 4, 200, 1)
    lin = linearize(js.supervised(model, randn(0, 12, 4), randn(1, 12, 1)))
    problem = problem_of(lin, loss=js.losses.mse(randn(1, 12, 1)))
    size = 8.0 * lin.u.numel() * lin.theta.numel()
    assert choose.weigh(problem, "dense", cholesky=True).costs["dense"].bytes >= size
    assert choose.weigh(problem, "dense").costs["dense"].bytes < size


def test_a_user_loop_sees_what_the_residual_reads_now():
    """part.outputs(model) in a loop that never linearizes."""
    box = {"nu": 1.0}
    model = net()
    objective = js.residual(model, js.Term(lambda f, x: f(x) * box["nu"], X))
    part = objective.parts[0]
    assert part.local is not None
    for nu in (1.0, 2.0, 3.0):
        box["nu"] = nu
        torch.testing.assert_close(part.outputs(model), (nu * model(X)).reshape(-1))
    twin = nn.Sequential(*[nn.Sigmoid() if isinstance(m, nn.Tanh) else m for m in model])
    torch.testing.assert_close(part.outputs(twin), (3 * twin(X)).reshape(-1))


IMPOSSIBLE = {
    "fewer weights": ("theta", torch.zeros(5).double()),
    "no weights": ("best_theta", None),
    "NaN for weights": ("theta", torch.full((46,), math.nan).double()),
    "a count in words": ("jumps", "5"),
    "a count below zero": ("restarts", -1),
    "a loss that is NaN": ("best_loss", math.nan),
    "a stage that is none": ("stage", "FLY"),
    "a history that is none": ("history", None),
    "a horizon below zero": ("next_horizon", -1.0),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_state_that_no_fit_leaves_behind_is_refused_before_it_is_used(name):
    key, value = IMPOSSIBLE[name]
    like = torch.zeros(46).double()
    flat_state = FitState.at(like).flat()
    assert FitState.from_flat(flat_state, like).flat().keys() == flat_state.keys()
    with pytest.raises(errors.InputError, match=key if key != "next_horizon" else "horizon"):
        FitState.from_flat({**flat_state, key: value}, like)
