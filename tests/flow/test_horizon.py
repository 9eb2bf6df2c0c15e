"""Horizons and their filter φ, against exact rational and decimal arithmetic."""

from __future__ import annotations

import decimal
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

import jumpstart as js
from jumpstart.flow.horizon import Times, parse, phi

RATES = [0.0, 1e-300, 1e-18, 1e-9, 1e-3, 0.7, 1.0, 3.0, 1e4, 1e12]


def exact_phi(rate: float, t: float) -> float:
    if math.isinf(t):
        return 1 / rate if rate else 0.0
    if rate == 0:
        return t
    with decimal.localcontext() as context:
        context.prec = 400
        lam, time = decimal.Decimal(rate), decimal.Decimal(t)
        return float((1 - (-lam * time).exp()) / lam) if rate * t < 1e5 else 1 / rate


@pytest.mark.parametrize("t", [0.0, 1e-300, 1e-12, 1e-3, 1.0, 37.0, 1e9, 1e200, math.inf])
def test_phi_in_flow_time(t):
    found = phi(torch.tensor(RATES, dtype=torch.float64), parse(t))[0].tolist()
    for rate, value in zip(RATES, found, strict=True):
        exact = exact_phi(rate, t)
        if 0 < rate * t < 1e-290:
            continue  # the product is subnormal in float64
        assert value == pytest.approx(exact, rel=1e-14, abs=0.0), (rate, t)


@pytest.mark.parametrize(("count", "lr"), [(0, 0.1), (1, 0.1), (7, 0.3), (1000, 1e-9), (50, 2.5), (33, 1e-3)])
def test_phi_in_steps_equals_rational_arithmetic(count, lr):
    rates = [0.0, 1e-18, 1e-9, 1e-3, 0.2, 0.5 / lr, 0.49 / lr, 0.999 / lr, 1 / lr, 1.7 / lr, 2 / lr, 2.2 / lr]
    found = phi(torch.tensor(rates, dtype=torch.float64), js.steps(count, lr))[0].tolist()
    for rate, value in zip(rates, found, strict=True):
        step = Fraction(lr) * Fraction(rate)
        exact = (1 - (1 - step) ** count) / Fraction(rate) if rate else Fraction(lr) * count
        # The rounding of s is amplified m times in (1 − s)^m, and stays where that cancels against 1 (s near 2).
        left = 1e-15 * max(1, count) * max(1.0, abs(float(1 - step))) ** count / rate if step > 0.5 else 0.0
        assert value == pytest.approx(float(exact), rel=1e-13, abs=left), rate


def test_many_horizons_stack():
    rates = torch.tensor(RATES, dtype=torch.float64)
    times = [0.0, 1e-5, 2.0, math.inf]
    many = phi(rates, parse(torch.tensor(times, dtype=torch.float64)))
    assert torch.equal(many, torch.cat([phi(rates, parse(t)) for t in times]))


@pytest.mark.parametrize("t", [3, 0.5, np.float32(0.5), np.int64(3), torch.tensor(2.0), math.inf, torch.tensor(7)])
def test_scalars_parse(t):
    assert parse(t) == Times((float(t),), True)


@pytest.mark.parametrize(
    "t", [-1.0, math.nan, -math.inf, "soon", None, True, [1.0], torch.ones(2, 2), torch.tensor([1.0, -2.0]), 1j]
)
def test_no_horizons(t):
    with pytest.raises(js.errors.HorizonError, match="flow time"):
        parse(t)


@pytest.mark.parametrize(
    ("count", "lr"),
    [(-1, 0.1), (1.5, 0.1), (math.nan, 0.1), (math.inf, 0.1), ("3", 0.1), (None, 0.1), (True, 0.1), (3, 0.0),
     (3, -1.0), (3, math.nan), (3, math.inf), (3, "fast")],
)  # fmt: skip
def test_no_steps(count, lr):
    with pytest.raises(js.errors.HorizonError, match="steps"):
        js.steps(count, lr)


def test_steps_know_their_time():
    assert js.steps(10, 0.25).time == 2.5
    assert js.steps(10.0, 0.25) == js.steps(np.int64(10), np.float32(0.25)) == js.steps(10, 0.25)
