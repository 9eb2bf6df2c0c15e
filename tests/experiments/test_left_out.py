"""The experiment on left-out runs at toy size, and its verdict."""

from __future__ import annotations

import sys

from experiments import left_out
from jumpstart.report import records


def test_estimates_stand_beside_runs_that_leave_each_sample_out(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["x", "--quick", "--seeds", "1", "--no-progress", "--out", str(tmp_path)])
    left_out.main()
    rows = records.read(tmp_path)["rows"]
    assert [row["steps"] for row in rows] == [20, 60] and (tmp_path / "left_out.png").is_file()
    for row in rows:
        assert row["training loss"] < row["real"]  # leaving out can only hurt
        assert left_out.away(row, "along the run") < 0.2


def test_the_account_is_held_or_refuted_by_the_last_rows():
    def row(seed, steps, along, start):
        told = {"along the run": along, "kernel of the start": start, "training loss": 0.1, "unseen digits": 1.0}
        return {"network": "a", "seed": seed, "steps": steps, "real": 1.0, **told}

    held = [row(0, 1, 3.0, 1.0), row(0, 2, 1.1, 0.5), row(1, 2, 0.9, 1.3), row(2, 2, 5.0, None)]
    lines = left_out.summarized(held)
    assert "account" not in lines[0] and lines[1]["account"] == "held"
    assert left_out.summarized([row(0, 2, 2.0, 0.9)])[0]["account"] == "refuted"
