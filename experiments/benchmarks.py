"""Every measured figure of README.md, docs/benchmarks.md, pinns.md and gates.md, from results under docs/results.

python -m experiments.benchmarks           writes them between the pages' markers, and draws README's picture
python -m experiments.benchmarks --check   fails if a page or the picture is not what the results say
"""

from __future__ import annotations

import argparse
import hashlib
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jumpstart.comparison.report import Report
from jumpstart.report import plots, records

from . import ablation as parts
from . import endings as last
from . import gate_pages
from . import targets as race
from .fewshot import summary as few_shots
from .pages import machine, markdown, rough
from .pinn import figures, report
from .pinn.problems import PROBLEMS
from .pinn.race import JUMPS, SECOND_ORDER

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
PICTURE = RESULTS / "pinn" / "races" / "headline.png"
LEVEL = 1.05  # within 5% is as soon
PICTURED = ("poisson2", "heat", "burgers")  # heat is where rivals come closest


def headline() -> str:
    """README: the picture, and how much lower jumps end."""
    content = records.read(RESULTS / "pinn" / "races")
    alt = f"Error against seconds on {', '.join(map(_short, PICTURED))}: jumps and {len(rivals(content))} rivals"
    seeds = len(content["environment"]["seeds"])
    return (
        f"![{alt}](docs/results/pinn/races/headline.png)\n\n"
        f"PINNs on one CPU thread, medians of {seeds} seeds (shaded: all). {lower(content)}"
    )


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
        f"{line['contender']} on {_short(line['problem'])}"
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


def _short(problem: str) -> str:
    return PROBLEMS[problem].title.split(",")[0]


def rivals(content: dict[str, Any]) -> list[str]:
    """Who raced beside jumps."""
    return [name for name in dict.fromkeys(row["contender"] for row in content["rows"]) if name != JUMPS]


def limits() -> str:
    """README: where jumps lose, or cost too much."""
    races = records.read(RESULTS / "pinn" / "races")
    demo = records.read(RESULTS / "demo" / "digits")
    digits = {row["contender"]: row for row in Report("digits", demo["rows"], demo["settings"]).summary()}
    plain, same, ours = (digits[name] for name in ("AdamW 0.03", "AdamW 0.01", "AdamW 0.01 + jumps"))
    risk = {row["value"]: row for row in records.read(RESULTS / "endpoint" / "risk")["settings"]["summary"]}
    cifar = risk["cifar vehicles"]
    scale = {row["check"]: row["largest"] for row in records.read(RESULTS / "endpoint")["settings"]["summary"]}
    table = records.read(RESULTS / "pinn" / "regression")["settings"]["summary"]
    concrete = {line["method"]: line["test_median"] for line in table if line["part"] == "concrete"}
    race = [row for row in records.read(RESULTS / "targets")["settings"]["summary"] if row["task"] == "kin40k"]
    soon = {row["contender"]: row["seconds, 1.02"] for row in race}
    show = records.show
    return "\n".join(
        (
            f"- **Classifiers from scratch.** Small CNN, scanned digits, {demo['settings']['seconds']:g} s: AdamW ends "
            f"at a loss of {show(plain['loss'])} at rate 0.03 and {show(same['loss'])} at 0.01, with jumps at "
            f"{show(ours['loss'])}.",
            "- **Networks that leave their linearization at once.** On CIFAR-10 (CNN) the horizon that `risk` chooses "
            f"costs {show(cifar['excess, leave-one-out'])} of test loss, one chosen on a held-out fifth "
            f"{show(cifar['excess, held out'])}; `check` warns.",
            "- **Large data.** A jump sees all of it: one `solve` on 20,000 MNIST images takes "
            f"{show(scale['200000 outputs: seconds'])} s.",
            f"- **Noisy tables.** UCI concrete: test error {show(concrete['jumps'])}, where AdamW stopped by an oracle "
            f"has {show(concrete['AdamW, oracle'])}.",
            f"- **Minibatches.** Nothing is skipped. UCI kin40k: to 1.02 of tuned AdamW's error it takes "
            f"{show(soon['AdamW'])} s, wrapped {show(soon['skips'])}, with a moving average {show(soon['EMA'])}.",
            f"- **A rough answer, soon.** {sooner(races)}",
        )
    )


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
    images = "\n".join(f"![{name}](results/endpoint/{name})" for name in pictures)
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
            "![risk](results/endpoint/risk/risk.png)",
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
    return f"{table}\n\n![linearity](results/endpoint/linearity/linearity.png)\n\n<sub>{machine(content)}</sub>"


UNMEASURED = "Not measured yet: `python -m experiments.{name} --no-progress --out docs/results/{name}`."


def measured(name: str) -> dict[str, Any] | None:
    """An experiment's results; None where there are none yet."""
    return records.read(RESULTS / name) if (RESULTS / name / records.NAME).is_file() else None


def skipping() -> str:
    """How near a skip comes to the steps, and what whole runs cost."""
    if (content := measured("skipping")) is None:
        return UNMEASURED.format(name="skipping")
    found = content["settings"]["summary"]
    heads = {
        "batch": "loop", "length": "steps", "arm": "", "problems": "problems", "evaluations": "evaluations of bare",
        "seconds": "seconds of bare", "held worse": "held out > 10% worse", "held better": "better",
        "held twice": "2× worse",
    }  # fmt: skip
    misses = [line for line in found["misses"] if line["batch"] == "full"]
    runs = [line for line in found["runs"] if line["length"] == "all"]
    goals = {"goal": "goal", "of": "of", "value": "value", "limit": "at most", "holds": "holds"}
    pictures = "".join(
        f"![{says}](results/skipping/{name}.png)\n\n"
        for name, says in (("misses", "miss against steps skipped"), ("costs", "cost against steps skipped"))
        if (RESULTS / "skipping" / f"{name}.png").is_file()
    )
    return (
        "Held-out outputs after one skip from step 20, off those after really taking the steps, relative to their "
        f"movement (medians where all were skipped; rivals beside):\n\n{markdown(misses)}\n\n{pictures}"
        f"Whole runs at equal effective steps (medians; numbers of runs):\n\n{markdown(runs, heads)}\n\n"
        f"{markdown(found['goals'], goals)}\n\n<sub>{machine(content)}</sub>"
    )


def never_worse() -> str:
    """Bare against wrapped on random problems, with the noise of other seeds."""
    if (content := measured("never_worse")) is None:
        return UNMEASURED.format(name="never_worse")
    found = content["settings"]["summary"]
    return (
        f"{found['problems']} problems; how many of the wrapped runs, and of runs that are no skips, end worse than "
        f"the bare one beyond the noise of other seeds:\n\n{markdown(found['both'])}\n\n"
        "![sorted log ratios of losses](results/never_worse/never_worse.png)\n\n"
        f"<sub>{machine(content)}</sub>"
    )


def training() -> str:
    """Tasks as people have them."""
    if (content := measured("training")) is None:
        return UNMEASURED.format(name="training")
    rows = []
    for row in content["settings"]["summary"]:
        task = content["settings"]["tasks"][row["task"]]
        cells = {
            key: "{} ({} to {})".format(*(records.show(row[key][part]) for part in ("median", "min", "max")))
            for key in ("bare", "wrapped", "seconds", "gradients")
        }
        rows.append({"task": row["task"], "batch": task["batch"] or "all", "metric": row["metric"], **cells})
    heads = {
        "task": "task", "batch": "batch", "metric": "", "bare": "bare", "wrapped": "wrapped",
        "seconds": "seconds of bare", "gradients": "gradients of bare",
    }  # fmt: skip
    return (
        f"Median (range); Adam, one thread:\n\n{markdown(rows, heads)}\n\n"
        "![seconds of wrapped over bare](results/training/training.png)\n\n"
        f"<sub>{machine(content)}</sub>"
    )


def told(name: str, page: Callable[[dict[str, Any]], str]) -> str:
    """An experiment's page from its results; says so where there are none."""
    content = measured(name)
    return UNMEASURED.format(name=name) if content is None else page(content)


def fewshot() -> str:
    """Few samples a class: heads, second stages, training."""
    return told("fewshot", few_shots.section)


def targets() -> str:
    """Time to where tuned AdamW ends."""
    return told("targets", race.page)


def endings() -> str:
    """A jump in place of the learning rate's decay."""
    return told("endings", last.page)


def ablation() -> str:
    """What each part of the wrapper is worth."""
    return told("ablation", parts.page)


def lora() -> str:
    """Time to tuned AdamW's best loss in fine-tuning."""
    content = measured("lora") if (RESULTS / "lora" / records.NAME).is_file() else None  # the folder has others in it
    if content is None:
        return UNMEASURED.format(name="lora")
    heads = {
        "task": "task", "contender": "", "reached": "seeds there", "best": "lowest loss: median", "steps": "steps",
        "gradients": "gradient evaluations", "seconds": "seconds", "faster": "times faster than AdamW",
    }  # fmt: skip
    rows = [{**row, "reached": f"{row['reached']}/{row['runs']}"} for row in content["settings"]["summary"]]
    return (
        f"{markdown(rows, heads)}\n\n![validation loss against seconds](results/lora/lora.png)\n\n"
        f"<sub>{machine(content)}</sub>"
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


def gates() -> str:
    """What gates cost and are worth, for docs/gates.md."""
    return gate_pages.sections(measured, UNMEASURED)


def gates_verdict() -> str:
    """The first line of docs/gates.md."""
    return gate_pages.verdict(measured, UNMEASURED)


PAGES: dict[Path, tuple[Callable[[], str], ...]] = {
    ROOT / "README.md": (headline, limits),
    ROOT / "docs" / "benchmarks.md": (
        pinn,
        large,
        skipping,
        never_worse,
        training,
        fewshot,
        targets,
        endings,
        ablation,
        lora,
        memory,
        demo,
        first_jumps,
        endpoint,
        risk,
        linearity,
        core,
    ),
    ROOT / "docs" / "pinns.md": (pinn_page,),
    ROOT / "docs" / "gates.md": (gates_verdict, gates),
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
    figure = figures.headline(records.read(RESULTS / "pinn" / "races")["rows"], PICTURED)
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
