"""A copy of an optimizer that steps on one flat vector of weights: many steps on gradients that are given, cheaply.

Where an optimizer works entry by entry, a group's parameters are one long tensor in the copy, so that a step of it is
a few operations whatever the number of layers; others keep their parameters as they are.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..objectives.parameters import ParameterSpace
from ..optim import adapters
from ..optim.twin import Changes, plain_step
from ..utils.cost import CALLS as STEP_CALLS
from .kernels import CALLS, kernel
from .tables import alike, attributes, by_entry, change, own_numbers, owned, touched

Optimizer = torch.optim.Optimizer


@dataclass(frozen=True)
class Piece:
    """Parameters that are one tensor in the copy: their names, and where they lie in θ (P,)."""

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    spans: tuple[slice, ...]
    twin: Tensor
    sign: float  # −1 where the optimizer climbs

    def read(self, vector: Tensor) -> Tensor:
        """Its entries of a vector (P,), shaped like the twin."""
        found = [vector[span] for span in self.spans]
        if len(found) > 1:
            return torch.cat(found)
        return found[0].reshape(self.twin.shape)


class Replica:
    """An optimizer's state, groups and weights in a copy that is stepped on gradients (P,).

    Parameters of the space that the optimizer has left alone so far (no state and no gradient, where others have
    some) stay where they are.

    Args:
        optimizer: any torch optimizer that needs no closure; it is never written to but by :meth:`changes`.
        space, model: whose parameters θ (P,) is made of.

    Raises:
        InputError: it needs a closure, or cannot be copied; or weights are complex.
    """

    def __init__(self, optimizer: Optimizer, space: ParameterSpace, model: nn.Module) -> None:
        _require_replayable(optimizer, space)
        self.original, self.space = optimizer, space
        self.copy: Optimizer = object.__new__(type(optimizer))
        tables = {"param_groups": optimizer.param_groups, "state": optimizer.state}
        vars(self.copy).update(attributes(optimizer, self.copy))
        Optimizer.__setstate__(self.copy, {})
        self.copy.param_groups, self.copy.state = [], defaultdict(dict)
        self.pieces: list[Piece] = []
        self.groups: list[dict[str, Any]] = []  # of each piece
        present = dict(model.named_parameters())
        names: dict[nn.Parameter, str] = {present[name]: name for name in space.names}
        ends = dict(zip(space.names, torch.tensor(space.sizes).cumsum(0).tolist(), strict=True))
        self._spans = {n: slice(ends[n] - size, ends[n]) for n, size in zip(space.names, space.sizes, strict=True)}
        left = self._left_alone([p for group in tables["param_groups"] for p in group["params"] if p in names])
        shared: dict[int, Any] = {}  # a default that is a list is one list in all groups
        for group in tables["param_groups"]:
            twin = owned(group, shared)
            chosen = [p for p in group["params"] if p in names and p not in left]
            made = [self._piece(part, names, group) for part in self._merged(chosen, group)]
            self.pieces += made
            self.groups += [twin] * len(made)
            twin["params"] = [piece.twin for piece in made]
            self.copy.param_groups.append(twin)
        self.theta = space.read(model)
        self._whole = self._one()
        self._step = plain_step(self.copy)
        self._kernel = None
        if self._whole is not None and len(self.copy.param_groups) == 1:
            self._kernel = kernel(self.copy, self.groups[0], self.copy.state.get(self._whole.twin, {}))

    @property
    def calls(self) -> int:
        """Operations that a step takes, about."""
        return CALLS if self._kernel is not None else STEP_CALLS * len(self.pieces)

    def _left_alone(self, parameters: Sequence[nn.Parameter]) -> set[nn.Parameter]:
        """Those that get no gradient in the user's loop, as far as can be told."""
        stepped = {p for p in parameters if touched(self.original.state.get(p, {}))}
        if stepped:
            return set(parameters) - stepped
        graded = {p for p in parameters if p.grad is not None}
        return set(parameters) - graded if graded else set()

    def _merged(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> list[list[nn.Parameter]]:
        """What can be one tensor each: all of a group, where its entries do not know of each other."""
        single = all(_elementwise(self.original, p, group) for p in parameters)
        if not single or not alike(parameters, self.original.state):
            return [[p] for p in parameters]
        return [parameters] if parameters else []

    def _piece(self, parameters: list[nn.Parameter], names: dict[nn.Parameter, str], group: dict[str, Any]) -> Piece:
        single = len(parameters) == 1
        value = parameters[0].detach() if single else torch.cat([p.detach().reshape(-1) for p in parameters])
        twin = nn.Parameter(value.clone(), requires_grad=True)
        states = [self.original.state.get(p, {}) for p in parameters]
        if any(states):
            merged = copy.deepcopy(dict(states[0]))
            if not single:
                for key in merged:
                    if by_entry(states[0][key], parameters[0]):
                        merged[key] = torch.cat([state[key].detach().reshape(-1) for state in states])
            self.copy.state[twin] = merged
        found = tuple(names[p] for p in parameters)
        spans = tuple(self._spans[name] for name in found)
        return Piece(found, tuple(parameters), spans, twin, -1.0 if group.get("maximize") else 1.0)

    @torch.no_grad()
    def step(self, gradient: Tensor) -> Tensor:
        """One step on a gradient (P,) of what is to be lowered.

        Returns:
            The weights θ (P,) that it leads to, good until the next step: a copy is the caller's to make.
        """
        if self._whole is not None:
            whole, twin = self._whole, self._whole.twin
            if self._kernel is not None:
                self._kernel(twin.detach(), gradient, self.copy.state.get(twin, {}), self.groups[0])
            else:
                twin.grad = gradient if whole.sign > 0 else -gradient
                self._step(self.copy)
            self.theta = twin.detach()
            return self.theta
        for piece in self.pieces:
            grad = piece.read(gradient).to(piece.twin.dtype)
            piece.twin.grad = grad if piece.sign > 0 else -grad
        self._step(self.copy)
        self.theta = self._gathered()
        return self.theta

    def _gathered(self) -> Tensor:
        """θ (P,) from the pieces."""
        theta = self.theta.clone()
        for piece in self.pieces:
            flat, at = piece.twin.detach().reshape(-1), 0
            for span in piece.spans:
                size = span.stop - span.start
                theta[span] = flat[at : at + size].to(theta.dtype)
                at += size
        return theta

    def _one(self) -> Piece | None:
        """The piece that is θ itself, in its order and dtype, if there is one."""
        if len(self.pieces) != 1:
            return None
        piece = self.pieces[0]
        same = piece.names == self.space.names and piece.twin.dtype == self.space.dtype
        return piece if same and piece.twin.dim() == 1 else None

    def save(self) -> Callable[[], None]:
        """What puts the copy back to where it is now; may be called more than once."""
        theta = self.theta.clone()
        twins = [piece.twin.detach().clone() for piece in self.pieces]
        state = {twin: owned(entries) for twin, entries in self.copy.state.items()}
        kept: dict[int, Any] = {}
        groups = [owned(group, kept) for group in self.copy.param_groups]
        extra = owned(own_numbers(self.copy), kept)

        @torch.no_grad()
        def restore() -> None:
            self.theta = theta.clone()
            for piece, value in zip(self.pieces, twins, strict=True):
                piece.twin.copy_(value)
            self.copy.state.clear()
            self.copy.state.update({twin: owned(entries) for twin, entries in state.items()})
            shared: dict[int, Any] = {}
            for group, saved in zip(self.copy.param_groups, groups, strict=True):
                group.update(owned(saved, shared))
            vars(self.copy).update(owned(extra, shared))

        return restore

    def changes(self) -> Changes:
        """What makes the original's state and groups the copy's; weights are written by who moves them."""
        found, shared = Changes(), {}
        for piece in self.pieces:
            if piece.twin in self.copy.state:
                self._compare(found, piece)
        for group, own in zip(self.original.param_groups, self.copy.param_groups, strict=True):
            for key, value in own.items():
                if key != "params":
                    change(found, group, key, value, shared)
        for key, value in own_numbers(self.copy).items():
            change(found, vars(self.original), key, value, shared)
        return found

    def _compare(self, found: Changes, piece: Piece) -> None:
        at = 0
        for parameter in piece.parameters:
            own, known = {}, self.original.state.get(parameter)
            for key, value in self.copy.state[piece.twin].items():
                part = len(piece.parameters) > 1 and by_entry(value, piece.twin)
                own[key] = value[at : at + parameter.numel()].reshape(parameter.shape) if part else value
            at += parameter.numel()
            if not known:  # its first step would be taken for its second, were there an entry in part
                found.entries.append((self.original.state, parameter, owned(own)))
                continue
            for key, value in own.items():
                change(found, known, key, value, {})


def _elementwise(optimizer: Optimizer, parameter: nn.Parameter, group: dict[str, Any]) -> bool:
    """Whether entries are moved each by itself: known of torch's classes, and of those that a row names as a class.

    An entry's state says nothing of it: LAMB keeps what Adam keeps, and scales each layer.
    """
    adapter, kind = adapters.find(optimizer, parameter, group), type(optimizer)
    if adapter is None or not adapter.elementwise or parameter.dim() == 0:
        return False
    return kind.__module__.startswith("torch.optim.") or kind in adapter.types


def require_kind(optimizer: Optimizer) -> None:
    """Raise for optimizers whose steps need what a skip does not have."""
    kind = type(optimizer).__name__
    if isinstance(optimizer, (torch.optim.LBFGS, torch.optim.SparseAdam)):
        needs = "a closure" if isinstance(optimizer, torch.optim.LBFGS) else "sparse gradients"
        raise InputError(f"{kind} needs {needs} at every step: its steps cannot be skipped; use search=True.")
    if any(group.get("statistics") == "exact" and group.get("rule") for group in optimizer.param_groups):
        raise InputError(
            f"{kind} gates by the samples of each batch, which are not there in steps that are skipped: give "
            "statistics='streaming', or use search=True."
        )


def _require_replayable(optimizer: Optimizer, space: ParameterSpace) -> None:
    require_kind(optimizer)
    if any(dtype.is_complex for dtype in space.dtypes):
        raise InputError("complex weights: their steps cannot be skipped yet; use search=True, or leave them out.")
