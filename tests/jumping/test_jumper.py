"""Jumps that remember: what is carried along, what is refused, and that a loop of them is worth it."""

from __future__ import annotations

import copy
import functools
import io

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart import errors
from jumpstart.demo import poisson
from jumpstart.jumping.settings import Settings
from jumpstart.jumping.state import Memory

from ..problems import flat, mlp, randn, relative


@functools.cache  # its terms are traced once
def traced(seed):
    return poisson.objective(poisson.network(seed, (12,)), 8, 8)


def anchor(seed=0):
    return copy.deepcopy(traced(seed))


def regression(seed=0, out=3):
    return js.supervised(mlp(seed, out=out), randn(seed, 12, 4), randn(seed + 1, 12, out))


def test_memory_is_worth_having_and_a_search_without_it_is_no_disgrace():
    losses = {}
    for kind in ("one cautious horizon", "no memory", "memory"):
        objective = anchor()
        jumper = js.Jumper(objective)
        for _ in range(25):
            if kind == "memory":
                result = jumper.jump()
            elif kind == "no memory":
                result = js.jump(objective)
            else:
                result = js.jump(objective, search="levenberg-marquardt")
        losses[kind] = result.actual
    assert losses["no memory"] < 1e-2 * losses["one cautious horizon"]
    assert losses["memory"] < 1e-2 * losses["one cautious horizon"]


def test_without_memory_every_horizon_within_reach_is_weighed():
    searched, cautious = js.jump(anchor()), js.jump(anchor(), search="levenberg-marquardt")
    assert searched.accepted and cautious.accepted
    assert searched.actual < cautious.actual
    assert searched.candidates > 3


@pytest.mark.parametrize("options", [{}, {"nonmonotone": True}, {"search": "horizon"}, {"search": "scale"}])
def test_a_jumper_goes_on_from_its_state_to_the_bit(options):
    objective = anchor(1)
    jumper = js.Jumper(objective, **options)
    for _ in range(4):
        jumper.jump()
    file = io.BytesIO()
    torch.save((jumper.state_dict(), objective.model.state_dict()), file)
    for _ in range(4):
        jumper.jump()
    file.seek(0)
    state, weights = torch.load(file, weights_only=True)
    other = anchor(2)
    other.model.load_state_dict(weights)
    again = js.Jumper(other, **options)
    again.load_state_dict(state)
    for _ in range(4):
        again.jump()
    assert torch.equal(flat(other.model), flat(objective.model))
    assert again.memory.horizon == jumper.memory.horizon


def test_directions_are_kept_as_many_as_asked_for():
    jumper = js.Jumper(regression(), basis="krylov", depth=3, keep=2)
    assert [jumper.jump().modes for _ in range(4)] == [3, 4, 5, 5]
    other = js.Jumper(regression(), basis="krylov", depth=3, keep=2)
    other.load_state_dict(jumper.state_dict())
    assert other.jump().modes == 5


def test_second_order_is_off_in_every_krylov_basis_and_on_elsewhere():
    jumper = js.Jumper(regression(), basis="krylov", depth=4, keep=1)
    assert [jumper.jump().corrected for _ in range(3)] == [False] * 3
    assert js.jump(regression(), basis="krylov", depth=4, directions=randn(0, 1, 255)).corrected is False
    assert js.jump(regression(), basis="dense", horizon=1.0).corrected
    assert js.jump(regression(), basis="krylov", depth=4, geodesic=True, horizon=1.0).corrected


def test_a_rejected_jump_keeps_what_was_learned_and_shortens_the_next():
    objective = regression()
    jumper = js.Jumper(objective, keep=1, basis="krylov", depth=4)
    jumper.jump()
    kept, horizon, before = jumper.state_dict()["directions"].clone(), jumper.memory.horizon, flat(objective.model)
    jumper.settings = Settings.of({"basis": "krylov", "depth": 4, "trust": js.Trust(floor=1e9)}, "test")
    assert not jumper.jump().accepted
    assert jumper.memory.horizon < horizon
    assert torch.equal(jumper.state_dict()["directions"], kept)
    assert torch.equal(flat(objective.model), before)


def rebuilt(objective, change):
    change(objective)
    return objective


CHANGES = {
    "another loss": (lambda o: setattr(o, "loss", js.losses.Logistic(torch.ones(12, 3).double())), "loss has changed"),
    "another scale of the loss": (
        lambda o: setattr(o, "loss", js.losses.Squares(o.loss.targets, 7.0)),
        "another scale",
    ),
    "fewer outputs": (lambda o: setattr(o, "shape", torch.Size((4, 3))), "outputs have changed"),
    "a layer replaced by a wider one": (lambda o: o.model.__setitem__(2, nn.Linear(12, 13).double()), "another shape"),
    "a layer gone": (lambda o: o.model.__setitem__(4, nn.Identity()), "gone"),
    "a layer frozen": (lambda o: o.model[0].requires_grad_(False), r"0.weight \(frozen\)"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_objective_that_has_changed_is_refused_and_nothing_moves(name):
    change, words = CHANGES[name]
    objective = regression()
    jumper = js.Jumper(objective)
    assert jumper.jump().accepted
    change(objective)
    before, memory = flat(objective.model), jumper.memory
    with pytest.raises(errors.InputError, match=words):
        jumper.jump()
    assert torch.equal(flat(objective.model), before)
    assert jumper.memory is memory


def test_another_objective_for_the_same_weights_may_be_assigned():
    model = mlp(0)
    jumper = js.Jumper(js.supervised(model, randn(0, 12, 4), randn(1, 12, 3)))
    jumper.jump()
    horizon = jumper.memory.horizon
    jumper.objective = js.supervised(model, randn(2, 7, 4), randn(3, 7, 3))
    assert jumper.memory.horizon == horizon
    assert jumper.jump().accepted
    with pytest.raises(errors.InputError, match="another model"):
        jumper.objective = js.supervised(mlp(0), randn(2, 7, 4), randn(3, 7, 3))
    with pytest.raises(errors.InputError, match="other parameters"):
        jumper.objective = js.supervised(model, randn(2, 7, 4), randn(3, 7, 3), params=["4"])
    with pytest.raises(errors.InputError, match="Logistic, not Squares"):
        jumper.objective = js.supervised(model, randn(2, 7, 4), torch.ones(7, 3).double(), "logistic")
    with pytest.raises(errors.InputError, match=r"js\.Objective"):
        jumper.objective = model


def test_memory_of_losses_does_not_outlive_other_data():
    objective = anchor()
    jumper = js.Jumper(objective, nonmonotone=True)
    for _ in range(3):
        jumper.jump()
    assert jumper.memory.best < 1e9 and jumper.memory.heading is not None
    jumper.objective = poisson.objective(objective.model, 9, 9)
    assert jumper.memory.best == float("inf") and jumper.memory.heading is None


def test_forgetting_is_no_way_around_a_model_that_has_changed():
    objective = regression()
    jumper = js.Jumper(objective)
    objective.model[4] = nn.Linear(12, 4).double()
    with pytest.raises(errors.InputError, match="anew"):
        jumper.forget()


def test_forgetting_begins_anew():
    objective = anchor()
    jumper = js.Jumper(objective)
    jumper.jump()
    jumper.forget()
    assert jumper.memory == Memory()
    twin = copy.deepcopy(objective)
    assert jumper.jump().actual == js.Jumper(twin).jump().actual


REFUSED = {
    "misspelt": ({"secondorder": True}, ["secondorder", "geodesic"]),
    "memory_limit with matrix-free": ({"basis": "matrix-free", "memory_limit": 1e9}, ["memory_limit"]),
    "directions with matrix-free": ({"basis": "matrix-free", "directions": torch.ones(1, 3)}, ["directions"]),
    "a gate with matrix-free": ({"basis": "matrix-free", "gate": "hard"}, ["gate"]),
    "keep with dense": ({"basis": "dense", "keep": 2}, ["directions", "Krylov"]),
    "keep and directions": ({"keep": 2, "directions": torch.ones(1, 3)}, ["keep", "directions"]),
    "keep in words": ({"keep": "two"}, ["'two'"]),
    "directions with dense": ({"basis": "dense", "directions": torch.ones(1, 3)}, ["directions", "Krylov"]),
    "directions in implicit steps": (
        {"search": "levenberg-marquardt", "directions": torch.ones(1, 3)},
        ["directions", "Krylov"],
    ),
    "depth with dense": ({"basis": "dense", "depth": 3}, ["depth=3"]),
    "depth 0": ({"depth": 0}, ["depth=0"]),
    "horizon and scale": ({"horizon": 1.0, "search": "scale"}, ["horizon", "scale"]),
    "chord steps below none": ({"chord_steps": -1}, ["chord_steps=-1"]),
    "memory_limit for a given basis": ({"basis": lambda problem: None, "memory_limit": 1e9}, ["memory_limit"]),
    "depth in implicit steps": ({"search": "levenberg-marquardt", "depth": 3}, ["depth=3"]),
    "depth for a given basis": ({"basis": lambda problem: None, "depth": 3}, ["depth=3"]),
    "an unknown basis": ({"basis": "modes"}, ["'modes'", "krylov"]),
    "weight decay below zero": ({"weight_decay": -1.0}, ["weight_decay=-1.0"]),
    "weight decay in words": ({"weight_decay": "a"}, ["weight_decay='a'"]),
    "a memory limit in words": ({"memory_limit": "1GB"}, ["memory_limit='1GB'"]),
    "geodesic in words": ({"geodesic": "yes"}, ["geodesic='yes'"]),
    "directions as a list": ({"directions": [1, 2]}, ["directions=[1, 2]", "(r, P)"]),
    "a gate that is a number": ({"gate": 3}, ["gate=3"]),
    "an unknown gate": ({"gate": "ajar"}, ["ajar"]),
    "trust that is none": ({"trust": 0.5}, ["trust=0.5", "js.Trust"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_would_do_nothing_are_refused_by_name(name):
    options, words = REFUSED[name]
    with pytest.raises(errors.InputError) as caught:
        js.Jumper(anchor(), **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_matrix_free_is_for_squared_losses():
    objective = js.supervised(mlp(0), randn(0, 6, 4), torch.tensor([0, 1, 2, 0, 1, 2]), "cross_entropy")
    with pytest.raises(errors.InputError, match="squared"):
        js.Jumper(objective, basis="matrix-free").jump()


BROKEN = {
    "nothing": {},
    "an entry too many": {**Memory().state_dict(), "more": 1},
    "text for a heading": {**Memory().state_dict(), "heading": "north"},
    "half a sketch": {**Memory().state_dict(), "sketch_values": torch.ones(3)},
    "a horizon in words": {**Memory().state_dict(), "horizon": "far"},
    "a horizon below zero": {**Memory().state_dict(), "horizon": -1.0},
    "a horizon that is NaN": {**Memory().state_dict(), "horizon": float("nan")},
    "no best": {**Memory().state_dict(), "best": None},
    "no scale": {**Memory().state_dict(), "scale": None},
    "none at all": None,
    "a heading of another model": {**Memory().state_dict(), "heading": torch.ones(3)},
    "directions of another model": {**Memory().state_dict(), "directions": torch.ones(2, 3)},
}


@pytest.fixture(scope="module")
def jumper():
    """One with a memory; what it refuses leaves it alone."""
    found = js.Jumper(anchor())
    found.jump()
    return found


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_memory_is_refused(name, jumper):
    memory = jumper.memory
    with pytest.raises(errors.InputError, match="memory"):
        jumper.load_state_dict(BROKEN[name])
    assert jumper.memory is memory


def test_results_are_one_sentence():
    jumped, still = js.jump(anchor()), js.jump(anchor(), trust=js.Trust(floor=1e9))
    model = mlp(0)
    x = randn(0, 5, 4)
    rest = js.jump(js.supervised(model, x, model(x).detach()))
    assert "→" in str(jumped) and f"{jumped.actual:.4g}" in str(jumped) and "\n" not in str(jumped)
    assert str(still).startswith("Not moved") and still.outcome.value in str(still)
    assert "gradient vanishes" in str(rest)


def test_a_metric_for_one_jump_is_no_metric_for_the_next():
    objective = regression()
    d = torch.rand(255, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    options = {"basis": "dense", "horizon": 1e-9, "geodesic": False, "chord_steps": 0}
    jumper = js.Jumper(objective, **options)
    theta = objective.theta()
    steps = []
    for metric in (None, d):
        objective.space.write(objective.model, theta)
        steps.append(jumper.jump(metric=metric).directions[0])
    objective.space.write(objective.model, theta)
    steps.append(jumper.jump().directions[0])
    assert relative(steps[1], d * steps[0]) < 1e-5
    assert torch.equal(steps[2], steps[0])
