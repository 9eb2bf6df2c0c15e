"""What a fit came to: a value to print, to draw, to keep in a folder and to look at."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ArchiveError
from ..jumping.trust import Outcome
from ..report import checked, export, plots, records
from ..report.names import printable
from ..report.page import render
from . import pages

SCALARS = (
    "loss", "start", "error", "jumps", "accepted", "restarts", "seconds", "gradient_evaluations", "cause",
    "generalization",
)  # fmt: skip
TEXT = ("outcome", "stage", "basis")  # in a row of the history


class FitOutcome(enum.Enum):
    """How a fit ended; the value is a sentence for people."""

    TOLERANCE = "The loss is below the tolerance."
    BUDGET = "The budget of time or jumps is spent."
    STAGNANT = "The loss no longer falls, from the best weights or from perturbed ones; the best are kept."
    STOPPED = "The callback asked for it."
    STATIONARY = "The gradient vanishes: this is a stationary point."
    NOT_FINITE = "The residual stopped being finite on the way; the best weights are kept."


@dataclass(frozen=True)
class FitResult:
    """What a fit did. The model holds the best weights found.

    The best are those with the lowest loss; where terms have domains and points may move, with the lowest loss on
    points that are never trained on.

    Attributes:
        outcome: a :class:`FitOutcome`. cause: a sentence on what probably stands in the way, if it stagnated.
        loss: Φ at the best weights (on the last points, and as these weigh, where they were resampled, renewed or
            weighed), with the penalty of weight decay if there is any. start: the same at the start.
        generalization: Φ at the best weights on points that nothing was chosen by, neither points nor weights: of terms
            with a domain on new draws from it; where none has one, of terms at given points halfway between neighbours.
            None where neither can be asked.
        error: ``error(model)`` at the best weights, if given.
        jumps, accepted, restarts: how many.
        seconds: time spent, all sessions of a resumed run together, ``error`` and ``callback`` aside.
        gradient_evaluations: as in ``jumpstart.utils.cost``.
        history: a row for each jump: jump, seconds, gradient_evaluations, loss, best, horizon, outcome, stage,
            candidates, basis, modes; where they are known, before, predicted and actual (losses of the jump),
            next_horizon, max_rate and trace (as of :class:`jumpstart.JumpResult`); and error and unseen (the loss on
            points never trained on) where they were measured.
        notes: what was slower than it could be, and why.
        residuals: of objectives with points: where each term is large at the best weights, as rows of term, ``of`` how
            many points, points by coordinates, values (|residual| without its weight); at most 1,500 points a term.
        about: environment and command, of a result that was read.
    """

    outcome: FitOutcome
    loss: float
    start: float
    error: float | None
    jumps: int
    accepted: int
    restarts: int
    seconds: float
    gradient_evaluations: float
    cause: str = ""
    history: list[dict[str, Any]] = field(default_factory=list, repr=False)
    notes: tuple[str, ...] = ()
    generalization: float | None = None
    residuals: list[dict[str, Any]] = field(default_factory=list, repr=False)
    about: dict[str, Any] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        unseen = "" if self.generalization is None else f" ({self.generalization:.3g} on other points)"
        error = "" if self.error is None else f", error {self.error:.3g}"
        return (
            f"{self.outcome.name}: loss {self.start:.3g} → {self.loss:.3g}{unseen}{error} in {self.seconds:.3g} s, "
            f"{self.accepted}/{self.jumps} jumps, {self.restarts} restarts. {self.outcome.value} {self.cause}".rstrip()
        )

    def plot(self, path: str | Path) -> Path:
        """Loss, on other points as well, and error against seconds, as a picture at ``path``."""
        return plots.save(plots.history(self.history), path)

    def html(self, path: str | Path) -> Path:
        """Write one HTML file to look at, which needs no network: losses, every jump, the spectrum along the way,
        residuals, environment; returns its path, which gets ".html" if it ends in nothing.

        Raises:
            InputError: it cannot be written. MissingPackageError: plotly is not installed.
        """
        return render.write(pages.of_fit(self, self.about), path)

    def save(self, folder: str | Path) -> Path:
        """Write ``folder/results.json``, which ``jumpstart report`` and :meth:`read` read; returns its path.

        Raises:
            InputError: it cannot be written.
        """
        told: dict[str, Any] = {name: getattr(self, name) for name in SCALARS}
        told |= {"outcome": self.outcome.name, "notes": list(self.notes)}
        return records.write(folder, "fit", {"fit": told}, self.history, others={"residuals": self.residuals})

    @staticmethod
    def read(folder: str | Path) -> FitResult:
        """What :meth:`save` wrote into ``folder``, a file of unknown origin.

        Raises:
            ArchiveError: there is none, or it is something else; says what.
        """
        content, where = records.read(folder), Path(folder) / records.NAME
        settings = content.get("settings")
        told = settings.get("fit") if isinstance(settings, dict) else None
        if not isinstance(told, dict) or told.get("outcome") not in FitOutcome.__members__:
            raise ArchiveError(f"{where} is no fit: its settings name no outcome of one.")
        for name in SCALARS:
            text = name == "cause"
            optional = name in ("error", "generalization") and name in told and told[name] is None
            if not optional and not (isinstance(told.get(name), str) if text else checked.number(told.get(name))):
                raise ArchiveError(f"{where} is no fit: it says {name}={printable(told.get(name))!r}.")
        for k, row in enumerate(content["rows"]):
            if wrong := _wrong(row):
                raise ArchiveError(f"{where} is no fit: row {k} {wrong}.")
        notes = told.get("notes")
        about = {key: content.get(key) for key in ("environment", "command")}
        return FitResult(
            **{name: told[name] for name in SCALARS if name in told}, outcome=FitOutcome[told["outcome"]],
            history=content["rows"],
            notes=tuple(map(str, notes)) if isinstance(notes, list) else (),
            residuals=checked.residuals(content.get("residuals"), where), about=about,
        )  # fmt: skip

    def dataframe(self) -> Any:
        """The history as a pandas DataFrame.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        return export.dataframe(self.history)

    def to_csv(self, path: str | Path) -> Path:
        """Write the history as CSV; returns the path."""
        return export.to_csv(self.history, path)


def _wrong(row: Any) -> str:
    """What in a row is nothing that a fit records; empty if nothing is."""
    if not isinstance(row, dict):
        return f"is {row!r:.40}, not a table"
    if row.get("outcome") not in Outcome.__members__ or not isinstance(row.get("stage"), str):
        return f"names no outcome of a jump: {printable(row.get('outcome'))!r}"
    for key, value in row.items():
        if key not in TEXT and value is not None and not checked.number(value):
            return f"says {printable(key)}={printable(value)!r}, which is no number"
    missing = [key for key in ("jump", "seconds", "gradient_evaluations", "loss", "best") if row.get(key) is None]
    return f"does not say {missing}" if missing else ""
