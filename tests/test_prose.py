"""README, docs, docstrings, the demo and every experiment are run, at toy size."""

import doctest
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import jumpstart
from jumpstart import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXPERIMENTS = sorted(
    [p.stem for p in (ROOT / "experiments").glob("*.py") if p.stem not in ("__init__", "common", "pages", "readme")]
    + [p.parent.name for p in (ROOT / "experiments").glob("*/__main__.py")]
)


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_code_in_prose_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    space, dtype = {}, torch.get_default_dtype()
    try:
        for block in blocks(page):
            exec(compile(block, str(page), "exec"), space)
    finally:
        torch.set_default_dtype(dtype)  # a page may ask for double precision


def test_readme_holds_what_the_results_say():
    run = subprocess.run(
        [sys.executable, "-m", "experiments.readme", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_docstring_examples():
    tried = 0
    for found in pkgutil.walk_packages(jumpstart.__path__, "jumpstart."):
        result = doctest.testmod(importlib.import_module(found.name))
        assert result.failed == 0, found.name
        tried += result.attempted
    assert tried >= 10


def test_demo_at_toy_size(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        assert cli.main(["demo", "--quick", "--no-progress", "--out", str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert printed.count("Jumping") == 2
    for name in ("digits", "poisson"):
        rows = json.loads((tmp_path / name / "results.json").read_text())["rows"]
        assert len({row["contender"] for row in rows}) == 3
        assert (tmp_path / name / f"{name}.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_at_toy_size(name, tmp_path):
    command = [sys.executable, "-m", f"experiments.{name}", "--quick", "--seeds", "1", "--no-progress"]
    run = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, env=dict(os.environ), timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["experiment"] == name
    assert content["rows"]
    assert content["command"].startswith(f"python -m experiments.{name}")
