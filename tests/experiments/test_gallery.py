"""The gallery's statements are the equations that are measured, and its command runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.pinn import gallery
from experiments.pinn.equations import EQUATIONS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "gallery.md").read_text()
NETWORKS, SOLVE, *STATEMENTS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
SHOWN = re.findall(r"results/pinn/gallery/(\w+)\.png", PAGE)


@pytest.fixture(scope="module")
def stated():
    """The page's problems by name, not solved."""
    dtype, found = torch.get_default_dtype(), {}
    space = {"solve": lambda problem, **_: None}
    try:
        exec(NETWORKS, space)
        for name, statement in zip(SHOWN, STATEMENTS, strict=True):
            exec(statement, space)
            found[name] = space["problem"]
    finally:
        torch.set_default_dtype(dtype)
    return found


def test_every_equation_is_shown_in_at_most_25_lines():
    assert set(SHOWN) == set(EQUATIONS)
    for statement in STATEMENTS:
        assert len(statement.strip().splitlines()) <= 26, statement  # and one that solves it


@pytest.mark.parametrize("name", EQUATIONS)
def test_what_is_stated_is_what_is_measured(name, stated):
    equation, problem = EQUATIONS[name], stated[name]
    model = equation.network(5)
    problem.model.load_state_dict(model.state_dict())
    measured = equation.objective(model)
    assert problem.value(problem.theta()) == pytest.approx(measured.value(measured.theta()), rel=1e-9)
    assert problem.shape == measured.shape
    assert problem.notes() == []


def test_the_command_at_toy_size(tmp_path):
    command = [sys.executable, "-m", "experiments.pinn.gallery", "--quick", "--seeds", "1", "--no-progress"]
    found = subprocess.run(
        [*command, "--problems", "heat,lshape", "--out", str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stderr
    content = json.loads((tmp_path / "results.json").read_text())
    assert [row["problem"] for row in content["rows"]] == ["heat", "lshape"]
    assert (tmp_path / "heat.png").stat().st_size > 10_000
    assert "After 60 seconds" in gallery.page(content)
