"""Benign overfitting: what the claims are read off from, and a toy run."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from experiments import benign_overfitting


def row(tail, level, passed, excess, **more):
    variance = level**2
    return {"tail": tail, "level": level, "passed": passed, "variance": variance, "excess": excess * variance,
            "seen": passed * variance, "foretold": passed * variance, "learned": 0.99, "reservoir": 0.0,
            "invisible": 0.2, "quadrature": 0.01, "clean quadrature": 0.01, **more}  # fmt: skip


def test_claims_are_of_the_longest_tail_and_the_shortest():
    rows = [row(9, 1, 2.0, 2.0), row(9, 2, 2.2, 2.0), row(50, 1, 9.0, 9.0), row(200, 1, 0.2, 0.1, invisible=0.5),
            row(200, 2, 0.3, 0.2, learned=0.97, reservoir=0.1, invisible=0.5)]  # fmt: skip
    found = benign_overfitting.measured(rows)
    assert found["fitted"] == 0.97
    assert found["benign"] == pytest.approx(0.15)
    assert found["contrast"] == pytest.approx(2.1 / 0.25)
    assert found["size"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert found["level"] == pytest.approx(1.5)
    assert (found["trapped"], found["invisible"]) == (pytest.approx(0.05), pytest.approx(0.3))
    assert found["forecast"] == pytest.approx(1.0)
    rows[1] |= {"foretold": 9.5}  # it changes places with another
    assert benign_overfitting.measured(rows)["forecast"] == pytest.approx(0.9)


@pytest.mark.filterwarnings("ignore:Recorder")
def test_the_command_at_toy_size(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["", "--quick", "--seeds", "1", "--no-progress", "--out", str(tmp_path)])
    threads = torch.get_num_threads()
    try:
        benign_overfitting.main()
    finally:
        torch.set_num_threads(threads)
    content = json.loads((tmp_path / "results.json").read_text())
    assert [line["claim"] for line in content["settings"]["verdicts"]] == [c.name for c in benign_overfitting.ACCOUNT]
    assert all(row["quadrature"] < 0.1 for row in content["rows"])
    assert len({row["clean"] for row in content["rows"]}) == 2  # of each tail one run without noise
    assert (tmp_path / "benign_overfitting.png").stat().st_size > 10_000
    assert "refuted if" in benign_overfitting.page(content)
