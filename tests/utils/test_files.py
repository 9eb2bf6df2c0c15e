"""Files written whole or not at all: parts of the dead are swept, those of the living stay, links are replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from jumpstart.utils import files


def put(path, text):
    with files.replacing(path) as file:
        file.write(text.encode())


def test_the_last_writer_wins_whole_and_links_are_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "other")
    (tmp_path / "other").write_text("precious")
    put(tmp_path / "link", "a")
    assert (tmp_path / "other").read_text() == "precious" and (tmp_path / "link").read_text() == "a"
    with files.replacing(tmp_path / "a") as first, files.replacing(tmp_path / "a") as second:
        first.write(b"first")
        second.write(b"second")
    assert (tmp_path / "a").read_text() == "first"  # which ends last
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "link", "other"]


def test_dead_parts_are_swept_and_nothing_else(tmp_path):
    kept = [".b.01234567.part", ".a.0123456.part", ".a.0123456z.part", "a.01234567.part", ".a.01234567.part.bak", "a"]
    for name in [*kept, ".a.01234567.part", ".a.89abcdef.part"]:
        (tmp_path / name).write_text("x")
    (tmp_path / ".a.aaaaaaaa.part").mkdir()
    (tmp_path / ".a.bbbbbbbb.part").symlink_to(tmp_path / "a")
    with files.replacing(tmp_path / "a") as file:
        file.write(b"living")
        files.sweep(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "living"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, ".a.aaaaaaaa.part", ".a.bbbbbbbb.part"])
    files.sweep(tmp_path / "missing" / "a")


def test_a_part_that_is_swept_while_it_begins_is_begun_anew(tmp_path, monkeypatch):
    real, swept = files._kept, []

    def late(file):
        if not swept:
            swept.append(file.name)
            os.unlink(file.name)
        return real(file)

    monkeypatch.setattr(files, "_kept", late)
    put(tmp_path / "a", "whole")
    assert swept and (tmp_path / "a").read_text() == "whole"


def test_a_writer_that_is_killed_leaves_a_part_and_the_next_sweeps_it(tmp_path):
    code = (
        "import pathlib, sys, time; from jumpstart.utils import files\n"
        "with files.replacing(pathlib.Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); print('on', flush=True); time.sleep(300)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"on\n"
    files.sweep(tmp_path / "a")
    assert len(list(tmp_path.iterdir())) == 1  # it lives
    process.send_signal(signal.SIGKILL)
    process.wait()
    files.sweep(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_whatever_is_raised_comes_out_and_the_old_file_stays(error, tmp_path):
    def failing():
        with files.replacing(tmp_path / "a") as file:
            file.write(b"new")
            raise error

    put(tmp_path / "a", "old")
    with pytest.raises(error):
        failing()
    assert (tmp_path / "a").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a"]
    files.try_to_write(tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_file_systems_without_locks(tmp_path, monkeypatch):
    def refused(*args):
        raise OSError(95, "Operation not supported")

    (tmp_path / ".a.01234567.part").touch()
    monkeypatch.setattr(files.fcntl, "flock", refused)
    put(tmp_path / "a", "x")
    files.sweep(tmp_path / "a")  # nobody knows whether it lives: it stays
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.01234567.part", "a"]
