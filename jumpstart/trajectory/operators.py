"""Operators of a recorded run: propagator, dissipation, displacement, transfer; signal channel and reservoir.

Notation: Litman & Guo (arXiv:2605.01172), sections 3 to 5; docs/theory.md, section 11. All of them act on gradients in
the outputs at the start of the record, g(s) (N,), or, where it has modes, on coordinates in its basis.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..archive.container import Kind, reading, write
from ..errors import ArchiveError, InputError, ShapeError
from ..utils.brief import brief
from .propagation import Columns

KIND = Kind("trajectory", 1, "saved operators of a trajectory", "record the run again")
TOLERANCE = 1e-6  # of the largest eigenvalue: what is below counts as the reservoir
TENSORS = ("propagator", "dissipation", "displacement", "transfer", "action", "basis", "gradient")
NUMBERS = ("reach", "time", "fall")


@dataclass(frozen=True)
class Where:
    """Where a vector of the outputs lies: shares of its squared norm.

    Attributes:
        channel, reservoir: of the run; they add up to ``spanned``. visible, invisible: to the query outputs, likewise;
            None without queries. spanned: inside of the record's directions, 1 where these are all.
    """

    channel: float
    reservoir: float
    visible: float | None
    invisible: float | None
    spanned: float


@dataclass(frozen=True)
class Operators:
    """What a run did, from its start s to now T.

    Attributes:
        propagator: P_g (N, k), g(T) = P_g g(s). dissipation: W_S (k, k), symmetric, Φ(s) − Φ(T) = g(s)ᵀ W_S g(s).
        displacement: D_S (N, k), U_S(T) − U_S(s) = −D_S g(s).
        transfer: G_Q (m, k), U_Q(T) − U_Q(s) = −G_Q g(s); (0, k) without queries.
        action: (k, k), Σ δᵀ D⁻¹ δ / rate over the moves δ of the weights: W_S itself as steps become small.
        basis: (k, N) orthonormal rows in which the operators are written; None for all N outputs.
        gradient: g(s) (N,). reach: Σ rate ‖J_Q D^½‖², for the truncation's bound; NaN where it is not known.
        time: flow time, learning rate × steps. steps: of the optimizer. fall: Φ(s) − Φ(T).
        identities: how far the run is from what the operators say, relative: "gradient", "loss", "outputs", "queries".
    """

    propagator: Tensor
    dissipation: Tensor
    displacement: Tensor
    transfer: Tensor
    action: Tensor
    basis: Tensor | None
    gradient: Tensor
    reach: float
    time: float
    steps: int
    fall: float
    identities: Mapping[str, float]

    @staticmethod
    def of(
        columns: Columns,
        basis: Tensor | None,
        coordinates: Tensor,
        gradients: tuple[Tensor, Tensor],
        outputs: tuple[tuple[Tensor, Tensor, float], tuple[Tensor, Tensor, float]],
    ) -> Operators:
        """From columns, the start's gradient in coordinates (k + 1,), real gradients and outputs, then and now."""
        k, a = len(coordinates) - 1, coordinates
        (u, seen, loss), (u_end, seen_end, loss_end) = outputs
        identities = {
            "gradient": _off(a @ columns.gradients - gradients[0], gradients[1] - gradients[0]),
            "outputs": _off(a @ columns.displaced, u_end - u),
            "loss": _off(a @ columns.dissipated @ a, a.new_tensor(loss - loss_end)),
        }
        if columns.shown.shape[1]:
            identities["queries"] = _off(a @ columns.shown, seen_end - seen)
        return Operators(
            columns.gradients[:k].T, columns.dissipated[:k, :k], -columns.displaced[:k].T, -columns.shown[:k].T,
            columns.action[:k, :k], basis, gradients[0], columns.reach, columns.time, columns.steps, loss - loss_end,
            identities,
        )  # fmt: skip

    @property
    def error(self) -> float:
        """The largest of ``identities``: of the quadrature, and of what the optimizer's rule does not say."""
        return max(self.identities.values())

    def coordinates(self, vector: Tensor) -> Tensor:
        """A vector of the outputs (N,), or columns (N, j), in the record's directions: (k,) or (k, j).

        Raises:
            ShapeError: it is of another number of outputs.
        """
        n = len(self.gradient)
        flat = vector.reshape(-1) if vector.numel() == n else vector
        if flat.shape[0] != n:
            raise ShapeError(f"a vector of shape {tuple(vector.shape)}, where there are {n} outputs.")
        flat = flat.to(self.gradient)
        return flat if self.basis is None else self.basis @ flat

    # -- channel and reservoir ---------------------------------------------------------------------------------

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.dissipation)
        return values.flip(0), vectors.flip(1)

    @property
    def spectrum(self) -> Tensor:
        """Eigenvalues of the dissipation (k,), the largest first; by momentum some may be negative."""
        return self._eigen[0]

    @property
    def modes(self) -> Tensor:
        """Eigenvectors of the dissipation (k, k), columns in the order of the spectrum."""
        return self._eigen[1]

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the spectrum's shares: how many directions the run has used."""
        shares = self.spectrum.clamp_min(0)
        shares = shares[shares > 0] / shares.sum()
        return float(torch.exp(-(shares * shares.log()).sum())) if len(shares) else 0.0

    def rank(self, tolerance: float = TOLERANCE) -> int:
        """How many eigenvalues are above ``tolerance`` times the largest."""
        _require_tolerance(tolerance)
        return int((self.spectrum > tolerance * self.spectrum[0].clamp_min(0)).sum())

    def channel(self, tolerance: float = TOLERANCE) -> Tensor:
        """The signal channel (N, r), orthonormal columns: directions whose eigenvalue of W_S is above ``tolerance``
        times the largest."""
        return self._lifted(self._eigen[1][:, : self.rank(tolerance)])

    def reservoir(self, tolerance: float = TOLERANCE) -> Tensor:
        """The rest of the record's directions (N, k − r), orthonormal columns: what the run has left where it was.

        ``tolerance`` as in :meth:`channel`.
        """
        return self._lifted(self._eigen[1][:, self.rank(tolerance) :])

    def _lifted(self, coordinates: Tensor) -> Tensor:
        return coordinates if self.basis is None else self.basis.T @ coordinates

    def where(self, vector: Tensor, tolerance: float = TOLERANCE) -> Where:
        """Where a vector of the outputs (N,) lies, such as the part of the gradient that is noise in the targets.

        Args:
            tolerance: as in :meth:`channel`.

        Raises:
            InputError: the vector is zero.
        """
        total = float(vector.double().square().sum())
        if not 0 < total < math.inf:
            raise InputError(f"where: {brief(vector)} has no length that shares could be of.")
        a = self.coordinates(vector)
        spanned = float(a.square().sum()) / total
        inside = float((self._eigen[1][:, : self.rank(tolerance)].T @ a).square().sum()) / total
        seen = None
        if len(self.transfer):
            _, sizes, rows = torch.linalg.svd(self.transfer, full_matrices=False)
            kept = rows[sizes > math.sqrt(tolerance) * sizes[0]]  # sizes go with the root of the action's eigenvalues
            seen = float((kept @ a).square().sum()) / total
        return Where(inside, spanned - inside, seen, None if seen is None else spanned - seen, spanned)

    # -- few modes ---------------------------------------------------------------------------------------------

    def truncated(self, rank: int) -> tuple[Tensor, float]:
        """The transfer through the ``rank`` leading modes of the action alone (m, k), and a bound on what that misses.

        ‖(G_Q − G_Q Π) g(s)‖ ≤ (Σ rate ‖J_Q D^½‖² · g(s)ᵀ (I − Π) A (I − Π) g(s))^½ by Cauchy and Schwarz: the roots of
        A's eigenvalues are the run's Hankel singular values. The bound is NaN where J_Q was not at hand.

        Raises:
            InputError: ``rank`` is no number of modes.
        """
        k = len(self.action)
        if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank <= k:
            raise InputError(f"truncated(rank={brief(rank)}): give a whole number from 0 to {k}.")
        values, vectors = torch.linalg.eigh(self.action)
        kept = vectors[:, k - rank :]
        left = vectors[:, : k - rank].T @ self.coordinates(self.gradient)
        missed = float((values[: k - rank].clamp_min(0) * left.square()).sum())
        return self.transfer @ kept @ kept.T, math.sqrt(self.reach * missed) if missed > 0 else 0.0 * self.reach

    def readout(self, tolerance: float = TOLERANCE) -> Tensor:
        """A∘ = G W† Dᵀ (D W† Dᵀ)† (m, N): the linear readout from moves of the training outputs to those at queries
        that errs least over gradients whose covariance is W†.

        Args:
            tolerance: as in :meth:`channel`.

        Raises:
            InputError: there are no queries.
        """
        if not len(self.transfer):
            raise InputError("readout: the record has no queries: give queries= to the Recorder.")
        r = self.rank(tolerance)
        values, vectors = self._eigen
        root = vectors[:, :r] / values[:r].sqrt()  # W† = root rootᵀ
        moved, shown = self.displacement @ root, self.transfer @ root
        return shown @ torch.linalg.pinv(moved, rtol=math.sqrt(tolerance))

    # -- files -------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to ``path`` and return it.

        Raises:
            ArchiveError: the file cannot be written.
        """
        told = {name: getattr(self, name) for name in ("steps", *NUMBERS)} | {"identities": dict(self.identities)}
        tensors = {name: getattr(self, name) for name in TENSORS if getattr(self, name) is not None}
        return write(path, KIND, _plain(told), tensors)


def load(path: str | os.PathLike[str]) -> Operators:
    """Read what :meth:`Operators.save` wrote to ``path``.

    Raises:
        ArchiveError: the file holds no operators, or is damaged.
    """
    with reading(path, KIND) as file:
        told, tensors = file.content, file.load()
    try:
        found: dict[str, Any] = {name: tensors.get(name) for name in TENSORS}
        if any(found[name] is None for name in TENSORS if name != "basis"):
            raise KeyError("a tensor")
        found |= {name: float("nan") if told[name] is None else float(told[name]) for name in NUMBERS}
        return Operators(**found, steps=int(told["steps"]), identities=dict(told["identities"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ArchiveError(f"{path}: holds no whole record of a trajectory ({error}).") from error


def _plain(told: dict[str, Any]) -> dict[str, Any]:
    """Numbers that JSON knows: none for NaN."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in told.items()}


def _off(told: Tensor, real: Tensor) -> float:
    """How far ``told`` is from what there was, relative to that."""
    norm = torch.linalg.vector_norm
    return float(norm(told - real.to(told)) / norm(real).clamp_min(torch.finfo(told.dtype).tiny))


def _require_tolerance(tolerance: Any) -> None:
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 1:
        raise InputError(f"tolerance={brief(tolerance)}: a share of the largest eigenvalue, from 0 to 1.")
