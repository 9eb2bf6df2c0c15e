"""What README.md says of measurements: where jumps win, and where they lose."""

from __future__ import annotations

from jumpstart.comparison.report import Report
from jumpstart.report import records

from . import RESULTS
from .pinns import lower, rivals, short, sooner

PICTURED = ("poisson2", "heat", "burgers")  # heat is where rivals come closest


def headline() -> str:
    """README: the picture, and how much lower jumps end."""
    content = records.read(RESULTS / "pinn" / "races")
    alt = f"Error against seconds on {', '.join(map(short, PICTURED))}: jumps and {len(rivals(content))} rivals"
    seeds = len(content["environment"]["seeds"])
    return (
        f"![{alt}](docs/results/pinn/races/headline.png)\n\n"
        f"PINNs on one CPU thread, medians of {seeds} seeds (shaded: all). {lower(content)}"
    )


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
