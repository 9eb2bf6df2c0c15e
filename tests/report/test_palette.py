"""One palette for all figures, told apart by people who do not see all colours; jumps are marked alike."""

from __future__ import annotations

import pathlib
import re

import pytest
import torch

import jumpstart as js
from jumpstart.report import plots

ROOT = pathlib.Path(__file__).resolve().parents[2]
OTHERS = {"#7B3294": "label_noise: a seventh line beside black and grey", "#555555": "endpoint: error bars"}
PLACES = [*(ROOT / "experiments").rglob("*.py"), *(ROOT / "jumpstart").rglob("*.py")]


@pytest.mark.parametrize("word", [r"#[0-9A-Fa-f]{6}\b", r"[\"'](?:tab:|C)[a-z0-9]+[\"']"])
def test_colours_in_figures_are_the_palettes(word):
    found = {
        (path.name, colour)
        for path in PLACES
        if "plots." in (text := path.read_text()) or "pyplot" in text or ".plot(" in text
        for colour in re.findall(word, text)
    }
    assert {pair for pair in found if pair[1].upper() not in {*plots.COLOURS, *(c.upper() for c in OTHERS)}} == set()


def test_jumps_are_marked_on_curves_and_titles_say_what_is_shown():
    pytest.importorskip("matplotlib")
    x = torch.linspace(-1, 1, 12, dtype=torch.float64)[:, None]
    net = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    contenders = {"SGD": js.stepped(torch.optim.SGD), "jumps": js.jumps_only(lambda k: {})}
    report = js.compare(net, lambda m: js.supervised(m, x, x.square()), contenders, steps=5)
    figure = report.figure()
    assert "dots: jumps kept" in figure.get_suptitle() and "loss of each contender" in figure.get_suptitle()
    marked = [line for line in figure.axes[1].lines if line.get_gid() == "jumps"]
    assert sum(len(line.get_xdata()) for line in marked) == 5
    assert {line.get_color() for line in marked} == {plots.COLOURS[1]}  # of the second contender
    result = js.fit(js.supervised(net, x, x.square()), jumps=6)
    axis = plots.history(result.history).axes[0]
    assert sum(len(line.get_xdata()) for line in axis.lines if line.get_gid() == "jumps") == 6 and axis.get_title()
