"""Whatever goes wrong in a scheduled jump, the loop goes on as if there had been none, and is told why."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.errors import InputError
from jumpstart.optim import adapters
from jumpstart.training import actions, next_step, reach
from jumpstart.training.data import GATHERED, Stream
from jumpstart.training.schedule import BackOff

from .loops import LOSS, train


def problem(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1)).to(dtype)
    x = torch.randn(20, 3).to(dtype)
    return model, x, torch.sin(x.sum(1, keepdim=True))


class Trouble:
    """A function for an objective that fails, having drawn random numbers first."""

    def __init__(self, build, error):
        self.build, self.error, self.calls = build, error, 0

    def __call__(self):
        self.calls += 1
        torch.rand(3)
        raise self.error


ERRORS = {
    "ours": InputError("what was given"),
    "torch's": RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    "the user's": KeyError("shard 7"),
    "memory": MemoryError("no room"),
    "memory of the device": torch.OutOfMemoryError("CUDA out of memory"),
    "arithmetic": ZeroDivisionError("division by zero"),
}


def snapshot(model, inner):
    state = [torch.get_rng_state(), *model.state_dict().values(), *(p.grad for p in model.parameters())]
    state += [v for s in inner.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    return [t.clone() for t in state]


@pytest.mark.parametrize("name", ERRORS)
def test_trouble_of_any_kind_is_a_warning_and_a_skipped_jump(name):
    model, x, y = problem()
    inner = torch.optim.AdamW(model.parameters(), 1e-2)
    optimizer = js.JumpOptimizer(inner, Trouble(None, ERRORS[name]), at=2, search=True)
    train(model, x, y, optimizer, 1)
    seen = []
    inner.register_step_post_hook(lambda *_: seen.append(snapshot(model, inner)))
    with pytest.warns(RuntimeWarning, match="not tried after step 2") as caught:
        train(model, x, y, optimizer, 1)
    cause = str(ERRORS[name].args[0])
    assert any(cause in str(w.message) for w in caught)
    (result,) = optimizer.results
    assert (result.outcome.name, result.accepted) == ("SKIPPED", False)
    assert cause in result.cause
    assert all(torch.equal(a, b) for a, b in zip(seen[-1], snapshot(model, inner), strict=True))


PLACES = {
    "the schedule": lambda patch, opt: patch.setattr(opt.action, "_due", fails),
    "the metric": lambda patch, opt: patch.setattr(reach, "metric_of", fails),
    "the linearization": lambda patch, opt: patch.setattr("jumpstart.jumping.jump.linearized", fails),
    "the search": lambda patch, opt: patch.setattr("jumpstart.jumping.jump.search_of", fails),
    "the look at the next step": lambda patch, opt: patch.setattr(next_step.Twin, "write", fails),
    "the weights' last moment": lambda patch, opt: patch.setattr(next_step.Follow, "__call__", fails),
    "the verdict": lambda patch, opt: patch.setattr(opt.action, "_pays", fails),
}


def fails(*_, **__):
    raise MemoryError("in the middle")


@pytest.mark.parametrize("place", sorted(set(PLACES) - {"the metric", "the verdict"}))
def test_wherever_it_happens_the_loop_is_the_bare_one_to_the_bit(place, monkeypatch):
    runs = []
    for jumps in (False, True):
        model, x, y = problem()
        inner = torch.optim.NAdam(model.parameters(), 1e-2)
        optimizer = inner
        if jumps:
            optimizer = js.JumpOptimizer(inner, js.supervised(model, x, y, training=False), at=2, search=True)
            PLACES[place](monkeypatch, optimizer)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(model, x, y, optimizer, 7)
        if jumps:
            assert any("in the middle" in str(w.message) for w in caught)
            assert {result.outcome.name for result in optimizer.results} == {"SKIPPED"}
        runs.append(snapshot(model, inner))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_who_stops_the_program_is_not_held_up(stop):
    model, x, y = problem()
    optimizer = js.JumpOptimizer(torch.optim.SGD(model.parameters(), 0.1), Trouble(None, stop()), at=1, search=True)
    with pytest.raises(stop):
        train(model, x, y, optimizer, 1)


def test_a_listener_that_fails_takes_everything_back(monkeypatch):
    """It is called with the weights moved and the state changed: both go back."""
    model, x, y = problem()
    inner = torch.optim.Adam(model.parameters(), 1e-2)
    optimizer = js.JumpOptimizer(inner, js.supervised(model, x, y, training=False), at=(), search=True)
    train(model, x, y, optimizer, 3)
    before = snapshot(model, inner)
    monkeypatch.setattr(adapters, "listeners", lambda optimizer: [fails])
    with pytest.raises(MemoryError):
        optimizer.jump()
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(model, inner), strict=True))


# ---- back-off --------------------------------------------------------------------------------------------------------


def tried(optimizer, model, x, y, steps):
    """The numbers of the steps that tried a jump."""
    found = []
    for _ in range(steps):
        jumps = optimizer.jumps
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train(model, x, y, optimizer, 1)
        if optimizer.jumps > jumps:
            found.append(optimizer.taken)
    return found


@pytest.mark.parametrize(("at", "expected"), [(1, [1, 3, 7, 15, 31]), (3, [3, 9, 21]), ({2, 4, 5, 30}, [2, 5])])
def test_each_failure_doubles_the_wait(at, expected):
    model, x, y = problem()
    optimizer = js.JumpOptimizer(
        torch.optim.SGD(model.parameters(), 0.1), Trouble(None, KeyError("gone")), at=at, search=True
    )
    assert tried(optimizer, model, x, y, 40) == expected


def test_a_jump_that_pays_ends_the_wait_and_the_state_carries_it():
    model, x, y = problem()
    objective = js.supervised(model, x, y, training=False)
    optimizer = js.JumpOptimizer(torch.optim.SGD(model.parameters(), 0.1), objective, at=1, search=True)
    optimizer.action.back_off.learn(False)
    optimizer.action.back_off.learn(False)
    twin, _, _ = problem()
    again = js.JumpOptimizer(
        torch.optim.SGD(twin.parameters(), 0.1), js.supervised(twin, x, y, training=False), at=1, search=True
    )
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert vars(again.action.back_off) == {"failures": 2, "waiting": 3}
    twin.eval()  # BatchNorm in the loop's mode would shift its statistics, and undo the jump
    assert tried(again, twin, x, y, 5) == [4, 5]
    assert again.action.back_off.failures == 0


def test_a_jump_that_does_less_than_a_step_does_not_pay():
    model, x, y = problem()
    optimizer = js.JumpOptimizer(
        torch.optim.SGD(model.parameters(), 0.1), js.supervised(model, x, y, training=False), search=True
    )
    optimizer.taken, optimizer.action._tried, optimizer.action._loss = 20, 10, 2.0
    result = js.JumpOptimizer.jump(optimizer)
    for before, after, pays in ((1.0, 0.89, True), (1.0, 0.91, False), (3.0, 2.9999, True)):
        optimizer.action._loss = 2.0
        known = {**vars(result), "outcome": js.Outcome.ACCEPTED, "training_before": before, "training_actual": after}
        assert optimizer.action._pays(type(result)(**known)) is pays
        assert optimizer.action._loss == after
    optimizer.action._loss = math.nan  # the first jump has nothing to be compared with
    assert optimizer.action._pays(type(result)(**known))


def test_counts_of_a_back_off_are_checked():
    for wrong in (None, {"failures": 1}, {"failures": -1, "waiting": 0}, {"failures": True, "waiting": 0}):
        with pytest.raises(InputError, match="back-off"):
            BackOff.read(wrong)


def test_results_do_not_grow_without_end(monkeypatch):
    monkeypatch.setattr(actions, "KEPT", 3)
    model, x, y = problem()
    optimizer = js.JumpOptimizer(
        torch.optim.SGD(model.parameters(), 0.0), js.supervised(model, x, y, training=False), search=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(7):
            optimizer.jump()
    assert (len(optimizer.results), optimizer.jumps) == (3, 7)


# ---- budget ----------------------------------------------------------------------------------------------------------


def separable(at=10, **options):
    """Fourteen samples, logistic, Adagrad: a flow that has no end."""
    torch.manual_seed(5)
    x = torch.randn(14, 6, dtype=torch.float64)
    y = (torch.rand(14, 1) < 0.5).double()
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)).double()
    objective = js.supervised(model, x, y, loss="logistic")
    optimizer = js.JumpOptimizer(
        torch.optim.Adagrad(model.parameters(), 0.03), objective, at=at, search=True, **options
    )
    costs, last = [], 0
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(x), y).backward()
        jumps = optimizer.jumps
        optimizer.step()
        if optimizer.jumps > jumps:
            costs.append((optimizer.results[-1].cost, optimizer.taken - last))
            last = optimizer.taken
    return optimizer, costs


@pytest.mark.parametrize("budget", [2.0, 5.0, 20.0])
def test_no_jump_costs_more_than_its_budget(budget):
    optimizer, costs = separable(budget=budget)
    assert costs
    assert all(cost <= budget * steps for cost, steps in costs)
    assert any(result.accepted for result in optimizer.results)


def test_without_a_budget_it_costs_what_it_costs():
    """The test above can fail."""
    _, costs = separable(budget=None)
    assert max(cost / steps for cost, steps in costs) > 5


def test_what_is_too_dear_is_seen_before_it_is_paid_for():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 150))
    x, y = torch.randn(40, 4), torch.randint(0, 150, (40,))  # 6,000 outputs: eigenvectors of a matrix of that size
    objective = js.supervised(model, x, y, loss="cross_entropy")
    optimizer = js.JumpOptimizer(torch.optim.SGD(model.parameters(), 0.1), objective, at=1, basis="dense", search=True)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    (result,) = optimizer.results
    assert result.outcome.name == "TOO_DEAR"
    assert result.cost <= 20.0


@pytest.mark.parametrize("budget", [0, -1.0, True, "much"])
def test_a_budget_that_is_none_is_refused(budget):
    model, x, y = problem()
    with pytest.raises(InputError, match="budget"):
        js.JumpOptimizer(
            torch.optim.SGD(model.parameters(), 0.1),
            js.supervised(model, x, y, training=False),
            budget=budget,
            search=True,
        )


# ---- what a jump must not raise --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_training_loss_falls_whatever_the_penalty_does(dtype):
    """AdamW, near a training loss of zero: the sum of loss and penalty falls by moving weights back."""
    kept = refused = 0
    for seed in range(4):
        torch.manual_seed(seed)
        x = torch.randn(16, 6)
        y = (x[:, :1] > 0).float()
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
        for p in model.parameters():
            p.data = p.data.to(dtype)
        x, y = x.to(dtype), y.to(dtype)
        objective = js.supervised(model, x, y, loss="logistic")
        optimizer = js.JumpOptimizer(torch.optim.AdamW(model.parameters(), 0.01), objective, at=(), search=True)

        def loss(model=model, x=x, y=y):
            u = model(x)
            wide = torch.float64 if u.dtype == torch.float64 else torch.float32
            return nn.functional.binary_cross_entropy_with_logits(u.to(wide), y.to(wide))

        for step in range(1, 61):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            if step % 10 == 0:
                before = loss().item()
                result = optimizer.jump()
                kept, refused = kept + result.accepted, refused + (not result.accepted)
                assert loss().item() <= before
                assert result.training_before == pytest.approx(before, rel=1e-3)  # float32 cancels in torch's formula
                assert (loss().item() < before) == result.accepted
                if result.accepted:
                    assert result.training_actual == pytest.approx(loss().item(), rel=1e-3)
                    assert result.actual < result.before  # and so did the sum
    assert kept


def test_a_sum_that_falls_is_no_reason_to_raise_the_loss():
    """Decay pulls away from a good fit: the sum falls, the loss rises. ``penalty_pays`` is for who wants the sum."""
    torch.manual_seed(0)
    x = torch.randn(12, 3).double()
    model = nn.Linear(3, 1).double()
    y = model(x).detach()
    for pays, outcome in ((False, "NO_DECREASE"), (True, "ACCEPTED")):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin.weight.mul_(0.999)
        result = js.Jumper(js.supervised(twin, x, y), weight_decay=1.0, penalty_pays=pays).jump()
        assert result.outcome.name == outcome
        rise = LOSS(twin(x), y).item() - result.training_before
        assert (rise > 1e-3) if pays else (abs(rise) < 1e-12)


# ---- data that change from call to call ------------------------------------------------------------------------------


def chosen(model, x, y, rows):
    return js.supervised(model, x[rows], y[rows], training=False)


def test_a_stream_tells_changing_data_from_those_that_stay():
    model, x, y = problem()
    same, other = Stream(), Stream()
    for k in range(GATHERED):
        assert not same.ready or k > 1
        same.add(chosen(model, x, y, slice(0, 8)))  # another objective each time, of the same numbers
        other.add(chosen(model, x, y, slice(k, k + 8)))
    assert (same.changes, same.ready) == (False, True)
    assert (other.changes, other.ready) == (True, True)
    last = chosen(model, x, y, slice(GATHERED - 1, GATHERED + 7))
    assert same.judges(chosen(model, x, y, slice(0, 8))) == []
    assert len(other.judges(last)) == GATHERED - 1


@pytest.mark.parametrize("visible", [True, False])
def test_an_objective_whose_data_were_exchanged_under_it_judges_nothing(visible):
    model, x, y = problem()
    stream, data = Stream(), {"x": x.clone()}

    def build(k):
        data["x"].copy_(x + k) if visible else data.update(x=x + k)
        if visible:
            return js.supervised(model, data["x"], y + k, training=False)
        return js.Objective(model, lambda net: net(data["x"]), js.losses.mse(y + k), training=False)

    for k in range(GATHERED):
        stream.add(build(k))
    assert stream.changes
    assert stream.judges(build(GATHERED)) == []


def minibatches(seed, steps=60, **options):
    """Training loss at the end along the current minibatch, and the wrapper."""
    torch.manual_seed(seed)
    x = torch.randn(64, 6)
    y = (torch.tanh(2 * x @ torch.randn(6, 8)) @ torch.randn(8, 3)).argmax(1)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    batch = {}
    optimizer = js.JumpOptimizer(
        torch.optim.Adam(model.parameters(), 0.01),
        lambda: js.supervised(model, batch["x"], batch["y"], loss="cross_entropy"),
        at=10,
        search=True,
        **options,
    )
    for _ in range(steps):
        rows = torch.randperm(64)[:16]
        batch.update(x=x[rows], y=y[rows])
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return nn.functional.cross_entropy(model(x), y).item(), optimizer, (model, x, y)


def test_along_minibatches_a_jump_is_judged_by_others_and_that_is_said():
    with pytest.warns(RuntimeWarning, match="change from call to call") as caught:
        _, optimizer, _ = minibatches(0)
    assert len([w for w in caught if "change from call to call" in str(w.message)]) == 1
    assert optimizer.state_dict()["jumpstart"]["action"]["pace"]["changes"] is True
    assert optimizer.jumps >= 1
    assert optimizer.action._tried >= 10 + GATHERED - 1


def test_a_judge_of_the_users_own_is_asked():
    """Held-out data of other targets: no jump lowers their loss."""
    model, x, y = problem()
    objective = js.supervised(model, x, y, training=False)
    optimizer = js.JumpOptimizer(
        torch.optim.SGD(model.parameters(), 0.1),
        objective,
        at=(),
        judge=js.supervised(model, x, -y, training=False),
        search=True,
    )
    before = copy.deepcopy(model.state_dict())
    assert optimizer.jump().outcome.name == "NO_DECREASE"
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    optimizer.action.jumper.forget()  # that jump looked at ever shorter horizons
    optimizer.action.judge = lambda: js.supervised(model, x[:10], y[:10], training=False)
    judged = [js.supervised(model, x[:10], y[:10], training=False)]
    loss = judged[0].value(judged[0].theta())
    assert optimizer.jump().accepted
    assert judged[0].value(judged[0].theta()) < loss


def test_a_judge_that_is_none_is_refused():
    model, x, y = problem()
    with pytest.raises(InputError, match="judge"):
        js.JumpOptimizer(
            torch.optim.SGD(model.parameters(), 0.1), js.supervised(model, x, y, training=False), judge=3, search=True
        )
