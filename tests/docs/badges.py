"""README's badges, drawn from pyproject.toml: pictures in the repository, that no service is asked for.

``python -m tests.docs.badges`` writes them.
"""

from __future__ import annotations

import re
import tomllib

from .reference import ROOT

FOLDER = ROOT / "docs" / "badges"
WIDTH = 6.6  # of a character, at 11 px
BOX = '<rect x="{x}" width="{width}" height="20" fill="{colour}"/>'
TEXT = '<text x="{x}" y="14" fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">{text}</text>'


def badge(left: str, right: str) -> str:
    """An SVG: what, and how much."""
    a, b = (round(len(text) * WIDTH) + 12 for text in (left, right))
    boxes = BOX.format(x=0, width=a, colour="#555") + BOX.format(x=a, width=b, colour="#0072B2")
    texts = TEXT.format(x=6, text=left) + TEXT.format(x=a + 6, text=right)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{a + b}" height="20" role="img" aria-label="{left} {right}">'
    )
    return f"{head}{boxes}{texts}</svg>\n"


def badges() -> dict[str, str]:
    """File name -> what it has to hold."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    torch = next(need for need in project["dependencies"] if re.match(r"torch\b", need))
    return {
        "python.svg": badge("Python", project["requires-python"].replace(">=", "≥ ")),
        "torch.svg": badge("torch", torch.removeprefix("torch").replace(">=", "≥ ")),
        "licence.svg": badge("licence", project["license"]),
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in badges().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
