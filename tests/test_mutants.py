"""Faults planted in the core are found by the tests that are named for them; see ``tests/mutants.py``."""

from __future__ import annotations

import ast

import pytest

from .mutants import MUTANTS, ROOT, survives

NAMES = [mutant.name for mutant in MUTANTS]


@pytest.mark.parametrize("mutant", MUTANTS, ids=NAMES)
def test_the_table_fits_the_package(mutant):
    text = (ROOT / "jumpstart" / mutant.file).read_text()
    assert text.count(mutant.text) == 1
    broken = text.replace(mutant.text, mutant.fault)
    assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(text))
    for test in mutant.tests:
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / "tests" / path).read_text())
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in defined or not name, test


def test_names_tell_mutants_apart():
    assert len(MUTANTS) >= 12
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=NAMES)
def test_every_mutant_is_killed(mutant):
    assert not survives(mutant, mutant.tests)
