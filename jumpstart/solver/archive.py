"""A solution in a file: what it consists of, and that it is asked about the problem it was saved from.

Stored are θ₀, u₀, the basis, the metric and the flow's modes, so that loading costs a forward pass and no derivative;
the network and the data are the caller's, and have to be the same ones (``archive.fingerprint``). The model's weights
may have moved since: θ₀ comes from the file. The format is ``archive.container``'s.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..archive import fingerprint
from ..archive.container import Kind, Reader, reading, require_writable, write
from ..errors import ArchiveError, InputError, NonFiniteError
from ..flow.basis import Basis, Remainder
from ..flow.reduced_flow import ReducedFlow
from ..gating import Gate
from ..linalg.etdrk4 import Modes
from ..linearization.linearize import Linearization
from ..linearization.metric import Metric
from ..linearization.operators import Jacobian
from ..linearization.problem import kept
from ..objectives.objective import Objective
from ..utils.cost import Ledger

SOLUTION = Kind("solution", 2, "saved solution", "save it again")
_BASIS = ("images", "vectors", "cotangents", "squares", "decay", "decay_force")
_TOLD = {"kind": str, "route": str, "complete": bool, "modal": bool, "is_krylov": bool, "damping": float}
_NOT_NEGATIVE = ("squares", "rates", "modes")


def save(path: str | os.PathLike[str], flow: ReducedFlow) -> Path:
    """Write a solution to ``path`` and return it; a file of that name is replaced at the end, whole or not at all.

    A Krylov basis has its remainder measured now, for at most one product, so that error bounds work after loading.

    Raises:
        ArchiveError: the file cannot be written.
    """
    if flow.problem.lin.shards is not None:
        raise InputError(
            "a solution over several processes is not saved: a file is held against its data, which no process has all "
            "of. Save what it answers, or solve in one process."
        )
    require_writable(path)  # before the remainder is paid for
    basis, lin, loss = flow.basis, flow.problem.lin, flow.problem.loss
    lin.require_unchanged()  # the data are described as they are now
    metric, rate = basis.metric, basis.metric.decay
    arrays: dict[str, Any] = {name: getattr(basis, name) for name in _BASIS}
    arrays |= {"theta": lin.theta, "u": lin.u, "root": metric.root, "rates": rate if isinstance(rate, Tensor) else None}
    arrays |= {"modes": flow.start.rates, "rotation": flow.start.vectors}
    content = {
        "problem": fingerprint.describe(lin.net.space, lin.parts, lin.u.shape, loss, {}),
        "loss": fingerprint.probe(lin.parts, lin.u.split(lin.counts), loss)["loss"],
        "basis": {name: getattr(basis, name) for name in _TOLD},
        "remainder": None if basis.remainder is None else list(basis.remainder.measure()),
        "metric": {"decay": None if isinstance(rate, Tensor) else float(rate)},
        "flow": {"tolerance": flow.tolerance, "floor": flow.start.floor},
        "gate": None if flow.gate is None else {"rule": flow.gate.rule, "options": dict(flow.gate.options)},
    }
    return write(path, SOLUTION, content, {name: value for name, value in arrays.items() if value is not None})


def load(path: str | os.PathLike[str], objective: Objective) -> ReducedFlow:
    """Read what :func:`save` wrote, for the same model and data; on the objective's device, for a forward pass.

    The model's present weights play no part: the solution is about those that it was saved at.

    Raises:
        ArchiveError: the file holds no solution, is damaged or of another format, or was saved from another model,
            other data or another loss; says what differs.
    """
    if not isinstance(objective, Objective):
        raise ArchiveError(f"load needs the js.Objective that was solved, got {type(objective).__name__}.")
    objective.require_alone("loading a solution")
    space, parts, loss = objective.space, objective.parts, objective.loss
    here = fingerprint.describe(space, parts, objective.shape, loss, {})
    with reading(path, SOLUTION) as file:
        told = file.content
        if message := fingerprint.difference(told["problem"], here):
            raise ArchiveError(f"{path}: {message}")
        _require_sizes(file, objective)
        gate = _gate(told)
        arrays = {name: value.to(space.device) for name, value in file.load().items()}
        _require_values(arrays)
    try:
        lin, loss = kept(objective, arrays["theta"], Ledger())
    except NonFiniteError as error:
        raise ArchiveError(f"{path}: at the saved weights, {error}") from error
    saved, found = (fingerprint.probe(parts, u.split(lin.counts), loss) for u in (arrays["u"], lin.u))
    # The loss is asked at the saved outputs, so that it is the same to the last digits.
    then, now = saved | {"loss": told["loss"]}, found | {"loss": saved["loss"]}
    if message := fingerprint.probe_difference(then, now, fingerprint.LOSS_TOLERANCE):
        raise ArchiveError(f"{path}: {message}")
    lin.u = arrays["u"]
    start = Modes(arrays["modes"], arrays.get("rotation"), float(told["flow"]["floor"]))
    return ReducedFlow(_basis(told, arrays, lin), loss, float(told["flow"]["tolerance"]), gate, start)


def _basis(told: Mapping[str, Any], arrays: Mapping[str, Tensor], lin: Linearization) -> Basis:
    pair = told["remainder"] and (float(told["remainder"][0]), float(told["remainder"][1]))
    fields: dict[str, Any] = {name: arrays.get(name) for name in _BASIS} | told["basis"]
    metric = Metric(arrays.get("root"), arrays["rates"] if "rates" in arrays else float(told["metric"]["decay"]))
    return Basis(
        jacobian=Jacobian(lin, metric),
        remainder=Remainder(lambda: pair) if pair else None,
        **fields,
    )


def _gate(told: Mapping[str, Any]) -> Gate | None:
    found = told["gate"]
    if found is None:
        return None
    if not isinstance(found, dict) or found.keys() != {"rule", "options"} or not isinstance(found["options"], dict):
        raise ValueError(f"a gate of {found!r}"[:200])
    return Gate(found["rule"], {name: float(value) for name, value in found["options"].items()})


def _require_sizes(file: Reader, objective: Objective) -> None:
    """Raise where what the header says of the arrays does not go with the objective or with the rest."""
    found = {name: spec.shape for name, spec in file.specs.items()}
    k, n, p = found["modes"][0], tuple(objective.shape), objective.space.size
    rows = [found[name][0] for name in ("cotangents", "vectors") if name in found]
    shapes = {"theta": (p,), "u": n, "images": (k, *n), "squares": (k,), "decay": (k, k), "decay_force": (k,)}
    shapes |= {"root": (p,), "rates": (p,), "modes": (k,), "rotation": (k, k)}
    shapes |= {"cotangents": (rows[0], *n), "vectors": (rows[-1], p)}
    for name, spec in file.specs.items():
        if shapes[name] != spec.shape or not spec.dtype.is_floating_point:
            raise ValueError(f"{name} of shape {spec.shape} and {spec.dtype}, not {shapes[name]} and floating point")
    if not {"theta", "u", "images"} <= found.keys() or ("decay" in found) != ("decay_force" in found):
        raise ValueError("an array is missing")
    if sum(rows) != k or file.specs["theta"].dtype != objective.space.dtype:
        raise ValueError(f"{sum(rows)} directions for {k} modes, or weights of {file.specs['theta'].dtype}")
    told, flow = file.content["basis"], file.content["flow"]
    if {name: type(value) for name, value in told.items()} != _TOLD:
        raise TypeError("the basis is not described")
    loss = [float(x) for x in file.content["loss"]]
    numbers = [flow["tolerance"], flow["floor"], *(file.content["remainder"] or (0, 0))]
    numbers += [] if "rates" in found else [file.content["metric"]["decay"]]
    if (
        len(loss) != 3
        or len(numbers) != (4 if "rates" in found else 5)
        or not all(0 <= float(x) < math.inf for x in numbers)
    ):
        raise ValueError(f"{loss}, {numbers} where three numbers and some of 0 or more should be")


def _require_values(arrays: Mapping[str, Tensor]) -> None:
    """Raise where arrays hold what no solution does; they are finite."""
    for name in _NOT_NEGATIVE:
        if name in arrays and not bool((arrays[name] >= 0).all()):
            raise ValueError(f"{name} holds a negative number")
    if "root" in arrays and not bool((arrays["root"] > 0).all()):
        raise ValueError("root holds a zero")
