"""Fits in files: resumed to the bit on the same problem, refused by name on another, with nothing lost."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.archive.container import Kind, reading, write
from jumpstart.errors import ArchiveError
from jumpstart.fitting import stages
from jumpstart.fitting.checkpoint import FIT, Checkpoint, load, save
from jumpstart.fitting.state import FitState
from jumpstart.solver.solve import solve

from ..archive.forgery import forged
from ..problems import classes, fill, flat, generator, mlp, randn

OPTIONS = {"weight_decay": 0.0, "gate": None, "metric": False, "basis": "auto", "resample": False, "adaptive": True}
POINTS, ENDS = randn(1, 30, 2), randn(2, 6, 2)


def net(seed=0, width=8):
    return fill(nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1)), seed)


def inside(f, x):
    return f(x)[0] - torch.sin(3 * x[0]) * x[1]


def edge(f, x):
    return f(x)[0] - x[0]


def pinn(seed=0, points=POINTS, ends=ENDS, weight=4.0, fn=inside, width=8, **options):
    terms = js.Term(fn, points, name="inside"), js.Term(edge, ends, weight, name="ends")
    return js.residual(net(seed, width), *terms, **options)


def supervised(seed=0, shift=0.0, move=0.0, loss="mse", dtype=torch.float64):
    x, y = (randn(3, 20, 4) + shift).to(dtype), randn(4, 20, 3).to(dtype)
    targets = {"mse": y + move, "logistic": (y > 0).to(dtype), "cross_entropy": classes(0, 20, 3)}[loss]
    return js.supervised(mlp(seed).to(dtype), x, targets, loss=loss)


def stop(at):
    """A callback that interrupts the run after so many jumps."""
    seen = []

    def callback(result):
        seen.append(result)
        if len(seen) == at:
            raise KeyboardInterrupt

    return callback


def interrupted(objective, path, at=4, **options):
    with pytest.raises(KeyboardInterrupt):
        js.fit(objective, path=path, callback=stop(at), **{"jumps": 12, "progress": False, **options})
    return path


def rows(result):
    """What happened, without what it cost: a fresh objective asks the model twice once more."""
    cost = ("seconds", "gradient_evaluations")
    return [{name: value for name, value in row.items() if name not in cost} for row in result.history]


# -- going on ----------------------------------------------------------------------------------------------------

RUNS = {
    "march": (pinn, {}),
    "regression": (supervised, {}),
    "single precision": (lambda seed: supervised(seed, dtype=torch.float32), {}),
    "horizons": (pinn, {"search": "horizon"}),
    "logistic": (lambda seed: supervised(seed, loss="logistic"), {"jumps": 6}),
    "cross-entropy, gated": (lambda seed: supervised(seed, loss="cross_entropy"), {"jumps": 6, "gate": "snr"}),
    "weight decay": (pinn, {"weight_decay": 1e-3, "nonmonotone": False}),
    "metric": (pinn, {"metric": torch.linspace(0.5, 2, 33, dtype=torch.float64)}),
    "restarts": (pinn, {"patience": 2, "jumps": 14}),
    "some parameters": (pinn, {"params": ["0"]}),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("at", [1, 5])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(name, at, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "CAUTION", 2)  # so that it may climb by then
    make, options = RUNS[name]
    options = {"jumps": 12, "progress": False, **options}
    whole, again = make(3), make(3)
    with torch.no_grad():
        for parameter in again.subset(options.get("params")).space.names:
            again.model.get_parameter(parameter).add_(1)  # the file says where they were
    reference = js.fit(whole, **options)
    path = interrupted(make(3), tmp_path / "run", at, **options)
    result = js.fit(again, path=path, **options)
    assert reference.jumps > at
    assert torch.equal(flat(again.model), flat(whole.model))
    assert rows(result) == rows(reference)
    for field in ("outcome", "loss", "start", "jumps", "accepted", "restarts"):
        assert getattr(result, field) == getattr(reference, field), field


@pytest.mark.parametrize("every", [1, 3])
def test_a_resampled_run_goes_on_from_the_first_points(every, tmp_path):
    """The file is the first objective's, and points are drawn again."""

    def fresh(jump):
        return {"inside": torch.randn(30, 2, generator=generator(jump), dtype=torch.float64)}

    options = {"jumps": 9, "resample": fresh, "every": every, "progress": False}
    whole, again = pinn(3), pinn(7)
    reference = js.fit(whole, **options)
    path = interrupted(pinn(3), tmp_path / "run", 5, **options)
    with pytest.raises(ArchiveError, match="the points of 'inside' differ"):
        js.fit(pinn(7).resampled(fresh(3)), path=path, **options)
    result = js.fit(again, path=path, **options)
    assert torch.equal(flat(again.model), flat(whole.model))
    assert rows(result) == rows(reference)


def test_a_file_written_again_still_belongs_to_the_first_problem(tmp_path):
    """A run that was resumed and interrupted again, and again."""
    whole = pinn(3)
    js.fit(whole, jumps=12, progress=False)
    interrupted(pinn(3), tmp_path / "run", 2)
    with reading(tmp_path / "run", FIT) as file:
        first = file.content
    for seed in (5, 6):
        interrupted(pinn(seed), tmp_path / "run", 3)
    with reading(tmp_path / "run", FIT) as file:
        last = file.content
    assert last["problem"] == first["problem"] and last["probe"] == first["probe"] is not None
    assert (first["state"]["jumps"], last["state"]["jumps"]) == (2, 8)
    again = pinn(9)
    js.fit(again, path=tmp_path / "run", jumps=12, progress=False)
    assert torch.equal(flat(again.model), flat(whole.model))


# -- refusing ----------------------------------------------------------------------------------------------------


def shifted(f, x):
    return f(x)[0] - torch.sin(3.01 * x[0]) * x[1]


OTHERS = {
    "other points": (lambda: pinn(7, points=POINTS + 1e-12), {}, r"the points of 'inside' differ \(by SHA-256\)"),
    "points in another order": (lambda: pinn(7, points=POINTS.flip(0)), {}, "the points of 'inside' differ"),
    "other ends": (lambda: pinn(7, ends=randn(5, 6, 2)), {}, "the points of 'ends' differ"),
    "more points": (lambda: pinn(7, points=randn(1, 31, 2)), {}, r"\[36\] in the file and \[37\] .*'inside'"),
    "another weight": (lambda: pinn(7, weight=5.0), {}, "the weight of 'ends' is 4 in the file and 5 here"),
    "another equation": (lambda: pinn(7, fn=shifted), {}, r"outputs of 'inside' are .* \(relative\) from the saved"),
    "another network": (lambda: pinn(7, width=9), {}, r"'0.weight' has shape \[8, 2\] in the file and \[9, 2\]"),
    "fewer parameters": (lambda: pinn(7), {"params": ["0"]}, r"parameters \['2.weight', '2.bias'\], which the obj"),
    "weight decay": (lambda: pinn(7), {"weight_decay": 0.1}, "option weight_decay was 0.0 and is 0.1 here"),
    "a metric": (lambda: pinn(7), {"metric": torch.ones(33)}, "option metric was False and is True here"),
    "a gate": (lambda: pinn(7), {"gate": "hard"}, "option gate was None and is 'hard' here"),
    "a basis": (lambda: pinn(7), {"basis": "krylov"}, "option basis was 'auto' and is 'krylov' here"),
    "another kind": (lambda: supervised(7), {}, "parameters"),
}


def refused(path, objective, match, **options):
    """Named, the model and the file as they were, nothing left beside it, and not one jump made."""
    before, whole = objective.theta(), path.read_bytes()
    jumps, folder = [], sorted(p.name for p in path.parent.iterdir())
    with pytest.raises(ArchiveError, match=match) as caught:
        js.fit(objective, path=path, progress=False, callback=jumps.append, **{"jumps": 12, **options})
    assert str(path) in str(caught.value)
    assert torch.equal(objective.theta(), before)
    assert path.read_bytes() == whole
    assert sorted(p.name for p in path.parent.iterdir()) == folder
    assert not jumps


@pytest.mark.parametrize("name", OTHERS)
def test_another_problem_is_refused_by_name(name, tmp_path):
    make, options, sentence = OTHERS[name]
    path = interrupted(pinn(3), tmp_path / "run")
    refused(path, make(), sentence, **options)
    js.fit(pinn(8), path=path, jumps=5, progress=False)  # and its own goes on from it


LOSSES = {
    "other inputs": ({"shift": 1e-12}, "the inputs differ"),
    "other targets": ({"move": 1e-12}, "the targets differ"),
    "another loss": ({"loss": "logistic"}, "saved with the loss Squares, but the objective has Logistic"),
    "another precision": ({"dtype": torch.float32}, "has dtype float64 in the file and float32"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_other_data_and_losses_are_refused_by_name(name, tmp_path):
    changes, sentence = LOSSES[name]
    path = interrupted(supervised(3), tmp_path / "run")
    refused(path, supervised(7, **changes), sentence)


def test_a_loss_with_the_same_targets(tmp_path):
    x, y = randn(3, 20, 4), randn(4, 20, 3)
    path = interrupted(js.supervised(mlp(3), x, loss=js.losses.Squares(y, 0.1)), tmp_path / "run")
    refused(path, js.supervised(mlp(7), x, loss=js.losses.Squares(y, 0.2)), "another loss: value, slope, curvature")


def test_what_a_function_reads_and_buffers(tmp_path):
    """No digest sees these: the outputs at the saved weights do."""

    def coupled(seed, factor):
        return js.residual(net(seed), lambda f: (f(POINTS)[:, 0] - factor * POINTS[:, 1]).diff())

    path = interrupted(coupled(3, 1.0), tmp_path / "a")
    refused(path, coupled(7, 1.001), r"are .* \(relative\) from the saved ones")

    def normed(mean):
        layers = fill(nn.Linear(4, 6), 0), nn.BatchNorm1d(6).double(), fill(nn.Linear(6, 3), 1)
        model = nn.Sequential(*layers).eval()
        model[1].running_mean += mean
        return js.supervised(model, randn(3, 20, 4), randn(4, 20, 3))

    path = interrupted(normed(0.0), tmp_path / "b")
    refused(path, normed(0.01), "BatchNorm statistics")
    js.fit(normed(0.0), path=path, jumps=5, progress=False)


def test_a_solution_is_no_checkpoint_nor_the_other_way_round(tmp_path):
    objective = supervised(3)
    solution = solve(objective).save(tmp_path / "solution")
    refused(solution, objective, r"holds a 'solution', not a checkpoint of js\.fit: give another path, or delete it")
    path = interrupted(objective, tmp_path / "run")
    with pytest.raises(ArchiveError, match=r"holds a 'fit', not a saved solution"):
        js.load(path, objective)


# -- damage ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return interrupted(pinn(3), tmp_path_factory.mktemp("run") / "run")


FIELDS = FitState.names()


def test_every_flipped_bit_is_found(run, tmp_path):
    objective, whole, bits = pinn(7), bytearray(run.read_bytes()), generator(2)
    before, file = objective.theta(), Checkpoint(tmp_path / "x", objective, OPTIONS)
    places = {
        *np.linspace(0, len(whole) - 1, 300).astype(int),
        *range(len(whole) - 90, len(whole), 3),
        *range(0, 44, 2),
    }
    for at in sorted(places):
        damaged = whole.copy()
        damaged[at] ^= 1 << int(torch.randint(0, 8, (), generator=bits))
        (tmp_path / "x").write_bytes(damaged)
        with pytest.raises(ArchiveError, match=r"x (is|holds)"):
            file.load(FIELDS)
    assert torch.equal(objective.theta(), before)
    (tmp_path / "x").write_bytes(whole)
    assert file.load(FIELDS)["jumps"] == 4


def test_every_truncation_is_found(run, tmp_path):
    whole = run.read_bytes()
    for k in range(20):
        (tmp_path / "x").write_bytes(whole[: len(whole) * k // 20])
        refused(tmp_path / "x", pinn(7), r"is empty|cut short")


def test_foreign_files(tmp_path):
    path = tmp_path / "x"
    np.savez(tmp_path / "table.npz", a=np.zeros(3))
    torch.save({"kind": "jumpstart fit 1", "names": [], "shapes": [], "state": {}}, tmp_path / "old")
    for content in (b"hello world\n" * 9, (tmp_path / "table.npz").read_bytes(), (tmp_path / "old").read_bytes()):
        path.write_bytes(content)
        refused(path, pinn(7), r"x holds no checkpoint of js\.fit: .* give another path, or delete it")
    write(path, Kind("fit", 99, "", ""), {}, {})
    refused(path, pinn(7), "is of format 99.*upgrade it")


def put(name, value):
    return lambda header, arrays: header["content"]["state"].update({name: value})


def content(name, value):
    return lambda header, arrays: header["content"].update({name: value})


def spoil(name):
    return lambda header, arrays: arrays[name].__setitem__(0, math.nan)


def shorten(name):
    def change(header, arrays):
        arrays[name] = arrays[name][:-1].copy()
        header["tensors"][name]["shape"] = [len(arrays[name])]

    return change


def recast(name):
    def change(header, arrays):
        arrays[name] = arrays[name].astype(np.uint8)
        header["tensors"][name]["dtype"] = "uint8"

    return change


def more(header, arrays):
    header["tensors"]["state.more"], arrays["state.more"] = header["tensors"]["state.theta"], arrays["state.theta"]


def rewritten(change):
    """A change of the first group of rows of the history."""
    return lambda header, arrays: change(header["content"]["state"]["history"][0])


GROUPS = {
    "one twice": lambda group: group["at"].__setitem__(0, 1),
    "one missing": lambda group: group["at"].pop(),
    "one too far": lambda group: group["at"].__setitem__(0, 9),
    "places of text": lambda group: group.update(at="0123"),
    "a key twice": lambda group: group["keys"].__setitem__(0, group["keys"][1]),
    "a key missing": lambda group: group["keys"].pop(),
    "a key that is none": lambda group: group["keys"].__setitem__(0, 3),
    "a column missing": lambda group: group["columns"].pop(),
    "a short column": lambda group: group["columns"].__setitem__(-1, ["ACCEPTED"]),
    "a list in a column": lambda group: group["columns"][-1].__setitem__(0, []),
    "a table in a column": lambda group: group["columns"][-1].__setitem__(0, {"a": 1}),
    "weights as a column": lambda group: group["columns"].__setitem__(0, {"tensor": "state.theta"}),
    "nothing": lambda group: group.clear(),
    "more": lambda group: group.update(more=1),
}
FORGERIES = {
    "NaN in theta": spoil("state.theta"),
    "NaN in the probed weights": spoil("probe"),
    "probed weights of another size": shorten("probe"),
    "no state": content("state", None),
    "state is a number": content("state", 3),
    "no problem": lambda header, arrays: header["content"].pop("problem"),
    "problem is text": content("problem", "this"),
    "probe is text": content("probe", "this"),
    "probe is gone": content("probe", None),
    "a tensor that is not there": put("theta", {"tensor": "state.nothing"}),
    "a tensor of another name": put("theta", {"name": "state.theta"}),
    "a table": put("jumps", {"a": 1}),
    "a tensor and more": put("theta", {"tensor": "state.theta", "more": 1}),
    "a tensor too many": more,
    "a column too short": shorten("state.history.0.loss"),
    "a column of bytes": recast("state.history.0.jump"),
    "rows of numbers": put("history", [1, 2]),
    "rows of lists": put("history", [[1], [2]]),
    "rows as they are": put("history", [{"a": 1}]),
    **{f"rows: {name}": rewritten(change) for name, change in GROUPS.items()},
}


@pytest.mark.parametrize("name", FORGERIES)
def test_contents_that_no_fit_has(name, run, tmp_path):
    """With every digest right."""
    path = forged(run, tmp_path / "x", FORGERIES[name])
    refused(path, pinn(7), r"x (holds no checkpoint of js\.fit, is damaged|was written by another version's js\.fit)")
    js.fit(pinn(7), path=forged(run, tmp_path / "y", lambda header, arrays: None), jumps=5, progress=False)


def test_a_state_of_another_version_is_refused(run):
    for fields in (FIELDS | {"more"}, FIELDS - {"theta"}, set()):
        with pytest.raises(ArchiveError, match=r"another version's js\.fit, with \["):
            load(run, pinn(7), OPTIONS, fields)


# -- any state ---------------------------------------------------------------------------------------------------

STATE = {
    "theta": randn(0, 33),
    "turned": randn(1, 4, 3).T,
    "half": randn(2, 5).to(torch.bfloat16),
    "count": torch.arange(3),
    "nothing": None,
    "yes": True,
    "jumps": 7,
    "huge": 2**70,
    "whole": 3.0,
    "tiny": 5e-324,
    "far": math.inf,
    "minus": -math.inf,
    "odd": math.nan,
    "zero": -0.0,
    "text": "inf",
    "none": [],
    "history": [
        {"jump": 1, "loss": math.inf, "best": 1.0, "outcome": "ACCEPTED"},
        {"jump": 2, "error": None, "step": randn(3, 2)},
        {"jump": -3, "loss": -0.0, "best": 2, "outcome": "inf"},
        {"jump": 2**70, "error": True, "step": math.nan},
        {},
        {"outcome": "", "jump": 5, "loss": -math.inf, "best": 1},
    ],
}


def same(found, expected):
    if isinstance(expected, torch.Tensor):
        return found.dtype == expected.dtype and torch.equal(found, expected) and found.stride() == expected.stride()
    if isinstance(expected, list):
        pairs = zip(found, expected, strict=True)
        return all(list(a) == list(b) and all(same(a[key], b[key]) for key in b) for a, b in pairs)
    if isinstance(expected, float):
        return isinstance(found, float) and repr(found) == repr(expected)  # -0.0 and NaN
    return type(found) is type(expected) and found == expected


def test_every_kind_of_value_comes_back(tmp_path):
    objective = pinn(3)
    save(tmp_path / "a", objective, STATE, OPTIONS)
    found = load(tmp_path / "a", pinn(7), OPTIONS, set(STATE))
    assert list(found) == list(STATE)
    for name, value in STATE.items():
        assert same(found[name], value), name
    assert not same([{"a": 1}], [{"a": 1.0}]) and not same(0.0, -0.0)
    assert not same(3, 3.0) and not same(True, 1)


BAD = {
    "a set": ({"a": {1}}, "state.a is a set"),
    "a table": ({"a": {"b": 1}}, "state.a is a dict"),
    "a list of numbers": ({"a": [1]}, r"state\.a\.0 is a int, not a row"),
    "a list in a row": ({"a": [{"b": [1]}]}, r"state\.a\.0\.b\.0 is a list"),
    "a name that is none": ({"a": [{}, {3: 1}]}, r"state\.a\.1 is not a row of named values"),
    "a name for no file": ({"a": [{"/": 1}]}, "cannot be stored"),
    "an object": ({"a": js.Trust()}, "state.a is a Trust"),
    "NaN in a tensor": ({"a": torch.tensor([math.nan])}, "'state.a' holds NaN"),
    "a complex tensor": ({"a": torch.zeros(2, dtype=torch.complex64)}, "complex64 cannot be stored"),
}


@pytest.mark.parametrize("name", BAD)
def test_states_that_cannot_be_kept(name, tmp_path):
    state, sentence = BAD[name]
    with pytest.raises(ArchiveError, match=sentence):
        save(tmp_path / "a", pinn(3), state, OPTIONS)
    assert not list(tmp_path.iterdir())


# -- writing -----------------------------------------------------------------------------------------------------


def test_paths_that_cannot_be_written_are_found_before_the_first_jump(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "file/run", "pipe", "x" * 300):
        objective, jumps = pinn(3), []
        before, folder = objective.theta(), sorted(p.name for p in tmp_path.rglob("*"))
        with pytest.raises(ArchiveError):
            js.fit(objective, path=tmp_path / name, jumps=5, callback=jumps.append, progress=False)
        assert not jumps and torch.equal(objective.theta(), before)
        assert sorted(p.name for p in tmp_path.rglob("*")) == folder


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_found_before_the_first_jump(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ArchiveError, match="Permission denied"):
            js.fit(pinn(3), path=tmp_path / "run", jumps=5, progress=False)
    finally:
        tmp_path.chmod(0o700)


def test_missing_folders_are_made_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "deep" / "er" / "run"
    js.fit(pinn(3), path=path, jumps=3, progress=False)
    assert [p.name for p in path.parent.iterdir()] == ["run"]


def test_numbers_of_a_history_are_kept_as_columns(run):
    """As text ten thousand rows take a tenth of a second, every second."""
    with reading(run, FIT) as file:
        specs = file.specs
    for name in ("jump", "seconds", "loss", "best", "horizon"):
        assert specs[f"state.history.0.{name}"].shape == (4,)


def test_a_write_that_fails_is_named_and_the_file_stays(tmp_path, monkeypatch):
    file = Checkpoint(tmp_path / "run", pinn(3), OPTIONS)
    file.save(STATE)
    whole = (tmp_path / "run").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArchiveError, match="No space left on device"):
        file.save({**STATE, "jumps": 8})
    assert (tmp_path / "run").read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_writing_evaluates_nothing(tmp_path, monkeypatch):
    """So it may happen wherever the run was cut off, a model that fails included."""
    objective = pinn(3)
    file = Checkpoint(tmp_path / "run", objective, OPTIONS)

    def forbidden(*args, **options):
        raise AssertionError("the model was asked")

    monkeypatch.setattr(nn.Linear, "forward", forbidden)
    file.save(STATE)
    monkeypatch.undo()
    assert load(tmp_path / "run", pinn(7), OPTIONS, set(STATE))["jumps"] == 7
