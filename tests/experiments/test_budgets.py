"""The race for time budgets: what is read when, what counts as failed, and that an interrupted race goes on."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys

import pytest
import torch

from experiments.pinn import __main__ as command
from experiments.pinn import budgets, courses, entrants, hyperparameters, standings
from experiments.pinn.equations import EVERY
from experiments.pinn.on_domains import network
from jumpstart.errors import InputError, JumpstartError
from jumpstart.report import records

EQUATION = dataclasses.replace(EVERY["poisson"], network=network((4,)))


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


def raced(monkeypatch, contender, limits=(10.0, 60.0), linearizes=False):
    """The rows of a rival whose steps take the seconds that it yields."""
    clock = Clock()
    monkeypatch.setattr(courses, "time", clock)

    def made(drawn, seconds, setting):
        def run(model, objective):
            for step, seconds in enumerate(contender):
                if isinstance(seconds, Exception):
                    raise seconds
                clock.now += seconds
                with torch.no_grad():
                    model[-1].bias.fill_(float(step + 1) if math.isfinite(seconds) else math.nan)
                yield {"gradient_evaluations": step}

        return run

    entrant = entrants.Entrant(made, linearizes=linearizes)
    return courses._stepped(EQUATION, entrant, {}, 0, courses.Size(limits, 0.05))


def error_at(bias):
    model = EQUATION.network(0)
    with torch.no_grad():
        model[-1].bias.fill_(bias)
    return EQUATION.error(model)


def test_what_is_read_are_the_weights_after_the_last_whole_step(monkeypatch):
    # Steps end at 4, 8, 12, … The third goes over 10 seconds, the sixteenth over 60.
    rows = raced(monkeypatch, itertools.repeat(4.0))
    assert [(row["budget"], row["steps"], row["seconds"]) for row in rows] == [(10, 2, 8), (60, 15, 60)]
    assert [row["error"] for row in rows] == pytest.approx([error_at(2), error_at(15)])
    assert all(row["failure"] == "" for row in rows)
    assert [row["lowest"] for row in rows] == pytest.approx([EQUATION.error(EQUATION.network(0))] * 2)  # the start
    assert "course" not in rows[0]
    assert rows[1]["course"]["seconds"][-1] == 60
    assert rows[1]["course"]["error"][-1] == pytest.approx(error_at(15), rel=5e-3)  # three digits


def test_a_step_longer_than_two_budgets_leaves_the_weights_before_it(monkeypatch):
    rows = raced(monkeypatch, iter([1.0, 100.0]))
    assert [(row["steps"], row["seconds"]) for row in rows] == [(1, 1), (1, 1)]
    assert [row["error"] for row in rows] == pytest.approx([error_at(1)] * 2)


def test_a_contender_that_ends_holds_its_weights(monkeypatch):
    rows = raced(monkeypatch, iter([1.0, 1.0]))
    assert [row["steps"] for row in rows] == [2, 2]
    assert not any(row["failure"] for row in rows)


def test_exceptions_and_nan_are_failures_and_are_told(monkeypatch):
    rows = raced(monkeypatch, iter([8.0, 8.0, RuntimeError("no more")]))
    assert [(row["steps"], row["failure"]) for row in rows] == [(1, ""), (2, "RuntimeError: no more")]
    assert [courses.failed({**row, "error": 1e-3}) for row in rows] == [False, True]
    rows = raced(monkeypatch, iter([8.0, math.nan]), limits=(60.0,))
    assert rows[0]["failure"] == "weights are not finite"
    assert math.isnan(rows[0]["error"]) and courses.failed(rows[0])
    assert courses.failed({"failure": "", "error": 0.11}) and not courses.failed({"failure": "", "error": 0.1})


def test_building_the_objective_is_part_of_the_time_of_those_that_need_it(monkeypatch):
    made = type(EQUATION).objective

    def slow(self, model, share=1.0):
        courses.time.now += 5.0  # type: ignore[attr-defined]  # a clock of the test's
        return made(self, model, share)

    monkeypatch.setattr(type(EQUATION), "objective", slow)
    for linearizes, steps in ((True, 1), (False, 2)):
        [row] = raced(monkeypatch, itertools.repeat(4.0), limits=(10.0,), linearizes=linearizes)
        assert (row["steps"], row["build"]) == (steps, 5.0 if linearizes else 0.0)


def test_a_course_is_thinned_and_keeps_its_end():
    found = courses.thinned([[k, 1.23456 * k, None, math.nan] for k in range(1000)])
    assert len(found["seconds"]) <= courses.MOST
    assert found["seconds"][-1] == 999 and found["loss"][-1] == 1230.0
    assert set(found["unseen"]) == {None}
    assert courses.thinned([]) == {"seconds": [], "loss": [], "unseen": [], "error": []}


def begin(monkeypatch, folder, *options):
    monkeypatch.setattr(sys, "argv", ["x", "--only", "budgets", "--quick", "--out", str(folder), *options])
    command.main()
    lines = (folder / "budgets" / budgets.LINES).read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_contender_races_at_toy_size(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(EVERY, "poisson", EQUATION)
    head, *rows = begin(monkeypatch, tmp_path, "--seeds", "1", "--seconds", "3000", "--problems", "poisson")
    told = capsys.readouterr().out
    left_out = {name for name in budgets.CONTENDERS if f"{name} is left out: this rival needs pip" in told}
    assert left_out <= {"SOAP", "SOAP renewed", "torch-LM", "torchmin", "SSBroyden (scimba)"}
    assert {row["contender"] for row in rows} == set(budgets.CONTENDERS) - left_out
    assert all(row["failure"] == "" and row["steps"] == courses.STEPS for row in rows)
    assert all(math.isfinite(row["error"]) and math.isfinite(row["unseen"]) for row in rows)
    assert head["quick"] and head["budgets"] == [3000.0] and head["seeds"] == [0]
    content = records.read(tmp_path / "budgets")
    assert len(content["rows"]) == len(rows)
    assert {line["contender"] for line in content["settings"]["standing"]} == {row["contender"] for row in rows}
    assert (tmp_path / "budgets" / "budgets.png").is_file()


def test_an_interrupted_race_goes_on(monkeypatch, tmp_path):
    monkeypatch.setitem(EVERY, "poisson", EQUATION)
    asked = ("--seeds", "1", "--seconds", "1000,2000", "--contenders", "Adam,L-BFGS")
    _, *rows = begin(monkeypatch, tmp_path, *asked)
    assert [(row["contender"], row["budget"]) for row in rows] == [
        ("Adam", 10), ("Adam", 20), ("L-BFGS", 10), ("L-BFGS", 20),
    ]  # fmt: skip
    path = tmp_path / "budgets" / budgets.LINES
    text = path.read_text()
    path.write_text(text[: len(text) - 40])  # the last row was being written
    ran = []
    run = budgets.run
    monkeypatch.setattr(budgets, "run", lambda equation, name, *a: (ran.append(name), run(equation, name, *a))[1])
    _, *again = begin(monkeypatch, tmp_path, *asked, "--resume")
    assert ran == ["L-BFGS"]
    assert [(row["contender"], row["budget"]) for row in again] == [(row["contender"], row["budget"]) for row in rows]
    assert again[:2] == rows[:2]
    (tmp_path / "budgets" / "results.json").unlink()
    begin(monkeypatch, tmp_path, *asked, "--resume")
    assert ran == ["L-BFGS"] and len(records.read(tmp_path / "budgets")["rows"]) == 4
    race = budgets.Race([0], ["poisson"], ["Adam"], (10.0,), tmp_path / "budgets", quick=True, resume=True)
    with pytest.raises(InputError, match=r"rows\.jsonl holds rows .*give another --out, or no --resume"):
        next(race.run())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--seconds", "10,x"], "give numbers with commas"),
        (["--seconds", "0,10"], "give positive numbers"),
        (["--contenders", "Adan"], "there is no 'Adan'"),
        (["--problems", "poisson2"], "there is no 'poisson2'"),
        (["--only", "budgets,costs"], "goes alone"),
    ],
)
def test_what_is_asked_for_wrongly_is_refused(options, told, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--only", "budgets", *options])
    with pytest.raises(SystemExit):
        command.parse()
    assert told in capsys.readouterr().err


def test_the_usual_run_leaves_the_race_of_days_out(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x"])
    assert "budgets" not in command.parse().only


def row(contender, error, seed=0, budget=300.0, failure=""):
    return {
        "problem": "burgers", "contender": contender, "seed": seed, "budget": budget, "error": error,
        "lowest": error / 2, "unseen": 1e-9, "failure": failure,
    }  # fmt: skip


def test_the_verdict_is_against_whoever_has_the_lowest_median():
    rows = [row("jumps", e, s) for s, e in enumerate((1e-8, 2e-8, 5e-1))]
    rows += [row("SSBroyden", e, s) for s, e in enumerate((1e-6, 4e-7, math.nan))]
    rows += [row("ENG", 1e-3, s) for s in range(3)] + [row("jumps", 1e-3, budget=10.0), row("ENG", 1e-2, budget=10.0)]
    late = standings.verdict(rows)[-1]
    assert (late["rival"], late["its error"], late["failed"]) == ("SSBroyden", 1e-6, "1/3")
    assert late["times below"] == pytest.approx(50)
    assert late["goal"] == "1e-07: met"
    early = standings.verdict(rows)[0]
    assert (early["budget"], early["goal"]) == (10.0, None)
    content = {"rows": rows, "command": "x", "environment": records.environment([0, 1, 2])}
    told = standings.page(content)
    assert "below the best rival in 1 of 1 problems, ten times below in 1. Seeds: 3;" in told
    assert "1e-07: met" in told and "| SSBroyden |" in told
    alone = standings.page({**content, "rows": [row("jumps", 1e-3)]})
    assert "1e-07: missed" in alone and "rival" not in alone
    line = next(line for line in standings.standing(rows) if line["contender"] == "SSBroyden")
    assert (line["failed"], line["lowest"]) == ("1/3", 5e-7)


def test_settings_are_chosen_by_the_median_error_or_by_loss_where_nothing_is_solved():
    def tried(value, error, loss):
        return {"setting": {"rate": value}, "error": error, "loss": loss}

    rows = [tried(1, 0.5, 1e-3), tried(1, 0.3, 1e-3), tried(2, 0.1, 1.0), tried(2, 0.2, 1.0), tried(3, math.nan, 0.0)]
    assert hyperparameters.best(rows) == {"rate": 2}
    assert hyperparameters.best([tried(1, 0.95, 2.0), tried(2, 0.99, 1.0), tried(3, 0.97, math.nan)]) == {"rate": 2}


def test_a_setting_is_the_chosen_one_with_its_bases(monkeypatch):
    monkeypatch.setattr(entrants, "chosen", lambda: {("kdv", "Adam"): {"rate": 0.5}, ("kdv", "ENG"): {"rcond": 1e-9}})
    assert entrants.setting("kdv", "Adam renewed") == {"rate": 0.5, "every": 100}
    assert entrants.setting("burgers", "Adam renewed") == {"rate": 1e-2, "every": 100}
    assert entrants.setting("kdv", "ENG") == {"rcond": 1e-9}


def test_everyones_settings_are_tried_on_other_seeds(monkeypatch, tmp_path):
    monkeypatch.setitem(EVERY, "poisson", EQUATION)
    few = {name: entrants.ENTRANTS[name] for name in ("Adam", "Adam renewed", "L-BFGS")}
    monkeypatch.setattr(hyperparameters, "ENTRANTS", few)
    asked = ["x", "--quick", "--seeds", "1", "--no-progress", "--problems", "poisson", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", asked)
    hyperparameters.main()
    content = records.read(tmp_path)
    assert {r["seed"] for r in content["rows"]} == {hyperparameters.FIRST}
    assert len(content["rows"]) == sum(len(e.settings) for e in few.values() if len(e.settings) > 1)
    assert [line["contender"] for line in content["settings"]["chosen"]] == ["Adam", "Adam renewed"]


def test_every_contender_can_be_asked_for_by_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--only", "budgets", "--contenders", ",".join(budgets.CONTENDERS)])
    assert command.parse().contenders == budgets.CONTENDERS


def test_bases_stand_before_those_that_start_from_them():
    names = list(entrants.ENTRANTS)
    assert all(names.index(e.base) < i for i, e in enumerate(entrants.ENTRANTS.values()) if e.base is not None)


def test_a_rival_whose_package_is_missing_is_left_out_by_name(monkeypatch, tmp_path, capsys):
    def gone(*_):
        raise JumpstartError("this rival needs pip install x")

    monkeypatch.setitem(entrants.ENTRANTS, "torchmin", entrants.Entrant(gone))
    race = budgets.Race([0, 1], ["poisson"], ["torchmin"], (10.0,), tmp_path, quick=True)
    assert list(race.run()) == []
    assert capsys.readouterr().out == "poisson: torchmin is left out: this rival needs pip install x\n"
