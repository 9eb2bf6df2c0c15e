"""What a page holds, before it is HTML: sections of charts, tables and pictures. Numbers and names only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..names import printable
from ..records import Row, show

Column = Sequence[float | None]
LINES, DOTS, MAP = "lines", "dots", "map"  # kinds of charts
RATIO = 20.0  # of the largest to the smallest value, from which an axis is logarithmic


@dataclass(frozen=True)
class Curve:
    """A line or a cloud of one name.

    Attributes:
        name: in the legend, where curves of one name are switched together.
        points: columns of one length, by key: the chart's ``across`` and ``y``; None or what is not finite is a gap.
            What has no column of an axis is not drawn along it.
        jumps: of jumps on the curve, with a column "kept" of truth values besides.
        words: for each point, what stands beside it under the pointer.
        stepped: whether it is what jumps are measured against: dashed, and to the left where sides are parted.
        faint: one of several runs, whose median is another curve of the same name.
    """

    name: str
    points: Mapping[str, Column]
    jumps: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    words: Sequence[str] = ()
    stepped: bool = False
    faint: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.points.values()), ()))


@dataclass(frozen=True)
class Chart:
    """Curves over something that can be switched.

    Attributes:
        title: says what is shown. y: the column upwards, and ``label`` what it is. across: columns to the right, by key
            what they are; the first is shown first.
        kind: lines; dots, which are not joined; or a map, with the columns x, y and value.
        diagonal: draw y = x. group: maps of one group have one scale of colours.
    """

    title: str
    y: str
    label: str
    across: Mapping[str, str]
    curves: Sequence[Curve]
    kind: str = LINES
    diagonal: bool = False
    group: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows; ``columns`` maps their keys to headings."""

    title: str
    columns: Mapping[str, str]
    rows: Sequence[Row]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture that lay beside the results; ``png`` its bytes."""

    title: str
    png: bytes


@dataclass(frozen=True)
class Section:
    title: str
    items: Sequence[Chart | Table | Picture]
    says: str = ""


@dataclass(frozen=True)
class Page:
    """A page: what it is of, what is to be said first, and sections."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]


def logarithmic(values: Column) -> bool:
    """Whether an axis of these is logarithmic: all are positive, and far apart."""
    found = [v for v in values if v is not None and math.isfinite(v)]
    return bool(found) and min(found) > 0 and max(found) > RATIO * min(found)


def mostly(values: Column) -> bool:
    """Whether an axis of differences is logarithmic: most are positive, and these far apart."""
    found = [v for v in values if v is not None and math.isfinite(v)]
    above = [v for v in found if v > 0]
    return 2 * len(above) > len(found) and logarithmic(above)


def below(chart: Chart) -> str:
    """What a logarithmic diagonal chart cannot show, in words; empty if there is nothing."""
    if not chart.diagonal:
        return ""
    axis = next(iter(chart.across))
    pairs = [pair for curve in chart.curves for pair in zip(curve.points[axis], curve.points[chart.y], strict=True)]
    if not (mostly([a for a, _ in pairs]) and mostly([b for _, b in pairs])):
        return ""
    lost = sum(any(v is not None and v <= 0 for v in pair) for pair in pairs)
    return f"{lost} points with a value of zero or less are shown on linear axes alone." if lost else ""


def said(chart: Chart) -> str:
    """A chart in words, for who does not see it: each curve's ends, and where it has gaps."""
    if chart.kind == MAP:
        values = [v for curve in chart.curves for v in curve.points["value"] if v is not None and math.isfinite(v)]
        span = f"from {show(float(min(values)))} to {show(float(max(values)))}" if values else "none is finite"
        return f"{chart.title}. {len(values)} points, {chart.label} {span}."
    told, shown = [], list({curve.name: curve for curve in chart.curves if not curve.faint}.values())[:12]
    for curve in shown:
        values = [v for v in curve.points[chart.y] if v is not None and math.isfinite(v)]
        if not values:
            told.append(f"{printable(curve.name)}: no finite value")
        elif chart.kind == DOTS:
            told.append(f"{printable(curve.name)}: {len(values)} points")
        else:
            told.append(f"{printable(curve.name)}: {show(float(values[0]))} → {show(float(values[-1]))}")
    return f"{chart.title}. {chart.label}: {'; '.join(told) or 'nothing to show'}."


def gaps(chart: Chart) -> str:
    """What is not drawn because it is no finite number, in words; empty if all is."""
    found = {}
    for curve in chart.curves:
        values = curve.points["value" if chart.kind == MAP else chart.y]
        if missing := sum(v is not None and not math.isfinite(v) for v in values):
            before, of = found.get(curve.name, (0, 0))
            found[curve.name] = (before + missing, of + len(values))
    if not found:
        return ""
    named = ", ".join(f"{printable(name)} ({n} of {of})" for name, (n, of) in list(found.items())[:9])
    more = f" and {len(found) - 9} more" if len(found) > 9 else ""
    return f"Gaps are values that are NaN or infinite: {named}{more}."


def thinned(page: Page, most: int) -> tuple[Page, list[str]]:
    """A page with at most so many points a curve and rows a table, ends kept; and what was left out, in words."""
    told: list[str] = []
    sections = []
    for section in page.sections:
        items: list[Chart | Table | Picture] = []
        for item in section.items:
            if isinstance(item, Chart):
                curves = [_thin(curve, most) for curve in item.curves]
                longest = max((len(curve) for curve in item.curves), default=0)
                if longest > most:
                    told.append(f"{item.title}: {most} of up to {longest} points a curve are drawn.")
                items.append(replace(item, curves=curves))
            elif isinstance(item, Table) and len(item.rows) > most:
                told.append(f"{item.title}: {most} of {len(item.rows)} rows are shown.")
                items.append(replace(item, rows=[item.rows[i] for i in _spread(len(item.rows), most)]))
            else:
                items.append(item)
        sections.append(replace(section, items=items))
    return replace(page, sections=sections), told


def _thin(curve: Curve, most: int) -> Curve:
    keep = _spread(len(curve), most)
    marks = _spread(len(next(iter(curve.jumps.values()), ())), most)
    return replace(
        curve,
        points={key: [column[i] for i in keep] for key, column in curve.points.items()},
        jumps={key: [column[i] for i in marks] for key, column in curve.jumps.items()},
        words=[curve.words[i] for i in keep] if curve.words else (),
    )


def _spread(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
