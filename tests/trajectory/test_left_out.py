"""Left-out runs, against runs that really leave the sample out."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart import errors
from jumpstart.trajectory import LeaveOneOut

from .test_recorder import SGD, Run, close


def without(make, i, steps, loss="mse"):
    """The output of sample i after a run without it; the others keep their share of the mean."""
    run = make()
    for _ in range(steps):
        run.optimizer.zero_grad()
        each = torch.stack([run.loss(run.model(run.x[[j]]), run.y[[j]]) for j in range(len(run.x)) if j != i])
        (each.sum() / len(run.x)).backward()
        run.optimizer.step()
    return run.model(run.x[[i]]).detach()[0]


def recorded(make, steps, **options):
    run = make()
    left_out = LeaveOneOut(run.objective, optimizer=run.optimizer, **options)
    for _ in range(steps):
        run.step()
        left_out.step()
    return run, left_out


OPTIMIZERS = {
    "SGD": lambda p: SGD(p, lr=0.1),
    "momentum": lambda p: SGD(p, lr=0.02, momentum=0.9),
    "decay": lambda p: SGD(p, lr=0.1, weight_decay=0.2),
}


@pytest.mark.parametrize("loss", ["mse", "logistic", "cross_entropy"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_of_a_linear_model_it_is_the_run_without_the_sample(name, loss):
    """For any loss: gradients are those at each run's own outputs."""

    def make():
        return Run(loss, layers=(nn.Linear(2, 3 if loss == "cross_entropy" else 1),), optimizer=OPTIMIZERS[name])

    run, left_out = recorded(make, 15)
    expected = torch.stack([without(make, i, 15) for i in range(9)])
    close(left_out.outputs(), expected, 1e-10)
    assert left_out.risk() == pytest.approx(float(run.loss(expected, run.y)), rel=1e-9)
    assert left_out.losses().shape == (9,)


@pytest.mark.parametrize("loss", ["mse", "logistic", "cross_entropy"])
def test_of_a_network_it_is_off_by_what_leaving_out_does_to_the_kernel(loss):
    """Less than what the samples matter at all, and less and less the shorter the run: by t² against t."""
    off = []
    for steps in (12, 6):
        make = lambda: Run(loss, optimizer=lambda p: SGD(p, lr=0.004))  # noqa: E731
        run, left_out = recorded(make, steps)
        expected = torch.stack([without(make, i, steps) for i in range(9)])
        matter = run.model(run.x).detach() - expected
        off.append(float((left_out.outputs() - expected).norm()))
        assert off[-1] < 0.1 * float(matter.norm())
    assert off[0] > 3 * off[1]


def test_a_record_begun_under_way_goes_on_with_what_the_optimizer_holds():
    def make():
        run = Run(layers=(nn.Linear(2, 1),), optimizer=OPTIMIZERS["momentum"])
        for _ in range(3):
            run.step()
        return run

    _, left_out = recorded(make, 6)
    close(left_out.outputs(), torch.stack([without(make, i, 6) for i in range(9)]), 1e-10)


def test_the_run_is_told_and_followed_as_by_a_recorder():
    run = Run()
    with LeaveOneOut(run.objective, optimizer=run.optimizer, every=2) as left_out, warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            run.step()
    assert left_out.outputs().shape == (9, 1) and left_out.columns.steps == 5 and left_out.strayed < 1e-2
    with pytest.raises(errors.InputError, match="LeaveOneOut: every=0"):
        LeaveOneOut(run.objective, optimizer=run.optimizer, every=0)
    with pytest.raises(errors.MemoryLimitError, match="params="):
        LeaveOneOut(run.objective, lr=0.1, memory_limit=3000)
    with pytest.raises(errors.InputError, match=r"js\.Objective"):
        LeaveOneOut(run.model, lr=0.1)


def test_it_reads_what_the_model_was_made_for():
    assert js.trajectory.LeaveOneOut is LeaveOneOut
