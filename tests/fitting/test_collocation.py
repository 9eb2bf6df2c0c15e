"""Fits on domains: points are renewed where the residual parts from the loss, and nothing is said that is not so."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import grad

import jumpstart as js
from jumpstart import errors
from jumpstart.domains import Box, Interval
from jumpstart.fitting import collocation, stages
from jumpstart.fitting.fit import Fit
from jumpstart.fitting.stages import CALM, Event
from jumpstart.fitting.state import Stage

from ..problems import fill, flat

EPSILON = 0.02  # width of a layer at 0
LINE = Interval(0.0, 1.0)
GRID = torch.linspace(0, 1, 400, dtype=torch.float64)[:, None]


def net(seed=0, width=10, inputs=1):
    layers = [nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)]
    return fill(nn.Sequential(*layers), seed)


def decay(net, x):
    """ε u′ + u = 0."""
    u, du = net(x)[0], grad(lambda z: net(z)[0])(x)[0]
    return EPSILON * du + u


def start(net, x):
    return net(x)[0] - 1


def problem(model, count=16, **keywords):
    """u = e^{−x/ε}, from so few points that hardly one is in the layer."""
    zero = torch.zeros(1, 1, dtype=torch.float64)
    return js.residual(model, js.Term(decay, LINE, 10.0, count=count, **keywords), js.Term(start, zero))


@torch.no_grad()
def error(model):
    exact = torch.exp(-GRID / EPSILON)
    return float((model(GRID) - exact).norm() / exact.norm())


def test_renewed_points_solve_the_equation_where_the_first_ones_do_not():
    adaptive, fixed = net(), net()
    found = js.fit(problem(adaptive), jumps=120)
    with pytest.warns(js.CollocationWarning, match="adaptive=False"):
        other = js.fit(problem(fixed), jumps=120, adaptive=False)
    assert error(adaptive) < 1e-2 < 0.03 < error(fixed)
    assert found.generalization < 1e-3 * other.generalization
    assert {"unseen"} <= set(found.history[4]) and "unseen" not in found.history[5]


def test_where_points_stay_their_loss_decides_and_the_other_is_told():
    model = net(4)
    run = Fit(problem(model), jumps=60, adaptive=False)
    states = list(run.steps())
    last = states[-1]
    assert torch.equal(flat(model), last.best) and last.kept is None
    assert last.best_loss == min(state.best_loss for state in states)
    unseen = problem(net(4)).unseen(0)
    looks = [state for state in states if state.jumps % collocation.LOOK == 0]
    assert [state.unseen for state in looks] == pytest.approx([unseen.value(state.theta) for state in looks], rel=1e-9)
    assert min(state.unseen for state in looks) < 0.95 * unseen.value(last.best)  # which would have chosen others
    with pytest.warns(js.CollocationWarning, match="adaptive=False"):
        found = js.fit(problem(net(4)), jumps=60, adaptive=False)
    fresh = unseen.unseen(1)  # on which neither points nor weights were chosen
    assert found.generalization == pytest.approx(fresh.value(last.best), rel=1e-6)
    assert found.loss == pytest.approx(last.best_loss, rel=1e-9)


def test_where_points_stay_a_tolerance_is_of_their_loss():
    result = js.fit(problem(net(5)), jumps=200, tolerance=1e-3, adaptive=False)
    assert result.outcome is js.FitOutcome.TOLERANCE and result.loss <= 1e-3
    assert result.history[-1]["best"] <= 1e-3 < result.history[-2]["best"]


def test_points_grow_at_every_second_renewal_and_course_and_horizon_go_on(monkeypatch):
    monkeypatch.setattr(collocation, "HOLD", math.inf)
    counts, renewals = [], 0
    for state in Fit(problem(net(2)), jumps=80).steps():
        if state.renewals > renewals:
            renewals = state.renewals
            counts.append(state.counts[0]["count"])
            assert len(state.points) == counts[-1]
            assert state.memory.horizon is not None
    assert renewals > 3
    grown = [16]
    for i in range(renewals):
        grown.append(math.ceil(grown[-1] * collocation.GROWTH) if i % 2 else grown[-1])
    assert counts == grown[1:]


@pytest.mark.parametrize(("patience", "grows"), [(10**6, False), (4, True)])
def test_before_the_loss_is_down_points_are_added_only_where_a_climb_no_longer_gains(monkeypatch, patience, grows):
    monkeypatch.setattr(collocation, "HOLD", 0.0)
    states = list(Fit(problem(net(2)), jumps=60, patience=patience).steps())
    counts = [state.counts[0]["count"] for state in states if state.counts]
    assert states[-1].renewals > 3 and min(counts) == 16 and (max(counts) > 16) is grows


@pytest.mark.parametrize(
    ("loss", "waited", "factor"), [(1.1, 0, 1.0), (0.9, 0, collocation.GROWTH), (1.1, 40, collocation.GROWTH)]
)
def test_points_are_held_until_the_loss_has_been_a_hundredth_of_the_first(monkeypatch, loss, waited, factor):
    monkeypatch.setattr(collocation, "PARTED", 0.0)  # they are renewed in any case
    fit = Fit(problem(net(2)), jumps=1)
    state = list(fit.steps())[-1]
    given = replace(state, renewals=1, best_loss=loss * collocation.HOLD * state.start, jumps=state.since + waited)
    _, other = fit.run.points.looked(given, fit.run.objective)
    assert len(other.drawn[0].points) == math.ceil(factor * 16)


@pytest.mark.parametrize(("seed", "jumps", "late"), [(2, 8, True), (2, 34, True), (3, 40, False), (2, 41, None)])
def test_the_answer_is_lowest_on_points_never_trained_on_the_last_jumps_too(seed, jumps, late):
    model = net(seed)
    fit = Fit(problem(model), jumps=jumps)
    seen = [(state.theta, state.best) for state in fit.steps()]
    unseen = problem(net(seed)).unseen(0)
    asked = [*(theta for theta, _ in seen[collocation.LOOK - 1 :: collocation.LOOK]), *seen[-1]]
    theta = min(asked, key=unseen.value)
    assert torch.equal(flat(model), theta)
    if late is not None:  # whether the looks alone would have given another
        assert torch.equal(theta, fit.run.state.answer) is not late


@pytest.mark.parametrize(("adaptive", "share"), [(None, 0.85), (False, 0.6)])
def test_points_that_move_leave_less_of_the_budget_to_landing(monkeypatch, adaptive, share):
    monkeypatch.setattr(stages, "CAUTION", 3)
    found = [state.stage for state in Fit(problem(net(2)), jumps=20, adaptive=adaptive).steps()]
    assert found.index(Stage.APPROACH) == round(20 * share)
    assert (found[-1] is Stage.LAND) == (adaptive is False)  # looks come every fifth jump


def test_patience_is_about_points_that_do_not_move():
    begun, mark, climbed, renewed = 0, math.inf, 0, 0
    for state in Fit(problem(net(2)), jumps=80).steps():
        if state.stage is not Stage.CLIMB:
            continue
        if climbed and mark - state.kept_unseen > CALM * mark:
            begun, mark = state.jumps, state.kept_unseen
        elif not climbed:
            begun, mark = state.since, state.mark
        assert (state.since, state.mark) == (begun, mark)
        climbed, renewed = climbed + 1, state.renewals
    assert climbed > 15 and renewed > 3


def test_a_climb_on_points_that_move_has_four_times_the_patience():
    """Elsewhere, and where the points stay, the patience that was asked for."""
    ended = {}
    for adaptive in (True, False):
        run = Fit(problem(net(2)), jumps=200, patience=10, adaptive=adaptive).run
        for stage in (Stage.CLIMB, Stage.LAND):
            state = replace(run.state, stage=stage, mark=1.0, best_loss=1.0, loss=1.0, kept_unseen=1.0)
            state = replace(state, kept=state.theta if adaptive else None)
            met = [jumps for jumps in range(60) if run.followed(replace(state, jumps=jumps)).since != 0]
            ended[adaptive, stage] = met[0] if met else None
    assert ended == {
        (True, Stage.CLIMB): 40, (True, Stage.LAND): 10, (False, Stage.CLIMB): 10, (False, Stage.LAND): 10,
    }  # fmt: skip


def test_it_approaches_from_where_it_is_and_lands_from_what_is_lowest_on_points_never_trained_on():
    fit = Fit(problem(net(2)), jumps=80)
    for state in fit.steps():
        if state.stage is Stage.CLIMB and state.renewals and not torch.equal(state.kept, state.best):
            break
    assert not torch.equal(state.theta, state.kept)
    near = fit.run.met(state, Event.LATE)
    assert near.stage is Stage.APPROACH and near.theta is state.theta and near.mark == state.kept_unseen
    landed = fit.run.met(near, Event.HIGHER)
    assert landed.stage is Stage.LAND
    assert torch.equal(landed.theta, state.kept) and torch.equal(landed.best, state.kept)
    assert landed.loss == landed.best_loss == landed.mark == fit.run.value(state.kept)


def test_an_approach_that_is_refused_is_looked_at_before_it_is_judged():
    fit = Fit(problem(net(2)), jumps=80)
    for state in fit.steps():
        if state.stage is Stage.CLIMB and state.renewals and not torch.equal(state.kept, state.best):
            break
    near = replace(fit.run.met(state, Event.STUCK), refused=stages.REFUSED, jumps=state.jumps + 1)
    near = replace(near, kept_unseen=2 * fit.run.points.loss(near.theta), mark=4 * fit.run.points.loss(near.theta))
    after = fit.run.followed(near)
    assert after.kept is near.theta and after.stage is Stage.CLIMB
    lost = replace(near, kept_unseen=0.5 * fit.run.points.loss(near.theta), mark=fit.run.points.loss(near.theta))
    assert fit.run.followed(replace(lost, mark=lost.kept_unseen)).stage is Stage.LAND


@pytest.mark.parametrize("at", [7, 23])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(tmp_path, at):
    def interrupt(result, calls=[]):  # noqa: B006 (counts its calls)
        calls.append(result)
        if len(calls) == at:
            raise KeyboardInterrupt

    whole, broken = net(3), net(3)
    reference = js.fit(problem(whole), jumps=40)
    with pytest.raises(KeyboardInterrupt):
        js.fit(problem(broken), jumps=40, path=tmp_path / "run", callback=interrupt)
    again = net(4)
    result = js.fit(problem(again), jumps=40, path=tmp_path / "run")
    assert [row["outcome"] for row in result.history] == [row["outcome"] for row in reference.history]
    torch.testing.assert_close(flat(again), flat(whole), rtol=1e-9, atol=1e-9)
    assert result.generalization == pytest.approx(reference.generalization, rel=1e-6)
    with pytest.raises(errors.ArchiveError, match="adaptive"):
        js.fit(problem(net(4)), jumps=40, path=tmp_path / "run", adaptive=False)


def test_a_tolerance_is_of_points_never_trained_on():
    model = net(5)
    result = js.fit(problem(model), jumps=200, tolerance=1e-3)
    assert result.outcome is js.FitOutcome.TOLERANCE
    assert problem(model).unseen(0).value(flat(model)) <= 1e-3
    assert result.history[-1]["unseen"] <= 1e-3
    assert any(row["best"] <= 1e-3 for row in result.history[: -collocation.LOOK])  # where a loss would have ended it


def given(model, count):
    points = torch.linspace(0, 1, count, dtype=torch.float64)[:, None]
    zero = torch.zeros(1, 1, dtype=torch.float64)
    return js.residual(model, js.Term(decay, points, 10.0 / count), js.Term(start, zero))


def test_given_points_that_are_too_few_are_warned_of_with_ratio_and_remedy(recwarn):
    model = net(6)
    result = js.fit(given(model, 12), jumps=100)
    [told] = [str(w.message) for w in recwarn if w.category is js.CollocationWarning]
    assert error(model) > 0.03
    assert f"{result.generalization:.3g} at others" in told and "js.domains.Box" in told
    at = torch.linspace(0, 1, 12, dtype=torch.float64)
    middle = ((at[1:] + at[:-1]) / 2)[:, None]
    assert result.generalization > collocation.PARTED * result.loss
    halves = torch.cat([middle, middle[-1:]])  # each point and its nearest: the ends share theirs
    values = torch.func.vmap(lambda x: decay(model, x))(halves).detach().square()
    assert 0.5 * result.generalization < 5 * float(values.mean()) < 2 * result.generalization
    assert f"({result.generalization:.3g} on other points)" in str(result)


def test_given_points_that_are_enough_are_not(recwarn):
    model = net(6)
    result = js.fit(given(model, 150), jumps=100)
    assert error(model) < 1e-2
    assert result.generalization < collocation.SOLVED * result.start
    assert not [w for w in recwarn if w.category is js.CollocationWarning]


def test_a_grown_set_that_does_not_fit_is_not_made_and_told_once():
    with pytest.warns(RuntimeWarning, match="does not fit into memory") as caught:
        states = list(Fit(problem(net(2)), jumps=80, memory_limit=8 * 3 * 17 * 151 * 1.2, basis="dense").steps())
    assert len([w for w in caught if "fit into memory" in str(w.message)]) == 1
    assert states[-1].renewals > 3  # renewed, as many
    assert states[-1].counts[0]["count"] == 16


def singular(low, high):
    def fn(net, x):
        return decay(net, x) + torch.where((x[0] > low) & (x[0] < high), math.inf, 0.0)

    zero = torch.zeros(1, 1, dtype=torch.float64)
    return js.residual(net(2), js.Term(fn, LINE, 10.0, count=16), js.Term(start, zero))


def test_a_residual_that_is_infinite_in_its_domain_is_named_before_anything_moves():
    at = LINE.points(16)[:, 0].sort().values
    objective = singular(float(at[7]), float(at[8]))
    before = objective.theta()
    with pytest.raises(errors.NonFiniteError, match=r"point \[0\.\d+\]"):
        js.fit(objective, jumps=60)
    assert torch.equal(objective.theta(), before)


def test_a_residual_that_is_infinite_at_a_candidate_leaves_the_points_and_says_where():
    known = singular(2.0, 3.0)
    asked = [known, known.unseen(0), known.unseen(0).unseen(1)]
    at = torch.cat([of.parts[0].points[:, 0] for of in asked]).sort().values
    widest = int((at[1:] - at[:-1]).argmax())
    with pytest.warns(RuntimeWarning, match=r"inf at the point \[0\.\d+\] of Interval") as caught:
        result = js.fit(singular(float(at[widest]), float(at[widest + 1])), jumps=60)
    assert len([w for w in caught if "goes on with the points" in str(w.message)]) == 1 and result.accepted > 20


def test_faces_and_insides_are_renewed_together():
    """Two terms with domains and one without: heat in space and time."""
    box = Box((0.0, 0.0), (1.0, 0.5))

    def heat(net, z):
        first = grad(lambda z: net(z)[0])
        return first(z)[1] - 0.1 * grad(lambda z: first(z)[0])(z)[0]

    def begin(net, z):
        return net(z)[0] - torch.sin(math.pi * z[0])

    sides = torch.cat([box.face(0, side).points(20) for side in ("low", "high")])
    model = net(0, inputs=2)
    objective = js.residual(
        model, js.Term(heat, box, count=40), js.Term(begin, box.face(1, "low"), count=8, weight=4.0),
        js.Term(lambda net, z: net(z)[0], sides, 4.0 / len(sides), name="sides"),
    )  # fmt: skip
    states = list(Fit(objective, jumps=60).steps())
    assert [row["term"] for row in states[-1].counts] == ["heat", "begin"] and states[-1].renewals
    grid = box.points(2000, 99)
    exact = torch.exp(-0.1 * math.pi**2 * grid[:, 1:]) * torch.sin(math.pi * grid[:, :1])
    with torch.no_grad():
        assert float((model(grid) - exact).norm() / exact.norm()) < 2e-3


def test_an_option_that_does_nothing_is_refused():
    for adaptive in (True, False):
        with pytest.raises(errors.InputError, match=r"adaptive.*js\.domains\.Box"):
            js.fit(given(net(), 12), jumps=2, adaptive=adaptive)
    with pytest.raises(errors.InputError, match="adaptive='yes'"):
        js.fit(problem(net()), jumps=2, adaptive="yes")
    with pytest.raises(errors.InputError, match="resample"):
        js.fit(problem(net()), jumps=2, adaptive=True, resample=lambda jump: None)


def test_a_users_own_points_are_not_moved():
    asked = []

    def points(jump):
        asked.append(jump)
        return {"decay": LINE.points(20, jump)}

    states = list(Fit(problem(net(2)), jumps=20, resample=points, every=3).steps())
    assert asked == [3, 6, 9, 12, 15, 18] and states[-1].renewals == 0 and states[-1].unseen < math.inf


def test_the_bar_shows_both_losses():
    run = Fit(problem(net(2)), jumps=6)
    run.complete()
    assert "unseen" in run.run.shown()
