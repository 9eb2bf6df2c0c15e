"""``Solution.check``: the real network against the linearized one, by moving a copy of the model by hand."""

from __future__ import annotations

import copy
import math
import pathlib
import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import jumpstart as js
from jumpstart import errors
from jumpstart.solver.validity import longest

from ..problems import PROBLEMS, Frozen, at, classes, fill, flat, mlp, randn, relative

INF, NAN = math.inf, math.nan
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TORCH = {"mse": F.mse_loss, "logistic": F.binary_cross_entropy_with_logits, "cross_entropy": F.cross_entropy}


def task(loss, seed=0):
    """A tanh network, its training targets, query points and their targets."""
    model, x, q = mlp(seed), randn(seed, 8, 4), randn(seed + 9, 5, 4)
    if loss == "cross_entropy":
        return model, x, classes(seed, 8, 3), q, classes(seed + 1, 5, 3)
    y, z = randn(seed + 50, 8, 3), randn(seed + 51, 5, 3)
    return (model, x, y, q, z) if loss == "mse" else (model, x, (y > 0).double(), q, (z > 0).double())


def moved(model, table):
    """A copy of the model with other weights."""
    twin = copy.deepcopy(model)
    twin.load_state_dict({**twin.state_dict(), **table})
    return twin


def accuracy(loss, u, y):
    if loss == "mse":
        return None
    right = u.argmax(-1) == y if loss == "cross_entropy" else (u > 0) == (y > 0.5)
    return float(right.double().mean())


@pytest.mark.parametrize("basis", ["dense", "krylov"])
@pytest.mark.parametrize("t", [0.0, 0.4, 30.0, INF, js.steps(7, 0.05), js.steps(7, 0.05, 0.9)], ids=str)
@pytest.mark.parametrize("loss", TORCH)
def test_agreement_with_a_copy_that_is_moved_by_hand(loss, t, basis):
    model, x, y, q, z = task(loss)
    if t == INF and loss != "mse":
        y = (
            torch.full((8, 3), 1 / 3, dtype=torch.float64) if loss == "cross_entropy" else 0.5 * torch.ones_like(y)
        )  # a finite end
    found = js.solve(js.supervised(model, x, y, loss), basis, depth=None if basis == "dense" else 24)
    parameters, outputs, query = found.parameters(t), found.outputs(t), found.predict(q, t)
    seen = found.check(t, q, z)
    twin = moved(model, parameters)
    for side, points, targets, start, linearized in (
        (seen.train, x, y, model(x), outputs),
        (seen.query, q, z, model(q), query),
    ):
        actual = twin(points).detach()
        assert relative(side.actual, actual) < 1e-10
        assert relative(side.linearized, linearized) < 1e-10
        assert side.losses[0] == pytest.approx(float(TORCH[loss](linearized, targets)), rel=1e-9, abs=1e-18)
        assert side.losses[1] == pytest.approx(float(TORCH[loss](actual, targets)), rel=1e-9)
        expected = float((actual - linearized).norm() / (linearized - start).norm()) if t != 0 else 0.0
        assert side.error == pytest.approx(expected, rel=1e-5, abs=1e-9)
        if targets.dim() == 2 and loss == "cross_entropy":  # probabilities
            continue
        right = tuple(accuracy(loss, u, targets) for u in (linearized, actual))
        assert side.accuracies == (None if loss == "mse" else pytest.approx(right))
    assert "query" in str(seen)
    assert found.check(t).query is None
    assert found.check(t, q).query.losses is None


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("tolerance", [0.02, 0.3])
def test_trust_horizon_against_a_scan(name, tolerance):
    """The linearized run from the SVD of the explicit Jacobian; a scan for the first crossing of the tolerance."""
    p = PROBLEMS[name](0)
    oracle, theta = Frozen(p), flat(p.model)
    found = js.solve(js.supervised(p.model, p.x, p.y), "dense")
    end = 1e3 / oracle.top
    trust = found.check(end, tolerance=tolerance).trust_horizon

    def error(t):
        delta = oracle.displacement(t)
        u = at(p.model, theta + torch.from_numpy(delta), p.x).detach().numpy().reshape(-1)
        shift = oracle.j @ delta
        return np.linalg.norm(u - oracle.u.reshape(-1) - shift) / np.linalg.norm(shift)

    times = end * np.logspace(-7, 0, 500)
    errors_seen = np.array([error(t) for t in times])
    over = np.flatnonzero(errors_seen > tolerance)
    if not len(over):
        assert trust == end
        return
    first = times[over[0]]
    if (errors_seen[over[0] :] > tolerance).all():  # crossed once
        assert 0.9 * first <= trust <= 1.1 * first
    else:  # several crossings: some time at which it holds, and the error is beyond it soon after
        assert trust > 0
        assert error(trust) <= tolerance * (1 + 1e-9)
    assert found.trust_horizon == trust


@pytest.mark.parametrize("loss", ["logistic", "cross_entropy"])
def test_trust_horizon_of_other_losses(loss):
    """By the library's own parameters(t) this time; a scan in steps of 3.5%."""
    model, x, y, _, _ = task(loss, 3)
    found = js.solve(js.supervised(model, x, y, loss), "dense")
    times = 20.0 * torch.logspace(-3, 0, 200, dtype=torch.float64)
    tables, linearized = found.parameters(times), found.outputs(times)
    seen = []
    for i in range(len(times)):
        u = moved(model, {name: v[i] for name, v in tables.items()})(x)
        seen.append(float((u - linearized[i]).norm() / (linearized[i] - model(x)).norm()))
    over = np.flatnonzero(np.array(seen) > 0.1)
    first = float(times[over[0]]) if len(over) else 20.0
    assert 0.9 * first <= found.check(20.0).trust_horizon <= 1.1 * first


@pytest.mark.parametrize("loss", TORCH)
@pytest.mark.parametrize("t", [1e-6, 0.5, 200.0, INF])
def test_a_linear_model_is_trusted_as_far_as_it_was_asked(loss, t):
    x, y = randn(0, 12, 2), {"mse": randn(1, 12, 3), "logistic": 0.3 * torch.ones(12, 3).double()}.get(loss)
    y = classes(0, 12, 3) if y is None else y
    found = js.solve(js.supervised(fill(nn.Linear(2, 3), 0), x, y, loss))
    seen = found.check(t)
    assert seen.train.error < 1e-8
    assert seen.trust_horizon == t
    assert seen.passes == 1


@pytest.mark.parametrize("t", [1e-9, 1e-7, 1e-5, 1e-3, 1.0, INF])
def test_a_linear_model_in_float32(t):
    """A horizon so short that the outputs move by rounding is no reason for distrust."""
    found = js.solve(js.supervised(fill(nn.Linear(4, 1), 0).float(), randn(0, 8, 4).float(), randn(1, 8, 1).float()))
    assert found.check(t).trust_horizon == pytest.approx(t)


def test_model_buffers_and_random_state_stay_as_they_are():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 2)).double()
    x, y = randn(0, 8, 4), randn(1, 8, 2)
    with torch.no_grad():
        model(x)  # fills the running statistics
    model.eval()
    found = js.solve(js.supervised(model, x, y))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    pointers = [p.data_ptr() for p in model.parameters()]
    found.check(5.0, randn(2, 3, 4), randn(3, 3, 2))
    found.best_horizon()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_batch_norm_in_train_mode_keeps_its_statistics():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)).double()
    x, y = randn(0, 8, 4), randn(1, 8, 2)
    found = js.solve(js.supervised(model, x, y))
    before = copy.deepcopy(model.state_dict())
    found.check(5.0, randn(2, 3, 4), randn(3, 3, 2))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training


ASKED = {
    "outputs": lambda s, t: s.outputs(t),
    "loss": lambda s, t: s.loss(t),
    "parameters": lambda s, t: s.parameters(t),
    "predict": lambda s, t: s.predict(randn(0, 2, 4), t),
    "risk": lambda s, t: s.risk(t),
    "leave_out": lambda s, t: s.leave_out(t),
    "many": lambda s, t: s.outputs(torch.tensor([0.0, t], dtype=torch.float64)),
    "steps": lambda s, t: s.outputs(js.steps(2, t / 2)),
    "steps with momentum": lambda s, t: s.outputs(js.steps(2, t / 20, 0.9)),
}


@pytest.mark.parametrize("question", ASKED)
def test_answers_warn_beyond_the_trust_horizon_and_not_within(question):
    model, x, y, _, _ = task("mse")
    found = js.solve(js.supervised(model, x, 5 * y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ASKED[question](found, 1e3)  # nothing is known yet
        end = found.check(INF).trust_horizon
        assert 0 < end < 1e3
        ASKED[question](found, 0.99 * end)
    with pytest.warns(errors.TrustWarning, match="check"):
        ASKED[question](found, 1.01 * end)


def test_what_was_checked_and_agreed_does_not_warn_beyond():
    """Nothing has failed there; a check that fails does warn, and a shorter one that agrees takes nothing back."""
    model, x, y, _, _ = task("mse")
    found = js.solve(js.supervised(model, x, 5 * y))
    end = found.check(INF).trust_horizon
    fresh = js.solve(js.supervised(model, x, 5 * y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fresh.check(0.5 * end).agrees
        for question in ASKED.values():
            question(fresh, 3 * end)
    fresh.check(2 * end)
    assert fresh.check(0.5 * end).agrees
    with pytest.warns(errors.TrustWarning):
        fresh.outputs(3 * end)


def test_the_example_of_the_readme_warns_of_nothing():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    solving = next(i for i, block in enumerate(blocks) if "js.solve(objective)" in block)
    for seed in range(3):
        torch.manual_seed(seed)
        names = {"js": js, "math": math, "torch": torch}
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            for block in blocks[solving : solving + 2]:
                exec(block, names)
        assert "best_horizon" in blocks[solving + 1]


def test_the_warning_points_at_the_caller():
    model, x, y, _, _ = task("mse")
    found = js.solve(js.supervised(model, x, 5 * y))
    found.check(INF)
    for question in ASKED.values():
        with pytest.warns(errors.TrustWarning) as seen:
            question(found, 1e3)
        assert seen[0].filename == __file__


def test_other_runs_on_the_same_kernel_are_not_checked_yet():
    model, x, y, _, _ = task("mse")
    found = js.solve(js.supervised(model, x, 5 * y))
    found.check(INF)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in (found.with_targets(y), found.without(0), found.damped(0.1), found.gated("soft")):
            other.outputs(1e3)


def test_a_second_check_replaces_the_first():
    model, x, y, _, _ = task("mse")
    found = js.solve(js.supervised(model, x, 5 * y))
    strict = found.check(INF, tolerance=0.01).trust_horizon
    loose = found.check(INF, tolerance=0.3).trust_horizon
    assert strict < loose == found.trust_horizon


@pytest.mark.parametrize("change", ["without", "reweighted"])
@pytest.mark.parametrize("m", [5, 8])
def test_weighted_runs_on_query_points(change, m):
    """Weights are those of the training samples: the loss on query points is the plain mean there."""
    model, x, y, _, _ = task("mse")
    q, z = randn(4, m, 4), randn(5, m, 3)
    found = js.solve(js.supervised(model, x, y))
    found = found.without(0) if change == "without" else found.reweighted(torch.arange(8) / 4)
    seen = found.check(0.3, q, z).query
    assert seen.losses[1] == pytest.approx(float(F.mse_loss(seen.actual, z)), rel=1e-9)


@pytest.mark.parametrize("loss", ["logistic", "cross_entropy"])
def test_weighted_runs_know_their_accuracy(loss):
    model, x, y, _, _ = task(loss)
    found = js.solve(js.supervised(model, x, y, loss)).without(0)
    seen = found.check(0.3).train
    assert seen.accuracies is not None


def test_a_network_without_gradient():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2, bias=False)).double()
    nn.init.constant_(model[0].bias, -100.0)
    found = js.solve(js.supervised(model, randn(0, 5, 2), randn(1, 5, 2)), "dense")
    seen = found.check(7.0)
    assert seen.train.error == 0
    assert seen.trust_horizon == 7.0


def test_weights_that_overflow_are_not_trusted():
    """exp of a large output: the real network is infinite at the end of the run, and the check says so."""

    class Exp(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 1).double()

        def forward(self, x):
            return torch.exp(torch.exp(self.linear(x)))

    model = Exp()
    with torch.no_grad():
        model.linear.weight.fill_(0.1)
        model.linear.bias.fill_(0.0)
    found = js.solve(js.supervised(model, randn(0, 6, 2), 1e4 * torch.ones(6, 1).double()), "dense")
    seen = found.check(INF)
    assert not seen.train.error < 1
    assert 0 < seen.trust_horizon < 1
    assert found.check(seen.trust_horizon).train.error <= 0.1


# -- the search by itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("at_end", [10.0, INF])
@pytest.mark.parametrize("start", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("where", [1e-5, 0.3, 7.0])
def test_search_finds_the_crossing_of_a_power_law(power, at_end, start, where):
    found, passes = longest(lambda t: 0.1 * (t / where) ** power if t < INF else INF, start, at_end, 0.1)
    if min(start, at_end) < 1e9 * where:  # what lies further down is not looked at
        assert 0.9 * where <= found <= where * (1 + 1e-12)
    assert passes <= 24


def test_search_is_right_about_steps_and_saturation():
    for error in (lambda t: 0.0 if t < 3 else INF, lambda t: 0.05 if t < 3 else 0.11, lambda t: 0.02 if t < 3 else NAN):
        found, passes = longest(error, 1.0, 100.0, 0.1)
        assert 2.7 <= found < 3
        assert passes <= 24
    assert longest(lambda t: 0.05, 1.0, INF, 0.1) == (INF, 1)
    found, passes = longest(lambda t: 1.0, 1.0, INF, 0.1)
    assert found == 0.0
    assert passes <= 24


# -- misuse ------------------------------------------------------------------------------------------------------

Q, Z = randn(4, 5, 4), randn(5, 5, 3)
BAD = {
    "tolerance 0": lambda s: s.check(1.0, tolerance=0.0),
    "negative tolerance": lambda s: s.check(1.0, tolerance=-0.1),
    "tolerance NaN": lambda s: s.check(1.0, tolerance=NAN),
    "negative horizon": lambda s: s.check(-1.0),
    "horizon NaN": lambda s: s.check(NAN),
    "many horizons": lambda s: s.check(torch.tensor([1.0, 2.0])),
    "a word": lambda s: s.check("end"),
    "query of another width": lambda s: s.check(1.0, randn(0, 5, 3)),
    "query NaN": lambda s: s.check(1.0, Q * NAN),
    "query targets NaN": lambda s: s.check(1.0, Q, Z * NAN),
    "query targets of another width": lambda s: s.check(1.0, Q, Z[:, :2]),
    "query targets that broadcast": lambda s: s.check(1.0, Q, Z[:, :1]),
    "fewer query targets": lambda s: s.check(1.0, Q, Z[:4]),
    "targets without query points": lambda s: s.check(1.0, None, Z),
    "tolerance a word": lambda s: s.check(1.0, tolerance="small"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    model, x, y, _, _ = task("mse")
    with pytest.raises(errors.InputError):
        BAD[case](js.solve(js.supervised(model, x, y)))


@pytest.mark.parametrize("z", [torch.tensor([0, 1, 2, 7, 1]), torch.tensor([0, 1, 2, 1]), randn(0, 5, 3)], ids=str)
def test_bad_classes_of_query_points(z):
    """Classes that do not exist, too few of them, and numbers that are none."""
    model, x, y, q, _ = task("cross_entropy")
    with pytest.raises(errors.InputError):
        js.solve(js.supervised(model, x, y, "cross_entropy")).check(1.0, q, z)


def test_query_targets_of_shape_n_1_for_outputs_n():
    """(6,) against (6, 1) would broadcast to (6, 6)."""
    p = PROBLEMS["P < N"](0)
    with pytest.raises(errors.ShapeError):
        js.solve(js.supervised(p.model, p.x, p.y)).check(0.1, p.query, randn(3, 6))
