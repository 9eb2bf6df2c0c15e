"""A copy of an optimizer takes the steps that the optimizer would take: the real one is asked, on copies of all."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.objectives.parameters import ParameterSpace
from jumpstart.skipping.replica import Replica

from .optimizers import BY_HAND, KINDS, Around, LayerScaled, net

ALL = {**KINDS, **BY_HAND}


def gradients(model, count, seed=1):
    """Random ones: as a vector in the order of a space, and by parameter."""
    g = torch.Generator().manual_seed(seed)
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return [torch.randn(size, generator=g).double() for _ in range(count)]  # rounded once to bfloat16


def really(model, optimizer, vectors, untouched=()):
    """The optimizer's own steps along vectors (P,)."""
    for vector in vectors:
        at = 0
        for name, p in model.named_parameters():
            if p.requires_grad:
                piece = vector[at : at + p.numel()].reshape(p.shape)
                at += p.numel()
                p.grad = None if name in untouched else piece.to(p.dtype).clone()
        optimizer.step()


def flat(model):
    dtype = ParameterSpace(model).dtype
    return torch.cat([p.detach().reshape(-1).to(dtype) for p in model.parameters() if p.requires_grad])


def plain(thing):
    """A state as numbers, for comparison: parameters by their number."""
    if isinstance(thing, torch.Tensor):
        return thing.detach().double()
    if isinstance(thing, dict):
        return {str(key): plain(value) for key, value in thing.items() if value is not None}
    if isinstance(thing, (list, tuple)):
        return [plain(value) for value in thing]
    return float(thing) if isinstance(thing, (int, float)) else [float(ord(letter)) for letter in str(thing)]


def whole(optimizer):
    """All that an optimizer holds, with its own attributes."""
    extra = {k: v for k, v in vars(optimizer).items() if k in ("rounds", "norms", "last")}
    return {**optimizer.state_dict(), **extra}


def same(a, b, **tolerances):
    a, b = plain(a), plain(b)
    torch.testing.assert_close(a, b, **(tolerances or {"rtol": 0, "atol": 0}))


def follows(model, optimizer, steps=4, tolerance=1e-12, untouched=()):
    """The copy's weights, and the original after the copy's changes, against a twin of both that really steps."""
    vectors = gradients(model, steps)
    twin, real = copy.deepcopy((model, optimizer))
    before = copy.deepcopy((whole(optimizer), flat(model)))
    replica = Replica(optimizer, ParameterSpace(model), model)
    for vector in vectors:
        really(twin, real, [vector if not maximized(optimizer) else -vector], untouched)
        theta = replica.step(vector.to(replica.theta.dtype))
        torch.testing.assert_close(theta, flat(twin), rtol=tolerance, atol=tolerance)
    changes = replica.changes()
    same((whole(optimizer), flat(model)), before)
    back = changes.reverse()
    changes.apply()
    same(whole(optimizer), whole(real), rtol=tolerance, atol=tolerance)
    after = replica.theta.clone()
    replica.step(vectors[0].to(after.dtype))  # what was assigned is the original's own
    same(whole(optimizer), whole(real), rtol=tolerance, atol=tolerance)
    back.apply()
    same((whole(optimizer), flat(model)), before)
    return replica


def maximized(optimizer):
    return any(group.get("maximize") for group in optimizer.param_groups)


@pytest.mark.parametrize("taken", [0, 3])
@pytest.mark.parametrize("kind", ALL)
def test_its_steps_are_the_optimizers(kind, taken):
    model = net()
    optimizer = ALL[kind](model.parameters())
    really(model, optimizer, gradients(model, taken, seed=2))
    follows(model, optimizer)


@pytest.mark.parametrize("kind", ALL)
def test_groups_keep_their_own_rates_decays_and_betas(kind):
    model = net()
    optimizer = ALL[kind]([{"params": list(model[0].parameters())}, {"params": list(model[2].parameters())}])
    other = optimizer.param_groups[1]
    other["lr"] = other["lr"] * 0.3
    for key, value in {"weight_decay": 0.2, "betas": (0.5, 0.7), "momentum": 0.6, "alpha": 0.7}.items():
        if key in other and (key != "momentum" or other[key]):
            other[key] = value
    really(model, optimizer, gradients(model, 2, seed=2))
    follows(model, optimizer)


@pytest.mark.parametrize("kind", ALL)
def test_what_was_saved_comes_back_to_the_bit_as_often_as_asked(kind):
    model = net()
    optimizer = ALL[kind](model.parameters())
    really(model, optimizer, gradients(model, 2, seed=2))
    replica = Replica(optimizer, ParameterSpace(model), model)
    vectors = gradients(model, 5)
    replica.step(vectors[0])
    there = copy.deepcopy((whole(replica.copy), replica.theta))
    back = replica.save()
    runs = []
    for _ in range(3):
        for vector in vectors[1:]:
            replica.step(vector)
        runs.append(copy.deepcopy((whole(replica.copy), replica.theta)))
        back()
        same((whole(replica.copy), replica.theta), there)
    same(runs[0], runs[1])
    same(runs[0], runs[2])


@pytest.mark.parametrize("kind", ["momentum", "Adam", "AdamW", "RMSprop", "Adagrad", "layer-scaled"])
def test_a_parameter_without_gradient_stays_though_it_would_decay(kind):
    model = net()
    optimizer = ALL[kind](model.parameters())
    for group in optimizer.param_groups:
        if "weight_decay" in group:
            group["weight_decay"] = 0.1
    really(model, optimizer, gradients(model, 2, seed=2), untouched=("0.bias",))
    follows(model, optimizer, untouched=("0.bias",))


@pytest.mark.parametrize("kind", ["SGD", "momentum", "Adam", "Muon"])
def test_frozen_parameters_are_nobodys(kind):
    model = net()
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    if kind == "Muon":
        model[0].bias.requires_grad_(False)
        optimizer = torch.optim.Muon([model[0].weight, model[2].weight], 0.02)
    else:
        optimizer = ALL[kind](model.parameters())
    really(model, optimizer, gradients(model, 2, seed=2))
    follows(model, optimizer)


def test_muon_beside_another_dimension():
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Tanh(), nn.Linear(5, 2, bias=False)).double()
    optimizer = torch.optim.Muon(model.parameters(), 0.02, weight_decay=0.1)
    really(model, optimizer, gradients(model, 2, seed=2))
    follows(model, optimizer, tolerance=1e-6)  # it orthogonalizes in bfloat16


@pytest.mark.parametrize("kind", ["SGD", "momentum", "AdamW", "RMSprop"])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.bfloat16, torch.bfloat16),
                                    (torch.float16, torch.float32)])  # fmt: skip
def test_weights_of_several_dtypes(kind, dtypes):
    model = net()
    model[0].to(dtypes[0])
    model[2].to(dtypes[1])
    optimizer = ALL[kind](model.parameters())
    really(model, optimizer, gradients(model, 2, seed=2))
    # torch rounds the last entries of a half-precision tensor otherwise than the others
    half = any(dtype.itemsize == 2 for dtype in dtypes)
    follows(model, optimizer, tolerance=1e-2 if half else 1e-7)


class Scalars(nn.Module):
    """Parameters without a dimension: their state has the shape of a count of steps."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.3, -0.7))
        self.c = nn.Parameter(torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["momentum", "AdamW", "Adagrad", "Rprop"])
@pytest.mark.parametrize("taken", [0, 2])
def test_parameters_that_are_single_numbers(kind, taken):
    model = Scalars()
    optimizer = ALL[kind](model.parameters())
    really(model, optimizer, [torch.ones(3, dtype=torch.float64)] * taken)  # states that look alike
    follows(model, optimizer)


def test_state_made_before_and_after_a_group_was_added():
    model = net()
    optimizer = torch.optim.Adam(model[0].parameters(), 0.02)
    really(model[0], optimizer, gradients(model[0], 3, seed=2))
    optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.01})
    really(model, optimizer, gradients(model, 2, seed=3))
    follows(model, optimizer)


def test_layers_of_an_unknown_optimizer_are_never_one_tensor():
    model = net()
    optimizer = LayerScaled(model.parameters())
    really(model, optimizer, gradients(model, 1))
    assert len(Replica(optimizer, ParameterSpace(model), model).pieces) == 4
    known = torch.optim.Adam(model.parameters())
    really(model, known, gradients(model, 1))
    assert len(Replica(known, ParameterSpace(model), model).pieces) == 1


def test_tensors_are_written_where_they_are():
    model = net()
    rate = torch.tensor(0.02, dtype=torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    really(model, optimizer, gradients(model, 2))
    held = optimizer.param_groups[0]["lr"], optimizer.state[model[0].weight]["exp_avg"]
    replica = Replica(optimizer, ParameterSpace(model), model)
    replica.copy.param_groups[0]["lr"].fill_(0.005)
    replica.step(gradients(model, 1)[0])
    assert float(held[0]) == 0.02
    replica.changes().apply()
    assert optimizer.param_groups[0]["lr"] is held[0]
    assert optimizer.state[model[0].weight]["exp_avg"] is held[1]
    assert float(held[0]) == 0.005
    assert scheduler.optimizer is optimizer


def test_a_rate_that_is_a_tensor_comes_back():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), torch.tensor(0.02))
    replica = Replica(optimizer, ParameterSpace(model), model)
    back = replica.save()
    replica.copy.param_groups[0]["lr"].fill_(7.0)
    back()
    assert float(replica.copy.param_groups[0]["lr"]) == pytest.approx(0.02)


def test_hooks_are_the_users_and_are_not_called():
    model, called = net(), []
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.register_step_pre_hook(lambda *_: called.append(1))
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    Replica(optimizer, ParameterSpace(model), model).step(gradients(model, 1)[0])
    assert called == []


def test_one_that_holds_its_parameters_elsewhere_is_refused_by_name():
    model = net()
    inner = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(js.errors.InputError, match=r"Around holds its parameters in \.inner"):
        Replica(Around(inner), ParameterSpace(model), model)


def test_closures_and_sparse_gradients_are_refused_by_name():
    model = net()
    for kind, word in ((torch.optim.LBFGS, "closure"), (torch.optim.SparseAdam, "sparse")):
        with pytest.raises(js.errors.InputError, match=f"{kind.__name__} needs .*{word}"):
            Replica(kind(model.parameters()), ParameterSpace(model), model)
    model = nn.Linear(2, 1).to(torch.complex128)
    with pytest.raises(js.errors.InputError, match="complex"):
        Replica(torch.optim.SGD(model.parameters(), 0.1), ParameterSpace(model), model)


PLAIN = {
    "Adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, betas=(0.8, 0.99)),
    "SGD": lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.2, weight_decay=0.1),
    "Nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, alpha=0.9, weight_decay=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.1, lr_decay=0.1, weight_decay=0.1),
    "uphill": lambda p: torch.optim.Adam(p, 0.01, maximize=True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", PLAIN)
def test_kernels_take_the_steps_of_their_classes(kind, dtype):
    model = net().to(dtype)
    optimizer = PLAIN[kind](model.parameters())
    really(model, optimizer, gradients(model, 3))
    replica = Replica(optimizer, ParameterSpace(model), model)
    assert replica._kernel is not None
    assert replica.calls < 12
    follows(model, optimizer, tolerance=1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
        lambda p: torch.optim.Adam(p, torch.tensor(0.01)),
        lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9),
        lambda p: torch.optim.RMSprop(p, 0.01, centered=True),
        lambda p: torch.optim.NAdam(p, 0.01),
        type("Mine", (torch.optim.SGD,), {}),
    ],
)
def test_other_options_and_classes_are_stepped_by_themselves(make):
    model = net()
    optimizer = make(model.parameters())
    really(model, optimizer, gradients(model, 3))
    assert Replica(optimizer, ParameterSpace(model), model)._kernel is None
