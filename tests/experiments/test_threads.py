"""The busy-machine table: the states of the machine end with their blocks, and the summary compares like with like."""

from __future__ import annotations

import os
import subprocess

import pytest

from experiments import threads


def test_times_are_told_against_one_thread_in_the_same_state():
    rows = [
        {"state": state, "threads": asked, "problem": "Poisson PINN", "seconds": seconds}
        for state, asked, seconds in (
            ("one spinning", "unset", 0.3), ("idle", "1", 0.1), ("idle", "unset", 0.1), ("one spinning", "1", 0.2),
            ("idle", "1", 0.3), ("idle", "1", 0.2),
        )
    ]  # fmt: skip
    found = threads.summarized(rows)
    assert [(line["state"], line["threads"]) for line in found] == [
        ("idle", "1"), ("idle", "unset"), ("one spinning", "1"), ("one spinning", "unset"),
    ]  # fmt: skip
    assert [line["times one thread"] for line in found] == pytest.approx([1.0, 0.5, 1.0, 1.5])
    assert (found[0]["median"], found[0]["min"], found[0]["max"]) == pytest.approx((200, 100, 300))


def test_the_state_of_the_machine_ends_with_the_block():
    def spinning():
        mine = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "args"], capture_output=True, text=True).stdout
        return mine.count("while True")

    with threads.surroundings("two spinning") as prefix:
        assert prefix == []
        assert spinning() == 2
    assert spinning() == 0
    with threads.surroundings("one processor") as prefix:
        seen = subprocess.run([*prefix, "nproc"], capture_output=True, text=True, check=True).stdout
        assert int(seen) == 1
