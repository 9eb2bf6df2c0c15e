"""The command line: ``jumpstart demo`` and ``jumpstart report``."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .errors import InputError, JumpstartError
from .utils import version


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 1 for an error that is named, 130 for an interrupt, 141 for a pipe that
    nobody reads; 2, by argparse, for arguments that are none."""
    arguments = _parser().parse_args(argv)
    with _any_encoding():
        try:
            if arguments.command == "demo":
                from . import demo as demos

                demos.run(arguments.out, arguments.seed, arguments.quick, False if arguments.no_progress else None)
            else:
                _report(arguments.folder, arguments.baseline)
            sys.stdout.flush()
        except JumpstartError as error:
            _complain(f"jumpstart: {error}")
            return 1
        except KeyboardInterrupt as interrupt:
            kept = "; ".join(getattr(interrupt, "__notes__", [])) or "nothing half-written is left behind"
            _complain(f"\njumpstart: stopped; {kept}.")
            return 130
        except BrokenPipeError:
            # Python flushes once more at its end, which must not fail again.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except OSError as error:
            _complain(f"jumpstart: {error}: check the path, its permissions and the disk.")
            return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jumpstart", description="Skip training steps by solving them.")
    parser.add_argument("--version", action="version", version=f"jumpstart {version.installed()}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="digits and a Poisson equation, jumped and stepped (about a minute)")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for results (default: %(default)s)")
    demo.add_argument("--seed", type=_seed, default=0, help="start and split (default: %(default)s)")
    demo.add_argument("--quick", action="store_true", help="one second for each contender")
    demo.add_argument("--no-progress", action="store_true", help="no progress bars, which terminals alone have")
    report = commands.add_parser("report", help="the table and figure of a results.json that is there already")
    report.add_argument("folder", type=Path, help="folder that holds results.json")
    report.add_argument("--baseline", help="contender whose best loss everyone is timed to (default: the first)")
    return parser


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is no seed: give a whole number from 0 to 2^63 - 1")
    return value


def _report(folder: Path, baseline: str | None) -> None:
    from .comparison.report import Report
    from .report.names import printable

    report = Report.read(folder)
    if baseline is not None and baseline not in report.contenders:
        known = ", ".join(printable(name) for name in report.contenders[:9])
        raise InputError(f"baseline {printable(baseline)!r} is no contender; there are {known}.")
    print(report.table(baseline))
    picture, trouble = report.draw(folder)
    print(f"written: {picture}" if picture else trouble)


def _complain(text: str) -> None:
    """To stderr, without what a terminal would obey: messages quote names from files."""
    from .report.names import printable

    lines = text.split("\n")
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or there is none: nobody to tell
        print("\n".join(printable(line, 2000) for line in lines), file=sys.stderr)


@contextlib.contextmanager
def _any_encoding() -> Iterator[None]:
    """Signs that the terminal or the file behind stdout has no code for come out as '?', and raise nothing."""
    stream, before = sys.stdout, getattr(sys.stdout, "errors", None)
    reconfigure = getattr(stream, "reconfigure", None)  # a stand-in may have none
    if reconfigure is not None:
        reconfigure(errors="replace")
    try:
        yield
    finally:
        if reconfigure is not None:
            with contextlib.suppress(OSError, ValueError):  # a pipe that nobody reads, a stream that was closed
                reconfigure(errors=before)


if __name__ == "__main__":
    raise SystemExit(main())
