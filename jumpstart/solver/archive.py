"""A solution in a file: saved whole, read without executing anything, and checked against the model it is asked of.

A plain .npz that is read with ``allow_pickle=False``, with a header in JSON. Stored are θ₀, u₀, the basis, the metric
and the flow's modes, so that loading costs a forward pass and no derivative; the network and the data are the
caller's, and have to be the same ones. The model's weights may have moved since: θ₀ comes from the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import ArchiveError
from ..flow.basis import Basis, Remainder
from ..flow.reduced_flow import ReducedFlow
from ..gating import Gate
from ..linalg.etdrk4 import Modes
from ..linearization.linearize import Linearization, linearize
from ..linearization.metric import Metric
from ..linearization.operators import Jacobian
from ..losses.base import Loss
from ..objectives.objective import Objective
from ..objectives.parameters import ParameterSpace
from ..utils import version
from ..utils.cost import Ledger

FORMAT = "jumpstart solution"
VERSION = 1
_BASIS = ("images", "vectors", "cotangents", "squares", "decay", "decay_force")
_TOLD = ("kind", "route", "complete", "modal", "is_krylov", "damping")
_DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}


def save(path: str | os.PathLike[str], flow: ReducedFlow) -> Path:
    """Write a solution to ``path`` and return it; a file of that name is replaced at the end, whole or not at all.

    A Krylov basis has its remainder measured now, for at most one product, so that error bounds work after loading.

    Raises:
        ArchiveError: the file cannot be written.
    """
    lin, basis, loss = flow.problem.lin, flow.basis, flow.problem.loss
    metric, rate = basis.metric, basis.metric.decay
    arrays: dict[str, Any] = {name: getattr(basis, name) for name in _BASIS}
    arrays |= {"theta": lin.theta, "u": lin.u, "root": metric.root, "rates": rate if isinstance(rate, Tensor) else None}
    arrays |= {"modes": flow.start.rates, "rotation": flow.start.vectors}
    kept: dict[str, Tensor] = {name: value.detach() for name, value in arrays.items() if value is not None}
    header = {
        "format": FORMAT,
        "version": VERSION,
        "jumpstart": version.installed(),
        "torch": torch.__version__,
        "arrays": {name: [str(value.dtype).removeprefix("torch."), _layout(value)] for name, value in kept.items()},
        "parameters": _parameters(lin.net.space),
        "outputs": {"shape": list(lin.u.shape), "sha256": digest(lin.u)},
        "loss": {"class": type(loss).__name__, "sha256": digest(loss.targets), "probe": _probe(loss, flow.u)},
        "basis": {name: getattr(basis, name) for name in _TOLD},
        "remainder": None if basis.remainder is None else list(basis.remainder.measure()),
        "metric": {"decay": None if isinstance(rate, Tensor) else float(rate)},
        "flow": {
            "tolerance": flow.tolerance,
            "floor": flow.start.floor,
            "gate": None if flow.gate is None else [flow.gate.rule, dict(flow.gate.options)],
        },
    }
    table: dict[str, Any] = {}
    for name, value in kept.items():
        # The layout in memory is kept, since sums of other order round differently; NumPy knows no bfloat16.
        plain = value.permute(_layout(value)).contiguous().cpu()
        table[name] = (plain.float() if plain.element_size() < 4 else plain).numpy()
    table["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    return _write(Path(path), table)


def _write(path: Path, table: dict[str, Any]) -> Path:
    whole = path.resolve()
    part = whole.with_name(f".{whole.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            np.savez(file, **table)
            file.flush()
            os.fsync(file.fileno())
        part.replace(whole)
    except OSError as error:
        raise ArchiveError(f"{path}: the solution cannot be written there ({error}).") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return path


def load(path: str | os.PathLike[str], objective: Objective) -> ReducedFlow:
    """Read what :func:`save` wrote, for the same model and data; on the objective's device, for a forward pass.

    The model's present weights play no part: the solution is about those that it was saved at.

    Raises:
        ArchiveError: the file holds no solution, is damaged or of a later format, or was saved from another model,
            other data or another loss; says what differs.
    """
    if not isinstance(objective, Objective):
        raise ArchiveError(f"load needs the js.Objective that was solved, got {type(objective).__name__}.")
    file = _read(Path(path))
    if message := _difference(file.header, objective):
        raise ArchiveError(f"{path}: {message}")
    lin = linearize(objective, file.arrays["theta"].to(objective.space.device), Ledger())
    u = file.arrays["u"].to(lin.u.device)
    apart = float(torch.linalg.vector_norm((lin.u - u).double()) / (torch.linalg.vector_norm(u.double()) + 1e-300))
    if u.dtype != lin.u.dtype or not apart <= torch.finfo(u.dtype).eps ** 0.5:
        raise ArchiveError(
            f"{path}: at the saved weights the model's outputs ({lin.u.dtype}) are {apart:.1e} (relative) from the "
            f"saved ones ({u.dtype}): other inputs, buffers (BatchNorm statistics), train or eval mode, or code."
        )
    lin.u = u
    here, then = _probe(objective.loss, u.double()), file.header["loss"]["probe"]
    if not all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-290) for a, b in zip(here, then, strict=True)):
        raise ArchiveError(f"{path}: another loss: value, slope, curvature {here} at the saved outputs, not {then}.")
    return file.flow(file.basis(lin), objective.loss)


class _File(NamedTuple):
    """What stands in a file."""

    header: dict[str, Any]
    arrays: dict[str, Tensor]

    def basis(self, lin: Linearization) -> Basis:
        told, on = self.header, {name: value.to(lin.u.device) for name, value in self.arrays.items()}
        pair = told["remainder"] and (float(told["remainder"][0]), float(told["remainder"][1]))
        fields: dict[str, Any] = {name: on.get(name) for name in _BASIS} | told["basis"]
        return Basis(
            jacobian=Jacobian(
                lin, Metric(on.get("root"), on["rates"] if "rates" in on else float(told["metric"]["decay"]))
            ),
            remainder=Remainder(lambda: pair) if pair else None,
            **fields,
        )

    def flow(self, basis: Basis, loss: Loss) -> ReducedFlow:
        told, on = self.header["flow"], {name: value.to(basis.images.device) for name, value in self.arrays.items()}
        start = Modes(on["modes"], on.get("rotation"), float(told["floor"]))
        gate = None if told["gate"] is None else Gate(*told["gate"])
        return ReducedFlow(basis, loss, float(told["tolerance"]), gate, start)

    def check(self) -> None:
        """Raise ValueError, KeyError or TypeError where header and arrays do not belong together."""
        header, found = self.header, {name: tuple(value.shape) for name, value in self.arrays.items()}
        k, n, p = found["modes"][0], tuple(header["outputs"]["shape"]), found["theta"][0]
        rows = [found[name][0] for name in ("cotangents", "vectors") if name in found]
        shapes = {"theta": (p,), "u": n, "images": (k, *n), "squares": (k,), "decay": (k, k), "decay_force": (k,)}
        shapes |= {"root": (p,), "rates": (p,), "modes": (k,), "rotation": (k, k)}
        shapes |= {"cotangents": (rows[0], *n), "vectors": (rows[-1], p)}
        for name, shape in found.items():
            if shapes[name] != shape:
                raise ValueError(f"{name} of shape {shape}, not {shapes[name]}")
        complete = {"images", "u"} <= found.keys() and ("decay" in found) == ("decay_force" in found)
        if not complete or sum(rows) != k or p != sum(math.prod(row["shape"]) for row in header["parameters"]):
            raise ValueError("an array is missing, or directions or parameters do not add up")
        if digest(self.arrays["u"]) != header["outputs"]["sha256"]:
            raise ValueError("the outputs do not match their checksum")
        told, flow, loss = header["basis"], header["flow"], header["loss"]
        if tuple(told) != _TOLD or [type(value) for value in told.values()] != [str, str, bool, bool, bool, float]:
            raise TypeError("the basis is not described")
        numbers = [flow["tolerance"], flow["floor"], *loss["probe"], *(header["remainder"] or (0, 0))]
        if len([float(x) for x in numbers]) != 7 or not ("rates" in found or float(header["metric"]["decay"]) >= 0):
            raise ValueError("numbers are missing")
        _ = loss["class"], loss["sha256"], [(row["name"], row["dtype"]) for row in header["parameters"]]


def _read(path: Path) -> _File:
    try:
        with np.load(path, allow_pickle=False) as found:
            header = json.loads(found["header"].tobytes())
            if header["format"] != FORMAT or not isinstance(header["version"], int):
                raise ValueError(f"format {header['format']!r}, version {header['version']!r}")
            if header["version"] <= VERSION:
                arrays = {}
                for name, (dtype, layout) in header["arrays"].items():
                    back = torch.from_numpy(found[name]).permute([layout.index(i) for i in range(len(layout))])
                    arrays[name] = back.to(_DTYPES[dtype], copy=True)  # and so aligned as torch does
                file = _File(header, arrays)
                file.check()
                return file
    except FileNotFoundError as error:
        raise ArchiveError(f"{path}: there is no such file.") from error
    except Exception as error:  # whatever a file of unknown origin can bring about
        raise ArchiveError(
            f"{path} holds no saved solution, is damaged or too large ({type(error).__name__}: {error}): save it again."
        ) from error
    raise ArchiveError(
        f"{path} is of format {header['version']}, written by jumpstart {header.get('jumpstart')}; this is "
        f"{version.installed()}, which reads formats up to {VERSION}: upgrade it."
    )


def _difference(header: dict[str, Any], objective: Objective) -> str | None:
    """What differs between the file and the objective before anything is evaluated; None where nothing does."""
    saved, here, loss = header["parameters"], _parameters(objective.space), objective.loss
    other = "this solution was saved from another model."
    names, ours = [row["name"] for row in saved], [row["name"] for row in here]
    if gone := [name for name in names if name not in ours]:
        return f"the file has parameters {gone[:4]}, which the objective does not move: {other}"
    if more := [name for name in ours if name not in names]:
        return f"the objective moves {more[:4]} too: give objective.subset([…]) with the parameters that were solved."
    rows = [("the parameters have", "names", names, ours)]
    rows += [("the outputs have", "shape", header["outputs"]["shape"], list(objective.shape))]
    for a, b in zip(saved, here, strict=False):
        rows += [(f"parameter {a['name']!r} has", what, a[what], b[what]) for what in ("shape", "dtype")]
    for what, quality, then, now in rows:
        if then != now:
            return f"{what} {quality} {then} in the file and {now} in the model: {other}"
    if header["loss"]["class"] != type(loss).__name__:
        return f"saved with the loss {header['loss']['class']}, but the objective has {type(loss).__name__}."
    if header["loss"]["sha256"] != digest(loss.targets):
        return "the targets differ (by SHA-256): this solution was saved from other data, or in another precision."
    return None


def _parameters(space: ParameterSpace) -> list[dict[str, Any]]:
    rows = zip(space.names, space.shapes, space.dtypes, strict=True)
    return [{"name": name, "shape": list(shape), "dtype": str(d).removeprefix("torch.")} for name, shape, d in rows]


def _layout(tensor: Tensor) -> list[int]:
    """Dimensions from the outermost in memory to the innermost."""
    return sorted(range(tensor.dim()), key=lambda i: -tensor.stride(i))


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes."""
    plain = tensor.detach().cpu().contiguous()
    head = f"{plain.dtype}{tuple(plain.shape)}".encode()
    return hashlib.sha256(head + plain.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def _probe(loss: Loss, u: Tensor) -> list[float]:
    """Φ, ‖∇Φ‖ and vᵀBv at u for a fixed v: what tells losses with the same targets apart."""
    bound, v = loss.to(u), torch.cos(torch.arange(u.numel(), dtype=u.dtype, device=u.device)).reshape(u.shape)
    return [float(bound.value(u)), float(torch.linalg.vector_norm(bound.grad(u))), float((v * bound.hvp(u, v)).sum())]
