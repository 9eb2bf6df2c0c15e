"""What docs/benchmarks.md says of skipped and wrapped training."""

from __future__ import annotations

from jumpstart.report import records

from .. import ablation as parts
from .. import endings as last
from .. import targets as race
from ..fewshot import summary as few_shots
from ..jump_parts import run as parts_of_jumps
from . import RESULTS, UNMEASURED, machine, markdown, measured, told


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


def jump_parts() -> str:
    """What each part of a jump is worth."""
    command = "python -m experiments.ablation --only jumps --no-progress --out docs/results/ablation"
    return told("ablation/jumps", lambda content: f"{markdown(content['rows'], parts_of_jumps.COLUMNS)}\n\n"
                f"<sub>{machine(content)}</sub>", command)  # fmt: skip


def lora() -> str:
    """Time to tuned AdamW's best loss in fine-tuning."""
    if (content := measured("lora")) is None:
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
