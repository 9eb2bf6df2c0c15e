"""A truncated basis that nobody asked for: chosen where every mode is dear, and it says when that shows."""

from __future__ import annotations

import math
import random
import warnings

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.errors import InputError, TruncationWarning
from jumpstart.surrogate import select

from ..problems import classes, fill, mlp, randn

TINY = 60_000  # bytes that a dense basis of these does not fit


class Sequence(nn.Module):
    """Next tokens by attention, as small as they come."""

    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(11, 8), nn.Linear(8, 11)
        self.block = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True)

    def forward(self, tokens):
        return self.out(self.block(self.table(tokens)))


def tokens():
    torch.manual_seed(0)
    seen = classes(0, 15, 11).reshape(3, 5)
    return js.supervised(Sequence().double(), seen[:, :-1], seen[:, 1:], "cross_entropy")


TASKS = {
    "tokens": tokens,
    "classes": lambda: js.supervised(mlp(0, 4, 12, 3), randn(0, 40, 4), classes(1, 40, 3), "cross_entropy"),
    "regression": lambda: js.supervised(mlp(1, 4, 12, 1), randn(0, 120, 4), randn(1, 120, 1)),
    "two outputs": lambda: js.supervised(mlp(2, 4, 12, 2), randn(0, 60, 4), randn(1, 60, 2)),
    "yes or no": lambda: js.supervised(mlp(3, 4, 12, 1), randn(0, 120, 4), (randn(1, 120, 1) > 0).double(), "logistic"),
}


@pytest.mark.parametrize("name", TASKS)
def test_an_answer_is_within_a_hundredth_of_the_exact_one_or_warns(name):
    """Against every mode, at horizons from short to long; where it is exact to a thousandth it does not cry wolf."""
    objective = TASKS[name]()
    exact = js.solve(objective, "dense")
    flow, alarms = exact.flow, []
    for depth in (6, 12):
        for k in range(6):
            t = 4.0**k * flow.timescale()
            found = js.solve(objective, depth=depth, memory_limit=TINY)
            assert (found.basis.kind, found.plan.by_default) == ("krylov", True)
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                got = found.outputs(t)
                found.outputs(t)
                found.loss(4 * t)
            told = [w for w in seen if w.category is TruncationWarning]
            first = [w for w in told if f"horizon {t:.3g} is" in str(w.message)]
            true = exact.outputs(t)
            error = float((got - true).norm() / (true - exact.lin.u).norm())
            assert error < 0.01 or first, (t, error)
            assert len(told) <= 1
            assert all(w.filename == __file__ for w in told)
            alarms.append(bool(first) and error < 1e-3)
    assert sum(alarms) == 0


def test_what_was_asked_for_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        js.solve(TASKS["classes"](), "krylov").outputs(1e3)


def test_other_targets_within_a_basis_grown_for_the_first_warn():
    """The smaller run says nothing there: the new gradient is outside of both."""
    objective = TASKS["two outputs"]()
    found = js.solve(objective, depth=12, memory_limit=TINY)
    t = 0.1 / found.flow.max_rate
    for ask in (
        lambda: found.with_targets(randn(7, 60, 2)).outputs(t),
        lambda: found.with_targets(randn(7, 3, 60, 2)).outputs(t),
        lambda: found.with_targets(randn(7, 3, 60, 2)).predict(randn(8, 2, 4), t),
    ):
        with pytest.warns(TruncationWarning, match=r"basis='dense'.*depth=48") as seen:
            ask()
        assert seen[0].filename == __file__


SMALL = {
    "90 samples of 3 classes": (90, 13, 64, 3, "cross_entropy"),
    "60 samples of 10 classes": (60, 10, 32, 10, "cross_entropy"),
    "300 numbers": (300, 10, 64, 1, "mse"),
    "200 yes or no": (200, 10, 64, 1, "logistic"),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_problems_are_solved_exactly(name):
    n, d, width, c, loss = SMALL[name]
    x, y = randn(0, n, d), {"mse": randn(1, n, c), "logistic": (randn(1, n, c) > 0).double()}.get(loss)
    y = classes(1, n, c) if y is None else y
    found = js.solve(js.supervised(mlp(0, d, width, c), x, y, loss))
    assert found.basis.kind == "dense"
    assert 0.001 < found.plan.costs["dense"].seconds < 0.3
    if n == 90:
        assert found.risk(1.0) > 0


def test_large_ones_are_not_and_risk_says_what_to_do():
    x, y = randn(0, 130, 10), classes(1, 130, 10)
    found = js.solve(js.supervised(mlp(0, 10, 32, 10), x, y, "cross_entropy"))
    assert found.basis.kind == "krylov"
    assert "dense would take too long" in found.explain()
    assert "to follow the flow to an end" in found.explain()
    with pytest.raises(InputError, match="basis='dense'"):
        found.risk(1.0)


def test_a_jump_pays_for_modes_only_what_krylov_costs():
    """A solution is as good as its basis; after a jump the real loss decides."""
    x, y = randn(0, 90, 13), classes(1, 90, 3)
    objective = js.supervised(mlp(0, 13, 64, 3), x, y, "cross_entropy")
    assert js.solve(objective).basis.kind == "dense"
    assert js.jump(objective).basis == "krylov"


def answers(n: int, loss: str) -> list:
    """Everything that a choice decides: bases, outputs, weights after a jump and after a fit."""
    y = classes(1, n, 3) if loss == "cross_entropy" else randn(1, n, 3)
    objective = js.supervised(mlp(0, 6, 8, 3), randn(0, n, 6), y, loss)
    found = js.solve(objective)
    told = [found.basis.kind, found.outputs(3.0), found.predict(randn(2, 3, 6), 3.0)]
    result = js.jump(objective)
    told += [result.basis, result.actual, objective.theta()]
    fitted = js.fit(objective, jumps=3)
    told += [fitted.loss, objective.theta()]
    runs = {"SGD": js.stepped(lambda p: torch.optim.SGD(p, 0.1)), "jumps": js.jumps_only(lambda k: {})}
    table = js.compare(
        mlp(0, 6, 8, 3), lambda net: js.supervised(net, randn(0, n, 6), y, loss), runs, seconds=math.inf, steps=3,
        progress=False,
    )  # fmt: skip
    found = {name: [row["loss"] for row in table.rows if row["contender"] == name] for name in runs}
    return [*told, found]


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_the_same_call_gives_the_same_answer_to_the_bit_whatever_clock_and_memory_say(loss, monkeypatch):
    sizes = (20, 60)
    first = [answers(n, loss) for n in sizes]
    for seed in (1,):
        chance, now = random.Random(seed), [0.0]

        def clock(chance=chance, now=now):
            now[0] += chance.expovariate(1.0) * 10 ** chance.uniform(-6, 2)
            return now[0]

        for name in ("perf_counter", "monotonic", "process_time", "time"):
            monkeypatch.setattr(f"time.{name}", clock)
        monkeypatch.setattr("os.sysconf", lambda _, chance=chance: int(chance.expovariate(1.0) * 1e5))
        again = [answers(n, loss) for n in sizes]
        monkeypatch.undo()
        for n, a, b in zip(sizes, first, again, strict=True):
            for i, (one, other) in enumerate(zip(a, b, strict=True)):
                same = one.equal(other) if isinstance(one, torch.Tensor) else one == other
                assert same, (n, i, one, other)


def test_free_memory_decides_large_problems_alone_and_says_so(monkeypatch):
    objective = TASKS["classes"]()
    monkeypatch.setattr("jumpstart.utils.memory.available_memory", lambda device: 0.0)
    assert js.solve(objective).basis.kind == "dense"
    monkeypatch.setattr("jumpstart.utils.memory.ALWAYS", TINY)
    found = js.solve(objective)
    assert found.basis.kind == "krylov"
    assert "half of the memory that is free now; memory_limit= would decide it" in found.explain()


@pytest.mark.slow  # it reads the clock of the machine it runs on
def test_costs_are_those_of_this_machine_within_an_order(monkeypatch):
    """Coarse, since machines and their load differ: a prediction sixty times off refused a small data set."""
    import time

    for n, c, loss in ((90, 3, "cross_entropy"), (400, 1, "mse")):
        y = classes(1, n, c) if loss == "cross_entropy" else randn(1, n, c)
        objective = js.supervised(fill(mlp(0, 10, 64, c), 0), randn(0, n, 10), y, loss)
        taken = []
        for _ in range(3):
            begun = time.process_time()
            found = js.solve(objective, "dense")
            taken.append(time.process_time() - begun)
        assert 1 / 15 < found.plan.costs["dense"].seconds / min(taken) < 15
    assert select.SOLUTION.affordable == 0.3
