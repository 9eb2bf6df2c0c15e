"""Convex losses Φ of the outputs u: value, gradient, curvature B, a square root of it, per-sample losses.

Reductions are those of ``torch.nn.functional`` (the mean), so that flow time is the time of the user's SGD on the
user's loss (docs/theory.md, section 1). Outputs have shape (n, …); every method takes any number of leading batch
dimensions before that shape, so that many horizons or basis vectors go through together.
"""

from .base import Loss
from .convex import Convex
from .cross_entropy import CrossEntropy
from .logistic import Logistic
from .named import as_loss
from .regression import Huber, Poisson
from .squared import Squares, WeightedSquares, mse
from .weighted import Weighted, weighted

__all__ = [
    "Convex",
    "CrossEntropy",
    "Huber",
    "Logistic",
    "Loss",
    "Poisson",
    "Squares",
    "Weighted",
    "WeightedSquares",
    "as_loss",
    "mse",
    "weighted",
]
