"""accelerate: its wrapper of optimizers around ours, and the loop as without it."""

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.integrations.told import inside

pytestmark = pytest.mark.integrations
accelerate = pytest.importorskip("accelerate")

STEPS, ROWS = 80, 1000


def run(parts, save=None, load=None, accumulate=1):
    torch.manual_seed(0)
    x = torch.randn(ROWS, 4)
    y = torch.sin(x.sum(1, keepdim=True))
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    inner = torch.optim.SGD(model.parameters(), 0.05)
    optimizer = js.JumpOptimizer(inner, js.supervised(model, x, y), skip=40)
    outer, backward, accumulating = optimizer, torch.Tensor.backward, None
    if parts:
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
        model, outer = accelerator.prepare(model, optimizer)
        backward, accumulating = accelerator.backward, accelerator.accumulate
        if load is not None:
            accelerator.load_state(str(load))
    assert inside(outer) is optimizer
    for _ in optimizer.steps(STEPS):
        for rows in torch.arange(ROWS).chunk(accumulate):
            if accumulating is None:
                backward(nn.functional.mse_loss(model(x[rows]), y[rows]) / accumulate)
            else:
                with accumulating(model):
                    backward(nn.functional.mse_loss(model(x[rows]), y[rows]))
                    outer.step()
                    outer.zero_grad()
        if accumulating is None:
            outer.step()
            outer.zero_grad()
        if save is not None and optimizer.taken == 8:
            accelerator.save_state(str(save))
    return torch.cat([p.detach().flatten() for p in model.parameters()]), optimizer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loop_is_the_one_without_it_to_the_bit(accumulate):
    (bare, one), (prepared, other) = run(False, accumulate=accumulate), run(True, accumulate=accumulate)
    assert (one.taken, one.skipped) == (other.taken, other.skipped)
    assert other.skipped >= 20
    assert torch.equal(bare, prepared)


def test_a_saved_run_goes_on_to_the_bit(tmp_path):
    whole, one = run(True, save=tmp_path)
    again, other = run(True, load=tmp_path)
    assert one.taken > 8
    assert (other.taken, other.skipped, other.effective_steps) == (one.taken, one.skipped, STEPS)
    assert torch.equal(whole, again)
