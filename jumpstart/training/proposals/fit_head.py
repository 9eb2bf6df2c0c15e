"""``fit_head``: the last linear layer's convex problem, solved, on the features of the network as it is."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...objectives.objective import Objective, require_finite_outputs
from ...risk.starts import Starts
from ...utils.brief import brief
from ...utils.cost import Ledger
from ...utils.guard import guarded
from ...utils.interrupts import uninterrupted
from .convex_head import Fit, HeadProblem
from .features import head_of
from .refits import outputs, without_each


@dataclass(frozen=True)
class HeadResult:
    """A last linear layer, fitted; the model is as it was until :meth:`apply`.

    Attributes:
        model: it belongs to. layer: its name. weight, bias: in float64; no bias where the layer has none.
        damping: λ of Φ + ½ λ‖weight‖². before: training loss of the present weights. training: of the fitted ones.
        leave_one_out: loss of each sample under the fit without it; exact for squared losses, else of one Newton step
            away; of dear heads by three folds. path: (damping, training loss, leave-one-out loss) of the fits that were
            compared. seconds: what it took. problem: features and loss that it was fitted to.
    """

    model: nn.Module
    layer: str
    weight: Tensor
    bias: Tensor | None
    damping: float
    before: float
    training: float
    leave_one_out: float
    path: tuple[tuple[float, float, float], ...]
    seconds: float
    problem: HeadProblem = field(repr=False)

    def named(self) -> dict[str, Tensor]:
        """Weight and bias by their names in the model."""
        prefix = f"{self.layer}." if self.layer else ""
        found = {f"{prefix}weight": self.weight}
        return found if self.bias is None else {**found, f"{prefix}bias": self.bias}

    def apply(self) -> None:
        """Write them into the model."""
        present = dict(self.model.named_parameters())
        with uninterrupted(), torch.no_grad():
            for name, value in self.named().items():
                present[name].copy_(value)

    def without_each(self) -> Starts:
        """The head really refitted without each sample, at this damping: training outputs of all samples, (n, n, …).

        A run that goes on from here, judged by leaving samples out, starts from there:
        ``solution.best_horizon(start=result.without_each())`` is 0 unless that run beats the head itself.
        """
        fit = Fit(self.weight, self.bias, self.damping, self.training, self.leave_one_out)
        return Starts(outputs(self.problem, fit), without_each(self.problem, fit))

    def __str__(self) -> str:
        return (
            f"Head {self.layer!r}: training loss {self.training:.4g} (was {self.before:.4g}), leave-one-out "
            f"{self.leave_one_out:.4g} at damping {self.damping:.3g}."
        )


@guarded(lambda objective, *_, **__: getattr(objective, "model", None))
def fit_head(objective: Objective, head: str | None = None, *, damping: float | None = None) -> HeadResult:
    """Solve the convex problem of the last linear layer, on the features that the network has now.

    Squared losses have a closed form; others are solved by Newton's method. The damping is the one with the lowest
    leave-one-out loss, which needs no validation data; by three folds where leaving out each would take too long.

    Args:
        objective: whose outputs are those of a linear layer, one row of features a sample.
        head: the layer's name; None to find it.
        damping: λ of Φ + ½ λ‖weight‖² (the bias is free); None to choose it.

    Returns:
        A :class:`HeadResult`; nothing has changed. ``result.apply()`` writes the weights.

    Raises:
        InputError and its kinds: no linear layer comes last, it is tied or used twice, a damping of 0 or less.

    Example:
        >>> from jumpstart import supervised
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> result = fit_head(supervised(model, torch.randn(20, 3), torch.randn(20, 1)))
        >>> result.layer
        '2'
        >>> result.apply()
    """
    if not isinstance(objective, Objective):
        raise InputError(f"fit_head needs a js.Objective (see js.supervised), got {type(objective).__name__}.")
    if damping is not None and not _positive(damping):
        raise InputError(f"damping={brief(damping)}: give a positive number, or None to choose it.")
    return fitted(objective, objective.theta(), head, damping, Ledger())


def fitted(objective: Objective, theta: Tensor, head: str | None, damping: float | None, ledger: Ledger) -> HeadResult:
    """The same at weights θ (P,); books one forward pass and the dense work."""
    begun, path = time.perf_counter(), []
    objective.require_current()
    objective.prepare(theta)
    ledger.forwards += 1
    found = head_of(objective, theta, head)
    require_finite_outputs(found.outputs)
    features = found.features.double()
    if not bool(torch.isfinite(features).all()):
        raise InputError(f"fit_head: the features of {found.layer!r} are not finite on these samples.")
    problem = HeadProblem(features, found.outputs, objective.loss, found.bias is not None, ledger)
    problem.require()

    def tell(fit: Fit) -> None:
        path.append((fit.damping, fit.training, fit.leave_one_out))

    fit = problem.fit(damping, tell)
    before = float(objective.loss.to(found.outputs).value(found.outputs))
    return HeadResult(
        objective.model, found.layer, fit.weight, fit.bias, fit.damping, before, fit.training, fit.leave_one_out,
        tuple(path), time.perf_counter() - begun, problem,
    )  # fmt: skip


def _positive(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 < value < math.inf
