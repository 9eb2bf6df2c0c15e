"""What is known of optimizers, against the steps that torch's own take and against published algorithms."""

from __future__ import annotations

import copy
import inspect
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import jumpstart as js
from jumpstart.errors import InputError, MetricError, NonFiniteError
from jumpstart.linearization.metric import Metric, from_optimizer
from jumpstart.objectives.parameters import ParameterSpace
from jumpstart.optim import Adapter, adapters, register

from ..problems import fill, flat, randn, relative
from .schedule_free import ScheduleFreeAdamW

RATE = 1e-2


def matrices(seed=0):
    """A network of matrices alone, which every optimizer of torch takes, Muon too."""
    layers = nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False)
    return fill(nn.Sequential(*layers), seed)


X, Y = randn(0, 8, 4), randn(1, 8, 3)


def loss_of(model):
    return mse_loss(model(X), Y)


def step(model, optimizer, sign=1.0):
    """One step; returns the gradient and the displacement (P,)."""

    def closure():
        optimizer.zero_grad()
        loss = sign * loss_of(model)
        loss.backward()
        return loss

    before = flat(model)
    closure()
    gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters()]).clone()
    optimizer.step(closure) if isinstance(optimizer, torch.optim.LBFGS) else optimizer.step()
    return gradient, flat(model) - before


class Mine(torch.optim.AdamW):
    """A subclass whose name does not say what it is."""


class FancyAdamW(torch.optim.Optimizer):
    """Somebody's own, with Adam's state and no flag: what its decay is only the name says."""

    def __init__(self, params, lr, weight_decay):
        super().__init__(params, {"lr": lr, "betas": (0.0, 0.9), "eps": 1e-2, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["step"] = state.get("step", 0) + 1
                state["exp_avg"] = p.grad.clone()
                v = state.setdefault("exp_avg_sq", torch.zeros_like(p)).mul_(0.9).addcmul_(p.grad, p.grad, value=0.1)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * p.grad / ((v / (1 - 0.9 ** state["step"])).sqrt() + group["eps"]))


# Without momentum an optimizer's last step is exactly −rate·(D∘g + w∘θ), with the D and w that its adapter reads
# afterwards. ε keeps D within the clip.
ADAM = {"lr": RATE, "betas": (0.0, 0.9), "eps": 1e-2}
LAST_STEP = {
    "SGD": lambda p: torch.optim.SGD(p, RATE),
    "SGD with decay": lambda p: torch.optim.SGD(p, RATE, weight_decay=0.3),
    "SGD, maximizing": lambda p: torch.optim.SGD(p, RATE, weight_decay=0.3, maximize=True),
    "SGD, rate a tensor": lambda p: torch.optim.SGD(p, torch.tensor(RATE, dtype=torch.float64)),
    "Adam": lambda p: torch.optim.Adam(p, **ADAM),
    "Adam, L2 term": lambda p: torch.optim.Adam(p, **ADAM, weight_decay=0.3),
    "Adam, decoupled by a flag": lambda p: torch.optim.Adam(p, **ADAM, weight_decay=0.3, decoupled_weight_decay=True),
    "Adam, maximizing": lambda p: torch.optim.Adam(p, **ADAM, weight_decay=0.3, maximize=True),
    "Adam, one by one": lambda p: torch.optim.Adam(p, **ADAM, weight_decay=0.3, foreach=False),
    "Adam, foreach": lambda p: torch.optim.Adam(p, **ADAM, weight_decay=0.3, foreach=True),
    "Adam, fused": lambda p: torch.optim.Adam(p, **ADAM, weight_decay=0.3, fused=True),
    "AMSGrad": lambda p: torch.optim.Adam(p, **{**ADAM, "betas": (0.0, 0.5)}, amsgrad=True),
    "AMSGrad, fused": lambda p: torch.optim.Adam(p, **{**ADAM, "betas": (0.0, 0.5)}, amsgrad=True, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, **ADAM, weight_decay=0.3),
    "AdamW, amsgrad": lambda p: torch.optim.AdamW(p, **ADAM, weight_decay=0.3, amsgrad=True),
    "a subclass of AdamW": lambda p: Mine(p, **ADAM, weight_decay=0.3),
    "an AdamW by name": lambda p: FancyAdamW(p, RATE, 0.3),
    "NAdam": lambda p: torch.optim.NAdam(p, **ADAM, weight_decay=0.3),
    "NAdam, decoupled": lambda p: torch.optim.NAdam(p, **ADAM, weight_decay=0.3, decoupled_weight_decay=True),
    "RAdam": lambda p: torch.optim.RAdam(p, **{**ADAM, "betas": (0.0, 0.99)}, weight_decay=0.3),
    "RAdam, decoupled": lambda p: torch.optim.RAdam(
        p, **{**ADAM, "betas": (0.0, 0.99)}, weight_decay=0.3, decoupled_weight_decay=True
    ),
    "RMSprop": lambda p: torch.optim.RMSprop(p, RATE, alpha=0.9, eps=1e-2, weight_decay=0.3),
    "RMSprop, centered": lambda p: torch.optim.RMSprop(p, RATE, alpha=0.9, eps=1e-2, centered=True, weight_decay=0.3),
    "Adagrad": lambda p: torch.optim.Adagrad(p, RATE, eps=1e-2, weight_decay=0.3),
    "Adagrad, slowing down": lambda p: torch.optim.Adagrad(p, RATE, lr_decay=0.2, eps=1e-2, weight_decay=0.3),
}


@pytest.mark.parametrize("steps", [3, 5, 12])  # RAdam takes plain steps at first, to the fifth
@pytest.mark.parametrize("name", LAST_STEP)
def test_metric_and_decay_are_those_of_the_step_just_taken(name, steps):
    model = matrices()
    optimizer = LAST_STEP[name](model.parameters())
    for _ in range(steps - 1):
        step(model, optimizer)
    theta = flat(model)
    gradient, moved = step(model, optimizer, sign=-1.0 if "maximizing" in name else 1.0)
    metric = from_optimizer(optimizer, model, ParameterSpace(model))
    d = torch.ones_like(theta) if metric.root is None else metric.root.square()
    assert float(d.max()) < 999 * float(d.median()), "the clip would hide what is tested"
    if "maximizing" in name:
        gradient = -gradient  # of Φ, which the loop climbs down by climbing −Φ
    assert relative(moved, -RATE * (d * gradient + metric.decay * theta)) < 1e-12


def test_sparse_adam_where_the_rows_were_hit():
    model = nn.Embedding(6, 3, sparse=True).double()
    rows, goal = torch.tensor([0, 1, 2, 3]), randn(3, 4, 3)
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=RATE, betas=(0.0, 0.9), eps=1e-2)
    for _ in range(3):
        before = model.weight.detach().clone()
        optimizer.zero_grad()
        mse_loss(model(rows), goal).backward()
        optimizer.step()
    metric = from_optimizer(optimizer, model, ParameterSpace(model))
    assert metric.root is not None
    d = metric.root.square().view(6, 3)
    moved = model.weight.detach() - before
    assert relative(moved, -RATE * d * model.weight.grad.to_dense()) < 1e-12
    assert bool((moved[4:] == 0).all())


WITH_METRIC = {"SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad"}
WITHOUT = {"Adadelta", "Adamax", "Adafactor", "Muon", "LBFGS", "ASGD", "Rprop"}
OTHERS = {"Optimizer", "SparseAdam"}  # no optimizer, and one for sparse gradients alone (above)
CLASSES = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and name not in OTHERS
}


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_of_torch_has_a_metric_or_says_by_name_why_not(name):
    """A class that a future torch adds has a metric or a MetricError; anything else would raise in users' loops."""
    model = matrices()
    optimizer = CLASSES[name](model.parameters(), lr=1e-3)
    for taken in range(4):
        try:
            found = from_optimizer(optimizer, model, ParameterSpace(model))
        except MetricError as error:
            found = str(error)
        if name in WITH_METRIC and (taken or name == "SGD"):
            assert isinstance(found, Metric)
        elif name in WITH_METRIC | WITHOUT:
            assert isinstance(found, str)
            assert (name if taken or name == "LBFGS" else "step") in found
        step(model, optimizer)


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_of_torch_goes_on_after_a_jump(name):
    model = matrices()
    objective = js.supervised(model, X, Y)
    optimizer = js.JumpOptimizer(CLASSES[name](model.parameters(), lr=1e-3), objective, at=3, search=True)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(4):
            optimizer.step(closure)
    assert [result.outcome.name for result in optimizer.results] == ["ACCEPTED"]
    plain = [str(w.message) for w in seen if "plain metric" in str(w.message)]
    if name in WITH_METRIC | WITHOUT:
        assert len(plain) == (name in WITHOUT)
        assert all(name in text for text in plain)
    result = optimizer.results[0]
    assert loss_of(model).item() < 0.5 * (result.before + result.actual), "the next step undid the jump"


PARTIAL = [
    ("Adam", lambda p: torch.optim.Adam(p, weight_decay=0.1)),
    ("AMSGrad", lambda p: torch.optim.Adam(p, amsgrad=True)),
    ("NAdam", torch.optim.NAdam),
    ("RAdam", torch.optim.RAdam),
    ("RMSprop", lambda p: torch.optim.RMSprop(p, centered=True)),
    ("Adagrad", torch.optim.Adagrad),
]


@pytest.mark.parametrize(("name", "make"), PARTIAL)
def test_a_partial_or_unknown_state_is_a_metric_error(name, make):
    """Every entry of the state and every key of the group that is read, taken away one at a time."""
    model = matrices()
    optimizer = make(model.parameters())
    for _ in range(3):
        step(model, optimizer)
    space, first = ParameterSpace(model), next(iter(model.parameters()))
    from_optimizer(optimizer, model, space)
    state, group = optimizer.state[first], optimizer.param_groups[0]
    adapter = adapters.find(optimizer, first, group)
    assert adapter is not None
    dropped = 0
    for table, keys in ((state, list(state)), (group, [*adapter.group, "lr"])):
        for key in keys:
            if key == "mu_product" or (name == "RMSprop" and key == "step"):  # without it, it is Adam's; not read
                continue
            value = table.pop(key)
            with pytest.raises(MetricError):
                from_optimizer(optimizer, model, space)
            table[key] = value
            dropped += 1
    assert dropped >= 4
    state["surprise"] = torch.zeros(1)
    with pytest.raises(MetricError, match="surprise"):
        from_optimizer(optimizer, model, space)
    del state["surprise"]
    from_optimizer(optimizer, model, space)


def test_states_that_are_there_but_empty():
    """Adagrad makes its state when it is made; a step counter of 0 has no bias correction."""
    model = matrices()
    for optimizer in (torch.optim.Adagrad(model.parameters()), torch.optim.Adam(model.parameters())):
        if isinstance(optimizer, torch.optim.Adam):
            step(model, optimizer)
            for state in optimizer.state.values():
                state["step"].zero_()
        with pytest.raises(MetricError, match="step"):
            from_optimizer(optimizer, model, ParameterSpace(model))


def test_diverged_states_are_not_finite_by_name():
    model = matrices()
    optimizer = torch.optim.RMSprop(model.parameters())
    step(model, optimizer)
    for wrong in (float("nan"), float("inf")):
        optimizer.state[model[2].weight]["square_avg"][0, 0] = wrong
        with pytest.raises(NonFiniteError, match=r"2\.weight"):
            from_optimizer(optimizer, model, ParameterSpace(model))


# ---- users' own ------------------------------------------------------------------------------------------------------


@pytest.fixture
def registry(monkeypatch):
    """Registrations that end with the test."""
    monkeypatch.setattr(adapters, "REGISTRY", list(adapters.REGISTRY))


class Belief(torch.optim.Optimizer):
    """AdaBelief (Zhuang et al., arXiv:2010.07468) without bias correction, and with an average of the weights."""

    def __init__(self, params, lr=RATE, eps=1e-2):
        super().__init__(params, {"lr": lr, "beta": 0.5, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                s = self.state[p]
                if not s:
                    s.update(m=torch.zeros_like(p), s=torch.zeros_like(p), average=p.clone())
                s["s"].mul_(0.9).addcmul_(p.grad - s["m"], p.grad - s["m"], value=0.1)
                s["m"].lerp_(p.grad, 1 - group["beta"])
                p.sub_(group["lr"] * s["m"] / (s["s"].sqrt() + group["eps"]))
                s["average"].lerp_(p, 0.1)


BELIEF = Adapter(
    "AdaBelief",
    types=(Belief,),
    state=("m", "s", "average"),
    group=("eps",),
    metric=lambda state, group: 1 / (state["s"].sqrt() + group["eps"]),
    moments={"m": lambda state, group: 0.75},
    copies=("average",),
)


def test_an_adapter_of_the_users_own(registry):
    model = matrices()
    optimizer = Belief(model.parameters())
    for _ in range(3):
        step(model, optimizer)
    objective = js.supervised(model, X, Y)
    with pytest.raises(MetricError, match="Belief"):
        from_optimizer(optimizer, model, objective.space)
    register(BELIEF)
    metric = from_optimizer(optimizer, model, objective.space)
    expected = torch.cat([1 / (optimizer.state[p]["s"].sqrt() + 1e-2).reshape(-1) for p in model.parameters()])
    assert metric.root is not None
    assert relative(metric.root.square(), expected) < 1e-14
    averages = [optimizer.state[p]["average"].clone() for p in model.parameters()]
    before = [p.detach().clone() for p in model.parameters()]
    assert js.JumpOptimizer(optimizer, objective, at=(), after="rebuild", search=True).jump().accepted
    gradient = objective.space.unflatten(objective.gradient(objective.theta())[1])
    for (name, p), old, average in zip(model.named_parameters(), before, averages, strict=True):
        assert relative(optimizer.state[p]["average"] - average, p.detach() - old) < 1e-12
        assert relative(optimizer.state[p]["m"], 0.75 * gradient[name]) < 1e-12


def test_the_newest_that_fits_is_asked(registry):
    model = matrices()
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    register(Adapter("half", types=(torch.optim.SGD,), metric=lambda state, group: torch.full((6, 4), 0.5)))
    register(Adapter("other", types=("adam",), metric=lambda state, group: torch.ones(1)))
    with pytest.raises(MetricError, match=r"'half'.*\(3, 6\)"):  # right for the first matrix alone
        from_optimizer(optimizer, model, ParameterSpace(model))
    d = from_optimizer(optimizer, model, ParameterSpace(model, "0")).root
    assert d is not None
    assert bool((d.square() - 0.5).abs().max() < 1e-15)


def test_adapters_that_read_what_they_do_not_declare_are_named(registry):
    model = matrices()
    optimizer = Belief(model.parameters())
    step(model, optimizer)
    register(replace(BELIEF, name="wrong metric", metric=lambda state, group: state["typo"]))
    with pytest.raises(MetricError, match=r"wrong metric.*typo"):
        from_optimizer(optimizer, model, ParameterSpace(model))
    register(replace(BELIEF, name="wrong moment", moments={"m": lambda state, group: group["typo"]}))
    with pytest.raises(MetricError, match=r"wrong moment.*typo"):
        adapters.refresh(optimizer, {p: torch.ones_like(p) for p in model.parameters()})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "every optimizer"),
        ({"state": "exp_avg"}, "tuple of names"),
        ({"state": ("a", 3)}, "tuple of names"),
        ({"state": ("a",), "moments": {"b": lambda s, g: 1.0}}, "'b'"),
        ({"state": ("a",), "copies": ("z",)}, "'z'"),
        ({"state": ("a",), "coupled": True}, "coupled"),
    ],
)
def test_adapters_that_cannot_be(fields, message):
    with pytest.raises(InputError, match=message):
        Adapter("mine", **fields)


def test_only_adapters_are_registered():
    with pytest.raises(InputError, match="Adapter"):
        register("adam")  # type: ignore[arg-type]


# ---- what is told of a jump ------------------------------------------------------------------------------------------


def moved_by(model, seed=7, size=0.1):
    """Move every weight; returns the displacements by parameter."""
    moved = {p: size * randn(seed + i, *p.shape) for i, p in enumerate(model.parameters())}
    with torch.no_grad():
        for p, delta in moved.items():
            p.add_(delta)
    return moved


def test_lbfgs_starts_anew():
    """Its pairs and its last gradient are of the way before the jump: the next step is that of a fresh one."""
    model = matrices()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    step(model, optimizer)
    adapters.tell(optimizer, moved_by(model))
    twin = copy.deepcopy(model)
    assert torch.equal(step(model, optimizer)[1], step(twin, torch.optim.LBFGS(twin.parameters(), max_iter=3))[1])


def test_schedule_free_adamw_moves_z_in_its_metric():
    """z takes plain steps: −rate·(D∘g + w∘y) to the last digit."""
    model = matrices()
    optimizer = ScheduleFreeAdamW(model.parameters(), lr=RATE, betas=(0.9, 0.9), eps=1e-2, weight_decay=0.3)
    optimizer.train()
    for _ in range(5):
        z = [optimizer.state[p].get("z", p).clone() for p in model.parameters()]
        y = flat(model)
        gradient, _ = step(model, optimizer)
    metric = from_optimizer(optimizer, model, ParameterSpace(model))
    assert metric.root is not None
    moved = [optimizer.state[p]["z"] - old for p, old in zip(model.parameters(), z, strict=True)]
    moved = torch.cat([delta.detach().reshape(-1) for delta in moved])
    assert relative(moved, -RATE * (metric.root.square() * gradient + metric.decay * y)) < 1e-12


def test_schedule_free_goes_on_from_where_the_weights_were_moved():
    """Schedule-free methods do not know where the origin is: moved as a whole, the run goes on as the paper's would.

    In train mode the weights are y, in eval mode the average x: both must be right afterwards.
    """
    model = matrices()
    optimizer = ScheduleFreeAdamW(model.parameters(), lr=RATE)
    optimizer.train()
    for _ in range(5):
        step(model, optimizer)
    parameters = list(model.parameters())
    x, z = [p.clone() for p in optimizer.average()], [optimizer.state[p]["z"].clone() for p in parameters]
    moved = moved_by(model)
    adapters.tell(optimizer, moved)
    for p, average, old in zip(parameters, optimizer.average(), x, strict=True):
        assert relative(average, old + moved[p]) < 1e-12
    gradient, _ = step(model, optimizer)
    # Equations of the paper, with the three sequences moved by hand.
    gradient = gradient.split([p.numel() for p in parameters])
    for p, old_x, old_z, g in zip(parameters, x, z, gradient, strict=True):
        v = optimizer.state[p]["exp_avg_sq"] / (1 - 0.999**6)
        new_z = old_z + moved[p] - RATE * g.view_as(p) / (v.sqrt() + 1e-8)
        new_x = 5 / 6 * (old_x + moved[p]) + 1 / 6 * new_z
        assert relative(p, 0.1 * new_z + 0.9 * new_x) < 1e-12


def test_averages_of_the_weights_move_along():
    model = matrices()
    optimizer = torch.optim.ASGD(model.parameters(), RATE, t0=0)
    for _ in range(3):
        step(model, optimizer)
    before = {p: optimizer.state[p]["ax"].clone() for p in model.parameters()}
    moved = moved_by(model)
    del moved[model[2].weight]
    adapters.tell(optimizer, moved)
    assert torch.equal(optimizer.state[model[0].weight]["ax"], before[model[0].weight] + moved[model[0].weight])
    assert torch.equal(optimizer.state[model[2].weight]["ax"], before[model[2].weight])


# One step from rest makes of a first moment what the factor says.
RESTING = {
    "SGD": (lambda p: torch.optim.SGD(p, 0.0, momentum=0.7, dampening=0.2), "momentum_buffer"),
    "Adam": (lambda p: torch.optim.Adam(p, 0.0), "exp_avg"),
    "NAdam": (lambda p: torch.optim.NAdam(p, 0.0), "exp_avg"),
    "RAdam": (lambda p: torch.optim.RAdam(p, 0.0), "exp_avg"),
    "Adamax": (lambda p: torch.optim.Adamax(p, 0.0), "exp_avg"),
    "Muon": (lambda p: torch.optim.Muon(p, 0.0), "momentum_buffer"),
}


@pytest.mark.parametrize("name", RESTING)
def test_moments_are_rebuilt_to_what_one_step_from_rest_makes_of_them(name):
    if not hasattr(torch.optim, name):
        pytest.skip(f"this torch has no {name}")
    make, key = RESTING[name]
    model = matrices()
    optimizer = make(model.parameters())
    for _ in range(3):
        step(model, optimizer)
    for p in model.parameters():
        optimizer.state[p][key].zero_()
    step(model, optimizer)
    settled = {p: optimizer.state[p][key].clone() for p in model.parameters()}
    for p in model.parameters():
        optimizer.state[p][key].normal_(generator=torch.Generator().manual_seed(0))
    adapters.refresh(optimizer, {p: p.grad for p in model.parameters()})
    for p, moment in settled.items():
        assert relative(optimizer.state[p][key], moment) < 1e-10


def test_what_is_afresh_is_zero_and_second_moments_are_kept():
    model = matrices()
    optimizer = torch.optim.RMSprop(model.parameters(), momentum=0.9, centered=True)
    rprop = torch.optim.Rprop(model.parameters())
    for kind in (optimizer, rprop):
        step(model, kind)
        before = copy.deepcopy([kind.state[p] for p in model.parameters()])
        adapters.refresh(kind, {p: torch.ones_like(p) for p in model.parameters()})
        for p, old in zip(model.parameters(), before, strict=True):
            for key, value in kind.state[p].items():
                afresh = key in ("momentum_buffer", "prev")
                assert bool((old[key] != 0).any())
                assert torch.equal(value, torch.zeros_like(value) if afresh else old[key])
