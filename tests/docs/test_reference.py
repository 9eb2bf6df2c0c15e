"""Every public name stands on a page of the reference, and says what a reader needs: the rule is written out here.

A public function, class, method or property has
- a docstring, its own or that of what it overrides;
- the name of each argument in it, or in its class's;
- a shape, where it takes or gives a tensor: one in parentheses, (n, d) or (…), "a number", "a scalar", or N × k;
- units: flow time for horizons, seconds for budgets, bytes for limits of memory;
- the errors that it raises itself, by name or by the name of a kind that they are;
- a source, where it is mathematics: of its own or of its module.
"""

from __future__ import annotations

import re

import pytest

from jumpstart import errors

from .reference import documented, found, members, module_of, on_pages, parameters, public, raised, said

NAMES = public()
SHAPE = re.compile(
    r"\((?:…|[^()\s]{1,12},[^()]*|…, [^()]*|[^()]{1,12} [×+−] [^()]*)\)"
    r"|\b(scalar|a number|one number)\b|\b[NPkmnr] × [NPkmnr]\b"
)
# What an argument is called in words, where the docstring writes the letter of the theory.
LETTERS = {"theta": "θ"}
UNITS = {
    ("t", "horizon", "horizons"): r"flow time|flow times",
    ("budget", "seconds"): r"second|forward pass|steps",
    ("memory_limit",): r"byte",
}
SOURCE = re.compile(r"theory\.md|[Ee]quation|arXiv|arxiv|\b(?:19|20)\d\d\b|F\.\w+_loss|Source:")
# Where what is public is mathematics that somebody has written down; a few names there are not.
MATHEMATICS = (
    "jumpstart.bases", "jumpstart.features", "jumpstart.gating.averages", "jumpstart.gating.rules", "jumpstart.gp",
    "jumpstart.gating.statistics", "jumpstart.jumping.jump.jump", "jumpstart.losses.base", "jumpstart.optim.gated",
    "jumpstart.solver.sol", "jumpstart.objectives.balance", "jumpstart.trajectory.operators", "jumpstart.weighting",
)  # fmt: skip
ARITHMETIC = {"jumpstart.features.Scaled", "jumpstart.features.Beside", "jumpstart.features.Constrained",
    "jumpstart.weighting.Rule", "jumpstart.weighting.weighed"}  # fmt: skip


def entries():
    return [(name, item) for name in NAMES for item in members(found(name))]


def lacking(name: str, item) -> list[str]:
    """What an entry does not say."""
    text, missing = said(item), []
    if not documented(item).strip():
        return [f"{name}.{item.name}: no docstring"]
    for argument in parameters(item):
        word = LETTERS.get(argument, argument)
        if not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text):
            missing.append(f"{name}.{item.name}: nothing about the argument {argument!r}")
    for names, unit in UNITS.items():
        if set(names) & set(parameters(item)) and not re.search(unit, text, re.I):
            missing.append(f"{name}.{item.name}: no unit of {names[0]!r}")
    typed = [
        *parameters(item).values(),
        str(getattr(item, "returns", "") or ""),
        str(getattr(item, "annotation", "") or ""),
    ]
    if any(re.search(r"\bTensor\b", each) for each in typed) and not SHAPE.search(text):
        missing.append(f"{name}.{item.name}: a tensor without a shape")
    for error in raised(item):
        kinds = [kind.__name__ for kind in getattr(errors, error, Exception).__mro__]
        if not any(kind in text for kind in kinds if kind.endswith("Error")) and hasattr(errors, error):
            missing.append(f"{name}.{item.name}: raises {error} and does not say so")
    return missing


def test_every_public_name_stands_on_one_page_of_the_reference():
    pages = on_pages()
    assert len(pages) == len(set(pages))
    assert set(pages) <= set(NAMES)
    there = {found(name).path for name in pages}
    assert [name for name in NAMES if found(name).path not in there] == []


def test_every_public_name_says_what_a_reader_needs():
    every = entries()
    assert len(every) > 300
    assert [line for name, item in every for line in lacking(name, item)] == []


@pytest.mark.parametrize("room", MATHEMATICS)
def test_mathematics_names_its_source(room):
    names = [name for name in NAMES if found(name).path.startswith(room) and name not in ARITHMETIC]
    assert names
    assert [n for n in names if not SOURCE.search(said(found(n)) + module_of(found(n)))] == []


def test_the_rule_finds_what_is_missing():
    """It can fail: the same check on entries of which something was taken away."""
    solve, predict = found("jumpstart.solve"), found("jumpstart.Solution").members["predict"]
    for item, taken, told in (
        (solve, r"memory_limit: bytes", "unit"),
        (solve, r"InputError", "raises"),
        (solve, r"\bprogress\b", "progress"),
        (predict, r"\([^()]*\)", "shape"),
        (solve, r"(?s).*", "no docstring"),
    ):
        before = [(each, each.docstring.value) for each in (item, item.parent) if each.docstring is not None]
        try:
            for each, text in before:
                each.docstring.value = re.sub(taken, "", text)
            assert any(told in line for line in lacking("x", item)), (item.path, taken)
        finally:
            for each, text in before:
                each.docstring.value = text
        assert lacking("x", item) == []
