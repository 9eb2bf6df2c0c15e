"""Pages: self-contained, escaped, bounded, in words as well; of results of any kind."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from html.parser import HTMLParser

import pytest
import torch

import jumpstart as js
from jumpstart import cli
from jumpstart.comparison.report import Report
from jumpstart.errors import ArchiveError, InputError, MissingPackageError
from jumpstart.report import jumps, records
from jumpstart.report.page import render
from jumpstart.report.page.model import Chart, Curve, Page, Section, Table, gaps, said

from .test_names import HOSTILE

pytest.importorskip("plotly")
MARKUP = {
    **HOSTILE,
    "script": "</script><script>alert(1)</script>",
    "quotes": "\"'><img src=x onerror=alert(1)>",
    "a&b": "a&amp;<b>%{x}$y$",
}


class Reader(HTMLParser):
    """Tags and texts of a page; void elements have no end."""

    VOID = frozenset(("meta", "img", "input", "br"))

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def data(self):
        index = next(i for i, (tag, attrs) in enumerate(self.tags) if attrs.get("id") == "data")
        assert self.tags[index][0] == "script"
        return json.loads(next(text for tag, text in self.texts if tag == "script" and text.startswith('{"charts"')))


def rows(*names, losses=(1.0, 0.01, 0.001)):
    return [
        {"contender": name, "step": k, "gradient_evaluations": 2 * k, "seconds": float(k), "loss": loss}
        for name in names
        for k, loss in enumerate(losses)
    ]


def report(*names, **options):
    return Report("run", rows(*names, **options), {"metrics": []}, [0])


def test_a_page_is_one_file_that_may_run_its_own_scripts_and_load_nothing(tmp_path):
    path = report("a", "b").html(tmp_path / "page")
    text = path.read_text()
    assert path.name == "page.html" and path.stat().st_size < render.LARGEST
    read = Reader(text)
    assert read.open == []
    policy = next(attrs["content"] for tag, attrs in read.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe-eval" not in policy
    assert not [
        tag for tag, attrs in read.tags if {"src", "href"} & set(attrs) and not attrs.get("href", "").startswith("#")
    ]
    assert [tag for tag, attrs in read.tags if any(key.startswith("on") for key in attrs)] == []
    for row in ("gradient evaluations", "seconds", "steps"):
        assert row in str(read.data()["charts"][0]["across"])


@pytest.mark.parametrize("name", MARKUP)
def test_names_are_text_wherever_they_stand(name, tmp_path):
    found = Report(
        "n",
        [{**row, MARKUP[name] or "x": 1.0} for row in rows(MARKUP[name], "b")],
        {"metrics": [MARKUP[name] or "x"]},
        [0],
    )
    result = js.JumpResult(
        js.Outcome.ACCEPTED, 1.0, 1.0, 0.5, 0.4, False, 0, 1, 0.1, 2.0, "dense", 3, cause=MARKUP[name]
    )
    found.jumps = [jumps.row(MARKUP[name], MARKUP[name], result, step=1, seconds=1.0, gradient_evaluations=2.0)]
    found.residuals = [{"who": MARKUP[name], "term": MARKUP[name], "of": 1, "points": [[0.0], [1.0]], "values": [2.0]}]
    read = Reader(found.html(tmp_path / "p.html").read_text())
    assert read.open == []
    assert [tag for tag, _ in read.tags if tag in ("img", "b", "object", "iframe")] == []
    assert sum(tag == "script" for tag, _ in read.tags) == 3
    assert all(text.isprintable() for tag, text in read.texts if tag in ("th", "td", "h1", "h2", "h3", "caption"))
    assert [path.name for path in tmp_path.iterdir()] == ["p.html"]


def test_values_that_are_not_finite_are_gaps_and_said_so(tmp_path):
    found = report("a", "b", losses=(1.0, math.nan, math.inf, 0.5))
    read = Reader(found.html(tmp_path / "p.html").read_text())
    assert read.data()["charts"][0]["curves"][0]["points"]["loss"] == [1.0, None, None, 0.5]
    assert any("NaN or infinite: a (2 of 4), b (2 of 4)" in text for _, text in read.texts)
    label = next(attrs["aria-label"] for tag, attrs in read.tags if attrs.get("role") == "img")
    assert label == "Loss of each contender. loss: a: 1 → 0.5; b: 1 → 0.5."
    none = Chart("t", "y", "y", {"x": "x"}, [Curve("a", {"x": [0.0], "y": [math.nan]})])
    assert (
        said(none) == "t. y: a: no finite value."
        and gaps(none) == "Gaps are values that are NaN or infinite: a (1 of 1)."
    )
    report("a", losses=(math.nan,) * 3).html(tmp_path / "q.html")


def test_large_results_are_thinned_to_five_million_bytes_and_it_is_said(tmp_path):
    many = [
        {"contender": f"c{k}", "step": i, "gradient_evaluations": i, "seconds": i / 7, "loss": 1 / (i + 1 + k)}
        for k in range(60)
        for i in range(1500)
    ]
    path = Report("run", many, {"metrics": []}, [0]).html(tmp_path / "p.html")
    assert 1_000_000 < path.stat().st_size <= render.LARGEST
    read = Reader(path.read_text())
    points = read.data()["charts"][0]["curves"][0]["points"]["step"]
    assert points[0] == 0 and points[-1] == 1499 and len(points) < 1500
    assert any(f"{len(points)} of up to 1500 points" in text for _, text in read.texts)
    wide = Page("wide", ["x" * 1900] * 3000, [])
    with pytest.raises(InputError, match=r"'wide' would have .* bytes, above 5,000,000"):
        render.render(wide)


def test_where_a_page_goes(tmp_path):
    with pytest.raises(InputError, match=r"ends in \.html, not in '\.png'"):
        report("a").html(tmp_path / "a.png")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        report("a").html(tmp_path / "file" / "a.html")


def test_without_plotly_or_pandas_it_says_what_to_install(tmp_path, monkeypatch):
    from jumpstart.report.page import library

    library.plotly.cache_clear()
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'jumpstart\[html\]'"):
        report("a").html(tmp_path / "a.html")
    with pytest.raises(MissingPackageError, match="pip install pandas, or take to_csv"):
        report("a").dataframe()
    assert list(tmp_path.iterdir()) == []


def test_a_package_without_its_script_is_named(tmp_path, monkeypatch):
    from jumpstart.report.page import library

    library.plotly.cache_clear()
    monkeypatch.setattr(library, "FILE", library.FILE.with_name("other.js"))
    with pytest.raises(MissingPackageError, match=r"has no package_data/other\.js"):
        report("a").html(tmp_path / "a.html")


def test_rows_as_csv_come_back(tmp_path):
    found = report('a "b", c', "λ\n", losses=(1.0, math.nan))
    path = found.to_csv(tmp_path / "rows")
    assert path.name == "rows.csv"
    with path.open(newline="", encoding="utf-8") as file:
        back = list(csv.DictReader(file))
    assert [row["contender"] for row in back] == ['a "b", c'] * 2 + ["λ\n"] * 2
    assert float(back[0]["loss"]) == 1.0 and math.isnan(float(back[1]["loss"]))
    frame = pytest.importorskip("pandas") and found.dataframe()
    assert list(frame["loss"][:1]) == [1.0]


def test_a_fit_is_kept_shown_and_read_again(tmp_path, capsys):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    box = js.domains.Box((0, 0), (1, 1))
    zero = lambda net, x: net(x) - x.prod()  # noqa: E731
    problem = js.residual(
        net, js.Term(zero, box, count=30, name="in/<side>"), js.Term(zero, box.boundary(), count=20, name="edge")
    )
    result = js.fit(problem, jumps=12, error=lambda model: float(model(torch.ones(1, 2).double()).abs().sum()))
    path = result.html(tmp_path / "fit.html")
    charts = Reader(path.read_text()).data()["charts"]
    kinds = {chart["title"]: chart for chart in charts}
    assert {
        "Loss along the fit",
        "Error along the fit",
        "Actual decrease of the loss against the predicted one",
    } <= set(kinds)
    assert "Sum of all rates of the kernel" in kinds and "Trust: the horizon that the next search starts from" in kinds
    marks = kinds["Loss along the fit"]["curves"][1]["jumps"]
    assert sum(marks["kept"]) == result.accepted and len(marks["kept"]) == 12
    maps = [chart for chart in charts if chart["kind"] == "map"]
    assert [len(chart["curves"][0]["points"]["value"]) for chart in maps] == [30, 20]
    plain = {found.name: found.rms for found in problem.terms()}
    for row in result.residuals:  # at the weights that the model holds now
        assert math.sqrt(sum(v * v for v in row["values"]) / row["of"]) == pytest.approx(plain[row["term"]])

    result.save(tmp_path)
    again = js.FitResult.read(tmp_path)
    assert again.history == result.history and str(again) == str(result) and again.residuals == result.residuals
    assert cli.main(["report", str(tmp_path), "--html", "--csv"]) == 0
    assert result.outcome.name in capsys.readouterr().out
    assert (tmp_path / "report.html").exists() and (tmp_path / "report.csv").read_text().count("\n") == 13

    content = json.loads((tmp_path / "results.json").read_text())
    for change, words in (
        (lambda c: c["settings"]["fit"].update(outcome="GOOD"), "is no fit"),
        (lambda c: c["settings"]["fit"].update(loss="low"), "says loss='low'"),
        (lambda c: c["rows"][3].update(loss={"a": 1}), "row 3 says loss="),
        (lambda c: c["rows"][2].pop("outcome"), "row 2 names no outcome"),
        (lambda c: c["residuals"][0].update(values=[1]), "points that do not match"),
        (lambda c: c.update(format=2), "is of format 2, written by jumpstart"),
    ):
        bad = json.loads(json.dumps(content))
        change(bad)
        (tmp_path / "results.json").write_text(json.dumps(bad))
        with pytest.raises(ArchiveError, match=words):
            js.FitResult.read(tmp_path)


def test_a_wrapped_loop_and_the_lines_that_it_wrote(tmp_path, capsys):
    torch.manual_seed(0)
    x = torch.randn(32, 2)
    model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    objective = js.supervised(model, x, x.sum(1, keepdim=True).sin())
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    optimizer = js.JumpOptimizer(adam, objective, at=[5, 9], search=True, on_jump=js.JsonLines(tmp_path / "run.jsonl"))
    for _ in optimizer.steps(12):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), x.sum(1, keepdim=True).sin()).backward()
        optimizer.step()
    assert [row["step"] for row in optimizer.history] == [5, 9] and optimizer.history[0]["action"] == "search"
    first = optimizer.results[0]
    assert optimizer.history[0]["delivered"] == first.before - first.actual
    charts = Reader(optimizer.html(tmp_path / "run.html").read_text()).data()["charts"]
    assert charts[0]["curves"][0]["points"]["step"] == [5, 9]
    assert cli.main(["report", str(tmp_path / "run.jsonl"), "--html"]) == 0
    assert "search" in capsys.readouterr().out and (tmp_path / "report.html").exists()
    for line, words in (
        ("{", "line 3 is no JSON"),
        ('{"mode": "search", "outcome": "FINE"}', "line 3 is of no jump"),
        ("[1]", "of no jump"),
    ):
        text = "\n".join([*(tmp_path / "run.jsonl").read_text().splitlines()[:2], line])
        (tmp_path / "bad.jsonl").write_text(text)
        assert cli.main(["report", str(tmp_path / "bad.jsonl")]) == 1
        assert words in capsys.readouterr().err


def test_an_optimizer_that_never_jumped_has_a_page(tmp_path):
    model = torch.nn.Linear(1, 1)
    optimizer = js.JumpOptimizer(
        torch.optim.SGD(model.parameters(), 0.1), js.supervised(model, torch.ones(2, 1), torch.ones(2, 1)), at=()
    )
    assert "No jump was tried." in optimizer.html(tmp_path / "a.html").read_text()


def test_results_of_any_kind_have_a_page(tmp_path, capsys):
    content = [
        {"name": "a<b", "seconds": float(k), "value": 1 / (k + 1), "inner": {"x": k}, "list": [1, 2]} for k in range(5)
    ]
    records.write(tmp_path, "some/thing", {"a": {"b": 1}, "summary": [{"line": "one", "value": 2.5}]}, content)
    png = b"\x89PNG\r\n\x1a\n" + b"0" * 50
    (tmp_path / "picture.png").write_bytes(png)
    (tmp_path / "large.png").write_bytes(png * 40_000)
    assert cli.main(["report", str(tmp_path), "--html", str(tmp_path / "deep" / "x.html")]) == 0
    read = Reader((tmp_path / "deep" / "x.html").read_text())
    assert [chart["title"] for chart in read.data()["charts"]] == ["value along the run"]
    assert [attrs["alt"] for tag, attrs in read.tags if tag == "img"] == ["picture"]
    texts = [text for _, text in read.texts]
    assert any("left out, being too many or too large: large.png" in text for text in texts)
    assert {"Summary", "inner: x", "a: b"} <= set(texts)
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "none"):
        assert cli.main(["report", str(tmp_path / folder), "--html"]) == 1
        assert "holds no results.json" in capsys.readouterr().err


def test_tables_mark_numbers_words_and_what_is_missing():
    table = Table("t", {"a": "a", "b": "b"}, [{"a": "x", "b": 1.25}, {"a": True, "b": None}, {"a": "y", "b": "w" * 40}])
    text = render.render(Page("p", [], [Section("s", [table])]))
    assert (
        '<td data-value="1.25">1.25</td>' in text
        and "<td>–</td>" in text
        and f'<td class="words">{"w" * 40}</td>' in text
    )
    assert re.search(r'<th scope="row">yes</th>', text)
