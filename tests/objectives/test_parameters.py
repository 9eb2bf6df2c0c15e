"""Parameter vectors: selection, order, ties, dtypes, and the model as a pure function."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.errors import InputError, NonFiniteError, NoParametersError
from jumpstart.objectives.parameters import ParameterSpace
from jumpstart.objectives.pure import Net

from ..problems import fill, flat, mlp, randn, relative, vector


class Tied(nn.Module):
    """An embedding that is also the readout, with positions that are a buffer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.middle = nn.Linear(5, 5)
        self.readout = nn.Linear(5, 7, bias=False)
        self.readout.weight = self.embed.weight
        self.register_buffer("shift", torch.linspace(0, 1, 5, dtype=torch.float64))

    def forward(self, tokens):
        return self.readout(torch.tanh(self.middle(self.embed(tokens) + self.shift)))


# selection → names that it chooses of an MLP with layers 0, 2, 4
SELECT = {
    "all": (None, ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]),
    "prefix": ("2", ["2.weight", "2.bias"]),
    "name": ("4.bias", ["4.bias"]),
    "pattern": ("*.bias", ["0.bias", "2.bias", "4.bias"]),
    "several": (["0", "4.bias"], ["0.weight", "0.bias", "4.bias"]),
    "function": (lambda name, p: p.dim() == 2, ["0.weight", "2.weight", "4.weight"]),
}


@pytest.mark.parametrize("name", SELECT)
def test_selection_order_and_round_trip(name):
    select, names = SELECT[name]
    model = mlp(0)
    space = ParameterSpace(model, select)
    assert list(space.names) == names
    theta = space.read(model)
    assert space.size == theta.numel()
    present = dict(model.named_parameters())
    assert torch.equal(theta, torch.cat([present[n].detach().reshape(-1) for n in names]))
    assert torch.equal(space.flatten(space.unflatten(theta)), theta)
    others = {k: p.detach().clone() for k, p in present.items() if k not in names}
    space.write(model, theta + 1)
    assert torch.equal(space.read(model), theta + 1)
    assert all(torch.equal(present[k], v) for k, v in others.items())


@pytest.mark.parametrize("name", [n for n in SELECT if n != "all"])
def test_jump_and_solve_move_only_what_is_selected(name):
    select, names = SELECT[name]
    model = mlp(0)
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    objective = js.supervised(model, randn(0, 6, 4), randn(1, 6, 3))
    assert list(js.solve(objective, params=select).parameters(1.0)) == names
    assert js.jump(objective, params=select).accepted
    for key, p in model.named_parameters():
        assert torch.equal(p, before[key]) == (key not in names), key


def test_frozen_parameters_stay_and_do_not_count():
    model = mlp(1)
    model[0].requires_grad_(False)
    x, y = randn(0, 6, 4), randn(1, 6, 3)
    found = js.solve(js.supervised(model, x, y))
    chosen = js.solve(js.supervised(mlp(1), x, y), params=["2", "4"])
    assert set(found.parameters(1.0)) == {"2.weight", "2.bias", "4.weight", "4.bias"}
    for t in (0.3, 20.0):
        assert relative(found.outputs(t), chosen.outputs(t)) < 1e-12
    before = model[0].weight.clone()
    assert js.jump(js.supervised(model, x, y)).accepted
    assert torch.equal(model[0].weight, before)


def test_tied_weights_appear_once_and_move_together():
    model = fill(Tied(), 0)
    tokens, y = torch.tensor([0, 3, 6, 3, 2]), randn(0, 5, 7)
    assert list(ParameterSpace(model).names) == ["embed.weight", "middle.weight", "middle.bias"]
    objective = js.supervised(model, tokens, y)
    found = js.solve(objective, basis="dense")
    # Against the finite difference of both uses of the weight at once.
    step = 1e-6
    moved = found.parameters(step)
    base = {k: p.detach().clone() for k, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = None
    nn.functional.mse_loss(model(tokens), y).backward()
    for key, p in model.named_parameters():
        assert relative((moved[key] - base[key]) / step, -p.grad) < 1e-4
    assert js.jump(objective).accepted
    assert model.readout.weight is model.embed.weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_dtypes_keep_a_wide_vector(dtype):
    model = mlp(0).to(dtype)
    space = ParameterSpace(model)
    assert space.dtype == torch.float32
    assert space.read(model).dtype == torch.float32
    assert all(v.dtype == dtype for v in space.unflatten(space.read(model)).values())
    mixed = mlp(0)
    mixed[0].to(dtype)
    assert ParameterSpace(mixed).dtype == torch.float64


@pytest.mark.parametrize("basis", ["auto", "dense", "krylov"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_jumps_work_in_narrow_dtypes(dtype, basis):
    model = mlp(3, 4, 40, 3).to(dtype)
    x, y = randn(0, 16, 4).to(dtype), randn(1, 16, 3).to(dtype)
    objective = js.supervised(model, x, y)
    before = objective.value(objective.theta())
    result = js.jump(objective, basis=basis)
    assert result.accepted, result
    assert objective.value(objective.theta()) < 0.8 * before
    assert all(p.dtype == dtype and bool(torch.isfinite(p).all()) for p in model.parameters())


def test_net_is_pure():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).double()
    model[2].eval()
    space = ParameterSpace(model)
    x, theta = randn(0, 6, 3), space.read(model)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for training in (None, False, True):
        out = Net(model, space, training).bind(theta + 0.1)(x)
        assert out.shape == (6, 4)
        assert [m.training for m in model.modules()] == [True, True, True, False]
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    twin = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).double().eval()
    twin.load_state_dict(state)
    assert torch.equal(Net(model, space, False).bind(theta)(x), twin(x))


def test_modes_come_back_after_an_error():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)).double()
    with pytest.raises(RuntimeError):
        Net(model, ParameterSpace(model), False).bind(flat(model))(randn(0, 2, 7))
    assert all(m.training for m in model.modules())


def test_misuse():
    with pytest.raises(NoParametersError):
        ParameterSpace(nn.Identity())
    with pytest.raises(InputError, match="nothing"):
        ParameterSpace(mlp(0), ["0", "nothing"])
    model = mlp(0)
    with torch.no_grad():
        model[4].bias[0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"4\.bias"):
        ParameterSpace(model).read(model)
    assert vector(ParameterSpace(model, "0").unflatten(flat(model)[:60])).numel() == 60
