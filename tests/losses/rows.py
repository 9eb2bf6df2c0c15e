"""The table of losses: how each is made, torch's own of the same targets, and outputs for it. A new loss is a row."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from jumpstart.losses import Convex, CrossEntropy, Huber, Logistic, Loss, Poisson, Squares, mse

from ..problems import classes, generator, randn


@dataclass(frozen=True)
class Row:
    """``make(y)`` is the loss of targets y, ``reference(u, y)`` what it has to be; ``other(y)`` are more targets."""

    make: Callable[[Tensor], Loss]
    reference: Callable[[Tensor, Tensor], Tensor]
    targets: Tensor
    shape: tuple[int, ...]
    other: Callable[[Tensor], Tensor] = lambda y: y.flip(0)

    def outputs(self, seed: int = 0, scale: float = 1.0) -> Tensor:
        return scale * randn(seed + 20, *self.shape)


def smooth_distance(u, y):
    return (torch.sqrt(1 + (u - y).square()) - 1).sum()


def mean_over(fn):
    return lambda u, y: torch.stack([fn(a, b) for a, b in zip(u, y, strict=True)]).mean()


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator(seed), dtype=torch.float64)


def ignored(*shape: int, value: int = -100) -> Tensor:
    y = classes(4, math.prod(shape), 5).reshape(shape)
    y.view(-1)[::3] = value
    return y


def missing(y: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, y, torch.full_like(y, math.nan))


def entries(element, mask=None, weights=None):
    """The weighted mean, written out, of torch's loss without reduction."""

    def reference(u, y):
        count = torch.ones_like(u) if weights is None else weights.reshape(-1, *(1,) * (u.dim() - 1)).expand_as(u)
        if mask is not None:
            return (element(u[mask], y[mask]) * count[mask]).sum() / count[mask].sum()
        return (element(u, y) * count).sum() / count.sum()

    return reference


def plain(name: str, **options):
    return lambda u, y: getattr(F, name)(u, y, **options)


def each(name: str, **options):
    return plain(name, reduction="none", **options)


def labels(y, u):
    """Flat classes and logits, as torch takes them."""
    return u.reshape(-1, u.shape[-1]), y.reshape(-1)


def weighted_classes(w, by_class=None, smoothing=0.0):
    """Cross-entropy with sample weights, written out: torch has none."""

    def reference(u, y):
        losses = F.cross_entropy(u, y, by_class, reduction="none", label_smoothing=smoothing)
        counts = w if by_class is None else w * by_class[y]
        return (w * losses).sum() / counts.sum()

    return reference


REAL, MASK = randn(3, 6, 3), uniform(5, 6, 3) > 0.3
ROWMASK = torch.tensor([True, False, True, True, False, True])
W6, W9, CW = uniform(1, 6) * 3 + 0.01, uniform(2, 9), uniform(3, 4) + 0.1
W6[2] = 0
BITS, COUNTS = (randn(2, 6, 3) > 0).double(), torch.poisson(3 * uniform(7, 6, 3), generator=generator(0))
HARD, SOFT, TOKENS = classes(3, 9, 4), randn(1, 6, 4).softmax(-1), ignored(3, 4)
POSITIVE = torch.tensor([0.5, 2.0, 1.0]).double()
FIVE = torch.cat([CW, CW[:1]])
PACKED = torch.stack([REAL, MASK.double()], 1)
SPREAD = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.1], [0.0, 0.1, 3.0]]).double()
BCE = each("binary_cross_entropy_with_logits")


def _other_kept(y: Tensor) -> Tensor:
    return torch.where(y.isnan(), y, 1 - 0.5 * y)


ROWS: dict[str, Row] = {
    "mse": Row(mse, plain("mse_loss"), REAL, (6, 3)),
    "mse (n,)": Row(mse, plain("mse_loss"), REAL[:, 0], (6,)),
    "mse (n, 2, 3)": Row(mse, plain("mse_loss"), randn(3, 4, 2, 3), (4, 2, 3)),
    "mse, weights": Row(
        lambda y: mse(y, weights=W6),
        lambda u, y: F.mse_loss(u, y, weight=W6[:, None].expand_as(u)),
        REAL, (6, 3),
    ),
    "mse, mask": Row(
        lambda y: mse(y, mask=MASK), lambda u, y: F.mse_loss(u[MASK], y[MASK]), missing(REAL, MASK), (6, 3), _other_kept
    ),
    "mse, mask of samples": Row(
        lambda y: mse(y, mask=ROWMASK.double()), lambda u, y: F.mse_loss(u[ROWMASK], y[ROWMASK]), REAL, (6, 3)
    ),
    "mse, mask and weights": Row(
        lambda y: mse(y, mask=MASK, weights=W6), entries(each("mse_loss"), MASK, W6), REAL, (6, 3)
    ),
    "residual": Row(
        lambda y: Squares(y, 1.0), lambda u, y: 0.5 * (u - y).square().sum(), torch.zeros(7).double(), (7,),
    ),
    "huber": Row(Huber, plain("huber_loss"), 2 * REAL, (6, 3)),
    "huber, delta": Row(lambda y: Huber(y, 0.3), plain("huber_loss", delta=0.3), REAL, (6, 3)),
    "huber (n,), weights": Row(lambda y: Huber(y, weights=W6), entries(each("huber_loss"), None, W6), REAL[:, 0], (6,)),
    "huber, mask": Row(
        lambda y: Huber(y, 0.3, mask=MASK), lambda u, y: F.huber_loss(u[MASK], y[MASK], delta=0.3),
        missing(REAL, MASK), (6, 3), _other_kept,
    ),
    "poisson": Row(Poisson, plain("poisson_nll_loss"), COUNTS, (6, 3)),
    "poisson, integers": Row(Poisson, plain("poisson_nll_loss"), COUNTS[:, 0].long(), (6,)),
    "poisson, mask and weights": Row(
        lambda y: Poisson(y, mask=MASK, weights=W6), entries(each("poisson_nll_loss"), MASK, W6), COUNTS, (6, 3)
    ),
    "cross_entropy": Row(CrossEntropy, plain("cross_entropy"), HARD, (9, 4)),
    "cross_entropy, tokens": Row(
        CrossEntropy, lambda u, y: F.cross_entropy(u.transpose(1, 2), y), TOKENS, (3, 4, 5)
    ),
    "cross_entropy, ignored": Row(CrossEntropy, plain("cross_entropy"), TOKENS.view(-1), (12, 5)),
    "cross_entropy, ignore_index": Row(
        lambda y: CrossEntropy(y, 255), plain("cross_entropy", ignore_index=255), ignored(12, value=255), (12, 5)
    ),
    "cross_entropy, soft": Row(CrossEntropy, plain("cross_entropy"), SOFT, (6, 4)),
    "cross_entropy, soft tokens": Row(
        CrossEntropy, lambda u, y: F.cross_entropy(u.transpose(1, 2), y.transpose(1, 2)),
        randn(1, 3, 2, 4).softmax(-1), (3, 2, 4),
    ),
    "cross_entropy, one class": Row(CrossEntropy, lambda u, y: 0 * u.sum(), torch.zeros(3).long(), (3, 1)),
    "cross_entropy, class_weights": Row(
        lambda y: CrossEntropy(y, class_weights=CW), plain("cross_entropy", weight=CW), HARD, (9, 4)
    ),
    "cross_entropy, a class of weight 0": Row(
        lambda y: CrossEntropy(y, class_weights=torch.tensor([0.0, 1.0, 2.0, 1.0])),
        plain("cross_entropy", weight=torch.tensor([0.0, 1.0, 2.0, 1.0]).double()), HARD, (9, 4),
    ),
    "cross_entropy, smoothing": Row(
        lambda y: CrossEntropy(y, label_smoothing=0.1), plain("cross_entropy", label_smoothing=0.1), HARD, (9, 4)
    ),
    "cross_entropy, weights": Row(lambda y: CrossEntropy(y, weights=W9), weighted_classes(W9), HARD, (9, 4)),
    "cross_entropy, everything": Row(
        lambda y: CrossEntropy(y, class_weights=FIVE, label_smoothing=0.2),
        lambda u, y: F.cross_entropy(u.transpose(1, 2), y, FIVE, label_smoothing=0.2), TOKENS, (3, 4, 5),
    ),
    "cross_entropy, all weights and smoothing": Row(
        lambda y: CrossEntropy(y, class_weights=CW, label_smoothing=0.2, weights=W9),
        weighted_classes(W9, CW, 0.2), HARD, (9, 4),
    ),
    "cross_entropy, soft, class_weights and smoothing": Row(
        lambda y: CrossEntropy(y, class_weights=CW, label_smoothing=0.2),
        plain("cross_entropy", weight=CW, label_smoothing=0.2), SOFT, (6, 4),
    ),
    "cross_entropy, mask": Row(
        lambda y: CrossEntropy(y, mask=ROWMASK), lambda u, y: F.cross_entropy(u[ROWMASK], y[ROWMASK]),
        torch.where(ROWMASK, HARD[:6], torch.full_like(HARD[:6], 99)), (6, 4), lambda y: torch.where(y > 3, y, 3 - y),
    ),
    "cross_entropy, soft, mask": Row(
        lambda y: CrossEntropy(y, mask=ROWMASK), lambda u, y: F.cross_entropy(u[ROWMASK], y[ROWMASK]),
        missing(SOFT, ROWMASK[:, None].expand(6, 4)), (6, 4), lambda y: y.flip(1),
    ),
    "logistic": Row(Logistic, plain("binary_cross_entropy_with_logits"), BITS, (6, 3)),
    "logistic (n,), integers": Row(
        Logistic, lambda u, y: F.binary_cross_entropy_with_logits(u, y.double()), BITS[:, 0].long(), (6,)
    ),
    "logistic, several labels": Row(Logistic, plain("multilabel_soft_margin_loss"), BITS, (6, 3)),
    "logistic, pos_weight": Row(
        lambda y: Logistic(y, pos_weight=POSITIVE),
        plain("binary_cross_entropy_with_logits", pos_weight=POSITIVE), BITS, (6, 3),
    ),
    "logistic, one pos_weight, soft": Row(
        lambda y: Logistic(y, pos_weight=3.0),
        plain("binary_cross_entropy_with_logits", pos_weight=torch.tensor(3.0).double()), SOFT, (6, 4),
    ),
    "logistic, weights of mean 1": Row(
        lambda y: Logistic(y, weights=W6 / W6.mean()),
        plain("binary_cross_entropy_with_logits", weight=(W6 / W6.mean())[:, None]), BITS, (6, 3),
    ),
    "logistic, mask": Row(
        lambda y: Logistic(y, mask=MASK), lambda u, y: F.binary_cross_entropy_with_logits(u[MASK], y[MASK]),
        missing(BITS, MASK), (6, 3), _other_kept,
    ),
    "function": Row(lambda y: Convex(smooth_distance, y), mean_over(smooth_distance), REAL, (6, 3)),
    "function (n,)": Row(lambda y: Convex(smooth_distance, y), mean_over(smooth_distance), REAL[:, 0], (6,)),
    "function (n, 2, 2)": Row(
        lambda y: Convex(smooth_distance, y), mean_over(smooth_distance), randn(3, 5, 2, 2), (5, 2, 2)
    ),
    "function, weights": Row(
        lambda y: Convex(smooth_distance, y, weights=W6),
        lambda u, y: (W6 * torch.stack([smooth_distance(a, b) for a, b in zip(u, y, strict=True)])).sum() / W6.sum(),
        REAL, (6, 3),
    ),
    "function, rank-deficient": Row(
        lambda y: Convex(lambda u, t: torch.logsumexp(u, 0) - (u * t).sum(), y), plain("cross_entropy"), SOFT, (6, 4)
    ),
    "function, masked squares": Row(
        lambda y: Convex(lambda u, t: (t[1] * (u - t[0]).square()).sum(), y),
        mean_over(lambda u, t: (t[1] * (u - t[0]).square()).sum()), PACKED, (6, 3),
    ),
    "function, Mahalanobis": Row(
        lambda y: Convex(lambda u, t: (u - t) @ SPREAD.to(u) @ (u - t), y),
        mean_over(lambda u, t: (u - t) @ SPREAD @ (u - t)), REAL, (6, 3),
    ),
}  # fmt: skip

QUADRATIC = {name for name in ROWS if name.startswith("mse")} | {
    "residual", "function, masked squares", "function, Mahalanobis",
}  # fmt: skip
RUN = [  # those whose runs are followed
    "mse, weights", "mse, mask", "mse, mask of samples", "mse, mask and weights", "huber", "huber, delta",
    "huber (n,), weights", "huber, mask", "poisson", "poisson, mask and weights", "cross_entropy, class_weights",
    "cross_entropy, ignore_index", "cross_entropy, smoothing", "cross_entropy, weights", "cross_entropy, everything",
    "cross_entropy, soft, class_weights and smoothing", "cross_entropy, mask", "logistic, several labels",
    "logistic, pos_weight", "logistic, mask", "function, weights", "function, rank-deficient",
    "function, masked squares", "function, Mahalanobis",
]  # fmt: skip


def bound(name: str, u: Tensor) -> Loss:
    """A row's loss, ready for outputs u."""
    loss = ROWS[name].make(ROWS[name].targets).to(u)
    loss.check(u)
    return loss
