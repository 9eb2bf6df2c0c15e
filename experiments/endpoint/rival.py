"""neural-tangents in a process of its own, asked through a pipe, so that its repetitions and ours alternate.

The environment variable JUMPSTART_PEERS names a Python interpreter in which it imports, made by

    python3.11 -m venv peers
    peers/bin/pip install jax==0.4.30 jaxlib==0.4.30 'numpy<2' 'scipy<1.14' frozendict
    peers/bin/pip install --no-deps neural-tangents==0.6.5
    export JUMPSTART_PEERS=$PWD/peers/bin/python

(``--no-deps`` leaves out TensorFlow, which only its front end for TensorFlow needs.)
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from . import machine

WAYS = ("default", "vector products", "structured")  # its implementations; default is JACOBIAN_CONTRACTION
HINT = (
    "neural-tangents is not measured: set JUMPSTART_PEERS to a Python interpreter in which it imports "
    "(how to make one: experiments/endpoint/rival.py)."
)


@functools.cache
def interpreter() -> str | None:
    """The interpreter to run it with, or None after saying (once) what to set up."""
    found = os.environ.get("JUMPSTART_PEERS")
    if not found:
        print(HINT)
    return found or None


class Gone(Exception):
    """The process has ended, or was ended because it held too much memory."""


class Rival:
    """One process with neural-tangents; ``ask("kernel", how="default")`` and so on (see ``peer.Server``).

    Args:
        python: the interpreter.
        memory_limit: bytes at which it is killed, polled every 50 ms.
    """

    def __init__(self, python: str, memory_limit: float | None = None) -> None:
        self.limit, self.largest, self.killed = memory_limit, 0, False
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name("peer.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        if memory_limit is not None:
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self._process.poll() is None:
            self.largest = max(self.largest, machine.resident_bytes(self._process.pid))
            if self.limit is not None and self.largest >= self.limit:
                self.killed = True
                self._process.kill()
                return
            time.sleep(0.05)

    def ask(self, do: str, **settings: Any) -> dict[str, Any]:
        """One request and its answer.

        Raises:
            Gone: the process is no more.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        line = ""
        try:
            self._process.stdin.write(json.dumps({"do": do, **settings}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            self._process.wait()
            how = "was killed at its memory limit" if self.killed else f"ended with code {self._process.returncode}"
            raise Gone(f"neural-tangents {how} while asked to {do}.")
        return json.loads(line)

    def __enter__(self) -> Rival:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
