"""Convex losses Φ of the outputs u: value, gradient, curvature B, a square root of it, per-sample losses.

Reductions are those of ``torch.nn.functional`` (the mean), so that flow time is the time of the user's SGD on the
user's loss (docs/theory.md, section 1). Outputs have shape (n, …); every method takes any number of leading batch
dimensions before that shape, so that many horizons or basis vectors go through together.
"""

from .base import Loss
from .classification import CrossEntropy, Logistic
from .convex import Convex
from .named import as_loss
from .squared import Squares, mse
from .weighted import Weighted, weighted

__all__ = ["Convex", "CrossEntropy", "Logistic", "Loss", "Squares", "Weighted", "as_loss", "mse", "weighted"]
