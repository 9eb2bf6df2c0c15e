"""The experiment on monitor and architectures at toy size, and its verdicts."""

from __future__ import annotations

import sys

import pytest
import torch

from experiments import monitor
from jumpstart.report import records


def test_at_toy_size(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["x", "--quick", "--seeds", "1", "--no-progress", "--out", str(tmp_path)])
    monkeypatch.setattr(monitor, "ARCHITECTURES", dict(list(monitor.ARCHITECTURES.items())[:3]))
    monitor.main()
    content = records.read(tmp_path)
    first, *others = content["rows"]
    assert min(first[way] for way in ("monitor", "never stopped")) >= 0  # the best in hindsight is of the same run
    assert len(first["course"]) == 5 and first["strayed"] < 0.5
    assert [row["architecture"] for row in others] == list(monitor.ARCHITECTURES)
    assert all(row["identities"] < 0.05 and row["effective rank"] > 1 for row in others)
    assert (tmp_path / "monitor.png").is_file()


def test_accounts_are_held_or_refuted_by_medians():
    def stops(own, split):
        return [{"stopped by": k, "median": v} for k, v in (("monitor", own), ("split", split), ("never stopped", 9))]

    def sights(*strengths):
        return [{"sight": k, "strength": v} for k, v in zip(monitor.SIGHTS, strengths, strict=True)]

    assert monitor.verdicts(stops(0.1, 0.2), sights(0.9, 0.3, 0.5)) == {"monitor": "held", "architectures": "held"}
    found = monitor.verdicts(stops(0.3, 0.2), sights(float("nan"), 0.3, 0.5))
    assert found == {"monitor": "refuted", "architectures": "refuted"}


def test_wrong_targets_are_wrong():
    y = torch.arange(2000) % 10
    found = monitor.classes(y, 0, 0.3).argmax(1)
    assert float((found != y).double().mean()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(monitor.classes(y, 0, 0.0).argmax(1), y)
