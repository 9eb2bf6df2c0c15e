"""``Monitor``: what gates would do, watched beside any optimizer, whose training it leaves as it is."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..utils.brief import brief
from . import samples, streaming
from .averages import STATISTICS, exponential
from .contributions import accumulating
from .rules import Gate


@dataclass(frozen=True)
class Reading:
    """One step, watched.

    Attributes:
        step: its number, from 1. open: how far each parameter's gates stand open, on average, in [0, 1].
        decrease: Σ (μ̂² − Var μ̂): an unbiased estimate of the squared norm of the population's gradient, which a step
            of plain gradient descent lowers the population risk by, for each unit of its rate. Negative where noise is
            all that there is.
        kept: the same, of what the gate lets through.
    """

    step: int
    open: dict[str, float]
    decrease: float
    kept: float

    @property
    def share(self) -> float:
        """Gates open, over all parameters alike."""
        return sum(self.open.values()) / len(self.open) if self.open else 1.0


@dataclass
class _Seen:
    mean: Tensor
    variance: Tensor
    count: int = 0


class Monitor:
    """Watches the gradients that an optimizer steps along: how many coordinates a gate would leave open, by parameter.

    Args:
        model: whose parameters are watched. optimizer: before whose steps, any of torch's or none: call :meth:`look`.
        rule, statistics, alpha, beta, rho: of the gate, as of ``js.optim.GatedAdamW``; β is the average's. "exact"
            needs ``js.gating.record(model)``.
        every: steps from one reading to the next; averages are kept at each.
        keep: readings held in ``history``.

    Memory: two numbers a parameter (streaming), none (exact).

    Raises:
        InputError: an option that is unknown or out of range.

    Example:
        >>> from jumpstart.gating import Monitor
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> monitor = Monitor(model, optimizer)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(5, 3)).square().mean().backward()
        ...     optimizer.step()
        >>> sorted(monitor.history[-1].open)
        ['bias', 'weight']
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        rule: str = "hard",
        statistics: str = "streaming",
        alpha: float = 1.0,
        beta: float = 0.9,
        rho: float = 0.99,
        every: int = 1,
        keep: int = 10_000,
    ) -> None:
        if statistics not in STATISTICS:
            raise InputError(f"statistics={brief(statistics)} is none of {STATISTICS}.")
        for name, value in (("beta", beta), ("rho", rho)):
            if not isinstance(value, float) or not 0 <= value < 1:
                raise InputError(f"{name}={brief(value)}: give a number from 0 to below 1.")
        for name, value in (("every", every), ("keep", keep)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name}={brief(value)}: give a whole number, at least 1.")
        self._gate = Gate(rule, {"lam" if rule == "snr" else "alpha": alpha})
        self.model, self.statistics, self.beta, self.rho, self.every = model, statistics, beta, rho, every
        self.history: deque[Reading] = deque(maxlen=keep)
        self.step = 0
        self._seen: dict[str, _Seen] = {}
        self._hook = None if optimizer is None else optimizer.register_step_pre_hook(self._before)

    def _before(self, *_: Any) -> None:
        self.look()

    def remove(self) -> None:
        """Watch no more."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @torch.no_grad()
    def look(self) -> Reading | None:
        """Take the present gradients in; a reading where one is due and something is known of their noise."""
        self.step += 1
        due = self.step % self.every == 0
        opened: dict[str, float] = {}
        decrease = kept = 0.0
        for name, p in self.model.named_parameters():
            if p.grad is None or p.grad.is_sparse or not bool(torch.isfinite(p.grad).all()):
                continue
            found = self._exact(name, p) if self.statistics == "exact" else self._streaming(name, p)
            if found is None or not due:
                continue
            square, noise = found
            gate, left = self._gate(square, noise), square - noise
            opened[name] = float(gate.mean())
            decrease += float(left.sum())
            kept += float((gate * left).sum())
        if not opened:
            return None
        reading = Reading(self.step, opened, decrease, kept)
        self.history.append(reading)
        return reading

    def _exact(self, name: str, p: nn.Parameter) -> tuple[Tensor, Tensor] | None:
        noise = samples.noise(p)
        if noise is None:
            raise InputError(
                f"statistics='exact': nothing is known of what each sample added to the gradient of {name!r}: call "
                "js.gating.record(model) before the forward pass, or watch statistics='streaming'."
            )
        assert p.grad is not None
        return p.grad.to(noise.dtype).square(), noise

    def _streaming(self, name: str, p: nn.Parameter) -> tuple[Tensor, Tensor] | None:
        """m̂² and its variance, as the optimizers keep them; None at the first step."""
        assert p.grad is not None
        grad = p.grad.to(accumulating(p.dtype))
        seen = self._seen.get(name)
        if seen is None or seen.mean.shape != p.shape:
            seen = self._seen[name] = _Seen(torch.zeros_like(grad), torch.zeros_like(grad))
        if seen.count:
            entry = streaming.unbiased(exponential(self.beta, seen.count), self.rho)
            entry.take(seen.variance, grad, seen.mean)
        seen.mean.lerp_(grad, 1 - self.beta)
        seen.count += 1
        if seen.count == 1:
            return None
        average = exponential(self.beta, seen.count)
        noise = seen.variance * streaming.factor(average.variance, self.rho, seen.count - 1)
        return (seen.mean / average.total).square(), noise

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: Any) -> None:
        self.remove()
