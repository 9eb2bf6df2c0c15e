"""keep_balance=True: a jump that ends where flow could have ended, as the same function."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart import errors
from jumpstart.trajectory import balance

from ..problems import fill, randn


def rectified(seed: int = 0) -> nn.Sequential:
    return fill(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.LeakyReLU(0.1), nn.Linear(6, 2)), seed)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    return randn(1, 20, 3), randn(2, 20, 2)


def off(model: nn.Module, kept: dict[str, torch.Tensor]) -> float:
    return max(float((balance(model)[name] - value).abs().max()) for name, value in kept.items())


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_the_same_function_with_the_balance_of_before(loss):
    model, (x, y) = rectified(), data()
    plain, kept = copy.deepcopy(model), balance(model)
    free, found = js.jump(js.supervised(plain, x, y, loss)), None
    found = js.jump(js.supervised(model, x, y, loss), keep_balance=True)
    assert free.accepted and found.accepted
    assert off(plain, kept) > 1e-3 and off(model, kept) < 1e-11
    z = randn(3, 9, 3)
    torch.testing.assert_close(model(z), plain(z), rtol=1e-10, atol=1e-11)
    assert found.actual == pytest.approx(free.actual, rel=1e-10)
    assert found.directions is not None
    moved = torch.cat([(a - b).reshape(-1) for a, b in zip(model.parameters(), rectified().parameters(), strict=True)])
    torch.testing.assert_close(found.directions[0], moved.detach(), rtol=1e-12, atol=1e-13)


def test_jumps_one_after_another_stay_on_the_manifold():
    model, (x, y) = rectified(5), data()
    kept, jumper = balance(model), js.Jumper(js.supervised(model, x, y, "mse"), keep_balance=True)
    losses = [jumper.jump().actual for _ in range(6)]
    assert losses[-1] < 0.6 * losses[0] and off(model, kept) < 1e-10


def test_a_loss_that_is_rounding_is_no_alarm():
    """At 1e-30 the loss of the same function differs by half of itself."""
    model, x = rectified(), randn(1, 4, 3)
    kept, jumper = balance(model), js.Jumper(js.supervised(model, x, randn(2, 4, 2), "mse"), keep_balance=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = [found.actual for _ in range(30) if (found := jumper.jump()).accepted]
    assert losses[-1] < 1e-26 and off(model, kept) < 1e-10


def test_single_precision_and_a_unit_that_is_off():
    model, (x, y) = rectified(), data()
    model = model.float()
    with torch.no_grad():
        model[2].weight[:, 3] = 0  # nothing behind this unit: scaling it means nothing
    kept = balance(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = js.jump(js.supervised(model, x.float(), y.float(), "mse"), keep_balance=True)
    assert found.accepted and off(model, kept) < 1e-4


class Reading(nn.Module):
    """Something besides the next layer reads the units."""

    def __init__(self) -> None:
        super().__init__()
        self.body = rectified()

    def forward(self, x):
        return self.body(x) + self.body[0](x)[:, :2]


def test_units_that_are_read_elsewhere_are_noticed():
    model, (x, y) = Reading(), data()
    twin = copy.deepcopy(model)
    with pytest.warns(RuntimeWarning, match="stays unbalanced"):
        found = js.jump(js.supervised(model, x, y, "mse"), keep_balance=True)
    free = js.jump(js.supervised(twin, x, y, "mse"))
    assert found.accepted and found.actual == free.actual
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_keeps_no_balance_is_refused():
    x, y = data()
    smooth = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), 0)
    frozen, decayed = rectified(), rectified()
    frozen[2].requires_grad_(False)
    adam = torch.optim.Adam(decayed.parameters())
    nn.functional.mse_loss(decayed(x), y).backward()
    adam.step()
    for model, options, said in (
        (smooth, {}, "no two Linear layers"),
        (frozen, {}, "have to move"),
        (decayed, {"weight_decay": 0.1}, "weight decay and an optimizer's metric do not"),
        (decayed, {"metric": adam}, "weight decay and an optimizer's metric do not"),
        (decayed, {"keep_balance": 1}, "give True or False"),
    ):
        before = [p.detach().clone() for p in model.parameters()]
        with pytest.raises(errors.InputError, match=said):
            js.jump(js.supervised(model, x, y, "mse"), **{"keep_balance": True, **options})
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_a_jump_leaves_the_balance_by_the_squares_of_its_own_displacement():
    """Jᵀg never changes a balance in first order, whatever g: without a correction the second order is all there is."""
    model, (x, y) = rectified(2), data()
    kept = balance(model)
    found = js.jump(js.supervised(model, x, y, "mse"), geodesic=False, chord_steps=0)
    assert found.accepted and found.directions is not None
    pieces, at = {}, 0
    for name, p in model.named_parameters():
        pieces[name] = found.directions[0][at : at + p.numel()].view(p.shape)
        at += p.numel()
    after = balance(model)
    for name, behind in (("0", "2"), ("2", "4")):
        squares = pieces[f"{name}.weight"].square().sum(1) + pieces[f"{name}.bias"].square()
        expected = squares - pieces[f"{behind}.weight"].square().sum(0)
        assert float(expected.abs().max()) > 1e-3
        torch.testing.assert_close(after[name] - kept[name], expected, rtol=1e-9, atol=1e-11)
