"""Averages of weights, against torch.optim.swa_utils."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import jumpstart as js
from jumpstart.errors import InputError
from jumpstart.training.proposals import Average
from jumpstart.training.proposals.proposal import present

from ...problems import randn
from .here import here


def test_the_means_are_torchs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x, y = randn(0, 20, 4), randn(1, 20, 1)
    objective = js.supervised(model, x, y)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    average = Average(interval=2, last=5, decay=0.7)
    swa, ema = AveragedModel(model), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7))
    for step in range(1, 21):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        if average.wants(step, lambda at: False):
            average.keep(step, present(optimizer))
            ema.update_parameters(model)
            if step > 10:
                swa.update_parameters(model)
    seen = [torch.cat([weights[place].reshape(-1) for place in range(4)]) for weights in average.seen()]
    mean, moving = average.propose(here(objective, seen))
    for found, truth in ((mean, swa), (moving, ema)):
        target = torch.cat([p.detach().reshape(-1) for p in truth.module.parameters()])
        assert torch.allclose(objective.theta() + found.displacement, target, rtol=1e-12)
        assert found.loss == pytest.approx(float(nn.functional.mse_loss(truth(x), y).detach()), rel=1e-9)


def test_a_loop_of_noise_takes_its_average_at_the_end_alone():
    torch.manual_seed(0)
    model = nn.Linear(5, 1).double()
    x, y = randn(0, 60, 5), randn(1, 60, 1)
    outcomes = {}
    for adopt in ("end", "always", "never"):
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        optimizer = js.JumpOptimizer(
            torch.optim.SGD(model.parameters(), 0.2), js.supervised(model, x, y), actions=[Average(adopt=adopt)]
        )
        torch.manual_seed(1)
        for _ in optimizer.steps(225):
            rows = torch.randint(60, (4,))
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x[rows]), y[rows]).backward()
            optimizer.step()
        outcomes[adopt] = [result.outcome.name for result in optimizer.results]
    assert set(outcomes["end"][:-1]) <= {"BETTER", "NOTHING", "NOT_BEYOND_NOISE"} and outcomes["end"][-1] == "MOVED"
    assert "MOVED" in outcomes["always"] and "BETTER" not in outcomes["always"]
    assert "MOVED" not in outcomes["never"] and "BETTER" in outcomes["never"]


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"adopt": "sometimes"}, {"last": 1}, {"interval": 0}])
def test_options_that_are_none_are_refused(options):
    with pytest.raises(InputError, match=f"{next(iter(options))}="):
        Average(**options)
