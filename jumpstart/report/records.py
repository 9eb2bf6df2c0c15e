"""What a run leaves behind: one results.json with the command, the environment, the settings and the rows."""

from __future__ import annotations

import datetime
import json
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

from ..utils import version

Row = dict[str, Any]


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
    folder: str | Path, experiment: str, settings: Mapping[str, Any], rows: Sequence[Row], seeds: Sequence[int] = ()
) -> Path:
    """Write ``folder/results.json`` whole or not at all, and return its path."""
    target = Path(folder) / "results.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    head = {
        "experiment": experiment,
        "command": command(),
        "environment": environment(seeds),
        "settings": dict(settings),
    }
    # One row a line: readable, and a change of one row is a change of one line.
    lines = ",\n".join(json.dumps(row, default=_plain) for row in rows)
    opening = json.dumps(head, indent=1, default=_plain).removesuffix("\n}")
    draft = target.with_suffix(".part")
    draft.write_text(f'{opening},\n "rows": [\n{lines}\n]}}\n')
    draft.replace(target)
    return target


def read(folder: str | Path) -> dict[str, Any]:
    """The content of ``folder/results.json``."""
    return json.loads((Path(folder) / "results.json").read_text())


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A plain-text table: ``columns`` maps keys of the rows to headings; text left, numbers right."""
    cells = [list(columns.values())]
    cells += [[show(row.get(key)) for key in columns] for row in rows]
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
