"""The wrapper: one optimizer outside, jumps inside, state that survives."""

import copy
import io

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.errors import InputError, NondeterministicError

LOSS = nn.functional.mse_loss


def problem(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(3, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(dropout), nn.Linear(12, 1)
    ).double()
    x = torch.randn(20, 3).double()
    return model, x, torch.sin(x.sum(1, keepdim=True))


def train(model, x, y, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        LOSS(model(x), y).backward()
        optimizer.step()


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
    optimizer = js.JumpOptimizer(make(model.parameters()), objective, at=4)
    train(model, x, y, optimizer, 12)
    assert optimizer.steps == 12
    assert len(optimizer.results) == 3
    for result in optimizer.results:
        assert result.accepted, result
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
    optimizer = js.JumpOptimizer(
        make(wrapped.parameters()), objective, at=2, horizon=1e12, geodesic=False, chord_steps=0, basis="dense"
    )
    train(wrapped, x, y, optimizer, 6)
    assert [result.accepted for result in optimizer.results] == [False] * 3
    for a, b in zip(plain.state_dict().values(), wrapped.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_first_moments_are_rebuilt_from_the_gradient_and_second_kept():
    model, x, y = problem()
    objective = js.supervised(model, x, y, training=False)
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    train(model, x, y, adam, 5)
    second = [adam.state[p]["exp_avg_sq"].clone() for p in model.parameters()]
    optimizer = js.JumpOptimizer(adam, objective, at=None)
    result = optimizer.jump()
    assert result.accepted
    gradient = objective.space.unflatten(objective.gradient(objective.theta())[1])
    for (name, p), v in zip(model.named_parameters(), second, strict=True):
        state = adam.state[p]
        torch.testing.assert_close(state["exp_avg"] / (1 - 0.9 ** float(state["step"])), gradient[name])
        assert torch.equal(state["exp_avg_sq"], v)


@pytest.mark.parametrize(("after", "zero"), [("reset", True), ("keep", False)])
def test_other_policies_for_first_moments(after, zero):
    model, x, y = problem()
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    train(model, x, y, adam, 5)
    old = [adam.state[p]["exp_avg"].clone() for p in model.parameters()]
    js.JumpOptimizer(adam, js.supervised(model, x, y, training=False), at=None, after=after).jump()
    for p, m in zip(model.parameters(), old, strict=True):
        assert torch.equal(adam.state[p]["exp_avg"], torch.zeros_like(m) if zero else m)


def test_state_dict_round_trip_goes_on_to_the_bit():
    model, x, y = problem()
    optimizer = js.JumpOptimizer(
        torch.optim.AdamW(model.parameters(), 1e-2), js.supervised(model, x, y, training=False), at=3
    )
    train(model, x, y, optimizer, 4)
    saved, weights = io.BytesIO(), copy.deepcopy(model.state_dict())
    torch.save(optimizer.state_dict(), saved)
    train(model, x, y, optimizer, 5)
    other, _, _ = problem()
    other.load_state_dict(weights)
    again = js.JumpOptimizer(
        torch.optim.AdamW(other.parameters(), 1e-2), js.supervised(other, x, y, training=False), at=3
    )
    saved.seek(0)
    again.load_state_dict(torch.load(saved, weights_only=True))
    train(other, x, y, again, 5)
    assert again.steps == optimizer.steps
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_schedulers_hooks_and_closures_see_one_optimizer():
    model, x, y = problem()
    inner = torch.optim.SGD(model.parameters(), 0.1)
    optimizer = js.JumpOptimizer(inner, js.supervised(model, x, y, training=False), at={2})
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

    optimizer = js.JumpOptimizer(torch.optim.AdamW(model.parameters(), 1e-2), objective, at=lambda step: step > 2)
    train(model, x, y, optimizer, 5)
    assert len(asked) == 3


def test_a_diverged_run_is_left_to_its_owner():
    model, x, y = problem()
    optimizer = js.JumpOptimizer(
        torch.optim.AdamW(model.parameters()), js.supervised(model, x, y, training=False), at=None
    )
    train(model, x, y, optimizer, 1)
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    with pytest.warns(RuntimeWarning, match="NaN"):
        assert optimizer.jump() is None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"at": 0}, "at=0"),
        ({"after": "burn"}, "burn"),
        ({"at": ["a"]}, "step numbers"),
        ({"objective": 3}, "js.Objective"),
    ],
)
def test_bad_arguments_are_quoted(kwargs, message):
    model, x, y = problem()
    arguments = {"objective": js.supervised(model, x, y, training=False), **kwargs}
    with pytest.raises(InputError, match=message):
        js.JumpOptimizer(torch.optim.SGD(model.parameters(), 0.1), **arguments)


def test_a_bare_optimizers_state_is_loaded_with_a_warning_and_anything_else_refused():
    model, x, y = problem()
    inner = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    optimizer = js.JumpOptimizer(inner, js.supervised(model, x, y, training=False), at=2)
    train(model, x, y, optimizer, 4)
    state = copy.deepcopy(inner.state_dict())
    with pytest.warns(UserWarning, match="afresh"):
        optimizer.load_state_dict(state)
    assert optimizer.steps == 0
    for wrong in ({}, {"state": {}}, {**state, "jumpstart": {"steps": -1, "moving": None, "memory": None}}):
        with pytest.raises(InputError, match="state"):
            optimizer.load_state_dict(wrong)


def test_distributed_checkpoint_saves_and_loads_the_wrapper():
    """torch.distributed.checkpoint's own way through an optimizer's state, in one process."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    def wrapped():
        model, x, y = problem()
        adam = torch.optim.Adam(model.parameters(), 1e-2)
        return model, x, y, js.JumpOptimizer(adam, js.supervised(model, x, y, training=False), at=3)

    model, x, y, optimizer = wrapped()
    train(model, x, y, optimizer, 5)
    found = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    other, _, _, again = wrapped()
    other.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match="afresh"):
        set_optimizer_state_dict(other, again, found)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        for key, value in optimizer.state[p].items():
            assert torch.equal(torch.as_tensor(again.state[q][key]), torch.as_tensor(value)), key
    assert {"state", "param_groups"} <= set(optimizer.state_dict())


def test_it_can_be_pickled_and_goes_on_to_the_bit(tmp_path):
    model, x, y = problem()
    optimizer = js.JumpOptimizer(
        torch.optim.AdamW(model.parameters(), 1e-2), js.supervised(model, x, y, training=False), at={3, 5}
    )
    train(model, x, y, optimizer, 3)
    torch.save((model, optimizer), tmp_path / "pair.pt")
    train(model, x, y, optimizer, 3)
    twin, again = torch.load(tmp_path / "pair.pt", weights_only=False)
    train(twin, x, y, again, 3)
    assert again.steps == optimizer.steps == 6
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_cannot_be_jumped_along_is_found_when_the_wrapper_is_made():
    model, x, y = problem(dropout=0.3)
    adam = torch.optim.Adam(model.parameters())
    with pytest.raises(NondeterministicError, match="training=False"):
        js.JumpOptimizer(adam, js.supervised(model, x, y))
    with pytest.raises(InputError, match="does not hold"):
        js.JumpOptimizer(torch.optim.SGD(model[0].parameters(), 0.1), js.supervised(model, x, y, training=False))
    with pytest.raises(InputError, match="metric has 3 entries"):
        js.JumpOptimizer(adam, js.supervised(model, x, y, training=False), metric=torch.ones(3))
    with pytest.raises(InputError, match="depth=0"):
        js.JumpOptimizer(adam, js.supervised(model, x, y, training=False), depth=0)


@pytest.mark.parametrize("frozen", [0, 4])
def test_groups_without_a_rate_are_left_out_wherever_they_stand(frozen):
    model, x, y = problem()
    groups = [{"params": model[k].parameters(), "lr": 0.0 if k == frozen else 0.05} for k in (0, 1, 4)]
    before = [p.detach().clone() for p in model[frozen].parameters()]
    optimizer = js.JumpOptimizer(torch.optim.SGD(groups, lr=0.05), js.supervised(model, x, y, training=False), at=2)
    train(model, x, y, optimizer, 4)
    assert all(result.accepted for result in optimizer.results) and len(optimizer.results) == 2
    for p, old in zip(model[frozen].parameters(), before, strict=True):
        assert torch.equal(p, old)


def test_moments_of_layers_that_did_not_move_are_kept():
    model, x, y = problem()
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    train(model, x, y, adam, 5)
    old = adam.state[model[0].weight]["exp_avg"].clone()
    optimizer = js.JumpOptimizer(adam, js.supervised(model, x, y, training=False), at=None, after="reset", params=["4"])
    assert optimizer.jump().accepted
    assert torch.equal(adam.state[model[0].weight]["exp_avg"], old) and bool((old != 0).any())
    assert bool((adam.state[model[4].weight]["exp_avg"] == 0).all())


def test_it_can_be_copied_and_keeps_no_displacements():
    model, x, y = problem()
    optimizer = js.JumpOptimizer(
        torch.optim.SGD(model.parameters(), 0.1), js.supervised(model, x, y, training=False), at=1
    )
    train(model, x, y, optimizer, 2)
    twin = copy.deepcopy(optimizer)
    assert twin.steps == 2
    assert all(result.directions is None for result in optimizer.results)


def test_an_optimizer_without_a_metric_jumps_in_the_plain_one_and_says_so():
    model, x, y = problem()
    optimizer = js.JumpOptimizer(
        torch.optim.Adamax(model.parameters()), js.supervised(model, x, y, training=False), at=2
    )
    with pytest.warns(RuntimeWarning, match="plain metric"):
        train(model, x, y, optimizer, 2)
    assert len(optimizer.results) == 1


def test_misspelt_options_are_refused_at_once():
    model, x, y = problem()
    with pytest.raises(InputError, match="secondorder"):
        js.JumpOptimizer(
            torch.optim.SGD(model.parameters(), 0.1), js.supervised(model, x, y, training=False), secondorder=1
        )
