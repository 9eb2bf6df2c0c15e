"""Imports point downwards, files stay small, and importing changes nothing."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "jumpstart"

# From low to high: a module imports only what stands before it. Modules of one row may not import each other.
ORDER = [
    ["errors", "cost", "autodiff"],
    ["horizon", "parameters", "progress"],
    ["loss"],
    ["losses", "weights"],
    ["streams.jet", "streams.reading", "streams.simplify"],
    ["streams.program"],
    ["streams.local"],
    ["streams.factoring"],
    ["streams"],
    ["parts"],
    ["points"],
    ["objective"],
    ["residual"],
    ["linearize"],
    ["metric"],
    ["kernel.capture"],
    ["kernel.contract"],
    ["kernel.side"],
    ["kernel.dense"],
    ["kernel.assemble"],
    ["kernel.operator"],
    ["kernel"],
    ["krylov"],
    ["basis"],
    ["cholesky"],
    ["resolvent", "gathered"],
    ["iterative"],
    ["bases"],
    ["exponential"],
    ["flow"],
    ["gate", "bounds", "trust", "masked", "archive"],
    ["laplace"],
    ["holdout"],
    ["risk"],
    ["proposal"],
    ["march"],
    ["drift"],
    ["choose"],
    ["query"],
    ["whatif", "tune", "check"],
    ["solution"],
    ["solver"],
    ["jumping"],
    ["checkpoint", "training"],
    ["stages", "plots"],
    ["fitting"],
    ["contenders", "gp"],
]
TOP = len(ORDER)  # diagnostics, demo, command line and whatever else stands on the core; checked for not being imported
LEVEL = {name: i for i, row in enumerate(ORDER) for name in row}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield name, path


def imported(name, path):
    """Names of jumpstart's own modules that a file imports, anywhere in it."""
    package = name.split(".")[:-1] if path.name != "__init__.py" else name.split(".") if name else []
    known = {module for module, _ in modules()}
    tree = ast.parse(path.read_text())
    for block in [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]:
        block.body = []  # for the type checker alone
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level == 0 and not (node.module or "").startswith("jumpstart"):
                continue
            base = package[: len(package) - node.level + 1] if node.level else []
            tail = (node.module or "").split(".") if node.module else []
            tail = tail[1:] if not node.level else tail
            for alias in node.names:
                full = ".".join([*base, *tail, alias.name])
                yield full if full in known else ".".join([*base, *tail])
        elif isinstance(node, ast.Import):
            yield from (
                a.name.removeprefix("jumpstart").lstrip(".") for a in node.names if a.name.startswith("jumpstart")
            )


@pytest.mark.parametrize("name", [name for name, _ in modules() if name])
def test_imports_point_downwards(name):
    path = dict(modules())[name]
    level = LEVEL.get(name, TOP)
    for other in imported(name, path):
        if other == name or (level == TOP and LEVEL.get(other, TOP) == TOP):
            continue
        assert LEVEL.get(other, TOP) < level, f"{name} imports {other or 'jumpstart itself'}"


def test_no_cycles_above_the_core():
    graph = {name: {o for o in imported(name, path) if o != name} for name, path in modules() if name}
    done: set[str] = set()

    def visit(name, trail):
        assert name not in trail, " → ".join([*trail, name])
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("name", list(LEVEL))
def test_the_order_names_modules_that_exist(name):
    assert name in dict(modules())


@pytest.mark.parametrize("name", [name for name, _ in modules() if name])
def test_files_are_small(name):
    assert len(dict(modules())[name].read_text().splitlines()) < 350


def test_import_has_no_side_effects():
    code = (
        "import torch, sys; s = torch.get_rng_state(); d = torch.get_default_dtype(); n = torch.get_num_threads();"
        "import jumpstart; assert torch.equal(s, torch.get_rng_state()); assert d == torch.get_default_dtype();"
        "assert n == torch.get_num_threads(); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)
