"""Tables of docs/pinns.md and README.md from docs/results/pinn; a part that has not been run is left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jumpstart import records

from ..pages import machine, markdown


def _part(root: Path, name: str) -> Mapping[str, Any] | None:
    try:
        return records.read(root / name)
    except OSError:
        return None


def short(root: Path, folder: str) -> str:
    """What README shows: the aims, problem by problem, and the largest networks."""
    parts = []
    if (content := _part(root, "races")) is not None:
        heads = {
            "problem": "", "jumps end at": "jumps: relative error", "lowest rival": "best of seven rivals",
            "ends at": "its error", "Adam's best": "Adam's, after", "Adam's seconds": "s",
            "jumps reach it in": "jumps are there after s", "times sooner": "times sooner than first-order rivals",
            "jumps above 0.1": "jumps failed",
        }  # fmt: skip
        parts += [
            markdown(content["settings"]["verdict"], heads), f"![error against time]({folder}/races/races.png)",
            _source(content),
        ]  # fmt: skip
    if (content := _part(root, "cuda/large")) is not None:
        parts += [
            f"**Networks of 10⁵ to 10⁶ parameters**, on a {content['environment']['cuda']}, float64:",
            f"![large networks]({folder}/cuda/large/large.png)", _source(content),
        ]  # fmt: skip
    return "\n\n".join(parts)


def _anchor(content: Mapping[str, Any]) -> str:
    heads = {
        "init": "start", "contender": "", "seconds": "seconds", "median": "relative error, median", "max": "worst",
        "above 1e-5": "above 1e-5", "stuck": "ends above 0.1", "seconds to 1e-6": "s to 1e-6",
        "seconds to 1e-7": "s to 1e-7",
    }  # fmt: skip
    return (
        "**Poisson, 129 parameters**, at the time at which the natural gradient has made 100 iterations:\n\n"
        + markdown(content["settings"]["anchor"], heads)
    )


def _verdict(content: Mapping[str, Any]) -> str:
    title = "**Time to Adam's best error** (of the seconds it was given), and final errors; medians:"
    return f"{title}\n\n{markdown(content['settings']['verdict'])}"


def page(root: Path, folder: str) -> str:
    """What docs/pinns.md shows: everything there is, with pictures."""
    parts: list[str] = []
    if (content := _part(root, "races")) is not None:
        heads = {
            "problem": "", "contender": "", "given": "seconds given", "seconds to Adam's best": "s to Adam's best",
            "never": "never", "error": "relative error, median", "smallest": "smallest", "largest": "largest",
            "failed": "above 0.1",
        }  # fmt: skip
        parts += [
            "### Races", NOTE, _anchor(content), _verdict(content),
            "**Everyone on everything:**\n\n" + markdown(content["settings"]["suite"], heads),
            f"![error against time]({folder}/races/races.png)", "Poisson, from 0.1·randn:",
            f"![error against time, small start]({folder}/races/small.png)",
            f"![solutions and errors]({folder}/races/solutions.png)", _source(content),
        ]  # fmt: skip
    if (content := _part(root, "costs")) is not None:
        parts += ["### Where a jump's time goes", markdown(content["rows"]), _source(content)]
    for name, title in (
        ("ablation", "### Each part switched off in turn"), ("inverse", "### Burgers' viscosity from noisy data"),
        ("regression", "### Regression"), ("large", "### Large networks"),
        ("cuda/large", "### Large networks, on a GPU"),
    ):  # fmt: skip
        if (content := _part(root, name)) is not None:
            parts += [title, markdown(content["settings"]["summary"])]
            picture = f"{name}/{name.split('/')[-1]}.png"
            if (root / picture).exists():
                parts.append(f"![{name}]({folder}/{picture})")
            parts.append(_source(content))
    return "\n\n".join(parts)


NOTE = (
    "Every contender starts from the same weights, sees the same points and weights, and takes turns on one thread; "
    "whoever has used the least time goes next. Rivals are trained on the residual as people write it in plain torch, "
    "which is as fast as ours or faster; those that need the whole Jacobian are given ours. Two halves of the seeds "
    "ran side by side, one on each core. Learning rates come from other seeds (`python -m experiments.pinn.tuning`)."
)


def _source(content: Mapping[str, Any]) -> str:
    return f"<sub>{machine(content)}</sub>"
