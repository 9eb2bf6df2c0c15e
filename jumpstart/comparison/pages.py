"""Pages to look at: of a comparison, and of one from several starts."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from ..report import records
from ..report.page import parts
from ..report.page.model import DOTS, Chart, Curve, Page, Section, Table
from ..report.page.parts import ACROSS
from ..report.records import Row
from .columns import FAILED

GRID = 200  # places at which a median over seeds is taken
MARKS = "Circles are jumps that were kept, crosses those that were refused."
SEEDS = 9  # whose jumps are listed


def of_report(report: Any) -> Page:
    """Of a :class:`jumpstart.Report`: curves, what they come to, every jump, residuals, and where it was measured."""
    by_who = _by_who(report.jumps)
    wording = {"loss": "Loss"} | {key: key for key in report.metrics}
    charts = [
        Chart(
            f"{wording[key]} of each contender", key, key, ACROSS,
            [
                Curve(name, _columns(rows, key), jumps=parts.marks(by_who.get(name, [])) if key == "loss" else {},
                      stepped=not _jumps(rows))
                for name, rows in report.grouped().items()
            ],
            note=MARKS if key == "loss" and by_who else "",
        )
        for key in ("loss", *report.metrics)
    ]  # fmt: skip
    lead = [
        f"{len(report.contenders)} contenders from the same start, interleaved: {', '.join(report.contenders[:9])}. "
        "Dashed curves only step."
    ]
    if cut := report.settings.get("interrupted"):
        lead.append(f"The run was interrupted ({cut}): these are the rows until then.")
    failures = [f"{row['contender']}: {row[FAILED]}" for row in report.rows if row.get(FAILED)]
    if failures:
        lead.append(f"Out of the race: {'; '.join(failures[:9])}.")
    if isinstance(left := report.settings.get("jumps left out"), dict):
        lead.append(f"Of jumps the last thousand are kept; earlier ones are left out: {left}.")
    summary = Table("Where each ended", report.columns(), report.summary())
    return Page(
        report.name, lead,
        [
            Section("Curves", charts), Section("Summary", [summary]), *parts.jumps(report.jumps),
            *parts.residuals(report.residuals), parts.about(_about(report)),
        ],
    )  # fmt: skip


def of_ablation(found: Any) -> Page:
    """Of a :class:`jumpstart.Ablation`: medians and every seed's curve, ends in pairs, jumps of the first seeds,
    and where it was measured.
    """
    keys = ["loss", *found.metrics]
    first = next(iter(found.reports.values()))
    stepped = {name: not _jumps(rows) for name, rows in first.grouped().items()}
    charts = [
        Chart(
            f"{key}: median over {len(found.reports)} seeds, and each seed (thin)", key, key, ACROSS,
            [curve for name in found.variants for curve in _curves(found, name, key, stepped[name])],
            note="A run that has ended counts as where it ended.",
        )
        for key in keys
    ]  # fmt: skip
    tables: list[Any] = []
    for key in keys:
        ends = {name: found.ends(name, key) for name in found.variants}
        seeds = list(found.reports)
        by_seed = [{"seed": str(seed), **{name: ends[name][seed] for name in found.variants}} for seed in seeds]
        tables += [
            Table(f"{key} at the end, over seeds", found.heads(key) | {"variant": "variant"}, found.rows(key)),
            Table(
                f"{key} at the end of each seed", {"seed": "seed", **{name: name for name in found.variants}}, by_seed
            ),
        ]
    pairs = [_pairs(found, key) for key in keys]
    jumps = [
        {**row, "who": f"{row['who']}, seed {seed}"}
        for seed, r in list(found.reports.items())[:SEEDS]
        for row in r.jumps
    ]
    seeds = ", ".join(map(str, list(found.reports)[:20]))
    lead = [
        f"{len(found.variants)} variants from the same {len(found.reports)} starts (seeds {seeds}); each is compared "
        f"with {found.variants[0]!r} seed by seed."
    ]
    failed = sum(bool(row.get(FAILED)) for report in found.reports.values() for row in report.rows)
    if failed:
        lead.append(f"{failed} of {len(found.variants) * len(found.reports)} runs failed; they count in no median.")
    return Page(
        first.name, lead,
        [
            Section("Curves", charts), Section("Ends", [*tables, *filter(None, pairs)]),
            *parts.jumps(jumps), *parts.residuals(first.residuals), parts.about(_about(first)),
        ],
    )  # fmt: skip


def _curves(found: Any, name: str, key: str, stepped: bool) -> list[Curve]:
    """A variant's median along each axis, and its seeds."""
    seeds = [_columns(report.grouped()[name], key) for report in found.reports.values()]
    if len(seeds) == 1:
        return [Curve(name, seeds[0], stepped=stepped)]
    curves = []
    for axis in ACROSS:
        longest = max(max(columns[axis]) for columns in seeds)
        places = [longest * (i / GRID) ** 2 for i in range(GRID + 1)]  # more of them where curves begin
        middle = [_median([_at(columns, axis, place, key) for columns in seeds]) for place in places]
        curves.append(Curve(name, {axis: places, key: middle}, stepped=stepped))
    return [*curves, *(Curve(name, columns, stepped=stepped, faint=True) for columns in seeds)]


def _median(values: Sequence[float]) -> float:
    """Of the finite ones, if these are more than half; NaN otherwise."""
    finite = [v for v in values if math.isfinite(v)]
    return median(finite) if 2 * len(finite) > len(values) else math.nan


def _at(columns: dict[str, list[float]], axis: str, place: float, key: str) -> float:
    """The last value that a run has had at a place of an axis."""
    return columns[key][max(bisect.bisect_right(columns[axis], place) - 1, 0)]


def _pairs(found: Any, key: str) -> Chart | None:
    """Each seed's end against that of the first variant."""
    first = found.ends(found.variants[0], key)
    others = found.variants[1:]
    if not others:
        return None
    curves = []
    for name in others:
        own = found.ends(name, key)
        points = {"first": list(first.values()), key: [own[seed] for seed in first]}
        curves.append(Curve(name, points, words=[f"seed {seed}" for seed in first]))
    return Chart(
        f"{key} at the end against that of {found.variants[0]!r}, seed by seed", key, key,
        {"first": f"{key} of {found.variants[0]!r}"}, curves, kind=DOTS, diagonal=True,
        note="Below the dotted line a variant ends lower than what it is compared with.",
    )  # fmt: skip


def _columns(rows: Sequence[Row], key: str) -> dict[str, list[float]]:
    return {name: [math.nan if row.get(name) is None else float(row[name]) for row in rows] for name in (*ACROSS, key)}


def _jumps(rows: Sequence[Row]) -> bool:
    return any(row.get("jumps") is not None for row in rows)


def _by_who(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["who"], []).append(row)
    return found


def _about(report: Any) -> dict[str, Any]:
    here = report.about or {"environment": records.environment(report.seeds), "command": records.command()}
    return {**here, "settings": report.settings}
