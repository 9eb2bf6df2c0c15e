"""Losses against torch.nn.functional and autograd: value, gradient, Hessian products, square roots."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from jumpstart import errors
from jumpstart.losses.base import require_convex
from jumpstart.losses.convex import Convex
from jumpstart.losses.cross_entropy import CrossEntropy
from jumpstart.losses.logistic import Logistic
from jumpstart.losses.named import as_loss
from jumpstart.losses.squared import Squares, mse
from jumpstart.losses.weighted import weighted

from ..problems import classes, generator, randn, relative
from .rows import CW, POSITIVE, QUADRATIC, REAL, ROWS, W6, bound, mean_over, smooth_distance


@pytest.mark.parametrize("scale", [1.0, 15.0])
@pytest.mark.parametrize("name", ROWS)
def test_value_gradient_and_hessian_against_autograd(name, scale):
    row = ROWS[name]
    for seed in (0, 1):
        u = row.outputs(seed, scale)
        loss, reference = bound(name, u), lambda v: row.reference(v, row.targets)
        exact = float(reference(u))
        assert float(loss.value(u)) == pytest.approx(exact, rel=1e-12, abs=1e-15)
        assert loss.per_sample(u).shape == u.shape[:1]
        assert float(loss.per_sample(u).sum()) == pytest.approx(exact, rel=1e-12, abs=1e-15)
        grad, hessian = torch.func.grad(reference)(u), torch.func.hessian(reference)(u)
        v, size = randn(seed + 9, *u.shape), u.numel()
        h = hessian.reshape(size, size)
        product = (h @ v.reshape(-1)).view_as(u)
        largest = float(grad.abs().max())
        assert torch.allclose(loss.grad(u), grad, rtol=1e-11, atol=1e-14 * (1 + largest))
        assert torch.allclose(loss.hvp(u, v), product, rtol=1e-10, atol=1e-13 * (1 + largest))
        assert torch.allclose(loss.sqrt(u, loss.sqrt_t(u, v)), product, rtol=1e-9, atol=1e-12 * (1 + largest))
        root = torch.stack([loss.sqrt_t(u, e.view_as(u)).reshape(-1) for e in torch.eye(size).double()])
        assert torch.allclose(root @ root.T, h, rtol=1e-9, atol=1e-12 * (1 + largest))
        if loss.curvature is not None:
            assert torch.allclose(h, loss.curvature * torch.eye(size).double())


@pytest.mark.parametrize("name", ROWS)
def test_samples_are_separate_and_leading_dimensions_go_through(name):
    u = ROWS[name].outputs()
    loss, many = bound(name, u), randn(77, 3, 2, *u.shape)
    assert loss.value(many).shape == (3, 2)
    assert loss.per_sample(many).shape == (3, 2, u.shape[0])
    for i in range(3):
        assert torch.allclose(loss.value(many)[i, 1], loss.value(many[i, 1]), rtol=1e-13)
        assert torch.allclose(loss.grad(many)[i, 1], loss.grad(many[i, 1]), rtol=1e-12, atol=1e-16)
        for product in (loss.hvp, loss.sqrt, loss.sqrt_t):
            assert torch.allclose(product(u, many)[i, 1], product(u, many[i, 1]), rtol=1e-11, atol=1e-14)
    other = u.clone()
    other[0] += 1
    assert torch.equal(loss.per_sample(other)[1:], loss.per_sample(u)[1:])


@pytest.mark.parametrize("name", ROWS)
def test_other_targets_other_precision_and_weights_upon_it(name):
    row, u = ROWS[name], ROWS[name].outputs()
    loss, y = bound(name, u), row.other(row.targets)
    twin = loss.with_targets(y).to(u)
    twin.check(u)
    if name != "residual":  # whose scale is that of its first targets: there is no mean
        assert relative(twin.value(u), row.reference(u, y)) < 1e-12
    narrow = loss.to(u.float())
    assert narrow.grad(u.float()).dtype == torch.float32
    assert relative(narrow.grad(u.float()).double(), loss.grad(u)) < 1e-5
    assert relative(narrow.hvp(u.float(), u.float()).double(), loss.hvp(u, u)) < 1e-5
    counts = torch.arange(len(u)).double()
    upon = weighted(loss, counts, u)
    assert relative(upon.per_sample(u), counts * loss.per_sample(u)) < 1e-13
    assert upon.quadratic == loss.quadratic
    assert relative(upon.hvp(u, u), counts.reshape(-1, *(1,) * (u.dim() - 1)) * loss.hvp(u, u)) < 1e-13


@pytest.mark.parametrize("name", ROWS)
def test_what_is_said_of_the_curvature(name):
    u = ROWS[name].outputs()
    loss = bound(name, u)
    assert loss.quadratic == (name in QUADRATIC)
    if loss.follows_targets:
        assert loss.quadratic
        y = torch.nan_to_num(loss.targets)
        assert relative(loss.grad(u), loss.hvp(u, u - y)) < 1e-13
    if loss.quadratic:
        far = u + 30 * randn(3, *u.shape)
        assert relative(loss.grad(far) - loss.grad(u), loss.hvp(u, far - u)) < 1e-12
        assert loss.holds(torch.stack([u, far]))
        assert not loss.as_general().quadratic


AFRESH = {
    "mse, weights": lambda u, y: F.mse_loss(u, y),
    "huber, mask": lambda u, y: F.huber_loss(u, y, delta=0.3),
    "poisson, mask and weights": lambda u, y: F.poisson_nll_loss(u, y),
    "cross_entropy, all weights and smoothing": lambda u, y: F.cross_entropy(u, y, CW, label_smoothing=0.2),
    "logistic, pos_weight": lambda u, y: F.binary_cross_entropy_with_logits(u, y, pos_weight=POSITIVE),
    "logistic, mask": lambda u, y: F.binary_cross_entropy_with_logits(u, y),
    "function, weights": mean_over(smooth_distance),
}


@pytest.mark.parametrize("name", AFRESH)
@pytest.mark.parametrize("n", [4, 6])
def test_new_samples_leave_weights_and_masks_behind(name, n):
    """Those belong to the samples, even where there are as many new ones; all the rest belongs to the loss."""
    row, u = ROWS[name], randn(5, n, *ROWS[name].shape[1:])
    y = (classes(2, n, 4) if "cross" in name else torch.rand(n, 3, generator=generator(1), dtype=torch.float64)).clone()
    found = bound(name, row.outputs()).on_new_samples(y).to(u)
    found.check(u)
    assert relative(found.value(u), AFRESH[name](u, y)) < 1e-12
    assert relative(weighted(bound(name, row.outputs()), torch.arange(len(row.outputs())), row.outputs())
                    .on_new_samples(y).to(u).value(u), AFRESH[name](u, y)) < 1e-12  # fmt: skip


def test_other_targets_of_weighted_samples_have_their_number():
    with pytest.raises(errors.ShapeError, match="one each"):
        mse(REAL, weights=W6).with_targets(REAL[:4])


@pytest.mark.parametrize("u", [-700.0, -60.0, -21.0, -19.0, 0.0, 19.0, 21.0, 60.0, 700.0])
@pytest.mark.parametrize("y", [0.0, 1.0, 0.3])
def test_logistic_value_keeps_its_digits_at_large_logits(u, y):
    """Once the samples are well classified the loss is e^{−u}: it must not vanish before the gradient does."""
    tail = math.log1p(math.exp(-abs(u)))
    exact = y * (tail + max(-u, 0.0)) + (1 - y) * (tail + max(u, 0.0))
    found = Logistic(torch.tensor([y], dtype=torch.float64)).value(torch.tensor([u], dtype=torch.float64))
    assert float(found) == pytest.approx(exact, rel=1e-12, abs=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_targets_follow_the_outputs(dtype):
    for loss in (mse(randn(0, 4, 2)), Logistic((randn(0, 4, 2) > 0).double()), CrossEntropy(classes(0, 4, 2))):
        u = randn(1, 4, 2).to(dtype)
        moved = loss.to(u)
        assert moved.grad(u).dtype == dtype
        assert moved.targets.dtype == (dtype if loss.targets.is_floating_point() else torch.int64)
        assert loss.targets.dtype != dtype


def test_cross_entropy_follows_its_outputs_dtype_back_and_forth():
    loss, u = CrossEntropy(classes(0, 4, 3)), randn(0, 4, 3)
    first = loss.grad(u)
    assert loss.grad(u.float()).dtype == torch.float32
    assert torch.equal(loss.grad(u), first)


MAKE = {
    "mse": (randn(0, 4), Squares),
    "cross_entropy": (classes(0, 4, 2), CrossEntropy),
    "logistic": (torch.ones(4), Logistic),
}


@pytest.mark.parametrize("name", MAKE)
def test_make_by_name(name):
    targets, kind = MAKE[name]
    assert isinstance(as_loss(name, targets), kind)
    with pytest.raises(errors.InputError, match="targets"):
        as_loss(name, None)


def test_make_of_functions_and_losses():
    assert isinstance(as_loss(smooth_distance, randn(0, 4)), Convex)
    bound = mse(randn(0, 4))
    assert as_loss(bound, None) is bound
    with pytest.raises(errors.InputError, match="function"):
        Convex("huber", randn(0, 4))  # type: ignore[arg-type]


@pytest.mark.parametrize("low", [-1e-3, -0.5])
def test_negative_curvature_is_found(low):
    with pytest.raises(errors.NonConvexError):
        require_convex(torch.tensor([low, 1.0]).double(), "a loss")


def test_rounding_is_not_negative_curvature():
    lam = 1e-16 * torch.rand(9, dtype=torch.float64, generator=generator(0)) * -1
    require_convex(torch.cat([lam, torch.ones(1)]), "a loss")
    require_convex(torch.zeros(0), "nothing")
    require_convex(1e-6 * lam, "a curvature that has died", scale=1.0)
