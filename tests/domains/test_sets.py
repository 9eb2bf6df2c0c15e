"""Every domain alike: points belong to it, come again, are those of its measure, survive pickling."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch

from jumpstart import domains
from jumpstart.domains import as_domain

from .sets import ROWS

COUNT = 1000


@pytest.fixture(params=ROWS, scope="module")
def row(request):
    return ROWS[request.param]


def test_points_are_in_the_set_by_its_own_word_and_by_a_formula(row):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of scipy's, about counts that are no power of two
        x = row.domain.points(COUNT, seed=3)
    assert x.shape == (COUNT, row.dim) and x.dtype == torch.float64 and x.device.type == "cpu"
    assert bool(torch.isfinite(x).all())
    found = row.domain.contains(x)
    assert found.shape == (COUNT,) and found.dtype == torch.bool and bool(found.all())
    assert row.inside(x.numpy()).all()
    assert bool(row.domain.contains(x.float()).all()), "the rounding of float32 puts no point outside"
    assert bool(row.domain.contains(x.numpy()).all())


def test_dimension_and_measure(row):
    assert (row.domain.dim, row.domain.intrinsic_dim) == (row.dim, row.intrinsic_dim)
    assert row.domain.measure == pytest.approx(row.measure, rel=1e-12 if row.exact else 2e-3)


def test_points_are_the_same_again_and_others_with_another_seed(row):
    x = row.domain.points(COUNT, seed=1)
    assert torch.equal(x, row.domain.points(COUNT, seed=1))
    assert torch.equal(x[:100], row.domain.points(100, seed=1)), "fewer are the first of more"
    other = row.domain.points(COUNT, seed=2)
    assert row.intrinsic_dim == 0 or not bool((x[:, None] == other[None]).all(-1).any())
    assert torch.equal(row.domain.points(7), row.domain.points(7, seed=0))


def test_a_domain_is_a_value(row):
    again = pickle.loads(pickle.dumps(row.domain))
    assert again == row.domain and hash(again) == hash(row.domain) and repr(again) == repr(row.domain)
    assert torch.equal(again.points(50), row.domain.points(50))
    with pytest.raises(AttributeError):
        row.domain.dim = 7
    assert as_domain(row.domain) is row.domain


def test_its_repr_is_what_makes_it(row):
    names = {name: getattr(domains, name) for name in domains.__all__}
    made = eval(repr(row.domain), names)
    assert made == row.domain and len(repr(row.domain)) < 160


def test_points_off_the_set_are_not_in_it(row):
    x = row.domain.points(COUNT, seed=5).numpy()
    beside = x + 1e-3 * np.random.default_rng(0).standard_normal(x.shape)
    found = row.domain.contains(beside).numpy()
    if row.intrinsic_dim < row.dim:
        assert not found.any()
    else:
        assert (found == row.inside(beside)).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in (float("nan"), float("inf"), -float("inf")):
            assert not bool(row.domain.contains(torch.full((2, row.dim), value)).any())
    assert not bool(row.domain.contains(x + 1e3).any())


def test_points_move_no_random_state_and_heed_no_default(row):
    torch.manual_seed(0)
    np.random.seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    x = row.domain.points(10)
    assert torch.equal(before, torch.get_rng_state()) and (numpy_before == np.random.get_state()[1]).all()
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float16)
        torch.set_default_device("meta")
        same = row.domain.points(10)
        inside = row.domain.contains(x)
    finally:
        torch.set_default_dtype(default)
        torch.set_default_device(None)
    assert torch.equal(x, same) and bool(inside.all())
