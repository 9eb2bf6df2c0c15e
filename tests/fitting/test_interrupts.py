"""Interrupts at any line of a fit: the model is whole, and the resumed run ends like one that was not interrupted."""

from __future__ import annotations

import os
import pathlib
import sys

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.fitting import fit as fitting
from jumpstart.fitting import stages

from ..problems import fill, flat, generator

ROOT = pathlib.Path(js.__file__).parent
TRACED = tuple(str(ROOT / room) + os.sep for room in ("fitting", "jumping", "archive"))
X = torch.linspace(0, 1, 20, dtype=torch.float64)[:, None]
FITS = {
    "climbing": {"jumps": 12},
    "restarting": {"jumps": 12, "patience": 2, "restarts": 2},
    "resampled": {"jumps": 10, "every": 3, "resample": lambda k: [X + 0.01 * k]},
    "ending": {"jumps": 60, "patience": 1, "restarts": 1},
}


def problem():
    model = fill(nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)), 0)
    return js.residual(model, js.Term(lambda net, x: net(x)[0] - torch.sin(9 * x[0]), X))


def run(name, path=None, **options):
    """The weights after a fit, and its result."""
    objective = problem()
    result = js.fit(objective, path=path, progress=False, error=lambda model: 1.0, **FITS[name], **options)
    return flat(objective.model), result


class Interrupted:
    """Counts the lines that are run in the traced rooms, and interrupts at one of them."""

    def __init__(self, at: int | None = None) -> None:
        self.count, self.at, self.where = 0, at, ""

    def __enter__(self):
        sys.settrace(self.called)
        return self

    def __exit__(self, *error):
        sys.settrace(None)

    def called(self, frame, event, arg):
        # Generated methods have no file, and what runs while an object is taken apart cannot raise.
        mine = frame.f_code.co_filename.startswith(TRACED) and frame.f_code.co_name != "__del__"
        return self.line if mine else None

    def line(self, frame, event, arg):
        if event == "line":
            self.count += 1
            if self.count == self.at:
                self.where = f"{pathlib.Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self.line


def history(result):
    return [(row["jump"], row["loss"], row["best"], row["outcome"], row["stage"]) for row in result.history]


def attempt(name, at, path, reference):
    """What is wrong after an interrupt at the ``at``-th line and a resume; empty if nothing is."""
    theta, whole = reference
    objective = problem()
    parameters = dict(objective.model.named_parameters())
    tracer = Interrupted(at)
    try:
        with tracer:
            js.fit(objective, path=path, progress=False, error=lambda model: 1.0, **FITS[name])
        return tracer.where and f"{tracer.where}: the interrupt was swallowed"
    except KeyboardInterrupt:
        pass
    if not all(objective.model.get_parameter(key) is p for key, p in parameters.items()):
        return f"{tracer.where}: parameters are other objects"
    best = objective.value(objective.theta())
    after, result = run(name, path)
    if not torch.equal(after, theta):
        return f"{tracer.where}: other weights, loss {result.loss:.6g} for {whole.loss:.6g}"
    if history(result) != history(whole) or result.outcome is not whole.outcome:
        return f"{tracer.where}: another history, {result.jumps} jumps for {whole.jumps}"
    lowest = [whole.start, *(row["loss"] for row in whole.history)]
    if name != "resampled" and min(abs(best - loss) / loss for loss in lowest) > 1e-9:
        return f"{tracer.where}: the model was left at a loss of {best:.6g}"
    left = [entry.name for entry in path.parent.iterdir() if entry != path]
    return f"{tracer.where}: left {left}" if left else ""


def trial(name, count, folder, monkeypatch):
    """(interrupts, faults) at ``count`` places, spread over all lines that a whole fit runs."""
    monkeypatch.setattr(stages, "CAUTION", 2)  # so that it climbs
    monkeypatch.setattr(fitting, "SAVING", 0.05)  # so that writing is interrupted too
    with Interrupted() as counted:
        js.fit(problem(), path=folder / "counted", progress=False, error=lambda model: 1.0, **FITS[name])
    (folder / "counted").unlink()
    reference = run(name)
    places = torch.randperm(counted.count, generator=generator(7))[:count].tolist()
    faults = []
    for k, at in enumerate(places):
        (folder / str(k)).mkdir()
        faults.append(attempt(name, at + 1, folder / str(k) / "run", reference))
    return len(places), [fault for fault in faults if fault]


@pytest.mark.parametrize("name", FITS)
def test_interrupted_anywhere(name, tmp_path, monkeypatch):
    count, faults = trial(name, 4, tmp_path, monkeypatch)
    assert count == 4 and faults == []


@pytest.mark.slow
@pytest.mark.parametrize("name", FITS)
def test_interrupted_at_many_places(name, tmp_path, monkeypatch):
    count, faults = trial(name, 300, tmp_path, monkeypatch)
    print(f"\n{name}: {count} interrupts by line, {len(faults)} faults")
    assert faults == []
