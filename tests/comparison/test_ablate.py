"""Ablations: the same starts for all, differences pair by pair, failures counted, interrupted runs gone on with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart import errors
from jumpstart.comparison.report import Report

X = torch.linspace(-1, 1, 12, dtype=torch.float64)[:, None]
VARIANTS = {"as it is": {}, "no second order": {"geodesic": False}, "plain": js.stepped(torch.optim.SGD)}


def start(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()


def objective(model):
    return js.supervised(model, X, (3 * X).sin())


def test_variants_start_alike_and_seeds_do_not():
    found = js.ablate(start, objective, VARIANTS, seeds=2, steps=4, evaluate=lambda m: {"norm": float(m(X).norm())})
    assert found.variants == list(VARIANTS) and list(found.reports) == [0, 1] and found.metrics == ["norm"]
    begun = {(seed, row["contender"]): row["loss"] for seed, report in found.reports.items() for row in report.rows[:3]}
    expected = {seed: objective(start(seed)).value(objective(start(seed)).theta()) for seed in (0, 1)}
    assert all(loss == pytest.approx(expected[seed]) for (seed, _), loss in begun.items())
    by_hand = js.compare(start(1), objective, {"as it is": js.fitted(jumps=4)}, steps=4, seed=1)
    assert found.ends("as it is")[1] == pytest.approx(by_hand.rows[-1]["loss"], rel=1e-9)


def test_rows_are_medians_and_pairs():
    def report(seed, values):
        rows = [
            {"contender": k, "step": 1, "gradient_evaluations": 1, "seconds": 1, "loss": v} for k, v in values.items()
        ]
        return Report("a", rows, {"metrics": []}, [seed])

    found = js.Ablation({s: report(s, v) for s, v in enumerate((
        {"one": 1.0, "two": 0.5}, {"one": 4.0, "two": 8.0}, {"one": 2.0, "two": float("nan")}, {"one": 0.0, "two": 1.0},
    ))})  # fmt: skip
    one, two = found.rows()
    assert one == {
        "variant": "one", "median": 1.5, "lowest": 0.0, "highest": 4.0, "failed": "0/4", "difference": None,
        "ratio": None, "below": None,
    }  # fmt: skip
    assert (two["median"], two["failed"], two["difference"], two["ratio"]) == (1.0, "1/4", 1.0, 1.25)
    assert two["below"] == "1/3"
    assert "over 'one'" in found.table() and "less 'one'" in found.table()
    with pytest.raises(errors.InputError, match=r"'accuracy'; there are \['loss'\]"):
        found.rows("accuracy")


def test_seeds_that_are_there_are_not_run_again(tmp_path):
    calls = []

    def counted(model):
        calls.append(1)
        return objective(model)

    first = js.ablate(start, counted, VARIANTS, seeds=[0, 3], steps=2, folder=tmp_path)
    made = len(calls)
    again = js.ablate(start, counted, VARIANTS, seeds=[0, 3], steps=2, folder=tmp_path)
    assert len(calls) == made + 2 and again.rows() == first.rows()  # one look at each start, and no run
    more = js.ablate(start, counted, VARIANTS, seeds=[0, 3, 4], steps=2, folder=tmp_path)
    assert len(calls) > made and list(more.reports) == [0, 3, 4]
    with pytest.raises(errors.ArchiveError, match="give another folder"):
        js.ablate(start, counted, VARIANTS, seeds=[0], steps=3, folder=tmp_path)
    with pytest.raises(errors.ArchiveError, match="the model or its data are others"):
        js.ablate(start, lambda model: js.supervised(model, X, X), VARIANTS, seeds=[0], steps=2, folder=tmp_path)


def test_a_module_is_initialized_anew_by_the_seed_and_left_alone():
    model = start(7)
    before = {name: p.clone() for name, p in model.named_parameters()}
    torch.manual_seed(5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    found = js.ablate(model, objective, {"as it is": {}}, seeds=2, steps=1)
    assert torch.equal(torch.rand(1), drawn)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert len({report.rows[0]["loss"] for report in found.reports.values()}) == 2

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1, 1).double())

        def forward(self, x):
            return x @ self.w

    with pytest.raises(errors.InputError, match=r"Own .* no reset_parameters"):
        js.ablate(nn.Sequential(Own()), objective, {"as it is": {}}, seeds=1, steps=1)


BAD = {
    "no seeds": (lambda: js.ablate(start, objective, VARIANTS, seeds=0), "seeds=0"),
    "a seed twice": (lambda: js.ablate(start, objective, VARIANTS, seeds=[1, 1]), "each once"),
    "no variants": (lambda: js.ablate(start, objective, {}), "usual ones first"),
    "a variant that is none": (lambda: js.ablate(start, objective, {"a": 3}), "'a' is 3"),
    "an option that is none": (lambda: js.ablate(start, objective, {"a": {"patiense": 3}}), "['patiense'] of 'a'"),
    "no model": (lambda: js.ablate(3, objective, VARIANTS), "model=3"),
    "a function of none": (lambda: js.ablate(lambda seed: seed, objective, VARIANTS), "not a torch.nn.Module"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_compared_is_refused(name):
    make, words = BAD[name]
    with pytest.raises(errors.InputError) as caught:
        make()
    assert words in str(caught.value)
