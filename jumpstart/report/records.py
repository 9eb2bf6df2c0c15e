"""What a run leaves behind: one results.json with the command, the environment, the settings and the rows."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import scipy
import torch

from ..errors import ArchiveError, InputError
from ..utils import files, strict_json, version
from .names import printable

Row = dict[str, Any]
NAME = "results.json"
LARGEST = 2**28  # bytes of a results.json that is read
FORMAT = 1  # of results.json; files without a number, of versions before, are read as this one


def environment(seeds: Sequence[int] = ()) -> dict[str, Any]:
    """Versions, machine, commit, threads and seeds of this process; no path of the machine is recorded."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "jumpstart": version.installed(),
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {_processor()}",
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "seeds": list(seeds),
    }


def command() -> str:
    """How this process was started, without the interpreter's path."""
    name = Path(sys.argv[0]).name if sys.argv else "python"
    if getattr(sys.modules.get("__main__"), "__spec__", None) is not None:
        module = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]
        name = f"python -m {module.removesuffix('.__main__')}"
        return " ".join([name, *map(shlex.quote, sys.argv[1:])])
    return " ".join(map(shlex.quote, [name, *sys.argv[1:]]))


def write(
    folder: str | Path,
    experiment: str,
    settings: Mapping[str, Any],
    rows: Sequence[Row],
    seeds: Sequence[int] = (),
    others: Mapping[str, Sequence[Row]] | None = None,
) -> Path:
    """Write ``folder/results.json`` whole or not at all, and return its path; numbers that are not finite as
    ``utils.strict_json`` spells them.

    Args:
        others: further lists of rows by name, such as "jumps".

    Raises:
        InputError: it cannot be written.
    """
    target = Path(folder) / NAME
    head = {
        "experiment": experiment,
        "format": FORMAT,
        "command": command(),
        "environment": environment(seeds),
        "settings": dict(settings),
    }
    # One row a line: readable, and a change of one row is a change of one line.
    opening = strict_json.dumps(head, indent=1, default=_plain).removesuffix("\n}")
    tables = {name: found for name, found in {**(others or {}), "rows": rows}.items() if found or name == "rows"}
    listed = [
        f' "{name}": [\n' + ",\n".join(strict_json.dumps(row, default=_plain) for row in found) + "\n]"
        for name, found in tables.items()
    ]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(target) as file:
            file.write((",\n".join([opening, *listed]) + "}\n").encode())
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise _unwritten(target, error) from error
    return target


def require_writable(folder: str | Path) -> None:
    """Make a folder, and find out whether results could be written there; half files of killed runs go.

    Raises:
        InputError: they could not.
    """
    target = Path(folder) / NAME
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        files.sweep(target)
        files.try_to_write(target)
    except (OSError, ValueError) as error:
        raise _unwritten(target, error) from error


def _unwritten(target: Path, error: Exception) -> InputError:
    return InputError(f"{target} cannot be written ({error}): give a folder that can be.")


def read(folder: str | Path) -> dict[str, Any]:
    """The content of ``folder/results.json``: a table with the rows as a list, no more is certain.

    Raises:
        ArchiveError: there is none, it cannot be read, or is something else.
    """
    target = Path(folder) / NAME
    try:
        if not target.is_file():
            raise ArchiveError(f"{folder} holds no {NAME}: give the folder that a run wrote.")
        if (size := target.stat().st_size) > LARGEST:
            raise ArchiveError(f"{target} has {size:,} bytes: results of up to {LARGEST:,} are read.")
        found = strict_json.loads(target.read_bytes(), strict=False)  # as files before this version were written
    except ArchiveError:
        raise
    except OSError as error:
        raise ArchiveError(f"{target} cannot be read ({error}): check its permissions, and the disk.") from error
    except (ValueError, RecursionError, TypeError) as error:
        raise ArchiveError(f"{target} is no results of a run ({type(error).__name__}: {error}).") from error
    if not isinstance(found, dict) or not isinstance(found.get("rows"), list):
        raise ArchiveError(f"{target} is no results of a run: it is no table with a list of rows.")
    told = found.get("format", FORMAT)
    if told != FORMAT:
        told_by = found.get("environment")
        writer = told_by.get("jumpstart") if isinstance(told_by, dict) else None
        raise ArchiveError(
            f"{target} is of format {printable(told)}, written by jumpstart {printable(writer)}; this is "
            f"{version.installed()}, which reads format {FORMAT}: read it with that version."
        )
    return found


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A plain-text table: ``columns`` maps keys of the rows to headings; text left, numbers right."""
    cells = [[printable(heading) for heading in columns.values()]]
    cells += [[printable(show(row.get(key))) for key in columns] for row in rows]
    widths = [max(len(row[j]) for row in cells) for j in range(len(columns))]
    left = [j for j, key in enumerate(columns) if any(isinstance(row.get(key), str) for row in rows)]
    lines = []
    for i, row in enumerate(cells):
        lines.append(
            "  ".join(v.ljust(w) if j in left else v.rjust(w) for j, (v, w) in enumerate(zip(row, widths, strict=True)))
        )
        if i == 0:
            lines.append("  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)


def show(value: Any) -> str:
    """A number with three digits, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    if 1e3 <= abs(value) < 1e5:
        return f"{value:.0f}"
    return f"{value:.3g}"


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, (numpy.generic, numpy.ndarray)):
        return value.tolist()
    return str(value)


def _commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"
