"""Jumps written down: lines of JSON, TensorBoard."""

import json
import math
import sys

import pytest
import torch

import jumpstart as js
from jumpstart.errors import InputError, MissingPackageError
from jumpstart.training.writers import JsonLines, TensorBoard

from .loops import train
from .toys import Credit


def wrapped(writer, **options):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1).double()
    x = torch.randn(8, 3).double()
    y = x.sum(1, keepdim=True)
    inner = torch.optim.SGD(model.parameters(), 0.01)
    return js.JumpOptimizer(inner, js.supervised(model, x, y), search=True, on_jump=writer, **options), model, x, y


def test_a_line_of_json_for_each_jump(tmp_path):
    path = tmp_path / "jumps.jsonl"
    for _ in range(2):  # a resumed run goes on in the same file
        optimizer, *loop = wrapped(JsonLines(path), at={2, 3})
        train(*loop, optimizer, 3)
    rows = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert [(row["mode"], row["taken"], row["skipped"]) for row in rows] == [("search", 2, 0), ("search", 3, 0)] * 2
    for row, result in zip(rows[2:], optimizer.results, strict=True):
        assert row["outcome"] == result.outcome.name
        assert (row["before"], row["actual"], row["seconds"]) == (result.before, result.actual, result.seconds)
        assert not {"plan", "directions"} & set(row)


def test_what_is_not_finite_is_null(tmp_path):
    path = tmp_path / "jumps.jsonl"
    optimizer, *loop = wrapped(JsonLines(path))
    optimizer.action = Credit(optimizer.inner)
    train(*loop, optimizer, 1)
    row = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert math.isnan(optimizer.results[0].before)
    assert (row["before"], row["cause"], row["skipped"]) == (None, "a toy", 3)


def test_a_folder_that_is_not_there_is_found_at_once_and_one_that_goes_is_a_warning(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        JsonLines(tmp_path / "nowhere" / "jumps.jsonl")
    (tmp_path / "here").mkdir()
    optimizer, *loop = wrapped(JsonLines(tmp_path / "here" / "jumps.jsonl"), at=1)
    (tmp_path / "here").rmdir()
    with pytest.warns(RuntimeWarning, match="on_jump failed after step 1"):
        train(*loop, optimizer, 1)


class Scalars:
    def __init__(self):
        self.rows, self.flushed = [], 0

    def add_scalar(self, name, value, step):
        self.rows.append((name, value, step))

    def flush(self):
        self.flushed += 1


def test_tensorboard_gets_numbers_over_effective_steps():
    found = Scalars()
    optimizer, *loop = wrapped(TensorBoard(found), at={2})
    train(*loop, optimizer, 2)
    (result,) = optimizer.results
    table = {name: value for name, value, _ in found.rows}
    assert {step for *_, step in found.rows} == {2}
    assert table["jumpstart/actual"] == result.actual
    assert (table["jumpstart/accepted"], table["jumpstart/taken"], table["jumpstart/skipped"]) == (True, 2, 0)
    assert "jumpstart/cause" not in table
    assert found.flushed == 1
    found.rows.clear()
    optimizer.action = Credit(optimizer.inner)
    train(*loop, optimizer, 1)
    assert {step for *_, step in found.rows} == {6}, "three taken, three credited"
    assert "jumpstart/before" not in {name for name, *_ in found.rows}, "not a number is no point of a curve"


def test_what_is_no_writer_is_refused_and_a_missing_package_is_named(monkeypatch):
    with pytest.raises(InputError, match="add_scalar"):
        TensorBoard(3)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(MissingPackageError, match="pip install tensorboard"):
        TensorBoard("runs")
