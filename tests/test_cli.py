"""The command line: exit codes, hostile files, closed folders, pipes, odd terminals and encodings."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from jumpstart import cli, demo
from jumpstart.errors import MissingPackageError

from .report.test_names import HOSTILE

ROOT = pathlib.Path(cli.__file__).parent.parent
ROW = {"contender": "a", "step": 0, "gradient_evaluations": 0, "seconds": 0.0, "loss": 1.0}


def results(folder, experiment="n", **row):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{**ROW, **row}, {**ROW, **row, "step": 1, "loss": 0.5}]
    head = {"experiment": experiment, "settings": {"metrics": []}, "environment": {"seeds": [0]}, "rows": rows}
    (folder / "results.json").write_text(json.dumps(head))
    return folder


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("name", HOSTILE)
def test_report_writes_in_its_folder_and_prints_what_no_terminal_obeys(name, tmp_path, capsys):
    folder = results(tmp_path / "a" / "run", HOSTILE[name], contender=HOSTILE[name])
    assert cli.main(["report", str(folder)]) == 0
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(found) == 2 and all(path.parent == folder for path in found)
    told = capsys.readouterr()
    assert all(line.isprintable() for line in (told.out + told.err).split("\n"))


def test_files_and_baselines_that_are_none_are_named_without_a_traceback(tmp_path, capsys):
    results(tmp_path / "a", contender="\x1b[31mred")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "results.json").write_text('{"rows": [{"\x1b[2J": 1}]')
    (tmp_path / "c" / "results.json").mkdir(parents=True)
    for arguments in (["a", "--baseline", "\x1b[2J"], ["b"], ["c"], ["none"], ["a" * 300]):
        assert cli.main(["report", str(tmp_path / arguments[0]), *arguments[1:]]) == 1
        told = capsys.readouterr()
        assert told.err.startswith("jumpstart: ") and "Traceback" not in told.err and told.out == ""
        assert all(line.isprintable() for line in told.err.split("\n"))


@pytest.mark.parametrize("seed", ["-1", "x", str(2**63)])
def test_seeds_that_are_none(seed, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", "--seed", seed])
    assert caught.value.code == 2


def started(*arguments, code="", **options):
    """The command in a process of its own; ``code`` is run in it first."""
    text = f"import sys; {code}\nfrom jumpstart.cli import main\nraise SystemExit(main({list(arguments)!r}))"
    return subprocess.Popen(
        [sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def test_ascii_and_narrow_terminals_without_matplotlib(tmp_path):
    folder = results(tmp_path / "run", contender="λ → ∞")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "COLUMNS": "5"}
    process = started("report", str(folder), code="sys.modules['matplotlib'] = None", env=environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert b"? ? ?" in out and b"no figure: figures need matplotlib: pip install" in out and err == b""


def test_a_pipe_that_nobody_reads(tmp_path):
    folder = results(tmp_path / "run")
    reader, writer = os.pipe()
    os.close(reader)
    text = f"from jumpstart.cli import main\nraise SystemExit(main(['report', {str(folder)!r}]))"
    process = subprocess.run([sys.executable, "-c", text], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, timeout=300)
    os.close(writer)
    assert (process.returncode, process.stderr) == (141, b"")


def test_as_a_module():
    process = subprocess.run(
        [sys.executable, "-m", "jumpstart", "--version"], cwd=ROOT, capture_output=True, timeout=300
    )
    assert process.returncode == 0 and process.stdout.startswith(b"jumpstart ")


def test_a_demo_into_a_folder_that_cannot_be_written_is_refused_before_it_runs(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    for problem in demo.PROBLEMS.values():
        monkeypatch.setattr(problem, "compare", lambda **options: pytest.fail("it ran"))
    assert cli.main(["demo", "--out", str(tmp_path / "file")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_a_demo_without_optional_packages_leaves_out_what_needs_them(tmp_path, capsys, monkeypatch):
    def missing(**options):
        raise MissingPackageError("the digits come with scikit-learn: pip install 'jumpstart[experiments]'.")

    for problem in demo.PROBLEMS.values():
        monkeypatch.setattr(problem, "compare", missing)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("left out: the digits come with scikit-learn") == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_interrupted_demo_keeps_its_rows(tmp_path):
    process = started("demo", "--out", str(tmp_path))
    part, deadline = tmp_path / "digits", time.monotonic() + 200
    while not part.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    # The folder is made when the comparison begins; its first rows follow at once after the rehearsals.
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert b"jumpstart: stopped; " in err and b"Traceback" not in err
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".part"]
    for path in tmp_path.rglob("results.json"):
        assert json.loads(path.read_text())["rows"]
