"""``js.jump``: what it promises about the real loss, and that a rejected jump leaves no trace."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import jumpstart as js
from jumpstart import errors

from ..problems import PROBLEMS, classes, cnn, fill, flat, mlp, randn, relative

LOSSES = {
    "mse": (F.mse_loss, lambda n, c: randn(3, n, c)),
    "cross_entropy": (F.cross_entropy, lambda n, c: classes(3, n, c)),
    "logistic": (F.binary_cross_entropy_with_logits, lambda n, c: (randn(3, n, c) > 0).double()),
}
OPTIONS = {
    "default": {},
    "dense": {"basis": "dense"},
    "first order": {"basis": "dense", "geodesic": False, "chord_steps": 0},
    "krylov": {"basis": "krylov", "depth": 6},
    "krylov, second order": {"basis": "krylov", "depth": 6, "geodesic": True},
    "scale": {"search": "scale", "basis": "dense"},
    "scale, krylov": {"search": "scale", "basis": "krylov", "depth": 4},
    "fixed horizon": {"horizon": 0.05},
    "soft gate": {"gate": "soft"},
    "weight decay": {"weight_decay": 1e-3},
}


def snapshot(model, optimizer=None):
    """Everything that a rejected jump must leave alone, to the bit."""
    state = {f"model.{k}": v.clone() for k, v in model.state_dict().items()}
    state["rng"] = torch.get_rng_state()
    for name, p in model.named_parameters():
        state[f"grad.{name}"] = torch.zeros(0) if p.grad is None else p.grad.clone()
    for i, entry in enumerate(optimizer.state.values() if optimizer else ()):
        state |= {f"optimizer.{i}.{k}": torch.as_tensor(v).clone() for k, v in entry.items()}
    modes = [module.training for module in model.modules()]
    return state, modes, copy.deepcopy(optimizer.state_dict()["param_groups"]) if optimizer else None


def assert_same(before, after):
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    for key, value in before[0].items():
        assert torch.equal(value, after[0][key]), key


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("net", ["mlp", "cnn"])
def test_accepted_jump_lowers_the_real_loss_to_what_it_reports(net, kind, option):
    loss, targets = LOSSES[kind]
    options, decay = OPTIONS[option], OPTIONS[option].get("weight_decay", 0.0)
    model, x = (mlp(1), randn(1, 10, 4)) if net == "mlp" else (cnn(1, 3), randn(1, 10, 1, 6, 6))
    y = targets(10, 3)

    def real():
        penalty = 0.5 * decay * flat(model).square().sum()
        return float((loss(model(x), y) + penalty).detach())

    before, weights = real(), flat(model).clone()
    result = js.jump(js.supervised(model, x, y, kind), **options)
    assert result.accepted, result
    assert result.before == pytest.approx(before, rel=1e-13)
    assert real() == pytest.approx(result.actual, rel=1e-12, abs=1e-28)
    assert result.actual < before
    assert result.gradient_evaluations > 0
    assert result.directions is not None
    moved = flat(model) - weights
    assert torch.allclose(result.directions[0], moved, rtol=1e-12, atol=1e-15)
    assert result.ratio == pytest.approx((before - result.actual) / (before - result.predicted), rel=1e-6)


@pytest.mark.parametrize("family", ["horizon", "scale"])
@pytest.mark.parametrize("basis", ["dense", "krylov"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_jumps_on_awkward_problems(name, basis, family):
    p = PROBLEMS[name](1)
    before = float(F.mse_loss(p.model(p.x), p.y))
    result = js.jump(js.supervised(p.model, p.x, p.y), basis=basis, search=family)
    assert result.accepted
    assert float(F.mse_loss(p.model(p.x), p.y)) == pytest.approx(result.actual, rel=1e-12, abs=1e-28)
    assert result.actual < before


def test_reported_loss_is_bit_identical_on_re_evaluation():
    model, x, y = mlp(1), randn(1, 10, 4), randn(2, 10, 3)
    objective = js.supervised(model, x, y)
    result = js.jump(objective)
    assert objective.value(objective.theta()) == result.actual


@pytest.mark.parametrize("kind", LOSSES)
def test_jumps_in_a_row_reach_a_small_loss(kind):
    model, x, y = mlp(2), randn(2, 8, 4), LOSSES[kind][1](8, 3)
    objective = js.supervised(model, x, y, kind)
    jumper = js.Jumper(objective)
    for _ in range(12):
        jumper.jump()
    assert objective.value(objective.theta()) < (1e-8 if kind == "mse" else 1e-3)


def noisy_net():
    """BatchNorm, dropout and Adam with state, all in train mode, as in the middle of a user's loop."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 8),
        nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3),
    )  # fmt: skip
    model[3].eval()  # one submodule in a mode of its own, which must survive too
    x, y = torch.randn(12, 1, 6, 6), torch.randint(0, 3, (12,))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y, optimizer


REJECTIONS = {
    "huge horizon": {"horizon": 1e6, "geodesic": False, "chord_steps": 0},
    "huge horizon, krylov": {"horizon": 1e6, "basis": "krylov", "depth": 5, "chord_steps": 0},
    "floor out of reach": {"trust": js.Trust(floor=1e9), "basis": "dense"},
    "one candidate": {"trust": js.Trust(horizon=1e7, limit=1), "basis": "krylov", "depth": 4},
    "scale, floor out of reach": {"search": "scale", "trust": js.Trust(floor=1e9), "basis": "krylov", "depth": 3},
    "in Adam's metric": {"trust": js.Trust(floor=1e9), "metric": "optimizer", "basis": "krylov", "depth": 3},
}


@pytest.mark.parametrize("name", REJECTIONS)
def test_rejected_jump_leaves_everything_bit_identical(name):
    model, x, y, optimizer = noisy_net()
    before = snapshot(model, optimizer)
    options = dict(REJECTIONS[name])
    if options.get("metric") == "optimizer":
        options["metric"] = optimizer
    result = js.jump(js.supervised(model, x, y, "cross_entropy", training=False), **options)
    assert not result.accepted, result
    assert result.outcome in (js.Outcome.NO_DECREASE, js.Outcome.NOT_FINITE)
    assert result.directions is None
    assert_same(before, snapshot(model, optimizer))


def test_accepted_jump_moves_the_weights_alone():
    model, x, y, optimizer = noisy_net()
    before = snapshot(model, optimizer)
    assert js.jump(js.supervised(model, x, y, "cross_entropy", training=False), basis="krylov", depth=5).accepted
    after = snapshot(model, optimizer)
    assert before[1:] == after[1:]
    moved = {f"model.{name}" for name, _ in model.named_parameters()}
    for key, value in before[0].items():
        assert torch.equal(value, after[0][key]) == (key not in moved), key


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_weights_are_put_back_when_a_write_is_interrupted(monkeypatch, at, kind):
    """Between the first tensor and the last: half a jump is no point of any run."""
    model = mlp(1)
    objective, before = js.supervised(model, randn(1, 10, 4), randn(2, 10, 3)), snapshot(model)
    copy_, calls = torch.Tensor.copy_, []

    def interrupted(self, *args):
        if any(self is p for p in model.parameters()):
            calls.append(self)
            if len(calls) == at + 1:
                raise kind("in between")
        return copy_(self, *args)

    monkeypatch.setattr(torch.Tensor, "copy_", interrupted)
    with pytest.raises(kind, match="in between"):
        js.jump(objective)
    monkeypatch.undo()
    assert len(calls) == at + 1 + len(list(model.parameters()))
    assert_same(before, snapshot(model))
    assert js.jump(objective).accepted


class Exploding(nn.Module):
    """exp(a·x): overflows to infinity at large weights."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.full((3,), 0.1, dtype=torch.float64))

    def forward(self, x):
        return ((x @ self.a) * 50).exp()[:, None]


class Broken(nn.Module):
    """NaN anywhere but at its start."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, x):
        moved = (self.a.detach() != 1).any()
        return (x @ self.a)[:, None] * torch.where(moved, math.nan, 1.0)


def exploding(target):
    return js.supervised(Exploding(), randn(0, 6, 3).abs(), torch.full((6, 1), target, dtype=torch.float64))


@pytest.mark.parametrize("target", [1e3, 1e12])
def test_a_search_finds_what_is_finite_among_steps_that_overflow(target):
    objective = exploding(target)
    for _ in range(5):
        before = objective.value(objective.theta())
        result = js.jump(objective)
        assert result.accepted, result
        assert bool(torch.isfinite(flat(objective.model)).all())
        assert result.actual == objective.value(objective.theta()) < before


def test_a_step_that_overflows_is_refused():
    objective = exploding(1e12)
    before = flat(objective.model)
    result = js.jump(objective, horizon=math.inf, geodesic=False)
    assert result.outcome is js.Outcome.NOT_FINITE
    assert math.isnan(result.actual)
    assert torch.equal(flat(objective.model), before)


@pytest.mark.parametrize("limit", [3, 24])
@pytest.mark.parametrize("family", ["horizon", "scale"])
def test_nan_everywhere_is_an_outcome(family, limit):
    """With many tries the last displacement underflows to none at all, which is finite but no decrease either."""
    model = Broken()
    result = js.jump(js.supervised(model, randn(0, 4, 2), randn(1, 4, 1)), search=family, trust=js.Trust(limit=limit))
    assert result.outcome is (js.Outcome.NOT_FINITE if limit == 3 else js.Outcome.NO_DECREASE)
    assert torch.equal(model.a.detach(), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("basis", ["auto", "dense", "krylov"])
def test_stationary_points(basis):
    model, x = mlp(0), randn(0, 5, 4)
    result = js.jump(js.supervised(model, x, model(x).detach()), basis=basis)
    assert result.outcome is js.Outcome.STATIONARY
    assert not result.accepted
    # Zero gradient in the weights although the loss is not at its minimum.
    dead = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1, bias=False)).double()
    nn.init.constant_(dead[0].bias, -100.0)
    before = flat(dead).clone()
    result = js.jump(js.supervised(dead, randn(0, 5, 2), randn(1, 5, 1)), basis=basis)
    assert result.outcome is js.Outcome.STATIONARY
    assert torch.equal(flat(dead), before)


def test_recycling_builds_on_the_jump_before():
    model, x, y = mlp(3), randn(3, 20, 4), randn(4, 20, 3)
    objective = js.supervised(model, x, y)
    kept = None
    for _ in range(4):
        result = js.jump(objective, basis="krylov", depth=4, directions=kept)
        assert result.accepted
        assert result.modes == (4 if kept is None else 4 + len(kept))
        kept = result.directions if kept is None else torch.cat([kept, result.directions])[-2:]


def test_recycling_when_nothing_is_left_to_add():
    """One neuron: the kept directions already span every parameter."""
    p = PROBLEMS["one neuron"](0)
    objective = js.supervised(p.model, p.x, p.y)
    result = js.jump(objective, basis="krylov", depth=4, directions=torch.eye(2, dtype=torch.float64))
    assert result.accepted
    assert objective.value(objective.theta()) < result.before


def test_second_order_lands_closer():
    misses = []
    for second_order in (False, True):
        model, x = mlp(5), randn(5, 6, 4)
        target = model(x).detach() + 0.05 * randn(6, 6, 3)
        misses.append(
            js.jump(
                js.supervised(model, x, target),
                basis="dense",
                horizon=math.inf,
                geodesic=second_order,
                chord_steps=0,
            ).actual
        )
    assert misses[1] < 0.1 * misses[0]


def test_reuse_gains_further():
    losses = []
    for reuse in (0, 2):
        model, x = mlp(5), randn(5, 6, 4)
        target = model(x).detach() + 0.05 * randn(6, 6, 3)
        result = js.jump(
            js.supervised(model, x, target), basis="dense", horizon=math.inf, geodesic=False, chord_steps=reuse
        )
        assert result.chord_steps == reuse
        losses.append(result.actual)
    assert losses[1] < 1e-2 * losses[0]


def test_a_fixed_horizon_is_the_only_candidate_and_is_remembered():
    model = fill(nn.Linear(3, 1), 0)
    jumper = js.Jumper(js.supervised(model, randn(0, 6, 3), randn(1, 6, 1)), horizon=0.01)
    result = jumper.jump()
    assert (result.candidates, result.horizon, jumper.memory.horizon) == (1, 0.01, 0.01)


class Brittle(nn.Module):
    """Linear, until the weight has moved by more than a little: then NaN."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        return x * self.w + torch.where(self.w.abs() > 0.3, torch.nan, 0.0)


def test_a_nan_further_out_does_not_cost_the_good_candidate():
    model = Brittle()
    x = torch.ones(4, 1, dtype=torch.float64)
    result = js.jump(js.supervised(model, x, x), geodesic=False, chord_steps=0, trust=js.Trust(horizon=1e-3))
    assert result.accepted
    assert 0 < float(model.w.detach()) <= 0.3


def test_nothing_finite_shrinks_the_next_search():
    model = Brittle()
    x = torch.ones(4, 1, dtype=torch.float64)
    jumper = js.Jumper(js.supervised(model, x, x), geodesic=False, trust=js.Trust(horizon=1e6, limit=3))
    assert not jumper.jump().accepted
    assert jumper.memory.horizon < 1e6
    assert float(model.w.detach()) == 0


def test_a_run_that_cannot_be_followed_is_an_outcome_for_a_jump_and_an_error_for_a_solve(monkeypatch):
    monkeypatch.setattr("jumpstart.linalg.etdrk4.STEPS", 2)
    torch.manual_seed(0)
    model, x, y = nn.Linear(2, 1).double(), torch.randn(9, 2).double(), torch.randn(9, 1).double()
    objective = js.supervised(model, x, 20 * y, loss="huber")
    before = flat(model)
    result = js.jump(objective, basis="dense", horizon=100.0)
    assert result.outcome is js.Outcome.UNSOLVED
    assert math.isnan(result.actual)
    assert torch.equal(flat(model), before)
    with pytest.raises(errors.FlowError, match="twice differentiable"):
        js.solve(objective, basis="dense").outputs(100.0)


def test_derivatives_that_are_not_finite_are_named():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x * self.w.abs().sqrt()

    objective = js.supervised(Root(), torch.ones(3, 1), torch.ones(3, 1))
    for basis in ("dense", "krylov"):
        with pytest.raises(errors.NonFiniteError, match="derivatives"):
            js.jump(objective, basis=basis)


def test_weight_decay_is_part_of_a_reused_correction():
    """At the optimum of the penalized loss there is nothing left to gain, and nothing must pull away from it."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 1).double(), torch.randn(20, 3).double(), torch.randn(20, 1).double()
    objective = js.supervised(model, x, y)
    for _ in range(3):
        result = js.jump(objective, weight_decay=0.3, horizon=1e6, basis="dense")
    again = js.jump(objective, weight_decay=0.3, horizon=1e6, basis="dense", chord_steps=5)
    w = torch.cat([x, torch.ones(20, 1).double()], 1)  # the penalized optimum, by normal equations
    best = torch.linalg.solve(2 / 20 * w.T @ w + 0.3 * torch.eye(4).double(), 2 / 20 * w.T @ y).reshape(-1)
    assert relative(flat(model), best) < 1e-6
    assert result.accepted is False
    assert not again.accepted
    assert again.before == pytest.approx(result.before, rel=1e-12)
