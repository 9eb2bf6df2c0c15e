"""The wrapper: one optimizer outside, jumps inside, state that survives."""

import copy
import dataclasses
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import jumpstart as js
from jumpstart.errors import InputError, MetricError, NondeterministicError, ShapeError
from jumpstart.linearization.metric import Metric
from jumpstart.optim import adapters

from ..optim.schedule_free import ScheduleFreeAdamW
from .loops import LOSS, train


def problem(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(3, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(dropout), nn.Linear(12, 1)
    ).double()
    x = torch.randn(20, 3).double()
    return model, x, torch.sin(x.sum(1, keepdim=True))


OPTIMIZERS = [
    lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    lambda p: torch.optim.Adam(p, 1e-2),
    lambda p: torch.optim.AdamW(p, 1e-2),
    lambda p: torch.optim.RMSprop(p, 1e-2),
    lambda p: torch.optim.Adagrad(p, 1e-2),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_jumps_happen_when_due_and_lower_the_loss(make):
    model, x, y = problem()
    objective = js.supervised(model, x, y, training=False)
    optimizer = js.JumpOptimizer(make(model.parameters()), objective, at=4, search=True)
    train(model, x, y, optimizer, 12)
    assert optimizer.taken == 12
    accepted = [result for result in optimizer.results if result.accepted]
    assert len(accepted) >= 2 or make is OPTIMIZERS[3]  # BatchNorm's statistics would undo RMSprop's second
    for result in accepted:
        assert result.training_actual < result.training_before
        assert result.actual < result.before


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_without_a_jump_it_is_the_wrapped_optimizer_to_the_bit(make):
    plain, x, y = problem(dropout=0.3)
    wrapped = copy.deepcopy(plain)
    objective = js.supervised(wrapped, x, y, training=False)
    torch.manual_seed(7)
    train(plain, x, y, make(plain.parameters()), 6)
    torch.manual_seed(7)
    # A horizon far too long is rejected: the run must go on as if nothing had been tried.
    optimizer = js.JumpOptimizer(make(wrapped.parameters()), objective, at=2, horizon=1e12, basis="dense", search=True)
    train(wrapped, x, y, optimizer, 6)
    assert [result.accepted for result in optimizer.results] == [False] * 2, "at 2 and 6: one that failed doubles"
    for a, b in zip(plain.state_dict().values(), wrapped.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_first_moments_are_those_of_one_step_along_the_gradient_and_second_kept():
    model, x, y = problem()
    objective = js.supervised(model, x, y, training=False)
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    train(model, x, y, adam, 5)
    second = [adam.state[p]["exp_avg_sq"].clone() for p in model.parameters()]
    optimizer = js.JumpOptimizer(adam, objective, at=(), after="rebuild", search=True)
    result = optimizer.jump()
    assert result.accepted
    gradients = torch.autograd.grad(LOSS(model(x), y), list(model.parameters()))  # as the loop takes them
    for p, v, gradient in zip(model.parameters(), second, gradients, strict=True):
        state = adam.state[p]
        torch.testing.assert_close(state["exp_avg"], 0.1 * gradient, rtol=1e-9, atol=1e-12)
        assert torch.equal(state["exp_avg_sq"], v)


@pytest.mark.parametrize(("after", "zero"), [("reset", True), ("keep", False)])
def test_other_policies_for_first_moments(after, zero):
    model, x, y = problem()
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    train(model, x, y, adam, 5)
    old = [adam.state[p]["exp_avg"].clone() for p in model.parameters()]
    js.JumpOptimizer(adam, js.supervised(model, x, y, training=False), at=(), after=after, search=True).jump()
    for p, m in zip(model.parameters(), old, strict=True):
        assert torch.equal(adam.state[p]["exp_avg"], torch.zeros_like(m) if zero else m)


def test_state_dict_round_trip_goes_on_to_the_bit():
    model, x, y = problem()
    optimizer = js.JumpOptimizer(
        torch.optim.AdamW(model.parameters(), 1e-2), js.supervised(model, x, y, training=False), at=3, search=True
    )
    train(model, x, y, optimizer, 4)
    saved, weights = io.BytesIO(), copy.deepcopy(model.state_dict())
    torch.save(optimizer.state_dict(), saved)
    train(model, x, y, optimizer, 5)
    other, _, _ = problem()
    other.load_state_dict(weights)
    again = js.JumpOptimizer(
        torch.optim.AdamW(other.parameters(), 1e-2), js.supervised(other, x, y, training=False), at=3, search=True
    )
    saved.seek(0)
    again.load_state_dict(torch.load(saved, weights_only=True))
    train(other, x, y, again, 5)
    assert again.taken == optimizer.taken
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_schedulers_hooks_and_closures_see_one_optimizer():
    model, x, y = problem()
    inner = torch.optim.SGD(model.parameters(), 0.1)
    optimizer = js.JumpOptimizer(inner, js.supervised(model, x, y, training=False), at={2}, search=True)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    def closure():
        optimizer.zero_grad()
        loss = LOSS(model(x), y)
        loss.backward()
        return loss

    calls = []
    optimizer.register_step_post_hook(lambda *a: calls.append(1))
    for _ in range(3):
        assert optimizer.step(closure) > 0
        scheduler.step()
    assert inner.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**3)
    assert len(optimizer.results) == 1
    assert len(calls) == 3
    assert isinstance(optimizer, torch.optim.Optimizer)


def test_a_fresh_objective_for_every_jump():
    model, x, y = problem()
    asked = []

    def objective():
        asked.append(len(asked))
        rows = torch.randperm(20, generator=torch.Generator().manual_seed(len(asked)))[:10]
        return js.supervised(model, x[rows], y[rows], training=False)

    optimizer = js.JumpOptimizer(
        torch.optim.Adam(model.parameters(), 1e-2), objective, at=lambda step: step > 2, search=True
    )
    train(model, x, y, optimizer, 3)
    before = objective()
    loss = before.value(before.theta())
    asked.pop()  # the jump is given the same rows
    assert optimizer.jump().before == pytest.approx(loss, rel=1e-12)
    train(model, x, y, optimizer, 2)
    assert len(asked) == 4


def test_a_diverged_run_is_left_to_its_owner():
    model, x, y = problem()
    optimizer = js.JumpOptimizer(
        torch.optim.AdamW(model.parameters()), js.supervised(model, x, y, training=False), at=(), search=True
    )
    train(model, x, y, optimizer, 1)
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    with pytest.warns(RuntimeWarning, match="NaN"):
        result = optimizer.jump()
    assert (result.outcome.name, result.accepted) == ("SKIPPED", False)
    assert "NaN" in str(result)


def test_the_state_has_the_standard_layout():
    model, x, y = problem()
    inner = torch.optim.Adam(model.parameters(), 1e-2)
    optimizer = js.JumpOptimizer(inner, js.supervised(model, x, y, training=False), at=2, search=True)
    train(model, x, y, optimizer, 3)
    state = optimizer.state_dict()
    assert set(state) == {"state", "param_groups", "jumpstart"}
    assert str({key: state[key] for key in ("state", "param_groups")}) == str(inner.state_dict())
    assert state["jumpstart"]["taken"] == 3


def test_a_bare_optimizers_state_is_loaded_with_a_warning():
    model, x, y = problem()
    objective = js.supervised(model, x, y, training=False)
    inner = torch.optim.Adam(model.parameters(), 1e-2)
    train(model, x, y, inner, 3)
    saved = copy.deepcopy(inner.state_dict())
    optimizer = js.JumpOptimizer(torch.optim.Adam(model.parameters()), objective, at=2, search=True)
    train(model, x, y, optimizer, 4)
    with pytest.warns(UserWarning, match="afresh"):
        optimizer.load_state_dict(saved)
    assert str(optimizer.inner.state_dict()) == str(saved)
    assert optimizer.taken == 0
    assert optimizer.state_dict()["jumpstart"]["action"]["memory"] is None


OTHER_STATES = {
    "no optimizer's": (lambda state: {"optimizer": state}, "param_groups"),
    "half of one": (lambda state: {"state": state["state"]}, "param_groups"),
    "another program's entry": (lambda state: {**state, "jumpstart": 3}, "jumpstart"),
    "an entry too few": (lambda state: {**state, "jumpstart": {"taken": 3}}, "jumpstart"),
    "a strange count": (lambda state: own(state, taken=-1), "-1 steps"),
    "another network's": (lambda state: action(state, moving=["head.weight"]), "head.weight"),
    "a strange memory": (lambda state: action(state, memory={"speed": 3}), "speed"),
}


def own(state, **changes):
    return {**state, "jumpstart": {**state["jumpstart"], **changes}}


def action(state, **changes):
    return own(state, action={**state["jumpstart"]["action"], **changes})


@pytest.mark.parametrize("name", OTHER_STATES)
def test_other_states_are_refused_before_anything_changes(name):
    model, x, y = problem()
    optimizer = js.JumpOptimizer(
        torch.optim.Adam(model.parameters()), js.supervised(model, x, y, training=False), at=2, search=True
    )
    train(model, x, y, optimizer, 3)
    before = str(optimizer.state_dict())
    other = copy.deepcopy(optimizer.state_dict())
    other["param_groups"][0]["lr"] = 5.0
    change, message = OTHER_STATES[name]
    with pytest.raises(InputError, match=message):
        optimizer.load_state_dict(change(other))
    assert str(optimizer.state_dict()) == before


def test_torch_distributed_checkpoint_saves_and_restores_it_to_the_bit():
    model, x, y = problem()
    optimizer = js.JumpOptimizer(
        torch.optim.Adam(model.parameters(), 1e-2), js.supervised(model, x, y, training=False), at=3, search=True
    )
    train(model, x, y, optimizer, 4)
    saved, weights = copy.deepcopy(get_optimizer_state_dict(model, optimizer)), copy.deepcopy(model.state_dict())
    assert set(saved) == {"state", "param_groups"}
    other, _, _ = problem(seed=1)
    other.load_state_dict(weights)
    again = js.JumpOptimizer(
        torch.optim.Adam(other.parameters(), 1e-2), js.supervised(other, x, y, training=False), at=3, search=True
    )
    with pytest.warns(UserWarning, match="afresh"):
        set_optimizer_state_dict(other, again, saved)
    assert (again.taken, again.results) == (0, []), "making the state took a step that was counted"
    assert str(again.inner.state_dict()) == str(optimizer.inner.state_dict())
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        for key, value in optimizer.state[a].items():
            assert torch.equal(again.state[b][key], value)
    train(model, x, y, optimizer, 1)
    train(other, x, y, again, 1)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("make", [OPTIMIZERS[0], lambda p: torch.optim.SGD(p, 0.05)])
def test_asking_for_the_state_neither_counts_nor_jumps(make):
    """torch.distributed.checkpoint takes a step with rates and gradients 0 where it finds no state."""
    model, x, y = problem()
    optimizer = js.JumpOptimizer(
        make(model.parameters()), js.supervised(model, x, y, training=False), at=1, search=True
    )
    weights = copy.deepcopy(model.state_dict())
    get_optimizer_state_dict(model, optimizer)
    assert (optimizer.taken, optimizer.results) == (0, [])
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), model.state_dict().values(), strict=True))
    train(model, x, y, optimizer, 1)
    assert (optimizer.taken, len(optimizer.results)) == (1, 1)


COPIES = {
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
    "deepcopy": copy.deepcopy,
    "torch.save": lambda optimizer: saved_and_loaded(optimizer),
}


def saved_and_loaded(optimizer):
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("at", [2, {2, 5, 6}, None])
@pytest.mark.parametrize("name", COPIES)
def test_a_copy_goes_on_to_the_bit(name, at):
    model, x, y = problem()
    optimizer = js.JumpOptimizer(
        torch.optim.AdamW(model.parameters(), 1e-2), js.supervised(model, x, y, training=False), at=at, search=True
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)  # replaces ``step`` on the instance
    optimizer.register_step_post_hook(lambda *a: None)  # which no pickle takes; torch's own leave hooks behind
    train(model, x, y, optimizer, 3)
    scheduler.step()
    twin = COPIES[name](optimizer)
    other = twin.action.objective.model
    assert other is not model
    train(model, x, y, optimizer, 4)
    train(other, x, y, twin, 4)
    assert twin.taken == 7
    assert [r.actual for r in twin.results] == [r.actual for r in optimizer.results]
    assert (len(twin.results) > 1) == (at is not None)
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def tensors_in(thing):
    if isinstance(thing, torch.Tensor):
        yield thing
    elif dataclasses.is_dataclass(thing):
        for field in dataclasses.fields(thing):
            yield from tensors_in(getattr(thing, field.name))
    elif isinstance(thing, dict | list | tuple):
        for entry in thing.values() if isinstance(thing, dict) else thing:
            yield from tensors_in(entry)


def test_results_hold_no_tensors():
    model, x, y = problem()
    optimizer = js.JumpOptimizer(
        torch.optim.SGD(model.parameters(), 0.1), js.supervised(model, x, y, training=False), at=1, search=True
    )
    train(model, x, y, optimizer, 2)
    model.eval()  # BatchNorm in the loop's mode would shift its statistics at the next step, and undo that jump
    returned = optimizer.jump()
    assert list(tensors_in(returned)), "the displacement is there for whoever asked for the jump"
    assert len(optimizer.results) == 3
    assert list(tensors_in(optimizer.results)) == []


# ---- groups that rest ------------------------------------------------------------------------------------------------


def layered(order, rates, kind=torch.optim.SGD):
    """A network of three layers, each in a group with its own rate, in the order given."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.randn(20, 3).double()
    inner = kind([{"params": model[k].parameters(), "lr": rates[k]} for k in order], lr=0.05)
    return model, x, torch.sin(x.sum(1, keepdim=True)), inner


@pytest.mark.parametrize("zero", [0.0, torch.tensor(0.0)])
@pytest.mark.parametrize("order", [(0, 2, 4), (2, 0, 4), (2, 4, 0)])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_groups_with_rate_zero_do_not_jump_wherever_they_stand(order, zero, kind):
    model, x, y, inner = layered(order, {0: zero, 2: 0.05, 4: 0.1}, kind)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = js.JumpOptimizer(inner, js.supervised(model, x, y), at=2, search=True)
    train(model, x, y, optimizer, 4)
    assert [result.accepted for result in optimizer.results] == [True, True]
    moved = [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
    assert moved == [False] * 2 + [True] * 4


METRICS = {
    "vector": lambda d, objective: d,
    "by name": lambda d, objective: objective.space.unflatten(d),
    "Metric": lambda d, objective: Metric(d.sqrt()),
}


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_given_for_all_is_taken_for_those_that_move(name):
    model, x, y, inner = layered((0, 2, 4), {0: 0.05, 2: 0.0, 4: 0.05})
    twin = copy.deepcopy(model)
    objective = js.supervised(model, x, y)
    d = torch.linspace(1, 2, objective.space.size, dtype=torch.float64)
    given = METRICS[name](d, objective)
    js.JumpOptimizer(inner, objective, at=(), metric=given, horizon=0.3, search=True).jump()
    part = js.supervised(twin, x, y, params=["0", "4"])
    js.jump(part, metric={n: objective.space.unflatten(d)[n] for n in part.space.names}, horizon=0.3)
    assert not torch.equal(model[0].weight, layered((0,), {0: 0.1})[0][0].weight)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_layers_that_are_thawed_or_frozen_on_the_way():
    model, x, y, inner = layered((0, 2, 4), {0: 0.0, 2: 0.0, 4: 0.05})
    optimizer = js.JumpOptimizer(inner, js.supervised(model, x, y), at=(), horizon=0.05, search=True)
    seen = []

    def jump():
        before = [p.detach().clone() for p in model.parameters()]
        assert optimizer.jump().accepted
        seen.append([not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)][::2])

    jump()
    jump()
    inner.param_groups[1]["lr"] = 0.05
    jump()
    inner.param_groups[0]["lr"] = 0.05
    jump()
    model[2].requires_grad_(False)
    jump()
    assert seen == [[False, False, True]] * 2 + [[False, True, True], [True, True, True], [True, False, True]]


def test_nothing_moves_where_every_rate_is_zero():
    model, x, y, inner = layered((0, 2, 4), {0: 0.0, 2: 0.0, 4: 0.0})
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = js.JumpOptimizer(inner, js.supervised(model, x, y), at=1, search=True)
    with pytest.warns(RuntimeWarning, match="learning rate 0"):
        train(model, x, y, optimizer, 1)
    assert optimizer.taken == 1  # gradients were there: a step of a warm-up
    assert [result.outcome.name for result in optimizer.results] == ["SKIPPED"]
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_a_resting_group_survives_saving():
    """The memory is of the parameters that moved; it comes back with the rates that say which."""
    model, x, y, inner = layered((0, 2, 4), {0: 0.0, 2: 0.05, 4: 0.05})
    optimizer = js.JumpOptimizer(inner, js.supervised(model, x, y), at=2, search=True)
    train(model, x, y, optimizer, 3)
    state = copy.deepcopy(optimizer.state_dict())
    assert state["jumpstart"]["action"]["moving"] == ["2.weight", "2.bias", "4.weight", "4.bias"]
    assert any(state["jumpstart"]["action"]["memory"].values())
    other, _, _, inner = layered((0, 2, 4), {0: 0.05, 2: 0.05, 4: 0.05})
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    again = js.JumpOptimizer(inner, js.supervised(other, x, y), at=2, search=True)
    again.load_state_dict(state)
    assert str(again.state_dict()) == str(state)
    train(model, x, y, optimizer, 3)
    train(other, x, y, again, 3)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


# ---- what the wrapped optimizer is told ------------------------------------------------------------------------------


@pytest.mark.parametrize("after", ["reset", "rebuild"])
def test_only_moments_of_parameters_that_moved_are_touched(after):
    model, x, y, inner = layered((0, 2, 4), {0: 0.01, 2: 0.01, 4: 0.01}, torch.optim.Adam)
    train(model, x, y, inner, 5)
    old = {p: inner.state[p]["exp_avg"].clone() for p in model.parameters()}
    objective = js.supervised(model, x, y)
    optimizer = js.JumpOptimizer(inner, objective, at=(), after=after, params=["2"], search=True)
    assert optimizer.jump().accepted
    gradient = objective.space.unflatten(objective.gradient(objective.theta())[1])
    for name, p in model.named_parameters():
        moment = inner.state[p]["exp_avg"]
        if name.startswith("2"):
            expected = 0.1 * gradient[name] if after == "rebuild" else torch.zeros_like(p)
            torch.testing.assert_close(moment, expected, rtol=1e-12, atol=0)
        else:
            assert torch.equal(moment, old[p])


def test_climbing_the_negative_is_descending():
    """maximize=True with −Φ in the loop, to the bit: metric, decay and rebuilt moments."""
    kinds = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}, {"lr": 0.01, "weight_decay": 0.01}
    for kind, options in zip((torch.optim.SGD, torch.optim.Adam), kinds, strict=True):
        ends = []
        for sign in (1, -1):
            model, x, y = problem()
            inner = kind(model.parameters(), **options, maximize=sign < 0)
            optimizer = js.JumpOptimizer(inner, js.supervised(model, x, y, training=False), at=3, search=True)
            for _ in range(7):
                optimizer.zero_grad()
                (sign * LOSS(model(x), y)).backward()
                optimizer.step()
            assert any(result.accepted for result in optimizer.results)
            ends.append([p.detach() for p in model.parameters()])
        for a, b in zip(*ends, strict=True):
            assert torch.equal(a, b)


def schedule_free():
    """The result of a jump after five steps, the loss of the average then, and the losses after the next six steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 1)).double()
    x = torch.randn(20, 3).double()
    y = torch.sin(x.sum(1, keepdim=True))
    inner = ScheduleFreeAdamW(model.parameters(), lr=1e-2)
    optimizer = js.JumpOptimizer(inner, js.supervised(model, x, y), at={5}, search=True)
    optimizer.train()
    train(model, x, y, optimizer, 5)
    (result,) = optimizer.results
    assert result.actual < 0.5 * result.before
    assert LOSS(model(x), y).item() == pytest.approx(result.actual)
    optimizer.eval()
    average = LOSS(model(x), y).item()
    optimizer.train()
    after = []
    for _ in range(6):
        train(model, x, y, optimizer, 1)
        after.append(LOSS(model(x), y).item())
    return result, average, after


def test_schedule_free_does_not_undo_a_jump():
    result, average, after = schedule_free()
    assert average < 1.05 * result.actual
    assert after == sorted(after, reverse=True)
    assert after[0] < result.actual


def test_schedule_free_would_undo_it_if_it_were_not_told(monkeypatch):
    """The test above can fail."""
    monkeypatch.setattr(adapters, "carry", lambda optimizer, moved: None)
    result, _, after = schedule_free()
    assert after == sorted(after)
    assert after[0] > 1.05 * result.actual


def test_another_optimizers_metric_is_no_matter_of_falling_back():
    """The plain metric stands in for the wrapped optimizer's own alone; what was asked for is not replaced."""
    model, x, y = problem()
    inner, other = torch.optim.SGD(model.parameters(), 0.1), torch.optim.Adam(model.parameters())
    optimizer = js.JumpOptimizer(inner, js.supervised(model, x, y, training=False), at=(), metric=other, search=True)
    with pytest.raises(MetricError, match="Adam has no state"):
        optimizer.jump()
    train(model, x, y, other, 3)
    assert optimizer.jump().accepted


def test_only_optimizers_with_modes_have_them():
    model, x, y = problem()
    optimizer = js.JumpOptimizer(torch.optim.SGD(model.parameters(), 0.1), js.supervised(model, x, y), search=True)
    assert not hasattr(optimizer, "train")
    assert not hasattr(optimizer, "eval")
    assert not hasattr(optimizer, "nonsense")


# ---- what is found at the door ---------------------------------------------------------------------------------------


def test_dropout_is_found_when_it_is_made_and_draws_no_random_numbers():
    model, x, y = problem(dropout=0.5)
    state = torch.get_rng_state()
    with pytest.raises(NondeterministicError, match="3 in train mode"):
        js.JumpOptimizer(torch.optim.SGD(model.parameters(), 0.1), js.supervised(model, x, y), search=True)
    js.JumpOptimizer(torch.optim.SGD(model.parameters(), 0.1), js.supervised(model, x, y, training=False), search=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_optimizer_of_other_parameters_is_found_when_it_is_made():
    model, x, y = problem()
    objective = js.supervised(model, x, y, training=False)
    inner = torch.optim.SGD(model[0].parameters(), 0.1)
    for metric in ("optimizer", None):
        with pytest.raises(InputError, match=r"SGD does not hold .*4\.weight"):
            js.JumpOptimizer(inner, objective, metric=metric, search=True)
    assert js.JumpOptimizer(inner, objective, params=["0"], at=(), search=True).jump().accepted
    with pytest.raises(InputError, match="SGD does not hold"):
        js.JumpOptimizer(inner, lambda: objective, at=(), search=True).jump()


DOORS = {
    "metric too short": ({"metric": torch.ones(3)}, ShapeError, "3 entries"),
    "metric of another name": ({"metric": "adam"}, InputError, "adam"),
    "metric without some names": ({"metric": {"0.weight": torch.ones(12, 3)}}, InputError, "no entry"),
    "misspelt option": ({"horizn": 1.0}, InputError, "horizn"),
    "an option that is not kept here": ({"nonmonotone": True}, InputError, "nonmonotone"),
    "trust of its own": ({"course": None}, InputError, "course"),
    "no such parameter": ({"params": ["9"]}, InputError, "'9'"),
    "period": ({"at": 0}, InputError, "at=0"),
    "a truth": ({"at": True}, InputError, "at=True"),
    "a fraction": ({"at": 2.5}, InputError, "at=2.5"),
    "names": ({"at": ["a"]}, InputError, "step numbers"),
    "steps before the first": ({"at": {0, 3}}, InputError, "'0'"),
    "policy": ({"after": "burn"}, InputError, "burn"),
    "no objective": ({"objective": 3}, InputError, "js.Objective"),
    "no optimizer": ({"optimizer": 3}, InputError, "torch optimizer"),
}


@pytest.mark.parametrize("name", DOORS)
def test_bad_arguments_are_quoted(name):
    model, x, y = problem()
    changes, error, message = DOORS[name]
    arguments = {
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "objective": js.supervised(model, x, y, training=False),
        **changes,
    }
    with pytest.raises(error, match=message):
        js.JumpOptimizer(**{"search": True, **arguments})


def test_it_is_not_wrapped_twice():
    model, x, y = problem()
    objective = js.supervised(model, x, y, training=False)
    once = js.JumpOptimizer(torch.optim.SGD(model.parameters(), 0.1), objective, search=True)
    with pytest.raises(InputError, match="inner"):
        js.JumpOptimizer(once, objective, search=True)


def test_a_function_that_returns_no_objective():
    model, x, y = problem()
    optimizer = js.JumpOptimizer(torch.optim.SGD(model.parameters(), 0.1), lambda: (x, y), at=(), search=True)
    with pytest.raises(InputError, match="tuple"):
        optimizer.jump()


@pytest.mark.parametrize("case", ["gradient", "minibatch", "second moments"])
def test_a_loop_that_meets_nan_or_infinity_is_left_to_its_owner(case):
    """Wherever it is noticed: building the objective, reading the weights, or reading the optimizer's state."""
    model, x, y = problem()
    inner = torch.optim.RMSprop(model.parameters(), 1e-3)
    data = x.clone()
    optimizer = js.JumpOptimizer(inner, lambda: js.supervised(model, data, y, training=False), at=2, search=True)
    train(model, x, y, optimizer, 3)  # the function is asked at 2 and 3: its data are the same
    assert [result.accepted for result in optimizer.results] == [True]
    if case == "gradient":
        with torch.no_grad():
            model[0].weight[0, 0] = math.nan
    elif case == "minibatch":
        data[0, 0] = math.nan
    else:
        inner.state[model[0].weight]["square_avg"].fill_(math.inf)
    with pytest.warns(RuntimeWarning, match="not tried after step 4"):
        train(model, x, y, optimizer, 1)
    assert optimizer.taken == 4
    assert [result.outcome.name for result in optimizer.results] == ["ACCEPTED", "SKIPPED"]
    assert optimizer.action.back_off.failures == 1


def test_an_optimizer_without_a_metric_jumps_in_the_plain_one_and_says_so():
    model, x, y = problem()
    optimizer = js.JumpOptimizer(
        torch.optim.Adamax(model.parameters()), js.supervised(model, x, y, training=False), at=2, search=True
    )
    with pytest.warns(RuntimeWarning, match="plain metric"):
        train(model, x, y, optimizer, 2)
    assert len(optimizer.results) == 1


def test_values_of_options_are_checked_when_it_is_made_for_functions_too():
    model, _, _ = problem()
    with pytest.raises(InputError, match="depth=0"):
        js.JumpOptimizer(torch.optim.SGD(model.parameters(), 0.1), lambda: None, depth=0, search=True)
