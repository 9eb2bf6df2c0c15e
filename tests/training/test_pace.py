"""A budget of what tries lose on balance, and a back-off."""

from __future__ import annotations

from jumpstart.training.pace import OVERDRAFT, Pace


def test_what_tries_saved_may_be_lost_again():
    pace = Pace()
    pace.learn(-OVERDRAFT, 10)
    assert not pace.ready(1000, 0, 0.05, 1.0)
    pace.learn(20.0, 1001)
    assert pace.ready(2000, 0, 0.05, 19.0)
    assert not pace.ready(2000, 0, 0.05, 21.0)


def test_a_longer_run_may_lose_more():
    pace = Pace()
    pace.learn(-OVERDRAFT - 2, 10)
    assert not pace.ready(1000, 50, 0.05, 1.0)
    assert pace.ready(1000, 100, 0.05, 1.0)


def test_waits_double_and_start_afresh():
    pace = Pace()
    for failures in (1, 2, 3):
        pace.learn(-0.1, 100)
        assert pace.wait == 100 + 2**failures
    pace.learn(1.0, 200)
    assert pace.wait == 201
