"""Pictures: under any name, of any numbers, whole or not at all, and never a reason to lose a table."""

from __future__ import annotations

import math
import sys
import warnings

import pytest
import torch

import jumpstart as js
from jumpstart.comparison.report import Report
from jumpstart.errors import InputError, JumpstartError
from jumpstart.report import plots

from .test_names import HOSTILE

pytest.importorskip("matplotlib")


def rows(*names, losses=(1.0, 0.5)):
    return [
        {"contender": name, "step": k, "gradient_evaluations": k, "seconds": float(k), "loss": loss}
        for name in names
        for k, loss in enumerate(losses)
    ]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_every_name_has_its_line_and_its_place_in_the_legend():
    names = list(HOSTILE.values())[:12]
    report = Report("$x_{1$", [{**row, "_m$": 1.0} for row in rows(*names)], {"metrics": ["_m$"]}, [0])
    figure = report.figure()
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(texts) == 12 and all(text.isprintable() for text in texts)
    assert all(len(axis.lines) == 12 for axis in figure.axes)
    assert figure.axes[2].get_ylabel() == "_m$"
    figure.canvas.draw()


@pytest.mark.parametrize("losses", [(math.nan,) * 2, (math.inf, -math.inf), (1e308, -1e308), (0.0, 0.0), (5e-324, 1.0)])
def test_any_numbers_can_be_drawn(losses, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        Report("n", rows("a", losses=losses), {"metrics": []}, [0]).save(tmp_path)
    assert (tmp_path / "n.png").exists()


def test_many_contenders_and_metrics_make_a_picture_of_bounded_size(tmp_path):
    names, metrics = [f"c{k}" for k in range(300)], [f"m{k}" for k in range(100)]
    report = Report("n", rows(*names), {"metrics": metrics}, [0])
    width, height = report.figure().get_size_inches()
    assert width < 60 and height < 10
    assert len(report.table().split("\n")) == 302


def test_the_users_backend_style_and_figures_are_left_alone(tmp_path):
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use("svg")
    plt.rcParams["font.size"] = 17
    others, mine = plt.get_fignums(), plt.figure()
    try:
        Report("n", rows("a"), {"metrics": []}, [0]).save(tmp_path)
        plots.save(plots.history([{"seconds": 1.0, "loss": 2.0}]), tmp_path / "h.png")
        assert matplotlib.get_backend() == "svg" and plt.rcParams["font.size"] == 17
        assert plt.get_fignums() == [*others, mine.number]
    finally:
        plt.close(mine)
        matplotlib.rcdefaults()
        matplotlib.use("Agg")


def test_histories_of_all_kinds(tmp_path):
    for k, history in enumerate(([], [{"seconds": 1.0, "loss": -3.0}], [{"seconds": 1.0, "loss": 1.0, "error": None}])):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert plots.save(plots.history(history), tmp_path / str(k)) == tmp_path / f"{k}.png"
    figure = plots.history([{"seconds": 1.0, "loss": 2.0}])
    with pytest.raises(InputError, match=r"'\.doc' is no picture"):
        plots.save(figure, tmp_path / "a.doc")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        plots.save(figure, tmp_path / "file" / "a.png")


def test_without_matplotlib_the_table_is_there_and_a_hint(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.warns(RuntimeWarning, match="figures need matplotlib: pip install"):
        path = Report("n", rows("a"), {"metrics": []}, [0]).save(tmp_path)
    assert path.exists() and [p.name for p in tmp_path.iterdir()] == ["results.json"]
    x = torch.ones(3, 1)
    result = js.fit(js.supervised(torch.nn.Linear(1, 1), x, 2 * x), jumps=1)
    with pytest.raises(JumpstartError, match="figures need matplotlib"):
        result.plot(tmp_path / "a.png")


def test_a_picture_that_fails_costs_the_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(Report, "figure", lambda self: 1 / 0)
    with pytest.warns(RuntimeWarning, match="no figure at .*ZeroDivisionError"):
        Report("n", rows("a"), {"metrics": []}, [0]).save(tmp_path)
