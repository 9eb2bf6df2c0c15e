"""The command line: ``jumpstart demo`` and ``jumpstart report``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import JumpstartError
from .utils import version


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="jumpstart", description="Skip training steps by solving them.")
    parser.add_argument("--version", action="version", version=f"jumpstart {version.installed()}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="digits and a Poisson equation, jumped and stepped (about a minute)")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for results (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="start and split (default: %(default)s)")
    demo.add_argument("--quick", action="store_true", help="one second for each contender")
    demo.add_argument("--no-progress", action="store_true", help="no progress bars")
    report = commands.add_parser("report", help="the table and figure of a results.json that is there already")
    report.add_argument("folder", type=Path, help="folder that holds results.json")
    report.add_argument("--baseline", help="contender whose best loss everyone is timed to (default: the first)")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "demo":
            from . import demo as demos

            demos.run(arguments.out, arguments.seed, arguments.quick, not arguments.no_progress)
        else:
            _report(arguments.folder, arguments.baseline)
    except JumpstartError as error:
        print(f"jumpstart: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\njumpstart: stopped; nothing half-written is left behind.", file=sys.stderr)
        return 130
    return 0


def _report(folder: Path, baseline: str | None) -> None:
    from .comparison.report import Report
    from .report import plots, records

    if not (folder / "results.json").is_file():
        raise JumpstartError(f"{folder} holds no results.json: give the folder that a run wrote.")
    content = records.read(folder)
    rows = content.get("rows", [])
    if not rows or not {"contender", "seconds", "loss"} <= set(rows[0]):
        raise JumpstartError(
            f"{folder}/results.json is not a comparison: its rows name no contender, seconds and loss."
        )
    report = Report(content["experiment"], rows, content["settings"], content["environment"]["seeds"])
    if baseline is not None and baseline not in report.contenders:
        raise JumpstartError(f"baseline {baseline!r} is none of {report.contenders}.")
    print(report.table(baseline))
    print(f"written: {plots.save(report.figure(), folder / (report.name + '.png'))}")


if __name__ == "__main__":
    raise SystemExit(main())
