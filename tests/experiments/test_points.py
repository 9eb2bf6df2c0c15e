"""Choices about collocation points: what a variant changes, and a toy run."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from experiments.pinn import points
from experiments.pinn.equations import EQUATIONS
from jumpstart.fitting import collocation


def test_growth_is_changed_inside_alone():
    before = collocation.GROWTH
    with points.growing(1.0):
        assert collocation.GROWTH == 1.0
    assert collocation.GROWTH == before != 1.0


@pytest.mark.parametrize("name", points.NAMES)
def test_waves_stand_beside_coordinates(name):
    equation = points.with_waves(EQUATIONS[name])
    model, plain = equation.network(3), EQUATIONS[name].network(3)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    width = next(m for m in plain if isinstance(m, torch.nn.Linear)).out_features
    assert count == sum(p.numel() for p in plain.parameters()) + 2 * points.WAVES * width
    objective = equation.objective(model, 0.02)
    assert objective.notes() == [] and equation.error(model) > 0.1


def test_summary_compares_seed_by_seed():
    def row(label, seed, error):
        return {"problem": "kdv", "variant": label, "seed": seed, "error": error}

    rows = [
        row("as it is", 0, 1.0),
        row("as it is", 1, 4.0),
        row("causal weights", 0, 3.0),
        row("causal weights", 1, 2.0),
    ]
    by = {line["variant"]: line for line in points.summarized(rows)}
    assert by["causal weights"]["kdv"] == 2.5 and by["causal weights"]["kdv, ratio"] == pytest.approx(1.75)
    assert by["as it is"]["kdv, ratio"] == 1.0
    assert "kdv" not in by["the first points"]


def test_the_command_at_toy_size(tmp_path):
    command = [sys.executable, "-m", "experiments.pinn.points", "--quick", "--seeds", "1", "--no-progress"]
    found = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    content = json.loads((tmp_path / "results.json").read_text())
    assert [row["variant"] for row in content["rows"]] == list(points.VARIANTS)
    assert len({row["error"] for row in content["rows"]}) > 5  # variants are not one and the same
    assert points.page(content)
