"""Comparisons, their records, tables and figures."""

import json
import math

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart import cli
from jumpstart.comparison.report import Report
from jumpstart.errors import InputError, JumpstartError
from jumpstart.report import records


def report(**options):
    torch.manual_seed(0)
    x = torch.randn(16, 2)
    y = x.sum(1, keepdim=True).sin()
    contenders = {
        "Adam": js.stepped(lambda p: torch.optim.Adam(p, 1e-2)),
        "L-BFGS": js.stepped(torch.optim.LBFGS),
        "wrapped": js.jumped(lambda p: torch.optim.Adam(p, 1e-2), at=3, search=True),
        "jumps": js.jumps_only(lambda k: {}),
    }
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    before = [p.clone() for p in model.parameters()]
    found = js.compare(
        model, lambda m: js.supervised(m, x, y), contenders, progress=False,
        evaluate=lambda m: {"worst": float((m(x) - y).abs().max())}, **{"steps": 8, **options},
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    return found


def test_every_contender_is_recorded_from_the_same_start():
    found = report()
    starts = [next(row for row in found.rows if row["contender"] == name)["loss"] for name in found.contenders]
    assert len(found.contenders) == 4
    assert len(set(starts)) == 1
    for name in found.contenders:
        rows = [row for row in found.rows if row["contender"] == name]
        assert rows[0]["gradient_evaluations"] == 0
        assert rows[-1]["step"] == 8
        assert rows[-1]["loss"] < rows[0]["loss"]
        assert [r["seconds"] for r in rows] == sorted(r["seconds"] for r in rows)
    by_name = {row["contender"]: row for row in found.rows if row["step"] == 8}
    assert by_name["Adam"]["gradient_evaluations"] == 8  # one a step
    assert by_name["L-BFGS"]["gradient_evaluations"] > 8  # closures are counted
    assert by_name["wrapped"]["jumps"] == 2
    assert by_name["wrapped"]["gradient_evaluations"] > 8


def test_limits_by_time_and_by_evaluations():
    assert max(row["seconds"] for row in report(seconds=0.05, steps=None).rows) < 5
    found = report(evaluations=5, steps=None, seconds=math.inf)
    assert [r["gradient_evaluations"] for r in found.rows if r["contender"] == "Adam"][-1] == 5


def test_summary_times_everyone_to_the_baselines_best():
    rows = [
        {"contender": "a", "step": i, "gradient_evaluations": i, "seconds": float(i), "loss": 1 / (i + 1)}
        for i in range(4)
    ]
    rows += [
        {"contender": "b", "step": 1, "gradient_evaluations": 9, "seconds": 0.5, "loss": 0.1, "jumps": 3, "accepted": 2}
    ]
    rows += [{"contender": "c", "step": 1, "gradient_evaluations": 9, "seconds": 0.5, "loss": math.nan}]
    summary = {row["contender"]: row for row in Report("x", rows).summary()}
    assert summary["a"]["seconds_to_target"] == 3.0
    assert summary["b"]["seconds_to_target"] == 0.5
    assert summary["b"]["jumps"] == "2/3"
    assert summary["c"]["seconds_to_target"] is None
    assert "2/3" in Report("x", rows).table()


def test_saved_and_reported_again(tmp_path, capsys):
    path = report().save(tmp_path)
    content = json.loads(path.read_text())
    assert set(content) == {"experiment", "format", "command", "environment", "settings", "rows", "jumps"}
    assert {"torch", "machine", "commit", "seeds", "threads"} <= set(content["environment"])
    assert str(tmp_path) not in path.read_text()
    (tmp_path / "comparison.png").unlink()
    assert cli.main(["report", str(tmp_path)]) == 0
    assert "L-BFGS" in capsys.readouterr().out
    assert (tmp_path / "comparison.png").stat().st_size > 10_000


def test_reports_of_what_is_not_one(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 1
    assert "no results.json" in capsys.readouterr().err
    records.write(tmp_path, "other", {}, [1])
    assert cli.main(["report", str(tmp_path)]) == 1
    assert "not a comparison" in capsys.readouterr().err
    records.write(tmp_path, "other", {}, [{"value": 1}])
    with pytest.raises(JumpstartError, match="not a comparison"):
        Report.read(tmp_path)
    assert cli.main(["report", str(tmp_path)]) == 0  # whatever it is, its rows are shown
    assert capsys.readouterr().out.split() == ["value", "-----", "1"]


def test_no_contenders():
    with pytest.raises(InputError, match="contender"):
        js.compare(nn.Linear(1, 1), lambda m: m, {})


def test_table_aligns_and_marks_what_is_missing():
    text = records.table([{"a": "x", "b": 1.23456}, {"a": "long", "b": None}], {"a": "name", "b": "value"})
    assert text.splitlines() == ["name  value", "----  -----", "x      1.23", "long      –"]


def test_plots_ask_for_matplotlib(monkeypatch):
    import builtins

    from jumpstart.report import plots

    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(JumpstartError, match="plots"):
        plots.pyplot()


def test_noise_is_each_contenders_own_and_the_callers_is_left_alone():
    """Two identical contenders with noise agree whatever the order of their turns, and evaluation is in eval mode."""

    def noisy(model, objective):
        cost = 0
        while True:
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.01 * torch.randn_like(p))
            cost += 1
            yield {"gradient_evaluations": cost}

    modes = []
    torch.manual_seed(3)
    x, y = torch.randn(8, 2), torch.randn(8, 1)
    model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    state = torch.get_rng_state()
    found = js.compare(
        model, lambda m: js.supervised(m, x, y, training=False), {"a": noisy, "b": noisy}, steps=5, progress=False,
        evaluate=lambda m: modes.append(m.training) or {},
    )  # fmt: skip
    assert torch.equal(state, torch.get_rng_state())
    assert found.curve("a")[1] == found.curve("b")[1]
    assert not any(modes)


def test_lbfgs_goes_on_below_torchs_default_tolerance():
    torch.manual_seed(0)
    x = torch.randn(30, 3).double()
    model = nn.Linear(3, 1).double()
    y = x @ torch.randn(3, 1).double()
    found = js.compare(model, lambda m: js.supervised(m, x, y), {"L-BFGS": js.lbfgs()}, steps=8, progress=False)
    assert min(found.curve("L-BFGS")[1]) < 1e-20


WRONG = {
    "seconds below zero": ({"seconds": -1.0}, "seconds"),
    "no seconds": ({"seconds": 0}, "seconds"),
    "no steps": ({"steps": 0}, "steps=0"),
    "evaluations in words": ({"evaluations": "ten"}, "evaluations='ten'"),
    "a time for one of two": ({"seconds": {"A": 1.0}}, "names no time for"),
}


@pytest.mark.parametrize("name", WRONG)
def test_limits_that_are_none_are_refused_before_anything_runs(name):
    options, words = WRONG[name]
    asked = []

    def contender(model, objective):
        asked.append(1)
        yield {"gradient_evaluations": 1}

    with pytest.raises(InputError, match=words):
        js.compare(nn.Linear(2, 1), lambda m: None, {"A": contender, "B": contender}, progress=False, **options)
    assert asked == []
    with pytest.raises(InputError, match="function of the model"):
        js.compare(nn.Linear(2, 1), None, {"A": contender}, progress=False)
    with pytest.raises(InputError, match="when to stop"):
        js.fitted()


def test_a_rehearsal_leaves_the_timed_runs_file_alone(tmp_path):
    x = torch.linspace(-1, 1, 12, dtype=torch.float64)[:, None]
    model, path = nn.Linear(1, 1).double(), tmp_path / "run.npz"
    report = js.compare(
        model, lambda m: js.supervised(m, x, x.sin()), {"A": js.fitted(jumps=3, path=path)}, steps=3, progress=False
    )
    assert [row["jumps"] for row in report.rows if row["step"] == 1] == [1]
    assert path.exists()


def failing(at, error):
    """A contender that raises after so many steps."""

    def run(model, objective):
        for k in range(9):
            if k == at:
                raise error
            yield {"gradient_evaluations": k + 1}

    return run


def race(contenders, **options):
    x = torch.linspace(-1, 1, 16)[:, None]
    return js.compare(
        nn.Linear(1, 1), lambda m: js.supervised(m, x, x), contenders, **{"steps": 9, "progress": False, **options}
    )


BROKEN = {
    "later": failing(4, RuntimeError("its\nown")),
    "at once": failing(0, MemoryError()),
    "no generator": lambda model, objective: 3,
    "a function that raises": lambda model, objective: 1 / 0,
    "no costs": lambda model, objective: iter([{}]),
    "a cost of text": lambda model, objective: iter([{"gradient_evaluations": "a"}]),
    "numbers": lambda model, objective: iter([3]),
    "an error of ours": js.jumps_only(lambda k: {"horizon": -1.0}),
    "with a spoilt model": lambda model, objective: iter([delattr(model, "weight") or {"gradient_evaluations": 1}]),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.filterwarnings("ignore:compare. .* is out:RuntimeWarning")
def test_one_contenders_exception_costs_its_row_alone(name):
    with pytest.warns(RuntimeWarning, match=r"compare: 'broken.*' is out: \w+") as caught:
        found = race({"Adam": js.stepped(torch.optim.Adam), "broken\x1b[1m": BROKEN[name]})
    assert sum("is out" in str(w.message) for w in caught) == 1
    assert all(str(w.message).isprintable() for w in caught if "is out" in str(w.message))
    last = {row["contender"]: row for row in found.rows}
    assert last["Adam"]["step"] == 9 and "failed" not in last["Adam"]
    assert last["broken\x1b[1m"]["failed"]
    assert last["broken\x1b[1m"]["step"] == (4 if name == "later" else 1 if name.startswith("with") else 0)
    assert "failed" in found.table().splitlines()[0] and found.settings["metrics"] == []
    assert found.summary()[0]["loss"] < found.rows[0]["loss"]


def test_a_race_without_failures_has_no_such_column():
    assert "failed" not in race({"Adam": js.stepped(torch.optim.Adam)}).table()


def test_an_interrupt_ends_all_and_keeps_the_rows_so_far(tmp_path):
    contenders = {"Adam": js.stepped(torch.optim.Adam), "stopped": failing(4, KeyboardInterrupt())}
    with pytest.raises(KeyboardInterrupt) as caught:
        race(contenders, folder=tmp_path / "run")
    assert "rows so far are in" in caught.value.__notes__[0]
    found = Report.read(tmp_path / "run")
    assert found.contenders == ["Adam", "stopped"] and found.settings["interrupted"] == "KeyboardInterrupt"
    assert found.curve("stopped", "step")[0][-1] == 4 and "Adam" in found.table()
    with pytest.raises(KeyboardInterrupt):
        race(contenders)


def test_results_go_to_the_folder_and_a_folder_that_cannot_be_written_is_refused_first(tmp_path):
    found = race({"Adam": js.stepped(torch.optim.Adam)}, folder=tmp_path / "run", name="mine")
    assert Report.read(tmp_path / "run").rows == found.rows
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        race({"never": failing(0, AssertionError())}, folder=tmp_path / "file")
