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
from ..optim.twin import Changes, plain_step, stripped

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
        kept = stripped(optimizer)
        tables = {name: kept.pop(name) for name in ("param_groups", "state")}
        vars(self.copy).update(copy.deepcopy(kept))
        Optimizer.__setstate__(self.copy, {})
        self.copy.param_groups, self.copy.state = [], defaultdict(dict)
        self.pieces: list[Piece] = []
        self.groups: list[dict[str, Any]] = []  # of each piece
        present = dict(model.named_parameters())
        names: dict[nn.Parameter, str] = {present[name]: name for name in space.names}
        ends = dict(zip(space.names, torch.tensor(space.sizes).cumsum(0).tolist(), strict=True))
        self._spans = {n: slice(ends[n] - size, ends[n]) for n, size in zip(space.names, space.sizes, strict=True)}
        left = self._left_alone([p for group in tables["param_groups"] for p in group["params"] if p in names])
        for group in tables["param_groups"]:
            twin: dict[str, Any] = {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
            chosen = [p for p in group["params"] if p in names and p not in left]
            made = [self._piece(part, names, group) for part in self._merged(chosen, group)]
            self.pieces += made
            self.groups += [twin] * len(made)
            twin["params"] = [piece.twin for piece in made]
            self.copy.param_groups.append(twin)
        self.theta = space.read(model)
        self._whole = self._one()
        self._step = plain_step(self.copy)

    def _left_alone(self, parameters: Sequence[nn.Parameter]) -> set[nn.Parameter]:
        """Those that get no gradient in the user's loop, as far as can be told."""
        state = self.original.state
        some = any(state.get(p) for p in parameters), any(p.grad is not None for p in parameters)
        return {p for p in parameters if (some[0] and not state.get(p)) or (not some[0] and some[1] and p.grad is None)}

    def _merged(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> list[list[nn.Parameter]]:
        """What can be one tensor each: all of a group, where its entries do not know of each other."""
        state = self.original.state
        known = [adapters.find(self.original, p, group) for p in parameters]
        if not all(adapter is not None and adapter.elementwise for adapter in known) or not _alike(parameters, state):
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
                    if _by_entry(states[0][key], parameters[0]):
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
            self._whole.twin.grad = gradient if self._whole.sign > 0 else -gradient
            self._step(self.copy)
            self.theta = self._whole.twin.detach()
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
        state = {twin: _owned(entries) for twin, entries in self.copy.state.items()}
        groups = [{k: copy.copy(v) for k, v in g.items() if k != "params"} for g in self.copy.param_groups]
        extra = {k: copy.copy(v) for k, v in vars(self.copy).items() if isinstance(v, (bool, int, float))}

        @torch.no_grad()
        def restore() -> None:
            self.theta = theta.clone()
            for piece, value in zip(self.pieces, twins, strict=True):
                piece.twin.copy_(value)
            self.copy.state.clear()
            self.copy.state.update({twin: _owned(entries) for twin, entries in state.items()})
            for group, kept in zip(self.copy.param_groups, groups, strict=True):
                group.update({k: copy.copy(v) for k, v in kept.items()})
            vars(self.copy).update(extra)

        return restore

    def changes(self) -> Changes:
        """What makes the original's state and groups the copy's; weights are written by who moves them."""
        found = Changes()
        for piece in self.pieces:
            if piece.twin in self.copy.state:
                self._compare(found, piece)
        for group, own in zip(self.original.param_groups, self.copy.param_groups, strict=True):
            for key, value in own.items():
                if key != "params" and not _same(group.get(key), value):
                    found.entries.append((group, key, copy.copy(value)))
        for key, value in vars(self.copy).items():
            if isinstance(value, (bool, int, float)) and vars(self.original).get(key) != value:
                found.entries.append((vars(self.original), key, value))
        return found

    def _compare(self, found: Changes, piece: Piece) -> None:
        single = len(piece.parameters) == 1
        for key, value in self.copy.state[piece.twin].items():
            at = 0
            for parameter in piece.parameters:
                state, own = self.original.state[parameter], value
                if not single and _by_entry(value, piece.twin):
                    own = value[at : at + parameter.numel()].reshape(parameter.shape)
                at += parameter.numel()
                present = state.get(key)
                if isinstance(own, Tensor) and isinstance(present, Tensor) and present.shape == own.shape:
                    found.writes.append((present, own.clone()))
                elif isinstance(own, Tensor):
                    found.entries.append((state, key, own.clone()))
                elif not _same(present, own):
                    found.entries.append((state, key, copy.deepcopy(own)))


def _require_replayable(optimizer: Optimizer, space: ParameterSpace) -> None:
    kind = type(optimizer).__name__
    if isinstance(optimizer, (torch.optim.LBFGS, torch.optim.SparseAdam)):
        needs = "a closure" if isinstance(optimizer, torch.optim.LBFGS) else "sparse gradients"
        raise InputError(f"{kind} needs {needs} at every step: its steps cannot be skipped; use search=True.")
    if any(dtype.is_complex for dtype in space.dtypes):
        raise InputError("complex weights: their steps cannot be skipped yet; use search=True, or leave them out.")


def _by_entry(value: Any, parameter: Tensor) -> bool:
    """Whether an entry of the state has one number for each of the parameter's."""
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape


def _alike(parameters: Sequence[nn.Parameter], state: Any) -> bool:
    """Whether parameters have states of one kind, equal in all that is not by entry."""
    if len({(p.dtype, p.device) for p in parameters}) > 1:
        return False
    states = [state.get(p, {}) for p in parameters]
    if any(set(other) != set(states[0]) for other in states):
        return False
    for key in states[0] if states else ():
        entries = [other[key] for other in states]
        by_entry = [_by_entry(value, p) for value, p in zip(entries, parameters, strict=True)]
        if all(by_entry):
            continue
        if any(by_entry) or not all(_same(entries[0], value) for value in entries):
            return False
    return True


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and bool((a == b).all())
    return bool(a == b)


def _owned(entries: dict[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, Tensor) else copy.copy(value) for key, value in entries.items()}
