"""What goes in front of a network: what it is by hand, that derivative streams go through, and refusals."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import nn
from torch.func import grad

import jumpstart as js
from jumpstart import errors, features
from jumpstart.domains import Box

from .problems import fill, randn


def net(inputs):
    return fill(nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, 1)), 0)


def third(net, z):
    f = lambda z: net(z)[0]  # noqa: E731
    ux = lambda z: grad(f)(z)[0]  # noqa: E731
    return grad(f)(z)[1] + f(z) * ux(z) + grad(lambda z: grad(ux)(z)[0])(z)[0]


def zero_ends(x, u):
    return x[..., :1] * (1 - x[..., :1]) * u


FRONTS = {
    "scaled": lambda: features.Scaled((-1.0, 0.0), (1.0, 3.0)),
    "periodic": lambda: features.Periodic(2, {0: 2.0}),
    "periodic, harmonics": lambda: features.Periodic(2, {1: 0.7, 0: 2.0}, 3),
    "corner": lambda: features.Corner((3.0, 4.0), (9.0, 4.0), (3.0, 9.0), terms=3),
    "waves": lambda: features.Fourier(2, 5, scale=(1.0, 0.5), seed=3),
    "kink": lambda: features.Kink(0.3, 0.2, start=-9.0),
    "kink of a period, time first": lambda: features.Kink(0.3, 0.2, axis=1, time=0, start=-9.0, period=2.0),
    "side by side": lambda: features.Beside(features.Periodic(2, {0: 2.0}), features.Kink(0.3, 0.2, start=-9.0)),
}


@pytest.mark.parametrize("name", FRONTS)
def test_derivative_streams_go_through_and_agree_with_the_general_way(name):
    front = FRONTS[name]().double()
    model = features.Constrained(nn.Sequential(front, net(front.outputs)), zero_ends)
    points = randn(1, 9, 2)
    objective = js.residual(model, js.Term(third, points))
    assert objective.notes() == []
    rows = torch.stack([third(model, z) for z in points])
    assert objective.value(objective.theta()) == pytest.approx(0.5 * float(rows.detach().square().sum()), rel=1e-9)
    assert front(points).shape == (9, front.outputs) and front(points[0]).shape == (front.outputs,)
    again = pickle.loads(pickle.dumps(front))
    assert torch.equal(again(points), front(points))


def test_scaled_is_a_box_to_minus_one_and_one():
    box = Box((-1.0, 0.0), (3.0, 0.5))
    front = features.Scaled(box).double()
    corners = torch.tensor([[-1.0, 0.0], [3.0, 0.5], [1.0, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(front(corners), torch.tensor([[-1.0, -1], [1, 1], [0, 0]], dtype=torch.float64))


def test_periodic_has_its_periods_and_keeps_the_rest():
    front = features.Periodic(3, {2: 0.5, 0: 2.0}, harmonics=2)
    x = randn(2, 7, 3)
    moved = x + torch.tensor([4.0, 0.0, -1.5], dtype=torch.float64)
    torch.testing.assert_close(front(moved), front(x), rtol=0, atol=1e-12)
    assert torch.equal(front(x)[:, -1], x[:, 1]) and front.outputs == 9
    torch.testing.assert_close(front(x)[:, 2], torch.cos(2 * math.pi * 2 * x[:, 0] / 2))
    assert not torch.allclose(front(x + 0.3), front(x))


def test_waves_are_of_their_scale_frozen_and_by_seed():
    torch.manual_seed(0)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    front = features.Fourier(2, 4000, scale=(3.0, 0.5)).double()
    assert torch.equal(torch.rand(1), drawn)  # the global random state was left alone
    spread = (front.waves.weight / (2 * math.pi)).std(0)
    assert spread.tolist() == pytest.approx([3.0, 0.5], rel=0.05)
    assert not any(p.requires_grad for p in front.parameters())
    x = randn(3, 5, 2)
    torch.testing.assert_close(front(x)[:, :4000], torch.sin(x @ front.waves.weight.T))
    torch.testing.assert_close(front(x)[:, 4000:], torch.cos(x @ front.waves.weight.T))
    one, same, other = (features.Fourier(2, 3, seed=s).waves.weight for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("opening", [0.4, 1.0, 1.5, 1.9])
def test_a_corner_is_harmonic_zero_on_its_sides_and_what_it_is_by_hand(opening):
    angle, begin, at = opening * math.pi, 0.7, torch.tensor([0.3, -0.2], dtype=torch.float64)

    def place(theta, r):
        theta = torch.as_tensor(begin + theta, dtype=torch.float64)
        return at + torch.as_tensor(r, dtype=torch.float64)[..., None] * torch.stack([theta.cos(), theta.sin()], -1)

    sides = [place(0.0, 2.0).tolist(), place(angle, 0.5).tolist()]
    front = features.Corner(at.tolist(), *sides, terms=2).double()
    assert front.angle == pytest.approx(angle) and front.outputs == 4
    theta, r = angle * torch.linspace(0.01, 0.99, 60, dtype=torch.float64), 0.2 + randn(1, 60).abs()
    found = front(place(theta, r))
    torch.testing.assert_close(found[:, :2], place(theta, r))
    for k in (1, 2):  # across the whole angle: nowhere does it leap
        power = k * math.pi / angle
        torch.testing.assert_close(found[:, 1 + k], r**power * torch.sin(power * theta), rtol=1e-9, atol=1e-12)
        curved = torch.func.vmap(torch.func.hessian(lambda z, k=k: front(z)[1 + k]))(place(theta, r))
        assert float(curved.diagonal(dim1=1, dim2=2).sum(1).abs().max()) < 1e-8 * max(1.0, float(curved.abs().max()))
    assert float(front(torch.stack([place(0.0, 1.3), place(angle, 0.9)]))[:, 2:].abs().max()) < 1e-12


def test_a_corner_of_two_turns_is_a_slit():
    front = features.Corner((0, 0), (1, 0), (1, 0)).double()
    x = torch.tensor([[0.5, 1e-12], [0.5, -1e-12], [-0.25, 0.0]], dtype=torch.float64)
    assert front.angle == 2 * math.pi
    assert front(x)[:, 2].tolist() == pytest.approx([0.0, 0.0, 0.5], abs=1e-9)  # √r sin(θ/2)


@pytest.mark.parametrize("seed", range(3))
def test_a_kink_is_the_heat_that_flows_from_it(seed):
    """The oracle is the integral over the heat kernel; the equation itself; |s| at the start."""
    at, diffusion, start = (float(v) for v in randn(seed, 3).abs() + 0.1)
    front = features.Kink(at, diffusion, start=start)
    x, t = at + randn(seed + 10, 6), start + 0.05 + randn(seed + 20, 6).abs()
    spread = (2 * diffusion * (t - start)).sqrt()
    grid = torch.linspace(-12, 12, 200001, dtype=torch.float64)  # in standard deviations
    kernel = torch.exp(-0.5 * grid.square()) / math.sqrt(2 * math.pi)
    exact = torch.stack([
        torch.trapezoid((a - at + s * grid).abs() * kernel, grid) for a, s in zip(x, spread, strict=True)
    ])  # fmt: skip
    rows = torch.stack([x, t], 1)
    torch.testing.assert_close(front(rows)[:, 0], exact, rtol=1e-7, atol=1e-8)
    bent = torch.func.vmap(torch.func.hessian(lambda z: front(z)[0]))(rows)[:, 0, 0]
    slope = torch.func.vmap(grad(lambda z: front(z)[0]))(rows)[:, 1]
    torch.testing.assert_close(slope, diffusion * bent)
    first = torch.stack([x, torch.full_like(x, start)], 1)
    torch.testing.assert_close(front(first)[:, 0], (x - at).abs(), rtol=0, atol=1e-6)


def test_a_kink_of_a_period_is_there_once_a_period_and_smooth_elsewhere():
    front = features.Kink(1.0, 1e-4, period=2.0)
    x = torch.tensor([[0.3, 0.1], [2.3, 0.1], [-1.7, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(front(x), front(x[:1]).expand(3, 1))
    across = lambda at: torch.func.vmap(grad(lambda z: front(z)[0]))(  # noqa: E731
        torch.tensor([[at - 1e-3, 0.0], [at + 1e-3, 0.0]], dtype=torch.float64)
    )[:, 0].diff()  # fmt: skip
    assert float(across(1.0)) == pytest.approx(2.0, abs=1e-5) and float(across(-1.0)) == pytest.approx(2.0, abs=1e-5)
    assert abs(float(across(0.0))) < 1e-2
    near = torch.tensor([[1.0, 0.0], [1.0, 1e-30]], dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        third = torch.func.vmap(torch.func.jacfwd(torch.func.hessian(lambda z: front(z)[0])))(near.to(dtype))
        assert bool(third.isfinite().all())


def test_side_by_side_is_each_part_in_turn():
    parts = features.Periodic(2, {0: 2.0}), features.Fourier(2, 3, seed=1)
    x = randn(0, 5, 2).float()
    front = features.Beside(*parts)
    assert front.outputs == 9 and torch.equal(front(x), torch.cat([part(x) for part in parts], -1))
    assert features.Beside(nn.Identity(), parts[1]).outputs is None


def test_conditions_are_met_exactly():
    model = features.Constrained(net(2), zero_ends)
    ends = torch.tensor([[0.0, 0.3], [1.0, -2.0]], dtype=torch.float64)
    assert torch.equal(model(ends), torch.zeros(2, 1, dtype=torch.float64))


BAD = {
    "low above high": (lambda: features.Scaled((0.0, 1.0), (1.0, 0.0)), ["low below high"]),
    "no box": (lambda: features.Scaled(3.0), ["3.0", "low and high"]),
    "no periods": (lambda: features.Periodic(2, {}), ["{}", "{0: 2.0}"]),
    "an axis too many": (lambda: features.Periodic(2, {2: 1.0}), ["axis 2", "0 to 1"]),
    "a negative period": (lambda: features.Periodic(2, {0: -1.0}), ["-1.0"]),
    "no harmonics": (lambda: features.Periodic(2, {0: 1.0}, 0), ["harmonics=0"]),
    "no waves": (lambda: features.Fourier(2, 0), ["count=0"]),
    "scales of another number": (lambda: features.Fourier(2, 3, scale=(1.0, 2.0, 3.0)), ["each of 2"]),
    "an infinite scale": (lambda: features.Fourier(2, 3, scale=math.inf), ["inf"]),
    "a corner that is no point": (lambda: features.Corner((0, 0, 1), (1, 0), (0, 1)), ["(0, 0, 1)", "(x, y)"]),
    "a side without a direction": (lambda: features.Corner((0, 0), (0, 0), (0, 1)), ["the corner itself"]),
    "an infinite corner": (lambda: features.Corner((0, math.inf), (0, 0), (0, 1)), ["inf", "finite"]),
    "no terms": (lambda: features.Corner((0, 0), (1, 0), (0, 1), terms=0), ["terms=0"]),
    "a kink nowhere": (lambda: features.Kink(math.nan, 1.0), ["at=nan", "finite"]),
    "nothing spreads": (lambda: features.Kink(0.0, 0.0), ["diffusion=0.0", "positive"]),
    "no period": (lambda: features.Kink(0.0, 1.0, period=-2.0), ["period=-2.0", "positive"]),
    "a kink of no width": (lambda: features.Kink(0.0, 1.0, rounded=0.0), ["rounded=0.0", "positive"]),
    "no coordinate": (lambda: features.Kink(0.0, 1.0, axis=0.5), ["axis=0.5", "coordinate"]),
    "place and time in one": (lambda: features.Kink(0.0, 1.0, axis=1, time=1), ["axis=1", "two coordinates"]),
    "nothing beside": (lambda: features.Beside(features.Kink(0.0, 1.0)), ["Kink", "two"]),
    "no module beside": (lambda: features.Beside(features.Kink(0.0, 1.0), torch.sin), ["torch.nn.Modules"]),
    "no module": (lambda: features.Constrained(lambda x: x, zero_ends), ["torch.nn.Module"]),
    "no form": (lambda: features.Constrained(net(2), 3), ["function of coordinates"]),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_named(name):
    make, words = BAD[name]
    with pytest.raises(errors.InputError) as caught:
        make()
    assert all(word in str(caught.value) for word in words), str(caught.value)
