"""Saved solutions: the same answers after loading, no derivative spent on it, a named refusal of everything else."""

from __future__ import annotations

import io
import json
import math
import os
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.errors import ArchiveError
from jumpstart.flow import bases
from jumpstart.flow.reduced_flow import ReducedFlow
from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.metric import Metric
from jumpstart.solver import archive
from jumpstart.solver.solve import Solution, solve

from ..problems import classes, fill, mlp, problem_of, randn

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
    lin = linearize(objective)
    basis = make(lin, objective.loss, metric or Metric())
    flow = ReducedFlow(basis, objective.loss, *([] if tolerance is None else [tolerance]))
    solution = Solution(objective, lin, basis, flow, None)
    return solution.gated(gate) if gate else solution


def stored(solution, path):
    return archive.save(path, lin=solution.lin, basis=solution.basis, flow=solution.flow)


def loaded(path, objective):
    lin, basis, flow = archive.load(path, objective)
    return Solution(objective, lin, basis, flow, None)


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


def prefix(lin, loss, metric):
    return bases.span(problem_of(lin, metric), randn(3, 4, lin.theta.numel()).to(lin.theta.dtype))


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
    lin, _, _ = archive.load(path, target)
    ledger = lin.ledger
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
        assert found.lin.ledger.gradient_evaluations == spent


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

    def interrupted(file, **table):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
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


def rewritten(saved, tmp_path, change):
    """The file with its header and arrays changed in place by a function."""
    with np.load(saved) as found:
        arrays = {name: found[name] for name in found.files}
    header = json.loads(arrays.pop("header").tobytes())
    change(header, arrays)
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    np.savez(tmp_path / "changed.npz", **arrays)
    return tmp_path / "changed.npz"


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
    with pytest.raises(ArchiveError, match="other inputs"):
        archive.load(saved, js.supervised(model, x + 1e-3, y))
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
    objective = other()
    whole = saved.read_bytes()
    with pytest.raises(ArchiveError, match="no such file"):
        archive.load(tmp_path / "missing.npz", objective)
    plain = io.BytesIO()
    np.save(plain, np.zeros(3))
    foreign = io.BytesIO()
    np.savez(foreign, header=np.frombuffer(b'{"format": "a recipe"}', dtype=np.uint8))
    model = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, model)
    contents = [b"", b"hello", whole[:100], whole[: len(whole) // 2], whole[:-10], plain.getvalue()]
    for content in [*contents, foreign.getvalue(), model.getvalue()]:
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ArchiveError, match="holds no saved solution, is damaged"):
            archive.load(tmp_path / "x", objective)
    with pytest.raises(ArchiveError):
        archive.load(tmp_path, objective)


def test_damage_anywhere_is_noticed_or_harmless(saved, tmp_path):
    """One byte in 200 places: the file is refused by name, or what it says is unchanged (padding, dates)."""
    objective, whole, refused = other(), bytearray(saved.read_bytes()), 0
    expected = loaded(saved, objective).outputs(1.0)
    for at in np.linspace(0, len(whole) - 1, 200).astype(int):
        damaged = whole.copy()
        damaged[at] ^= 0x55
        (tmp_path / "x").write_bytes(damaged)
        try:
            found = loaded(tmp_path / "x", objective)
        except ArchiveError:
            refused += 1
            continue
        assert torch.equal(found.outputs(1.0), expected)
    print(f"{refused} of 200 damaged files refused")
    assert refused > 150


def test_a_later_format_is_refused(saved, tmp_path):
    path = rewritten(saved, tmp_path, lambda header, arrays: header.update(version=2, jumpstart="9.0"))
    with pytest.raises(ArchiveError, match=r"format 2, written by jumpstart 9.0.* upgrade"):
        archive.load(path, other())


def drop(where, name):
    return lambda header, arrays: (header if where == "header" else arrays).pop(name)


def put(name, value):
    return lambda header, arrays: header.update({name: value})


def resize(name):
    return lambda header, arrays: arrays.update({name: arrays[name][..., :-1]})


def forget(name):
    """An array that is gone without a trace."""
    return lambda header, arrays: (header["arrays"].pop(name), arrays.pop(name))


CHANGES = {
    **{f"no {name}": drop("header", name) for name in ("arrays", "parameters", "outputs", "basis", "flow", "loss")},
    **{f"no {name} in the header": drop("header", name) for name in ("remainder", "metric", "format", "version")},
    **{f"no array {name}": drop("arrays", name) for name in ("theta", "u", "images", "gates", "modes", "cotangents")},
    **{f"{name} cut": resize(name) for name in ("theta", "u", "images", "gates", "modes", "cotangents", "squares")},
    **{f"{name} forgotten": forget(name) for name in ("theta", "u", "images", "gates", "modes", "cotangents")},
    "an unknown array": lambda header, arrays: (
        header["arrays"].update(more=["float64", [0]]) or arrays.update(more=np.ones(1))
    ),
    "an unknown dtype": lambda header, arrays: header["arrays"].update(theta=["load", [0]]),
    "other outputs": lambda header, arrays: arrays.update(u=arrays["u"] + 1),
    "the format is a list": put("format", []),
    "the version is text": put("version", "1"),
    "the basis is text": put("basis", "dense"),
    "a basis with a surprise": put("basis", {"kind": "a", "route": "b", "complete": True, "lin": 3}),
    "a basis that is no text": put("basis", {"kind": [], "route": "b", "complete": True}),
    "half a remainder": put("remainder", [1.0]),
    "a remainder of text": put("remainder", ["a", "b"]),
    "a tolerance of text": put("flow", {"tolerance": "x", "floor": 0.0}),
    "parameters of numbers": put("parameters", [1, 2]),
    "a probe of nothing": put("loss", {"class": "Squares", "sha256": "", "probe": []}),
    "the metric is gone": put("metric", {"decay": None}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_headers_and_arrays_that_do_not_fit(name, saved, tmp_path):
    path = rewritten(saved, tmp_path, CHANGES[name])
    with pytest.raises(ArchiveError, match="damaged"):
        archive.load(path, other())


class Malice:
    """Unpickling this creates a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("name", ["header", "theta", "images", "extra"])
def test_pickles_are_never_executed(name, saved, tmp_path):
    mark = tmp_path / "executed"
    with np.load(saved) as found:
        arrays = {key: found[key] for key in found.files}
    arrays[name] = np.array([Malice(mark)], dtype=object)
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with zipfile.ZipFile(path) as file:
        assert b"executed" in file.read(f"{name}.npy")  # the pickle is in there
    if name == "extra":  # it is not even looked at
        archive.load(path, other())
    else:
        with pytest.raises(ArchiveError, match="allow_pickle=False"):
            archive.load(path, other())
    assert not mark.exists()
    with np.load(path, allow_pickle=True) as careless:
        careless[name].tolist()[0].close()
    assert mark.exists()  # it would have been, otherwise
