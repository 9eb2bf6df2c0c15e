# ruff: noqa: E501 (a table is read by its columns)
"""Why parameters do not go layer by layer, or samples one by one: what a person reads, and that faults are not silent."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import jumpstart as js
from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.metric import Metric
from jumpstart.linearization.ntk import train_kernel
from jumpstart.linearization.ntk.batch import RecordedBatch
from jumpstart.linearization.ntk.dense import UNBATCHED, dense_kernel

from ...problems import randn
from .kernel_models import close, explicit, floats, make, randomise
from .test_routes import Cube


class Statistics(nn.Module):
    """What BatchNorm does to the mean, in train mode alone; a batch of one is none of its errors."""

    def forward(self, x):
        return x - x.mean(0) if self.training else x


def coupled():
    return randomise(nn.Sequential(nn.Linear(4, 6, bias=False), Statistics(), nn.Tanh(), nn.Linear(6, 2)))


def supervised(model, n=7):
    return js.supervised(model, floats(4)(n), floats(2)(n))


def branching(p, x):
    h = x @ p["w"]
    return h if float(h.detach().sum()) > 0 else h**2


W, TABLE = {"w": randn(0, 4, 2)}, {"w": randn(0, 5, 3)}
NO_LAYER = "no layer, sum or product that is known here uses it"
MORE = "its recorded uses do not make up its gradient (another use, or samples that interact)"
APART = "does not have 5 samples in its first dimension"
CASES = {
    "no layer": (lambda p, x: torch.tanh(x @ p["w"]), W, "per-sample", NO_LAYER),
    "used twice": (lambda p, x: F.linear(x, p["w"]) + x @ p["w"], {"w": randn(0, 4, 4)}, "per-sample", MORE),
    "linear, samples last": (lambda p, x: F.linear(x[:, :3].T, p["w"]).T[:, :2] if len(x) == 5 else x, {"w": torch.eye(5, dtype=torch.float64)}, "per-output", f"a linear layer with an input of shape (3, 5) {APART}; samples cannot be taken one by one"),
    "embedding by frequency": (lambda p, x: F.embedding(x[:, 0].abs().long() % 5, p["w"], scale_grad_by_freq=True) * x[:, :3], TABLE, "per-output", "an embedding with max_norm or scale_grad_by_freq"),
    "control flow": (branching, W, "per-output", f"{NO_LAYER}; samples cannot be taken one by one (RuntimeError: vmap: It looks like"),
    "interaction": (lambda p, x: (x - x.mean(0)) @ p["w"] * (x @ p["w"]).mean(), W, "per-output", f"{NO_LAYER}; samples interact"),
    "own exception": (lambda p, x: lonely(x) @ p["w"], W, "per-output", f"{NO_LAYER}; samples cannot be taken one by one (ValueError: more than one, please)"),
    "no batching rule": (lambda p, x: Cube.apply(x @ p["w"]), W, "per-output", f"{NO_LAYER}; samples cannot be taken one by one (RuntimeError: In order to use an autograd.Function with functorch"),
}  # fmt: skip


def lonely(x):
    if len(x) == 1:
        raise ValueError("more than one, please")
    return x


@pytest.mark.parametrize("name", CASES)
def test_a_parameter_that_is_not_layerwise_says_why(name):
    call, params, route, reason = CASES[name]
    x, report, reasons = floats(4)(5), {}, {}
    torch.manual_seed(0)
    k = dense_kernel(call, params, x, report=report, reasons=reasons)
    if name != "no batching rule":
        close(k, explicit(call, params, x))
    assert report == {"w": route}
    assert reasons["w"].startswith(reason), reasons
    assert set(reasons) - {UNBATCHED} == {"w"}
    assert (UNBATCHED in reasons) == (name == "no batching rule")


def test_inputs_without_samples_say_so():
    x, reasons = floats(4)(5), {}
    call = lambda p, batch: x @ p["w"]  # noqa: E731
    close(dense_kernel(call, W, floats(4)(3), reasons=reasons), explicit(call, W, x))
    assert reasons["w"] == f"{NO_LAYER}; no input has 5 samples in its first dimension"


def test_layers_give_no_reasons():
    call, params, batch = make("mlp", 0)
    reasons = {}
    dense_kernel(call, params, batch(6), reasons=reasons)
    assert reasons == {}


def test_an_objective_tells_of_the_kernel_and_of_the_modes_that_it_was_formed_in():
    torch.manual_seed(0)
    model = coupled()
    objective = supervised(model)
    assert objective.notes() == [], "nothing was computed yet"
    note = f"kernel: '0.weight' per-output: {MORE}; samples interact (as under BatchNorm in train mode)"
    for training in (True, True, False, True):
        model.train(training)
        train_kernel(linearize(objective), Metric())
        assert objective.notes() == ([note] if training else [])


def test_many_parameters_are_counted():
    objective = js.supervised(Matrices(), floats(4)(6), floats(4)(6))
    train_kernel(linearize(objective), Metric())
    assert objective.notes() == [f"kernel: 'w0', 'w1', 'w2' and 2 more per-sample: {NO_LAYER}"]


class Matrices(nn.Module):
    def __init__(self):
        super().__init__()
        for k in range(5):
            self.register_parameter(f"w{k}", nn.Parameter(randn(k, 4, 4)))

    def forward(self, x):
        for w in self.parameters():
            x = torch.tanh(x @ w)
        return x


def test_chunks_say_the_same_once():
    torch.manual_seed(0)
    objective = js.supervised(Squared(), floats(4)(6), floats(2)(6), chunk=2)
    train_kernel(linearize(objective), Metric())
    assert objective.notes() == [f"kernel: 'w' per-sample: {NO_LAYER}"]


class Squared(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(W["w"].clone())

    def forward(self, x):
        return (x @ self.w) ** 2


BROKEN = {
    "samples": ("_blocks_astray", NameError),
    "Jacobian": ("jacobian_by_sample", AttributeError),
    "a sample": ("_alone", KeyError),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_fault_of_the_library_is_warned_of_and_kept(name, monkeypatch):
    method, kind = BROKEN[name]

    def broken(*args, **kwargs):
        raise kind("broken on purpose")

    monkeypatch.setattr(RecordedBatch, method, broken)
    objective = js.supervised(Squared(), floats(4)(6), floats(2)(6))
    lin = linearize(objective)
    with pytest.warns(RuntimeWarning, match=f"the kernel: a fast way failed .unexpected {kind.__name__}: .*exact"):
        k = train_kernel(lin, Metric())
    (note,) = objective.notes()
    assert note.startswith(f"kernel: 'w' per-output: {NO_LAYER}; unexpected {kind.__name__}: ")
    assert "broken on purpose" in note
    monkeypatch.undo()
    close(k, train_kernel(linearize(js.supervised(Squared(), objective.parts[0].inputs, floats(2)(6))), Metric()))


# -- the explicit Jacobian of a batch -------------------------------------------------------------------------------


class Branching(Squared):
    def forward(self, x):
        return branching({"w": self.w}, x)


ONE_BY_ONE = "Jacobian: one backward pass through the whole batch for every output: "
JACOBIANS = {
    "interaction": (coupled, f"{ONE_BY_ONE}samples interact (as under BatchNorm in train mode)"),
    "control flow": (Branching, f"{ONE_BY_ONE}samples cannot be taken one by one (RuntimeError: vmap: It looks like"),
}


@pytest.mark.parametrize("name", JACOBIANS)
def test_a_jacobian_that_is_not_by_samples_says_why(name):
    torch.manual_seed(0)
    build, reason = JACOBIANS[name]
    objective = supervised(build())
    assert objective.notes() == []
    linearize(objective).jacobian()
    (note,) = objective.notes()
    assert note.startswith(reason), note


def test_a_jacobian_that_goes_by_samples_again_has_nothing_to_say():
    torch.manual_seed(0)
    model = coupled()
    objective = supervised(model)
    for training in (True, False, True):
        model.train(training)
        linearize(objective).jacobian()
        assert len(objective.notes()) == training
