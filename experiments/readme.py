"""The tables of README.md and docs/pinns.md, from the results files under docs/results.

python -m experiments.readme           writes them between the pages' markers
python -m experiments.readme --check   fails if a page does not hold them as they are
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from jumpstart.comparison.report import Report
from jumpstart.report import records

from .pages import machine, markdown
from .pinn import report

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"


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
            f"{markdown(report.summary(), columns)}\n\n![{name}](docs/results/demo/{name}/{name}.png)\n\n"
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
            "![pinn](docs/results/first_jumps/pinn.png)",
            f"{intro} after 40 Adam steps, medians.",
            markdown(rows, heads),
            "![cnn](docs/results/first_jumps/cnn.png)",
            f"<sub>{machine(content)}</sub>",
        )
    )


def core() -> str:
    """The promises of the core."""
    content = records.read(RESULTS / "core")
    heads = {"check": "", "max": "largest", "min": "smallest", "limit": "limit", "holds": "holds on seeds"}
    return f"{markdown(content['settings']['summary'], heads)}\n\n<sub>{machine(content)}</sub>"


def endpoint() -> str:
    """Points 1 to 5 and 8 of the endpoint experiment."""
    content = records.read(RESULTS / "endpoint")
    heads = {"point": "", "check": "", "smallest": "smallest", "largest": "largest", "limit": "limit", "holds": "holds"}
    summary = [row for row in content["settings"]["summary"] if row["point"] not in (6, 7)]
    rows = []
    for ending, name in (("t 0.1 to 1000", "finite t"), ("t ∞", "t = ∞")):  # one line for all inputs, c and point sets
        same = [row for row in summary if row["point"] == 1 and row["limit"] and row["check"].endswith(ending)]
        sizes = {"smallest": min(r["smallest"] for r in same), "largest": max(r["largest"] for r in same)}
        held = [tuple(map(int, row["holds"].split("/"))) for row in same]
        holds = "/".join(str(sum(pair[i] for pair in held)) for i in (0, 1))
        rows.append(
            {"point": 1, "check": f"outputs, {name}, all cases", **sizes, "limit": same[0]["limit"], "holds": holds}
        )
    shown = ("seconds, jump", "seconds, struct", "seconds, default", "GiB at peak", "outputs: seconds", " / ", "slope")
    rows += [row for row in summary if row["point"] > 1 and any(word in row["check"] for word in shown)]
    pictures = sorted(path.name for path in (RESULTS / "endpoint").glob("*.png"))
    images = "\n".join(f"![{name}](docs/results/endpoint/{name})" for name in pictures)
    commits = ", ".join(f"{point}: {commit}" for point, commit in content["settings"]["commits"].items())
    return f"{markdown(rows, heads)}\n\n{images}\n\n<sub>{machine(content)}; commits by point {commits}</sub>"


def risk() -> str:
    """Excess test loss of each way to choose a horizon, by number of samples and by data set."""
    content = records.read(RESULTS / "endpoint" / "risk")
    summary = content["settings"]["summary"]
    heads = {
        "value": "", "runs": "runs", "excess, leave-one-out": "leave-one-out", "excess, gcv": "GCV (mse)",
        "excess, population": "population", "excess, held out": "20% held out",
        "excess, held out, then all": "held out, then all", "excess, last": "last step",
        "ahead of held out": "share ahead of held out", "correlation": "correlation", "gap": "mean gap",
    }  # fmt: skip
    rows = [{**row, "value": f"n = {row['value']}"} for row in summary if row["by"] == "n"]
    rows += [row for row in summary if row["by"] == "set"]
    jumps = {
        "value": "", "jump excess, horizon": "horizon alone", "jump excess, damping": "+ damping",
        "jump excess, gate": "+ gate", "jump excess, weights": "+ sample weights",
    }  # fmt: skip
    tuned = [row for row in rows if row["jump excess, horizon"] is not None]
    both = {
        family: [row[f"jump excess, {family}"] - row[plain] for row in content["rows"] if plain in row]
        for plain in ["jump excess, horizon"]
        for family in ("damping", "gate", "weights")
    }
    shares = [
        f"{family} better in {sum(d < 0 for d in gains) / len(gains):.0%}, worse in "
        f"{sum(d > 0 for d in gains) / len(gains):.0%}"
        for family, gains in both.items()
    ]
    costs = records.read(RESULTS / "endpoint" / "cost")
    prices = {
        "setting": "", "n": "n", "outputs": "outputs", "parameters": "parameters", "gradient seconds": "s / gradient",
        "solve / gradient": "solve, in gradients", "leave-one-out seconds": "leave-one-out, s",
        "leave-one-out / gradient": "in gradients",
    }  # fmt: skip
    return "\n\n".join(
        (
            "Median excess of the real run's test loss at the chosen horizon over the best on the way; correlation and "
            "gap of the predicted with the real held-out curve.",
            markdown(rows, heads),
            "Excess test loss of the real network moved to `parameters(t)`, the horizon and more chosen by "
            "leave-one-out (over the best horizon of the plain run):",
            markdown(tuned, jumps),
            f"Beside the horizon alone, over {len(both['damping'])} runs: {'; '.join(shares)}.",
            "![risk](docs/results/endpoint/risk/risk.png)",
            f"<sub>{machine(content)}</sub>",
            "What leave-one-out at 30 horizons costs, on one thread and without a single network pass:",
            markdown(costs["rows"], prices),
            f"<sub>{machine(costs)}</sub>",
        )
    )


def linearity() -> str:
    """How far the linearized run and the real one go together."""
    content = records.read(RESULTS / "endpoint" / "linearity")
    heads = {
        "setting": "", "seed": "seed", "last": "run to flow time", "trust": "trust horizon (check)",
        "agreement": "real run within 10% to", "order 2 / order 1": "gained by order 2",
        "train loss at trust, real": "train loss there, real", "train loss at trust, predicted": "predicted",
        "test loss at trust, real": "test loss, real", "test loss at trust, predicted": "predicted ",
    }  # fmt: skip
    table = markdown(content["settings"]["summary"], heads)
    return f"{table}\n\n![linearity](docs/results/endpoint/linearity/linearity.png)\n\n<sub>{machine(content)}</sub>"


def pinn() -> str:
    """Partial differential equations, in short."""
    return report.short(RESULTS / "pinn", "docs/results/pinn")


def pinn_page() -> str:
    """The same in full, for docs/pinns.md."""
    return report.page(RESULTS / "pinn", "results/pinn")


PAGES = {
    ROOT / "README.md": (pinn, demo, first_jumps, core, endpoint, risk, linearity),
    ROOT / "docs" / "pinns.md": (pinn_page,),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.readme", description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for page, makers in PAGES.items():
        before = text = page.read_text()
        for make in makers:
            name = make.__name__
            pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n?<!-- /{name} -->)", flags=re.S)
            if not pattern.search(text):
                print(f"{page.name} has no markers <!-- {name} --> and <!-- /{name} -->", file=sys.stderr)
                return 1
            table = make()
            text = pattern.sub(lambda match, table=table, name=name: f"{match[1]}{table}\n<!-- /{name} -->", text)
        if check and text != before:
            print(f"{page.name} is not what the results say: run python -m experiments.readme", file=sys.stderr)
            return 1
        page.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
