"""Gated optimizers against readable twins: averages from all the gradients there were, torch's own step taken apart."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.errors import InputError
from jumpstart.gating import samples
from jumpstart.linearization.metric import from_optimizer
from jumpstart.optim import GatedAdamW, GatedMuon, GatedSGD, gated, gates
from jumpstart.skipping.skip import Skipper

RATE, DECAY = 0.03, 0.1
SHAPE = (5, 3)


def weights(kind, options, count):
    """Of the gradients in the optimizer's average, oldest first, by its own recursion."""
    found: list[float] = []
    for _ in range(count):
        if kind is GatedSGD:
            mu, damp = options["momentum"], options.get("dampening", 0.0)
            found = [mu * w for w in found] + [1.0 if not found else 1 - damp]
        else:
            beta = options.get("betas", (0.9,))[0] if kind is GatedAdamW else options.get("momentum", 0.95)
            found = [beta * w for w in found] + [1 - beta]
    return torch.tensor(found, dtype=torch.float64)


def mean(kind, options, gradients):
    w = weights(kind, options, len(gradients))
    return torch.tensordot(w / w.sum(), torch.stack(gradients), 1)


def share(kind, options, count):
    w = weights(kind, options, count)
    return float((w / w.sum()).square().sum())


def beta_of(kind, options):
    return options.get("betas", (0.9,))[0] if kind is GatedAdamW else options.get("momentum", 0.95)


def streaming(kind, options, gradients, correction, rho):
    """The signal squared and its variance, from all gradients so far."""
    beta, s = beta_of(kind, options), torch.zeros_like(gradients[0])
    for t in range(1, len(gradients) + 1):
        before = gradients[: t - 1]
        if correction:
            if before:
                deviation = (gradients[t - 1] - mean(kind, options, before)) ** 2 / (1 + share(kind, options, t - 1))
                s = rho * s + (1 - rho) * deviation
        else:
            average = (1 - beta ** (t - 1)) * mean(kind, options, before) if before else 0.0
            s = rho * s + (1 - rho) * (gradients[t - 1] - average) ** 2
    n = len(gradients)
    signal = mean(kind, options, gradients) ** 2
    if correction:
        return signal, share(kind, options, n) * s / (1 - rho ** (n - 1))
    return signal, s / (1 - rho**n)


def rule_of(rule, signal, noise, alpha):
    if rule == "hard":
        return (signal > alpha * noise).double()
    if rule == "soft":
        left = (signal - alpha * noise).clamp_min(0)
        return left / (left + noise)
    return signal / (signal + alpha * noise)


def reduced(values, reduce):
    if reduce == "tensor":
        return values.mean()
    return values.mean(1, keepdim=True) if reduce == "row" else values


PLAIN = {GatedAdamW: torch.optim.AdamW, GatedSGD: torch.optim.SGD, GatedMuon: torch.optim.Muon}


def twin(kind, options, gate, all_gradients, exact=None):
    """Weights after each step: torch's own displacement from the same gradients, times the gate."""
    p = nn.Parameter(torch.ones(SHAPE, dtype=torch.float64))
    plain = PLAIN[kind]([p], lr=RATE, **{**options, "weight_decay": 0.0})
    where, found, seen = torch.ones(SHAPE, dtype=torch.float64), [], []
    for t, g in enumerate(all_gradients, 1):
        seen.append(g)
        before = p.detach().clone()
        p.grad = g.clone()
        plain.step()
        if exact is not None:
            variance = exact[t - 1]
            averaged = gate["correction"] and options.get("momentum", 1) != 0
            signal = mean(kind, options, seen) ** 2 if averaged else g**2
            noise = share(kind, options, t) * variance if averaged else variance
        elif t == 1:
            signal, noise = torch.ones(SHAPE).double(), torch.zeros(SHAPE).double()
        else:
            signal, noise = streaming(kind, options, seen, gate["correction"], gate.get("rho", 0.99))
        reduce = gate.get("reduce", "parameter")
        opening = rule_of(gate["rule"], reduced(signal, reduce), reduced(noise, reduce), gate.get("alpha", 1.0))
        where = where * (1 - RATE * DECAY) + opening * (p.detach() - before)
        found.append(where)
    return found


ROWS = {
    "AdamW": (GatedAdamW, {}),
    "AdamW betas": (GatedAdamW, {"betas": (0.8, 0.95), "eps": 1e-4}),
    "AdamW amsgrad": (GatedAdamW, {"amsgrad": True}),
    "AdamW uphill": (GatedAdamW, {"maximize": True}),
    "AdamW foreach": (GatedAdamW, {"foreach": True}),
    "AdamW one by one": (GatedAdamW, {"foreach": False}),
    "SGD": (GatedSGD, {"momentum": 0.9}),
    "SGD Nesterov": (GatedSGD, {"momentum": 0.8, "nesterov": True}),
    "SGD dampened": (GatedSGD, {"momentum": 0.8, "dampening": 0.4}),
    "SGD uphill": (GatedSGD, {"momentum": 0.9, "maximize": True}),
    "Muon": (GatedMuon, {}),
    "Muon plain": (GatedMuon, {"momentum": 0.8, "nesterov": False}),
}
GATES = [
    {"rule": rule, "correction": correction, **more}
    for rule in ("hard", "soft", "snr")
    for correction in (True, False)
    for more in ({}, {"alpha": 0.3, "rho": 0.9, "reduce": "row"}, {"reduce": "tensor"})
]


def drawn(seed, count=12):
    g = torch.Generator().manual_seed(seed)
    tilt = torch.randn(SHAPE, generator=g, dtype=torch.float64)
    return [0.3 * tilt + torch.randn(SHAPE, generator=g, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: " ".join(map(str, gate.values())))
@pytest.mark.parametrize("row", ROWS)
def test_step_by_step(row, gate):
    kind, options = ROWS[row]
    gradients = drawn(len(row))
    p = nn.Parameter(torch.ones(SHAPE, dtype=torch.float64))
    optimizer = kind([p], lr=RATE, weight_decay=DECAY, **options, **gate)
    for g, expected in zip(gradients, twin(kind, options, gate, gradients), strict=True):
        p.grad = g.clone()
        optimizer.step()
        torch.testing.assert_close(p.detach(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("correction", [True, False])
@pytest.mark.parametrize("row", ["AdamW", "SGD", "SGD without", "Muon"])
def test_exact_statistics_step_by_step(row, correction, monkeypatch):
    kind, options = ROWS.get(row, (GatedSGD, {"momentum": 0.0}))
    gradients, noises = drawn(3), [g.square() for g in drawn(4)]
    at = iter(noises)
    monkeypatch.setattr(samples, "noise", lambda p: next(at))
    gate = {"rule": "hard", "correction": correction}
    p = nn.Parameter(torch.ones(SHAPE, dtype=torch.float64))
    optimizer = kind([p], lr=RATE, weight_decay=DECAY, statistics="exact", **options, **gate)
    if not options.get("momentum", 1):
        options, gate = {"momentum": 0.0}, {**gate, "correction": False}  # one gradient is its own average
    for g, expected in zip(gradients, twin(kind, options, gate, gradients, noises), strict=True):
        p.grad = g.clone()
        optimizer.step()
        torch.testing.assert_close(p.detach(), expected, rtol=1e-10, atol=1e-12)
    assert gates.VARIANCE not in optimizer.state[p]


@pytest.mark.parametrize("kind", PLAIN)
def test_the_first_step_and_groups_that_are_never_gated_are_torchs(kind):
    options = {"momentum": 0.9} if kind is GatedSGD else {}
    own, plain = (nn.Parameter(torch.ones(SHAPE, dtype=torch.float64)) for _ in range(2))
    first = kind([own], lr=RATE, weight_decay=0.0, **options)
    theirs = PLAIN[kind]([plain], lr=RATE, weight_decay=0.0, **options)
    never = kind([{"params": [nn.Parameter(torch.ones(SHAPE, dtype=torch.float64))], "rule": None}], lr=RATE,
                 weight_decay=0.0, **options)  # fmt: skip
    other = never.param_groups[0]["params"][0]
    for i, g in enumerate(drawn(0, 6)):
        for p, optimizer in ((own, first), (plain, theirs), (other, never)):
            p.grad = g.clone()
            optimizer.step()
        if i == 0:
            torch.testing.assert_close(own.detach(), plain.detach(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(other.detach(), plain.detach(), rtol=1e-12, atol=1e-14)
    assert not torch.equal(own, plain)
    assert gates.VARIANCE not in never.state[other]


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)).to(dtype)


X = torch.randn(60, 4, generator=torch.Generator().manual_seed(5)).double()
Y = torch.sin(2 * X[:, :1])


def step(model, optimizer, rows=slice(None), scale=1.0):
    optimizer.zero_grad()
    (scale * nn.functional.mse_loss(model(X[rows].to(next(model.parameters()).dtype)), Y[rows].to(
        next(model.parameters()).dtype))).backward()  # fmt: skip
    optimizer.step()


MAKES = {
    "AdamW": lambda p: GatedAdamW(p, lr=0.01),
    "AdamW snr": lambda p: GatedAdamW(p, lr=0.01, rule="snr", correction=False, reduce="row"),
    "SGD": lambda p: GatedSGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "Muon": lambda p: GatedMuon([q for q in p if q.dim() == 2], lr=0.01),
}


@pytest.mark.parametrize("make", MAKES)
def test_a_state_goes_on_where_it_was(make):
    runs = []
    for interrupted in (False, True):
        model = network()
        optimizer = MAKES[make](list(model.parameters()))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
        for k in range(20):
            step(model, optimizer, slice(6 * (k % 10), 6 * (k % 10) + 6))
            schedule.step()
            if interrupted and k == 9:
                file = io.BytesIO()
                torch.save([model.state_dict(), optimizer.state_dict(), schedule.state_dict()], file)
                file.seek(0)
                states = torch.load(file, weights_only=True)
                model = network()
                optimizer = MAKES[make](list(model.parameters()))
                schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
                for own, state in zip((model, optimizer, schedule), states, strict=True):
                    own.load_state_dict(state)
        runs.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    assert torch.equal(*runs)


@pytest.mark.parametrize("make", MAKES)
def test_copies_and_pickles_take_the_same_steps(make):
    model = network()
    optimizer = MAKES[make](list(model.parameters()))
    for _ in range(3):
        step(model, optimizer)
    twins = copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))
    step(model, optimizer)
    for other, own in twins:
        step(other, own)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_leave_everything_as_it_is(bad):
    model = network()
    optimizer = GatedAdamW(model.parameters(), lr=0.01)
    for _ in range(4):
        step(model, optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    state = copy.deepcopy(optimizer.state_dict()["state"])
    next(model.parameters()).grad[0, 0] = bad
    with pytest.warns(RuntimeWarning, match="left out"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()  # said once
    assert optimizer.nonfinite == 2
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    after = optimizer.state_dict()["state"]
    assert all(bool((torch.as_tensor(after[i][key]) == state[i][key]).all()) for i in state for key in state[i])
    again = GatedAdamW(network().parameters())
    again.load_state_dict(optimizer.state_dict())
    assert again.nonfinite == 2


def test_finite_gradients_whose_sum_overflows_are_finite():
    p = nn.Parameter(torch.zeros(4))
    optimizer = GatedAdamW([p])
    p.grad = torch.full((4,), 3e38)
    optimizer.step()
    assert optimizer.nonfinite == 0


WRONG = {
    "rule": ({"rule": "ajar"}, "ajar"),
    "statistics": ({"statistics": "guess"}, "guess"),
    "reduce": ({"reduce": "column"}, "column"),
    "alpha": ({"alpha": -1.0}, "alpha=-1.0"),
    "alpha at full batch": ({"alpha": float("inf")}, "full batch"),
    "rho": ({"rho": 1.0}, "rho=1.0"),
    "isometry": ({"isometry": -0.1}, "isometry=-0.1"),
    "correction": ({"correction": 1}, "correction=1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_options_out_of_range_are_quoted(case):
    options, words = WRONG[case]
    with pytest.raises(InputError, match=words):
        GatedAdamW(network().parameters(), **options)
    model = network()
    optimizer = GatedSGD([model[0].weight], momentum=0.9)
    with pytest.raises(InputError, match=words):
        optimizer.add_param_group({"params": [model[2].weight], **options})
    assert len(optimizer.param_groups) == 1


def test_what_cannot_be_gated_is_refused():
    with pytest.raises(InputError, match=r"momentum=0\.9"):
        GatedSGD(network().parameters(), lr=0.1)
    with pytest.raises(InputError, match="complex"):
        GatedAdamW([nn.Parameter(torch.ones(2, dtype=torch.complex64))])
    sparse = nn.Embedding(10, 3, sparse=True)
    optimizer = GatedAdamW(sparse.parameters())
    sparse(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match="sparse"):
        optimizer.step()
    with pytest.raises(InputError, match="lack"):
        GatedAdamW(network().parameters()).load_state_dict(torch.optim.AdamW(network().parameters()).state_dict())
    model = network()
    optimizer = GatedAdamW(model.parameters(), statistics="exact")
    with pytest.raises(InputError, match=r"js\.gating\.record"):
        step(model, optimizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("foreach", [None, True, False])
def test_large_parameters_go_in_parts(dtype, foreach):
    """Above LARGE, and in blocks; and some that no view can be taken of."""
    torch.manual_seed(0)
    value = torch.randn(600, 700, dtype=dtype)
    options = {"lr": 0.01, "weight_decay": 0.1, "foreach": foreach}
    whole = nn.Parameter(value.clone())
    rows = [nn.Parameter(row.clone()) for row in value]
    turned = nn.Parameter(value.t().contiguous().t())
    first, second, third = GatedAdamW([whole], **options), GatedAdamW(rows, **options), GatedAdamW([turned], **options)
    assert whole.numel() > gated.LARGE > rows[0].numel()
    for _ in range(4):
        grad = torch.randn(600, 700).to(dtype)
        whole.grad, turned.grad = grad.clone(), grad.t().contiguous().t()
        for row, own in zip(rows, grad, strict=True):
            row.grad = own.clone()
        for optimizer in (first, second, third):
            optimizer.step()
    assert float((torch.stack(list(rows)) != whole).double().mean()) < 1e-3  # fused kernels round by place
    assert float((turned != whole).double().mean()) < 1e-3
    assert first.state[whole][gates.VARIANCE].dtype == torch.float32


def test_hooks_are_called_once_and_a_closure_is_asked():
    model, calls = network(), []
    torch.optim.AdamW(model.parameters())  # torch wraps the step of a class that was used
    optimizer = GatedAdamW(model.parameters())
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure():
        calls.append("asked")
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(X), Y)
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) > 0
    assert calls == ["before", "asked", "after"]


def test_scaled_gradients_are_gated_as_they_are():
    """GradScaler: unscaled before the step, and skipped by it where they overflow."""
    runs = []
    for scaled in (False, True):
        model = network(torch.float32)
        optimizer = GatedAdamW(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        for k in range(10):
            optimizer.zero_grad()
            rows = slice(6 * k, 6 * k + 6)
            scaler.scale(nn.functional.mse_loss(model(X[rows].float()), Y[rows].float())).backward()
            scaler.step(optimizer)
            scaler.update()
        runs.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    torch.testing.assert_close(*runs, rtol=1e-4, atol=1e-6)


def test_compiled_steps_are_the_same():
    runs = []
    for compiled in (False, True):
        model = network()
        optimizer = GatedAdamW(model.parameters(), lr=0.01)
        take = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for k in range(4):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(X[k::4]), Y[k::4]).backward()
            take()
        runs.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    torch.testing.assert_close(*runs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", ["AdamW", "AdamW snr", "SGD"])
def test_jumps_take_the_gate_for_a_part_of_the_metric(make):
    model = network()
    optimizer = MAKES[make](list(model.parameters()))
    for k in range(12):
        step(model, optimizer, slice(5 * k, 5 * k + 5))
    objective = js.supervised(model, X, Y)
    metric = from_optimizer(optimizer, model, objective.space)
    opened = torch.cat([optimizer.gate(p).expand_as(p).reshape(-1) for p in model.parameters()])
    inner = torch.ones_like(opened)
    if make != "SGD":
        plain = torch.optim.AdamW(model.parameters(), lr=0.01)
        for p in model.parameters():
            plain.state[p] = {k: v for k, v in optimizer.state[p].items() if k not in (gates.VARIANCE, gates.BEGUN)}
        inner = from_optimizer(plain, model, objective.space).root.square()
    torch.testing.assert_close(metric.root.square() / inner, opened.clamp_min(gates.AJAR), rtol=1e-9, atol=0)
    before = objective.value(objective.theta())
    result = js.jump(objective, metric=optimizer)
    assert result.accepted == (objective.value(objective.theta()) < before)


@pytest.mark.parametrize("make", MAKES)
def test_their_steps_can_be_skipped(make):
    twins = []
    for _ in range(2):
        model = network()
        if make == "Muon":
            model[0].bias.requires_grad_(False)
            model[2].bias.requires_grad_(False)
        optimizer = MAKES[make](list(model.parameters()))
        for _ in range(15):
            step(model, optimizer)
        twins.append((model, optimizer))
    (model, optimizer), (other, own) = twins
    start = model(X).detach()
    result = Skipper(js.supervised(model, X, Y), optimizer).skip(6)
    for _ in range(result.steps):
        step(other, own)
    if result.steps:
        moved = (other(X) - start).norm()
        assert float((model(X) - other(X)).norm() / moved) < 0.2
    else:
        assert torch.equal(model(X), start)


def test_wrapped_loops_run():
    model = network()
    optimizer = js.JumpOptimizer(GatedAdamW(model.parameters(), lr=0.01), js.supervised(model, X, Y))
    before = float(nn.functional.mse_loss(model(X), Y))
    for _ in optimizer.steps(60):
        step(model, optimizer)
    assert optimizer.effective_steps == 60
    assert float(nn.functional.mse_loss(model(X), Y)) < before


def test_a_gate_may_be_set_in_the_course_of_a_run():
    """Its variance begins with the next step, which is not gated yet."""
    model = network()
    optimizer = GatedAdamW(model.parameters(), lr=0.01, rule=None)
    plain = copy.deepcopy((model, optimizer))
    for k in range(12):
        if k == 5:
            optimizer.param_groups[0]["rule"] = "hard"
        rows = slice(5 * k, 5 * k + 5)
        step(model, optimizer, rows)
        step(*plain, rows)
        same = all(torch.equal(p, q) for p, q in zip(model.parameters(), plain[0].parameters(), strict=True))
        assert same == (k <= 5)
    p = next(model.parameters())
    assert optimizer.state[p][gates.BEGUN] == 6


@pytest.mark.parametrize("correction", [True, False])
def test_exact_gates_in_a_loop(correction):
    """Per-sample gradients one by one, beside what hooks have seen; accumulated over two passes and clipped."""
    model, other = network(), network()
    make = {"lr": 0.01, "weight_decay": 0.0, "statistics": "exact", "correction": correction}
    optimizer = GatedAdamW(model.parameters(), **make)
    plain = torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.0)
    with js.gating.record(model):
        for k in range(5):
            rows = slice(12 * k, 12 * k + 12)
            x, y = X[rows], Y[rows]
            optimizer.zero_grad()
            for part in (slice(0, 5), slice(5, 12)):
                (nn.functional.mse_loss(model(x[part]), y[part], reduction="sum") / 12).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            own = [
                torch.autograd.grad(
                    nn.functional.mse_loss(other(x[i : i + 1]), y[i : i + 1]) / 12, list(other.parameters())
                )
                for i in range(12)
            ]
            for j, p in enumerate(other.parameters()):
                p.grad = sum(g[j] for g in own)
            norm = float(nn.utils.clip_grad_norm_(other.parameters(), 0.05))
            factor = min(1.0, 0.05 / (norm + 1e-6))
            noise = [12 * torch.stack([factor * g[j] for g in own]).var(0) for j in range(4)]
            before = [p.detach().clone() for p in other.parameters()]
            optimizer.step()
            plain.step()
            for p, start, variance in zip(other.parameters(), before, noise, strict=True):
                m = plain.state[p]["exp_avg"]
                w = weights(GatedAdamW, {}, k + 1)
                share_now = float(w.square().sum())
                opened = m.square() > share_now * variance if correction else p.grad.square() > variance
                with torch.no_grad():
                    p.copy_(torch.where(opened, p, start))
            for p, q in zip(model.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_exact_statistics_of_one_sample():
    model = network()
    optimizer = GatedAdamW(model.parameters(), statistics="exact")
    with pytest.raises(InputError, match=r"js\.gating\.Monitor"):
        optimizer.gate(model[0].weight)
    with pytest.raises(InputError, match="does not hold"):
        optimizer.gate(torch.ones(2))
    with js.gating.record(model), pytest.raises(InputError, match="batch of one"):
        step(model, optimizer, slice(0, 1))
    with js.gating.record(model, each="microbatch"):
        optimizer.zero_grad()
        for k in range(3):
            (nn.functional.mse_loss(model(X[k::3]), Y[k::3]) / 3).backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (4, 2, 3, 3), (5,)])
def test_isometry_is_a_step_down_its_penalty(shape):
    """Along gradients of zero nothing else moves."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(shape).double())
    twin = p.detach().clone().requires_grad_()
    optimizer = GatedAdamW([p], lr=0.01, weight_decay=0.0, isometry=0.3)
    for _ in range(3):
        p.grad = torch.zeros_like(p)
        optimizer.step()
        w = twin.reshape(len(twin), -1)
        gram = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
        penalty = (gram - torch.eye(len(gram)).double()).square().sum() if len(shape) > 1 else 0.0 * w.sum()
        (slope,) = torch.autograd.grad(penalty, [twin])
        twin = (twin - 0.01 * 0.3 * slope).detach().requires_grad_()
        torch.testing.assert_close(p.detach(), twin.detach(), rtol=1e-12, atol=1e-14)


def test_gradients_that_are_not_finite_are_left_out_with_exact_statistics_too():
    model = network()
    optimizer = GatedAdamW(model.parameters(), statistics="exact")
    before = [p.detach().clone() for p in model.parameters()]
    with js.gating.record(model), pytest.warns(RuntimeWarning, match="left out"):
        step(model, optimizer, scale=float("nan"))
    assert optimizer.nonfinite == 1
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_complex_weights_may_stand_in_a_group_that_is_never_gated():
    p = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    optimizer = GatedAdamW([{"params": [p], "rule": None}], lr=0.1, weight_decay=0.0)
    p.grad = torch.full_like(p, 1 + 1j)
    optimizer.step()
    assert bool((p != 1).all())


def test_recorded_models_jump_and_what_is_recorded_is_the_loops():
    """The library's own passes are nobody's samples."""
    model = network()
    with warnings.catch_warnings(), js.gating.record(model):
        warnings.simplefilter("ignore")  # the step after a jump cannot be tried beforehand, it says
        inner, objective = GatedAdamW(model.parameters(), lr=0.01, statistics="exact"), js.supervised(model, X, Y)
        optimizer = js.JumpOptimizer(inner, objective, search=True, at=[6])
        before = float(nn.functional.mse_loss(model(X), Y).detach())
        for _ in range(12):
            step(model, optimizer)
        nn.functional.mse_loss(model(X), Y).backward()
        weight = model[0].weight
        own = [
            torch.autograd.grad(nn.functional.mse_loss(model(x), y) / 60, weight)[0]
            for x, y in zip(X[:, None], Y[:, None], strict=True)
        ]
        assert samples.samples(weight) == 60
        weight.grad = None
        optimizer.zero_grad()
        nn.functional.mse_loss(model(X), Y).backward()
        torch.testing.assert_close(samples.noise(weight), 60 * torch.stack(own).var(0), rtol=1e-9, atol=0)
    assert optimizer.results[0].accepted
    assert float(nn.functional.mse_loss(model(X), Y).detach()) < before


def test_exact_gates_are_not_skipped_along():
    model = network()
    inner, objective = GatedAdamW(model.parameters(), statistics="exact"), js.supervised(model, X, Y)
    with pytest.raises(InputError, match="samples of each batch"):
        js.JumpOptimizer(inner, objective)
    lbfgs = torch.optim.LBFGS(network().parameters())
    with pytest.raises(InputError, match="closure"):
        js.JumpOptimizer(lbfgs, objective)
