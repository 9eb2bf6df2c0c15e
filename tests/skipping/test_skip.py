"""A skip against really taking the steps: where the optimizer's weights, state and rates would be, and outputs."""

from __future__ import annotations

import statistics
import warnings

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.skipping.skip import Skipper
from jumpstart.skipping.windows import MISS, Conditions

from ..problems import randn
from .loops import Loop, draw, miss
from .optimizers import KINDS


def relative(a, b):
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def flat(loop):
    return torch.cat([p.detach().reshape(-1) for p in loop.model.parameters() if p.requires_grad])


def moments(loop, key):
    return torch.cat([state[key].reshape(-1) for state in loop.optimizer.state.values()])


def steps_of(loop):
    return [float(state["step"]) for state in loop.optimizer.state.values()]


# ---- where a gradient is linear in the weights -----------------------------------------------------------------------


def linear(kind, features=3, **fields):
    """A trained last layer on features that stay: the loss is a quadratic of few weights."""
    torch.manual_seed(len(kind))
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, features),
                          nn.Tanh(), nn.Linear(features, 1)).double()  # fmt: skip
    model[:6].requires_grad_(False)
    x, held = torch.randn(200, 8).double(), torch.randn(20, 8).double()
    y = torch.randn(200, 1).double()
    trained = [p for p in model.parameters() if p.requires_grad]
    return Loop(model, x, y, held, optimizer=KINDS[kind](trained), **fields)


LINEAR = ["SGD", "SGD decay", "momentum", "dampened", "Nesterov", "Adam", "Adam decay", "Adam amsgrad", "AdamW",
          "AdamW rate as a tensor", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "ASGD"]  # fmt: skip


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("kind", LINEAR)
def test_where_the_gradient_is_linear_and_its_secants_span_the_skip_is_exact(kind, clip):
    loop = linear(kind, clip=clip).take(8)
    objective = loop.objective()
    here, known = objective.theta(), []
    for k in range(4):  # as many secants as there are weights, and not the run's own, which are nearly parallel
        point = here + 0.3 * randn(k, 4)
        known.append((point, objective.evaluate(point)[1]))
    twin, start = loop.twin(), flat(loop)
    skipper = Skipper(objective, loop.optimizer, clip=clip)
    skipper.window = 30
    result = skipper.skip(30, Conditions(known=tuple(known)))
    assert (result.steps, result.windows) == (30, 1)
    twin.take(30)
    moved = float((flat(twin) - start).norm())
    assert float((flat(loop) - flat(twin)).norm()) < 1e-8 * moved
    for key in ("momentum_buffer", "exp_avg", "exp_avg_sq", "square_avg", "sum", "exp_inf", "max_exp_avg_sq", "ax"):
        if any(key in state for state in loop.optimizer.state.values()):
            assert relative(moments(loop, key), moments(twin, key)) < 1e-8, key


@pytest.mark.parametrize("kind", ["SGD", "momentum", "Adam", "AdamW", "Adagrad"])
def test_without_knowing_them_outputs_are_within_a_hundredth(kind):
    loop = linear(kind).take(8)
    start, twin = loop.outputs(), loop.twin()
    result = loop.skip(30)
    assert result.steps == 30
    assert miss(start, loop, twin.take(30)) < 0.01


# ---- small networks --------------------------------------------------------------------------------------------------

# A window's predictor and corrector differ by at most TOLERANCE (0.2) of the movement, and the corrector's error is of
# the next order: around its square, 0.04, is what the median must be. Training outputs are off by MISS (0.3) at most,
# or the skip is refused; held-out ones, which nobody has asked, by twice as much.
NEAR = {"SGD": 0.01, "momentum": 0.08, "Nesterov": 0.12, "Adam": 0.15, "AdamW": 0.15, "RAdam": 0.01, "Adamax": 0.1,
        "Adagrad": 0.15}  # fmt: skip


def has(loop, key):
    return any(key in state for state in loop.optimizer.state.values())


def trial(kind, seeds, m=20):
    found = []
    for seed in seeds:
        loop = draw(seed, KINDS[kind])
        start, twin = loop.outputs(), loop.twin()
        result = loop.skip(m)
        if result.steps:
            found.append((miss(start, loop, twin.take(result.steps)), result, loop, twin))
    return found


@pytest.mark.parametrize("kind", NEAR)
def test_held_out_outputs_are_where_the_steps_lead(kind):
    found = trial(kind, range(100, 110))
    misses = [off for off, *_ in found]
    assert len(found) >= 4
    assert statistics.median(misses) <= NEAR[kind], misses
    assert max(misses) <= 2 * MISS, misses
    for _, result, loop, twin in found:
        assert result.accepted
        assert 0 < result.steps <= result.asked == 20
        assert result.steps > result.gradient_evaluations or result.outcome.name == "SHORT"
        assert loop.value().item() == pytest.approx(result.actual, rel=1e-9)
        if "step" in next(iter(loop.optimizer.state.values()), {}):
            assert steps_of(loop) == steps_of(twin)
    # Means of gradients that have become small point elsewhere first.
    for key, median, most in (("momentum_buffer", 0.3, 1.0), ("exp_avg", 0.3, 1.0), ("exp_avg_sq", 0.03, 0.3)):
        off = [relative(moments(a, key), moments(b, key)) for *_, a, b in found if has(a, key)]
        assert not off or (statistics.median(off) < median and max(off) < most), (key, off)


@pytest.mark.slow
def test_held_out_outputs_of_many_networks():
    """Further off than training outputs may be in 5% of them, at most."""
    for kind in NEAR:
        misses = sorted(off for off, *_ in trial(kind, range(200, 260)))
        over = sum(off > MISS for off in misses)
        print(f"{kind}: {len(misses)} of 60 skipped, median {statistics.median(misses):.3g}, over {MISS}: {over}")
        assert statistics.median(misses) <= NEAR[kind]
        assert over <= 0.05 * len(misses)


# ---- loops as people have them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["momentum", "AdamW"])
@pytest.mark.parametrize("clip", [0.02, 1e9])
def test_clipped_gradients_are_clipped_in_the_skip(kind, clip):
    makes = {
        "momentum": lambda p: torch.optim.SGD(p, 0.02, momentum=0.9),
        "AdamW": lambda p: torch.optim.AdamW(p, 3e-3),
    }
    loop = draw(3, makes[kind], clip=clip, loss="mse")
    start, twin = loop.outputs(), loop.twin()
    result = loop.skip(10)
    assert result.steps >= 4
    assert miss(start, loop, twin.take(result.steps)) < 0.1


def test_groups_move_by_their_own_rates():
    def make(parameters):
        first, *rest = parameters
        return torch.optim.AdamW([{"params": [first], "lr": 0.0, "weight_decay": 0.5}, {"params": rest}], 0.01)

    loop = draw(5, make, loss="mse")
    before, start, twin = loop.model[0].weight.detach().clone(), loop.outputs(), loop.twin()
    result = loop.skip(15)
    assert result.steps >= 5
    assert torch.equal(loop.model[0].weight, before), "a rate of nothing moves nothing"
    assert miss(start, loop, twin.take(result.steps)) < 0.1


@pytest.mark.parametrize("kind", ["momentum", "Adam"])
def test_chunks_of_a_batch_are_the_batch(kind):
    whole, parts = draw(7, KINDS[kind], loss="mse"), draw(7, KINDS[kind], loss="mse", options={"chunk": 5})
    results = whole.skip(10), parts.skip(10)
    assert results[0].steps == results[1].steps > 0
    assert relative(flat(parts), flat(whole)) < 1e-10


def test_residuals_are_skipped_along():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    t = torch.linspace(0, 1, 20).double()[:, None]

    def equation(net):
        u, du = torch.func.jvp(net, (t,), (torch.ones_like(t),))
        return (du + u)[:, 0]

    def start(net):
        return 3 * (net(t[:1]) - 1)[:, 0]

    loop = Loop(model, t, t, torch.linspace(0.01, 0.99, 30).double()[:, None],
                optimizer=torch.optim.Adam(model.parameters(), 1e-3))  # fmt: skip
    objective = js.residual(model, equation, start)
    assert len(objective.parts) == 2

    def take(loop, steps):
        own = js.residual(loop.model, equation, start)
        for _ in range(steps):
            gradient = own.evaluate(own.theta())[1]
            at = 0
            for p in loop.model.parameters():
                p.grad = gradient[at : at + p.numel()].reshape(p.shape).clone()
                at += p.numel()
            loop.optimizer.step()

    take(loop, 20)
    first, twin = loop.outputs(), loop.twin()
    result = js.skip(objective, loop.optimizer, 20)
    assert result.steps >= 10
    take(twin, result.steps)
    assert miss(first, loop, twin) < 0.1


def test_ignored_targets_stay_ignored():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    x, y = torch.randn(40, 4).double(), torch.randint(0, 3, (40,))
    y[::4] = -100
    loop = Loop(model, x, y, x, "cross_entropy", torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
                options={"ignore_index": -100}).take(10)  # fmt: skip
    start, twin = loop.outputs(), loop.twin()
    result = loop.skip(10)
    assert result.steps == 10
    assert miss(start, loop, twin.take(10)) < 0.1


def test_shared_weights_move_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    model[2].weight = model[0].weight
    x = torch.randn(30, 6).double()
    loop = Loop(model, x, torch.sin(x[:, :1]), x, optimizer=torch.optim.AdamW(model.parameters(), 0.003)).take(20)
    start, twin = loop.outputs(), loop.twin()
    result = loop.skip(10)
    assert result.steps >= 5
    assert model[2].weight is model[0].weight
    assert miss(start, loop, twin.take(result.steps)) < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_of_other_dtypes_end_where_the_optimizer_can_leave_them(dtype):
    loop = draw(2, lambda p: torch.optim.SGD(p, 0.02), loss="mse")
    loop.model.to(dtype)
    loop.x, loop.y, loop.held = loop.x.to(dtype), loop.y.to(dtype), loop.held.to(dtype)
    loop.optimizer = torch.optim.SGD(loop.model.parameters(), 0.02, momentum=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop.take(5)
        start, twin = loop.outputs().float(), loop.twin()
        result = loop.skip(8)
    twin.take(result.steps)
    assert all(p.dtype is dtype and bool(torch.isfinite(p).all()) for p in loop.model.parameters())
    assert all(state["momentum_buffer"].dtype is dtype for state in loop.optimizer.state.values())
    if result.steps:
        off = float((loop.outputs().float() - twin.outputs().float()).norm() / (twin.outputs().float() - start).norm())
        assert off < (0.1 if dtype is torch.float32 else 1.0)


def test_one_neuron_and_one_sample():
    torch.manual_seed(0)
    for n, width in ((1, 16), (20, 1), (1, 1)):
        model = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
        model.double()
        x = torch.randn(n, 1).double()
        loop = Loop(model, x, x.cos(), x, optimizer=torch.optim.SGD(model.parameters(), 0.02)).take(5)
        start, twin = loop.outputs(), loop.twin()
        result = loop.skip(10)
        assert result.steps == 10
        assert miss(start, loop, twin.take(10)) < 0.05


@pytest.mark.parametrize("kind", ["SGD", "momentum", "Adam"])
def test_a_stationary_start_stays_and_is_counted(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.randn(10, 2).double()
    y = model(x).detach()
    loop = Loop(model, x, y, x, optimizer=KINDS[kind](model.parameters())).take(1)
    before, twin = flat(loop), loop.twin()
    result = loop.skip(20)
    assert result.steps == 20
    assert result.miss == 0
    assert torch.allclose(flat(loop), before, atol=1e-15)
    twin.take(20)
    if kind == "Adam":
        assert steps_of(loop) == steps_of(twin)


def test_a_rate_of_zero_moves_nothing_but_time():
    loop = draw(1, lambda p: torch.optim.Adam(p, 0.0), loss="mse")
    loop.scheduler = torch.optim.lr_scheduler.LambdaLR(loop.optimizer, lambda k: 1.0)
    before = flat(loop)
    result = loop.skip(12)
    assert result.steps == 12
    assert torch.equal(flat(loop), before)
    assert steps_of(loop) == [32.0] * len(steps_of(loop))
    assert loop.scheduler.last_epoch == 12
