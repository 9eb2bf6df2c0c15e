"""Losses against torch.nn.functional and autograd: value, gradient, Hessian products, square roots."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from jumpstart import errors
from jumpstart.losses.base import require_convex
from jumpstart.losses.cross_entropy import CrossEntropy
from jumpstart.losses.convex import Convex
from jumpstart.losses.logistic import Logistic
from jumpstart.losses.named import as_loss
from jumpstart.losses.squared import Squares, mse

from ..problems import classes, generator, randn


def huber(u, y):
    return (torch.sqrt(1 + (u - y).square()) - 1).sum()


def ignored(*shape):
    y = classes(4, 12, 5).reshape(shape)
    y.view(-1)[::3] = -100
    return y


REAL = {shape: randn(3, *shape) for shape in ((6,), (6, 3), (4, 2, 3), (5, 2), (5,), (5, 2, 2))}
CLASSES = {(n, c): classes(3, n, c) for n, c in ((9, 4), (6, 3))}
SOFT, BITS = randn(1, 6, 4).softmax(-1), (randn(2, 8, 2) > 0).double()
TOKENS, HOT = ignored(3, 4), F.one_hot(CLASSES[6, 3], 3).double()


def squares(*shape):
    return mse(REAL[shape]), lambda u: F.mse_loss(u, REAL[shape]), shape


def convex(*shape):
    return Convex(huber, REAL[shape]), lambda u: huber(u, REAL[shape]) / 5, shape


# name → (bound loss, torch's own on the same targets, shape of the outputs)
CASES = {
    "mse": squares(6, 3),
    "mse (n,)": squares(6),
    "mse (n, 2, 3)": squares(4, 2, 3),
    "residual": (Squares(torch.zeros(7).double(), 1.0), lambda u: 0.5 * u.square().sum(), (7,)),
    "cross_entropy": (CrossEntropy(CLASSES[9, 4]), lambda u: F.cross_entropy(u, CLASSES[9, 4]), (9, 4)),
    "cross_entropy, tokens": (CrossEntropy(TOKENS), lambda u: F.cross_entropy(u.transpose(1, 2), TOKENS), (3, 4, 5)),
    "cross_entropy, ignored": (
        CrossEntropy(TOKENS.view(-1)),
        lambda u: F.cross_entropy(u, TOKENS.view(-1)),
        (12, 5),
    ),
    "cross_entropy, soft": (CrossEntropy(SOFT), lambda u: F.cross_entropy(u, SOFT), (6, 4)),
    "cross_entropy, one class": (CrossEntropy(torch.zeros(3).long()), lambda u: 0 * u.sum(), (3, 1)),
    "logistic": (Logistic(BITS), lambda u: F.binary_cross_entropy_with_logits(u, BITS), (8, 2)),
    "logistic (n,), integers": (
        Logistic(BITS[:, 0].long()),
        lambda u: F.binary_cross_entropy_with_logits(u, BITS[:, 0]),
        (8,),
    ),
    "convex": convex(5, 2),
    "convex (n,)": convex(5),
    "convex (n, 2, 2)": convex(5, 2, 2),
    "convex, rank-deficient": (
        Convex(lambda u, y: torch.logsumexp(u, 0) - (u * y).sum(), HOT),
        lambda u: F.cross_entropy(u, HOT),
        (6, 3),
    ),
}


def setting(name, seed=0, scale=1.0):
    loss, reference, shape = CASES[name]
    u = scale * randn(seed + 20, *shape)
    loss = loss.to(u)
    loss.check(u)
    return loss, reference, u


@pytest.mark.parametrize("scale", [1.0, 15.0])
@pytest.mark.parametrize("name", CASES)
def test_value_gradient_and_hessian_against_autograd(name, scale):
    for seed in (0, 1):
        loss, reference, u = setting(name, seed, scale)
        assert float(loss.value(u)) == pytest.approx(float(reference(u)), rel=1e-12, abs=1e-15)
        assert loss.per_sample(u).shape == u.shape[:1]
        assert float(loss.per_sample(u).sum()) == pytest.approx(float(reference(u)), rel=1e-12, abs=1e-15)
        grad, hessian = torch.func.grad(reference)(u), torch.func.hessian(reference)(u)
        v = randn(seed + 9, *u.shape)
        size = u.numel()
        h = hessian.reshape(size, size)
        product = (h @ v.reshape(-1)).view_as(u)
        assert torch.allclose(loss.grad(u), grad, rtol=1e-11, atol=1e-15)
        assert torch.allclose(loss.hvp(u, v), product, rtol=1e-10, atol=1e-14)
        assert torch.allclose(loss.sqrt(u, loss.sqrt_t(u, v)), product, rtol=1e-9, atol=1e-12)
        root = torch.stack([loss.sqrt_t(u, e.view_as(u)).reshape(-1) for e in torch.eye(size).double()])
        assert torch.allclose(root @ root.T, h, rtol=1e-9, atol=1e-12)
        if loss.curvature is not None:
            assert torch.allclose(h, loss.curvature * torch.eye(size).double())


@pytest.mark.parametrize("name", CASES)
def test_samples_are_separate_and_leading_dimensions_go_through(name):
    loss, _, u = setting(name)
    many = randn(77, 3, 2, *u.shape)
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
    assert isinstance(as_loss(huber, randn(0, 4)), Convex)
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
