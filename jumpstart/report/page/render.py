"""A page as one HTML file: escaped, self-contained, allowed to run nothing but its own two scripts."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...utils import files, version
from ..names import printable
from ..plots import COLOURS
from ..records import show
from .library import plotly
from .model import MAP, Chart, Page, Picture, Section, Table, below, gaps, logarithmic, mostly, said, thinned

LARGEST = 5_000_000  # bytes of a page
MOST = 1000  # points a curve and rows a table, to begin with
LEAST = 20
WORDS = 24  # characters from which a cell is a sentence, and wide
HERE = Path(__file__).parent


def write(page: Page, path: str | Path) -> Path:
    """Write a page, whole or not at all; returns its path, which gets ".html" if it ends in nothing.

    Raises:
        InputError: the ending is of something else, or the file cannot be written. MissingPackageError: plotly.
    """
    target = Path(path)
    target = target if target.suffix else target.with_name(f"{target.name}.html")
    if target.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{path}: a page in HTML ends in .html, not in {target.suffix!r}.")
    text = render(page).encode()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(target) as file:
            file.write(text)
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise InputError(f"{path} cannot be written ({error}): give a path in a folder that can be.") from error
    return target


def render(page: Page) -> str:
    """The page as text, of at most five million bytes; where it would be larger, it shows fewer points, and says so.

    Raises:
        InputError: it is larger even so. MissingPackageError: plotly is not installed.
    """
    most = MOST
    while True:
        text = _whole(*thinned(page, most))
        if (size := len(text.encode())) <= LARGEST:
            return text
        if most <= LEAST:
            raise InputError(f"the page of {printable(page.title)!r} would have {size:,} bytes, above {LARGEST:,}.")
        most = max(LEAST, most // 2)


def _whole(page: Page, left_out: Sequence[str]) -> str:
    library, allowed = plotly()
    script = (HERE / "page.js").read_text(encoding="utf-8")
    style = (HERE / "page.css").read_text(encoding="utf-8")
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Whatever a name may hold, nothing else runs, and nothing is loaded from anywhere.
    policy = (
        f"default-src 'none'; script-src 'sha256-{own}' {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    charts: list[Any] = []
    body = [_section(section, at, charts) for at, section in enumerate(page.sections)]
    data = _json({"charts": charts, "colours": list(COLOURS)})
    title = html.escape(printable(page.title, 120))
    notes = [*page.lead, *left_out]
    contents = "".join(
        f'<li><a href="#s{at}">{html.escape(printable(section.title))}</a></li>'
        for at, section in enumerate(page.sections)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="jumpstart {html.escape(version.installed())}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">To the results</a>
<header>
<h1>{title}</h1>
{"".join(f"<p>{html.escape(printable(note, 2000))}</p>" for note in notes)}
<nav aria-label="Sections"><ul>{contents}</ul></nav>
<noscript><p>The plots need JavaScript. The tables do not.</p></noscript>
<p id="status" role="status"></p>
</header>
<main id="main">
{"".join(body)}
</main>
<script type="application/json" id="data">{data}</script>
<script type="text/plain" id="library">{library}</script>
<script>{script}</script>
</body>
</html>
"""


def _section(section: Section, at: int, charts: list[Any]) -> str:
    parts = [f'<section aria-labelledby="s{at}"><h2 id="s{at}">{html.escape(printable(section.title))}</h2>']
    if section.says:
        parts.append(f"<p>{html.escape(printable(section.says, 2000))}</p>")
    plain = []
    if maps := [item for item in section.items if isinstance(item, Chart) and item.kind == MAP]:
        plain.append(f'<div class="maps">{"".join(_chart(item, at, charts) for item in maps)}</div>')
    for item in section.items:
        if isinstance(item, Chart) and item.kind != MAP:
            plain.append(_chart(item, at, charts))
        elif not isinstance(item, Chart):
            plain.append(_table(item) if isinstance(item, Table) else _picture(item))
    if any(isinstance(item, Chart) for item in section.items):
        parts.append(f'<div class="controls" data-section="{at}"></div>')
    return "\n".join([*parts, *plain, "</section>"])


def _chart(chart: Chart, section: int, charts: list[Any]) -> str:
    number, missing = len(charts), gaps(chart)
    charts.append({**_spec(chart), "section": section})
    words = " ".join(filter(None, (chart.note, below(chart), missing)))
    return (
        f'<figure aria-labelledby="t{number}"><figcaption><h3 id="t{number}">'
        f"{html.escape(printable(chart.title, 200))}</h3>"
        + (f"<p>{html.escape(printable(words, 2000))}</p>" if words else "")
        + f'</figcaption><div class="plot" id="c{number}" role="img" '
        f'aria-label="{html.escape(printable(said(chart), 3000))}"></div>'
        f'<div class="numbers" data-chart="{number}"></div></figure>'
    )


def _spec(chart: Chart) -> dict[str, Any]:
    """What the script draws."""
    values = [v for curve in chart.curves for v in curve.points["value" if chart.kind == MAP else chart.y]]
    both = chart.diagonal and all(
        mostly([v for c in chart.curves for v in c.points[key]]) for key in (next(iter(chart.across)), chart.y)
    )
    across = {key: {"label": printable(label), "log": both} for key, label in chart.across.items()}
    return {
        "title": printable(chart.title, 200), "y": chart.y, "label": printable(chart.label), "kind": chart.kind,
        "across": across, "log": both if chart.diagonal else logarithmic(values), "diagonal": chart.diagonal,
        "group": chart.group,
        "curves": [
            {
                "name": printable(curve.name, 80), "points": {k: list(v) for k, v in curve.points.items()},
                "jumps": {k: list(v) for k, v in curve.jumps.items()}, "words": list(curve.words),
                "stepped": curve.stepped, "faint": curve.faint,
            }
            for curve in chart.curves
        ],
    }  # fmt: skip


def _table(table: Table) -> str:
    heads = "".join(f'<th scope="col">{html.escape(printable(head, 80))}</th>' for head in table.columns.values())
    keys = list(table.columns)
    lines = []
    for row in table.rows:
        cells = []
        for k, key in enumerate(keys):
            value = row.get(key)
            text = html.escape(printable("yes" if value is True else "no" if value is False else show(value), 300))
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            raw = f' data-value="{value!r}"' if number else ' class="words"' if len(text) > WORDS else ""
            cells.append(f'<th scope="row">{text}</th>' if k == 0 else f"<td{raw}>{text}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    title = html.escape(printable(table.title, 200))
    note = f"<p>{html.escape(printable(table.note, 2000))}</p>" if table.note else ""
    return (
        f'{note}<div class="table" role="region" tabindex="0" aria-label="{title}"><table><caption>{title}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _picture(picture: Picture) -> str:
    title = html.escape(printable(picture.title, 200))
    data = base64.b64encode(picture.png).decode()
    return f'<figure><figcaption>{title}</figcaption><img alt="{title}" src="data:image/png;base64,{data}"></figure>'


def _json(value: Any) -> str:
    """JSON that no reader of HTML takes for markup; what is not finite is null."""
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    if isinstance(value, float):  # six digits are more than a screen shows
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
