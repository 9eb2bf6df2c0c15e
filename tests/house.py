"""The picture of the rooms in docs/architecture.svg, drawn from the imports as they are.

python -m tests.house           writes it
"""

from __future__ import annotations

import ast
import html
import textwrap
from pathlib import Path

from . import test_layers as layers

PICTURE = layers.ROOT.parent / "docs" / "architecture.svg"
WIDTH, ROW, BOX, HIGH, MARGIN = 1000, 112, 206, 72, 16
SIDE = 4  # most rooms side by side
OUTER = {"errors", "utils"}  # everybody's; their arrows would hide the others


def said(room: str) -> str:
    """The first sentence of a room's own description."""
    path = layers.ROOT / room / "__init__.py"
    text = ast.get_docstring(ast.parse((path if path.exists() else layers.ROOT / f"{room}.py").read_text())) or ""
    return text.split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".").replace("``", "")


def below() -> dict[str, set[str]]:
    """Room -> rooms that it imports, without those that it reaches through another."""
    table = {room: set(layers.edges().get(room, {})) - OUTER for room in layers.ROOMS}

    def reached(room: str) -> set[str]:
        return table[room].union(*(reached(other) for other in table[room])) if table[room] else set()

    return {room: {o for o in others if not any(o in reached(x) for x in others)} for room, others in table.items()}


def floors(table: dict[str, set[str]]) -> list[list[str]]:
    """Rooms by floor, the ground first."""
    level: dict[str, int] = {}
    for room in layers.ROOMS:  # in their order, so that what is imported comes first
        level[room] = 0 if room in OUTER else 1 + max((level[other] for other in table[room]), default=0)
    rows = [[room for room in layers.ROOMS if level[room] == k] for k in range(max(level.values()) + 1)]
    return [row[i : i + SIDE] for row in rows for i in range(0, len(row), SIDE)]


def drawn() -> str:
    """The picture as SVG."""
    table = below()
    rows = floors(table)
    place: dict[str, tuple[float, float]] = {}
    for k, row in enumerate(rows):
        gap = (WIDTH - len(row) * BOX) / (len(row) + 1)
        for i, room in enumerate(row):
            place[room] = gap + i * (BOX + gap), MARGIN + (len(rows) - 1 - k) * ROW
    parts = []
    for room, others in table.items():
        x, y = place[room]
        for other in sorted(others):
            a, b = place[other]
            x1, y1, x2, y2 = x + BOX / 2, y + HIGH, a + BOX / 2, b - 5
            bend = f"{x1:.0f},{(y1 + y2) / 2:.0f} {x2:.0f},{(y1 + y2) / 2:.0f}"
            parts.append(f'<path class="edge" d="M{x1:.0f},{y1:.0f} C{bend} {x2:.0f},{y2:.0f}"/>')
    for room, (x, y) in place.items():
        parts.append(f'<rect x="{x:.0f}" y="{y:.0f}" width="{BOX}" height="{HIGH}" rx="6"/>')
        parts.append(f'<text class="name" x="{x + BOX / 2:.0f}" y="{y + 20:.0f}">{room}</text>')
        for i, line in enumerate(textwrap.wrap(said(room), 36)[:3]):
            parts.append(f'<text x="{x + BOX / 2:.0f}" y="{y + 36 + 13 * i:.0f}">{html.escape(line)}</text>')
    high = 2 * MARGIN + (len(rows) - 1) * ROW + HIGH
    style = (
        "rect{fill:#f6f4ee;stroke:#6b6b6b}text{font:11px sans-serif;text-anchor:middle;fill:#333}"
        ".name{font:bold 14px sans-serif;fill:#0b4f8a}.edge{fill:none;stroke:#9a9a9a;marker-end:url(#tip)}"
    )
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {high}" width="{WIDTH}" role="img"',
        'aria-label="The rooms of jumpstart; arrows point to what a room imports">',
        f"<style>{style}</style>",
        f'<defs>{tip}<path d="M0,0 L8,4 L0,8 z" fill="#9a9a9a"/></marker></defs>',
        f'<rect x="0" y="0" width="{WIDTH}" height="{high}" style="fill:white;stroke:none"/>',
    ]
    return "\n".join([*head, *parts, "</svg>\n"])


def test_the_picture_is_of_this_house():
    assert Path(PICTURE).read_text() == drawn(), "python -m tests.house draws it anew"


if __name__ == "__main__":
    PICTURE.write_text(drawn())
    print(f"written: {PICTURE.relative_to(layers.ROOT.parent)}")
