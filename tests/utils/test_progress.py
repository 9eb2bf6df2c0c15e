"""Progress bars: seen when work is long and somebody watches, never otherwise, and results are the same."""

from __future__ import annotations

import io
import sys
import threading
import time
import timeit

import pytest
import torch

import jumpstart as js
from jumpstart.linalg.lanczos import block_lanczos, lanczos, lanczos_dual
from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.metric import Metric
from jumpstart.linearization.ntk import train_kernel
from jumpstart.utils import progress
from jumpstart.utils.fallback import NotFollowed
from jumpstart.utils.progress import shown, track

from ..problems import PROBLEMS, randn


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Puts a terminal in stderr's place when called: pytest takes it back between set-up and test."""

    def install():
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return install


@pytest.fixture
def eager(monkeypatch):
    """Bars that do not wait a second."""
    monkeypatch.setattr(progress, "DELAY", 0.01)


def work(items=4, seconds=0.12):
    return [time.sleep(seconds) or i for i in track(range(items), label="sums")]


def test_long_work_shows_a_bar_when_forced(capfd):
    with shown(True):
        assert work(items=14) == list(range(14))
    out, err = capfd.readouterr()
    assert not out
    assert "sums" in err and "/14" in err
    assert err.endswith("\r")  # and it is wiped away at the end


def test_long_work_shows_a_bar_on_a_terminal(terminal, eager):
    stream = terminal()
    work()
    assert "sums" in stream.getvalue()


@pytest.mark.parametrize("flag", [None, False])
def test_nothing_is_printed_without_a_terminal_or_when_forbidden(flag, capfd, eager):
    with shown(flag):
        work()
    assert capfd.readouterr() == ("", "")


def test_nothing_is_printed_on_a_terminal_when_forbidden(terminal, eager):
    stream = terminal()
    with shown(False):
        work()
    assert stream.getvalue() == ""


def test_short_work_shows_nothing_even_when_forced(capfd, terminal):
    stream = terminal()
    with shown(True):
        work(items=5, seconds=0.001)
    assert stream.getvalue() == ""
    assert capfd.readouterr() == ("", "")


def test_the_flag_nests_and_is_put_back():
    assert progress._flag.get() is None
    with shown(True):
        with shown(False):
            assert progress._flag.get() is False
        assert progress._flag.get() is True
    assert progress._flag.get() is None
    with pytest.raises(ZeroDivisionError), shown(True):
        _ = 1 / 0
    assert progress._flag.get() is None


def test_a_bad_flag_is_refused():
    with pytest.raises(js.errors.InputError, match="progress='yes'"), shown("yes"):
        pass


@pytest.mark.parametrize("stderr", [None, io.StringIO(), object()])
def test_odd_streams_are_no_terminals(stderr, monkeypatch):
    if isinstance(stderr, io.StringIO):
        stderr.close()
    monkeypatch.setattr(sys, "stderr", stderr)
    assert list(track(range(3))) == [0, 1, 2]


def test_a_total_for_what_has_no_length(terminal, eager):
    stream = terminal()
    for _ in track((time.sleep(0.15) for _ in range(4)), total=4, label="g"):
        pass
    assert "/4" in stream.getvalue()


def test_a_loop_left_early_takes_its_bar_along(terminal, eager):
    stream = terminal()
    for i in track(range(100), label="left"):
        time.sleep(0.15)
        if i == 2:
            break
    assert "left" in stream.getvalue() and stream.getvalue().endswith("\r")
    seen = len(stream.getvalue())
    with pytest.raises(ZeroDivisionError):
        _ = [time.sleep(0.15) or 1 / (2 - i) for i in track(range(100), label="failed")]
    assert "failed" in stream.getvalue()[seen:] and stream.getvalue().endswith("\r")


def test_no_thread_is_started(terminal):
    terminal()
    before = threading.active_count()
    with shown(True):
        list(track(range(3)))
    assert threading.active_count() == before


def test_a_loop_without_a_bar_costs_nothing_to_speak_of():
    loop = range(3)
    with shown(None):
        seconds = min(timeit.repeat(lambda: list(track(loop, label="x")), number=1000, repeat=5)) / 1000
    print(f"one loop without a bar: {1e6 * seconds:.2f} µs")
    assert seconds < 20e-6
    with shown(False):
        assert track(loop) is loop


def answers():
    """Everything that loops under a bar, once."""
    p = PROBLEMS["mlp"](0)
    objective = js.supervised(p.model, p.x, p.y)
    lin, metric = linearize(objective), Metric(torch.rand(objective.space.size, generator=torch.Generator()) + 0.5)
    a = randn(1, 9, 9)
    a = a @ a.T
    dual = lanczos_dual(lambda s: a @ s, lambda y: y, randn(2, 9), 5)
    points = js.residual(p.model, js.Term(lambda net, x: net(x)[:1], p.x))
    return [
        train_kernel(lin, metric),
        lin.jacobian(),
        linearize(points).jacobian(),
        super(type(lin.parts[0]), lin.parts[0]).jacobian(lin.net, lin.theta)[0],
        lanczos(lambda v: a @ v, randn(2, 9), 5).matrix(),
        dual.images,
        block_lanczos(lambda v: a @ v, randn(3, 2, 9), 3).matrix,
    ]


def test_results_are_the_same_with_and_without(monkeypatch, terminal):
    stream = terminal()
    monkeypatch.setattr(progress, "DELAY", 0.0)
    with shown(False):
        expected = answers()
    assert stream.getvalue() == ""
    with shown(True):
        found = answers()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def refuse(*_):
    raise NotFollowed("not now")


def test_the_long_loops_have_bars(monkeypatch):
    """Which loops ask for one: every place that a user may wait at."""
    from jumpstart.linalg import lanczos as krylov
    from jumpstart.linearization.ntk import dense
    from jumpstart.objectives import collocation as at_points
    from jumpstart.objectives import parts

    labels = set()

    def spy(iterable, total=None, label=""):
        labels.add(label)
        return iterable

    for module in (dense, parts, krylov, at_points):
        monkeypatch.setattr(module, "track", spy)
    monkeypatch.setattr(at_points, "trace_residual", refuse)  # the fast way to points has no loop
    answers()
    assert {"Lanczos", "block Lanczos", "Jacobian: outputs", "Jacobian: samples", "Jacobian: points"} <= labels
    assert {"kernel: layers", "kernel: parameters", "kernel: per-sample"} <= labels
