"""Schedulers are followed over a skip and moved on by it: afterwards they are where as many real steps leave them."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch.optim import lr_scheduler as L

import jumpstart as js

from .loops import draw, miss, plain, same
from .optimizers import net


def warm(k):
    return min(1.0, (k + 1) / 40)


class Growing:
    """A rate as an object with a state of its own."""

    def __init__(self):
        self.calls = 0

    def __call__(self, k):
        self.calls += 1
        return 1 / (1 + 0.01 * self.calls)


class Alternating(L.LRScheduler):
    """One written by hand, with a state of its own."""

    def __init__(self, optimizer):
        self.seen = []
        super().__init__(optimizer)

    def get_lr(self):
        self.seen.append(self.last_epoch)
        return [base * (0.8 if len(self.seen) % 3 else 1.0) for base in self.base_lrs]


SCHEDULERS = {
    "StepLR": lambda o: L.StepLR(o, 7, 0.6),
    "MultiStepLR": lambda o: L.MultiStepLR(o, [22, 26, 30], 0.5),
    "LambdaLR": lambda o: L.LambdaLR(o, warm),
    "LambdaLR of an object": lambda o: L.LambdaLR(o, Growing()),
    "MultiplicativeLR": lambda o: L.MultiplicativeLR(o, lambda k: 0.99),
    "ExponentialLR": lambda o: L.ExponentialLR(o, 0.97),
    "CosineAnnealingLR": lambda o: L.CosineAnnealingLR(o, 50),
    "restarts": lambda o: L.CosineAnnealingWarmRestarts(o, 12, 2),
    "PolynomialLR": lambda o: L.PolynomialLR(o, 60, 2.0),
    "LinearLR": lambda o: L.LinearLR(o, 0.2, 1.0, 35),
    "ConstantLR": lambda o: L.ConstantLR(o, 0.5, 25),
    "OneCycleLR": lambda o: L.OneCycleLR(o, 0.006, 60),
    "CyclicLR": lambda o: L.CyclicLR(o, 0.001, 0.02, 9, cycle_momentum="momentum" in o.defaults),
    "CyclicLR scaled": lambda o: L.CyclicLR(o, 0.001, 0.02, 9, scale_fn=lambda x: 0.9**x, cycle_momentum=False),
    "SequentialLR": lambda o: L.SequentialLR(o, [L.LinearLR(o, 0.1, 1.0, 10), L.StepLR(o, 6, 0.7)], [24]),
    "ChainedScheduler": lambda o: L.ChainedScheduler([L.ConstantLR(o, 0.5, 25), L.ExponentialLR(o, 0.98)], optimizer=o),
    "by hand": Alternating,
}
MAKES = {
    "SGD": lambda p: torch.optim.SGD(p, 0.005),
    "momentum": lambda p: torch.optim.SGD(p, 0.005, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.002),
    "rate as a tensor": lambda p: torch.optim.AdamW(p, torch.tensor(0.002, dtype=torch.float64)),
}


def started(kind, make, seed=1):
    """A loop, some steps on, and one that was copied from it."""
    loop = draw(seed, MAKES[make], loss="mse", warm=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop.scheduler = SCHEDULERS[kind](loop.optimizer)
        loop.take(20)
        return loop, loop.twin()


def rates(optimizer):
    """All that schedulers move: rates, momenta and betas."""
    keys = ("lr", "momentum", "betas", "initial_lr", "max_lr", "min_lr")
    return [[float(v) for key in keys if key in g for v in (g[key] if isinstance(g[key], tuple) else (g[key],))]
            for g in optimizer.param_groups]  # fmt: skip


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_rates_afterwards_are_those_of_as_many_steps_exactly(kind, make):
    if kind.startswith("OneCycle") and make == "SGD":
        pytest.skip("it cycles a momentum")
    if kind.startswith("CyclicLR") and make == "SGD":
        pytest.skip("the same as with momentum")
    loop, twin = started(kind, make)
    start = loop.outputs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = loop.skip(12)
        assert result.steps >= 2, result
        twin.take(result.steps)
        assert rates(loop.optimizer) == rates(twin.optimizer)
        assert same(plain(loop.scheduler), plain(twin.scheduler))
        assert miss(start, loop, twin) < 0.2
        for _ in range(6):  # and they go on as one
            loop.take(1)
            twin.take(1)
            assert rates(loop.optimizer) == rates(twin.optimizer)
    assert loop.scheduler.optimizer is loop.optimizer
    assert all(inner.optimizer is loop.optimizer for inner in getattr(loop.scheduler, "_schedulers", []))


def test_a_schedule_by_epochs_that_is_left_out_keeps_its_rate():
    loop = draw(1, MAKES["momentum"], loss="mse")
    scheduler = L.StepLR(loop.optimizer, 1, 0.5)
    before = copy.deepcopy(plain(scheduler))
    assert js.skip(loop.objective(), loop.optimizer, 10).steps > 0
    assert same(plain(scheduler), before)
    assert loop.optimizer.param_groups[0]["lr"] == 0.005


def test_groups_have_their_own_schedules():
    def make(parameters):
        first, *rest = parameters
        return torch.optim.AdamW([{"params": [first], "lr": 0.001}, {"params": rest}], 0.002)

    loop = draw(2, make, loss="mse", warm=0)
    loop.scheduler = L.LambdaLR(loop.optimizer, [lambda k: 0.99**k, lambda k: 0.97**k])
    loop.take(10)
    twin = loop.twin()
    result = loop.skip(10)
    assert result.steps >= 4
    assert rates(loop.optimizer) == rates(twin.take(result.steps).optimizer)


def test_another_optimizers_scheduler_is_refused_and_what_waits_for_a_metric():
    loop = draw(1, MAKES["momentum"], loss="mse")
    other = torch.optim.SGD(net().parameters(), 0.7)
    with pytest.raises(js.errors.InputError, match=r"scheduler=StepLR moves the rates of another optimizer, a SGD"):
        js.skip(loop.objective(), loop.optimizer, scheduler=L.StepLR(other, 1))
    with pytest.raises(js.errors.InputError, match="another optimizer"):
        js.JumpOptimizer(loop.optimizer, loop.objective(), scheduler=L.StepLR(other, 1))
    with pytest.raises(js.errors.InputError, match="ReduceLROnPlateau"):
        js.skip(loop.objective(), loop.optimizer, scheduler=L.ReduceLROnPlateau(loop.optimizer))
    with pytest.raises(js.errors.InputError, match="scheduler='cosine'"):
        js.skip(loop.objective(), loop.optimizer, scheduler="cosine")
    assert loop.optimizer.param_groups[0]["lr"] == 0.005


def test_torchs_warnings_of_the_order_of_calls_stay_the_loops_own():
    loop, _ = started("StepLR", "momentum")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loop.skip(10).steps > 0
        loop.take(2)
