"""Grokking at toy size: the tables, the networks, who is tuned how, and what is counted."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

from experiments.grokking import contenders, runs, summary, tasks
from experiments.grokking.contenders import ADAMW, CONTENDERS, GATE_SKIPS, TUNED, Filter
from experiments.grokking.tasks import PROTOCOLS, Setting, Sum, Transformer
from experiments.random_problems.ledger import Ledger
from jumpstart.gating import record
from jumpstart.gating.samples import noise
from jumpstart.report import plots

main = import_module("experiments.grokking.__main__")
SETTING = Setting(1e-2, 1.0)
TOYS = ("toy addition", "toy division")


@pytest.mark.parametrize("name", TOYS)
def test_a_table_is_cut_in_two_and_says_the_operation(name):
    of = PROTOCOLS[name]
    data, p = of.data(3), of.prime
    pairs = {tuple(pair) for part in (data.x, data.xt) for pair in part.tolist()}
    assert len(pairs) == len(data.x) + len(data.xt) == p * (p - 1 if of.division else p)
    assert len(data.x) == round(of.share * len(pairs))
    for x, y in ((data.x, data.y), (data.xt, data.yt)):
        a, b = x.unbind(1)
        assert torch.equal((y * b) % p, a) if of.division else torch.equal(y, (a + b) % p)
    assert not torch.equal(of.data(4).x, data.x) and torch.equal(of.data(3).x, data.x)


def test_two_embeddings_added_are_a_linear_layer_of_one_hots():
    torch.manual_seed(0)
    model, x = Sum(5, 8).double(), torch.randint(5, (7, 2))
    hot = torch.cat([F.one_hot(x[:, 0], 5), F.one_hot(x[:, 1], 5)], 1).double()
    assert torch.allclose(model(x), model.out(F.relu(hot @ model.first.weight + model.bias)))


def test_the_block_that_answers_at_the_last_token_is_a_whole_block():
    torch.manual_seed(0)
    model, x = Transformer(5, 16).double(), torch.randint(5, (7, 2))
    e = model.symbol(torch.cat([x, torch.full((7, 1), 5)], 1)) + model.place.weight
    kv = model.kv(e).view(7, 3, 2, 4, 4).permute(2, 0, 3, 1, 4)
    q = model.q(e).view(7, 3, 4, 4).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(q, kv[0], kv[1]).transpose(1, 2).reshape(7, 3, 16)
    z = e + model.o(mixed)
    whole = model.out(z + model.down(F.relu(model.up(z))))
    assert torch.allclose(model(x), whole[:, -1])


@pytest.mark.parametrize("name", TOYS)
def test_exact_statistics_of_both_networks_are_those_of_their_samples(name):
    of = PROTOCOLS[name]
    data, model = of.data(0), of.model(0).double()
    with record(model):
        F.cross_entropy(model(data.x), data.y).backward()
        found = {key: noise(p) for key, p in model.named_parameters() if p.dim() == 2}
    each: dict[str, list[torch.Tensor]] = {key: [] for key in found}
    for x, y in zip(data.x, data.y, strict=True):
        model.zero_grad()
        F.cross_entropy(model(x[None]), y[None]).backward()
        for key in each:
            gradient = model.get_parameter(key).grad
            assert gradient is not None
            each[key].append(gradient.clone())
    for key, value in found.items():
        assert value is not None
        assert torch.allclose(value, torch.stack(each[key]).var(0) / len(data.x), rtol=1e-8, atol=1e-16), key


def test_grokfasts_filter_is_a_slow_average_that_is_added():
    p = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    slow, average = Filter([p], alpha=0.9, lam=3.0), None
    for step in range(4):
        given = torch.tensor([1.0, float(step)], dtype=torch.float64)
        p.grad = given.clone()
        slow()
        average = given if average is None else 0.9 * average + 0.1 * given
        assert torch.allclose(p.grad, given + 3 * average)


@pytest.mark.parametrize("name", TOYS)
def test_everybody_runs_and_is_counted(name, monkeypatch):
    monkeypatch.setattr(runs, "GOAL", 2.0)
    of = PROTOCOLS[name]
    for who, contender in CONTENDERS.items():
        found = runs.run(of, contender, SETTING, 0, 22)
        assert found["steps"] is None and found["spent"][0] == 22, who
        assert found["spent"][1] == 22 or (contender.skips and 0 < found["spent"][1] < 50), who
        assert [point[0] for point in found["curve"]] == [5, 10, 15, 20, 22] or contender.skips, who
        streaming = contender.gate is not None and not contender.exact
        assert all((point[4] is not None) == streaming for point in found["curve"]), who
        if streaming:
            assert 0 < found["curve"][-1][4] < 1


def test_a_run_ends_at_the_first_look_that_is_at_the_goal(monkeypatch):
    values = iter([0.2, 0.95, 1.0])
    monkeypatch.setattr(runs, "accuracy", lambda model, data: next(values))
    found = runs.run(PROTOCOLS["toy addition"], CONTENDERS[ADAMW], SETTING, 0, 40)
    assert (found["steps"], found["gradients"], found["best"]) == (10, 10, 0.95) and found["seconds"] > 0


def test_biases_are_never_gated_and_muon_has_the_matrices():
    model = PROTOCOLS["toy division"].model(0)
    (gated,) = contenders.optimizers(model, CONTENDERS["hard, corrected"], SETTING)
    assert {p.dim() for group in gated.param_groups if group["rule"] is None for p in group["params"]} == {1}
    muon, rest = contenders.optimizers(model, CONTENDERS["Muon"], SETTING)
    held = [p for optimizer in (muon, rest) for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(list(model.parameters())) and all(p.dim() == 1 for p in rest.param_groups[0]["params"])


def test_a_later_setting_has_the_steps_of_the_best_before_it(tmp_path, monkeypatch):
    asked = []

    def run(of, who, setting, seed, steps):
        asked.append(steps)
        there = min(steps, {1e-2: 20, 3e-2: 15}[setting.rate])
        return {"steps": there, "best": 1.0}

    monkeypatch.setattr(main, "run", run)
    book, of = Ledger(tmp_path, "s"), PROTOCOLS["toy addition"]
    for setting in (SETTING, Setting(3e-2, 1.0)):
        key, measure = main.job(book, of, ADAMW, setting, 100, racing=True)
        book.add(key, measure())
    main.job(book, of, "Muon", SETTING, 100, racing=True)[1]()
    assert asked == [40, 20, 40]


def test_the_soonest_is_chosen_else_the_nearest():
    rows = [
        {"contender": ADAMW, "rate": rate, "decay": 1.0, "steps": steps, "best": best}
        for rate, steps, best in ((0.1, 20, 1.0), (0.2, 10, 0.96), (0.3, None, 0.9))
    ]
    rows += [{"contender": "Muon", "rate": rate, "decay": 1.0, "steps": None, "best": rate} for rate in (0.1, 0.5, 0.2)]
    found = summary.chosen(rows)
    assert found[ADAMW]["rate"] == 0.2 and found[ADAMW]["runs"] == 3 and found["Muon"]["rate"] == 0.5
    assert main.setting_of("Grokfast", found) is None and main.setting_of(contenders.SKIPS, found) == Setting(0.2, 1.0)
    assert main.setting_of("AdamW, untuned", {}) == contenders.UNTUNED


def line(contender, seed, steps):
    return {
        "protocol": "toy", "contender": contender, "seed": seed, "rate": 0.1, "decay": 1.0, "budget": 40,
        "steps": steps, "gradients": steps, "seconds": steps and steps / 10, "learned": 5,
        "spent": [steps or 40, steps or 40, 1.0], "best": 0.97 if steps else 0.3, "curve": [[5, 1.0, 1.0, 0.3, None]],
    }  # fmt: skip


def test_who_does_not_get_there_is_infinite():
    rows = [line(ADAMW, i, steps) for i, steps in enumerate((20, 40, None))]
    rows += [line("Muon", i, steps) for i, steps in enumerate((10, 10, 15))]
    rows += [line("Grokfast", i, steps) for i, steps in enumerate((None, 10, None))]
    adamw, muon, grokfast = summary.summarized(rows)
    assert (adamw["steps"], adamw["reached"], adamw["least"], adamw["most"]) == (40, 2, 20, None)
    assert (adamw["each"], muon["each"], grokfast["each"]) == (50.0, pytest.approx(35 / 3), 90.0)
    assert (muon["steps"], muon["sooner"], muon["most"], muon["seconds"]) == (10, 4.0, 15, 1.0)
    assert grokfast["steps"] is None and grokfast["sooner"] is None and grokfast["reached"] == 1
    assert math.isfinite(adamw["best"])


def test_the_page_and_the_picture_are_of_what_was_measured():
    rows = [line(ADAMW, 0, 40), line("Muon", 0, 10), line("AdamW, untuned", 0, 60), line("snr, corrected", 0, 20)]
    choices = {"toy": summary.chosen([row | {"best": 1.0} for row in rows])}
    content = {
        "command": "x", "settings": {"summary": summary.summarized(rows), "choices": choices},
        "environment": {"commit": "c", "machine": "m", "torch": "t", "seeds": [0]},
    }  # fmt: skip
    said = summary.page(content)
    assert "5,950 steps against AdamW's 29,450" in said and "4.9 times sooner" in said
    assert "toy: 1 settings a contender" in said
    assert "Toy: tuned AdamW gets there in 1 of 1 runs, a success for each 40 steps; at 0.1, 1, which" in said
    assert (
        "one for each 60 (1.5 times as many); the best of the gates, snr, corrected, in 1 of 1, one for each 20."
        in said
    )
    assert "| toy | Muon |" in said
    rows += [line(ADAMW, 1, None), line(ADAMW, 2, None), line("snr, corrected", 1, 20), line("snr, corrected", 2, 20)]
    said = summary.account(summary.summarized(rows))
    assert "in 1 of 3 runs, a success for each 120 steps" in said and "p = 0.4, not" in said  # C(3,1)/C(6,4) twice
    pytest.importorskip("matplotlib")
    plots.pyplot().close(summary.picture([row | {"protocol": "toy addition"} for row in rows]))


def test_tuning_asks_everybody_setting_after_setting(tmp_path):
    keys = [key for key, _ in main.tuning(Ledger(tmp_path, "s"), ["addition"])]
    assert len(keys) == len(TUNED) * len(tasks.ADDITION) == len(set(keys))
    streaming = [name for name, who in TUNED.items() if not who.exact]
    assert [key.split(" 0.1 ")[0].removeprefix("addition ") for key in keys[: len(streaming)]] == streaming
    assert all(" exact " in f" {key.replace(',', ' ')} " for key in keys[-2 * len(tasks.ADDITION) :])
    choices = {"toy addition": {ADAMW: SETTING.told}}
    plan = [key for key, _ in main.reporting(Ledger(tmp_path, "s"), ["toy addition"], 3, choices)]
    assert sum(f" {contenders.SKIPS} " in key for key in plan) == 3 and not any(GATE_SKIPS in key for key in plan)
    assert sum(" AdamW, untuned " in key for key in plan) == main.FEW


def test_the_pictures_medians_are_of_the_best_so_far_and_outlast_a_run_that_is_there():
    curves = [[(10, 0, 0, 0.5), (20, 0, 0, 0.2)], [(10, 0, 0, 0.96)], [(15, 0, 0, 0.1), (30, 0, 0, 0.8)]]
    steps, values = summary.best_so_far([{"curve": curve} for curve in curves])
    assert (steps, values) == ([10, 15, 20, 30], [0.5, 0.5, 0.5, 0.8])
