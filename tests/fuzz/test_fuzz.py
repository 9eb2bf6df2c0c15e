"""The generated cases as tests: a share of each family always, all with ``-m slow``; and the fuzz itself can fail."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import jumpstart as js
from jumpstart.solver.solution import Solution

from .collect import cases
from .trial import RAW, REFUSED, RIGHT, SILENT, UNDUE, ask

SHARE = 10  # every tenth of a family by default: some 130 cases in 25 s


def parameters() -> list:
    """Each name, marked slow but for every ``SHARE``-th of its family, the first included."""
    seen: Counter[str] = Counter()
    found = []
    for name, case in cases().items():
        slow = seen[case.family] % SHARE != 0
        seen[case.family] += 1
        found.append(pytest.param(name, marks=pytest.mark.slow if slow else ()))
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", parameters())
def test_case(name):
    verdict = ask(cases()[name])
    assert not verdict.faults, f"\n{verdict}"


def test_counts():
    modules = [
        c for c in cases().values() if c.family not in {"inputs", "queries", "targets", "classes", "loss", "later"}
    ]
    modules = [c for c in modules if c.objective is None]
    assert len(modules) >= 200
    assert len(cases()) - len(modules) >= 100


FINE = "linear/Linear"


def test_finds_a_wrong_answer(monkeypatch):
    outputs = Solution.outputs
    monkeypatch.setattr(Solution, "outputs", lambda self, t, **kw: outputs(self, t, **kw) + 1e-4)
    assert ask(cases()[FINE]).status == SILENT


def test_finds_a_raw_error_and_a_refusal_that_is_not_due(monkeypatch):
    def fail(error):
        def solve(*args, **kwargs):
            raise error

        return solve

    monkeypatch.setattr(js, "solve", fail(RuntimeError("torch's own")))
    assert ask(cases()[FINE]).status == RAW
    monkeypatch.setattr(js, "solve", fail(js.errors.InputError("no")))
    assert ask(cases()[FINE]).status == UNDUE
    assert ask(cases()["dropout/Dropout train"]).status == REFUSED


def test_finds_what_is_not_left_alone(monkeypatch):
    predict = Solution.predict

    def draws(self, *args, **kwargs):
        torch.rand(1)
        return predict(self, *args, **kwargs)

    monkeypatch.setattr(Solution, "predict", draws)
    verdict = ask(cases()[FINE])
    assert [check.what for check in verdict.faults] == ["left alone by solve"]


def test_knows_a_right_answer():
    assert ask(cases()[FINE]).status == RIGHT
