"""Points of a user's own function: taken, checked, refused."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch

from jumpstart.domains import Box, Interval, Sampler, as_domain
from jumpstart.errors import InputError, NonFiniteError, ShapeError


def gaussian(count, generator):
    return torch.randn(count, 3, generator=generator)


def near(count, generator):
    x = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    return (x**2).numpy()


def below(x):
    return x[:, 0] < 0.99


def global_numbers(count, generator):
    return torch.rand(count, 2)


def test_points_of_a_function():
    made = as_domain(gaussian)
    assert isinstance(made, Sampler) and made.dim == 3 and repr(made) == "Sampler(gaussian, dim=3)"
    x = made.points(100, seed=4)
    assert x.dtype == torch.float64 and x.shape == (100, 3)
    assert torch.equal(x, gaussian(100, torch.Generator().manual_seed(4)).double())
    assert torch.equal(x, made.points(100, seed=4)) and not torch.equal(x, made.points(100, seed=5))
    assert math.isnan(made.measure)
    assert as_domain(made) is made and made == Sampler(gaussian, dim=3)
    again = pickle.loads(pickle.dumps(made))
    assert again == made and torch.equal(again.points(3), made.points(3))


def test_a_default_device_of_the_users_is_not_in_the_way():
    torch.set_default_device("meta")
    try:
        x = Sampler(gaussian).points(5, seed=1)
    finally:
        torch.set_default_device(None)
    assert torch.equal(x, Sampler(gaussian).points(5, seed=1))


def test_arrays_and_what_is_inside():
    made = Sampler(near, 2, inside=lambda x: (x[:, 0] >= 0).numpy())
    assert made.points(10).shape == (10, 2) and "inside=" in repr(made)
    assert made.contains(torch.tensor([[0.5, 0.5], [-0.5, 0.5]])).tolist() == [True, False]


def test_what_it_gives_is_a_copy():
    kept = torch.zeros(2, 1, dtype=torch.float64)
    x = Sampler(lambda count, generator: kept[:count], dim=1).points(2)
    x += 1
    assert float(kept.sum()) == 0


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: as_domain(3), InputError, "a function of .count, generator.*got 3"),
        (lambda: as_domain(torch.zeros(3, 2)), InputError, r"got tensor of shape \(3, 2\)"),
        (lambda: as_domain(Box), InputError, "Box is a kind of domain"),
        (lambda: as_domain(lambda: None), InputError, r"must take \(count, generator\)"),
        (lambda: Sampler(3), InputError, "fn must be a function, got 3"),
        (lambda: Sampler(gaussian, inside=3), InputError, "inside must be a function"),
        (lambda: Sampler(gaussian, dim=0), InputError, "dim must be at least 1"),
        (lambda: Sampler(gaussian, dim=2), ShapeError, r"shape \(2, 2\), got tensor of shape \(2, 3\)"),
        (lambda: Sampler(lambda n, g: torch.zeros(n)), ShapeError, r"of shape \(2, dim\), got tensor of shape \(2,\)"),
        (lambda: Sampler(lambda n, g: torch.zeros(5, 2)), ShapeError, "asked for 2 points"),
        (lambda: Sampler(lambda n, g: [[0.0]] * n), InputError, "must return a tensor or an array"),
        (lambda: Sampler(lambda n, g: None), InputError, "got None"),
        (lambda: Sampler(lambda n, g: np.array([["a"]] * n)), InputError, "must return a tensor or an array"),
        (lambda: Sampler(lambda n, g: torch.zeros(n, 1, dtype=torch.cfloat)), InputError, "must return a tensor"),
        (
            lambda: Sampler(lambda n, g: torch.tensor([[0.0, 1.0], [math.nan, 2.0]])[:n]),
            NonFiniteError,
            r"of 2 points, 1 is \(the first is number 1, \(nan, 2\)\) not finite",
        ),
        (lambda: Sampler(global_numbers), InputError, "Draw with the generator"),
        (lambda: Sampler(near, inside=below).points(1000), InputError, r"of 1000 points, \d+ are .* outside, by below"),
        (lambda: Sampler(near, inside=lambda x: x), ShapeError, "must return 2 bools"),
        (lambda: Sampler(near, inside=lambda x: True), ShapeError, "must return 2 bools, got True"),
        (lambda: Sampler(near).contains(torch.zeros(2, 2)), InputError, "inside=…"),
        (lambda: Sampler(near).boundary(), InputError, "a Sampler that draws from it"),
        (lambda: Sampler(near).points(0), InputError, "at least 1, got 0"),
        (lambda: Box((0, 0), (1, 1)) | Sampler(near), InputError, "cannot be composed"),
        (lambda: Interval(0, 1) * Sampler(near), InputError, "cannot be composed"),
        (lambda: Sampler(near) * Interval(0, 1), InputError, "cannot be composed"),
    ],
)
def test_refusals(make, kind, words):
    with pytest.raises(kind, match=words):
        make()


def test_errors_of_the_function_are_its_own():
    def broken(count, generator):
        raise KeyError("mesh")

    with pytest.raises(KeyError, match="mesh"):
        as_domain(broken)
