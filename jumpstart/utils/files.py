"""Files written whole or not at all: a part beside them takes their place once it is on the disk."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed or replaced anyway
    fcntl = None


@contextlib.contextmanager
def replacing(whole: Path) -> Iterator[IO[bytes]]:
    """A file to write and read, which takes the place of ``whole`` at the end; after any exception it is gone.

    A symbolic link is replaced, not followed. Of several writers at once, the last to end wins, whole.

    Raises:
        OSError: it cannot be written; what stood there before is unchanged.
    """
    part, file = _begun(whole)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:  # while it is locked, so that no one sweeps it away
                part.replace(whole)
        if fcntl is None:
            part.replace(whole)
    finally:
        with contextlib.suppress(OSError):  # there is none any more if all went well
            part.unlink()


def try_to_write(whole: Path) -> None:
    """Find out with a file of one byte beside it whether ``whole`` could be written, and leave nothing.

    Raises:
        OSError: its folder is missing, closed to us or full.
    """
    part, file = _begun(whole)
    try:
        with file:
            file.write(b"?")
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def sweep(whole: Path) -> None:
    """Remove the parts that killed writers of ``whole`` have left; those of living ones are locked, and stay."""
    ours = re.compile(re.escape(_stem(whole)) + r"[0-9a-f]{8}\.part")
    with contextlib.suppress(OSError), os.scandir(whole.parent) as found:  # whoever writes says what is wrong there
        for entry in found:
            if ours.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):  # in use, or not ours to remove
                    _removed(Path(entry.path))


def _removed(part: Path) -> None:
    if fcntl is None:
        part.unlink()
        return
    with part.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink()


def _begun(whole: Path) -> tuple[Path, IO[bytes]]:
    while True:
        part = whole.with_name(f"{_stem(whole)}{secrets.token_hex(4)}.part")
        file = part.open("x+b")  # never through a link, never over a file
        if _kept(file):
            return part, file
        file.close()


def _kept(file: IO[bytes]) -> bool:
    """Lock a part; False where it was swept away between its making and this."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, where nothing is swept either
        return True
    return os.fstat(file.fileno()).st_nlink > 0


def _stem(whole: Path) -> str:
    return f".{whole.name[:60]}."  # names have at most 255 bytes
