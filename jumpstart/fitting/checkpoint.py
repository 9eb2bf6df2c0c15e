"""A fit in a file: its state, and the problem it belongs to. The format is ``archive.container``'s.

The problem is that of the objective which the fit was called with; points drawn on the way are the caller's to draw
again. It is described once, so that writing evaluates nothing and may happen in the handler of an interrupt.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..archive import fingerprint
from ..archive.container import Kind, reading, require_writable, write
from ..archive.state import checked, packed, unpacked
from ..errors import ArchiveError
from ..objectives.objective import Objective

FIT = Kind("fit", 4, "checkpoint of js.fit", "give another path, or delete it")
PROBE = "probe"  # the tensor of the weights that the problem was probed at


class Checkpoint:
    """The file of one fit.

    Args:
        path: its folder is made if it is missing.
        objective: the one that the fit is called with.
        options: what the answer hangs on, by name: None, numbers, text.

    Raises:
        ArchiveError: the path could not be written; found out now, before anything is spent.
    """

    def __init__(self, path: str | os.PathLike[str], objective: Objective, options: Mapping[str, Any]) -> None:
        self.path, self.objective = Path(path), objective
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArchiveError(f"{path}: its folder cannot be made ({error}): give another path.") from error
        require_writable(self.path)
        self.problem = fingerprint.describe(objective.space, objective.whole, objective.shape, objective.loss, options)
        self.probed = fingerprint.probe_off(objective)
        self.stamp: tuple[int, ...] | None = None  # of the file as this run last read or wrote it

    def exists(self) -> bool:
        """Whether there is a file to go on from."""
        return self.path.exists()

    def save(self, state: Mapping[str, Any]) -> bool:
        """Write a state; an interrupt leaves the file as it was. True if another run had written it in between.

        Args:
            state: by name: tensors, None, booleans, numbers (NaN and infinity included), text, and lists of rows of
                these.

        Raises:
            ArchiveError: the file cannot be written, or the state holds something else.
        """
        try:
            told, tensors = packed(state)
        except TypeError as error:
            raise ArchiveError(f"{self.path} cannot be written: {error}") from error
        columns = checked(told, tensors)
        content = {"problem": self.problem, "probe": None, "state": told}
        if self.probed is not None:
            tensors[PROBE], content["probe"] = self.probed
        found = self._stamp()
        write(self.path, FIT, content, tensors, unbounded=columns)
        known, self.stamp = self.stamp, self._stamp()
        return found is not None and found != known

    def load(self, fields: set[str]) -> dict[str, Any]:
        """The state as it was saved, tensors on the objective's device; the model is left alone.

        Args:
            fields: names that the state must have, no more and no fewer.

        Raises:
            ArchiveError: the file is no checkpoint, is damaged or of another version, or belongs to another problem;
                says what differs.
        """
        stamp = self._stamp()
        with reading(self.path, FIT) as file:
            told, problem = file.content["state"], file.content["problem"]
            if not isinstance(told, dict) or told.keys() != fields:
                raise ArchiveError(
                    f"{self.path} was written by another version's js.fit, with {sorted({*told} ^ fields)[:6]} more or "
                    f"less in its state: {FIT.remedy}."
                )
            self._require_same(fingerprint.difference(problem, self.problem))
            columns = checked(told, {name: spec for name, spec in file.specs.items() if name != PROBE})
            probe, probed = file.content["probe"], file.specs.get(PROBE)
            if probe is not None:
                fingerprint.require_probe(probe, problem)
            space = self.objective.space
            expected = None if probe is None else ((space.size,), space.dtype)
            if expected != (None if probed is None else (probed.shape, probed.dtype)):
                raise ValueError("the probed weights are not the model's")
            tensors = file.load(unbounded=columns)
            tensors |= {name: tensor.to(space.device) for name, tensor in tensors.items() if name not in columns}
        if probe is not None:
            here = fingerprint.probe_at(self.objective, tensors[PROBE])
            if here is None:
                self._require_same("at the saved weights the model's outputs are not finite any more.")
            else:
                self._require_same(fingerprint.probe_difference(probe, here))
        self.probed, self.stamp = None if probe is None else (tensors[PROBE], probe), stamp
        return unpacked(told, tensors)

    def _stamp(self) -> tuple[int, ...] | None:
        """What tells one writing of the file from another; None if there is none."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _require_same(self, message: str | None) -> None:
        if message:
            raise ArchiveError(f"{self.path}: {message} To begin anew, {FIT.remedy}.")


def save(
    path: str | os.PathLike[str], objective: Objective, state: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    """Write a state of a fit once; see :class:`Checkpoint`."""
    Checkpoint(path, objective, options).save(state)


def load(
    path: str | os.PathLike[str], objective: Objective, options: Mapping[str, Any], fields: set[str]
) -> dict[str, Any]:
    """Read a state of a fit once; see :class:`Checkpoint`."""
    return Checkpoint(path, objective, options).load(fields)
