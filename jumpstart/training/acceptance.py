"""Whether a jump lowers the loss beyond the noise of the samples that judge it: a paired one-sided test.

The same samples are asked before and after, so that what they differ in among themselves cancels: the changes
dᵢ = ℓᵢ(after) − ℓᵢ(before) alone have noise. Under no effect (E d = 0) and normal dᵢ, t = d̄ / (s/√n) is Student's with
n − 1 degrees of freedom, and a jump is accepted where t is below its quantile at 1 − confidence.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError, ShapeError
from ..objectives.objective import Objective
from ..utils.brief import brief

CONFIDENCE = 0.95  # of a jump without effect, one in twenty is accepted


@dataclass(frozen=True)
class Verdict:
    """What paired losses say of a change.

    Attributes:
        mean: change of the mean loss by sample, below 0 where it falls. error: its standard error, ∞ for fewer than two
            samples, of which none is known. z: mean / error, Student's t of n − 1 degrees of freedom; NaN where that is
            0/0 or not finite. samples: n. confidence: of the test.
        accepted: whether the loss falls beyond the noise.
    """

    mean: float
    error: float
    z: float
    samples: int
    confidence: float
    accepted: bool

    @property
    def bound(self) -> float:
        """The change, pessimistically: below 0 where it is accepted; NaN or ∞ where nothing is known."""
        return self.mean + quantile(self.confidence, self.samples) * self.error if self.error else self.mean

    def __str__(self) -> str:
        verb = "falls" if self.accepted else "does not fall beyond noise"
        return f"loss {verb}: {self.mean:+.3g} ± {self.error:.2g} on {self.samples} samples (t = {self.z:.2f})"


def improves(before: Tensor, after: Tensor, confidence: float = CONFIDENCE) -> Verdict:
    """Whether losses by sample fall in the mean, by a one-sided paired t-test.

    Never accepted: fewer than two samples, a loss that is NaN or infinite before or after, no change. Where every
    sample changes by the same, there is no noise, and the sign decides.

    The rate of false acceptance is 1 − confidence for normal changes of any n, a little lower under symmetric heavy
    tails. Skewness moves it: at 0.05, where a few samples get much worse and most a little better (lognormal changes),
    it is 0.18, 0.21, 0.12, 0.07 for n = 2, 10, 100, 1000; the other way round 0.01, 0.01, 0.02, 0.03
    (``tests/training/test_acceptance.py``). With few samples, ask for more confidence.

    Args:
        before, after: losses by sample (n,) of the same samples, in the same order. Not of the samples that the jump
            was fitted on, which say that it is good whatever it is; nor those by which it was chosen among many.
        confidence: from 0.5 (any fall of the mean) to below 1.

    Raises:
        InputError, ShapeError: they are not (n,) numbers each; a confidence out of range.
    """
    for name, losses in (("before", before), ("after", after)):
        if not isinstance(losses, Tensor) or losses.is_complex():
            raise InputError(f"improves: {name}={brief(losses)} is no tensor of losses, one real number a sample.")
    if before.dim() != 1 or before.shape != after.shape:
        raise ShapeError(
            f"improves: losses of shape {tuple(before.shape)} before and {tuple(after.shape)} after: give one number a "
            "sample, (n,), of the same samples."
        )
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)) or not 0.5 <= confidence < 1:
        raise InputError(f"improves: confidence={brief(confidence)}: give a number from 0.5 to below 1.")
    n = len(before)
    change = after.detach().cpu().double() - before.detach().cpu().double()
    if not bool(torch.isfinite(change).all()) or n == 0:
        return Verdict(math.nan, math.inf, math.nan, n, confidence, False)
    mean = float(change.mean())
    error = _standard_error(change)
    z = mean / error if error else (math.copysign(math.inf, mean) if mean else math.nan)
    accepted = n > 1 and (z < -quantile(confidence, n) if error else mean < 0)
    return Verdict(mean, error, z, n, confidence, accepted)


def _standard_error(change: Tensor) -> float:
    """s/√n; ∞ for one sample, and exactly 0 where all are the same, whatever rounding makes of their mean."""
    if len(change) < 2:
        return math.inf
    if bool((change == change[0]).all()):
        return 0.0
    return float(change.std()) / len(change) ** 0.5


@functools.lru_cache(maxsize=1024)
def quantile(confidence: float, samples: int) -> float:
    """Standard errors by which the mean of ``samples`` must fall: Student's quantile, ∞ where there is no test."""
    if samples < 2:
        return math.inf
    from scipy.special import stdtrit  # takes 0.2 s to import, and most runs ask for no quantile

    return float(stdtrit(samples - 1, confidence))


def by_sample(objective: Objective, theta: Tensor) -> Tensor:
    """Losses by sample (n,) at weights θ (P,), in float64: their mean is the objective's loss."""
    objective.prepare(theta)
    u = objective.outputs(theta).double()
    losses = objective.loss.to(u).per_sample(u).reshape(-1)
    return losses * len(losses)
