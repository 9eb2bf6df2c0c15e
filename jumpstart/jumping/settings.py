"""How to jump: the options of ``jump`` and ``Jumper``, checked at the door. Nothing that is given is ignored."""

from __future__ import annotations

import numbers
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from ..errors import HorizonError, InputError
from ..gating import Gate
from ..linearization.metric import require_weight_decay
from ..linearization.problem import LinearizedProblem
from ..objectives.parameters import Select
from ..surrogate.select import (
    BASES,
    MATRIX_FREE,
    BasisLike,
    require_basis,
    require_depth,
    require_effect,
    require_memory_limit,
)
from ..utils.brief import brief
from .trust import Trust

LEVENBERG_MARQUARDT, HORIZON, SCALE = "levenberg-marquardt", "horizon", "scale"
SEARCHES = (LEVENBERG_MARQUARDT, HORIZON, SCALE)


@dataclass(frozen=True, eq=False)
class Settings:
    """See :func:`jumpstart.jump` for what each means.

    Raises:
        InputError, HorizonError: an option out of range, or one that the others would leave without effect.
    """

    basis: BasisLike = "auto"
    depth: int | None = None
    weight_decay: float | None = None
    horizon: float | None = None
    search: str | None = None
    geodesic: bool | None = None
    chord_steps: int | None = None
    gate: str | Gate | None = None
    trust: Trust = field(default_factory=Trust)
    params: Select = None
    memory_limit: float | None = None
    directions: Tensor | None = None
    nonmonotone: bool = False
    penalty_pays: bool = False
    keep_balance: bool = False

    def __post_init__(self) -> None:
        self._require_ranges()
        self._require_effect()
        if self.basis == MATRIX_FREE:
            self._require_matrix_free()

    def _require_ranges(self) -> None:
        if self.search not in (None, *SEARCHES):
            raise InputError(f"search={brief(self.search)} is none of {SEARCHES}.")
        if not isinstance(self.trust, Trust):
            raise InputError(f"trust={brief(self.trust)}: give a js.Trust, the policy of a jump.")
        if self.horizon is not None and not (isinstance(self.horizon, numbers.Real) and self.horizon > 0):
            raise HorizonError(f"horizon={brief(self.horizon)}: flow time must be positive (or None to search).")
        steps = self.chord_steps
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 0):
            raise InputError(f"chord_steps={brief(steps)}: give a number of corrections, 0 or more, or None.")
        for name in ("geodesic", "nonmonotone", "penalty_pays", "keep_balance"):
            flag = getattr(self, name)
            if not (isinstance(flag, bool) or (flag is None and name == "geodesic")):
                raise InputError(f"{name}={brief(flag)}: give True or False.")
        if self.directions is not None and not (
            isinstance(self.directions, Tensor) and self.directions.dim() == 2 and self.directions.is_floating_point()
        ):
            raise InputError(f"directions={self.directions!r:.80}: give a tensor (r, P) of displacements.")
        require_weight_decay(self.weight_decay)
        require_basis(self.basis, (*BASES, MATRIX_FREE))
        require_depth(self.depth)
        require_memory_limit(self.memory_limit)
        Gate.named(self.gate)

    def _require_effect(self) -> None:
        """Refuse what would be ignored, by name."""
        if self.horizon is not None and self.search == SCALE:
            raise InputError(
                "horizon= fixes a flow time; search='scale' looks at shares of the whole run: give one of them."
            )
        if self.nonmonotone and not self.may_climb:
            raise InputError(
                f"nonmonotone=True is for search={LEVENBERG_MARQUARDT!r} by implicit steps: not for a fixed horizon, "
                "a gate or a Krylov basis."
            )
        require_effect(self.basis, self.depth, self.memory_limit)
        implicit = self.search == LEVENBERG_MARQUARDT and self.basis == "auto"
        if self.depth is not None and implicit:
            raise InputError(f"depth={brief(self.depth)} is for Krylov bases and matrix-free jumps: leave it out.")
        krylov = self.basis in ("auto", "krylov") and self.search != LEVENBERG_MARQUARDT
        if self.directions is not None and not krylov:
            raise InputError("directions= are kept in a Krylov basis: leave basis at 'auto' or 'krylov'.")

    @property
    def may_climb(self) -> bool:
        """Whether a nonmonotone search can be asked for."""
        free = self.horizon is None and self.gate is None and self.basis != "krylov"
        return free and self.search in (None, LEVENBERG_MARQUARDT)

    def _require_matrix_free(self) -> None:
        if self.search not in (None, LEVENBERG_MARQUARDT) or self.gate is not None or self.directions is not None:
            raise InputError(f"basis={MATRIX_FREE!r} takes implicit steps: leave search, gate and directions out.")
        if self.memory_limit is not None:
            raise InputError(f"basis={MATRIX_FREE!r} keeps no matrix that memory_limit= could weigh: leave it out.")

    def require(self, problem: LinearizedProblem) -> None:
        """What can be said once the loss is known.

        Raises:
            InputError: the loss does not go with the options.
        """
        if self.basis == MATRIX_FREE and not problem.loss.quadratic:
            raise InputError(f"basis={MATRIX_FREE!r} is for squared losses (js.residual, 'mse'): use 'krylov'.")

    @classmethod
    def of(cls, options: dict[str, Any], who: str) -> Settings:
        """From keywords.

        Raises:
            InputError: an unknown one, with those that there are.
        """
        known = cls.names()
        if unknown := set(options) - known:
            raise InputError(f"{who}: {sorted(unknown)} is no option of jumps; there are {sorted(known)}.")
        return cls(**{name: value for name, value in options.items() if not (name == "trust" and value is None)})

    @classmethod
    def names(cls) -> frozenset[str]:
        """The options that there are."""
        return frozenset(f.name for f in fields(cls))
