"""Along a line: the minimum of a quadratic by its closed form, and what is walked back."""

import math

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.errors import InputError
from jumpstart.training.proposals import Line
from jumpstart.training.proposals.line import FURTHEST, vertex

from ...problems import randn
from .here import here


def linear(seed=0):
    model = nn.Linear(6, 1).double()
    x, y = randn(seed, 40, 6), randn(seed + 1, 40, 1)
    return js.supervised(model, x, y), x, y


@pytest.mark.parametrize("length", [0.01, 0.3, 5.0, 200.0])
@pytest.mark.parametrize("seed", range(3))
def test_on_a_quadratic_it_is_the_minimum_along_the_line(seed, length):
    objective, x, y = linear(seed)
    theta = objective.theta()
    walked = length * randn(seed + 7, len(theta)) / len(theta) ** 0.5
    (best,) = Line().propose(here(objective, [theta - walked]))
    design = torch.cat([x, torch.ones(40, 1, dtype=x.dtype)], 1)
    image, miss = design @ walked, (y.reshape(-1) - design @ theta)
    t = float(image @ miss / (image @ image))  # the least-squares multiple
    assert torch.allclose(best.displacement, t * walked, rtol=1e-6, atol=1e-9)
    assert best.what.endswith("further" if t > 0 else "back")
    assert best.loss == pytest.approx(objective.value(theta + t * walked), rel=1e-9)


def test_its_passes_are_counted_and_few():
    objective, *_ = linear()
    theta = objective.theta()
    asked = here(objective, [theta + 0.1 * objective.gradient(theta)[1]])
    Line().propose(asked)
    assert 3 <= asked.ledger.forwards <= 12
    assert asked.ledger.gradient_evaluations == pytest.approx(asked.ledger.forwards / 3)


def test_what_falls_without_end_is_followed_so_far_and_no_further():
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    objective = js.supervised(model, torch.ones(2, 1).double(), torch.ones(2, 1).double(), "logistic")
    (best,) = Line().propose(here(objective, [objective.theta() - 1e-3]))
    assert float(best.displacement) / 1e-3 >= FURTHEST


def test_where_nothing_moved_there_is_no_line():
    objective, *_ = linear()
    assert Line().propose(here(objective, [objective.theta()])) == []


def test_it_keeps_the_weights_that_a_due_step_needs():
    line, theta = Line(every=6, span=4), torch.zeros(1)
    for step in range(1, 30):
        if line.wants(step, lambda at: at % 6 == 0):
            line.keep(step, {0: theta + step})
        assert line.ready(step) == (step % 6 == 0)
        if line.ready(step):
            assert float(line.seen()[0][0]) == step - 4
        assert len(line.kept) <= 4


def test_parabolas():
    assert vertex((0, 1, 2), (1.0, 0.0, 1.0)) == 1
    assert vertex((-1, 0, 1), (4.0, 1.0, 0.0)) == 1
    assert vertex((0, 1, 2), (0.0, 1.0, 0.0)) is None
    assert vertex((0, 1, 2), (1.0, math.nan, 0.0)) is None


@pytest.mark.parametrize("options", [{"every": 0}, {"every": True}, {"span": 1.5}])
def test_what_is_no_count_is_refused(options):
    with pytest.raises(InputError, match=f"{next(iter(options))}="):
        Line(**options)
