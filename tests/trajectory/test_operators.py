"""What is read off from operators: channel and reservoir, where a vector lies, few modes, the readout, files."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from jumpstart import errors, trajectory

from ..problems import randn
from .test_recorder import SGD, Run, close


def recorded(steps=30, **options):
    """A run in which some directions have been learned and others hardly begun."""
    run = Run(n=12, layers=(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), optimizer=lambda p: SGD(p, lr=0.1))
    return run, run.record(steps, **options).operators()


def test_channel_and_reservoir_split_the_outputs_by_the_spectrum():
    _, operators = recorded()
    values = operators.spectrum
    assert bool((values.diff() <= 0).all()) and float(values[-1]) > -1e-12
    close(values.sum(), operators.dissipation.trace())
    for tolerance in (1e-1, 1e-3, 1e-6):
        channel, reservoir = operators.channel(tolerance), operators.reservoir(tolerance)
        r = operators.rank(tolerance)
        assert channel.shape == (12, r) and reservoir.shape == (12, 12 - r)
        both = torch.cat([channel, reservoir], 1)
        close(both.T @ both, torch.eye(12).double(), 1e-12)
        inside = channel.T @ operators.dissipation @ channel
        assert float(torch.linalg.eigvalsh(inside).min()) > tolerance * float(values[0]) * 0.999
    assert operators.rank(1e-1) < operators.rank(1e-6)
    shares = values.clamp_min(0) / values.clamp_min(0).sum()
    assert operators.effective_rank == pytest.approx(math.exp(-sum(float(p) * math.log(p) for p in shares if p > 0)))


def test_what_lies_in_the_reservoir_hardly_moves_anything():
    """ker W_S ⊆ ker G_Q, with a bound: ‖G_Q v‖² ≤ reach · vᵀ A v for every v."""
    for optimizer in (
        lambda p: SGD(p, lr=0.1),
        lambda p: SGD(p, lr=0.03, momentum=0.8),
        lambda p: torch.optim.Adam(p, lr=3e-3),
    ):
        operators = Run(n=12, optimizer=optimizer).record(40).operators()
        v = torch.cat([operators.reservoir(0.1), randn(0, 12, 20)], 1)
        moved = (operators.transfer @ v).square().sum(0)
        bound = operators.reach * (v * (operators.action @ v)).sum(0)
        assert bool((moved <= bound * (1 + 1e-9)).all())
        assert float(moved.min()) < 0.1 * float(moved.max())


def test_action_and_dissipation_become_one_as_steps_become_small():
    apart = []
    for rate in (0.08, 0.04):
        operators = Run(optimizer=lambda p, rate=rate: SGD(p, lr=rate)).record(round(2 / rate)).operators()
        apart.append(float((operators.action - operators.dissipation).norm() / operators.dissipation.norm()))
    assert apart[0] < 0.2 and apart[1] == pytest.approx(apart[0] / 2, rel=0.15)


def test_where_a_vector_lies_adds_up():
    _, operators = recorded()
    inside, outside = operators.channel(1e-2)[:, 0], operators.reservoir(1e-2)[:, -1]
    here = operators.where(inside + 2 * outside, 1e-2)
    assert (here.channel, here.reservoir, here.spanned) == pytest.approx((0.2, 0.8, 1.0))
    assert here.visible + here.invisible == pytest.approx(1.0)
    _, _, rows = torch.linalg.svd(operators.transfer)
    assert operators.where(rows[-1], 1e-12).visible == pytest.approx(0.0, abs=1e-9)
    assert operators.where(rows[0], 1e-12).visible == pytest.approx(1.0)
    _, few = recorded(modes=3)
    assert few.where(few.gradient).spanned == pytest.approx(1.0)
    assert few.where(few.reservoir(0.5)[:, 0]).spanned == pytest.approx(1.0)
    assert few.where(randn(3, 12, 1)).spanned < 0.9
    assert Run().record(1).operators().where(operators.gradient[:9]).visible is not None
    with pytest.raises(errors.InputError, match="no length"):
        operators.where(torch.zeros(12))
    with pytest.raises(errors.ShapeError, match="12 outputs"):
        operators.where(torch.ones(5))


def test_few_modes_miss_no_more_than_the_bound():
    _, operators = recorded()
    full = operators.transfer @ operators.coordinates(operators.gradient)
    missed = []
    for rank in range(13):
        transfer, bound = operators.truncated(rank)
        off = float((transfer @ operators.coordinates(operators.gradient) - full).norm())
        assert off <= bound * (1 + 1e-9) + 1e-12
        missed.append(bound)
    assert missed == sorted(missed, reverse=True) and missed[-1] == 0.0 and missed[0] > 10 * missed[6]
    close(operators.truncated(12)[0], operators.transfer)
    for rank in (-1, 13, 2.0, True):
        with pytest.raises(errors.InputError, match="0 to 12"):
            operators.truncated(rank)


def test_the_readout_makes_moves_at_queries_of_moves_of_the_samples():
    """Where the samples' moves say all (as many gradients as outputs move), A∘ D = G in the channel."""
    run, operators = recorded(400)
    readout = operators.readout(1e-12)
    channel = operators.channel(1e-3)
    assert readout.shape == (4, 12)
    close(readout @ operators.displacement @ channel, operators.transfer @ channel, 1e-4)
    moved = operators.displacement @ operators.gradient
    close(readout @ moved, operators.transfer @ operators.gradient, 1e-3)
    alone = trajectory.Recorder(run.objective, optimizer=run.optimizer)
    run.step()
    alone.step()
    with pytest.raises(errors.InputError, match="no queries"):
        alone.operators().readout()


def test_saved_operators_are_the_same(tmp_path):
    for options in ({}, {"modes": 3}, {"modes": 3, "memory_limit": 3250}):
        _, operators = recorded(4, **options)
        again = trajectory.load(operators.save(tmp_path / "run.npz"))
        for name in ("propagator", "dissipation", "displacement", "transfer", "action", "gradient"):
            assert torch.equal(getattr(again, name), getattr(operators, name))
        assert (again.time, again.steps, again.fall, again.identities) == (
            operators.time, operators.steps, operators.fall, operators.identities,
        )  # fmt: skip
        assert (again.basis is None) == (operators.basis is None)
        assert again.reach == operators.reach or (math.isnan(again.reach) and math.isnan(operators.reach))
    (tmp_path / "other.npz").write_bytes(b"no file of ours")
    with pytest.raises(errors.ArchiveError):
        trajectory.load(tmp_path / "other.npz")


def test_tolerances_that_are_no_share_are_refused():
    _, operators = recorded(2)
    for tolerance in (-0.1, 1.0, math.nan, True, "small"):
        with pytest.raises(errors.InputError, match="share of the largest"):
            operators.channel(tolerance)
