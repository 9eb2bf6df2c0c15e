"""The public names and what is said of each, read from the sources as the site reads them."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import griffe

import jumpstart

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))
TRAINERS = ("jumpstart.integrations.huggingface.add_jumps", "jumpstart.integrations.lightning.JumpCallback")


def module(path: Path) -> ModuleType:
    """A file of docs/ that is no part of a package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = found
    spec.loader.exec_module(found)
    return found


docstrings = module(ROOT / "docs" / "docstrings.py")


@functools.cache
def package() -> Any:
    """jumpstart, its docstrings parsed as on the site."""
    extensions = griffe.load_extensions(docstrings.Readable)
    loaded = griffe.load("jumpstart", search_paths=[str(ROOT)], extensions=extensions, docstring_parser="google")
    return loaded


def public() -> list[str]:
    """Every name that users are told of, by the path that they import it from."""
    found = [f"jumpstart.{name}" for name in jumpstart._DEFINED]
    for room in jumpstart._MODULES:
        if room == "integrations":  # its packages may not be installed, and it has no names of its own
            continue
        space = getattr(jumpstart, room)
        own = [n for n, v in vars(space).items() if n[0] != "_" and getattr(v, "__module__", None) == space.__name__]
        found += [f"jumpstart.{room}.{name}" for name in getattr(space, "__all__", own)]
    return [*found, *TRAINERS]


def on_pages() -> list[str]:
    """Names that have an entry; one that a module shares is written twice there, as the parser needs it."""
    found = [name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)]
    return [re.sub(r"\.(\w+)\.\1$", r".\1", name) for name in found]


def found(name: str) -> Any:
    """What a path leads to, through re-exports."""
    item = package()[name.removeprefix("jumpstart.")]
    if item.is_module and item.name in item.members:  # a module and what it defines have one name: users get the latter
        item = item.members[item.name]
    return item.final_target if item.is_alias else item


def members(item: Any) -> Iterator[Any]:
    """An item, and, of a class, the methods and properties that it defines."""
    yield item
    if item.is_class:
        for name, member in item.members.items():
            if not name.startswith("_") and not member.is_alias and (member.is_function or "property" in member.labels):
                yield member


def documented(item: Any) -> str:
    """Its docstring, or that of what it overrides."""
    if item.docstring is not None:
        return item.docstring.value
    if item.parent is not None and item.parent.is_class:
        for base in item.parent.mro():
            other = base.members.get(item.name)
            if other is not None and other.docstring is not None:
                return other.docstring.value
    return ""


def said(item: Any) -> str:
    """All that its entry and its class's say, with what the classes above them say of the same."""
    owner = item.parent if item.parent is not None and item.parent.is_class else None
    classes = [owner, *owner.mro()] if owner is not None else [item, *item.mro()] if item.is_class else []
    texts = [documented(item), *(documented(each) for each in classes)]
    texts += [documented(each.members[item.name]) for each in classes if owner and item.name in each.members]
    return "\n".join(texts)


def module_of(item: Any) -> str:
    """The docstring of the module that it is defined in."""
    text = item.module.docstring
    return "" if text is None else text.value


def parameters(item: Any) -> dict[str, str]:
    """Names of what it takes -> annotations; of a class, of what it is made from."""
    if not (item.is_function or item.is_class):
        return {}
    return {
        p.name: str(p.annotation or "")
        for p in item.parameters
        if p.name not in ("self", "cls") and p.name[0] not in "_*"
    }


def raised(item: Any) -> set[str]:
    """Names of errors in the raise statements of a function, or of what makes an instance of a class."""
    if item.is_class:
        makers = [item.members[name] for name in ("__init__", "__post_init__") if name in item.members]
        return set().union(*(raised(maker) for maker in makers)) if makers else set()
    if item.lineno is None:  # made by dataclasses, not written
        return set()
    tree = ast.parse(item.filepath.read_text())
    wanted = [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name == item.name
        and item.lineno <= node.lineno <= item.endlineno
    ]
    calls = [node.exc for root in wanted for node in ast.walk(root) if isinstance(node, ast.Raise)]
    return {c.func.id for c in calls if isinstance(c, ast.Call) and isinstance(c.func, ast.Name)}
