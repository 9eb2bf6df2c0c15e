"""Operators along real runs, against sums written out with explicit Jacobians, and against the runs themselves."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev

import jumpstart as js
from jumpstart import errors
from jumpstart.trajectory import Recorder

from ..problems import fill, randn

SGD, ADAM = torch.optim.SGD, torch.optim.Adam
LOSSES = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy, "logistic": F.binary_cross_entropy_with_logits}


class Run:
    """A small network in training, full batch unless rows are given."""

    def __init__(self, loss="mse", seed=0, layers=None, optimizer=lambda p: SGD(p, lr=0.05), n=9, **options):
        c = 3 if loss == "cross_entropy" else 1
        self.x, self.queries = randn(seed, n, 2), randn(seed + 100, 4, 2)
        self.y = {
            "mse": self.x[:, :1] * self.x[:, 1:], "logistic": (self.x[:, :1] > 0).double(),
            "cross_entropy": (self.x.sum(1) > 0).long() + (self.x[:, 0] > 1).long(),
        }[loss]  # fmt: skip
        layers = layers or (nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, c))
        self.model = fill(nn.Sequential(*layers), seed + 1)
        self.loss, self.objective = LOSSES[loss], js.supervised(self.model, self.x, self.y, loss)
        self.optimizer = optimizer(self.model.parameters())
        self.points = [self.theta()]
        self.options = options

    def theta(self):
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def step(self, rows=None):
        rows = slice(None) if rows is None else rows
        self.optimizer.zero_grad()
        self.loss(self.model(self.x[rows]), self.y[rows]).backward()
        self.optimizer.step()
        self.points.append(self.theta())

    def record(self, steps=7, **options):
        recorder = Recorder(self.objective, self.queries, optimizer=self.optimizer, **options)
        for _ in range(steps):
            self.step()
            recorder.step()
        return recorder

    def jacobian(self, point, x=None):
        """(N, P) by torch.func, output by output."""
        x = self.x if x is None else x
        found = jacrev(lambda theta: functional_call(self.model, theta, (x,)))(point)
        rows = found[next(iter(found))].shape[:2].numel()
        return torch.cat([found[name].reshape(rows, -1) for name in point], 1)

    def slopes(self, point):
        """g (N,) and B (N, N) of the loss in the outputs."""
        u = functional_call(self.model, point, (self.x,)).detach()
        loss = lambda flat: self.loss(flat.view_as(u), self.y)  # noqa: E731
        flat = u.reshape(-1)
        return torch.func.grad(loss)(flat), torch.func.hessian(loss)(flat)


def mean(jacobians):
    return 0.5 * (jacobians[0] + jacobians[1])


def close(found, expected, rtol=1e-10):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


@pytest.mark.parametrize("loss", LOSSES)
def test_operators_are_the_sums_over_the_steps(loss):
    """P ← P − η B J̄ J_mᵀ P, by trapezoids, written out."""
    run, rate = Run(loss), 0.05
    operators = run.record().operators()
    n = len(run.slopes(run.points[0])[0])
    p, d, g = torch.eye(n).double(), torch.zeros(n, n).double(), torch.zeros(4 * (n // 9), n).double()
    w, action = torch.zeros(n, n).double(), torch.zeros(n, n).double()
    for now, after in zip(run.points, run.points[1:], strict=False):
        ends = [run.jacobian(point) for point in (now, after)]
        moves = -rate * ends[0].T @ p
        bent = [run.slopes(point)[1] @ j @ moves for point, j in zip((now, after), ends, strict=True)]
        beyond = p + mean(bent)
        for part, j in zip((p, beyond), ends, strict=True):
            w -= 0.25 * (part.T @ j @ moves + (j @ moves).T @ part)
        d -= mean(ends) @ moves
        g -= mean([run.jacobian(point, run.queries) for point in (now, after)]) @ moves
        action += moves.T @ moves / rate
        p = beyond
    for found, expected in (
        (operators.propagator, p), (operators.dissipation, w), (operators.displacement, d), (operators.transfer, g),
        (operators.action, action),
    ):  # fmt: skip
        close(found, expected)
    assert operators.time == pytest.approx(7 * rate) and operators.steps == 7


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("order", "falls"), [(2, 3.2), (4, 10.0)])
def test_what_the_run_did_is_told_with_an_error_of_the_order(loss, order, falls):
    """Half the rate and twice the steps: 4 and 16 times less, in the limit."""
    found = []
    for rate in (0.1, 0.05):
        operators = Run(loss, optimizer=lambda p, rate=rate: SGD(p, lr=rate)).record(round(1.6 / rate), order=order)
        found.append(operators.operators().identities)
    for name, first in found[0].items():
        assert first > falls * found[1][name], (name, found)
    assert max(found[1].values()) < (1e-2 if order == 2 else 1e-5)


@pytest.mark.parametrize("layers", [
    lambda: (nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 5), nn.SiLU(), nn.Linear(5, 1)),
    lambda: (nn.Linear(2, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 1)),
    lambda: (nn.Linear(2, 7), nn.Softplus(), nn.Linear(7, 1)),
])  # fmt: skip
def test_for_squared_loss_the_displacement_is_what_the_propagator_has_lost(layers):
    operators = Run(layers=layers()).record(12).operators()
    n = len(operators.gradient)
    curvature = 2 / n  # of the mean of squares
    close(operators.displacement, (torch.eye(n).double() - operators.propagator) / curvature, 1e-12)


def test_of_a_linear_model_everything_is_exact():
    run = Run(layers=(nn.Linear(2, 1),), optimizer=lambda p: SGD(p, lr=0.3))
    operators = run.record(20).operators()
    assert operators.error < 1e-12
    j, curvature = run.jacobian(run.points[0]), 2 / 9
    step = torch.eye(9).double() - 0.3 * curvature * j @ j.T
    close(operators.propagator, torch.linalg.matrix_power(step, 20), 1e-11)
    assert operators.rank(1e-9) == 3  # the model has three weights


OPTIMIZERS = {
    "momentum": lambda p: SGD(p, lr=0.01, momentum=0.9),
    "nesterov": lambda p: SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "dampened, decaying": lambda p: SGD(p, lr=0.02, momentum=0.6, dampening=0.3, weight_decay=0.05),
    "two rates": lambda p: SGD([{"params": (q := list(p))[:2]}, {"params": q[2:], "lr": 0.05}], lr=0.02),
    "Adam": lambda p: ADAM(p, lr=1e-3),
    "Adam, decaying": lambda p: ADAM(p, lr=1e-3, weight_decay=0.1, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.5),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=5e-4),
}


@pytest.mark.parametrize("begin", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_momentum_metric_and_decay_are_in_the_operators(name, begin):
    """The run and its operators agree also where the record begins in the middle of it."""
    run = Run(optimizer=OPTIMIZERS[name])
    for _ in range(begin):
        run.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorder = run.record(25)
    assert recorder.operators().error < 1e-3 and recorder.strayed < 1e-3
    assert run.record(1).strayed < 1e-4


def test_minibatches_are_told_by_their_rows():
    run = Run(optimizer=lambda p: SGD(p, lr=0.02, momentum=0.5))
    recorder = Recorder(run.objective, run.queries, optimizer=run.optimizer)
    for i in range(20):
        rows = torch.tensor([i % 9, (2 * i + 1) % 9, (5 * i) % 9])
        run.step(rows)
        recorder.step(rows)
    assert recorder.operators().error < 1e-3 and recorder.strayed < 1e-3


def test_of_minibatches_that_are_not_told_it_warns():
    run = Run()
    recorder = Recorder(run.objective, optimizer=run.optimizer)
    run.step(torch.tensor([0, 1]))
    with pytest.warns(RuntimeWarning, match="at step 1 the weights moved otherwise"):
        recorder.step()


def test_modes_are_directions_of_the_whole():
    """A record in k directions says of these what the record in all of them says."""
    whole = Run().record(10).operators()
    few = Run().record(10, modes=4).operators()
    v = few.basis
    close(v @ v.T, torch.eye(4).double(), 1e-12)
    close(few.propagator, whole.propagator @ v.T)
    close(few.dissipation, v @ whole.dissipation @ v.T)
    close(few.transfer, whole.transfer @ v.T)
    assert few.identities == pytest.approx(whole.identities, rel=1e-6)  # the gradient itself is one of them


def test_directions_of_ones_own_are_asked_about_exactly():
    """Noise in the targets, say, and the channel of an earlier record; what depends on the others adds none."""
    noise = randn(5, 9)
    whole = Run().record(10).operators()
    channel = whole.channel(0.05).T
    asked = torch.cat([noise[None], channel, 3 * noise[None]])
    few = Run().record(10, modes=asked).operators()
    v = few.basis
    assert len(v) == 2 + len(channel)  # with the gradient
    close(v @ v.T, torch.eye(len(v)).double(), 1e-12)
    close(few.transfer @ few.coordinates(noise), whole.transfer @ noise)
    close(few.propagator @ few.coordinates(noise), whole.propagator @ noise)
    assert few.where(noise).spanned == pytest.approx(1.0)
    assert Run().record(2, modes=3).operators().where(noise).spanned < 0.99
    alone = Run().record(3, modes=noise).operators()  # (N,) is one direction
    assert alone.basis.shape == (2, 9)


def test_products_one_by_one_are_those_with_the_jacobian():
    with_it = Run().record(5, modes=3).operators()
    without = Run().record(5, modes=3, memory_limit=3000).operators()
    for name in ("propagator", "dissipation", "transfer", "action"):
        close(getattr(without, name), getattr(with_it, name))
    assert without.reach != without.reach and with_it.reach > 0  # the bound needs the Jacobian at the queries


def test_steps_between_records_are_interpolated():
    every = {k: Run(optimizer=lambda p: SGD(p, lr=0.01)).record(60, every=k).operators() for k in (1, 5)}
    close(every[5].propagator, every[1].propagator, 1e-3)
    assert every[5].steps == 60 and every[5].error < 1e-3
    odd = Run(optimizer=lambda p: SGD(p, lr=0.01)).record(58, every=5)
    assert odd.operators().steps == 58  # what is pending is taken in


def test_a_scheduler_and_plain_rates_are_followed():
    run = Run()
    schedule = torch.optim.lr_scheduler.LambdaLR(run.optimizer, lambda i: 1 / (1 + i))
    with Recorder(run.objective, optimizer=run.optimizer) as recorder:
        for _ in range(6):
            run.step()
            schedule.step()
    run.step()  # no longer recorded
    assert recorder.columns.steps == 6 and recorder.strayed < 1e-3
    assert recorder.columns.time == pytest.approx(0.05 * sum(1 / i for i in range(1, 7)))
    plain = Run()
    recorder = Recorder(plain.objective, lr=0.05)
    plain.step()
    recorder.step()
    assert recorder.strayed < 1e-3


def test_memory_does_not_grow_with_the_run():
    recorder = Run(optimizer=lambda p: SGD(p, lr=0.01, momentum=0.9)).record(3)
    before = {name: t.shape for name, t in recorder.columns.tensors().items()}
    run = Run(optimizer=lambda p: SGD(p, lr=0.01, momentum=0.9)).record(40)
    assert {name: t.shape for name, t in run.columns.tensors().items()} == before


def test_a_record_goes_on_from_its_state_as_if_never_interrupted():
    through = Run(optimizer=OPTIMIZERS["AdamW"]).record(12)
    run = Run(optimizer=OPTIMIZERS["AdamW"])
    state = run.record(5).state_dict()
    again = Recorder(run.objective, run.queries, optimizer=run.optimizer)
    again.load_state_dict(state)
    for _ in range(7):
        run.step()
        again.step()
    one, two = through.operators(), again.operators()
    for name in ("propagator", "dissipation", "displacement", "transfer", "action"):
        close(getattr(two, name), getattr(one, name), 1e-12)
    assert two.identities == pytest.approx(one.identities, rel=1e-6) and two.time == one.time
    run.step()
    with pytest.raises(errors.InputError, match="not those of the state"):
        again.load_state_dict(state)
    with pytest.raises(errors.InputError, match="another problem"):
        Run(n=5).record(1).load_state_dict(state)


def test_the_run_is_left_alone():
    bare, recorded = Run(), Run()
    for _ in range(5):
        bare.step()
    recorded.record(5)
    assert all(torch.equal(a, b) for a, b in zip(bare.theta().values(), recorded.theta().values(), strict=True))


def test_a_run_that_breaks_is_recorded_until_then_and_goes_on():
    run = Run()
    recorder = run.record(4)
    before = recorder.operators()
    with torch.no_grad():
        run.model[0].bias.fill_(torch.nan)
    with pytest.warns(RuntimeWarning, match="ends after 4 steps"):
        recorder.step()
    recorder.step()
    assert recorder.ended and torch.equal(recorder.operators().propagator, before.propagator)


def test_directions_that_grow_beyond_numbers_end_the_record():
    """At this rate every direction is unstable, and grows from step to step, though the run has next to nothing."""
    run = Run(layers=(nn.Linear(2, 1),), optimizer=lambda p: SGD(p, lr=40.0))
    for p in run.model.parameters():
        nn.init.zeros_(p)
    run.y.fill_(1e-200)
    recorder = Recorder(js.supervised(run.model, run.x, run.y, "mse"), optimizer=run.optimizer)

    def on():
        while not recorder.ended and recorder.columns.steps < 400:  # no step is taken
            recorder.step()

    with pytest.warns(RuntimeWarning, match="grown beyond numbers"):
        on()
    assert torch.isfinite(recorder.operators().propagator).all() and recorder.columns.steps < 400


def test_moves_by_rounding_are_no_moves():
    run = Run(optimizer=lambda p: SGD(p, lr=1e-18))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.record(3)


def test_data_that_change_under_a_record_end_it():
    run = Run()
    recorder = run.record(2)
    run.step()
    run.x.add_(0.1)
    with pytest.warns(RuntimeWarning, match="ends after 2 steps: the model or its data are others"):
        recorder.step()
    assert recorder.operators().steps == 2


def test_steps_too_long_are_told_with_one_that_would_do():
    run = Run(optimizer=lambda p: SGD(p, lr=3.0))
    with pytest.warns(RuntimeWarning, match=r"too long .* \(a rate of (\d+\.?\d*) would do") as caught:
        run.record(8)
    assert sum("too long" in str(warning.message) for warning in caught) == 1


def test_weights_that_do_not_move_or_are_frozen_are_no_trouble():
    run = Run()
    run.model[0].weight.requires_grad_(False)
    objective = js.supervised(run.model, run.x, run.y, "mse")
    recorder = Recorder(
        objective, run.queries, optimizer=SGD([p for p in run.model.parameters() if p.requires_grad], 0.05)
    )
    assert recorder.columns.moved.shape[1] == sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    still = Run(optimizer=lambda p: SGD(p, lr=0.0))
    recorder = Recorder(still.objective, lr=0.05)
    with pytest.warns(RuntimeWarning, match="moved otherwise"):
        recorder.step()  # no step was taken


def at_rest():
    run = Run(layers=(nn.Linear(2, 1),))
    with torch.no_grad():
        targets = run.model(run.x)
    return Recorder(js.supervised(run.model, run.x, targets, "mse"), lr=0.1)


I, SHAPED, WIDE = errors.InputError, errors.JumpstartError, randn(0, 3, 5)
BAD = {
    "no rule": (lambda r: Recorder(r.objective), I, "optimizer= or"),
    "two rules": (lambda r: Recorder(r.objective, optimizer=r.optimizer, lr=1.0), I, "optimizer= or"),
    "a rate of zero": (lambda r: Recorder(r.objective, lr=0.0), I, "lr=0.0"),
    "no modes": (lambda r: Recorder(r.objective, lr=1.0, modes=0), I, "modes=0"),
    "modes of others": (lambda r: Recorder(r.objective, lr=1.0, modes=WIDE), errors.ShapeError, "9 outputs"),
    "modes of NaN": (lambda r: Recorder(r.objective, lr=1.0, modes=randn(0, 2, 9) * torch.nan), I, "modes hold NaN"),
    "half a step": (lambda r: Recorder(r.objective, lr=1.0, every=0.5), I, "every=0.5"),
    "a third order": (lambda r: Recorder(r.objective, lr=1.0, order=3), I, "order=3"),
    "the middle of none": (lambda r: Recorder(r.objective, lr=1.0, order=4, every=2), I, "every=2"),
    "no objective": (lambda r: Recorder(r.model, lr=1.0), I, "js.Objective"),
    "no memory": (lambda r: Recorder(r.objective, lr=1.0, memory_limit=3000), errors.MemoryLimitError, "modes="),
    "queries of another width": (lambda r: Recorder(r.objective, WIDE, lr=1.0), SHAPED, "query"),
    "NaN in queries": (lambda r: Recorder(r.objective, WIDE * torch.nan, lr=1.0), errors.NonFiniteError, "query"),
    "rows beyond": (lambda r: Recorder(r.objective, lr=1.0).step(torch.tensor([9])), I, "samples 0 to 8"),
    "rows of weights": (lambda r: Recorder(r.objective, lr=1.0).step(torch.rand(9)), I, "numbers"),
    "no context": (lambda r: Recorder(r.objective, lr=1.0).__enter__(), I, "give optimizer="),
    "at rest": (lambda r: at_rest(), I, "no gradient"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_recorded_is_refused(name):
    make, kind, words = BAD[name]
    with pytest.raises(kind, match=words):
        make(Run())


def test_an_optimizer_that_is_not_known_is_refused_by_name():
    run = Run(optimizer=lambda p: torch.optim.Rprop(p, lr=1e-3))
    recorder = Recorder(run.objective, optimizer=run.optimizer)
    run.step()
    with pytest.raises(errors.JumpstartError, match="Rprop"):
        recorder.step()
    run = Run(optimizer=lambda p: SGD(p, lr=1e-3, maximize=True))
    with pytest.raises(errors.InputError, match="maximizes"):
        run.record(1)
