"""Blocks that signals wait for: none is lost, none comes twice, and every handler is back."""

from __future__ import annotations

import random
import signal
import threading

import pytest

from jumpstart.utils.interrupts import uninterrupted


class Rang(Exception):
    pass


@pytest.fixture
def alarms():
    """SIGALRM and SIGUSR1 raise; what was there before is put back."""

    def ring(number, frame):
        raise Rang(number)

    before = {number: signal.signal(number, ring) for number in (signal.SIGALRM, signal.SIGUSR1)}
    # Python's own, also where the shell that started the tests has SIGINT ignored.
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield ring
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_waits_for_the_end_of_the_block(alarms):
    done = []

    def work():
        with uninterrupted():
            with uninterrupted():
                signal.raise_signal(signal.SIGALRM)
                done.append(1)
            signal.raise_signal(signal.SIGALRM)  # the same once more is the same, as in the kernel
            done.append(2)

    with pytest.raises(Rang):
        work()
    assert done == [1, 2]
    assert signal.getsignal(signal.SIGALRM) is alarms
    with pytest.raises(Rang):
        signal.raise_signal(signal.SIGALRM)


def test_two_signals_are_both_delivered(alarms):
    def work():
        with uninterrupted():
            signal.raise_signal(signal.SIGALRM)
            signal.raise_signal(signal.SIGUSR1)

    with pytest.raises(Rang) as caught:
        work()
    assert caught.value.__context__ is not None
    assert {caught.value.args[0], caught.value.__context__.args[0]} == {signal.SIGALRM, signal.SIGUSR1}


def test_ctrl_c_is_a_signal_like_others(alarms):
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    done = []

    def work():
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append(1)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_that_the_block_sets_stays(alarms):
    with uninterrupted():
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_IGN


def test_an_error_of_the_block_comes_out(alarms):
    with pytest.raises(ZeroDivisionError), uninterrupted():
        _ = 1 / 0
    assert signal.getsignal(signal.SIGALRM) is alarms


def test_other_threads_have_nothing_to_do(alarms):
    seen = []

    def work():
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGALRM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [alarms]


def test_two_assignments_are_one_at_random_moments(alarms):
    """2,000 signals at random moments: the two counters never differ, and none of the handlers stays away."""
    source, pair, rang = random.Random(0), [0, 0], 0

    def work():
        while True:
            with uninterrupted():
                pair[0] += 1
                sum(range(20))
                pair[1] += 1

    for _ in range(2000):
        try:
            signal.setitimer(signal.ITIMER_REAL, source.uniform(2e-5, 2e-4))
            work()
        except Rang:
            rang += 1
        assert pair[0] == pair[1]
        assert signal.getsignal(signal.SIGALRM) is alarms
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print(f"{rang} signals, {pair[0]} blocks")
    assert rang == 2000
