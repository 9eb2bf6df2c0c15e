"""Acceptance and the search over horizons: scalars only."""

from __future__ import annotations

import math

import pytest

from jumpstart.errors import HorizonError, InputError
from jumpstart.jumping.trust import Outcome, Trust, ratio
from jumpstart.utils.line_search import search

NAN, INF = math.nan, math.inf

# before, predicted, after → accepted
VERDICTS = [
    (1.0, 0.5, 0.6, True),
    (1.0, 0.5, 0.4, True),
    (1.0, 0.5, 1.0, False),
    (1.0, 0.5, 1.1, False),
    (1.0, 0.5, 1.0 - 1e-6, False),  # less than the floor's share of what was promised
    (1.0, 1.0, 0.5, False),
    (1.0, 1.2, 0.5, False),
    (1.0, 0.5, NAN, False),
    (1.0, NAN, 0.5, False),
    (NAN, 0.5, 0.5, False),
    (1.0, 0.5, INF, False),
    (1e-300, 0.0, 5e-301, True),
]


@pytest.mark.parametrize(("before", "predicted", "after", "expected"), VERDICTS)
def test_acceptance(before, predicted, after, expected):
    assert Trust().accepts(before, predicted, after) is expected


def test_ratio():
    assert ratio(1.0, 0.5, 0.75) == 0.5
    assert math.isnan(ratio(1.0, 1.0, 0.5))
    assert math.isnan(ratio(1.0, NAN, 0.5))


def bowl(best):
    return lambda t: (math.log(t) - math.log(best)) ** 2 - 3


# what the loss does over positions → (function, start, loss before, positions allowed for the answer)
SEARCHES = {
    "climbs": (bowl(100.0), 1.0, 50.0, (50, 300)),
    "descends": (bowl(0.01), 1.0, 30.0, (0.004, 0.03)),
    "stays": (bowl(1.0), 1.0, 0.0, (0.9, 1.1)),
    "shrinks to the valley": (lambda t: -t if t < 1e-9 else 5.0, 1.0, 0.0, (1e-20, 1e-9)),
    "NaN above": (lambda t: bowl(0.1)(t) if t < 1 else NAN, 64.0, 30.0, (0.05, 0.3)),
    "infinite above": (lambda t: bowl(0.1)(t) if t < 1 else INF, 64.0, 30.0, (0.05, 0.3)),
    "−∞ beyond is no answer to trust": (lambda t: -t, 1.0, 0.0, (1.0, INF)),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_search(name):
    f, start, before, (low, high) = SEARCHES[name]
    calls = []

    def counted(t):
        calls.append(t)
        return f(t)

    best = search(counted, start, before, 4.0, 24)
    assert low <= best.position <= high
    assert best.loss == f(best.position) < before
    assert best.tried == len(calls) <= 24
    assert best.loss == min(v for v in map(f, calls) if v == v)


@pytest.mark.parametrize("value", [NAN, INF])
def test_search_without_any_finite_loss(value):
    best = search(lambda t: value, 1.0, 1.0, 4.0, 10)
    assert best.loss == INF
    assert best.tried == 10


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_search_keeps_its_limit(limit):
    assert search(lambda t: -t, 1.0, 0.0, 4.0, limit).tried == limit
    assert search(lambda t: t, 1.0, 0.0, 4.0, limit).tried == limit


def test_search_does_not_pass_the_top():
    calls = []
    best = search(lambda t: calls.append(t) or -t, 0.3, 0.0, 4.0, 24, top=1.0)
    assert best.position == 1.0
    assert max(calls) == 1.0
    assert search(lambda t: -t, 9.0, 0.0, 4.0, 24, top=1.0).position == 1.0


OUT_OF_RANGE = {
    "horizon": (0.0, -5.0, NAN, INF, "far"),
    "floor": (-0.1, NAN, INF, None),
    "growth": (1.0, 0.5, -4.0, NAN, INF),
    "limit": (0, -1, 2.5, True, None),
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_a_policy_out_of_range_is_refused_by_name(name):
    for value in OUT_OF_RANGE[name]:
        with pytest.raises(HorizonError if name == "horizon" else InputError, match=f"{name}="):
            Trust(**{name: value})
    assert Trust(3.0, 0.1, 2.0, 5) == Trust(horizon=3.0, floor=0.1, growth=2.0, limit=5)


def test_outcomes_are_sentences():
    assert [o for o in Outcome if o.accepted] == [Outcome.ACCEPTED, Outcome.CLIMBED]
    assert all(o.value.endswith(".") and len(o.value) > 20 for o in Outcome)
