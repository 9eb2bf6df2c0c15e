"""Tables of docs/pinns.md and docs/benchmarks.md from docs/results/pinn.

A part that has not been run is left out of docs/pinns.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jumpstart.report import records

from ..pages import machine, markdown
from .problems import PROBLEMS


def _part(root: Path, name: str) -> Mapping[str, Any] | None:
    try:
        return records.read(root / name)
    except OSError:
        return None


def verdict(root: Path, folder: str) -> str:
    """docs/benchmarks.md, in short: how low, and how soon, problem by problem."""
    content = records.read(root / "races")
    heads = {
        "problem": "", "seconds each": "seconds each", "jumps' lowest": "jumps: relative error",
        "jumps above 0.1": "runs above 0.1", "best rival": "best of seven rivals", "its lowest": "its error",
        "it is there in": "it is there in s", "jumps are there in": "jumps are there in s",
        "Adam's best": "Adam's error", "Adam's seconds": "in s",
        "times sooner": "jumps there times sooner than first-order rivals",
    }  # fmt: skip
    picture = f"![error against time]({folder}/races/races.png)"
    return "\n\n".join((markdown(_titled(content["settings"]["verdict"]), heads), picture, _source(content)))


def large(root: Path, folder: str) -> str:
    """docs/benchmarks.md: the largest networks."""
    content = records.read(root / "cuda/large")
    title = (
        f"{content['settings']['summary'][0]['seconds']:g} s each on one {content['environment']['cuda']}, float64 "
        "(a line a seed):"
    )
    return "\n\n".join((title, f"![large networks]({folder}/cuda/large/large.png)", _source(content)))


def _anchor(content: Mapping[str, Any]) -> str:
    heads = {
        "init": "start", "contender": "", "seconds": "seconds", "median": "relative error, median", "max": "worst",
        "above 1e-5": "above 1e-5", "stuck": "never below 0.1", "100 iterations made": "100 made",
        "seconds to 1e-6": "s to 1e-6", "seconds to 1e-7": "s to 1e-7",
    }  # fmt: skip
    return (
        "**Poisson, 129 parameters**, at the time at which the natural gradient has made 100 iterations, or at the end "
        "where it made fewer:\n\n" + markdown(content["settings"]["anchor"], heads)
    )


def _verdict(content: Mapping[str, Any]) -> str:
    title = "**Time to Adam's lowest error, and lowest errors**; medians; – where Adam's is above 0.1, no solution:"
    return f"{title}\n\n{markdown(_titled(content['settings']['verdict']))}"


def _titled(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [{**line, "problem": PROBLEMS[line["problem"]].title} for line in lines]


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
            "**Everyone on everything:**\n\n" + markdown(_titled(content["settings"]["suite"]), heads),
            f"![error against time]({folder}/races/races.png)", "Poisson, from 0.1·randn:",
            f"![error against time, small start]({folder}/races/small.png)",
            f"![solutions and errors]({folder}/races/solutions.png)", _source(content),
        ]  # fmt: skip
    if (content := _part(root, "costs")) is not None:
        parts.append("### Where a jump's time goes")
        if (times := content["settings"]["verdict"].get("jump / L-BFGS evaluation")) is not None:
            parts.append(
                f"At 1,185 parameters a jump takes {times:.1f} evaluations of L-BFGS. It is the seventh of its run; "
                "later ones reach more modes, and a sketch is wider then ([0035](decisions/0035-sketched-steps.md))."
            )
        parts += [markdown(content["rows"]), _source(content)]
    for name, (title, text) in SECTIONS.items():
        if (content := _part(root, name)) is None:
            continue
        table = _regression(content) if name == "regression" else markdown(content["settings"]["summary"])
        parts += [f"### {title}", text.strip().replace("\n", " "), table]
        picture = f"{name}/{name.split('/')[-1]}.png"
        if (root / picture).exists():
            parts.append(f"![{title}]({folder}/{picture})")
        parts.append(_source(content))
    return "\n\n".join(parts)


NOTE = (
    "Every contender starts from the same weights, sees the same points and weights, and takes turns on one thread; "
    "whoever has used the least time goes next. Rivals are trained on the residual as people write it in plain torch, "
    "which is as fast as ours or faster; those that need the whole Jacobian are given ours. Two halves of the seeds "
    "ran side by side, one on each core, in three runs that `--merge` puts together (commits in the file). Errors are "
    "the lowest along a run, for everyone; times to an error include building the objective, errors at equal time do "
    "not (0.1 to 0.6 s). Learning rates were chosen for each problem in runs of 6 s on seeds 100 and 101 "
    "(`python -m experiments.pinn.tuning`), torch-LM's damping on Poisson; the constants of the search on seeds 100 to "
    "105 of these same problems."
)


def _source(content: Mapping[str, Any]) -> str:
    return f"<sub>{machine(content)}</sub>"


LARGE = """
Three hidden layers; the Jacobian is never formed. "jumps" gather the kernel of the residuals layer by layer and factor
it; "conjugate gradients" take products with it (`basis="matrix-free"`), which is for what the kernel does not fit:
where both do, it loses. SOAP's rate was chosen among 1e-3, 3e-3 and 1e-2 on seed 100, on a CPU; steps are those of
the first seed."""
SECTIONS = {
    "ablation": ("Each part switched off in turn", """
Final errors at equal time, medians and the worst seed. "Without boldness" never climbs (`nonmonotone=False`); "reuse"
is `chord_steps`; a search takes many horizons (or shares of the full step) a jump from eigenvectors, where a march
(`search="levenberg-marquardt"`) takes one from a Cholesky factor."""),
    "inverse": ("Burgers' viscosity from noisy data", """
300 noisy values of u and the equation, no initial or boundary values; ν starts 16 times too large; no rival ran.
Noise is relative to the rms of u; the error bar is the Gauss–Newton posterior's (`experiments/pinn/inverse.py`).
Without noise what is left is systematic, and no bar for noise covers it."""),
    "regression": ("Regression", """
sinc(10x) by 61 weights, until the mean square error is 1e-7, on 20,000 points or every 40th of them; and two UCI
tables, where AdamW is given the best *test* error of its run as if by an oracle, while jumps stop by themselves, on
training rows alone (weight decay by the evidence, weights by leave-one-out of the linearized run)."""),
    "large": ("Large networks", LARGE),
    "cuda/large": ("Large networks, on a GPU", "The same on a GPU, in float64, in less time."),
}  # fmt: skip


def _regression(content: Mapping[str, Any]) -> str:
    """One table for the curve, one for each of the others."""
    lines = content["settings"]["summary"]
    curve = {
        "method": "sinc", "points": "points", "reached": "reached 1e-7, of runs", "runs": "runs",
        "seconds_to_goal_median": "seconds, median", "seconds_to_goal_max": "slowest", "mse_median": "ends at",
    }  # fmt: skip
    found = {
        "reached": "level with AdamW's best, of runs", "runs": "runs", "test_median": "test error, median",
        "test_min": "smallest", "test_max": "largest", "seconds_on_the_way_median": "s to AdamW's best on the way",
        "chosen_seconds_median": "s to the weights chosen",
    }  # fmt: skip
    tables = [markdown([line for line in lines if line["part"] == "sinc"], curve)]
    for name in dict.fromkeys(line["part"] for line in lines if line["part"] != "sinc"):
        tables.append(markdown([line for line in lines if line["part"] == name], {"method": name, **found}))
    return "\n\n".join(tables)
