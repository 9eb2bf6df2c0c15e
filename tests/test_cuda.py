"""The same problem on a CPU and on a GPU: the same answers, on the device that was asked for."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.ntk.collocation import gathered_kernel
from jumpstart.utils.memory import available_memory

from .problems import classes, cnn, fill, mlp, randn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"
BOTH = ("cpu", DEVICE)


def close(found, expected, tolerance=1e-9):
    """Relative agreement of what came from the device with what came from the CPU."""
    assert found.device.type == DEVICE and expected.device.type == "cpu"
    found, expected = found.detach().cpu().double(), expected.detach().double()
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


def source(x):
    return 2 * math.pi**2 * torch.sin(math.pi * x).prod()


def laplacian(net, x):
    return torch.func.hessian(lambda z: net(z)[0])(x).diagonal().sum() + source(x)


def boundary(net, x):
    return net(x)


class Branching(nn.Module):
    """No chain of layers: residuals go the general way, by nested transforms."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) * (2.0 if x.shape[-1] == 2 else 1.0)


def inside(seed, n=40):
    return torch.sigmoid(randn(seed, n, 2))


def edge(seed, n=24):
    points = inside(seed, n)
    points[: n // 2, 0], points[n // 2 :, 1] = (randn(seed + 1, n // 2) > 0).double(), 0.0
    return points


def poisson(device, dtype=torch.float64, seed=0, width=16, general=False):
    model = mlp(seed, d=2, width=width, out=1)
    model = (Branching(model) if general else model).to(device, dtype)
    terms = ((laplacian, inside(seed + 7), 1 / 40), (boundary, edge(seed + 8), 4 / 24))
    return js.residual(model, *[js.Term(fn, points.to(device, dtype), weight=w) for fn, points, w in terms])


def weights(objective):
    return objective.space.read(objective.model)


@pytest.mark.parametrize("general", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_residuals_and_their_derivatives(dtype, tolerance, general):
    there, here = (linearize(poisson(device, dtype, general=general)) for device in reversed(BOTH))
    v, w = randn(3, here.theta.numel()), randn(4, *here.u.shape)
    assert all((part.local is None) is general for part in there.parts)
    close(there.u, here.u, tolerance)
    close(there.jacobian(), here.jacobian(), tolerance)
    close(there.jvp(v.to(there.u)), here.jvp(v.to(here.u)), tolerance)
    close(there.vjp(w.to(there.u)), here.vjp(w.to(here.u)), tolerance)
    close(there.second(v.to(there.u)), here.second(v.to(here.u)), tolerance)
    if not general:
        kernel, rows = gathered_kernel(there), here.jacobian()
        assert kernel is not None
        close(kernel, rows @ rows.T, tolerance)


@pytest.mark.parametrize(
    "options",
    [
        {"search": "levenberg-marquardt"},
        {"search": "levenberg-marquardt", "chord_steps": 2},
        {"search": "levenberg-marquardt", "weight_decay": 1e-3},
        {"search": "horizon"},
        {"search": "scale"},
        {"basis": "krylov"},
        {"basis": "matrix-free"},
        {"basis": "matrix-free", "depth": 10},
    ],
    ids=str,
)
def test_a_jump(options):
    here, there = (poisson(device) for device in BOTH)
    start = weights(there)
    expected, found = js.jump(here, **options), js.jump(there, **options)
    assert found.accepted and (found.outcome, found.basis) == (expected.outcome, expected.basis)
    assert found.candidates == expected.candidates
    assert found.actual == pytest.approx(expected.actual, rel=1e-6)
    assert found.predicted == pytest.approx(expected.predicted, rel=1e-6, abs=1e-9 * expected.before)
    close(weights(there) - start, weights(here) - start.cpu(), 1e-6)


def test_a_jump_in_float32():
    here, there = (poisson(device, torch.float32) for device in BOTH)
    expected, found = js.jump(here), js.jump(there)
    assert found.accepted and found.actual == pytest.approx(expected.actual, rel=1e-2)
    assert weights(there).dtype == torch.float32
    close(weights(there), weights(here), 1e-2)


def test_a_rejected_jump_changes_neither_weights_nor_random_state():
    objective = poisson(DEVICE)
    start, state = weights(objective), torch.cuda.get_rng_state()
    result = js.jump(objective, search="horizon", horizon=1e9, basis="krylov", geodesic=False)
    assert not result.accepted
    assert torch.equal(weights(objective), start) and torch.equal(torch.cuda.get_rng_state(), state)


def test_a_fit():
    here, there = (js.fit(poisson(device), jumps=20) for device in BOTH)
    for a, b in zip(there.history[:4], here.history[:4], strict=True):  # later ones part, by rounding
        assert a["outcome"] == b["outcome"] and a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert there.loss < 1e-3 * there.start and here.loss < 1e-3 * here.start


def test_a_fit_of_a_kernel_that_is_gathered_and_factored():
    objectives = [poisson(device, width=700) for device in BOTH]
    here, there = (js.fit(objective, jumps=3) for objective in objectives)
    assert objectives[0].theta().numel() * objectives[0].shape[0] > 2.5e7  # where the Jacobian is formed no more
    assert there.loss == pytest.approx(here.loss, rel=1e-3) and there.loss < 0.1 * there.start


class Stop(Exception):
    pass


@pytest.mark.parametrize("device", BOTH)
def test_a_checkpoint_goes_on_where_it_was_and_on_another_device(device, tmp_path):
    counted: list[js.JumpResult] = []

    def interrupt(result):
        counted.append(result)
        if len(counted) == 4:
            raise Stop

    whole = js.fit(poisson(DEVICE), jumps=8)
    with pytest.raises(Stop):
        js.fit(poisson(DEVICE), jumps=8, path=tmp_path / "run.pt", callback=interrupt)
    objective = poisson(device)
    with torch.no_grad():
        next(objective.model.parameters()).zero_()
    rest = js.fit(objective, jumps=8, path=tmp_path / "run.pt")
    assert rest.jumps == 8 and weights(objective).device.type == device
    assert rest.start == whole.start
    assert [row["loss"] for row in rest.history[:6]] == pytest.approx([r["loss"] for r in whole.history[:6]], rel=1e-3)


def test_resampled_points():
    def fresh(device):
        return lambda jump: {"laplacian": inside(100 + jump).to(device), "boundary": edge(200 + jump, 36).to(device)}

    here, there = (
        js.fit(poisson(device), jumps=6, resample=fresh(device), every=2, nonmonotone=False) for device in BOTH
    )
    assert there.loss == pytest.approx(here.loss, rel=1e-3) and there.accepted == here.accepted


def test_restarts():
    def quadratic(device):  # its minimum is reached at once, and is not zero
        return js.supervised(
            fill(nn.Linear(3, 1), 0).to(device), randn(1, 20, 3).to(device), randn(2, 20, 1).to(device)
        )

    objectives = [quadratic(device) for device in BOTH]
    here, there = (js.fit(o, jumps=30, patience=2, restarts=2, nonmonotone=False) for o in objectives)
    assert there.restarts == here.restarts == 2
    assert there.outcome is here.outcome and there.cause
    close(weights(objectives[1]), weights(objectives[0]), 1e-6)


class Diffusion(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.mlp = mlp(seed, d=2, out=1)
        self.log_alpha = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, z):
        return self.mlp(z)


def heat(net, z):
    u = lambda z: net(z)[0]  # noqa: E731
    return torch.func.grad(u)(z)[1] - net.log_alpha.exp() * torch.func.hessian(u)(z)[0, 0]


def measured(net, row):
    return net(row[:2])[0] - row[2]


def test_an_unknown_of_the_equation():
    def objective(device):
        z = inside(5, 60)
        u = torch.exp(-0.1 * math.pi**2 * z[:, 1:]) * torch.sin(math.pi * z[:, :1])
        rows = torch.cat([z, u], 1).to(device)
        model = Diffusion(1).to(device)
        return js.residual(model, js.Term(heat, z.to(device), 1 / 60), js.Term(measured, rows, 10 / 60))

    objectives = [objective(device) for device in BOTH]
    first = [js.jump(o) for o in objectives]
    assert first[1].actual == pytest.approx(first[0].actual, rel=1e-6)
    close(objectives[1].model.log_alpha, objectives[0].model.log_alpha, 1e-6)
    js.fit(objectives[1], jumps=60)
    assert objectives[1].model.log_alpha.exp().item() == pytest.approx(0.1, rel=0.05)
    assert all(term.where.device.type == DEVICE for term in objectives[1].terms())


def data(device, loss="mse", seed=0, net=mlp, shape=(4,)):
    model, x = net(seed, out=3).to(device), randn(seed + 1, 12, *shape).to(device)
    y = classes(seed + 2, 12, 3) if loss == "cross_entropy" else randn(seed + 2, 12, 3)
    return js.supervised(model, x, y.to(device), loss=loss)


@pytest.mark.parametrize("basis", ["dense", "krylov"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize(("net", "shape"), [(mlp, (4,)), (cnn, (1, 6, 6))])
def test_a_solution(loss, basis, net, shape):
    here, there = (js.solve(data(device, loss, net=net, shape=shape), basis=basis, depth=6) for device in BOTH)
    query = randn(9, 5, *shape)
    for t in (0.3, 20.0, js.steps(50, lr=0.05)):
        close(there.outputs(t), here.outputs(t), 1e-5)
        close(there.predict(query.to(DEVICE), t), here.predict(query, t), 1e-5)
    for name, value in here.parameters(5.0).items():
        close(there.parameters(5.0)[name], value, 1e-5)
    close(there.loss(torch.tensor([0.1, 1.0])), here.loss(torch.tensor([0.1, 1.0])), 1e-5)
    assert there.error_bound(1.0) == pytest.approx(here.error_bound(1.0), rel=1e-4)
    assert "modes" in there.explain()


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_what_is_asked_of_a_solution(loss):
    here, there = (js.solve(data(device, loss), basis="dense") for device in BOTH)
    times = torch.logspace(-2, 2, 6)
    close(there.outputs(0.1, order=2), here.outputs(0.1, order=2), 1e-6)
    close(there.without([3, 5]).outputs(1.0), here.without([3, 5]).outputs(1.0), 1e-6)
    torch.testing.assert_close(there.risk(times).cpu(), here.risk(times).cpu(), rtol=1e-5, atol=0)
    assert there.check(1.0).trust_horizon == pytest.approx(here.check(1.0).trust_horizon, rel=1e-3)
    assert there.best_horizon() == pytest.approx(here.best_horizon(), rel=1e-3)
    if loss == "mse":
        many = randn(3, 7, 12, 3)
        close(there.with_targets(many.to(DEVICE)).outputs(1.0), here.with_targets(many).outputs(1.0), 1e-8)
        close(there.tuned().solution.outputs(1.0), here.tuned().solution.outputs(1.0), 1e-5)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_jumps_in_a_loop(make, loss):
    results = []
    for device in BOTH:
        objective = data(device, loss)
        optimizer = js.JumpOptimizer(make(objective.model.parameters(), lr=1e-3), objective, at=5, search=True)
        for _ in range(12):
            optimizer.zero_grad()
            objective.loss.value(objective.model(objective.parts[0].inputs)).backward()
            optimizer.step()
        fresh = copy.deepcopy(optimizer)
        fresh.load_state_dict(optimizer.state_dict())
        results.append((weights(objective), optimizer.results))
    (theta, expected), (moved, found) = results
    assert len(found) == 2 and all(result.accepted for result in found)
    assert found[0].actual == pytest.approx(expected[0].actual, rel=1e-5)
    close(moved, theta, 1e-3)


def test_memory_that_torch_keeps_for_later_counts_as_free():
    before = available_memory(torch.device(DEVICE))
    block = torch.empty(int(before) // 2, dtype=torch.uint8, device=DEVICE)
    assert available_memory(torch.device(DEVICE)) < 0.9 * before
    del block
    assert available_memory(torch.device(DEVICE)) == pytest.approx(before, rel=0.05)


def test_a_gaussian_process():
    x, y, query = randn(1, 12, 4), randn(2, 12), randn(3, 5, 4)
    found = []
    for device in BOTH:
        gp = js.gp.EndpointGP(mlp(0, out=1).to(device), x.to(device), y.to(device)).eval()
        found.append(gp(query.to(device)))
    close(found[1].mean, found[0].mean, 1e-6)
    close(found[1].variance, found[0].variance, 1e-6)


def test_contenders_are_compared():
    objective = data(DEVICE)
    state = torch.cuda.get_rng_state()
    report = js.compare(
        objective.model,
        lambda model: js.supervised(model, objective.parts[0].inputs, objective.loss.targets),
        {"jumps": js.jumped(torch.optim.Adam, at=3, search=True), "Adam": js.stepped(torch.optim.Adam)},
        seconds=0.5,
        progress=False,
    )
    assert set(report.contenders) == {"jumps", "Adam"} and torch.equal(torch.cuda.get_rng_state(), state)


def test_operators_along_a_run():
    """The same run recorded on both: what it says of itself, and what it tells of queries."""
    found = {}
    for device in BOTH:
        model = fill(nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)), 0).to(device)
        x, y, queries = (randn(seed, *shape).to(device) for seed, shape in enumerate(((12, 2), (12, 1), (4, 2))))
        objective, optimizer = js.supervised(model, x, y, "mse"), torch.optim.SGD(model.parameters(), 0.05, 0.9)
        with js.trajectory.Recorder(objective, queries, optimizer=optimizer) as recorder:
            for _ in range(20):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()
        found[device] = recorder.operators()
    for name in ("propagator", "dissipation", "displacement", "transfer", "action"):
        close(getattr(found[DEVICE], name), getattr(found["cpu"], name), 1e-8)
    assert found[DEVICE].error == pytest.approx(found["cpu"].error, rel=1e-4)
    assert found[DEVICE].channel(0.01).shape == found["cpu"].channel(0.01).shape


def test_jumps_that_keep_the_balance():
    found = {}
    for device in BOTH:
        model = fill(nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1)), 0).to(device)
        x, y = randn(0, 12, 2).to(device), randn(1, 12, 1).to(device)
        kept = js.trajectory.balance(model)
        assert js.jump(js.supervised(model, x, y, "mse"), keep_balance=True).accepted
        assert float((js.trajectory.balance(model)["0"] - kept["0"]).abs().max()) < 1e-11
        found[device] = model(x)
    close(found[DEVICE], found["cpu"])
