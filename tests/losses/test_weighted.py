"""Sample weights: value, gradient, curvature and its square roots against autograd of Σ w_i ℓ_i."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import jumpstart as js
from jumpstart import errors
from jumpstart.losses.convex import Convex
from jumpstart.losses.cross_entropy import CrossEntropy
from jumpstart.losses.logistic import Logistic
from jumpstart.losses.squared import Squares, mse
from jumpstart.losses.weighted import Weighted, weighted

from ..problems import classes, generator, mlp, randn, relative


def huber(u, y):
    return (torch.sqrt(1 + (u - y).square()) - 1).sum()


def ignored(*shape):
    y = classes(4, math.prod(shape), 3).reshape(shape)
    y.view(-1)[::3] = -100
    return y


REAL = {shape: randn(3, *shape) for shape in ((6,), (6, 3), (4, 2, 3), (5, 2))}
BITS = {shape: (v > 0).double() for shape, v in REAL.items()}
SOFT, HARD, TOKENS = randn(1, 6, 3).softmax(-1), classes(3, 6, 3), classes(4, 8, 3).reshape(4, 2)
SKIPPED = ignored(6)

# name → (loss, torch's loss of each sample, whose sum is the loss, shape of the outputs)
CASES = {
    "mse": (mse(REAL[6, 3]), lambda u: (u - REAL[6, 3]).square().sum(1) / 18, (6, 3)),
    "mse (n,)": (mse(REAL[6,]), lambda u: (u - REAL[6,]).square() / 6, (6,)),
    "mse (n, 2, 3)": (mse(REAL[4, 2, 3]), lambda u: (u - REAL[4, 2, 3]).square().sum((1, 2)) / 24, (4, 2, 3)),
    "residual": (Squares(torch.zeros(6).double(), 1.0), lambda u: 0.5 * u.square(), (6,)),
    "cross_entropy": (CrossEntropy(HARD), lambda u: F.cross_entropy(u, HARD, reduction="none") / 6, (6, 3)),
    "cross_entropy, tokens": (
        CrossEntropy(TOKENS),
        lambda u: F.cross_entropy(u.transpose(1, 2), TOKENS, reduction="none").sum(1) / 8,
        (4, 2, 3),
    ),
    "cross_entropy, ignored": (
        CrossEntropy(SKIPPED),
        lambda u: F.cross_entropy(u, SKIPPED, reduction="none") / 4,
        (6, 3),
    ),
    "cross_entropy, soft": (CrossEntropy(SOFT), lambda u: F.cross_entropy(u, SOFT, reduction="none") / 6, (6, 3)),
    "logistic": (
        Logistic(BITS[5, 2]),
        lambda u: F.binary_cross_entropy_with_logits(u, BITS[5, 2], reduction="none").sum(1) / 10,
        (5, 2),
    ),
    "logistic (n,)": (
        Logistic(BITS[6,]),
        lambda u: F.binary_cross_entropy_with_logits(u, BITS[6,], reduction="none") / 6,
        (6,),
    ),
    "convex": (
        Convex(huber, REAL[5, 2]),
        lambda u: torch.stack([huber(a, b) for a, b in zip(u, REAL[5, 2], strict=True)]) / 5,
        (5, 2),
    ),
    "convex (n, 2, 3)": (
        Convex(huber, REAL[4, 2, 3]),
        lambda u: torch.stack([huber(a, b) for a, b in zip(u, REAL[4, 2, 3], strict=True)]) / 4,
        (4, 2, 3),
    ),
}


def setting(name, seed=0):
    loss, rows, shape = CASES[name]
    w = torch.rand(shape[0], generator=generator(seed), dtype=torch.float64) * 3
    w[1] = 0
    u = randn(seed + 20, *shape)
    return weighted(loss, w, u), lambda v: (w * rows(v)).sum(), lambda v: w * rows(v), u


@pytest.mark.parametrize("name", CASES)
def test_everything_against_autograd(name):
    for seed in (0, 1):
        loss, total, rows, u = setting(name, seed)
        grad, hessian = torch.func.grad(total)(u), torch.func.hessian(total)(u).reshape(u.numel(), u.numel())
        assert relative(loss.value(u), total(u)) < 1e-12
        assert relative(loss.per_sample(u), rows(u)) < 1e-12
        assert relative(loss.grad(u), grad) < 1e-12
        v = randn(seed + 9, *u.shape)
        assert relative(loss.hvp(u, v).reshape(-1), hessian @ v.reshape(-1)) < 1e-10
        eye = torch.eye(u.numel(), dtype=torch.float64).reshape(-1, *u.shape)
        root = torch.stack([loss.sqrt(u, e).reshape(-1) for e in eye], 1)
        assert relative(root @ root.T, hessian) < 1e-9
        assert relative(torch.stack([loss.sqrt_t(u, e).reshape(-1) for e in eye], 1), root.T) < 1e-10


@pytest.mark.parametrize("lead", [(4,), (2, 3), (1, 1, 2)])
@pytest.mark.parametrize("name", CASES)
def test_leading_dimensions(name, lead):
    loss, total, rows, u = setting(name)
    many = randn(5, *lead, *u.shape)
    flat = many.reshape(-1, *u.shape)
    assert relative(loss.value(many).reshape(-1), torch.stack([total(v) for v in flat])) < 1e-12
    assert relative(loss.per_sample(many).reshape(-1, len(u)), torch.stack([rows(v) for v in flat])) < 1e-12
    assert relative(loss.grad(many).reshape(flat.shape), torch.stack([torch.func.grad(total)(v) for v in flat])) < 1e-12
    for product in (loss.hvp, loss.sqrt, loss.sqrt_t):
        assert relative(product(u, many).reshape(flat.shape), torch.stack([product(u, v) for v in flat])) < 1e-11
    if not isinstance(loss.inner, Convex):
        there = torch.stack([loss.hvp(a, a) for a in flat])
        assert relative(loss.hvp(many, many).reshape(flat.shape), there) < 1e-11


@pytest.mark.parametrize("name", CASES)
def test_other_targets_keep_the_weights(name):
    loss, _, _, u = setting(name)
    y = loss.targets.flip(0)
    twin = loss.with_targets(y).to(u)
    expected = loss.inner.with_targets(y).to(u).per_sample(u) * loss.weights
    assert relative(twin.per_sample(u), expected) < 1e-12
    assert torch.equal(twin.targets, y)
    assert torch.equal(loss.targets, y.flip(0))


def test_what_kind_of_loss_it_is():
    u = randn(0, 6, 3)
    flat, curved = weighted(mse(REAL[6, 3]), torch.ones(6), u), weighted(CrossEntropy(HARD), torch.ones(6), u)
    assert flat.quadratic
    assert not curved.quadratic
    assert flat.curvature is None  # no longer one number
    assert flat.known_convex
    assert curved.known_convex
    assert not weighted(Convex(huber, REAL[6, 3]), torch.ones(6), u).known_convex


def test_classes_are_still_classes():
    u = randn(0, 6, 3)
    loss = weighted(CrossEntropy(HARD), torch.ones(6), u)
    assert loss.correct(u) is not None
    assert torch.equal(loss.correct(u), u.argmax(-1) == HARD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_weights_of_any_dtype(dtype):
    w = torch.tensor([1, 0, 1, 1, 0, 1]).to(dtype)
    u = randn(0, 6, 3)
    loss = weighted(mse(REAL[6, 3]), w, u)
    expected = (w.double() * (u - REAL[6, 3]).square().sum(1) / 18).sum()
    assert float(loss.value(u)) == pytest.approx(float(expected), rel=1e-12)
    assert loss.grad(u).dtype == torch.float64
    assert loss.to(u.float()).grad(u.float()).dtype == torch.float32


def test_nested_weights_multiply():
    u, a, b = randn(0, 6, 3), torch.rand(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    nested, plain = weighted(weighted(mse(REAL[6, 3]), a, u), b, u), weighted(mse(REAL[6, 3]), a * b, u)
    assert isinstance(nested, Weighted)
    for ask in (lambda x: x.value(u), lambda x: x.grad(u), lambda x: x.hvp(u, u), lambda x: x.sqrt_t(u, u)):
        assert relative(ask(nested), ask(plain)) < 1e-13


@pytest.mark.parametrize(
    ("weights", "error"),
    [
        (torch.ones(5), errors.ShapeError),
        (torch.ones(6, 1), errors.ShapeError),
        (torch.ones(6, 3), errors.ShapeError),
        (torch.tensor(1.0), errors.ShapeError),
        (torch.tensor([]), errors.ShapeError),
        (-torch.ones(6), errors.InputError),
        (torch.full((6,), math.nan), errors.NonFiniteError),
        (torch.full((6,), math.inf), errors.NonFiniteError),
        (torch.zeros(6), errors.InputError),
        ([1.0] * 6, errors.InputError),
        (None, errors.InputError),
        (torch.ones(6, dtype=torch.complex64), errors.InputError),
    ],
    ids=lambda v: f"{tuple(v.shape)}, {float(v.real.sum()):g}" if isinstance(v, torch.Tensor) else str(v),
)
def test_no_weights(weights, error):
    with pytest.raises(error):
        weighted(mse(REAL[6, 3]), weights, randn(0, 6, 3))


@pytest.mark.parametrize("excess", [0.0, 3e-8, 5e-5])
def test_probabilities_up_to_rounding(excess):
    """Rows that sum to 1 + excess are let through; gradient and curvature must be those of the loss that is told.

    Once wrong: ∇Φ = p·Σy − y, not p − y. As it is, the gradient has a part along the constants that nothing
    stops: at t = ∞ single-precision probabilities end in a FlowError (below).
    """
    y = SOFT * (1 + excess)
    loss, u = CrossEntropy(y), randn(5, 6, 3)
    total = lambda v: F.cross_entropy(v, y)  # noqa: E731
    assert relative(loss.value(u), total(u)) < 1e-12
    assert relative(loss.grad(u), torch.func.grad(total)(u)) < 1e-12
    assert relative(loss.hvp(u, u).reshape(-1), torch.func.hessian(total)(u).reshape(18, 18) @ u.reshape(-1)) < 1e-12


def test_end_of_training_on_single_precision_probabilities():
    """Once wrong: FlowError; the same targets in double precision are reached."""
    model, x, y = mlp(0), randn(0, 8, 4), torch.full((8, 3), 1 / 3)
    found = js.solve(js.supervised(model, x, y.double(), "cross_entropy"), "dense")
    assert relative(found.outputs(math.inf).softmax(-1), y.double()) < 1e-6
