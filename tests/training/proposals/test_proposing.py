"""Judged, paid for, booked: what happens around a proposal, and several actions beside each other."""

import copy
import io
import itertools
import logging
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import jumpstart as js
from jumpstart.errors import InputError
from jumpstart.linearization.metric import Metric
from jumpstart.training.proposals import PROPOSALS, Average, Line, Proposal
from jumpstart.training.proposals.judgement import judged
from jumpstart.training.proposals.moments import following
from jumpstart.training.proposals.proposal import Candidate
from jumpstart.training.proposals.proposing import OVERDRAFT, Proposing
from jumpstart.utils.cost import Ledger

from ...problems import randn

ALL = ("line", "trajectory", "average", "head")


class Told(Proposal):
    """Proposes what it is told, whatever it is worth."""

    name = "told"

    def __init__(self, every=1, step=0.0, raises=None, pretends=None):
        super().__init__(every)
        self.step, self.raises, self.pretends = step, raises, pretends

    def cost(self):
        return 1 / 3

    def propose(self, here):
        if self.raises is not None:
            torch.rand(3)
            raise self.raises
        gradient = here.objective.gradient(here.theta)[1]
        displacement = -self.step * gradient
        loss = here.value(here.theta + displacement) if self.pretends is None else here.loss - self.pretends
        return [Candidate(displacement, loss, "as told")]


def problem(seed=0, rows=60):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    x = randn(seed, rows, 4)
    return model, x, torch.sin(x.sum(1, keepdim=True))


def wrapped(actions, kind=torch.optim.SGD, rate=0.01, seed=0, **options):
    model, x, y = problem(seed)
    momentum = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    inner = kind(model.parameters(), rate, **momentum)
    return js.JumpOptimizer(inner, js.supervised(model, x, y), actions=actions, **options), model, x, y


def run(optimizer, model, x, y, steps, rows=None):
    generator = torch.Generator().manual_seed(5)
    losses = []
    for _ in range(steps):
        batch = slice(None) if rows is None else torch.randint(len(x), (rows,), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x[batch]), y[batch])
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    return losses


# ---- whether it is worth it --------------------------------------------------------------------------------------


def test_where_it_pays_the_run_is_ahead_at_equal_work():
    """Slow steps: what lines and heads take off pays for them, twice over."""
    optimizer, *loop = wrapped(ALL, rate=1e-3)
    ahead = run(optimizer, *loop, 200)
    results = optimizer.results
    spent = sum(result.cost for result in results)
    bare, *other = wrapped(ALL, rate=1e-3)
    behind = run(bare.inner, *other, 200 + math.ceil(spent))
    assert sum(result.accepted for result in results) >= 3
    assert ahead[-1] < 0.5 * behind[-1]
    for result in results:
        assert result.accepted == (result.change < 0 and result.outcome.name == "MOVED")


def test_a_loop_where_nothing_pays_costs_at_most_five_percent():
    """Counted: every candidate is worse, at every step that is due, of four actions."""
    model, x, y = problem()
    objective = js.supervised(model, x, y)
    made = [Told(every=1, step=-1.0) for _ in range(4)]
    for k, proposal in enumerate(made):
        proposal.name = f"told{k}"
    optimizer = js.JumpOptimizer(torch.optim.SGD(model.parameters(), 0.01), objective, actions=made)
    for steps in (100, 400):
        run(optimizer, model, x, y, steps)
        spent = sum(result.cost for result in optimizer.results)
        assert optimizer.jumps >= 3 and not any(result.accepted for result in optimizer.results)
        assert spent <= max(OVERDRAFT, 0.05 * optimizer.taken)
    waits = [action.pace.wait for action in optimizer.action.actions]
    assert min(waits) > 20


def test_a_last_try_in_a_row_waits_twice_as_long():
    optimizer, *loop = wrapped([Told(step=-1.0)], budget=1.0)
    steps = []
    optimizer._jump_hooks = (lambda result: steps.append(optimizer.taken),)
    run(optimizer, *loop, 80)
    assert [b - a for a, b in itertools.pairwise(steps)] == [2, 4, 8, 16, 32]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_where_no_samples_are_better_five_percent_of_proposals_are_taken(kind):
    """300 proposals of no effect in the mean, judged on 48 samples: within 3.3 standard errors of 1/20."""
    model = nn.Linear(1, 1, bias=False).double()
    generator, accepted, trials = torch.Generator().manual_seed(0), 0, 300
    theta, ledger = torch.zeros(1).double(), Ledger()
    for _ in range(trials):
        x = torch.ones(48, 1).double()
        y = torch.randn(48, 1, generator=generator, dtype=torch.float64)
        # (u − y)² at u = ±s, both as good in the mean: the change is −4 s y.
        judge = js.supervised(model, x, y)
        found = judged(judge, (theta - 0.5, theta + 0.5, theta), 1, Metric(), False, 1.0, ledger)
        accepted += found.outcome.accepted
    assert abs(accepted / trials - 0.05) <= 3.3 * (0.05 * 0.95 / trials) ** 0.5
    assert ledger.forwards == 3 * trials


def test_a_proposal_that_is_fitted_to_its_own_samples_is_found_out():
    """What looks much better on its own samples and is nothing on others: taken as seldom as noise."""
    model, x, y = problem(rows=400)
    data = js.from_loader(model, DataLoader(TensorDataset(x, y), 20), "mse", samples=20)
    optimizer = js.JumpOptimizer(
        torch.optim.SGD(model.parameters(), 0.01), data, actions=[Told(step=-0.3, pretends=1.0)], budget=1.0
    )
    run(optimizer, model, x, y, 60, rows=20)
    assert optimizer.jumps >= 3
    assert {result.outcome.name for result in optimizer.results} == {"NOT_BEYOND_NOISE"}
    assert all(result.proposed < result.before and result.samples == 20 for result in optimizer.results)


def test_other_samples_judge_and_their_passes_are_counted():
    model, x, y = problem(rows=400)
    data = js.from_loader(model, DataLoader(TensorDataset(x, y), 20), "mse", samples=60)
    optimizer = js.JumpOptimizer(torch.optim.SGD(model.parameters(), 1e-3), data, actions=["line"], budget=1.0)
    run(optimizer, model, x, y, 60, rows=20)
    accepted = [result for result in optimizer.results if result.accepted]
    assert accepted and all(result.samples == 60 and result.error > 0 for result in accepted)
    for result in accepted:  # drawing, three times as many rows as a step's
        assert result.cost == pytest.approx(3 * (result.gradient_evaluations + result.dense_work + 2))


def test_decay_that_would_take_it_back_is_seen():
    model = nn.Linear(1, 1, bias=False).double()
    judge = js.supervised(model, torch.ones(4, 1).double(), torch.full((4, 1), 2.0).double())
    theta, target = torch.zeros(1).double(), torch.ones(1).double()
    for decay, outcome in ((0.0, "MOVED"), (100.0, "DECAYED")):
        found = judged(judge, (theta, target, theta), 1, Metric(decay=decay), True, 1.0, Ledger())
        assert found.outcome.name == outcome
        assert (found.change, found.error) == (-3.0, 0.0)


# ---- what becomes of the optimizer ------------------------------------------------------------------------------


@pytest.mark.parametrize(("momentum", "kept"), [(0.01, "keep"), (50.0, "reset")])
def test_moments_are_kept_unless_they_would_undo_it(momentum, kept):
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    objective = js.supervised(model, torch.ones(3, 1).double(), torch.ones(3, 1).double())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    optimizer.state[model.weight]["momentum_buffer"] = torch.full((1, 1), momentum, dtype=torch.float64)
    theta, target = torch.zeros(1).double(), torch.ones(1).double()
    follow, policy = following(optimizer, objective, theta, target, (1.0, 0.0), Ledger())
    assert policy == kept
    objective.move(theta, target, follow)
    held = float(optimizer.state[model.weight]["momentum_buffer"])
    assert held == (momentum if kept == "keep" else 0.0)
    assert float(model.weight.detach()) == 1.0


def test_batchnorms_statistics_follow():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    x, y = randn(0, 50, 4), randn(1, 50, 1)
    objective = js.supervised(model, x, y)
    theta = objective.theta()
    target = theta + 0.5
    follow, _ = following(torch.optim.SGD(model.parameters(), 0.1), objective, theta, target, (1.0, 0.5), Ledger())
    objective.move(theta, target, follow)
    mean = model[0](x).mean(0)
    assert float((model[1].running_mean - mean).detach().abs().max()) < 0.2 * float(mean.detach().abs().max())


# ---- the loop stays its owner's ----------------------------------------------------------------------------------


def test_trouble_is_a_warning_and_the_run_is_the_bare_one():
    ends = []
    for wrap in (False, True):
        optimizer, *loop = wrapped([Told(raises=KeyError("lost"))])
        torch.manual_seed(2)
        if wrap:
            with pytest.warns(RuntimeWarning, match="KeyError: 'lost'"):
                run(optimizer, *loop, 20)
            assert {result.outcome.name for result in optimizer.results} == {"UNTRIED"}
        else:
            run(optimizer.inner, *loop, 20)
        ends.append([*loop[0].state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_what_is_only_looked_at_changes_nothing():
    ends = []
    for actions in (None, [Average(every=10, interval=2, adopt="never")]):
        optimizer, *loop = wrapped(actions or ["line"], rate=0.1)
        run(optimizer if actions else optimizer.inner, *loop, 60, rows=5)
        ends.append(list(loop[0].state_dict().values()))
    assert optimizer.results
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("at", [13, 37])
def test_a_resumed_run_is_the_same_to_the_bit(kind, at):
    def start():
        model, x, y = problem(rows=400)
        data = js.from_loader(model, DataLoader(TensorDataset(x, y), 20), "mse", samples=60)
        inner = kind(model.parameters(), 1e-3)
        actions = ("skip", Line(every=3), "trajectory", Average(every=8, interval=2, adopt="always"), "head")
        return js.JumpOptimizer(inner, data, actions=actions, budget=0.9), model, x, y

    def go(optimizer, model, x, y, steps):
        for step in range(optimizer.taken, steps):
            rows = torch.arange(20 * step, 20 * step + 20) % 400
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x[rows]), y[rows]).backward()
            optimizer.step()

    optimizer, *loop = start()
    go(optimizer, *loop, at)
    file = io.BytesIO()
    torch.save((optimizer.state_dict(), loop[0].state_dict()), file)
    go(optimizer, *loop, 90)
    file.seek(0)
    state, weights = torch.load(file)
    other, *again = start()
    again[0].load_state_dict(weights)
    other.load_state_dict(state)
    go(other, *again, 90)
    assert sum(result.accepted for result in optimizer.results) >= 1
    assert len({name for name, pace in ((a.name, a.pace) for a in optimizer.action.actions) if pace.tries}) >= 3
    assert all(
        torch.equal(a, b) for a, b in zip(loop[0].state_dict().values(), again[0].state_dict().values(), strict=True)
    )
    assert str(other.action.state_dict()) == str(optimizer.action.state_dict())


@pytest.mark.parametrize("name", PROPOSALS)
def test_strange_states_are_refused_and_change_nothing(name):
    optimizer, *loop = wrapped([name])
    run(optimizer, *loop, 15)
    good = optimizer.state_dict()
    for key, value in (("mark", 3), ("pace", {}), ("proposal", {"kept": 1}), ("taken", -1), ("copies", None)):
        bad = copy.deepcopy(good)
        bad["jumpstart"]["action"][key] = value
        with pytest.raises((InputError, TypeError)):
            optimizer.load_state_dict(bad)
    with pytest.raises(InputError, match="skips"):
        js.JumpOptimizer(
            torch.optim.SGD(loop[0].parameters(), 0.1, momentum=0.9), js.supervised(*loop)
        ).load_state_dict(good)
    optimizer.load_state_dict(good)


# ---- several -----------------------------------------------------------------------------------------------------


def test_at_most_one_moves_the_weights_after_a_step_and_the_others_are_told():
    names = ("a", "b")
    made = [Told(every=5, step=0.05) for _ in names]
    for proposal, name in zip(made, names, strict=True):
        proposal.name = name
    optimizer, *loop = wrapped(made, rate=1e-4, budget=1.0)
    seen = []
    optimizer._jump_hooks = (lambda result: seen.append((optimizer.taken, result)),)
    run(optimizer, *loop, 60)
    accepted = [step for step, result in seen if result.accepted]
    assert len(accepted) >= 8 and len(set(accepted)) == len(accepted)
    other = optimizer.action.actions[1]
    assert other._mark[0] == accepted[-1]
    assert optimizer.jumps == len(seen) == sum(action.count for action in optimizer.action.actions)


def test_what_has_paid_comes_first_and_what_is_cheap_before_what_is_dear():
    optimizer, *_ = wrapped(("head", "trajectory", "line"))
    several = optimizer.action
    prices = {action.name: action.price for action in several.actions}
    assert [action.name for action in several.ordered()] == sorted(prices, key=prices.__getitem__)
    several.actions[1].pace.learn(9.0, 5)
    several.actions[0].pace.learn(-50.0, 5)
    assert [action.name for action in several.ordered()] == ["trajectory", "line", "head"]


def test_skips_and_proposals_go_together():
    optimizer, model, x, y = wrapped(("skip", *ALL))
    for _ in optimizer.steps(300):
        run(optimizer, model, x, y, 1)
    skip = optimizer.action.actions[0]
    assert optimizer.effective_steps == 300 and optimizer.skipped == skip.skipped > 100


def test_every_try_is_a_line_of_the_log(caplog):
    optimizer, *loop = wrapped(("line", "head"), rate=1e-3)
    with caplog.at_level(logging.INFO, logger="jumpstart"):
        run(optimizer, *loop, 40)
    lines = [line for line in (r.getMessage() for r in caplog.records) if " after step " in line]
    assert len(lines) == optimizer.jumps > 1
    assert {line.split(" after ")[0] for line in lines} <= {"line", "head"}
    assert any("updates further: loss -" in line and "worth" in line for line in lines)


REFUSED = {
    "no action": ({"actions": ("skip", "fly")}, "give some of"),
    "none at all": ({"actions": ()}, "give some of"),
    "a word": ({"actions": "line"}, "give some of"),
    "twice": ({"actions": ("line", Line(every=3))}, "each once"),
    "beside a search": ({"actions": ("line",), "search": True}, "a search is alone"),
    "skip= without skips": ({"actions": ("line",), "skip": 20}, "skip=20 does nothing"),
    "an option of skips": ({"actions": ("line",), "tolerance": 0.1}, "'tolerance'"),
    "no rows": ({"actions": ("line",), "batch": 0}, "batch=0"),
    "no share": ({"actions": ("line",), "budget": 2}, "budget=2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused(name):
    options, words = REFUSED[name]
    model, x, y = problem()
    with pytest.raises(InputError, match=words):
        js.JumpOptimizer(torch.optim.SGD(model.parameters(), 0.1), js.supervised(model, x, y), **options)


def test_parameters_added_later_start_afresh():
    optimizer, model, x, y = wrapped(("line", "average"), rate=1e-3)
    run(optimizer, model, x, y, 8)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    assert all(isinstance(action, Proposing) and action._mark is None for action in optimizer.action.actions)
    run(optimizer, model, x, y, 30)
    assert optimizer.jumps
