"""The command line: ``jumpstart demo``, ``report``, ``compare`` and ``ablate``."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .errors import JumpstartError
from .utils import version


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 1 for an error that is named, 130 for an interrupt, 141 for a pipe that
    nobody reads; 2, by argparse, for arguments that are none."""
    arguments = _parser().parse_args(argv)
    with _any_encoding():
        try:
            COMMANDS[arguments.command](arguments)
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
    report = commands.add_parser("report", help="the table and figure of results that are there already")
    report.add_argument(
        "folders", type=Path, nargs="+", metavar="folder",
        help="that holds results.json, or the seeds of an ablation (several of the latter are merged); or a file of "
        "js.JsonLines",
    )  # fmt: skip
    report.add_argument("--baseline", help="contender whose best loss everyone is timed to (default: the first)")
    _add_files(report, "report")
    for name, what in (("compare", "jumped against stepped"), ("ablate", "what parts of a jump are worth")):
        script = commands.add_parser(
            name, help=f"{what}, on a problem of your own: a file with a function problem(seed)"
        )
        script.add_argument("script", type=Path, help="Python file; problem(seed) returns a model and its objective")
        script.add_argument("--seeds", type=_count, default=5, help="how many starts (default: %(default)s)")
        script.add_argument("--seconds", type=float, default=10.0, help="of each run (default: %(default)s)")
        script.add_argument("--steps", type=_count, help="of each run, where that is sooner over")
        script.add_argument("--out", type=Path, help=f"folder for results (default: runs/{name}-SCRIPT)")
        script.add_argument("--no-progress", action="store_true", help="no progress bars, which terminals alone have")
        _add_files(script, "report")
    return parser


def _add_files(parser: argparse.ArgumentParser, stem: str) -> None:
    """Options for files beside the table; without a path they go into the folder."""
    html = f"one file to look at (default: {stem}.html in the folder); needs 'jumpstart[html]'"
    parser.add_argument("--html", type=Path, nargs="?", const=Path(), metavar="PATH", help=html)
    rows = f"the rows as CSV (default: {stem}.csv in the folder)"
    parser.add_argument("--csv", type=Path, nargs="?", const=Path(), metavar="PATH", help=rows)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no count: give a whole number from 1 on")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is no seed: give a whole number from 0 to 2^63 - 1")
    return value


def _demo(arguments: argparse.Namespace) -> None:
    from . import demo as demos

    demos.run(arguments.out, arguments.seed, arguments.quick, False if arguments.no_progress else None)


def _report(arguments: argparse.Namespace) -> None:
    from .comparison.results import read

    shown = read(arguments.folders, arguments.baseline)
    print(shown.table)
    if shown.draw is not None and arguments.html is None and arguments.csv is None:
        picture, trouble = shown.draw()
        print(f"written: {picture}" if picture else trouble)
    _write(arguments, shown.folder, shown.html, shown.to_csv)


def _script(arguments: argparse.Namespace) -> None:
    from .comparison.script import Script
    from .report.names import file_name

    script = Script(arguments.script)
    out = arguments.out
    if out is None:
        out = Path("runs", f"{arguments.command}-{file_name(arguments.script.stem, 'script')}")
    run = script.compare if arguments.command == "compare" else script.ablate
    found = run(arguments.seeds, arguments.seconds, arguments.steps, out, False if arguments.no_progress else None)
    print("\n\n".join(found.table(key) for key in ("loss", *found.metrics)))
    print(f"written: {out}")
    _write(arguments, out, found.html, found.to_csv)


def _write(
    arguments: argparse.Namespace, folder: Path, html: Callable[[Path], Path], to_csv: Callable[[Path], Path]
) -> None:
    """What --html and --csv ask for."""
    for path, write, name in ((arguments.html, html, "report.html"), (arguments.csv, to_csv, "report.csv")):
        if path is not None:
            print(f"written: {write(folder / name if path == Path() else path)}")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "demo": _demo,
    "report": _report,
    "compare": _script,
    "ablate": _script,
}


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
