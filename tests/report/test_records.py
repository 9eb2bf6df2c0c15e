"""results.json: JSON for everybody, the same numbers back, written whole and where it belongs."""

from __future__ import annotations

import json
import math
import os
import threading

import numpy as np
import pytest
import torch

import jumpstart as js
from jumpstart.comparison.report import Report
from jumpstart.errors import ArchiveError, InputError
from jumpstart.report import records
from jumpstart.utils import strict_json

ROW = {"contender": "a", "step": 0, "gradient_evaluations": 0, "seconds": 0.0, "loss": 1.0}


def refuse(word):
    raise ValueError(word)


def test_numbers_that_are_not_finite_come_back_and_any_parser_reads_them(tmp_path):
    rows = [{**ROW, "loss": value, "b": 1} for value in (math.nan, math.inf, -math.inf, 1e-300, 5e-324, 0.1)]
    rows[0]["c"] = np.float32("inf")
    rows[1]["c"] = torch.tensor([1.0, math.nan])
    path = records.write(tmp_path, "x", {"seconds": math.inf, "by": {"a": math.nan}, 3: "key"}, rows)
    json.loads(path.read_text(), parse_constant=refuse)
    found = records.read(tmp_path)
    assert [row["loss"] for row in found["rows"][1:]] == [row["loss"] for row in rows[1:]]
    assert math.isnan(found["rows"][0]["loss"]) and found["rows"][0]["c"] == math.inf
    assert found["rows"][1]["c"][0] == 1.0 and math.isnan(found["rows"][1]["c"][1])
    assert found["settings"]["seconds"] == math.inf and found["settings"]["3"] == "key"


def test_words_for_numbers_are_names_too(tmp_path):
    rows = [{**ROW, "contender": name} for name in ("NaN", "Infinity", "not finite")]
    records.write(tmp_path, "x", {"seconds": math.inf}, rows)
    assert [row["contender"] for row in records.read(tmp_path)["rows"]] == ["NaN", "Infinity", "not finite"]


def test_json_by_itself():
    for value in (math.inf, -math.inf, [1.5, math.inf], {"a": {"b": math.inf}}, "NaN", None, True):
        text = strict_json.dumps(value)
        assert json.loads(text, parse_constant=refuse) is not refuse
        assert strict_json.loads(text) == value
    with pytest.raises(TypeError, match="a object cannot be written"):
        strict_json.dumps({"a": object()})
    with pytest.raises(ValueError, match="NaN is no JSON"):
        strict_json.loads("[NaN]")
    assert strict_json.loads("[Infinity]", strict=False) == [math.inf]


def test_links_in_the_folder_are_replaced_and_never_written_through(tmp_path):
    pytest.importorskip("matplotlib")
    outside, folder = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    folder.mkdir()
    for name in ("results.json", "n.png", "results.part", "n.part"):
        (outside / name).write_text("precious")
        (folder / name).symlink_to(outside / name)
    Report("n", [ROW, {**ROW, "step": 1}], {"metrics": []}, [0]).save(folder)
    assert all(path.read_text() == "precious" for path in outside.iterdir())
    assert (folder / "n.png").read_bytes()[:4] == b"\x89PNG" and not (folder / "n.png").is_symlink()
    assert Report.read(folder).rows[0] == ROW


def test_an_interrupted_or_failing_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = records.write(tmp_path, "x", {}, [ROW])
    whole = path.read_bytes()
    for error in (KeyboardInterrupt(), OSError(28, "No space left on device")):

        def fail(*args, error=error):
            raise error

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises((KeyboardInterrupt, InputError)):
            records.write(tmp_path, "x", {}, [ROW, ROW])
        monkeypatch.undo()
        assert path.read_bytes() == whole and [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_two_writers_at_once_leave_one_whole_file(tmp_path):
    def writer(n):
        for _ in range(5):
            records.write(tmp_path, f"x{n}", {}, [{**ROW, "step": n}] * 2000)

    threads = [threading.Thread(target=writer, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = records.read(tmp_path)
    assert len({found["experiment"], *(f"x{row['step']}" for row in found["rows"])}) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "a", f"{tmp_path}/a\0b", tmp_path / ("x" * 300)):
        for attempt in (records.require_writable, lambda f: records.write(f, "x", {}, [ROW])):
            with pytest.raises(InputError, match=r"results\.json cannot be written"):
                attempt(folder)


TABLE = {"experiment": "x", "settings": {"metrics": []}, "environment": {"seeds": [0]}, "rows": [ROW]}
FOREIGN = {
    "empty": "",
    "text": "hello",
    "cut": json.dumps(TABLE)[:-9],
    "a list": "[]",
    "a number": "7",
    "deep": "[" * 200_000,
    "not utf-8": b"\xff\xfe\x00",
    "no rows": json.dumps({**TABLE, "rows": []}),
    "rows missing": json.dumps({"experiment": "x"}),
    "rows are a table": json.dumps({**TABLE, "rows": {}}),
    "rows of lists": json.dumps({**TABLE, "rows": [[1]]}),
    "rows of text": json.dumps({**TABLE, "rows": ["a"]}),
    "no contender": json.dumps({**TABLE, "rows": [{"loss": 1.0}]}),
    "a contender that is a list": json.dumps({**TABLE, "rows": [{**ROW, "contender": ["a"]}]}),
    "loss is text": json.dumps({**TABLE, "rows": [{**ROW, "loss": "1.0"}]}),
    "loss is missing": json.dumps({**TABLE, "rows": [ROW, {k: v for k, v in ROW.items() if k != "loss"}]}),
    "loss is null": json.dumps({**TABLE, "rows": [{**ROW, "loss": None}]}),
    "loss is huge": json.dumps({**TABLE, "rows": [{**ROW, "loss": 10**400}]}),
    "digits without end": f'{{"rows": [{{"loss": {"9" * 5000}}}]}}',
    "a metric is a list": json.dumps({**TABLE, "settings": {"metrics": ["m"]}, "rows": [{**ROW, "m": []}]}),
    "metrics are numbers": json.dumps({**TABLE, "settings": {"metrics": [1]}}),
    "metrics are text": json.dumps({**TABLE, "settings": {"metrics": "ab"}}),
    "settings are a list": json.dumps({**TABLE, "settings": []}),
    "jumps are text": json.dumps({**TABLE, "rows": [{**ROW, "jumps": "a", "accepted": 1}]}),
    "a word for a number": json.dumps({**TABLE, "rows": [{**ROW, "loss": {"not finite": "cat"}}]}),
    "failed is a table": json.dumps({**TABLE, "rows": [{**ROW, "failed": {}}]}),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_that_are_no_comparison_are_named(name, tmp_path):
    content = FOREIGN[name]
    (tmp_path / "results.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ArchiveError, match=r"results\.json is (not a comparison|no results of a run)") as caught:
        Report.read(tmp_path)
    assert len(str(caught.value)) < 600 + len(str(tmp_path))


def test_what_may_be_missing_and_what_is_too_large(tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text(json.dumps({"rows": [ROW], "settings": {}}))
    assert Report.read(tmp_path).name == "comparison"
    monkeypatch.setattr(records, "LARGEST", 10)
    with pytest.raises(ArchiveError, match="bytes"):
        Report.read(tmp_path)
    with pytest.raises(ArchiveError, match="holds no results"):
        Report.read(tmp_path / "none")


def test_a_name_that_is_no_file_name_is_refused_before_anything_is_run_or_written(tmp_path):
    with pytest.raises(InputError, match="letters, digits"):
        js.compare(torch.nn.Linear(1, 1), lambda m: None, {"a": lambda m, o: iter(())}, name="../a")
    with pytest.raises(InputError, match="letters, digits"):
        Report("a/b", [ROW]).save(tmp_path / "new")
    assert not (tmp_path / "new").exists()
