"""A fit and its file: writes that fail, two runs with one path, losses that are not those of the weights, kills."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
import warnings

import pytest
import torch

import jumpstart as js
from jumpstart.errors import ArchiveError, InputError
from jumpstart.fitting import fit as fitting
from jumpstart.solver.solve import solve
from jumpstart.utils import files

from ..archive.forgery import forged
from ..problems import flat, generator
from .test_interrupts import history, problem


def fit(path=None, jumps=8, objective=None, **options):
    """The weights after a fit, and its result."""
    objective = objective or problem()
    result = js.fit(objective, path=path, jumps=jumps, progress=False, **options)
    return flat(objective.model), result


def full(*args, **options):
    raise OSError(28, "No space left on device")


# -- writes that fail --------------------------------------------------------------------------------------------


def test_a_full_disk_warns_once_and_the_run_goes_on(tmp_path, monkeypatch):
    reference = fit()[1]
    monkeypatch.setattr(fitting, "SAVING", -1.0)  # after every jump
    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(RuntimeWarning, match="goes on without a checkpoint.*No space left") as caught:
        result = fit(tmp_path / "run")[1]
    assert len(caught) == 1 and history(result) == history(reference)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_deleted_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "SAVING", -1.0)
    folder = tmp_path / "a"

    def delete(result, seen=[]):  # noqa: B006
        seen.append(shutil.rmtree(folder) if len(seen) == 3 else None)

    with pytest.warns(RuntimeWarning, match="goes on without a checkpoint") as caught:
        result = fit(folder / "run", callback=delete)[1]
    assert len(caught) == 1 and result.jumps == 8


@pytest.mark.parametrize("strict", [False, True])
def test_ctrl_c_on_a_full_disk_is_still_an_interrupt(strict, tmp_path, monkeypatch):
    def stop(result):
        monkeypatch.setattr(os, "fsync", full)
        raise KeyboardInterrupt

    with warnings.catch_warnings():
        warnings.simplefilter("error" if strict else "always")
        with pytest.raises(KeyboardInterrupt) as caught:
            fit(tmp_path / "run", callback=stop)
    assert "No space left on device" in caught.value.__notes__[0]
    assert list(tmp_path.iterdir()) == []


def test_whichever_write_fails_the_old_file_stays_and_the_run_goes_on(tmp_path, monkeypatch):
    """Every call of the file that a checkpoint is written through, one after the other."""
    path = tmp_path / "run"
    fit(path, jumps=2)
    real, old = files._begun, path.read_bytes()
    calls, failing = [0], [0]

    class Failing:
        """A file of which one call fails."""

        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            found = getattr(self.file, name)
            if name not in ("write", "flush", "seek", "tell", "fileno"):
                return found

            def call(*args):
                calls[0] += 1
                if calls[0] == failing[0]:
                    full()
                return found(*args)

            return call

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

    def begun(whole):
        part, file = real(whole)
        return part, Failing(file)

    monkeypatch.setattr(files, "_begun", begun)
    objective = problem()
    options = fitting.decisive(objective, {"search": "levenberg-marquardt"}, None, False, fitting.FitSettings(jumps=3))
    saved = fitting.Checkpoint(path, objective, options)
    state, refused = fitting.Fit(objective, jumps=3).run.state.flat(), 0
    calls[0] = 0
    saved.save(state)
    total = calls[0]
    for failing[0] in range(1, total + 1):
        path.write_bytes(old)
        calls[0] = 0
        try:
            saved.save(state)
        except ArchiveError:
            refused += 1
            assert path.read_bytes() == old
        else:  # zipfile has got along without the answer
            assert saved.load(set(state))["jumps"] == 0
        assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert total > 50 and refused > 0.9 * total


def test_half_files_of_killed_runs_go_at_the_next(tmp_path):
    for name in (".run.01234567.part", ".sol.01234567.part", ".other.01234567.part"):
        (tmp_path / name).write_text("half")
    fit(tmp_path / "run", jumps=1)
    solve(problem()).save(tmp_path / "sol")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.01234567.part", "run", "sol"]


# -- two runs, and what a file says -----------------------------------------------------------------------------


def test_two_runs_with_one_path_warn_and_the_last_to_write_wins_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "SAVING", -1.0)

    def other(result, seen=[]):  # noqa: B006
        seen.append(result)
        if len(seen) == 3:
            fit(tmp_path / "run", jumps=6)

    with pytest.warns(RuntimeWarning, match="written by another run meanwhile") as caught:
        after, result = fit(tmp_path / "run", callback=other)
    assert len(caught) == 1
    again, found = fit(tmp_path / "run")
    assert history(found) == history(result) and torch.equal(again, after)


def test_a_run_alone_does_not_warn(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "SAVING", -1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(tmp_path / "run", jumps=3)
        fit(tmp_path / "run", jumps=6)
        (tmp_path / "run").unlink()
        fit(tmp_path / "run", jumps=2, callback=lambda result: (tmp_path / "run").unlink(missing_ok=True))


@pytest.mark.parametrize(
    ("name", "change"),
    {
        "best_loss": lambda header, arrays: header["content"]["state"].update(best_loss=1e-30),
        "loss": lambda header, arrays: header["content"]["state"].update(loss=1.0),
        "best weights": lambda header, arrays: arrays["state.best_theta"].__imul__(1.001),
        "weights": lambda header, arrays: arrays["state.theta"].__imul__(1.001),
        "rows": lambda header, arrays: header["content"]["state"].update(jumps=3),
        "single precision": lambda header, arrays: single(header, arrays, "state.theta"),
    }.items(),
)
def test_losses_are_those_of_the_weights_or_the_file_is_refused(name, change, tmp_path):
    fit(tmp_path / "good", jumps=4)
    objective = problem()
    before = objective.theta()
    path = forged(tmp_path / "good", tmp_path / "bad", change)
    with pytest.raises(ArchiveError, match=r"at its weights here|4 rows for 3 jumps|torch.float32 is nothing"):
        fit(path, objective=objective)
    assert torch.equal(objective.theta(), before)


def single(header, arrays, name):
    arrays[name] = arrays[name].astype("float32")
    header["tensors"][name]["dtype"] = "float32"


def test_resampling_that_the_number_does_not_decide_is_noticed_on_resuming(tmp_path):
    draw = generator(0)

    def points(jump):
        return [torch.rand(20, 1, generator=draw, dtype=torch.float64)]

    fit(tmp_path / "run", jumps=5, resample=points)
    objective = problem()
    with pytest.warns(RuntimeWarning, match="gives other points for jump 4"):
        result = fit(tmp_path / "run", jumps=7, resample=points, objective=objective)[1]
    assert result.jumps == 7


def test_a_fit_that_had_come_to_its_end_is_left_alone_unless_it_may_do_more(tmp_path):
    options = {"jumps": 200, "patience": 2}
    weights, result = fit(tmp_path / "run", restarts=0, **options)
    assert result.outcome is js.FitOutcome.STAGNANT and result.jumps < 200
    again, same = fit(tmp_path / "run", restarts=0, **options)
    assert (same.outcome, same.jumps, same.cause) == (result.outcome, result.jumps, result.cause)
    assert torch.equal(again, weights)
    _, more = fit(tmp_path / "run", restarts=1, **options)
    assert more.jumps > result.jumps and more.restarts == 1


# -- error= and callback= ----------------------------------------------------------------------------------------

NUMBERS = [3, 0.5, torch.tensor(0.5), torch.tensor([[0.5]], requires_grad=True), torch.tensor(2), float("nan"), True]
NONE = [None, "0.5", torch.ones(2), torch.tensor([]), 1j, torch.tensor(1j), [0.5], {"a": 1.0}]


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_errors_are_any_real_number(value):
    result = fit(jumps=1, error=lambda model: value)[1]
    assert result.error == pytest.approx(float(getattr(value, "detach", lambda: value)()), nan_ok=True)


@pytest.mark.parametrize("value", NONE, ids=repr)
def test_errors_that_are_no_number_are_named_before_anything_has_moved(value):
    objective = problem()
    before = objective.theta()
    with pytest.raises(InputError, match="fit: error= returned"):
        fit(jumps=3, error=lambda model: value, objective=objective)
    assert torch.equal(objective.theta(), before)


@pytest.mark.parametrize(("what", "at"), [("error", 2), ("callback", 2), ("callback", 5)])  # error is called at times
def test_what_a_users_function_raises_loses_nothing(what, at, tmp_path):
    reference, whole = fit()
    seen = []

    def failing(given):
        seen.append(given)
        if len(seen) == at:
            raise RuntimeError("the user's own")
        return 0.0

    with pytest.raises(RuntimeError, match="the user's own"):
        fit(tmp_path / "run", **{what: failing})
    after, result = fit(tmp_path / "run", **{what: lambda given: 0.0})
    assert history(result) == history(whole) and torch.equal(after, reference)


# -- kills -------------------------------------------------------------------------------------------------------


def living(path, jumps, told):
    """A fit in a process of its own, which tells of each jump."""
    fitting.SAVING = 0.0  # after every jump
    fit(path, jumps=jumps, patience=jumps, callback=lambda result: told.send(1))
    told.send(0)


def kills(count, folder, jumps):
    """(kills, resumes from a file, faults): runs that are killed four times each, at random moments, then ended."""
    reference, whole = fit(jumps=jumps, patience=jumps)
    draw, faults, resumed = generator(3), [], 0
    here = multiprocessing.get_context("fork")
    for k in range(count):
        path = folder / str(k // 4) / "run"
        path.parent.mkdir(exist_ok=True)
        ours, theirs = here.Pipe()
        process = here.Process(target=living, args=(path, jumps, theirs))
        process.start()
        wait, more = torch.rand(2, generator=draw).tolist()
        for _ in range(int(wait * jumps / 4)):
            if not ours.recv():
                break
        time.sleep(0.02 * more)  # anywhere in a jump, or in the writing after it
        process.kill()
        process.join()
        resumed += path.exists()
        if k % 4 == 3 or k == count - 1:
            after, result = fit(path, jumps=jumps, patience=jumps)
            if not torch.equal(after, reference) or history(result) != history(whole):
                faults.append(f"kill {k}: loss {result.loss}, {result.jumps} jumps")
            if [p.name for p in path.parent.iterdir()] != ["run"]:
                faults.append(f"kill {k}: left {sorted(p.name for p in path.parent.iterdir())}")
    return count, resumed, faults


def test_a_killed_run_goes_on(tmp_path):
    _, resumed, faults = kills(4, tmp_path, 40)
    assert faults == [] and resumed > 0


@pytest.mark.slow
def test_a_hundred_kills(tmp_path):
    count, resumed, faults = kills(100, tmp_path, 120)
    print(f"\n{count} kills, {resumed} left a file, {len(faults)} faults")
    assert faults == [] and resumed > 70


# -- damage ------------------------------------------------------------------------------------------------------


def flips(count, folder):
    """(flips, faults): single bits of a checkpoint and of a solution, at random; the model must not notice."""
    fit(folder / "run", jumps=5)
    solve(problem()).save(folder / "solution")
    objective, faults, bits = problem(), [], generator(5)
    before = objective.theta()
    readers = {"run": lambda path: js.fit(objective, path=path, jumps=9), "solution": lambda p: js.load(p, objective)}
    for k in range(count):
        name = ("run", "solution")[k % 2]
        damaged = bytearray((folder / name).read_bytes())
        at = int(torch.randint(0, 8 * len(damaged), (), generator=bits))
        damaged[at // 8] ^= 1 << at % 8
        (folder / "bad").write_bytes(damaged)
        try:
            readers[name](folder / "bad")
            faults.append(f"{name}: bit {at} was not noticed")
        except ArchiveError:
            pass
        if not torch.equal(objective.theta(), before):
            faults.append(f"{name}: bit {at} has moved the model")
            objective.space.write(objective.model, before)
    return count, faults


def test_flipped_bits_are_found(tmp_path):
    assert flips(40, tmp_path)[1] == []


@pytest.mark.slow
def test_a_thousand_flipped_bits(tmp_path):
    count, faults = flips(1000, tmp_path)
    print(f"\n{count} flipped bits, {len(faults)} faults")
    assert faults == []
