"""A factor between a loop's gradients and the objective's is found through the noise of both."""

from __future__ import annotations

import pytest
import torch

from jumpstart.training.scale import LOOKS, Scale


def seen(times, noise, rate, looks, seed, size=200):
    """Gradients of minibatches of a mean of length 1, and of samples with so many times as many rows (None: all)."""
    g = torch.Generator().manual_seed(seed)
    mean = torch.randn(size, generator=g).double()
    mean /= mean.norm()
    scale = Scale()
    for _ in range(looks):
        first, second = (torch.randn(size, generator=g).double() * noise / size**0.5 for _ in range(2))
        own = mean if rate is None else mean + second / rate**0.5
        scale = scale.including(times * (mean + first), own)
    return scale


@pytest.mark.parametrize("rate", [None, 1.0, 4.0, 16.0])
@pytest.mark.parametrize("noise", [0.1, 1.0, 10.0])
def test_no_factor_is_seen_where_there_is_none(noise, rate):
    assert not any(seen(1.0, noise, rate, looks, seed).surely(rate) for looks in (3, 10) for seed in range(20))


@pytest.mark.parametrize("rate", [4.0, 16.0])
@pytest.mark.parametrize("times", [0.05, 1.0, 32.0])
@pytest.mark.parametrize("noise", [0.1, 1.0, 10.0])
def test_the_factor_is_found(times, noise, rate):
    scale = seen(times, noise, rate, 20, 1)
    assert scale.times(rate) == pytest.approx(times, rel=0.35)
    assert scale.surely(rate) == (times != 1.0)


def test_of_all_data_it_is_the_mean_share():
    assert seen(32.0, 1.0, None, 20, 1).times(None) == pytest.approx(32.0, rel=0.2)
    assert seen(32.0, 1.0, None, 20, 1).surely(None)


def test_few_looks_are_not_enough():
    assert not seen(32.0, 0.1, None, LOOKS - 1, 1).surely(None)
