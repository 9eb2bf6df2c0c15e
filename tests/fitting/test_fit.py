"""``js.fit``: when it stops, what it keeps, and that an interrupted run ends like one that was not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import grad, hessian

import jumpstart as js
from jumpstart import errors
from jumpstart.archive.container import reading
from jumpstart.fitting import stages
from jumpstart.fitting.checkpoint import FIT
from jumpstart.fitting.state import Stage

from ..problems import fill, flat, generator, mlp, randn

X = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None]
Y = torch.sin(4 * X) + 0.3 * torch.sign(X)


def net(seed=0, width=5):
    layers = [nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)]
    return fill(nn.Sequential(*layers), seed)


def miss(net, row):
    return net(row[:1]) - row[1:]


def regression(seed=0, model=None):
    """Least squares as residuals, which are marched along."""
    return js.residual(model or net(seed), js.Term(miss, torch.cat([X, Y], 1)))


def loss(model):
    return 0.5 * float((model(X) - Y).square().sum().detach())


def poisson(net, x):
    return hessian(lambda z: net(z)[0])(x)[0, 0] + torch.sin(3 * x[0])


def boundary(net, x):
    return net(x)[0]


def pinn(model, n=12):
    ends = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    inside = js.Term(poisson, randn(3, n, 1), name="inside")
    return js.residual(model, inside, js.Term(boundary, ends, 10.0, name="ends"))


def test_it_stops_at_the_tolerance_with_the_model_there():
    model = net(width=10)
    result = js.fit(regression(model=model), jumps=200, tolerance=0.1)
    assert result.outcome is js.FitOutcome.TOLERANCE
    assert result.loss <= 0.1
    assert loss(model) == pytest.approx(result.loss, rel=1e-10)
    assert result.history[-2]["best"] > 0.1  # and no later
    assert result.jumps == len(result.history) < 200


def test_it_stops_at_the_number_of_jumps():
    objective = regression()
    start = loss(objective.model)
    result = js.fit(objective, jumps=7)
    assert result.outcome is js.FitOutcome.BUDGET
    assert result.jumps == len(result.history) == 7
    assert result.start == pytest.approx(start, rel=1e-12)
    assert [row["jump"] for row in result.history] == list(range(1, 8))
    assert result.accepted == sum(row["outcome"] in ("ACCEPTED", "CLIMBED") for row in result.history)
    seconds = [row["seconds"] for row in result.history]
    assert seconds == sorted(seconds) and seconds[-1] == result.seconds and "BUDGET" in str(result)


def test_it_stops_at_the_budget_of_seconds(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr("time.perf_counter", lambda: 0.05 * next(clock))
    result = js.fit(pinn(net()), budget=0.5)
    assert result.outcome is js.FitOutcome.BUDGET
    assert result.jumps > 1
    assert result.history[-2]["seconds"] < 0.5 <= result.history[-1]["seconds"] == result.seconds


def test_a_callback_ends_it():
    seen = []
    result = js.fit(regression(), jumps=50, callback=lambda r: seen.append(r) or len(seen) == 4)
    assert result.jumps == 4
    assert result.outcome is js.FitOutcome.STOPPED


def test_a_tolerance_that_is_met_already_takes_no_jump():
    model = net()
    before = flat(model).clone()
    result = js.fit(regression(model=model), tolerance=1e3)
    assert (result.jumps, result.outcome) == (0, js.FitOutcome.TOLERANCE)
    assert torch.equal(flat(model), before)


def test_the_best_weights_are_kept_also_where_a_run_ends_higher():
    higher = 0
    for seed in range(8):
        model, losses = net(seed), []

        def stop(r, model=model, losses=losses):
            losses.append(loss(model))
            return r.outcome is js.Outcome.CLIMBED and losses[-1] > min(losses)

        start = loss(model)
        result = js.fit(regression(model=model), jumps=40, callback=stop)
        assert result.loss == pytest.approx(min(start, *losses), rel=1e-10)
        assert loss(model) == pytest.approx(result.loss, rel=1e-10)
        best = [min(start, *losses[: k + 1]) for k in range(len(losses))]
        assert [row["best"] for row in result.history] == pytest.approx(best, rel=1e-10)
        higher += losses[-1] > min(losses)
    assert higher > 1


def test_weight_decay_keeps_the_best_of_the_penalized_loss():
    """A good fit with large weights, which decay makes a bad one."""
    model, w = net(), 1.0
    js.fit(regression(model=model), jumps=15)

    def penalized():
        return loss(model) + 0.5 * w * float(flat(model).square().sum())

    before = penalized()
    result = js.fit(regression(model=model), jumps=6, weight_decay=w, nonmonotone=False)
    lowest = min(row["loss"] for row in result.history)
    assert lowest < before
    assert penalized() == pytest.approx(lowest, rel=1e-8)
    assert result.start == pytest.approx(before, rel=1e-8)


def test_errors_are_measured_in_eval_mode_without_gradients():
    model, seen = nn.Sequential(net(), nn.Dropout(0.5)).train(), []

    def error(m):
        assert m is model
        assert not m.training
        assert not torch.is_grad_enabled()
        seen.append(float(m(X).square().mean()))
        return seen[-1]

    result = js.fit(js.supervised(model, X, Y, training=False), jumps=6, error=error)
    assert model.training
    assert model[1].training
    rows = [row["error"] for row in result.history if "error" in row]
    assert len(rows) >= 1
    assert rows == seen[1 : 1 + len(rows)]  # the first is at the start
    assert result.error == seen[-1] == pytest.approx(float(model[0](X).square().mean().detach()), rel=1e-12)


def test_the_global_random_state_and_buffers_are_left_alone():
    torch.manual_seed(5)
    model = nn.Sequential(net(), nn.BatchNorm1d(1).double()).train()
    objective = js.supervised(model, X, Y, training=False)
    before = torch.get_rng_state(), {name: b.clone() for name, b in model.named_buffers()}
    js.fit(objective, jumps=12, patience=2, restarts=2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(torch.equal(b, before[1][name]) for name, b in model.named_buffers())


def stage_in(path):
    """The stage that a checkpoint of a regression was left in."""
    with reading(path, FIT) as file:
        return Stage[file.content["state"]["stage"]]


def interrupt(at):
    def callback(_, count=iter(range(1, 10_000))):  # noqa: B008 (one count for each)
        if next(count) == at:
            raise KeyboardInterrupt

    return callback


OPTIONS = {
    "plain": {"jumps": 12},
    "never bold": {"jumps": 12, "nonmonotone": False},
    "patience, restarts": {"jumps": 14, "patience": 2, "restarts": 2},
    "searching": {"jumps": 8, "search": "horizon"},
}
INTERRUPTS = [(name, at) for name in ("plain", "patience, restarts") for at in (1, 3, 5, 7, 9, 11)]


@pytest.fixture
def early(monkeypatch):
    """Marches are bold from their third jump on."""
    monkeypatch.setattr(stages, "CAUTION", 2)


@pytest.mark.parametrize(("name", "at"), [*INTERRUPTS, ("never bold", 4), ("searching", 3)])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(tmp_path, name, at, early):
    options, path = OPTIONS[name], tmp_path / "deep" / "run.pt"
    whole, broken = net(3), net(3)
    reference = js.fit(regression(model=whole), **options)
    assert reference.jumps > at
    with pytest.raises(KeyboardInterrupt):
        js.fit(regression(model=broken), path=path, callback=interrupt(at), **options)
    if name == "plain":  # landed at 60% of 12 jumps
        assert (stage_in(path) is Stage.CLIMB) == (3 <= at <= 8)
    best = min(row["best"] for row in reference.history[:at])
    assert loss(broken) == pytest.approx(min(best, reference.start), rel=1e-9)  # the model holds the best so far
    again = net(4)  # a fresh process: other weights, which the checkpoint overrules
    result = js.fit(regression(model=again), path=path, **options)
    assert result.jumps == reference.jumps
    assert [row["outcome"] for row in result.history] == [row["outcome"] for row in reference.history]
    torch.testing.assert_close(flat(again), flat(whole), rtol=1e-12, atol=1e-12)
    assert result.loss == pytest.approx(reference.loss, rel=1e-12)
    assert result.start == pytest.approx(reference.start, rel=1e-12)
    for name in ("outcome", "restarts", "accepted"):
        assert getattr(result, name) == getattr(reference, name), name
    assert js.fit(regression(model=net(5)), path=path, **options).jumps == result.jumps  # a finished run is left alone


def test_a_bold_checkpoint_goes_on_without_a_march(tmp_path, early):
    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        js.fit(regression(), jumps=12, path=path, callback=interrupt(5))
    assert stage_in(path) is Stage.CLIMB
    result = js.fit(regression(), jumps=8, path=path, search="horizon")
    assert result.jumps == 8
    assert result.loss <= result.history[4]["best"]


def sample(jump):
    return [2 * torch.rand(12, 1, generator=generator(jump), dtype=torch.float64) - 1, None]


@pytest.mark.parametrize("every", [1, 4])
def test_resampled_runs_resume_on_their_points(tmp_path, every, early):
    whole, broken = net(3), net(3)
    options = {"jumps": 10, "resample": sample, "every": every}
    reference = js.fit(pinn(whole), **options)
    with pytest.raises(KeyboardInterrupt):
        js.fit(pinn(broken), path=tmp_path / "run.pt", callback=interrupt(6), **options)
    result = js.fit(pinn(broken), path=tmp_path / "run.pt", **options)
    torch.testing.assert_close(flat(broken), flat(whole), rtol=1e-10, atol=1e-10)
    assert result.loss == pytest.approx(reference.loss, rel=1e-10)


def test_files_that_are_no_checkpoint_of_this_run(tmp_path):
    js.fit(regression(), jumps=2, path=tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("nothing of the kind")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "half.pt").write_bytes((tmp_path / "other.pt").read_bytes()[:700])
    torch.save({"weights": torch.ones(3)}, tmp_path / "tensors.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"kind": "jumpstart fit 1"}, tmp_path / "bare.pt")
    for name in ("other", "text", "empty", "half", "tensors", "list", "bare"):
        model = net(0, 6)
        before = flat(model).clone()
        with pytest.raises(errors.ArchiveError, match=name):
            js.fit(regression(model=model), jumps=3, path=tmp_path / f"{name}.pt")
        assert torch.equal(flat(model), before)
    assert not list(tmp_path.glob("*.part"))
    assert js.fit(regression(), jumps=2, path=tmp_path / "other.pt").jumps == 2  # its own model still goes on from it


@pytest.mark.parametrize("every", [1, 3])
def test_points_are_asked_for_at_the_right_jumps(every):
    asked, model = [], net()
    result = js.fit(pinn(model), jumps=8, every=every, resample=lambda jump: asked.append(jump) or sample(jump))
    assert asked == [jump for jump in range(1, 8) if jump % every == 0]
    objective = pinn(model).resampled(sample(asked[-1]))
    assert result.loss == pytest.approx(objective.value(objective.theta()), rel=1e-10)


def test_points_by_name_again_and_again():
    assert js.fit(pinn(net()), jumps=5, resample=lambda jump: {"inside": sample(jump)[0]}).jumps == 5


def test_a_residual_that_is_finite_at_the_start_alone():
    model = net()
    start = flat(model).clone()
    anchor = model[0].weight.detach().clone()

    def fragile(f):
        moved = (f["0.weight"] - anchor).abs().sum()
        return (f(X) - Y).squeeze(1) * torch.where(moved > 0, math.nan, 1.0)

    result = js.fit(js.residual(model, fragile), jumps=30)
    assert result.outcome is js.FitOutcome.STAGNANT
    assert torch.equal(flat(model), start)
    assert result.loss == result.start
    assert result.jumps < 30


def test_terms_that_contradict_each_other_stagnate_soon_and_say_so():
    model = mlp(0, 1, 5, 1)
    terms = [js.Term(lambda f, x: f(x) - 1, X, name="up"), js.Term(lambda f, x: f(x) + 1, X, 3.0, name="down")]
    with pytest.warns(js.StagnationWarning, match="contradict") as caught:
        result = js.fit(js.residual(model, *terms), jumps=300, tolerance=1e-9, patience=5)
    assert result.outcome is js.FitOutcome.STAGNANT
    assert result.loss == pytest.approx(0.5 * len(X) * (1.5**2 + 3 * 0.5**2), rel=1e-4)
    assert result.jumps < 60
    assert "'up'" in result.cause
    assert result.cause in str(caught[0].message)
    assert "75%" in result.cause


BAD = {
    "no objective": (lambda: js.fit(net(), jumps=3), ["Sequential", "js.residual"]),
    "no end": (lambda: js.fit(regression()), ["budget=", "jumps=", "tolerance="]),
    "budget 0": (lambda: js.fit(regression(), budget=0), ["budget=0"]),
    "budget NaN": (lambda: js.fit(regression(), budget=math.nan), ["budget=nan"]),
    "jumps in words": (lambda: js.fit(regression(), jumps="ten"), ["'ten'"]),
    "infinite tolerance": (lambda: js.fit(regression(), jumps=2, tolerance=-math.inf), ["-inf"]),
    "NaN tolerance": (lambda: js.fit(regression(), jumps=2, tolerance=math.nan), ["nan"]),
    "every 0": (lambda: js.fit(pinn(net()), jumps=2, every=0, resample=sample), ["every=0"]),
    "resample of data": (
        lambda: js.fit(js.supervised(net(), X, Y), jumps=2, resample=sample),
        ["resample", "js.residual"],
    ),
    "misspelt": (lambda: js.fit(regression(), jumps=2, secondorder=True), ["'secondorder'", "geodesic"]),
    "a number for trust": (lambda: js.fit(regression(), jumps=2, trust=3.0), ["trust=3.0"]),
    "patience 0": (lambda: js.fit(regression(), jumps=2, patience=0), ["patience"]),
    "negative restarts": (lambda: js.fit(regression(), jumps=2, restarts=-1), ["restarts"]),
    "points of no term": (lambda: js.fit(pinn(net()), jumps=3, resample=lambda _: {"edge": X}), ["'edge'", "inside"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    act, words = BAD[name]
    with pytest.raises(errors.InputError) as caught:
        act()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_plots_are_pictures(tmp_path):
    result = js.fit(regression(), jumps=4, error=loss)
    for name in ("a/run.png", "run.pdf"):
        assert result.plot(tmp_path / name) == tmp_path / name
    assert (tmp_path / "a/run.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (tmp_path / "run.pdf").read_bytes()[:4] == b"%PDF"


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_an_unknown_coefficient_is_recovered(start):
    """u' = −k u with u(0) = 1, seen at six times; k = 2.5."""
    t = torch.linspace(0, 1, 24, dtype=torch.float64)[:, None]
    seen = torch.cat([t[::4], torch.exp(-2.5 * t[::4])], 1)
    model = net(2, 8)
    model.register_parameter("rate", nn.Parameter(torch.tensor(start, dtype=torch.float64)))
    objective = js.residual(
        model,
        js.Term(lambda f, x: grad(lambda z: f(z)[0])(x)[0] + f.rate * f(x)[0], t, name="equation"),
        js.Term(lambda f, row: f(row[:1])[0] - row[1], seen, 10.0, name="data"),
    )
    result = js.fit(objective, jumps=80, tolerance=1e-16)
    assert result.loss < 1e-10
    assert model.rate.item() == pytest.approx(2.5, abs=1e-4)


def test_a_start_that_is_not_finite_is_named_and_one_that_is_perfect_left_alone():
    model = net()
    objective = regression(model=model)
    perfect = js.supervised(model, X, model(X).detach())
    before = flat(model).clone()
    result = js.fit(perfect, jumps=10)
    assert (result.outcome, result.restarts, result.loss) == (js.FitOutcome.STATIONARY, 0, 0.0)
    assert torch.equal(flat(model), before)
    with torch.no_grad():
        model[4].weight.mul_(1e200)
    with pytest.raises(errors.NonFiniteError, match="loss is inf"):
        js.fit(objective, jumps=3)


@pytest.mark.parametrize("name", ["error", "resample", "callback"])
def test_what_must_be_a_function_is_checked_at_the_door(name):
    with pytest.raises(errors.InputError, match=f"{name}=3"):
        js.fit(pinn(net()), jumps=3, **{name: 3})


def test_losses_below_zero_are_fitted_as_well_as_others():
    """The same loss less a constant: no rule takes zero for the end, or a negative loss for one that cannot fall."""

    def shifted(shift):
        loss = js.losses.Convex(lambda u, y: (u - y).square().sum() - shift, Y)
        return js.supervised(net(2), X, loss=loss)

    plain, below = js.fit(shifted(0.0), jumps=12), js.fit(shifted(50.0), jumps=12)
    assert plain.jumps == below.jumps == 12
    assert below.start == pytest.approx(plain.start - 50, rel=1e-12)
    assert plain.loss < 0.01 * plain.start
    assert below.loss + 50 < 0.01 * plain.start
    found = js.fit(shifted(50.0), tolerance=-49.99, jumps=40)
    assert found.outcome is js.FitOutcome.TOLERANCE
    assert found.loss <= -49.99 < found.start
