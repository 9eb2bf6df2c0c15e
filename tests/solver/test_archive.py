"""Saved solutions: the same answers after loading, no derivative spent on it, a named refusal of everything else."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart import bases
from jumpstart.archive.container import Kind, write
from jumpstart.errors import ArchiveError
from jumpstart.flow.reduced_flow import ReducedFlow
from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.metric import Metric
from jumpstart.solver import archive
from jumpstart.solver.solve import Solution, solve
from jumpstart.utils.cost import FORWARD

from ..archive.forgery import forged
from ..problems import classes, fill, generator, mlp, problem_of, randn

INF = math.inf
TIMES = torch.tensor([0.0, 0.3, 5.0, INF], dtype=torch.float64)


def problem(dtype=torch.float64, loss="mse", seed=0, out=3):
    """An objective, query points, and a function that makes the same objective around a model of other weights."""
    x, query = randn(seed, 8, 4).to(dtype), randn(seed + 9, 5, 4).to(dtype)
    y = {
        "mse": randn(seed + 1, 8, out).to(dtype),
        "cross_entropy": classes(seed, 8, out),
        "logistic": (randn(seed + 1, 8, out) > 0).to(dtype),
    }[loss]

    def objective(model_seed=seed, **options):
        return js.supervised(mlp(model_seed, out=out).to(dtype), x, y, loss=loss, **options)

    return objective(), query, objective


def built(objective, make, metric=None, gate=None, tolerance=None):
    basis = make(problem_of(linearize(objective), metric, objective.loss))
    flow = ReducedFlow(basis, objective.loss, *([] if tolerance is None else [tolerance]))
    solution = Solution(objective, flow, None)
    return solution.gated(gate) if gate else solution


def stored(solution, path):
    return archive.save(path, solution.flow)


def loaded(path, objective):
    return Solution(objective, archive.load(path, objective), None)


def same(found, expected, tolerance=1e-12):
    found, expected = torch.as_tensor(found).double(), torch.as_tensor(expected).double()
    assert found.shape == expected.shape
    if torch.equal(found, expected):
        return
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


def compare(found, expected, query):
    """Every answer of two solutions."""
    end = INF if expected.flow.loss.quadratic else 50.0  # of separable classes, the end takes long to get to
    times = TIMES.clamp(max=end)
    same(found.outputs(times), expected.outputs(times))
    same(found.outputs(js.steps(7, 0.05)), expected.outputs(js.steps(7, 0.05)))
    same(found.predict(query, times), expected.predict(query, times))
    same(found.predict(query, 0.7), expected.predict(query, 0.7))
    same(found.loss(times), expected.loss(times))
    same(found.spectrum, expected.spectrum)
    for t in (0.0, 0.3, end):
        same(found.error_bound(t), expected.error_bound(t))
    before, after = expected.parameters(5.0), found.parameters(5.0)
    assert before.keys() == after.keys()
    for name in before:
        assert after[name].dtype == before[name].dtype
        same(after[name], before[name])
    assert found.outputs(1.0).dtype == expected.outputs(1.0).dtype


def dense(route):
    return lambda problem: bases.dense(problem, route=route)


def krylov(side, depth=5):
    return lambda problem: bases.krylov(problem, depth, side=side)


def prefix(problem):
    theta = problem.lin.theta
    return bases.span(problem, randn(3, 4, theta.numel()).to(theta.dtype))


BASES = {
    "kernel": dense("kernel"),
    "svd": dense("svd"),
    "gram": dense("gram"),
    "krylov": krylov("parameters"),
    "krylov, outputs": krylov("outputs"),
    "span": prefix,
}


@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "logistic"])
@pytest.mark.parametrize("name", BASES)
def test_round_trip(name, loss, tmp_path):
    objective, query, again = problem(loss=loss)
    solution = built(objective, BASES[name])
    path = stored(solution, tmp_path / "a.solution")
    compare(loaded(path, again()), solution, query)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["kernel", "svd", "krylov", "krylov, outputs"])
def test_round_trip_in_lower_precision(name, dtype, tmp_path):
    objective, query, again = problem(dtype)
    solution = built(objective, BASES[name])
    found = loaded(stored(solution, tmp_path / "a.npz"), again())
    for mine, theirs in ((found.basis.images, solution.basis.images), (found.lin.u, solution.lin.u)):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)
    assert found.lin.theta.dtype == solution.lin.theta.dtype
    compare(found, solution, query)


@pytest.mark.parametrize("rates", ["one rate", "many rates"])
@pytest.mark.parametrize("name", ["kernel", "svd", "krylov", "span"])
def test_round_trip_with_metric_and_decay(name, rates, tmp_path):
    objective, query, again = problem()
    size = objective.space.size
    root = torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    decay = 0.03 if rates == "one rate" else 0.1 * root
    solution = built(objective, BASES[name], Metric(root, decay), tolerance=1e-6)
    found = loaded(stored(solution, tmp_path / "a.npz"), again())
    assert torch.equal(found.basis.metric.root, root)
    assert found.flow.tolerance == 1e-6
    compare(found, solution, query)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("gate", ["hard", "soft", "snr"])
def test_round_trip_with_gates(gate, loss, tmp_path):
    objective, query, again = problem(loss=loss)
    solution = built(objective, BASES["kernel"], gate=gate)
    assert not bool((solution.flow.gates == 1).all())
    found = loaded(stored(solution, tmp_path / "a.npz"), again())
    assert torch.equal(found.flow.gates, solution.flow.gates)
    compare(found, solution, query)


def test_what_solve_returns_and_a_model_that_has_moved(tmp_path):
    """The solution is about the saved weights, not about those that the model has by now."""
    objective, query, again = problem(loss="cross_entropy")
    optimizer = torch.optim.AdamW(objective.model.parameters(), 0.01, weight_decay=0.1)
    for _ in range(3):
        objective.loss.value(objective.model(objective.parts[0].inputs)).backward()
        optimizer.step()
    solution = solve(objective, metric=optimizer)
    path = stored(solution, tmp_path / "a.npz")
    moved = again(model_seed=5)
    compare(loaded(path, moved), solution, query)
    objective.space.write(objective.model, objective.theta() + 1)
    compare(loaded(path, objective), solution, query)
    expected = mlp(5).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in moved.model.state_dict().items())


def test_other_objectives(tmp_path):
    """Some parameters alone; chunks; residuals; a convex function as the loss; an exactly zero gradient."""
    objective, query, again = problem()
    part = solve(objective, params=["4"])
    compare(loaded(stored(part, tmp_path / "a"), again().subset(["4"])), part, query)

    chunked = solve(again(chunk=3))
    compare(loaded(stored(chunked, tmp_path / "b"), again(chunk=3)), chunked, query)

    net, points = mlp(1, out=1), randn(4, 6, 4)
    residual = js.residual(net, js.Term(lambda f, x: f(x) - x.sum(), points, weight=0.5))
    solution = solve(residual)
    found = loaded(stored(solution, tmp_path / "c"), residual)
    same(found.outputs(TIMES), solution.outputs(TIMES))

    def smooth(u, y):
        return torch.log(torch.cosh(u - y)).mean()

    x, y = randn(0, 8, 4), randn(1, 8, 3)
    convex = js.supervised(mlp(0), x, y, loss=smooth)
    solution = solve(convex)
    compare(loaded(stored(solution, tmp_path / "d"), js.supervised(mlp(2), x, y, loss=smooth)), solution, query)

    model = mlp(0)
    with torch.no_grad():
        there = js.supervised(model, x, model(x))
    solution = solve(there, basis="krylov", depth=3)
    assert solution.basis.size == 0
    same(loaded(stored(solution, tmp_path / "e"), there).outputs(INF), solution.outputs(INF))


def test_loading_costs_a_forward_pass_and_factorizes_nothing(tmp_path, monkeypatch):
    objective, _, again = problem(loss="cross_entropy")
    path = stored(built(objective, BASES["kernel"], gate="snr"), tmp_path / "a.npz")
    target = again()
    linearize(target)  # asks the model twice, once in its life

    def forbidden(*args, **kwargs):
        raise AssertionError("a factorization")

    for name in ("eigh", "svd", "qr", "cholesky"):
        monkeypatch.setattr(torch.linalg, name, forbidden)
    ledger = archive.load(path, target).problem.lin.ledger
    assert (ledger.forwards, ledger.pushes, ledger.pulls, ledger.seconds) == (1, 0, 0, 0)


def test_a_krylov_remainder_is_measured_when_saved(tmp_path):
    objective, _, again = problem()
    for name in ("krylov", "krylov, outputs"):
        solution = built(objective, BASES[name])
        expected = solution.basis.remainder.measure()
        found = loaded(stored(solution, tmp_path / "a.npz"), again())
        spent = found.lin.ledger.gradient_evaluations
        assert found.basis.remainder.measure() == expected
        assert found.error_bound(1.0) == pytest.approx(solution.error_bound(1.0), rel=1e-12)
        assert found.lin.ledger.gradient_evaluations <= spent + FORWARD  # a look at whether the model is the same


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["kernel", "krylov"])
def test_from_one_device_to_another(name, tmp_path):
    objective, query, _ = problem(loss="cross_entropy")
    solution = built(objective, BASES[name])
    path = stored(solution, tmp_path / "a.npz")
    x, y = objective.parts[0].inputs.cuda(), objective.loss.targets.cuda()
    there = loaded(path, js.supervised(mlp(3).cuda(), x, y, loss="cross_entropy"))
    assert there.outputs(1.0).is_cuda
    same(there.predict(query.cuda(), 1.0).cpu(), solution.predict(query, 1.0), tolerance=1e-7)
    back = loaded(stored(there, tmp_path / "b.npz"), objective)
    same(back.outputs(1.0), solution.outputs(1.0), tolerance=1e-7)


# -- writing -----------------------------------------------------------------------------------------------------


def test_the_path_is_returned_as_given_and_an_old_file_is_replaced(tmp_path, monkeypatch):
    objective, _, again = problem()
    solution = solve(objective)
    monkeypatch.chdir(tmp_path)
    assert str(stored(solution, "run.jump")) == "run.jump"
    (tmp_path / "old").write_text("something else")
    stored(solution, tmp_path / "old")
    loaded(tmp_path / "old", again())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old", "run.jump"]
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "old").stat().st_mode & 0o777 == 0o666 & ~mask


def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    objective, _, again = problem()
    path = stored(solve(objective), tmp_path / "a.npz")
    whole = path.read_bytes()

    def interrupted(file, array, **options):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(np.lib.format, "write_array", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stored(solve(again(3)), path)
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_a_place_that_cannot_be_written(tmp_path):
    solution = solve(problem()[0])
    with pytest.raises(ArchiveError, match="nowhere"):
        stored(solution, tmp_path / "nowhere" / "a.npz")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArchiveError, match="folder"):
        stored(solution, tmp_path / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    objective, _, _ = problem()
    return stored(solve(objective), tmp_path_factory.mktemp("saved") / "a.npz")


def other(width=12, names=False, dtype=torch.float64, **options):
    x, y = randn(0, 8, 4).to(dtype), randn(1, 8, 3).to(dtype)
    model = mlp(0, width=width).to(dtype)
    return js.supervised(nn.ModuleDict({"net": model}).net if not names else Named(model), x, y, **options)


class Named(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


class Casting(nn.Sequential):
    def forward(self, x):
        return super().forward(x.double())


class Turned(nn.Module):
    """The same parameters, used otherwise."""

    def __init__(self, net):
        super().__init__()
        for i, layer in enumerate(net):
            self.add_module(str(i), layer)

    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return -x


def test_another_model_is_refused_by_name(saved):
    with pytest.raises(ArchiveError, match=r"parameter '0.weight' has shape \[12, 4\] in the file and \[9, 4\] in the"):
        archive.load(saved, other(width=9))
    with pytest.raises(ArchiveError, match=r"\['0.weight', .* does not move: .*another model"):
        archive.load(saved, other(names=True))
    with pytest.raises(ArchiveError, match="has dtype float64 in the file and float32 in the model"):
        archive.load(saved, other(dtype=torch.float32))
    with pytest.raises(ArchiveError, match="does not move"):
        archive.load(saved, other().subset(["4"]))
    x, y = randn(0, 8, 4), randn(1, 8, 3)
    with pytest.raises(ArchiveError, match=r"outputs .* \(relative\) from the saved"):
        archive.load(saved, js.supervised(Turned(mlp(0)), x, y))
    with pytest.raises(ArchiveError, match=r"needs the js\.Objective"):
        archive.load(saved, mlp(0))


def test_more_parameters_than_were_solved_for(tmp_path):
    path = stored(solve(other(), params=["4"]), tmp_path / "a.npz")
    with pytest.raises(ArchiveError, match=r"moves \['0.weight'.*objective.subset"):
        archive.load(path, other())


def test_other_data_and_losses_are_refused(saved, tmp_path):
    model, x, y = mlp(0), randn(0, 8, 4), randn(1, 8, 3)
    with pytest.raises(ArchiveError, match=r"outputs have shape \[8, 3\] in the file and \[7, 3\]"):
        archive.load(saved, js.supervised(model, x[:7], y[:7]))
    with pytest.raises(ArchiveError, match="targets differ"):
        archive.load(saved, js.supervised(model, x, y + 1e-12))
    for near in (x + 1e-3, x + 1e-12, x.flip(0), torch.cat([x[:-1], x[:1]])):
        with pytest.raises(ArchiveError, match=r"the inputs differ \(by SHA-256\): other inputs"):
            archive.load(saved, js.supervised(model, near, y))
    with pytest.raises(ArchiveError, match=r"inputs have dtype float64 in the file and float32 here"):
        archive.load(saved, js.supervised(Casting(*mlp(0)), x.float(), y))
    with pytest.raises(ArchiveError, match="loss Squares, but the objective has Logistic"):
        archive.load(saved, js.supervised(model, x, (y > 0).double(), loss="logistic"))
    with pytest.raises(ArchiveError, match="another loss"):
        archive.load(saved, js.supervised(model, x, loss=js.losses.Squares(y, 0.5)))

    def power(p):
        return lambda u, t: (u - t).abs().pow(p).sum()

    path = stored(solve(js.supervised(model, x, y, loss=power(4))), tmp_path / "p.npz")
    with pytest.raises(ArchiveError, match="another loss"):
        archive.load(path, js.supervised(model, x, y, loss=power(3)))
    labels = classes(0, 8, 3)
    path = stored(solve(js.supervised(model, x, loss=js.losses.CrossEntropy(labels))), tmp_path / "c.npz")
    with pytest.raises(ArchiveError, match="another loss"):
        archive.load(path, js.supervised(model, x, loss=js.losses.CrossEntropy(labels, ignore_index=int(labels[0]))))


def test_buffers_that_have_moved_are_noticed(tmp_path):
    model = nn.Sequential(fill(nn.Linear(4, 6), 0), nn.BatchNorm1d(6).double(), fill(nn.Linear(6, 2), 1)).eval()
    objective = js.supervised(model, randn(0, 8, 4), randn(1, 8, 2))
    path = stored(solve(objective), tmp_path / "a.npz")
    archive.load(path, objective)
    model[1].running_mean += 0.01
    with pytest.raises(ArchiveError, match="BatchNorm statistics"):
        archive.load(path, objective)


def test_files_that_are_no_archives(saved, tmp_path):
    objective, whole = other(), saved.read_bytes()
    with pytest.raises(ArchiveError, match="no such file"):
        archive.load(tmp_path / "missing.npz", objective)
    for content in (b"", b"hello", whole[10:]):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ArchiveError, match=r"x holds no saved solution: .*: save it again"):
            archive.load(tmp_path / "x", objective)
    with pytest.raises(ArchiveError, match="is a folder"):
        archive.load(tmp_path, objective)
    fit = write(tmp_path / "fit", Kind("fit", 1, "checkpoint of js.fit", ""), {}, {})
    with pytest.raises(ArchiveError, match=r"holds a 'fit', not a saved solution"):
        archive.load(fit, objective)


def refused(path, objective):
    """Whether loading is refused, with the model left as it was."""
    before = objective.theta()
    with pytest.raises(ArchiveError):
        archive.load(path, objective)
    return torch.equal(objective.theta(), before)


def test_every_flipped_bit_is_found(saved, tmp_path):
    objective, whole, bits = other(), bytearray(saved.read_bytes()), generator(1)
    for at in np.linspace(0, len(whole) - 1, 300).astype(int):
        damaged = whole.copy()
        damaged[at] ^= 1 << int(torch.randint(0, 8, (), generator=bits))
        (tmp_path / "x").write_bytes(damaged)
        assert refused(tmp_path / "x", objective)


def test_every_truncation_is_found(saved, tmp_path):
    objective, whole = other(), saved.read_bytes()
    for k in range(20):
        (tmp_path / "x").write_bytes(whole[: len(whole) * k // 20])
        assert refused(tmp_path / "x", objective)


def drop(name):
    return lambda header, arrays: header["content"].pop(name)


def put(name, value):
    return lambda header, arrays: header["content"].update({name: value})


def resize(name):
    """An array that has another shape, in the header as well."""

    def change(header, arrays):
        arrays[name] = np.ascontiguousarray(arrays[name][..., :-1])
        header["tensors"][name]["shape"] = list(arrays[name].shape)
        header["tensors"][name]["layout"] = list(range(arrays[name].ndim))

    return change


def forget(name):
    """An array that is gone without a trace."""
    return lambda header, arrays: (header["tensors"].pop(name), arrays.pop(name))


def spoil(name, value):
    """One number of an array."""
    return lambda header, arrays: arrays[name].reshape(-1).__setitem__(0, value)


def recast(name, dtype):
    def change(header, arrays):
        arrays[name] = arrays[name].astype(dtype)
        header["tensors"][name]["dtype"] = dtype

    return change


def more(header, arrays):
    header["tensors"]["more"] = {"dtype": "float64", "shape": [1], "layout": [0], "sha256": ""}
    arrays["more"] = np.ones(1)


TOLD = {"kind": "a", "route": "b", "complete": True, "modal": True, "is_krylov": False, "damping": 0.0}
ARRAYS = ("theta", "u", "images", "modes", "cotangents", "squares")
CHANGES = {
    **{f"no {name}": drop(name) for name in ("problem", "loss", "basis", "remainder", "metric", "flow", "gate")},
    **{f"{name} cut": resize(name) for name in ARRAYS},
    **{f"{name} forgotten": forget(name) for name in ARRAYS if name != "squares"},  # which may be missing
    **{f"NaN in {name}": spoil(name, math.nan) for name in ARRAYS},
    **{f"infinity in {name}": spoil(name, math.inf) for name in ARRAYS},
    **{f"a negative number in {name}": spoil(name, -1e-3) for name in ("modes", "squares")},
    **{f"integers as {name}": recast(name, "int64") for name in ARRAYS},
    "theta in another dtype": recast("theta", "float32"),
    "an unknown array": more,
    "the problem is text": put("problem", "this"),
    "the problem is empty": put("problem", {}),
    "the basis is text": put("basis", "dense"),
    "a basis with a surprise": put("basis", {**TOLD, "lin": 3}),
    "a basis that is no text": put("basis", {**TOLD, "kind": []}),
    "a gate of text": put("gate", "ajar"),
    "an unknown gate": put("gate", {"rule": "ajar", "options": {}}),
    "a gate with a surprise": put("gate", {"rule": "hard", "options": {"lam": 1.0}}),
    "half a remainder": put("remainder", [1.0]),
    "a remainder of text": put("remainder", ["a", "b"]),
    "a remainder that is not finite": put("remainder", [1.0, {"not finite": "inf"}]),
    "a tolerance of text": put("flow", {"tolerance": "x", "floor": 0.0}),
    "a negative tolerance": put("flow", {"tolerance": -1e-8, "floor": 0.0}),
    "a loss of nothing": put("loss", []),
    "a loss of text": put("loss", ["a", "b", "c"]),
    "the metric is gone": put("metric", {"decay": None}),
    "the metric is negative": put("metric", {"decay": -1.0}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_contents_that_no_solution_has(name, saved, tmp_path):
    """With every digest right."""
    path = forged(saved, tmp_path / "x", CHANGES[name])
    with pytest.raises(ArchiveError, match="holds no saved solution, is damaged"):
        archive.load(path, other())


def test_a_metric_of_zero_is_refused(tmp_path):
    objective, _, again = problem()
    root = torch.ones(objective.space.size, dtype=torch.float64)
    path = stored(built(objective, BASES["kernel"], Metric(root, 0.1 * root)), tmp_path / "a")
    archive.load(forged(path, tmp_path / "b", lambda header, arrays: None), again())
    changes = [spoil("root", 0.0), spoil("root", -1.0), spoil("rates", -1.0), forget("decay_force"), forget("decay")]
    for change in changes:
        with pytest.raises(ArchiveError, match="damaged"):
            archive.load(forged(path, tmp_path / "b", change), again())


def test_outputs_and_weights_that_do_not_belong_together(saved, tmp_path):
    """Whoever put the digests right as well: the network at θ₀ says u₀, or nothing is believed."""
    for name, match in (("u", r"outputs are .* \(relative\) from"), ("theta", r"outputs are .* \(relative\) from")):
        path = forged(saved, tmp_path / "x", lambda header, arrays, name=name: spoil(name, 1.5)(header, arrays))
        with pytest.raises(ArchiveError, match=match):
            archive.load(path, other())
    path = forged(saved, tmp_path / "x", put("loss", [1.0, 1.0, 1.0]))
    with pytest.raises(ArchiveError, match="another loss"):
        archive.load(path, other())


def test_outputs_that_another_machine_rounds_otherwise(tmp_path):
    """The saved ones are kept, and the loss is asked at them: close to its targets, rounding is all that is left."""

    class Rounding(Named):
        factor = 1.0

        def forward(self, x):
            return self.net(x) * self.factor

    model = Rounding(mlp(0))
    x = randn(0, 8, 4)
    y = model(x).detach() + 1e-10 * randn(1, 8, 3)
    objective = js.supervised(model, x, y)
    solution = solve(objective)
    path = stored(solution, tmp_path / "a")
    model.factor = 1 + 1e-13
    assert not torch.equal(objective.outputs(objective.theta()), solution.lin.u)
    found = loaded(path, objective)
    assert torch.equal(found.lin.u, solution.lin.u)
    assert found.loss(0.0) == solution.loss(0.0)


def test_weights_at_which_the_model_is_not_finite_any_more(tmp_path):
    class Root(Named):
        least = 0.0

        def forward(self, x):
            return torch.log(self.net(x).square() - self.least)

    model = Root(mlp(0))
    objective = js.supervised(model, randn(0, 8, 4), randn(1, 8, 3))
    path = stored(solve(objective), tmp_path / "a")
    model.least = 0.1
    with pytest.raises(ArchiveError, match=r"at the saved weights, .* NaN or infinite"):
        archive.load(path, objective)


def test_sizes_are_compared_with_the_objective_before_anything_is_read(saved, monkeypatch):
    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", allowed_once(np.lib.format.read_array_header_1_0))
    with pytest.raises(ArchiveError, match=r"in the file and \[9, 4\] in the model"):
        archive.load(saved, other(width=9))


def allowed_once(function):
    """The header is the first entry; another one is the data."""
    calls = []

    def asked(*args, **options):
        calls.append(1)
        assert len(calls) == 1, "data were read"
        return function(*args, **options)

    return asked


def test_chunks_are_no_part_of_the_problem(tmp_path):
    objective, query, again = problem()
    path = stored(solve(again(chunk=3)), tmp_path / "a")
    compare(loaded(path, objective), solve(objective), query)
    path = stored(solve(objective), tmp_path / "b")
    loaded(path, again(chunk=5))
    x = objective.parts[0].inputs.clone()
    x[-1] += 1e-9
    with pytest.raises(ArchiveError, match="the inputs differ"):
        loaded(path, js.supervised(mlp(0), x, objective.loss.targets, chunk=5))
