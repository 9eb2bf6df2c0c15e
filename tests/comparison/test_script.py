"""``jumpstart compare`` and ``ablate`` on a file of one's own: ten lines are enough."""

from __future__ import annotations

import json
import textwrap

import pytest
import torch

import jumpstart as js
from jumpstart import cli, errors
from jumpstart.comparison.ablation import Ablation
from jumpstart.comparison.script import EXAMPLE, VARIANTS, Script, usual

SHORT = ["--steps", "4", "--seeds", "2", "--no-progress"]


@pytest.fixture
def script(tmp_path):
    def write(text, name="mine.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return path

    return write


def test_the_example_is_ten_lines_at_most_and_runs_with_what_is_usual(script, tmp_path, capsys):
    path = script(EXAMPLE)
    assert len([line for line in path.read_text().splitlines() if line.strip()]) <= 10
    out = tmp_path / "out"
    assert cli.main(["compare", str(path), *SHORT, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in usual(1.0, 4)) and "0/2" in told
    found = Ablation.read(out)
    assert list(found.reports) == [0, 1] and found.variants == list(usual(1.0, 4))
    starts = [report.rows[0]["loss"] for report in found.reports.values()]
    assert starts[0] != starts[1]  # torch is seeded for the file
    model, objective = Script(path).start(1)
    of = objective(model)
    assert of.value(of.theta()) == pytest.approx(starts[1])


def test_an_ablation_of_ones_own_goes_on_where_it_was_and_is_merged(script, tmp_path, capsys, monkeypatch):
    path = script(
        """
        import torch
        import helper
        import jumpstart as js

        def problem(seed):
            return torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)), objective

        def objective(net):
            return js.supervised(net, helper.x, helper.x.square())

        variants = {"as it is": {}, "<b>plain</b>": js.stepped(torch.optim.SGD)}
        evaluate = lambda net: {"at zero": float(net(torch.zeros(1, 1)))}
        """
    )
    script("import torch\nx = torch.linspace(-1, 1, 9)[:, None]\n", "helper.py")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["ablate", str(path), *SHORT, "--html", "--csv", "rows.csv"]) == 0
    told = capsys.readouterr().out
    out = tmp_path / "runs" / "ablate-mine"
    assert "at zero, median" in told and "<b>plain</b>" in told
    assert (tmp_path / "rows.csv").read_text().startswith("seed,contender,step,")
    page = (out / "report.html").read_text()
    assert "<b>plain" not in page and "&lt;b&gt;plain" in page
    before = {place.parent.name: place.read_bytes() for place in out.glob("seed-*/results.json")}
    assert cli.main(["ablate", str(path), "--steps", "4", "--seeds", "3", "--no-progress"]) == 0
    after = {place.parent.name: place.read_bytes() for place in out.glob("seed-*/results.json")}
    assert set(after) == {"seed-0", "seed-1", "seed-2"} and {name: after[name] for name in before} == before
    # Seeds of another folder are merged; the same seed twice is not.
    other = tmp_path / "other"
    other.mkdir()
    (out / "seed-2").rename(other / "seed-2")
    capsys.readouterr()
    assert cli.main(["report", str(out), str(other), "--html", str(tmp_path / "merged.html")]) == 0
    assert "0/3" in capsys.readouterr().out
    for folders, words in (([out, out], "seed 0 is there twice"), ([out, tmp_path], "holds no seeds of an ablation")):
        assert cli.main(["report", *map(str, folders)]) == 1
        assert words in capsys.readouterr().err
    content = json.loads((other / "seed-2" / "results.json").read_text())
    content["settings"]["ablation"]["steps"] = 5
    (other / "seed-2" / "results.json").write_text(json.dumps(content))
    assert cli.main(["report", str(out), str(other)]) == 1
    assert "of other variants or limits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "has no function problem(seed)"),
        ("problem = 3", "has no function problem(seed)"),
        ("def problem(seed):\n    return 3", "problem(0) returned 3"),
        ("import torch\ndef problem(seed):\n    return torch.nn.Linear(1, 1), 3", "problem(0) returned"),
        ("def problem(seed): pass\nvariants = []", "variants is []"),
        ("def problem(seed): pass\nvariants = {'a': {'patiense': 3}}", "'patiense'"),
        ("def problem(seed): pass\nevaluate = 3", "evaluate is 3"),
    ],
)
def test_a_script_that_is_none_is_refused_by_name(script, text, words, capsys, tmp_path):
    path = script(text)
    assert cli.main(["ablate", str(path), *SHORT, "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert words in told
    if "problem" in words:
        assert "return model, lambda net: js.supervised" in told


def test_no_file_no_python_and_errors_of_its_own(script, tmp_path, capsys):
    assert cli.main(["compare", str(tmp_path / "none.py")]) == 1
    assert "is no file" in capsys.readouterr().err
    assert cli.main(["compare", str(script("problem", "mine.txt"))]) == 1
    assert "ends in '.txt', not in .py" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):  # with its traceback, which says where
        cli.main(["compare", str(script("1 / 0"))])
    for value in ("0", "-1"):
        with pytest.raises(SystemExit):
            cli.main(["compare", str(script(EXAMPLE)), "--seeds", value])


def test_what_is_usual_are_options_of_fit():
    x = torch.linspace(-1, 1, 6)[:, None]
    found = js.ablate(torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)),
                      lambda net: js.supervised(net, x, x), VARIANTS, seeds=1, steps=2)  # fmt: skip
    assert found.variants == list(VARIANTS)


def test_compare_over_seeds_is_compare_from_each(tmp_path):
    x = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]

    def start(seed):
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()

    def objective(net):
        return js.supervised(net, x, x.square())

    contenders = {"SGD": js.stepped(lambda p: torch.optim.SGD(p, 0.1)), "jumps": js.jumps_only(lambda k: {})}
    found = js.compare(start, objective, contenders, seeds=[1, 4], steps=3, folder=tmp_path)
    alone = js.compare(start(4), objective, contenders, steps=3, seed=4)
    assert isinstance(found, js.Ablation) and found.reports[4].table().split()[:4] == alone.table().split()[:4]
    assert [row["loss"] for row in found.reports[4].rows] == [row["loss"] for row in alone.rows]
    assert [row["delivered"] for row in found.reports[4].jumps] == [row["delivered"] for row in alone.jumps]
    assert len(alone.jumps) == 3 and {row["who"] for row in alone.jumps} == {"jumps"}
    assert Ablation.read(tmp_path).rows() == found.rows()
    page = found.html(tmp_path / "a.html").read_text()
    assert "seed by seed" in page
    with pytest.raises(errors.InputError, match="both say where it starts"):
        js.compare(start, objective, contenders, seeds=2, seed=1, steps=3)
    with pytest.raises(errors.InputError, match="goes with seeds="):
        js.compare(start, objective, contenders, steps=3)


def test_an_interrupt_keeps_the_seeds_that_are_done(tmp_path):
    x = torch.linspace(-1, 1, 8)[:, None]

    def start(seed):
        if seed == 2:
            raise KeyboardInterrupt
        return torch.nn.Linear(1, 1)

    with pytest.raises(KeyboardInterrupt) as caught:
        js.ablate(start, lambda net: js.supervised(net, x, x), {"as it is": {}}, seeds=3, steps=1, folder=tmp_path)
    assert caught.value.__notes__ == [f"2 of 3 seeds are in {tmp_path}; the same call goes on after them"]
    assert list(Ablation.read(tmp_path).reports) == [0, 1]
    with pytest.raises(errors.ArchiveError, match="holds no seed-N"):
        Ablation.read(tmp_path / "seed-0")
