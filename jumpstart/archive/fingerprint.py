"""Which problem a file belongs to, as numbers and digests in JSON, and in one sentence what differs from it.

Two parts. What can be read off is compared exactly: parameters, outputs, targets, data and weight of every piece of
the outputs, options (``describe``, ``difference``). What cannot, such as code, buffers, modes and the numbers that a
function reads, is compared by what it does at given weights, to within rounding (``probe``, ``probe_difference``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..losses.base import Loss
from ..objectives.collocation import Points
from ..objectives.objective import Objective
from ..objectives.parameters import ParameterSpace
from ..objectives.parts import Batch, Part, join
from ..utils.autodiff import normal
from ..utils.guard import guarded
from .container import digest

PROJECTIONS = 4  # random ones, of each piece of the outputs: a change that all of them miss is below the tolerance
OFF = (0.1, 1e-3, 0.0)  # how far probed weights lie off the present ones, relative to their size
LOSS_TOLERANCE = 1e-6  # of value, slope and curvature of a loss at outputs that agree to the bit


def describe(
    space: ParameterSpace, parts: Sequence[Part], shape: Sequence[int], loss: Loss, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What can be read off a problem, for JSON: nothing is evaluated.

    Args:
        shape: of the outputs.
        options: those on which the answer hangs; None, numbers, text.
    """
    rows = zip(space.names, space.shapes, space.dtypes, strict=True)
    return {
        "parameters": [{"name": name, "shape": list(size), "dtype": _plain(dtype)} for name, size, dtype in rows],
        "outputs": list(shape),
        "loss": {"class": type(loss).__name__, "targets": digest(loss.targets)},
        "pieces": [_piece(piece) for piece in _pieces(parts)],
        "options": json.loads(json.dumps(dict(options))),  # as they will be read: tuples become lists
    }


def probe(parts: Sequence[Part], rows: Sequence[Tensor], loss: Loss) -> dict[str, Any]:
    """What the outputs and the loss on them are at some weights, in a few numbers.

    Args:
        rows: the outputs of each part.
    """
    pieces, at = [], 0
    for piece in _pieces(parts):
        u = join(rows[at : at + len(piece)]).detach()
        at += len(piece)
        flat = u.double().reshape(-1)
        along = [float(normal(flat.shape, k).to(flat) @ flat) for k in range(PROJECTIONS)]
        pieces.append({"name": _name(piece), "norm": float(torch.linalg.vector_norm(flat)), "projections": along})
    u = join(rows).detach()
    return {"dtype": _plain(u.dtype), "pieces": pieces, "loss": _loss_numbers(loss, u.double())}


def probe_off(objective: Objective) -> tuple[Tensor, dict[str, Any]] | None:
    """Weights (P,) near the present ones, and the probe there; None where the outputs are not finite.

    Off the present weights, since near a solution residuals are what rounding leaves of large terms.
    """
    theta = objective.theta()
    noise = normal(theta.shape, 0).to(theta)
    for size in OFF:
        near = theta + size * noise * theta.abs().clamp_min(0.1)
        if (found := probe_at(objective, near)) is not None:
            return near, found
    return None


@guarded(lambda objective, *_, **__: objective.model)
def probe_at(objective: Objective, theta: Tensor) -> dict[str, Any] | None:
    """The probe at weights θ (P,), for a forward pass; None where the outputs are not finite."""
    rows = objective.by_part(theta)
    if not all(bool(torch.isfinite(u).all()) for u in rows):
        return None
    return probe(objective.whole, rows, objective.loss)


# -- comparing ---------------------------------------------------------------------------------------------------


def difference(saved: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """What tells two descriptions apart, in a sentence; None where nothing does.

    Raises:
        KeyError, TypeError, ValueError: ``saved`` is no description.
    """
    for compare in (_of_parameters, _of_outputs, _of_loss, _of_pieces, _of_options):
        if message := compare(saved, here):
            return message
    return None


def probe_difference(
    saved: Mapping[str, Any], here: Mapping[str, Any], loss_tolerance: float | None = None
) -> str | None:
    """The same for two probes at the same weights; NaN differs from everything.

    Args:
        loss_tolerance: relative, of the loss's numbers; None: as far as outputs that agree may take them apart.
    """
    then, now = saved["pieces"], here["pieces"]
    if saved["dtype"] != here["dtype"]:
        return f"the outputs are {here['dtype']} here and {saved['dtype']} in the file."
    tolerance = torch.finfo(getattr(torch, here["dtype"])).eps ** 0.5
    whole = math.hypot(*(float(piece["norm"]) for piece in then)) + 1e-300
    for a, b in zip(then, now, strict=True):
        numbers = zip([a["norm"], *a["projections"]], [b["norm"], *b["projections"]], strict=True)
        apart = _largest(abs(float(x) - float(y)) for x, y in numbers) / whole
        if not apart <= tolerance:
            return (
                f"at the saved weights the model's outputs{_of(a['name'])} are {apart:.1e} (relative) from the saved "
                "ones: other buffers (BatchNorm statistics), frozen parameters, train or eval mode, code, or numbers "
                "that it reads."
            )
    close = max(LOSS_TOLERANCE, 2 * tolerance) if loss_tolerance is None else loss_tolerance
    numbers = list(zip(saved["loss"], here["loss"], strict=True))
    if not all(math.isclose(float(x), y, rel_tol=close, abs_tol=1e-290) for x, y in numbers):
        return f"another loss: value, slope, curvature {here['loss']} at the saved outputs, not {saved['loss']}."
    return None


def require_probe(told: Any, problem: Mapping[str, Any]) -> None:
    """Raise KeyError, TypeError or ValueError for what is no probe of a problem that was described."""
    names = [(piece["name"], len(piece["projections"])) for piece in told["pieces"]]
    if names != [(piece["name"], PROJECTIONS) for piece in problem["pieces"]] or len(told["loss"]) != 3:
        raise ValueError(f"a probe of {names[:9]}")
    _ = told["dtype"], [float(x) for piece in told["pieces"] for x in (piece["norm"], *piece["projections"])]
    _ = [float(x) for x in told["loss"]]


def _of_parameters(saved: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    other = "this file belongs to another model."
    then, now = saved["parameters"], here["parameters"]
    names, ours = [row["name"] for row in then], [row["name"] for row in now]
    if gone := [name for name in names if name not in ours]:
        return f"the file has parameters {gone[:4]}, which the objective does not move: {other}"
    if more := [name for name in ours if name not in names]:
        return f"the objective moves {more[:4]} too: give objective.subset([…]) with the parameters of the file."
    if names != ours:
        return f"the parameters are in another order, {names[:9]} in the file and {ours[:9]} in the model: {other}"
    for a, b in zip(then, now, strict=True):
        for what in ("shape", "dtype"):
            if a[what] != b[what]:
                return f"parameter {a['name']!r} has {what} {a[what]} in the file and {b[what]} in the model: {other}"
    return None


def _of_outputs(saved: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    if saved["outputs"] == here["outputs"]:
        return None
    because = _of_pieces(saved, here) or "this file belongs to another model."
    return f"the outputs have shape {saved['outputs']} in the file and {here['outputs']} in the model: {because}"


def _of_loss(saved: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    then, now = saved["loss"], here["loss"]
    if then["class"] != now["class"]:
        return f"saved with the loss {then['class']}, but the objective has {now['class']}."
    if then["targets"] != now["targets"]:
        return "the targets differ (by SHA-256): this file belongs to other data, or to another precision of them."
    return None


def _of_pieces(saved: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    then, now = saved["pieces"], here["pieces"]
    names, ours = [row["name"] for row in then], [row["name"] for row in now]
    if names != ours:
        return f"the terms are {names[:9]} in the file and {ours[:9]} here."
    for a, b in zip(then, now, strict=True):
        of = _of(a["name"])
        if a["kind"] != b["kind"]:
            return f"the outputs{of} were made by {a['kind']} and are made by {b['kind']} here."
        if a["scale"] != b["scale"]:
            return f"the weight{of} is {a['scale'] ** 2:.6g} in the file and {b['scale'] ** 2:.6g} here."
        if message := _of_data(a["data"], b["data"], of):
            return message
    return None


def _of_data(then: Mapping[str, Any], now: Mapping[str, Any], of: str) -> str | None:
    if then.keys() != now.keys():
        return f"the data{of} are {sorted(then)[:9]} in the file and {sorted(now)[:9]} here."
    for what, x in then.items():
        y = now[what]
        for quality in ("shape", "dtype"):
            if x[quality] != y[quality]:
                return f"the {what}{of} have {quality} {x[quality]} in the file and {y[quality]} here."
        if x["sha256"] != y["sha256"]:
            return f"the {what}{of} differ (by SHA-256): other {what}, another order or another precision of them."
    return None


def _of_options(saved: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    then, now = saved["options"], here["options"]
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            return f"the option {name} was {then.get(name)!r} and is {now.get(name)!r} here: give the same."
    return None


# -- pieces ------------------------------------------------------------------------------------------------------


def _pieces(parts: Sequence[Part]) -> list[list[Part]]:
    """The parts one by one, but batches in a row as one: chunks bound memory and are no part of the problem."""
    found: list[list[Part]] = []
    for part in parts:
        if isinstance(part, Batch) and found and isinstance(found[-1][0], Batch):
            found[-1].append(part)
        else:
            found.append([part])
    return found


def _piece(piece: Sequence[Part]) -> dict[str, Any]:
    first, data = piece[0], [part.data() for part in piece]
    # What has no row for each sample is the same tensor in every chunk, and counts once.
    stacks = {name: list({id(held[name]): held[name] for held in data if name in held}.values()) for name in data[0]}
    return {
        "kind": type(first).__name__,
        "name": _name(piece),
        "scale": first.scale if isinstance(first, Points) and isinstance(first.scale, float) else 1.0,
        "data": {name: _data(stack) for name, stack in stacks.items()},
    }


def _data(stack: Sequence[Tensor]) -> dict[str, Any]:
    first = stack[0]
    shape = [sum(tensor.shape[0] for tensor in stack), *first.shape[1:]] if len(stack) > 1 else list(first.shape)
    return {"shape": shape, "dtype": _plain(first.dtype), "sha256": digest(*stack)}


def _loss_numbers(loss: Loss, u: Tensor) -> list[float]:
    """Φ, ‖∇Φ‖ and vᵀBv at u for a fixed v: what tells losses with the same targets apart."""
    bound, v = loss.to(u), torch.cos(torch.arange(u.numel(), dtype=u.dtype, device=u.device)).reshape(u.shape)
    return [float(bound.value(u)), float(torch.linalg.vector_norm(bound.grad(u))), float((v * bound.hvp(u, v)).sum())]


def _name(piece: Sequence[Part]) -> str:
    return piece[0].name


def _of(name: str) -> str:
    return f" of {name!r}" if name else ""


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _largest(numbers: Any) -> float:
    """The largest number, and NaN if one is."""
    found = list(numbers)
    return math.nan if any(math.isnan(x) for x in found) else max(found)
