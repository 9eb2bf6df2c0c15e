"""The notebooks run from their first cell, and draw."""

import json

import pytest

from .notebooks import NOTEBOOKS, executed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs_and_draws(path):
    outputs = [output for cell in executed(path).cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_kept_small_and_names_no_machine(path):
    text = path.read_text()
    assert len(text) < 300_000
    assert "/home/" not in text
    assert "/tmp/" not in text
    shown = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code" and cell["outputs"]]
    assert len(shown) >= 3, "outputs are missing: python -m tests.docs.notebooks"


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 2
