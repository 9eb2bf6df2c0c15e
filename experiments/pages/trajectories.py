"""What docs/trajectory.md says of operators along real runs."""

from __future__ import annotations

from typing import Any

from jumpstart.report import records

from .. import balance as kept
from .. import benign_overfitting as benign
from .. import double_descent as descent
from .. import escape as leave
from .. import grokking_anatomy as grokked
from .. import implicit_bias as bias
from .. import left_out as leaving
from .. import operators as identity
from . import UNMEASURED, machine, markdown, measured, told


def operators() -> str:
    """Identities, coupling and costs."""
    return told("operators", _operators)


def _operators(content: dict[str, Any]) -> str:
    about = content["settings"]
    error, chance = about["refuted above"]
    other = [row for row in content["rows"] if row["part"] == "coupling" and row["judged on"] == identity.OTHER]
    held = sum(row["holds"] for row in other)
    exact = [row["D = B⁻¹(I − P)"] for row in content["rows"] if row.get("D = B⁻¹(I − P)") is not None]
    beyond = max(row["beyond the bound"] for row in content["rows"] if row["part"] == "identities")
    return "\n\n".join(
        (
            f"The account, said before: {about['account']}; refuted if the error is above {error:g}, or if permuted "
            f"moves do as well in more than {chance:.0%}. **It held in {held} of {len(other)} runs.**",
            markdown(about["coupling"]),
            "![Errors of the identities, and moves at test points](results/operators/operators.png)",
            "By what power of the learning rate the error of each identity falls (2 for trapezoids, 4 for Simpson's "
            "rule, in the limit; at rounding, or where steps are still coarse, it says little), on 8 × 8 digits. "
            f"D = B⁻¹(I − P) holds within {records.show(max(exact))}, and no direction moves the queries by more "
            f"than (28) says (excess {records.show(beyond)}):",
            markdown(about["identities"]),
            "What it costs beside a step of a small network that takes a fraction of a millisecond:",
            markdown(about["costs"]),
            f"<sub>{machine(content)}</sub>",
        )
    )


def left_out() -> str:
    """Left-out runs against real ones."""
    return told("left_out", _left_out)


def _left_out(content: dict[str, Any]) -> str:
    lines = content["settings"]["summary"]
    verdicts = ", ".join(f"{line['network']}: {line['account']}" for line in lines if "account" in line)
    return "\n\n".join(
        (
            f"The account, said before: {content['settings']['account']}. Verdict at the last number of steps, "
            f"{content['settings']['samples']} digits: **{verdicts}**.",
            markdown(lines, leaving.HEADS),
            "![Leave-one-out of runs from scratch](results/left_out/left_out.png)",
            f"<sub>{machine(content)}</sub>",
        )
    )


def monitor() -> str:
    """When to stop, and which architecture."""
    return told("monitor", _monitor)


def _monitor(content: dict[str, Any]) -> str:
    about = content["settings"]
    first, second = (f"{about['accounts'][key]}: **{about['verdicts'][key]}**" for key in ("monitor", "architectures"))
    return "\n\n".join(
        (
            f"When to stop. The account, said before: {first}. Unseen loss above that of the best step in hindsight, "
            "as a share of it; 30% wrong targets:",
            markdown(about["monitor"]),
            f"Which architecture. The account, said before: {second}. Spearman's correlation with the unseen loss over "
            "eight networks:",
            markdown(about["architectures"]),
            "![The monitor beside the unseen loss, and architectures by rank](results/monitor/monitor.png)",
            f"<sub>{machine(content)}</sub>",
        )
    )


def double_descent() -> str:
    """Across widths."""
    return told("double_descent", descent.page)


def benign_overfitting() -> str:
    """Across tails and levels of noise."""
    return told("benign_overfitting", benign.page)


def implicit_bias() -> str:
    """Modes against time."""
    return told("implicit_bias", bias.page)


def grokking_anatomy() -> str:
    """Over the time of a run that groks."""
    return told("grokking_anatomy", grokked.page)


def escape() -> str:
    """When minibatch runs leave."""
    return told(
        "escape", lambda content: f"![Steps against forecasts](results/escape/escape.png)\n\n{leave.page(content)}"
    )


def balance() -> str:
    """What flow keeps."""
    return told(
        "balance", lambda content: f"![Balance and losses](results/balance/balance.png)\n\n{kept.page(content)}"
    )


def uses() -> str:
    """What operators are good for, beside simple rivals: each claim as it was said before, and its verdict."""
    parts = []
    for name in ("spectral_rate", "drift_diffusion", "pruning", "forecast"):
        content = measured(name)
        if content is None:
            continue
        lines = content["settings"]["verdicts"]
        held = sum(line["verdict"] == "held" for line in lines)
        heads = {"said": "said before", "measured": "measured, median", "verdict": "verdict"}
        parts += [
            f"### {TITLES[name]}: {held} of {len(lines)} held",
            f"![{TITLES[name]}](results/{name}/{name}.png)", markdown(lines, heads), f"<sub>{machine(content)}</sub>",
        ]  # fmt: skip
    return "\n\n".join(parts) or UNMEASURED.format(name="spectral_rate")


TITLES = {
    "spectral_rate": "A learning rate from the spectrum", "drift_diffusion": "Drift and diffusion of minibatch runs",
    "pruning": "Pruning by the signal channel", "forecast": "When a run will generalize",
}  # fmt: skip
