"""What problem a file belongs to: every difference is named, and what is no difference is none."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.archive import fingerprint
from jumpstart.archive.container import digest
from jumpstart.losses.weighted import weighted

from ..problems import classes, fill, mlp, randn


def described(objective, options=()):
    found = fingerprint.describe(objective.space, objective.parts, objective.shape, objective.loss, dict(options))
    return json.loads(json.dumps(found, allow_nan=False))


def told(a, b, first=(), second=()):
    """The sentence, which is there from both sides or from none."""
    here, there = described(a, first), described(b, second)
    assert (fingerprint.difference(here, there) is None) == (fingerprint.difference(there, here) is None)
    return fingerprint.difference(here, there)


def inside(net, x):
    return net(x)[0] - x.sum()


def edge(net, x):
    return net(x)[0]


def pinn(seed=0, points=None, ends=None, weight=3.0, names=("inside", "ends"), order=1, width=12):
    points = randn(1, 6, 4) if points is None else points
    ends = randn(2, 4, 4) if ends is None else ends
    terms = [js.Term(inside, points, name=names[0]), js.Term(edge, ends, weight, name=names[1])]
    return js.residual(mlp(seed, out=1, width=width), *terms[::order])


def supervised(seed=0, **changes):
    given = {"inputs": randn(1, 6, 4), "targets": randn(2, 6, 3), "loss": "mse", **changes}
    return js.supervised(mlp(seed), **given)


def opaque(seed=0, chosen=None):
    x = randn(1, 6, 4) if chosen is None else chosen
    return js.Objective(mlp(seed), lambda net: net(x), js.losses.mse(randn(2, 6, 3)))


# -- what can be read off ----------------------------------------------------------------------------------------


def test_the_same_problem_around_other_weights_is_the_same():
    x = randn(1, 4, 6)
    for a, b in (
        (pinn(0), pinn(5)),
        (supervised(0), supervised(5)),
        (supervised(chunk=4), supervised(chunk=1)),
        (supervised(chunk=4), supervised()),
        (supervised(inputs=x.T.contiguous()), supervised(inputs=x.T)),
        (opaque(), opaque(1)),
        (supervised(targets=classes(0, 6, 3), loss="cross_entropy"),) * 2,
    ):
        assert told(a, b) is None


POINTS = randn(1, 6, 4)
TERMS = {
    "a point": ({"points": POINTS + 1e-15 * (POINTS > 0)}, r"the points of 'inside' differ \(by SHA-256\): other poi"),
    "their order": ({"points": POINTS.flip(0)}, "the points of 'inside' differ"),
    "other ends": ({"ends": randn(3, 4, 4)}, "the points of 'ends' differ"),
    "more points": (
        {"points": randn(1, 7, 4)},
        r"outputs have shape \[10\] in the file and \[11\] in the model: the points of 'inside' have shape \[6, 4\] in",
    ),
    "as many, elsewhere": (
        {"points": randn(1, 5, 4), "ends": randn(2, 5, 4)},
        r"the points of 'inside' have shape \[6, 4\] in the file and \[5, 4\] here",
    ),
    "a weight": ({"weight": 3.5}, "the weight of 'ends' is 3 in the file and 3.5 here"),
    "a name": ({"names": ("inside", "border")}, r"the terms are \['inside', 'ends'\] in the file and \['inside', 'bor"),
    "the order of terms": ({"order": -1}, r"the terms are .* in the file and \['ends', 'inside'\] here"),
    "the network": ({"width": 11}, r"parameter '0.weight' has shape \[12, 4\] in the file and \[11, 4\] in the model"),
}


@pytest.mark.parametrize("name", TERMS)
def test_terms_that_differ_are_named(name):
    changes, sentence = TERMS[name]
    message = told(pinn(), pinn(**changes))
    assert message is not None and re.search(sentence, message), message


DATA = {
    "an input": ({"inputs": randn(1, 6, 4) + 1e-15}, "the inputs differ"),
    "an input, in chunks": ({"inputs": randn(1, 6, 4) + 1e-15, "chunk": 4}, "the inputs differ"),
    "a target": ({"targets": randn(2, 6, 3) + 1e-15}, "the targets differ"),
    "a loss": (
        {"targets": (randn(2, 6, 3) > 0).double(), "loss": "logistic"},
        "saved with the loss Squares, but the objective has Logistic",
    ),
    "its kind": ({"inputs": (randn(1, 6, 4),)}, r"the data are \['inputs'\] in the file and \['inputs\[0\]'\] here"),
    "its precision": ({"inputs": randn(1, 6, 4).float()}, "the inputs have dtype float64 in the file and float32 here"),
}


class Casting(nn.Sequential):
    def forward(self, x):
        return super().forward(x.double())


@pytest.mark.parametrize("name", DATA)
def test_data_that_differ_are_named(name):
    changes, sentence = DATA[name]
    given = {"inputs": randn(1, 6, 4), "targets": randn(2, 6, 3), **changes}
    message = told(supervised(), js.supervised(Casting(*mlp(1)), **given))
    assert message is not None and re.search(sentence, message), message


class Pair(nn.Module):
    """Several inputs, one of which is no sample's."""

    def __init__(self):
        super().__init__()
        self.net = mlp(0)

    def forward(self, left, right, shift, scale=1.0):
        return self.net(left) - scale * self.net(right) + shift


def paired(left=0.0, right=0.0, shift=0.0, chunk=None):
    inputs = {"left": randn(1, 6, 4) + left, "right": randn(2, 6, 4) + right, "shift": randn(3, 3) + shift}
    return js.supervised(Pair(), {**inputs, "scale": 2.0}, randn(4, 6, 3), chunk=chunk)


def test_every_tensor_of_a_nest_counts_by_its_own_name():
    assert told(paired(), paired()) is None
    assert told(paired(chunk=2), paired(chunk=4)) is None
    for chunk in (None, 4):
        for name in ("left", "right", "shift"):
            message = told(paired(), paired(**{name: 1e-15}, chunk=chunk))
            assert message is not None and f"inputs['{name}'] differ" in message, message


def test_where_a_function_stands_for_the_data():
    assert told(opaque(), opaque(chosen=randn(5, 6, 4))) is None  # what it reads shows in the probe alone
    message = told(supervised(), opaque())
    assert message == "the outputs were made by Batch and are made by Opaque here."


def test_parameters_that_differ_are_named():
    assert "'4.weight'" in str(told(supervised(), supervised(params=["0", "2"])))
    assert "give objective.subset" in str(told(supervised(params=["0", "2"]), supervised()))
    deep = js.supervised(nn.Sequential(*mlp(0), nn.Linear(3, 3).double()), randn(1, 6, 4), randn(2, 6, 3))
    assert "the objective moves ['5.weight', '5.bias'] too" in str(told(supervised(), deep))
    single = js.supervised(mlp(0).float(), randn(1, 6, 4).float(), randn(2, 6, 3).float())
    assert "'0.weight' has dtype float64 in the file and float32" in str(told(supervised(), single))


def test_options_that_differ_are_named():
    a = pinn()
    here = {"weight_decay": 0.1, "gate": None, "metric": False, "basis": "auto", "shape": (1, 2), "far": math.inf}
    plain = {name: value for name, value in here.items() if name != "far"}
    assert told(a, a, plain, plain) is None
    for name, value in {
        "weight_decay": None,
        "gate": "hard",
        "metric": True,
        "basis": "dense",
        "shape": (2, 1),
    }.items():
        message = told(a, a, plain, {**plain, name: value})
        assert message is not None and f"the option {name} was " in message
    without = {name: value for name, value in plain.items() if name != "weight_decay"}
    assert "weight_decay was 0.1 and is None" in str(told(a, a, plain, without))
    direct = fingerprint.describe(a.space, a.parts, a.shape, a.loss, plain)
    assert fingerprint.difference(described(a, plain), direct) is None  # a tuple is a list by now, on both sides
    infinite = fingerprint.describe(a.space, a.parts, a.shape, a.loss, here)
    assert fingerprint.difference(infinite, infinite) is None
    with pytest.raises(TypeError):
        described(a, {"basis": lambda: None})


def test_what_is_no_description_is_an_error_of_the_reader():
    here = described(pinn())
    for broken in ({}, {**here, "pieces": 3}, {**here, "pieces": [1, 2]}, {**here, "parameters": None}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            fingerprint.difference(broken, here)


# -- what has to be asked ----------------------------------------------------------------------------------------


def moved(a, b):
    """The sentence on two problems probed at the same weights, those of the first."""
    found = fingerprint.probe_off(a)
    assert found is not None
    theta, saved = found
    fingerprint.require_probe(json.loads(json.dumps(saved)), described(a))
    here = fingerprint.probe_at(b, theta)
    assert here is not None
    return fingerprint.probe_difference(json.loads(json.dumps(saved)), here)


def test_the_same_problem_answers_the_same():
    x, y = randn(1, 6, 4), randn(2, 6, 3)
    for a, b in (
        (pinn(0), pinn(5)),
        (supervised(0), supervised(5)),
        (supervised(chunk=4), supervised(chunk=1)),
        (supervised(), supervised(chunk=2)),
        (opaque(), opaque(3)),
        (js.supervised(mlp(0).float(), x.float(), y.float()), js.supervised(mlp(1).float(), x.float(), y.float())),
    ):
        assert moved(a, b) is None


def test_the_probe_is_the_outputs_at_the_weights_it_names():
    """Norms and the loss's numbers, by hand."""
    objective = supervised()
    theta, found = fingerprint.probe_off(objective)
    assert 0.01 < float((theta - objective.theta()).norm() / objective.theta().norm()) < 1
    with torch.no_grad():
        model = mlp(0)
        nn.utils.vector_to_parameters(theta, model.parameters())
        u, y = model(randn(1, 6, 4)), randn(2, 6, 3)
    v = torch.cos(torch.arange(18.0, dtype=torch.float64)).reshape(6, 3)
    assert found["dtype"] == "float64"
    assert found["pieces"][0]["norm"] == pytest.approx(float(u.norm()), rel=1e-12)
    assert found["loss"] == pytest.approx(
        [float(((u - y) ** 2).mean()), float((u - y).norm()) * 2 / 18, float((v * v).sum()) * 2 / 18], rel=1e-12
    )
    along = found["pieces"][0]["projections"]
    assert len(along) == 4 and len({round(abs(x), 9) for x in along}) == 4


def test_what_a_function_reads_shows():
    x = randn(1, 6, 4)
    assert moved(opaque(chosen=x), opaque(chosen=x + 1e-13)) is None
    message = moved(opaque(chosen=x), opaque(chosen=x + 1e-6))
    assert message is not None and "(relative) from the saved ones: other buffers" in message
    assert moved(opaque(chosen=x), opaque(chosen=x.flip(0))) is not None  # which leaves the norm as it is


def test_code_is_told_apart_by_term():
    def other(net, x):
        return net(x)[0] * 1.001

    other.__name__ = "edge"
    points = randn(1, 6, 4), randn(2, 4, 4)
    a = js.residual(mlp(0, out=1), js.Term(inside, points[0]), js.Term(edge, points[1]))
    b = js.residual(mlp(0, out=1), js.Term(inside, points[0]), js.Term(other, points[1]))
    assert told(a, b) is None
    assert "the model's outputs of 'edge' are" in str(moved(a, b))


def test_buffers_modes_and_frozen_weights_show():
    def net():
        layers = fill(nn.Linear(4, 6), 0), nn.BatchNorm1d(6).double(), fill(nn.Linear(6, 3), 1)
        return nn.Sequential(*layers).eval()

    def objective(model, params=("2",)):
        return js.supervised(model, randn(1, 6, 4), randn(2, 6, 3), params=list(params))

    assert moved(objective(net()), objective(net())) is None
    buffers, frozen, mode = net(), net(), net().train()
    buffers[1].running_mean += 1e-3
    with torch.no_grad():
        frozen[0].weight[0, 0] += 1e-3
    for model in (buffers, frozen, mode):
        assert told(objective(net()), objective(model)) is None
        assert "outputs are" in str(moved(objective(net()), objective(model)))


def test_losses_with_the_same_targets_are_told_apart():
    x, y, labels = randn(1, 6, 4), randn(2, 6, 3), classes(0, 6, 3)
    u = torch.zeros(6, 3, dtype=torch.float64)
    once, twice = torch.ones(6, dtype=torch.float64), torch.tensor([1.0, 1, 1, 1, 1, 1 + 1e-4], dtype=torch.float64)
    power = [lambda u, t, p=p: (u - t).abs().pow(p).sum() for p in (3, 4)]
    for a, b in (
        (js.losses.mse(y), js.losses.Squares(y, 2 / 18 * (1 + 1e-5))),
        (js.losses.CrossEntropy(labels), js.losses.CrossEntropy(labels, ignore_index=int(labels[0]))),
        (weighted(js.losses.mse(y), once, u), weighted(js.losses.mse(y), twice, u)),
        (js.losses.Convex(power[0], y), js.losses.Convex(power[1], y)),
    ):
        first, second = (js.supervised(mlp(0), x, loss=loss) for loss in (a, b))
        assert told(first, second) is None
        assert moved(first, js.supervised(mlp(1), x, loss=a)) is None
        assert "another loss" in str(moved(first, second))


def test_a_solution_is_probed_where_residuals_are_no_rounding():
    """At weights that solve the problem, residuals are what is left of large terms: a reordered sum changes them."""
    a = js.residual(mlp(0, out=1), lambda net: net(POINTS)[:, 0] - POINTS.sum(1))
    js.fit(a, jumps=40, tolerance=1e-28, progress=False)
    assert a.value(a.theta()) < 1e-20

    def reordered(net):
        return -(POINTS[:, 3] + POINTS[:, 2] + POINTS[:, 1] + POINTS[:, 0]) + net(POINTS)[:, 0]

    b = js.residual(mlp(0, out=1), reordered)
    b.parts[0].name = a.parts[0].name
    u, v = a.outputs(a.theta()), b.outputs(a.theta())
    assert float((u - v).norm()) > 1e-8 * float(u.norm())  # so at the solution they would be taken for two problems
    assert moved(a, b) is None


def test_weights_off_which_the_outputs_are_not_finite():
    """A residual that holds near its weights alone is probed nearer; one that never does, not at all."""
    anchor = mlp(0, out=1)[0].weight.detach().clone()

    def within(reach):
        def fn(net):
            far = (net["0.weight"] - anchor).abs().max() > reach
            return net(POINTS)[:, 0] * torch.where(far, math.nan, 1.0)

        return js.residual(mlp(0, out=1), fn)

    start = mlp(0, out=1)[0].weight.detach()
    for reach, least, most in ((0.01, 1e-5, 0.01), (0.0, 0.0, 0.0)):
        objective = within(reach)
        theta, _ = fingerprint.probe_off(objective)
        off = float((theta[: start.numel()] - start.reshape(-1)).abs().max())
        assert least <= off <= most
    model = mlp(0, out=1)
    objective = js.residual(model, lambda net: net(POINTS)[:, 0] / net["4.bias"].sign())
    with torch.no_grad():
        model[4].bias.zero_()
    objective.space.read(model)
    assert fingerprint.probe_at(objective, objective.theta()) is None


def test_probing_leaves_everything_as_it_was():
    torch.manual_seed(3)
    model = nn.Sequential(
        fill(nn.Linear(4, 6), 0), nn.BatchNorm1d(6).double(), nn.Dropout(0.5), fill(nn.Linear(6, 3), 1)
    )
    objective = js.supervised(model.train(), randn(1, 6, 4), randn(2, 6, 3))
    before = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    fingerprint.probe_off(objective)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(torch.equal(value, before[1][name]) for name, value in model.state_dict().items())
    assert model.training and model[2].training


def test_probes_that_are_none():
    a = supervised()
    _, saved = fingerprint.probe_off(a)
    problem = described(a)
    piece = saved["pieces"][0]
    for broken in (
        None, [], {}, {**saved, "pieces": []}, {**saved, "loss": [1.0]}, {**saved, "loss": ["a", 1, 2]},
        {**saved, "pieces": [{**piece, "projections": [1.0]}]}, {**saved, "pieces": [{**piece, "norm": None}]},
        {**saved, "pieces": [{**piece, "name": "x"}]}, {name: saved[name] for name in ("pieces", "loss")},
    ):  # fmt: skip
        with pytest.raises((KeyError, TypeError, ValueError)):
            fingerprint.require_probe(broken, problem)
    nan = {**saved, "pieces": [{**piece, "norm": math.nan}]}
    assert fingerprint.probe_difference(saved, nan) and fingerprint.probe_difference(nan, saved)
    assert "float32 here and float64 in the file" in str(
        fingerprint.probe_difference(saved, {**saved, "dtype": "float32"})
    )


def test_parts_name_their_tensors():
    x = randn(1, 6, 4)
    assert [list(part.data()) for part in pinn().parts] == [["points"], ["points"]]
    assert opaque().parts[0].data() == {}
    assert supervised(inputs=x).parts[0].data()["inputs"] is x
    nested = js.supervised(Pair(), (x, x + 1, randn(3, 3)), randn(4, 6, 3)).parts[0].data()
    assert list(nested) == ["inputs[0]", "inputs[1]", "inputs[2]"] and digest(nested["inputs[1]"]) == digest(x + 1)
