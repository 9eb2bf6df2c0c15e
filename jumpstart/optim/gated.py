"""Gating an optimizer: its step, taken as far as each coordinate's signal beats its noise.

    m̂² against the variance of m̂, by a rule of ``gating.rules``; weights ← decayed + gate ⊙ (stepped − decayed)

The optimizer inside is torch's own class, with all of its options; a mixin adds what the gate needs: one more average a
coordinate (streaming), or what each sample added to the gradient (exact, ``gating.record``). Source: Litman & Guo,
arXiv:2605.01172; docs/gates.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..gating import samples
from ..gating.averages import Average
from ..utils.warn import warn
from . import gates
from .adapters import Group

LARGE = 2**18  # coordinates of a parameter that is stepped by itself on a CPU


@dataclass
class _Held:
    """A parameter with a gradient, in the course of a step: the variance of its samples, and what it was before."""

    group: dict[str, Any]
    p: Tensor
    noise: Tensor | None = None
    before: Tensor | None = None

    @property
    def gradient(self) -> Tensor:
        assert self.p.grad is not None
        return self.p.grad


class Gated(torch.optim.Optimizer):
    """What is added to an optimizer of torch's, which stands behind it among the bases.

    Keys of each parameter group, beside the optimizer's: ``rule`` ("hard", "soft", "snr"; None is never gated),
    ``statistics``, ``correction``, ``alpha``, ``reduce``, ``rho``, ``isometry``. Weight decay and isometry are
    decoupled, and outside the gate.

    A step whose gradients are not finite is left out: nothing is written, ``nonfinite`` counts it.
    """

    AVERAGE: ClassVar[str]  # the state that holds the optimizer's average of gradients

    @staticmethod
    def _averaged(group: Group, count: int) -> Average | None:
        """The weights in that state after so many steps; None where there is no average."""
        raise NotImplementedError

    def _own(self) -> Callable[..., Any]:
        """The optimizer's own step, without the hooks that torch wraps around it."""
        raise NotImplementedError

    @property
    def _counts(self) -> bool:
        """Whether torch's class keeps the number of steps itself."""
        return isinstance(self, torch.optim.Adam)

    def _fused(self, foreach: bool | None, fused: bool | None) -> bool | None:
        """Torch's fused kernel, where nobody has said otherwise: the gate takes its passes over the weights besides.

        Not on a GPU: it keeps the number of steps there, and each look at it would wait.
        """
        plain = all(p.is_floating_point() and p.device.type == "cpu" for g in self.param_groups for p in g["params"])
        if foreach is None and fused is None and plain:
            for group in self.param_groups:
                group["fused"] = True
            return True
        return fused

    def _gate(self, **options: Any) -> None:
        """Take the gate's options in, at the end of ``__init__``."""
        self.defaults.update(options, nonfinite=0)
        self._step_supports_amp_scaling = False  # scaled gradients would be taken for gradients
        for group in self.param_groups:
            self._complete(group)

    def _complete(self, group: dict[str, Any]) -> None:
        for name in (*gates.OPTIONS, "nonfinite"):
            group.setdefault(name, self.defaults[name])
        gates.require_options(group, type(self).__name__)
        if group["rule"] is None:
            return
        if group["statistics"] == "streaming" and self._averaged(group, 1) is None:
            raise InputError(
                f"{type(self).__name__}: statistics='streaming' holds an average of gradients against its noise, and "
                "momentum=0 keeps none: give momentum=0.9, or statistics='exact'."
            )
        if any(p.is_complex() for p in group["params"]):
            raise InputError(
                f"{type(self).__name__} does not gate complex parameters: give them a group with rule=None."
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        if "nonfinite" in self.defaults:  # else this is the constructor of torch's class
            try:
                self._complete(self.param_groups[-1])
            except BaseException:
                self.param_groups.pop()
                raise

    @property
    def nonfinite(self) -> int:
        """Steps left out because a gradient was NaN or infinite."""
        return max((group["nonfinite"] for group in self.param_groups), default=0)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for group in self.param_groups:
            for p in group["params"]:
                samples.used(p)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; returns what the closure returns.

        Raises:
            InputError: sparse gradients; statistics='exact' where no sample was recorded, or a batch of one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            # As torch does for those of its own that it cannot trace: a compiled loop breaks its graph here.
            _untraced(self) if torch.compiler.is_compiling() else self._stepped()
        return loss

    def _stepped(self) -> None:
        held = [_Held(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for one in held:
            if one.gradient.is_sparse:
                raise InputError(f"{type(self).__name__} does not support sparse gradients.")
        if not _finite([one.gradient for one in held]):
            for group in self.param_groups:
                group["nonfinite"] += 1
            if self.nonfinite == 1:
                warn(f"{type(self).__name__}: a gradient is NaN or infinite; such steps are left out and counted "
                     "(optimizer.nonfinite).", RuntimeWarning)  # fmt: skip
        else:
            for one in held:
                if one.group["rule"] is not None and one.group["statistics"] == "exact":
                    one.noise = _exact(one.p)
            for part in _parts(held):
                self._part(part)
        for one in held:
            samples.used(one.p)

    def _part(self, held: list[_Held]) -> None:
        """The step of some parameters."""
        for one in held:
            if gates.streams(one.group) and gates.VARIANCE in self.state[one.p]:
                gates.absorb(one.group, self.state[one.p], one.p, self.AVERAGE, self._average(one.group, one.p))
            if one.group["isometry"] and one.p.dim() > 1:
                _isometric(one.p, float(one.group["lr"]) * one.group["isometry"])
            one.before = one.p.clone() if self._gates(one.group, one.p) else None
        whole, chosen = [group["params"] for group in self.param_groups], {id(one.p) for one in held}
        try:
            for group in self.param_groups:
                group["params"] = [p for p in group["params"] if id(p) in chosen]
            self._own()(self)
        finally:
            for group, params in zip(self.param_groups, whole, strict=True):
                group["params"] = params
        for one in held:
            if not self._counts:
                self.state[one.p]["step"] = self.state[one.p].get("step", torch.zeros(())) + 1
            if gates.streams(one.group) and gates.VARIANCE not in self.state[one.p]:  # torch makes its own at this step
                gates.begin(one.group, self.state[one.p], one.p)
            if one.before is not None:
                self._after(one.group, one.p, one.before, one.noise)
            one.before = one.noise = None

    def _count(self, p: Tensor) -> int:
        """Steps that a parameter has taken."""
        return int(self.state[p].get("step", 0))

    def _average(self, group: dict[str, Any], p: Tensor) -> Average | None:
        """The weights in a parameter's average now."""
        return self._averaged(group, self._count(p))

    def _gates(self, group: dict[str, Any], p: Tensor) -> bool:
        """Whether this step is gated: of a streaming variance nothing is known at a parameter's first."""
        return group["rule"] is not None and (group["statistics"] == "exact" or gates.VARIANCE in self.state[p])

    def _after(self, group: dict[str, Any], p: Tensor, before: Tensor, exact: Tensor | None) -> None:
        signal, noise, times = self._held_against(group, p, exact)
        left = 1 - float(group["lr"]) * float(group["weight_decay"])
        for own, base, m, s in gates.blocks([p, before, signal, noise], group["reduce"] == "parameter"):
            if left != 1:
                base.mul_(left)
            torch.lerp(base, own, gates.opened(group, m, s, times).to(own.dtype), out=own)

    def _held_against(self, group: dict[str, Any], p: Tensor, exact: Tensor | None) -> tuple[Tensor, Tensor, float]:
        """A signal and a variance, and what that is to be multiplied by to be the signal's."""
        average, state = self._average(group, p), self.state[p]
        if exact is None:
            return gates.streamed(group, state, state[self.AVERAGE], average)
        if average is None or not group["correction"]:
            assert p.grad is not None
            return p.grad, exact, 1.0  # the batch's own mean
        return state[self.AVERAGE], exact, average.square

    def gate(self, parameter: Tensor) -> Tensor:
        """How far a streaming gate stands open after the last step, in [0, 1], shaped to broadcast with the parameter.

        Raises:
            InputError: the parameter is not held; its gate is exact, and known while a step is taken alone.
        """
        group = next((g for g in self.param_groups if any(p is parameter for p in g["params"])), None)
        if group is None:
            raise InputError(
                f"gate: this {type(self).__name__} does not hold the parameter of shape {tuple(parameter.shape)}."
            )
        if group["rule"] is not None and group["statistics"] == "exact":
            raise InputError(
                "gate: with statistics='exact' it belongs to a batch and is not kept; watch it by js.gating.Monitor."
            )
        if group["rule"] is None or not gates.settled(self.state[parameter]):
            return torch.ones((), dtype=parameter.dtype, device=parameter.device)
        return gates.opened(group, *self._held_against(group, parameter, None))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Torch's, of this kind of optimizer.

        Raises:
            InputError: it is another optimizer's.
        """
        groups = state_dict.get("param_groups", []) if isinstance(state_dict, dict) else []
        lacking = sorted({name for group in groups for name in gates.OPTIONS if name not in group})
        if not groups or lacking:
            raise InputError(f"this is no state of {type(self).__name__}: its groups lack {lacking or 'everything'}.")
        for group in groups:
            gates.require_options(group, type(self).__name__)
        wide = {i: s[gates.VARIANCE] for i, s in state_dict["state"].items() if gates.VARIANCE in s}
        super().load_state_dict(state_dict)
        held = [p for group in self.param_groups for p in group["params"]]
        numbers = [i for group in groups for i in group["params"]]
        for number, p in zip(numbers, held, strict=True):  # torch casts states to the parameter's dtype
            if number in wide and wide[number].dtype != p.dtype:
                self.state[p][gates.VARIANCE] = wide[number].detach().clone().to(p.device)


_untraced = torch._disable_dynamo(Gated._stepped)


def _parts(held: list[_Held]) -> Iterator[list[_Held]]:
    """All at once on a GPU; on a CPU large ones by themselves: a copy of one is in the cache when it is used."""
    small = [one for one in held if one.p.numel() <= LARGE or one.p.device.type != "cpu"]
    if small:
        yield small
    yield from ([one] for one in held if one.p.numel() > LARGE and one.p.device.type == "cpu")


def _isometric(weight: Tensor, step: float) -> None:
    """A step down ‖WᵀW − I‖², or ‖WWᵀ − I‖² of a wide W (out, in·…): singular values go to 1.

    Source: Rosseau, Müller & Nowé, arXiv:2606.09762.
    """
    w = weight.reshape(len(weight), -1)
    tall = w.shape[0] >= w.shape[1]
    gram = w.T @ w if tall else w @ w.T
    gram.diagonal().sub_(1.0)
    weight.sub_((w @ gram if tall else gram @ w).reshape(weight.shape), alpha=4 * step)


def _finite(gradients: list[Tensor]) -> bool:
    wide = {torch.float64: torch.float64, torch.complex128: torch.complex128, torch.complex64: torch.complex64}
    by_device: dict[torch.device, list[Tensor]] = {}
    for g in gradients:
        total = g.sum(dtype=wide.get(g.dtype, torch.float32))
        by_device.setdefault(g.device, []).append(torch.isfinite(total))
    if all(bool(torch.stack(found).all()) for found in by_device.values()):  # asked once a device: a GPU makes one wait
        return True
    return all(bool(torch.isfinite(g).all()) for g in gradients)  # a sum of finite numbers may overflow


def _exact(p: Tensor) -> Tensor:
    found = samples.noise(p)
    if found is None:
        raise InputError(
            f"statistics='exact': nothing is known of what each sample added to the gradient of a parameter of shape "
            f"{tuple(p.shape)}: call js.gating.record(model) before the forward pass, give its group rule=None, or "
            "statistics='streaming'."
        )
    return found
