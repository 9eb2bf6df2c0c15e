"""The house has rooms, each on a floor: imports point down, there is no circle, and every module has a room.

``python -m tests.test_layers`` prints the rooms from the ground up and the edges between them.
"""

from __future__ import annotations

import ast
import functools
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

import jumpstart

ROOT = pathlib.Path(__file__).resolve().parent.parent / "jumpstart"

# From the ground up: a room imports only rooms that stand before it. A room is a folder or a module of the package.
ROOMS = [
    "errors",
    "utils",
    "distributed",
    "domains",
    "features",
    "weighting",
    "losses",
    "gating",
    "report",
    "linalg",
    "optim",
    "objectives",
    "linearization",
    "flow",
    "bases",
    "surrogate",
    "risk",
    "skipping",
    "jumping",
    "archive",
    "trajectory",
    "solver",
    "fitting",
    "training",
    "integrations",
    "gp",
    "comparison",
    "demo",
    "cli",
    "__main__",
]
FLOOR = {room: i for i, room in enumerate(ROOMS)}


def modules() -> dict[str, pathlib.Path]:
    """Module name below the package -> file; the package itself is ""."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache  # every module's test asks for all of them
def imports(path: pathlib.Path) -> list[ast.Import | ast.ImportFrom]:
    """A file's import statements, wherever they stand in it."""
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))]


def imported(name: str, path: pathlib.Path, known: set[str]) -> Iterator[str]:
    """jumpstart's own modules that a file imports, anywhere in it, for the type checker alone included."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    package = [part for part in package if part]
    for node in imports(path):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "jumpstart":
                    yield ".".join(alias.name.split(".")[1:])
        else:
            if node.level == 0 and (node.module or "").split(".")[0] != "jumpstart":
                continue
            base = package[: len(package) - node.level + 1] if node.level else []
            tail = (node.module or "").split(".")[0 if node.level else 1 :]
            base = [*base, *[part for part in tail if part]]
            for alias in node.names:
                full = ".".join([*base, alias.name])
                yield full if full in known else ".".join(base)


def graph() -> dict[str, set[str]]:
    """Module -> modules it imports; the package's own list of public names is no module of a room."""
    table = modules()
    return {
        name: {other for other in imported(name, path, set(table)) if other != name}
        for name, path in table.items()
        if name
    }


def room(name: str) -> str:
    return name.split(".")[0]


def edges() -> dict[str, dict[str, int]]:
    """Room -> room it imports -> how many modules do."""
    found: dict[str, dict[str, int]] = {}
    for name, others in graph().items():
        for other in {room(other) for other in others} - {room(name)}:
            found.setdefault(room(name), {}).setdefault(other, 0)
            found[room(name)][other] += 1
    return found


def circles() -> list[list[str]]:
    """Circles of modules, each as the way around it."""
    table, done, found = graph(), set(), []

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append([*trail[trail.index(name) :], name])
        elif name not in done:
            for other in table.get(name, ()):
                visit(other, [*trail, name])
            done.add(name)

    for name in table:
        visit(name, [])
    return found


@pytest.mark.parametrize("name", [name for name in modules() if name])
def test_every_module_has_a_room_and_imports_point_down(name):
    assert room(name) in FLOOR, f"{name}: no room of that name is known; give it a floor in ROOMS"
    for other in graph()[name]:
        assert other, f"{name} imports jumpstart itself"
        assert room(other) in FLOOR, f"{name} imports {other}, which is in no known room"
        assert room(other) == room(name) or FLOOR[room(other)] < FLOOR[room(name)], f"{name} imports {other}, upwards"


def test_no_circles():
    assert circles() == []


BRANCHES, LINES = 20, 80  # most in one function


def branches(function: ast.AST) -> int:
    """Places where a function may go one way or another."""
    count = 0
    for node in ast.walk(function):
        if isinstance(node, (ast.If, ast.IfExp, ast.For, ast.While, ast.ExceptHandler, ast.match_case)):
            count += 1
        elif isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            count += 1 + len(node.ifs)
    return count


def functions() -> Iterator[tuple[str, int, int]]:
    """Name, branches and lines of every function of the package, methods and inner ones included."""
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{name}.{node.name}", branches(node), (node.end_lineno or node.lineno) - node.lineno + 1


def test_functions_can_be_read_at_once():
    found = list(functions())
    assert len(found) > 500
    assert [row for row in found if row[1] > BRANCHES or row[2] > LINES] == []


def test_the_check_sees_circles_upward_edges_and_imports_for_types(tmp_path, monkeypatch):
    """The test can fail: a small house with each of the faults."""
    for text, fault in (
        ("from .b import x\n", "circle"),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .b import x\n", "circle"),
        ("from ..cli import main\n", "up"),
    ):
        folder = tmp_path / fault / str(len(text)) / "losses"
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder.parent / "cli.py").write_text("")
        (folder / "a.py").write_text(text)
        (folder / "b.py").write_text("from .a import y\n")
        monkeypatch.setattr(sys.modules[__name__], "ROOT", folder.parent)
        if fault == "circle":
            assert circles()
        else:
            with pytest.raises(AssertionError, match="upwards"):
                test_every_module_has_a_room_and_imports_point_down("losses.a")


def test_the_list_names_rooms_that_exist():
    assert set(ROOMS) == {room(name) for name in modules() if name}


def test_public_names_are_what_the_package_says():
    assert sorted(jumpstart.__all__) == sorted([*jumpstart._DEFINED, *jumpstart._MODULES])
    for name in jumpstart.__all__:
        assert getattr(jumpstart, name) is not None
    text = (ROOT / "__init__.py").read_text()
    static = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    typed = {alias.asname or alias.name for node in static if node.level for alias in node.names}
    assert typed == set(jumpstart.__all__), "the imports for type checkers and the table of names differ"
    with pytest.raises(AttributeError, match="nonsense"):
        _ = jumpstart.nonsense


@pytest.mark.parametrize("name", jumpstart._MODULES)
def test_a_public_module_is_imported_by_the_name_that_documents_use(name):
    """``from jumpstart.gp import EndpointGP`` as well as ``js.gp``: one module."""
    code = f"import jumpstart.{name} as found, jumpstart as js, sys; assert found is js.{name}"
    code += f"; assert found.__name__ == 'jumpstart.{name}'; assert sys.modules['jumpstart.{name}'] is found"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)
    assert jumpstart._MODULES[name] == name


def test_import_changes_nothing_and_brings_little():
    code = (
        "import torch, sys; s = torch.get_rng_state(); d = torch.get_default_dtype(); n = torch.get_num_threads();"
        "import jumpstart; assert not [m for m in sys.modules if m.startswith('jumpstart.')], sys.modules;"
        "import jumpstart.optim;"
        "assert not [m for m in sys.modules if m.split('.')[:2] in (['jumpstart', 'solver'], ['jumpstart', 'flow'])];"
        "jumpstart.fit, jumpstart.solve; assert torch.equal(s, torch.get_rng_state());"
        "assert d == torch.get_default_dtype(); assert n == torch.get_num_threads();"
        "assert 'matplotlib.pyplot' not in sys.modules; assert 'gpytorch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


if __name__ == "__main__":
    table = edges()
    for floor, name in enumerate(ROOMS):
        below = sorted(table.get(name, {}), key=lambda other: FLOOR[other])
        print(f"{floor:2d}  {name:<14} → {', '.join(below) or '–'}")
    upward = [(a, b) for a, others in table.items() for b in others if FLOOR[b] >= FLOOR[a]]
    most, longest = max(functions(), key=lambda row: row[1]), max(functions(), key=lambda row: row[2])
    print(f"most branches: {most[1]} in {most[0]}; most lines: {longest[2]} in {longest[0]}")
    print(f"{len(modules()) - 1} modules in {len(ROOMS)} rooms; circles: {len(circles())}; upward edges: {len(upward)}")
