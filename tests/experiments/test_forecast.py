"""Forecasts find the laws that rows are made by, know nothing of the row that is foretold, and a toy run."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from experiments.forecast import forecasts, runs


def rows(law, count=14):
    torch.manual_seed(0)
    found = []
    pairs = itertools.cycle(itertools.product(runs.RATES, runs.DECAYS))
    for rate, decay in itertools.islice(pairs, count):
        a, b, c, m = torch.rand(4).tolist()
        row = {"rate": rate, "decay": decay, "share": 0.6 + 0.1 * a, "memorized": 20 + round(40 * m),
               "norm then": 100 * math.exp(a),
               "norm": 90 + 50 * b, "norm before": 80 + 40 * c, "effective rank": 1 + 5 * a * b,
               "largest eigenvalue": 1 + c, "transfer": 0.1 + b * c, "held-out then": a}  # fmt: skip
        row["moment"] = 3 * row["memorized"]
        row["generalized"] = row["moment"] + law(row)
        found.append(row)
    return found


def by_rank(row):
    return 500 * row["effective rank"] ** 2 - row["moment"]


def by_norm(row):
    passage = math.log(row["norm then"] / 50) / (2 * 0.7 * row["rate"] * row["decay"])
    return passage + row["memorized"] - row["moment"]


@pytest.mark.parametrize(("law", "name"), [(by_rank, "spectrum"), (by_norm, "first passage")])
def test_a_law_is_found_and_foretells(law, name):
    found = rows(law)
    fitted, told = found[:10], found[10:]
    picked = forecasts.chosen(fitted)
    table = {line["forecast"]: line for line in forecasts.lines(fitted, told, picked)}
    others = [n for n in forecasts.FORECASTS if not n.startswith(name)]
    assert table[name]["mean error"] < 1e-8 < min(table[n]["mean error"] for n in others)
    if name == "spectrum":
        assert picked["spectrum"] == "effective rank"
    said = [line["verdict"] for line in forecasts.verdicts(list(table.values()))]
    assert said == ["held"] * 3 if name == "spectrum" else said[0] == "refuted"


def test_what_generalized_before_the_forecast_or_never_is_left_out():
    late = {"generalized": 90, "moment": 60}
    assert forecasts.usable([late, {"generalized": 60, "moment": 60}, {"generalized": None, "moment": 60},
                             {"generalized": 30}]) == [late]  # fmt: skip


def test_a_run_that_is_looked_into_ends_where_it_would_have(monkeypatch):
    """Recording changes nothing, and the forecast is made before the end."""
    row = runs.run(100, runs.TOY)
    assert row["memorized"] and row["moment"] == max(runs.MOMENT * row["memorized"], row["memorized"] + 3)
    assert row["effective rank"] >= 1 and row["transfer"] > 0 and row["error"] < 0.1
    monkeypatch.setattr(runs, "MOMENT", 10_000)
    bare = runs.run(100, runs.TOY)
    assert "moment" not in bare
    assert {k: bare[k] for k in ("memorized", "norm then")} == {k: row[k] for k in ("memorized", "norm then")}
    if row["generalized"] != row["moment"]:
        assert bare["generalized"] == row["generalized"]
