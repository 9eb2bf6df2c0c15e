"""What docs/benchmarks.md says of the demo, first jumps, their memory and the promises of the core."""

from __future__ import annotations

import math

from jumpstart.comparison.report import Report
from jumpstart.report import records

from . import RESULTS, UNMEASURED, machine, markdown, measured


def demo() -> str:
    """One table for each of the demo's problems."""
    parts = []
    for name, title in (
        ("poisson", "Poisson's equation as a PINN, 129 parameters"),
        ("digits", "Scanned digits, small CNN"),
    ):
        content = records.read(RESULTS / "demo" / name)
        report = Report(content["experiment"], content["rows"], content["settings"])
        columns = {
            "contender": "",
            "seconds_to_target": f"seconds to loss {report.target():.2g}",
            "evaluations_to_target": "gradient evaluations to it",
            "loss": "final loss",
            **{key: key for key in report.settings["metrics"]},
            "jumps": "jumps kept / tried",
        }
        seconds = content["settings"]["seconds"]
        parts.append(
            f"**{title}**, {seconds:g} s each, one thread; the target is where {report.contenders[0]} ends.\n\n"
            f"{markdown(report.summary(), columns)}\n\n![{name}](results/demo/{name}/{name}.png)\n\n"
            f"<sub>{machine(content)}</sub>"
        )
    return "\n\n".join(parts)


def first_jumps() -> str:
    """Medians over seeds, with the range where it matters."""
    content = records.read(RESULTS / "first_jumps")
    summary = content["settings"]["summary"]
    pinn = []
    for row in (r for r in summary if r["problem"] == "pinn"):
        error = row["relative error"]
        spread = f"{records.show(error['median'])} ({records.show(error['min'])} to {records.show(error['max'])})"
        pinn.append(
            {
                "contender": row["contender"],
                "error": spread,
                "seconds": row["seconds"]["median"],
                "evaluations": row["gradient_evaluations"]["median"],
            }
        )
    heads = {
        "contender": "",
        "error": "relative error: median (range)",
        "seconds": "seconds",
        "evaluations": "gradient evaluations",
    }
    table = f"**Poisson, 2×32 tanh, 1,185 parameters**, 60 jumps or 20 s.\n\n{markdown(pinn, heads)}"
    rows, at = [], sorted({r["at"] for r in summary if r["problem"] == "cnn"})
    for contender in dict.fromkeys(r["contender"] for r in summary if r["problem"] == "cnn"):
        same = {r["at"]: r for r in summary if r["problem"] == "cnn" and r["contender"] == contender}
        losses = {f"loss {a}": same[a]["loss"]["median"] for a in at if a in same}
        last = same[max(same)]
        rows.append(
            {
                "contender": contender,
                **losses,
                "test": last["best test loss"]["median"],
                "seconds": last["seconds"]["median"],
            }
        )
    heads = {"contender": "", **{f"loss {a}": f"at {a}" for a in at}, "test": "best test loss", "seconds": "seconds"}
    intro = "**MNIST CNN from scratch, 2,000 images, cross-entropy**: training loss at so many gradient evaluations"
    return "\n\n".join(
        (
            table,
            "![pinn](results/first_jumps/pinn.png)",
            f"{intro} after 40 Adam steps, medians.",
            markdown(rows, heads),
            "![cnn](results/first_jumps/cnn.png)",
            f"<sub>{machine(content)}</sub>",
        )
    )


def memory() -> str:
    """What a jump's memory is worth; says so where it has not been measured."""
    if (content := measured("memory")) is None:
        return UNMEASURED.format(name="memory")
    rows = []
    for row in content["settings"]["summary"]:
        jumps = row["jumps"]["median"]
        middle, low, high = (records.show(row["error"][key]) for key in ("median", "min", "max"))
        rows.append(
            {
                "start": row["start"],
                "contender": row["contender"],
                "error": f"{middle} ({low} to {high})",
                "loss": row["loss"]["median"],
                "jumps": None if math.isnan(jumps) else round(jumps),
            }
        )
    heads = {
        "start": "start", "contender": "", "error": "relative error: median (range)", "loss": "loss: median",
        "jumps": "jumps: median",
    }  # fmt: skip
    title = f"{content['settings']['seconds']:g} s each, one thread:"
    picture = "![error against time, with and without memory](results/memory/memory.png)"
    return "\n\n".join((title, markdown(rows, heads), picture, f"<sub>{machine(content)}</sub>"))


def core() -> str:
    """The promises of the core."""
    content = records.read(RESULTS / "core")
    heads = {"check": "", "max": "largest", "min": "smallest", "limit": "limit", "holds": "holds on seeds"}
    return f"{markdown(content['settings']['summary'], heads)}\n\n<sub>{machine(content)}</sub>"
