"""Every measured figure of README.md, docs/benchmarks.md, pinns.md and gates.md, from results under docs/results.

python -m experiments.benchmarks           writes them between the pages' markers, and draws README's picture
python -m experiments.benchmarks --check   fails if a page or the picture is not what the results say
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jumpstart.report import plots, records

from .pages import RESULTS, endpoint, gates, jumps, pinns, processes, readme, training, trajectories
from .pinn import figures

ROOT = Path(__file__).resolve().parent.parent
PICTURE = RESULTS / "pinn" / "races" / "headline.png"

PAGES: dict[Path, tuple[Callable[[], str], ...]] = {
    ROOT / "README.md": (readme.headline, readme.limits),
    ROOT / "docs" / "benchmarks.md": (
        pinns.pinn,
        pinns.large,
        training.skipping,
        training.never_worse,
        training.training,
        training.fewshot,
        training.targets,
        training.endings,
        training.ablation,
        training.lora,
        jumps.memory,
        jumps.demo,
        jumps.first_jumps,
        endpoint.endpoint,
        endpoint.risk,
        endpoint.linearity,
        jumps.core,
    ),
    ROOT / "docs" / "pinns.md": (
        pinns.collocation,
        pinns.parted,
        pinns.points,
        pinns.budgets,
        pinns.longest,
        pinns.rest,
        pinns.high,
        pinns.pinn_page,
    ),
    ROOT / "docs" / "gallery.md": (pinns.gallery,),
    ROOT / "docs" / "ablations.md": (training.jump_parts,),
    ROOT / "docs" / "gates.md": (gates.gates_verdict, gates.gates),
    ROOT / "docs" / "distributed.md": (
        processes.spread_traffic,
        processes.spread_memory,
        processes.spread_shards,
        processes.spread_predicted,
    ),
    ROOT / "docs" / "trajectory.md": (
        trajectories.operators,
        trajectories.left_out,
        trajectories.monitor,
        trajectories.escape,
        trajectories.balance,
        trajectories.uses,
    ),
    ROOT / "docs" / "puzzles" / "double-descent.md": (trajectories.double_descent,),
    ROOT / "docs" / "puzzles" / "benign-overfitting.md": (trajectories.benign_overfitting,),
    ROOT / "docs" / "puzzles" / "implicit-bias.md": (trajectories.implicit_bias,),
    ROOT / "docs" / "puzzles" / "grokking.md": (trajectories.grokking_anatomy,),
}


class MarkerError(Exception):
    """A page lacks the markers between which a maker writes."""


def filled(page: str, makers: tuple[Callable[[], str], ...]) -> str:
    """The page with what each maker says between ``<!-- name -->`` and ``<!-- /name -->``.

    Raises:
        MarkerError: the page lacks a maker's markers.
    """
    for make in makers:
        name = make.__name__
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n?<!-- /{name} -->)", flags=re.S)
        if not pattern.search(page):
            raise MarkerError(f"there are no markers <!-- {name} --> and <!-- /{name} -->")
        text = make()
        page = pattern.sub(lambda match, text=text, name=name: f"{match[1]}{text}\n<!-- /{name} -->", page)
    return page


def source() -> str:
    """A digest of what the picture is drawn from; the picture carries it."""
    return hashlib.sha256((RESULTS / "pinn" / "races" / "results.json").read_bytes()).hexdigest()


def drawn_from(picture: Path) -> str | None:
    """The digest that a picture carries; None where there is no such picture."""
    from PIL import Image

    try:
        with Image.open(picture) as image:
            return image.info.get("Source")
    except OSError:
        return None


def draw() -> None:
    """README's picture, with the digest of its source in it."""
    figure = figures.headline(records.read(RESULTS / "pinn" / "races")["rows"], readme.PICTURED)
    figure.savefig(PICTURE, dpi=150, metadata={"Source": source()})
    plots.pyplot().close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something is out of date")
    check = parser.parse_args(arguments).check
    stale = []
    for page, makers in PAGES.items():
        before = page.read_text()
        try:
            after = filled(before, makers)
        except MarkerError as error:
            print(f"{page.name}: {error}", file=sys.stderr)
            return 1
        if after != before:
            stale.append(page.name)
            if not check:
                page.write_text(after)
    if drawn_from(PICTURE) != source():
        stale.append(PICTURE.name)
        if not check:
            draw()
    if check and stale:
        print(f"{', '.join(stale)}: not what the results say; run python -m experiments.benchmarks", file=sys.stderr)
        return 1
    print(f"{'up to date' if not stale else 'written: ' + ', '.join(stale)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
