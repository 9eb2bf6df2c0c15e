"""What pages say of races on partial differential equations."""

from __future__ import annotations

from typing import Any

from jumpstart.report import records

from .. import collocation as measure
from ..pinn import gallery as pictures
from ..pinn import parted as warned
from ..pinn import points as choices
from ..pinn import report, standings
from ..pinn.problems import PROBLEMS
from ..pinn.race import JUMPS, SECOND_ORDER
from . import RESULTS, machine, markdown, rough, told

RACE = "python -m experiments.pinn --only budgets"
LEVEL = 1.05  # within 5% is as soon


def pinn() -> str:
    """Partial differential equations, in short."""
    content = records.read(RESULTS / "pinn" / "races")
    return f"{lower(content)} {sooner(content)}\n\n{report.verdict(RESULTS / 'pinn', 'results/pinn')}"


def large() -> str:
    """Networks of 10⁵ to 10⁶ parameters on a GPU."""
    return report.large(RESULTS / "pinn", "results/pinn")


def pinn_page() -> str:
    """Partial differential equations in full, for docs/pinns.md."""
    return report.page(RESULTS / "pinn", "results/pinn")


def gallery() -> str:
    """Each equation once, for docs/gallery.md."""
    return told("pinn/gallery", pictures.page)


def parted() -> str:
    """Whether the loss on other points foretells the error, for docs/pinns.md."""
    return told("pinn/parted", warned.page)


def points() -> str:
    """What each choice about points is worth, for docs/pinns.md."""
    return told("pinn/points", choices.page)


def budgets() -> str:
    """Everyone's error after 10 and 60 seconds, for docs/pinns.md."""
    return told("pinn/budgets", standings.page, RACE)


def longest() -> str:
    """The jumps' error after 300 seconds, for docs/pinns.md."""
    return told("pinn300/budgets", standings.page, RACE)


def high() -> str:
    """In five to eleven dimensions, for docs/pinns.md."""
    return told("pinnhigh/budgets", standings.untuned, RACE)


def rest() -> str:
    """The other three equations on domains, for docs/pinns.md."""
    return told("pinnrest/budgets", standings.untuned, RACE)


def collocation() -> str:
    """What renewed points are worth, for docs/pinns.md."""
    return told("collocation", renewed)


def renewed(content: dict[str, Any]) -> str:
    """Factors between contenders, the table, and the picture."""
    summary = content["settings"]["summary"]
    gains = []
    for title in dict.fromkeys(line["problem"] for line in summary):
        by = {line["contender"]: line["error"] for line in summary if line["problem"] == title}
        gains.append(f"{rough(by[measure.FIRST] / by[measure.AS_IT_IS])} times ({title.split(',')[0]})")
    return "\n\n".join((
        f"After equal time the error is lower than on the first points {', '.join(gains)}. Medians of "
        f"{summary[0]['runs']} seeds; one thread.",
        markdown(summary, measure.HEADS),
        "![error and loss on other points against seconds](results/collocation/collocation.png)",
        f"<sub>{machine(content)}</sub>",
    ))  # fmt: skip


def lower(content: dict[str, Any]) -> str:
    """How far below the best rival jumps end, over all problems raced."""
    verdict = content["settings"]["verdict"]
    below = sorted(line["its lowest"] / line["jumps' lowest"] for line in verdict)
    unsolved = [tuple(map(int, line["jumps above 0.1"].split("/"))) for line in verdict]
    return (
        f"On {len(verdict)} problems jumps end {rough(below[0])} to {rough(below[-1])} times below the best of "
        f"{len(rivals(content))} tuned rivals after equal time; {sum(u for u, _ in unsolved)} of "
        f"{sum(n for _, n in unsolved)} runs of jumps found no solution (error above 0.1)."
    )


def sooner(content: dict[str, Any]) -> str:
    """How much sooner jumps are where Adam ends, if that is a solution; and which second-order rivals are there too."""
    verdict, suite = content["settings"]["verdict"], content["settings"]["suite"]
    solved = {line["problem"]: line for line in verdict if line["times sooner"] is not None}
    gains = sorted(line["times sooner"] for line in solved.values())
    level = [
        f"{line['contender']} on {short(line['problem'])}"
        for line in suite
        if line["problem"] in solved
        and line["contender"] in SECOND_ORDER
        and line["seconds to Adam's best"] <= LEVEL * solved[line["problem"]]["jumps reach it in"]
    ]
    return (
        f"To Adam's final error jumps come only {rough(gains[0])} to {rough(gains[-1])} times sooner than the quickest "
        f"first-order method ({len(solved)} of {len(verdict)} problems"
        + (f"; {' and '.join(level)} as soon or sooner)." if level else ").")
    )


def rivals(content: dict[str, Any]) -> list[str]:
    """Who raced beside jumps."""
    return [name for name in dict.fromkeys(row["contender"] for row in content["rows"]) if name != JUMPS]


def short(problem: str) -> str:
    return PROBLEMS[problem].title.split(",")[0]
