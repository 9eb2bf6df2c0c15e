"""What samples agree on: the mean and the variance of that mean, from per-sample contributions.

Source: Litman & Guo, arXiv:2605.01172; docs/theory.md, section 6.
"""

from __future__ import annotations

from torch import Tensor

from ..errors import InputError


def moments(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Squared mean and variance of the mean, over samples, of per-sample contributions to Σ_i s_i.

    Args:
        scores: (k, n); row k sums to the gradient along mode k, so that sample i's own gradient is n·s_ki.

    Returns:
        (k,) μ_k² and (k,) σ_k²/(n − 1), with σ² the mean squared deviation: the paper's threshold.

    Raises:
        InputError: with fewer than two samples there is no variance.
    """
    n = scores.shape[-1]
    if n < 2:
        raise InputError("a gate needs at least two samples to tell signal from noise.")
    own = n * scores
    mean = own.mean(-1)
    return mean.square(), own.var(-1, unbiased=False) / (n - 1)


def population_decrease(mean_square: Tensor, noise: Tensor, filters: Tensor) -> Tensor:
    """Σ_k (μ_k² − σ_k²/(n − 1)) φ(λ_k, t): unbiased first-order decrease of the population risk, one per horizon.

    Args:
        mean_square, noise: (k,) μ² and the variance of the mean, as :func:`moments` gives them.
        filters: (T, k) values φ(λ_k, t).
    """
    return filters @ (mean_square - noise)
