"""README, docs, docstrings, the demo and every experiment are run, at toy size."""

import doctest
import functools
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import torch

import jumpstart
from experiments import benchmarks
from jumpstart import cli
from jumpstart.errors import MissingPackageError

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("", "puzzles", "guides", "notebooks", "api")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += [page for folder in FOLDERS for page in sorted((ROOT / "docs" / folder).glob("*.md"))]
ALL = [*PAGES, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs" / "decisions").glob("*.md"))]
TOY_RUNS = ("operators", "double_descent")  # whose own tests run them whole
EXPERIMENTS = sorted(
    [
        p.stem
        for p in (ROOT / "experiments").glob("*.py")
        if p.stem not in ("__init__", "common", "rivals", "texts", "benchmarks", *TOY_RUNS)
    ]
    + [p.parent.name for p in (ROOT / "experiments").glob("*/__main__.py")]
)
WORD = ("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Pc")  # Unicode's kinds in Ruby's [[:word:]]


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


def test_pages_hold_what_the_results_say():
    run = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """Copies of the pages and of README's picture, which may be spoilt."""
    copies = {}
    for page, makers in benchmarks.PAGES.items():
        copies[tmp_path / page.name] = makers
        (tmp_path / page.name).write_bytes(page.read_bytes())
    picture = tmp_path / benchmarks.PICTURE.name
    picture.write_bytes(benchmarks.PICTURE.read_bytes())
    monkeypatch.setattr(benchmarks, "PAGES", copies)
    monkeypatch.setattr(benchmarks, "PICTURE", picture)
    return tmp_path


def spoil(path):
    """Change the last digit between the page's first markers that are not empty."""
    text = path.read_text()
    inside = re.search(r"<!-- (\w+) -->\n(.*?)<!-- /\1 -->", text, flags=re.S)
    digit = list(re.finditer(r"\d", inside[2]))[-1]
    at = inside.start(2) + digit.start()
    path.write_text(f"{text[:at]}{(int(text[at]) + 1) % 10}{text[at + 1 :]}")


@pytest.mark.parametrize("name", ["README.md", "benchmarks.md", "pinns.md", "gates.md"])
def test_a_figure_of_another_run_is_found_and_put_right(name, pages, capsys):
    good = (pages / name).read_text()
    spoil(pages / name)
    bad = (pages / name).read_text()
    assert bad != good
    assert benchmarks.main(["--check"]) == 1
    assert name in capsys.readouterr().err
    assert (pages / name).read_text() == bad  # a check writes nothing
    assert benchmarks.main([]) == 0
    assert (pages / name).read_text() == good


def test_a_picture_of_another_run_is_found_and_drawn_again(pages, capsys):
    picture = pages / benchmarks.PICTURE.name
    picture.write_bytes((benchmarks.RESULTS / "pinn" / "races" / "races.png").read_bytes())
    assert benchmarks.main(["--check"]) == 1
    assert picture.name in capsys.readouterr().err
    assert benchmarks.main([]) == 0
    assert benchmarks.main(["--check"]) == 0


def test_a_page_without_markers_is_refused(pages, capsys):
    page = pages / "README.md"
    page.write_text(page.read_text().replace("<!-- limits -->", ""))
    assert benchmarks.main(["--check"]) == 1
    assert "<!-- limits -->" in capsys.readouterr().err


def test_readme_is_short_and_tells_ci_what_to_run():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 900
    assert len(re.findall(r"!\[[^\]]*\]\((?!docs/badges/)", text)) == 1
    commands = re.findall(r"<!-- tests -->\n```sh\n(.+)\n```", text)
    assert len(commands) == 1
    for tool in ("ruff check .", "ruff format --check .", "basedpyright", "-m pytest"):
        assert tool in commands[0]


@pytest.mark.parametrize("page", ALL, ids=lambda p: p.name)
def test_links_and_images_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        aim = page.parent / path if path else page
        assert aim.exists(), target
        if heading:
            assert heading in anchors(aim), target


def anchors(page):
    """What GitHub calls a page's headings: lower case, no punctuation, no superscripts, dashes for spaces."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    return {
        "".join("-" if c == " " else c for c in head.lower() if c in "- " or unicodedata.category(c) in WORD)
        for head in re.findall(r"^#+ (.+)$", text, re.M)
    }


def test_headings_are_named_as_github_does(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# From 10⁵, say\n```\n# a comment\n```\n## Größe λ_max & `solve`\n")
    assert anchors(page) == {"from-10-say", "größe-λ_max--solve"}


@functools.cache
def files():
    return [str(p) for room in ("jumpstart", "tests", "experiments", "docs") for p in (ROOT / room).rglob("*.*")]


@pytest.mark.parametrize("page", ALL, ids=lambda p: p.name)
def test_files_that_are_named_exist(page):
    named = re.findall(r"`((?:\w+/)+\w+\.(?:py|json|md))`", page.read_text())
    assert [path for path in named if not any(file.endswith(f"/{path}") for file in files())] == []


def test_docstring_examples():
    tried = 0
    for found in pkgutil.walk_packages(jumpstart.__path__, "jumpstart."):
        try:
            module = importlib.import_module(found.name)
        except MissingPackageError:  # of an extra that is not installed
            continue
        result = doctest.testmod(module)
        assert result.failed == 0, found.name
        tried += result.attempted
    assert tried >= 10


@pytest.mark.experiments
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


@pytest.mark.experiments
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
