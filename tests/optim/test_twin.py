"""A copy of an optimizer takes the very step that the original would take, and nobody else notices."""

import copy
import warnings

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.optim.twin import Changes, Twin
from jumpstart.training.next_step import NextStep

from ..training.wrapped_runs import OPTIMIZERS


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    return model, torch.randn(12, 3).double(), torch.randn(12, 2).double()


def step(model, x, y, optimizer):
    optimizer.zero_grad()
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()


def tensors(optimizer):
    return [v.clone() for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_its_step_is_the_originals_to_the_bit(name):
    if not hasattr(torch.optim, name) and name == "Adafactor":
        pytest.skip("this torch has no Adafactor")
    model, x, y = problem()
    optimizer = OPTIMIZERS[name](model.parameters(), 1.0)
    called = []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    for _ in range(3):
        step(model, x, y, optimizer)
        scheduler.step()
    before, weights = tensors(optimizer), [p.detach().clone() for p in model.parameters()]
    optimizer.zero_grad()
    nn.functional.mse_loss(model(x), y).backward()
    twin = Twin(optimizer)
    twin.step({p: p.grad for p in model.parameters()})
    assert len(called) == 3
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(optimizer), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    optimizer.step()
    for p in model.parameters():
        assert torch.equal(twin[p], p)


def test_changes_are_made_in_place_and_taken_back():
    model, x, y = problem()
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    step(model, x, y, optimizer)
    first = model[0].weight
    held, before = optimizer.state[first]["exp_avg"], copy.deepcopy(optimizer.state_dict())
    twin = Twin(optimizer)
    twin.optimizer.state[twin[first]]["exp_avg"].fill_(7.0)
    twin.optimizer.param_groups[0]["lr"] = 0.3
    changes = twin.changes()
    back = changes.reverse()
    assert isinstance(back, Changes)
    twin.optimizer.state[twin[first]]["exp_avg"].zero_()  # the copy goes on
    assert str(optimizer.state_dict()) == str(before)
    changes.apply()
    assert optimizer.state[first]["exp_avg"] is held
    assert bool((held == 7.0).all())
    assert optimizer.param_groups[0]["lr"] == 0.3
    back.apply()
    assert str(optimizer.state_dict()) == str(before)


# ---- the look at the next step ---------------------------------------------------------------------------------------


def valley(after, momentum=0.9):
    """A jump into a narrow valley, with a velocity that leads out of it; the loss before, and after the next step."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.randn(20, 2).double()
    y = torch.sin(3 * x.sum(1, keepdim=True))
    inner = torch.optim.SGD(model.parameters(), 0.3, momentum=momentum)
    optimizer = js.JumpOptimizer(inner, js.supervised(model, x, y), at=(), after=after, search=True)
    for _ in range(4):
        step(model, x, y, optimizer)
    for p in model.parameters():
        inner.state[p]["momentum_buffer"].fill_(2.0)
    before = nn.functional.mse_loss(model(x), y).item()
    result = optimizer.jump()
    moments = [inner.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    step(model, x, y, optimizer)
    return result, before, nn.functional.mse_loss(model(x), y).item(), moments


def test_moments_that_would_undo_a_jump_are_let_go():
    result, before, after, moments = valley("keep")
    assert result.accepted
    assert after <= before
    assert all(bool((moment != 2.0).all()) for moment in moments)


def test_they_would_undo_it(monkeypatch):
    """The test above can fail."""
    monkeypatch.setattr(NextStep, "_stays", lambda *_: True)
    result, before, after, moments = valley("keep")
    assert result.accepted
    assert after > before
    assert all(bool((moment == 2.0).all()) for moment in moments)


def test_a_jump_that_any_next_step_would_undo_is_rejected():
    """A rate far above what the new point bears: no moments help."""
    model, x, y = problem()
    inner = torch.optim.SGD(model.parameters(), 1e-3)
    optimizer = js.JumpOptimizer(inner, js.supervised(model, x, y), at=(), search=True)
    step(model, x, y, optimizer)
    inner.param_groups[0]["lr"] = 1e6
    before = copy.deepcopy(model.state_dict())
    result = optimizer.jump()
    assert result.outcome is js.Outcome.UNDONE
    assert not result.accepted
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_a_step_that_cannot_be_tried_is_said():
    class Needs(torch.optim.SGD):
        def step(self, closure=None):
            if closure is None:
                raise TypeError("a closure, please")
            return super().step(closure)

    model, x, y = problem()
    optimizer = js.JumpOptimizer(Needs(model.parameters(), 0.1), js.supervised(model, x, y), at=(), search=True)
    with pytest.warns(RuntimeWarning, match="Needs.*a closure, please"):
        assert optimizer.jump().accepted


def test_statistics_that_the_loop_would_move_are_part_of_the_next_step():
    """BatchNorm in train mode, an objective in eval mode with statistics far off: the next pass changes everything."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.randn(20, 3).double()
    y = torch.sin(x.sum(1, keepdim=True))
    with torch.no_grad():
        model[1].running_mean.fill_(30.0)
        model[1].running_var.fill_(400.0)
    model[1].momentum = 1.0  # one pass replaces them
    inner = torch.optim.SGD(model.parameters(), 1e-4)
    optimizer = js.JumpOptimizer(inner, js.supervised(model, x, y, training=False), at=(), search=True)
    assert optimizer.jump().outcome is js.Outcome.UNDONE
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert optimizer.jump().accepted
