"""Rehearsals: nothing is asked of the network, and what they say is what the loop does."""

from __future__ import annotations

import pytest
import torch

import jumpstart as js
from jumpstart.errors import InputError
from jumpstart.skipping.rehearsal import Rehearsal, rehearse
from jumpstart.training.past import NUMBERS, Past, held

from .loops import Loop


def linear(rate=0.1, seed=0):
    """Least squares, whose gradients secants know once they span what moves."""
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 1).double()
    x, held_out = torch.randn(20, 3).double(), torch.randn(5, 3).double()
    return Loop(model, x, torch.randn(20, 1).double(), held_out, optimizer=torch.optim.SGD(model.parameters(), rate))


def passed(loop, count):
    """The points of so many steps, as a wrapper notes them, and the gradient of the next one there."""
    objective, past = loop.objective(), Past()
    for taken in range(1, count + 1):
        theta = objective.theta()
        past.add(theta, objective.evaluate(theta)[1], taken)
        if taken < count:
            loop.take(1)
    return objective, past


def test_it_is_where_the_loop_will_be_and_asks_nothing(monkeypatch):
    loop = linear()
    objective, past = passed(loop, 8)
    before = objective.theta()
    skipper = js.Skipper(objective, loop.optimizer)
    rehearse(skipper, past.points, 8)  # the first look at a model asks whether it is one function
    monkeypatch.setattr(type(objective), "evaluate", lambda *_: pytest.fail("it asked"))
    monkeypatch.setattr(type(objective), "outputs", lambda *_: pytest.fail("it asked"))
    found = rehearse(skipper, past.points, 8)
    monkeypatch.undo()
    assert found is not None
    assert torch.equal(objective.theta(), before)
    for step in range(9, 9 + found.count):
        loop.take(1)
        ended = found.reached(objective.theta(), step)
        assert ended == (step == 8 + found.count)
    assert max(found.errors.values()) < 1e-6
    assert found.window(0.2) >= found.count
    assert 0 < found.cost < skipper.skip(found.count).cost


def test_steps_that_go_elsewhere_are_found_out():
    loop = linear()
    objective, past = passed(loop, 8)
    found = rehearse(js.Skipper(objective, loop.optimizer), past.points, 8)
    loop.optimizer.param_groups[0]["lr"] *= 3
    for step in range(9, 9 + found.count):
        loop.take(1)
        found.reached(objective.theta(), step)
    assert found.window(0.2) == 0


def test_steps_that_were_left_out_are_no_rehearsal():
    loop = linear()
    objective, past = passed(loop, 8)
    found = rehearse(js.Skipper(objective, loop.optimizer), past.points, 8)
    assert found.reached(objective.theta(), 8 + found.count + 1)
    assert found.window(0.2) == 0


def test_a_state_goes_on_and_others_are_refused():
    loop = linear()
    objective, past = passed(loop, 5)
    found = rehearse(js.Skipper(objective, loop.optimizer), past.points, 5)
    again = Rehearsal.read(found.state_dict())
    for step in range(6, 6 + found.count):
        loop.take(1)
        assert again.reached(objective.theta(), step) == found.reached(objective.theta(), step)
    assert again.errors == found.errors
    for wrong in (None, {}, {**found.state_dict(), "start": 1}, {**found.state_dict(), "marks": {1: torch.ones(2)}}):
        with pytest.raises(InputError, match="no rehearsal"):
            Rehearsal.read(wrong)
    for wrong in (None, {"taken": 1}, {"taken": 1, "points": [[torch.ones(2), torch.ones(3)]]}):
        with pytest.raises(InputError, match="no past"):
            Past.read(wrong)


def test_a_past_is_of_steps_in_a_row():
    past, point = Past(), torch.ones(2)
    for taken in (1, 2, 3):
        past.add(point * taken, point, taken)
    assert past.tells
    past.add(point, point, 5)
    assert len(past.points) == 1
    past.add(point, point * float("nan"), 6)
    assert past.points == []
    past.add(torch.ones(3), torch.ones(3), 7)
    past.add(torch.ones(4), torch.ones(4), 8)
    assert len(past.points) == 1
    assert held(NUMBERS) == 1  # a large model's past is its last step
