"""The metric read off a real optimizer's state against the formulas of torch.optim, written out by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import jumpstart as js
from jumpstart.errors import InputError, MetricError, ShapeError
from jumpstart.flow.horizon import parse
from jumpstart.linearization.metric import CLIP, Metric, as_metric, from_optimizer, restrict
from jumpstart.objectives.parameters import ParameterSpace

from ..problems import flat, mlp, randn, relative


def trained(build, steps=5, seed=0):
    """A model after a few real steps, and its optimizer."""
    model, x, y = mlp(seed), randn(seed, 8, 4), randn(seed + 1, 8, 3)
    optimizer = build(model)
    for _ in range(steps):
        optimizer.zero_grad()
        mse_loss(model(x), y).backward()
        optimizer.step()
    return model, optimizer


def everything(model):
    return model.parameters()


def state(model, optimizer, key):
    return torch.cat([optimizer.state[p][key].reshape(-1) for p in model.parameters()])


def adam(model, optimizer, eps, beta, key="exp_avg_sq"):
    return 1 / ((state(model, optimizer, key) / (1 - beta**5)).sqrt() + eps)


# name → (optimizer, D, decay rates given D)
CASES = {
    "SGD": (lambda m: torch.optim.SGD(everything(m), lr=0.1), lambda m, o: torch.ones(255).double(), lambda d: 0.0),
    "SGD with momentum and decay": (
        lambda m: torch.optim.SGD(everything(m), lr=0.1, momentum=0.9, weight_decay=0.02),
        lambda m, o: torch.ones(255).double(),
        lambda d: 0.02,
    ),
    "Adam": (lambda m: torch.optim.Adam(everything(m)), lambda m, o: adam(m, o, 1e-8, 0.999), lambda d: 0.0),
    "Adam, other constants, L2 term": (
        lambda m: torch.optim.Adam(everything(m), lr=0.01, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1),
        lambda m, o: adam(m, o, 1e-3, 0.9),
        lambda d: 0.1 * d,
    ),
    "Adam, decoupled by a flag": (
        lambda m: torch.optim.Adam(everything(m), weight_decay=0.1, decoupled_weight_decay=True),
        lambda m, o: adam(m, o, 1e-8, 0.999),
        lambda d: 0.1,
    ),
    "AMSGrad": (
        lambda m: torch.optim.Adam(everything(m), amsgrad=True),
        lambda m, o: adam(m, o, 1e-8, 0.999, "max_exp_avg_sq"),
        lambda d: 0.0,
    ),
    "AdamW": (
        lambda m: torch.optim.AdamW(everything(m), lr=3e-3, weight_decay=0.05),
        lambda m, o: adam(m, o, 1e-8, 0.999),
        lambda d: 0.05,
    ),
    "RMSprop": (
        lambda m: torch.optim.RMSprop(everything(m), alpha=0.9, eps=1e-6, weight_decay=0.01),
        lambda m, o: 1 / (state(m, o, "square_avg").sqrt() + 1e-6),
        lambda d: 0.01 * d,
    ),
    "RMSprop, centered": (
        lambda m: torch.optim.RMSprop(everything(m), centered=True),
        lambda m, o: 1 / ((state(m, o, "square_avg") - state(m, o, "grad_avg") ** 2).sqrt() + 1e-8),
        lambda d: 0.0,
    ),
    "Adagrad": (
        lambda m: torch.optim.Adagrad(everything(m)),
        lambda m, o: 1 / (state(m, o, "sum").sqrt() + 1e-10),
        lambda d: 0.0,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_metric_of_a_real_optimizer(name):
    build, diagonal, decay = CASES[name]
    model, optimizer = trained(build)
    before = copy.deepcopy(optimizer.state_dict())
    metric = from_optimizer(optimizer, model, ParameterSpace(model))
    expected = diagonal(model, optimizer)
    expected = expected.clamp(max=CLIP * float(expected.median()))
    d = torch.ones(255).double() if metric.root is None else metric.root.square()
    assert relative(d, expected) < 1e-12
    rates = torch.as_tensor(metric.decay, dtype=torch.float64).expand(255)
    assert relative(rates, torch.as_tensor(decay(expected), dtype=torch.float64).expand(255)) < 1e-12
    assert str(before) == str(optimizer.state_dict())


def test_parameter_groups_keep_their_ratio_of_rates_and_their_decay():
    def build(model):
        return torch.optim.AdamW(
            [
                {"params": [*model[0].parameters()], "lr": 1e-2, "weight_decay": 0.3},
                {"params": [*model[2].parameters(), *model[4].parameters()], "lr": 4e-2, "weight_decay": 0.2},
            ]
        )

    model, optimizer = trained(build)
    metric = from_optimizer(optimizer, model, ParameterSpace(model))
    first = sum(p.numel() for p in model[0].parameters())
    expected = adam(model, optimizer, 1e-8, 0.999)
    expected[first:] *= 4
    assert metric.root is not None
    assert relative(metric.root.square(), expected.clamp(max=CLIP * float(expected.median()))) < 1e-12
    assert isinstance(metric.decay, torch.Tensor)
    assert bool((metric.decay[:first] == 0.3).all())
    assert relative(metric.decay[first:], torch.full((255 - first,), 0.8, dtype=torch.float64)) < 1e-12


def test_dead_parameters_do_not_own_the_metric():
    """A weight without gradient has v̂ = 0, D = 1/ε and, coupled, decay·D: both are clipped alike."""
    model, x, y = mlp(0), randn(0, 8, 4), randn(1, 8, 3)
    x[:, 0] = 0
    with torch.no_grad():
        model[0].weight[:, 0] = 0
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=0.1)
    mse_loss(model(x), y).backward()
    optimizer.step()
    metric = from_optimizer(optimizer, model, ParameterSpace(model))
    assert metric.root is not None
    d = metric.root.square()
    assert float(d.max()) <= CLIP * float(d.median()) * (1 + 1e-12)
    assert relative(metric.decay, 0.1 * d) < 1e-12


def test_the_largest_entry_is_a_thousand_medians():
    """By hand: D = 1/(√v + ε) is 1/2 nearly everywhere and 1/10⁻⁶ for one weight: clipped to 500, no other touched."""
    model = mlp(0)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.1, eps=1e-6, weight_decay=0.01)
    for p in model.parameters():
        optimizer.state[p] = {"step": torch.tensor(1.0), "square_avg": torch.full_like(p, (2 - 1e-6) ** 2)}
    optimizer.state[model[0].bias]["square_avg"][3] = 0.0
    optimizer.state[model[0].bias]["square_avg"][4] = (1 / 499 - 1e-6) ** 2
    metric = from_optimizer(optimizer, model, ParameterSpace(model))
    expected = torch.full((255,), 0.5, dtype=torch.float64)
    expected[48 + 3], expected[48 + 4] = 500.0, 499.0  # the bias lies behind 48 weights
    assert metric.root is not None
    assert relative(metric.root.square(), expected) < 1e-12
    assert relative(metric.decay, 0.01 * expected) < 1e-12


def displacement(solution, t):
    """(P,) at a flow time so short that weights would round it away."""
    return solution.flow.displacement(solution.flow.coefficients(parse(t))[0])


def test_one_jump_step_in_adams_metric_goes_along_adams_direction():
    """For t → 0 the displacement is −t·D∇Φ, with momentum off that is Adam's own step."""
    model, optimizer = trained(lambda m: torch.optim.Adam(m.parameters(), betas=(0.0, 0.99)))
    x, y = randn(5, 8, 4), randn(6, 8, 3)
    grads = torch.autograd.grad(mse_loss(model(x), y), [*model.parameters()])
    d = adam(model, optimizer, 1e-8, 0.99)
    d = d.clamp(max=CLIP * float(d.median()))
    for basis in ("dense", "krylov"):
        found = js.solve(js.supervised(model, x, y), metric=optimizer, basis=basis)
        moved = displacement(found, 1e-12)
        assert relative(moved, -1e-12 * d * torch.cat([g.reshape(-1) for g in grads])) < 1e-8


GIVEN = {
    "none": (lambda m: None, lambda m: None),
    "vector": (lambda m: torch.linspace(1, 2, 255), lambda m: torch.linspace(1, 2, 255)),
    "by name": (
        lambda m: {k: torch.full_like(p, 2 + i) for i, (k, p) in enumerate(m.named_parameters())},
        lambda m: torch.cat([torch.full((p.numel(),), 2.0 + i) for i, p in enumerate(m.parameters())]),
    ),
    "a Metric": (lambda m: Metric(torch.full((255,), 3.0)), lambda m: torch.full((255,), 9.0)),
}


@pytest.mark.parametrize("name", GIVEN)
def test_given_metrics(name):
    model = mlp(0)
    source, expected = GIVEN[name]
    metric = as_metric(source(model), model, ParameterSpace(model), 0.25)
    assert metric.decay == 0.25
    if expected(model) is None:
        assert metric.root is None
    else:
        assert metric.root is not None
        assert relative(metric.root.double().square(), expected(model).double()) < 1e-6
    v = flat(model)
    assert relative(metric.unscale(metric.scale(v)), v) < 1e-14


def test_the_step_of_a_jump_goes_along_the_optimizers_own():
    """Momentum off, second moments as after the step: both are −rate·D∘g, on layers with different rates too."""

    def build(model):
        groups = [{"params": model[k].parameters(), "lr": lr} for k, lr in ((0, 1e-3), (2, 4e-3), (4, 2e-3))]
        return torch.optim.RMSprop(groups, alpha=0.9, eps=1e-3)

    model, optimizer = trained(build)
    for group in optimizer.param_groups:
        group["alpha"] = 1.0  # one more step leaves the second moments as they are
    x, y = randn(5, 8, 4), randn(6, 8, 3)
    moved = displacement(js.solve(js.supervised(model, x, y), metric=optimizer, basis="dense"), 1e-12)
    before = flat(model)
    optimizer.zero_grad()
    mse_loss(model(x), y).backward()
    optimizer.step()
    assert relative(moved / 1e-12, (flat(model) - before) / 1e-3) < 1e-9


def test_time_is_in_units_of_the_first_rate_that_is_not_zero():
    def build(model):
        return torch.optim.SGD(
            [{"params": model[k].parameters(), "lr": lr} for k, lr in ((0, torch.tensor(0.0)), (2, 0.1), (4, 0.3))]
        )

    model, optimizer = trained(build)
    metric = from_optimizer(optimizer, model, ParameterSpace(model, ["2", "4"]))
    assert metric.root is not None
    middle = sum(p.numel() for p in model[2].parameters())
    assert relative(metric.root.square()[:middle], torch.ones(middle)) < 1e-15
    assert relative(metric.root.square()[middle:], torch.full((39,), 3.0)) < 1e-15


@pytest.mark.parametrize("order", [(0, 2, 4), (4, 2, 0)])
def test_parameters_that_the_optimizer_does_not_move_are_named(order):
    """A jump in an optimizer's metric would move them: refused, wherever their group stands."""
    model, x, y = mlp(0), randn(0, 8, 4), randn(1, 8, 3)
    rates = {0: 0.0, 2: 0.1, 4: 0.1}
    optimizer = torch.optim.SGD([{"params": model[k].parameters(), "lr": rates[k]} for k in order])
    objective, before = js.supervised(model, x, y), flat(model)
    for door in (js.jump, js.solve):
        with pytest.raises(InputError, match=r"0\.weight.*params="):
            door(objective, metric=optimizer)
    assert torch.equal(flat(model), before)
    assert js.jump(objective, metric=optimizer, params=["2", "4"]).accepted
    assert torch.equal(flat(model)[:60], before[:60])
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    with pytest.raises(InputError, match="every learning rate of SGD is 0"):
        js.solve(objective, metric=optimizer)


def test_an_optimizer_without_rates_has_no_metric():
    model, optimizer = trained(lambda m: torch.optim.Adam(m.parameters()))
    del optimizer.param_groups[0]["lr"]
    with pytest.raises(MetricError, match="'lr'"):
        from_optimizer(optimizer, model, ParameterSpace(model))


def test_the_wrapped_optimizers_metric_is_read_through_the_wrapper():
    model, optimizer = trained(lambda m: torch.optim.SGD(m.parameters(), lr=0.1, weight_decay=0.02))
    wrapper = js.JumpOptimizer(optimizer, js.supervised(model, randn(0, 8, 4), randn(1, 8, 3)), search=True)
    assert from_optimizer(wrapper, model, ParameterSpace(model)) == Metric(None, 0.02)


def test_a_metric_for_some_of_the_parameters():
    model = mlp(0)
    space, d = ParameterSpace(model), torch.linspace(1, 2, 255, dtype=torch.float64)
    some = ParameterSpace(model, ["0.bias", "4.weight"])
    part = restrict(Metric(d.sqrt(), 3 * d), space, some.names)
    named = space.unflatten(d)
    assert part.root is not None
    assert torch.equal(part.root, some.flatten(named).sqrt())
    assert torch.equal(torch.as_tensor(part.decay), 3 * some.flatten(named))
    assert restrict(Metric(None, 0.5), space, some.names) == Metric(None, 0.5)


BAD = {
    "no step yet": lambda m: torch.optim.Adam(m.parameters()),
    "only some": lambda m: torch.optim.SGD(m[0].parameters(), lr=0.1),
    "missing names": lambda m: {"0.weight": torch.ones(12, 4)},
    "no state to read": lambda m: torch.optim.Rprop(m.parameters()),
    "too short": lambda m: torch.ones(254),
}


@pytest.mark.parametrize("name", BAD)
def test_metrics_that_cannot_be(name):
    model = nn.Sequential(*mlp(0))
    with pytest.raises(InputError, match="metric"):
        as_metric(BAD[name](model), model, ParameterSpace(model))


@pytest.mark.parametrize("wrong", [Metric(torch.ones(254)), Metric(None, torch.ones(2))])
def test_metrics_of_another_shape(wrong):
    model = mlp(0)
    with pytest.raises(ShapeError, match="255"):
        as_metric(wrong, model, ParameterSpace(model))


def test_adadelta_has_no_metric_of_this_kind():
    """Its second moments look like RMSprop's, but its step also divides by the size of past updates."""
    model, optimizer = trained(lambda m: torch.optim.Adadelta(m.parameters()))
    with pytest.raises(InputError, match="Adadelta"):
        from_optimizer(optimizer, model, ParameterSpace(model))


def test_subset_reads_its_own_entries():
    model, optimizer = trained(lambda m: torch.optim.Adam(m.parameters()))
    metric = from_optimizer(optimizer, model, ParameterSpace(model, "4"))
    expected = 1 / ((optimizer.state[model[4].weight]["exp_avg_sq"] / (1 - 0.999**5)).sqrt() + 1e-8)
    assert metric.root is not None
    assert relative(metric.root.square()[: expected.numel()], expected.reshape(-1)) < 1e-12
