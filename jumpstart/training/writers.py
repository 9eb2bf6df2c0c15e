"""Where jumps are written down besides ``results``: lines of JSON, TensorBoard. For ``JumpOptimizer(…, on_jump=…)``."""

from __future__ import annotations

import enum
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingPackageError
from ..utils.brief import brief
from ..utils.fallback import described
from ..utils.warn import warn


class Writer(ABC):
    """A hook that is told where the run is as well."""

    @abstractmethod
    def write(self, result: Any, mode: str, taken: int, skipped: int) -> None:
        """Note the result of a jump (its ``mode``: "skip", …), tried after ``taken`` steps, ``skipped`` so far."""


Hook = Callable[[Any], Any] | Writer


class JsonLines(Writer):
    """A line of JSON for each jump, appended to a file; what is not finite is null.

    A run that is resumed goes on writing to the same file at ``path``.

    Raises:
        InputError: there is no such folder.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise InputError(f"JsonLines: there is no folder {str(self.path.parent)!r} for {self.path.name!r}.")

    def write(self, result: Any, mode: str, taken: int, skipped: int) -> None:
        row = {"mode": mode, "taken": taken, "skipped": skipped, **plain(result)}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")


class TensorBoard(Writer):
    """Numbers of each jump as scalars ``jumpstart/…`` over effective steps.

    Args:
        log_dir: a folder for a ``SummaryWriter`` of its own, or a writer that there is already.

    Raises:
        MissingPackageError: the package ``tensorboard`` is not installed. InputError: neither a folder nor a writer.
    """

    def __init__(self, log_dir: str | os.PathLike | Any = None) -> None:
        self.writer: Any = log_dir
        if log_dir is None or isinstance(log_dir, (str, os.PathLike)):
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ImportError as error:
                raise MissingPackageError(
                    "TensorBoard(…) needs the package tensorboard: pip install tensorboard, or write with JsonLines."
                ) from error
            self.writer = SummaryWriter(log_dir)
        elif not callable(getattr(log_dir, "add_scalar", None)):
            raise InputError(f"TensorBoard({brief(log_dir)}): give a folder, or a writer with add_scalar.")

    def write(self, result: Any, mode: str, taken: int, skipped: int) -> None:
        found = {"accepted": result.accepted, "taken": taken, "skipped": skipped, **plain(result)}
        numbers = {name: value for name, value in found.items() if isinstance(value, (int, float))}
        for name, value in numbers.items():
            self.writer.add_scalar(f"jumpstart/{name}", value, taken + skipped)
        self.writer.flush()


def plain(result: Any) -> dict[str, Any]:
    """Numbers and words of a result by name; an outcome by its own name."""
    found: dict[str, Any] = {}
    for name, value in vars(result).items():
        if isinstance(value, enum.Enum):
            found[name] = value.name
        elif isinstance(value, float):
            found[name] = value if math.isfinite(value) else None
        elif isinstance(value, (bool, int, str)):
            found[name] = value
    return found


def hooks(given: Any) -> tuple[Hook, ...]:
    """What to call after a jump.

    Raises:
        InputError: quotes what cannot be called.
    """
    found = () if given is None else tuple(given) if isinstance(given, (list, tuple)) else (given,)
    for hook in found:
        if not isinstance(hook, Writer) and not callable(hook):
            raise InputError(f"on_jump={brief(hook)}: give a function of the result, a writer, or several of them.")
    return found


def tell(hooks: Iterable[Hook], result: Any, mode: str, taken: int, skipped: int) -> None:
    """Call them; the loop goes on without one that fails."""
    for hook in hooks:
        try:
            if isinstance(hook, Writer):
                hook.write(result, mode, taken, skipped)
            else:
                hook(result)
        except Exception as error:
            warn(f"on_jump failed after step {taken}, which changes nothing else: {described(error)}", RuntimeWarning)
