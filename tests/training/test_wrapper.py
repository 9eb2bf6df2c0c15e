"""The wrapper alone: which of its two ways, its loop of effective steps, hooks, and trouble that stays outside."""

import copy
import io
import logging
import warnings

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.errors import InputError
from jumpstart.training.actions import KEPT
from jumpstart.training.jump_optimizer import STUCK, UNMOVED
from jumpstart.training.searching import PERIOD, Searching
from jumpstart.training.skipping import Skipping

from .loops import LOSS, train
from .toys import Credit


def problem(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1)).double()
    x = torch.randn(20, 3).double()
    return model, x, torch.sin(x.sum(1, keepdim=True))


def wrapped(action=None, kind=torch.optim.Adam, **options):
    model, x, y = problem()
    inner = kind(model.parameters(), 1e-2)
    options = {"search": True, "at": (), **options}
    optimizer = js.JumpOptimizer(inner, js.supervised(model, x, y, training=False), **options)
    if action is not None:
        optimizer.action = action(optimizer.inner)
    return optimizer, model, x, y


# ---- two ways --------------------------------------------------------------------------------------------------------


def test_it_skips_unless_a_search_is_asked_for():
    model, x, y = problem()
    objective = js.supervised(model, x, y, training=False)

    def action(**options):
        return js.JumpOptimizer(torch.optim.SGD(model.parameters(), 0.1), objective, **options).action

    assert isinstance(action(), Skipping)
    assert isinstance(action(search=True), Searching)
    assert action(search="scale").jumper.settings.search == "scale"
    assert action(search=True).jumper.settings.search is None
    due = [step for step in range(1, 101) if action(search=True)._due(step)]
    assert due == [PERIOD, 2 * PERIOD]


ASTRAY = {
    "a search's, by one that skips": ({"after": "reset"}, "after= is for search=True: give search=True"),
    "of jumps, by one that skips": ({"basis": "dense", "depth": 3}, "basis=, depth= is for search=True"),
    "skipping's, by a search": ({"search": True, "tolerance": 0.1}, "tolerance= is for skipping: leave search= out"),
    "both ways": ({"search": True, "skip": 20}, "skip=20 is for skipping"),
    "both ways, and a strange number": ({"search": "scale", "skip": True}, "skip=True is for skipping"),
    "of neither": ({"speed": 3}, "speed"),
    "no search": ({"search": "fast"}, "search='fast'"),
    "none": ({"search": None}, "search=None"),
    "a number": ({"search": 1}, "search=1"),
    "a hook that cannot be called": ({"on_jump": 3}, "on_jump=3"),
    "one among hooks": ({"on_jump": [print, "log"]}, "on_jump='log'"),
}


@pytest.mark.parametrize("name", ASTRAY)
def test_options_of_the_other_way_are_refused_by_name(name):
    model, x, y = problem()
    options, message = ASTRAY[name]
    with pytest.raises(InputError, match=message):
        js.JumpOptimizer(
            torch.optim.SGD(model.parameters(), 0.1), js.supervised(model, x, y, training=False), **options
        )


@pytest.mark.parametrize("search", [False, True])
def test_a_state_of_the_other_way_is_refused_and_changes_nothing(search):
    (one, *loop), (other, *_) = wrapped(search=search, at=None), wrapped(search=not search, at=None)
    train(*loop, one, 3)
    before, state = str(one.state_dict()), other.state_dict()
    state["param_groups"][0]["lr"] = 5.0
    words = "skips .* searches" if search else "searches .* skips"
    with pytest.raises(InputError, match=words):
        one.load_state_dict(state)
    assert str(one.state_dict()) == before
    assert one.taken == 3


# ---- the loop of effective steps -------------------------------------------------------------------------------------


def step(optimizer, model, x, y):
    train(model, x, y, optimizer, 1)


def test_a_loop_runs_until_taken_and_skipped_are_enough_and_no_jump_passes_its_end():
    optimizer, *loop = wrapped(Credit)
    seen = []
    for k in optimizer.steps(10):
        seen.append(k)
        step(optimizer, *loop)
    assert seen == [0, 4, 8]
    assert optimizer.action.limits == [9, 5, 1]
    assert (optimizer.taken, optimizer.skipped, optimizer.effective_steps) == (3, 7, 10)
    assert list(optimizer.steps(10)) == []
    step(optimizer, *loop)
    assert optimizer.action.limits[-1] is None, "after the loop nobody knows"


def test_the_end_is_forgotten_with_a_loop_that_is_left():
    optimizer, *loop = wrapped(Credit)
    for _ in optimizer.steps(100):
        step(optimizer, *loop)
        break
    step(optimizer, *loop)
    run = optimizer.steps(100)
    next(run)
    with pytest.raises(ZeroDivisionError):
        run.throw(ZeroDivisionError())
    step(optimizer, *loop)
    assert optimizer.action.limits == [99, None, None]


def test_a_copy_made_inside_the_loop_is_in_no_loop():
    optimizer, model, x, y = wrapped(Credit)
    for _ in optimizer.steps(6):
        step(optimizer, model, x, y)
        twin = copy.deepcopy(optimizer)
        twin.step()
        assert twin.action.limits[-1] is None


def test_a_resumed_run_goes_on_where_it_was():
    optimizer, *loop = wrapped(Credit)
    for k in optimizer.steps(20):
        step(optimizer, *loop)
        if k == 4:
            break
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again, *loop = wrapped(Credit)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert (again.taken, again.skipped) == (2, 6)
    seen = []
    for k in again.steps(20):
        seen.append(k)
        step(again, *loop)
    assert seen == [8, 12, 16]


def test_accumulation_meets_the_same_number_several_times():
    optimizer, model, x, y = wrapped(lambda inner: Credit(inner, ahead=1))
    seen = []
    for micro, k in enumerate(optimizer.steps(6)):
        seen.append(k)
        (LOSS(model(x), y) / 3).backward()
        if micro % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
    assert seen == [0, 0, 0, 2, 2, 2, 4, 4, 4]


def test_a_body_that_takes_no_step_is_told_and_ends():
    optimizer, *_ = wrapped()
    run = optimizer.steps(5)
    for _ in range(UNMOVED):
        next(run)
    with pytest.warns(RuntimeWarning, match=f"{UNMOVED} iterations"):
        next(run)
    for _ in range(STUCK - UNMOVED - 1):
        next(run)
    with pytest.raises(InputError, match=f"{STUCK} iterations"):
        next(run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer, model, x, y = wrapped()
        LOSS(model(x), y).backward()
        for k, _ in enumerate(optimizer.steps(3)):  # long accumulation is none
            if k % (UNMOVED - 1) == UNMOVED - 2:
                optimizer.step()


@pytest.mark.parametrize("total", [-1, 2.0, True, "many", None])
def test_a_total_that_is_no_count_is_refused_at_once(total):
    optimizer, *_ = wrapped()
    with pytest.raises(InputError, match=r"steps\(total="):
        optimizer.steps(total)


# ---- trouble stays outside -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["before_step", "after_step"])
def test_what_an_action_raises_is_a_warning_and_the_run_is_the_bare_one(where):
    runs = []
    for jumps in (False, True):
        optimizer, model, x, y = wrapped(lambda inner: Credit(inner, ahead=0, raises=(where,)))
        torch.manual_seed(3)
        if jumps:
            with pytest.warns(RuntimeWarning, match=f"not tried after step .*KeyError: 'in {where}'"):
                train(model, x, y, optimizer, 3)
            assert [result.outcome.name for result in optimizer.results] == ["SKIPPED"] * 3
            assert optimizer.jumps == optimizer.taken == 3
        else:
            train(model, x, y, optimizer.inner, 3)
        runs.append([*model.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_an_action_sees_weights_and_gradients_before_the_step():
    """Of plain SGD the step is known: θ − lr·g."""
    optimizer, model, x, y = wrapped(Credit, torch.optim.SGD)
    train(model, x, y, optimizer, 1)
    (start,) = optimizer.action.starts
    for (weight, gradient), p in zip(start, model.parameters(), strict=True):
        torch.testing.assert_close(p, weight - 1e-2 * gradient, rtol=1e-12, atol=1e-15)


def test_results_of_a_long_run_are_bounded():
    optimizer, *loop = wrapped(Credit)
    step(optimizer, *loop)
    for _ in range(KEPT + 5):
        optimizer.step()
    assert (len(optimizer.results), optimizer.jumps) == (KEPT, KEPT + 6)


def test_parameters_added_later_reach_the_action():
    optimizer, *_ = wrapped(Credit)
    more = nn.Parameter(torch.zeros(2))
    optimizer.add_param_group({"params": [more]})
    assert optimizer.inner.param_groups[-1]["params"] == [more]
    assert optimizer.action.groups == 2


def test_a_layer_that_is_thawed_jumps_with_the_others():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.randn(20, 3).double()
    y = torch.sin(x.sum(1, keepdim=True))
    model[0].requires_grad_(False)
    inner = torch.optim.SGD(model[2].parameters(), 0.05)
    optimizer = js.JumpOptimizer(inner, js.supervised(model, x, y), at=(), search=True, horizon=0.1)
    seen = []
    for thaw in (False, True):
        if thaw:
            model[0].requires_grad_(True)
            optimizer.add_param_group({"params": list(model[0].parameters())})
        before = [p.detach().clone() for p in model.parameters()]
        assert optimizer.jump().accepted
        seen.append([not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)])
    assert seen == [[False, False, True, True], [True] * 4]


# ---- hooks and the log -----------------------------------------------------------------------------------------------


def test_every_jump_is_told_to_every_hook_and_to_the_log(caplog):
    first, second = [], []
    optimizer, *loop = wrapped(on_jump=(first.append, second.append), at=2)
    with caplog.at_level(logging.INFO, logger="jumpstart"):
        train(*loop, optimizer, 2)
        optimizer.jump()
    assert first == second == list(optimizer.results)
    assert len(first) == 2
    assert [record.name for record in caplog.records] == ["jumpstart"] * 2
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"search after step 2 (2 effective): {result}" for result in first]
    assert all(result.directions is None for result in first), "who collects results collects no displacements"


def test_a_hook_that_fails_is_told_and_left():
    def fails(result):
        raise OSError("disk full")

    seen = []
    optimizer, *loop = wrapped(Credit, on_jump=[fails, seen.append])
    with pytest.warns(RuntimeWarning, match="on_jump failed after step 1, .*disk full"):
        train(*loop, optimizer, 1)
    assert len(seen) == optimizer.taken == 1


def test_a_skipped_jump_is_told_too():
    seen = []
    optimizer, *loop = wrapped(lambda inner: Credit(inner, raises=("after_step",)), on_jump=seen.append)
    with pytest.warns(RuntimeWarning, match="not tried after step 1"):
        train(*loop, optimizer, 1)
    assert [result.outcome.name for result in seen] == ["SKIPPED"]


def test_hooks_stay_behind_where_an_optimizer_is_copied():
    seen = []
    optimizer, model, x, y = wrapped(Credit, on_jump=[seen.append, lambda result: None])  # no pickle takes that
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    for twin in (copy.deepcopy(optimizer), torch.load(file, weights_only=False)):
        twin.step()
        assert twin.taken == 1
    assert seen == []
    train(model, x, y, optimizer, 1)
    assert len(seen) == 1
