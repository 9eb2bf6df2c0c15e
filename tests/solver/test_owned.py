"""A solution owns what it answers about: whatever becomes of model and data later, answers stay, or refuse."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.errors import ArchiveError, InputError
from jumpstart.gp import EndpointGP
from jumpstart.objectives import snapshot

from ..problems import fill, randn, relative

X, Y, Q = randn(0, 12, 3), randn(1, 12, 1), randn(2, 4, 3)


def plain() -> nn.Module:
    return fill(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), 0)


def normed() -> nn.Module:
    return fill(nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)), 1)


def write_over(*tensors) -> None:
    """The way that no version counter tells."""
    for t in tensors:
        t.data.copy_(torch.randn(t.shape) * 3)


def train(model) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(5):
        optimizer.zero_grad()
        (model(X) - Y).square().mean().backward()
        optimizer.step()


def activation(model) -> None:
    model[1].weight.data.mul_(0.5)


CHANGES = {
    "trained on": (plain, {}, lambda m, x, y: train(m)),
    "BatchNorm trained on": (normed, {"training": False}, lambda m, x, y: train(m)),
    "BatchNorm in train mode, then eval": (normed, {}, lambda m, x, y: m.eval()),
    "one layer moves, all train on": (plain, {"params": "2"}, lambda m, x, y: train(m)),
    "inputs written over": (plain, {}, lambda m, x, y: write_over(x)),
    "targets written over": (plain, {}, lambda m, x, y: write_over(y)),
    "buffers and data": (normed, {"training": False}, lambda m, x, y: write_over(x, y, *m.buffers())),
    "another dtype": (plain, {"params": "2"}, lambda m, x, y: m.float()),
    "another device": (normed, {"training": False, "params": "3"}, lambda m, x, y: m.to("meta")),
    "frozen": (plain, {}, lambda m, x, y: m.requires_grad_(False)),
}


@pytest.mark.parametrize(("basis", "loss"), [("dense", "mse"), ("krylov", "logistic")])
@pytest.mark.parametrize("name", CHANGES)
def test_answers_are_about_the_moment_of_solving(name, basis, loss, tmp_path):
    """The oracle is a twin that was solved with everything copied, and left alone."""
    build, options, change = CHANGES[name]
    model, x, y = build(), X.clone(), Y.clone() if loss == "mse" else (Y > 0).double()
    twin = copy.deepcopy((model, x, y))
    found = js.solve(js.supervised(model, x, y, loss, **options), basis)
    truth = js.solve(js.supervised(*twin, loss, **options), basis)
    change(model, x, y)
    ask = {
        "outputs": lambda s: s.outputs(1.0),
        "predict": lambda s: s.predict(Q, 1.0),
        "predict many": lambda s: s.predict(Q, torch.linspace(0, 2, 30)),
        "order 2": lambda s: s.outputs(0.3, order=2),
        "parameters": lambda s: torch.cat([v.reshape(-1) for v in s.parameters(1.0).values()]),
        "landed": lambda s: torch.cat([v.reshape(-1) for v in s.parameters(0.5, land=True).values()]),
        "targets": lambda s: s.with_targets(1 - twin[2]).outputs(1.0),
        "check": lambda s: s.check(1.0, Q).query.actual,
        "bound": lambda s: torch.tensor(s.error_bound(1.0)),
    }
    for question, answer in ask.items():
        a, b = answer(found), answer(truth)
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12), question
    if options.get("training") is False:  # train-mode BatchNorm sees other batches
        assert relative(found.predict(twin[1], 1.0), found.outputs(1.0)) < 1e-10
    if basis == "dense":
        assert found.risk(1.0) == pytest.approx(truth.risk(1.0), rel=1e-10)
    path = found.save(tmp_path / "a.npz")
    again = js.load(path, js.supervised(*twin, loss, **options))
    assert relative(again.predict(Q, 1.0), truth.predict(Q, 1.0)) < 1e-10
    write_over(twin[1])
    assert relative(again.predict(Q, 1.0), found.predict(Q, 1.0)) < 1e-10


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.gain = plain(), 1.0

    def forward(self, x):
        return self.gain * self.inner(x)


def replaced(model):
    model.inner[1] = nn.ReLU()


def gained(model):
    model.gain = 2.0


REFUSED = {
    "a submodule replaced": (replaced, r"submodules \['inner.1'\]"),
    "an attribute": (gained, "an attribute of a module"),
    "a layer added": (lambda m: m.add_module("more", nn.Linear(2, 2)), r"submodules \['more'\]"),
    "a parametrization": (lambda m: nn.utils.parametrizations.weight_norm(m.inner[0]), "submodules"),
    "the code": (lambda m: setattr(m, "forward", lambda x: x.sum()), "outputs of"),
    "an error": (lambda m: setattr(m, "forward", lambda x: 1 / 0), "ZeroDivisionError"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_is_another_one_now_is_refused(name):
    change, told = REFUSED[name]
    model = Scaled()
    found = js.solve(js.supervised(model, X, Y))
    before = found.outputs(1.0)
    change(model)
    assert found.outputs(1.0).equal(before)  # needs no network
    for ask in (
        lambda: found.predict(Q, 1.0),
        lambda: found.parameters(1.0),
        lambda: found.check(1.0),
        lambda: found.outputs(1.0, order=2),
        lambda: found.with_targets(torch.stack([Y, Y])).predict(Q, 1.0),
    ):
        with pytest.raises(InputError, match=f"has changed since it was solved: .*{told}"):
            ask()


def test_data_that_a_function_reads_are_noticed():
    model, x = plain(), X.clone()
    found = js.solve(js.Objective(model, lambda net: net(x), js.losses.mse(Y)))
    want = found.predict(Q, 1.0)
    x.data.mul_(1.5)
    with pytest.raises(InputError, match="data that the outputs function"):
        found.predict(Q, 1.0)
    x.data.div_(1.5)
    assert relative(found.predict(Q, 1.0), want) < 1e-12


def test_points_of_a_residual_are_noticed(tmp_path):
    model, points = plain(), X.clone()
    found = js.solve(js.residual(model, js.Term(lambda net, x: net(x) - x[:1], points)))
    found.predict(lambda net: net(Q), 1.0)
    points.data.add_(0.1)
    for ask in (lambda: found.predict(lambda net: net(Q), 1.0), lambda: found.save(tmp_path / "a.npz")):
        with pytest.raises(InputError, match="has changed since"):
            ask()


@pytest.mark.parametrize("by", [lambda t: t.mul_(2), lambda t: t.data.mul_(2), lambda t: t.data[0].add_(1e-3)])
def test_what_is_too_large_to_copy_is_watched(by, monkeypatch):
    monkeypatch.setattr(snapshot, "SMALL", 8 * 40)  # bytes: targets, bias and the last layer, not the inputs
    monkeypatch.setattr(snapshot, "SHARE", 1e-12)
    model, x = plain(), X.clone()
    found = js.solve(js.supervised(model, x, Y, params="2"))
    want = found.predict(Q, 1.0)
    assert relative(found.predict(Q, 1.0), want) == 0
    with torch.no_grad():
        by(model[0].weight)
    with pytest.raises(InputError, match=r"parameter '0.weight' .too large to be copied then. has been written to"):
        found.predict(Q, 1.0)


def test_query_points_written_over_are_asked_anew():
    found, q = js.solve(js.supervised(plain(), X, Y)), Q.clone()
    first = found.predict(q, 1.0)
    q.data.copy_(X[:4])
    assert relative(found.predict(q, 1.0), found.predict(X[:4].clone(), 1.0)) == 0
    assert relative(found.predict(q, 1.0), first) > 0.1
    shift = [0.0]
    ask = lambda net: net(Q + shift[0])  # noqa: E731
    first = found.predict(ask, 1.0)
    shift[0] = 1.0
    assert relative(found.predict(ask, 1.0), found.predict(Q + 1.0, 1.0)) < 1e-12


def test_a_metric_and_weights_are_owned():
    d, weights = 1 + randn(0, 41).abs(), torch.ones(12, dtype=torch.float64)
    found = js.solve(js.supervised(plain(), X, Y), metric=d)
    light = found.reweighted(weights)
    want, then = found.predict(Q, 1.0), light.outputs(1.0)
    d.data.mul_(3)
    weights.data.zero_()
    assert relative(found.predict(Q, 1.0), want) < 1e-12
    assert relative(light.outputs(2.0), found.outputs(2.0)) < 1e-12
    assert light.outputs(1.0).equal(then)


def test_a_file_of_other_data_is_still_refused(tmp_path):
    model, x = plain(), X.clone()
    path = js.solve(js.supervised(model, x, Y)).save(tmp_path / "a.npz")
    x.data.mul_(2)
    with pytest.raises(ArchiveError):
        js.load(path, js.supervised(model, x, Y))


def test_the_original_objective_knows_what_was_found():
    objective = js.supervised(plain(), X, Y)
    js.solve(objective)
    assert objective.checked is not None
    assert objective.work.flops > 0
    (known,) = objective.net.routes[objective.parts[0]].values()
    assert set(known[0].values()) == {"layerwise"}


@pytest.mark.parametrize("build", [plain, normed])
def test_a_process_is_about_the_model_of_its_time(build):
    model, x, y = build().eval(), X.clone(), Y.clone()
    gp = EndpointGP(model, x, y, noise=0.1, params="2" if build is plain else "3")
    want = gp.predict(Q).mean
    model.train()
    train(model)
    write_over(x, y)
    gp.set(0.1, 1.0)
    assert relative(gp.predict(Q).mean, want) < 1e-10
    model[1] = nn.Identity()
    with pytest.raises(InputError, match="submodules"):
        gp.predict(Q + 1)
