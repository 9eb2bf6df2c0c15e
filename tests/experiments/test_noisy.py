"""The physics is what it says, choices are made without the truth, and a gate is judged beside the slower clock."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from experiments import noisy_image, noisy_pinn, rivals
from experiments.noisy import choices, main, runs, summary, tasks
from experiments.noisy.contenders import (
    ADAMW,
    AVERAGES,
    CONTENDERS,
    CONTROL,
    EARLY,
    EMA,
    FACTORS,
    GATES,
    NAMES,
    Setting,
)
from experiments.random_problems.ledger import Ledger
from jumpstart.gating import samples as statistics

TOY = replace(noisy_pinn.TASK, steps=4, levels=(0.5,))
IMAGE = replace(noisy_image.TASK, steps=4, levels=(0.2,))


@pytest.fixture
def wide():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# ---- tasks -----------------------------------------------------------------------------------------------------------


def test_the_last_position_is_the_equations_derivative(wide):
    model = noisy_pinn.network(0)
    x, t = torch.rand(7), 0.2 * torch.rand(7)
    rows = torch.stack([noisy_pinn.features(x, t), noisy_pinn.features(x, t), noisy_pinn.along(x, t)], 1)
    for a in (x, t):
        a.requires_grad_()
    u = model(noisy_pinn.features(x, t))
    u_x, u_t = torch.autograd.grad(u.sum(), (x, t))
    torch.testing.assert_close(model(rows, True)[:, 2], u_t + noisy_pinn.SPEED * u_x)
    torch.testing.assert_close(model(rows, True)[:, 0], u)


def test_the_truth_solves_the_equation_and_begins_where_the_samples_do(wide):
    noisy_pinn.truth.cache_clear()
    _, u = noisy_pinn.truth()
    noisy_pinn.truth.cache_clear()  # the next user's dtype is another
    u = u.view(noisy_pinn.GRID, noisy_pinn.GRID)  # places, times
    x = 2 * math.pi * (torch.arange(noisy_pinn.GRID) + 0.5) / noisy_pinn.GRID
    k = torch.fft.fftfreq(noisy_pinn.GRID, 1 / noisy_pinn.GRID)
    step = noisy_pinn.LENGTH / (noisy_pinn.GRID - 1)
    moved = torch.fft.ifft(torch.fft.fft(u[:, 0]) * torch.exp(-1j * k * noisy_pinn.SPEED * 7 * step)).real
    torch.testing.assert_close(u[:, 7], moved)
    torch.testing.assert_close(u[:, 0], torch.sin(x) + torch.sin(2 * x) / 2)


def test_the_noise_is_of_its_level_and_drawn_by_seed():
    for task, level in ((TOY, 0.5), (IMAGE, 0.2)):
        clean, first, again, other = (task.samples(*of).y for of in ((0.0, 1), (level, 1), (level, 1), (level, 2)))
        assert torch.equal(first, again) and not torch.equal(first, other)
        assert float((first - clean).std()) == pytest.approx(level, rel=0.4 if task is TOY else 0.05)


def test_a_psnr_is_of_the_clean_image():
    class Same(torch.nn.Module):
        def forward(self, x):
            return noisy_image.image().reshape(-1, 1) + 0.1

    [error, misfit] = noisy_image.look(Same(), [noisy_image.samples(0.0, 0)])
    assert noisy_image.psnr(error) == pytest.approx(20, abs=1e-3) and misfit == pytest.approx(0.01, rel=1e-3)


def test_a_split_is_the_whole_in_two_and_a_pass_sees_every_sample():
    whole = TOY.samples(0.5, 0)
    train, held = whole.split(0)
    assert (len(train), len(held)) == (51, 13)
    assert torch.equal(torch.cat([train.x, held.x]).sort().values, whole.x.sort().values)
    passed = itertools.islice(runs.minibatches(whole, 32, torch.Generator()), 2)
    assert torch.equal(torch.cat([part.x for part in passed]).sort().values, whole.x.sort().values)


def test_exact_statistics_take_a_sample_and_its_residual_as_one(wide):
    model, whole = noisy_pinn.network(0), noisy_pinn.samples(0.5, 0)
    part = tasks.Samples(whole.x[:6], whole.y[:6])
    with statistics.record(model):
        noisy_pinn.loss(model, part, torch.Generator().manual_seed(3)).backward()
        found = [statistics.noise(p) for p in model.parameters()]
    place = torch.rand(2, 6, generator=torch.Generator().manual_seed(3))
    x, t = 2 * math.pi * place[0], noisy_pinn.LENGTH * place[1]
    each = []
    for i in range(6):
        xi, ti = x[i : i + 1].clone().requires_grad_(), t[i : i + 1].clone().requires_grad_()
        u = model(noisy_pinn.features(xi, ti))
        u_x, u_t = torch.autograd.grad(u.sum(), (xi, ti), create_graph=True)
        start = model(noisy_pinn.at_start(part.x[i : i + 1])) - part.y[i]
        value = start.square().sum() + noisy_pinn.RESIDUAL * (u_t + noisy_pinn.SPEED * u_x).square().sum()
        each.append(torch.autograd.grad(value, list(model.parameters())))
    for own, noise in zip(zip(*each, strict=True), found, strict=True):
        torch.testing.assert_close(noise, torch.stack(own).var(0) / 6)


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(CONTENDERS))
def test_every_contender_runs_and_moves(name):
    for task in (TOY, IMAGE):
        curve = runs.run(task, name, Setting(0.1), task.levels[0], 0, True)[None]
        assert [point[0] for point in curve] == [4] and len(curve[0]) == 5
        with torch.no_grad():
            before = task.look(task.network(0), task.samples(task.levels[0], 0).split(0))
        assert curve[0][2] != before[0] and all(map(math.isfinite, curve[0]))


def test_an_average_is_beside_the_run_and_leaves_it():
    found = runs.run(TOY, ADAMW, Setting(0.1), 0.5, 0, False)
    assert set(found) == {None, *AVERAGES} and found[None][-1][2] != found[AVERAGES[0]][-1][2]
    assert len({curve[-1][2] for curve in found.values()}) > 1
    model = TOY.network(0)
    before = [p.detach().clone() for p in model.parameters()]
    other = runs.looked(TOY, model, [TOY.samples(0.5, 0)], [torch.zeros_like(p) for p in before])
    assert other[0] == 1 and all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_what_diverges_is_infinitely_bad():
    model = TOY.network(0)
    assert math.isinf(runs.looked(TOY, model, [], [torch.full_like(p, math.nan) for p in model.parameters()])[0])


def test_rivals_are_what_their_papers_say():
    torch.manual_seed(0)
    g = torch.randn(50, 3, dtype=torch.float64)
    p, q = (torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    mine, torchs = rivals.Cautious([p], 0.1, 0.01), torch.optim.AdamW([q], lr=0.1, weight_decay=0.01)
    p.grad, q.grad = g[0].clone(), g[0].clone()
    for optimizer in (mine, torchs):
        optimizer.step()
    torch.testing.assert_close(p, q)  # of a first step none is against the gradient
    p, m, v, x = torch.nn.Parameter(torch.ones(3, dtype=torch.float64)), 0.0, 0.0, torch.ones(3, dtype=torch.float64)
    optimizer = rivals.MSVAG([p], 0.1, 0.0)
    for t, gradient in enumerate(g, 1):
        p.grad = gradient.clone()
        optimizer.step()
        weights = torch.tensor([0.1 * 0.9 ** (t - i) / (1 - 0.9**t) for i in range(1, t + 1)], dtype=torch.float64)
        m, v = weights @ g[:t], weights @ g[:t].square()
        rho = weights.square().sum()  # the average's variance, of independent gradients
        s = (v - m**2).clamp_min(0) / (1 - rho) if t > 1 else torch.zeros_like(v)
        x = x - 0.1 * m * m**2 / (m**2 + rho * s)
    torch.testing.assert_close(p.detach(), x)


@pytest.mark.parametrize("who", ["M-SVAG", "Cautious AdamW"])
def test_weights_of_rivals_shrink_as_those_of_adamw(who):
    """Whatever the unit of a rate is."""
    contender = CONTENDERS[who]
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = contender.make([p], 0.03 * contender.base, 0.5)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full_like(p, 1 - 0.03 * 0.5))


# ---- choices and summary ---------------------------------------------------------------------------------------------


def made(name, factor, points, seed=0, split=False, level=0.5, curves=None):
    """A row with a curve of (error, validation)."""
    curve = [[i + 1, 0.1 * i, error, 0.2, held] for i, (error, held) in enumerate(points)]
    averages = {f"{a:g}": curve for a in AVERAGES} if name == ADAMW else {}
    return {"level": level, "seed": seed, "contender": name, "factor": factor, "decay": 0.01, "average": None,
            "split": split, "curves": {"": curve, **averages, **(curves or {})}}  # fmt: skip


def grid(truth=1.0):
    rows = []
    for name, contender in CONTENDERS.items():
        for i, setting in enumerate(contender.settings):
            points = [(truth, 0.1 if i == 0 else 1.0), (truth, 5.0 - i)]
            rows.append(made(name, setting.factor, points, 100, True) | {"decay": setting.decay})
    return rows


def test_settings_are_chosen_by_noisy_validation_and_not_by_the_truth():
    chosen = choices.choose(TOY, grid())["0.5"]
    assert set(chosen) == set(NAMES)
    assert chosen[ADAMW]["factor"] == FACTORS[-1]  # lowest at the end
    assert chosen[EARLY]["factor"] == FACTORS[0]  # lowest on the way
    assert chosen == choices.choose(TOY, grid(7.0))["0.5"]
    better = [[1, 0.1, 1.0, 0.2, 0.01]]
    average = made(ADAMW, FACTORS[2], [(1, 9.0)], 100, True, curves={f"{AVERAGES[1]:g}": better})
    rows = [row for row in grid() if (row["contender"], row["factor"]) != (ADAMW, FACTORS[2])]
    assert choices.choose(TOY, [*rows, average])["0.5"][EMA] == Setting(FACTORS[2], 0.01, AVERAGES[1]).told


def reported(ends):
    """All rows of reported seeds; ``ends`` are final errors of a contender, others end at 1."""
    chosen = choices.choose(TOY, grid())
    rows = []
    for seed in range(3):
        for name, setting, level, _, split in choices.reported(TOY, chosen, seed):
            last = ends.get((name, setting.factor), ends.get(name, 1.0)) + 0.001 * seed
            rows.append(made(name, setting.factor, [(0.9, 1.0), (last, 2.0)], seed, split, level)
                        | {"decay": setting.decay})  # fmt: skip
    return rows, chosen


def lines(ends):
    rows, chosen = reported(ends)
    return {line["contender"]: line for line in summary.summarized(TOY, rows, chosen)}


GATE = "hard, streaming, corrected"


def test_a_gate_passes_beside_every_rate_of_the_slower_clock():
    found = lines({GATE: 0.5})
    assert found[GATE]["passes"] and found[GATE]["wins"] == 3 and found[GATE]["ahead"]
    assert f"seed: {GATE} at noise 0.5 (0.501 against 1" in summary.verdict(TOY, list(found.values()), 3)
    slow = CONTROL[-1]  # no rate of the grid that others choose from
    assert slow not in FACTORS
    found = lines({GATE: 0.5, (ADAMW, slow): 0.4})
    assert found[summary.CLOCK]["end"] == pytest.approx(0.401) and not found[GATE]["passes"]
    assert "No gate passes" in summary.verdict(TOY, list(found.values()), 3)
    assert "(0.501 against 0.401)" not in summary.verdict(TOY, list(found.values()), 3)


def test_a_gate_that_is_ahead_on_most_seeds_does_not_pass():
    assert summary.passes([0.5, 0.5, 0.9], [1.0, 1.0, 1.0])
    assert not summary.passes([0.5, 0.5, 1.1], [1.0, 1.0, 1.0])
    assert not summary.passes([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])


def test_a_gate_that_was_tuned_badly_is_told_in_hindsight():
    found = lines({(GATE, FACTORS[1]): 0.5})
    assert not found[GATE]["passes"] and found[GATE]["hindsight passes"]
    assert found[GATE]["hindsight factor"] == FACTORS[1]


def test_early_stopping_ends_where_validation_was_lowest():
    found = lines({})
    assert found[EARLY]["end"] == 0.9 and found[EARLY]["kept"]
    assert found[ADAMW]["end"] == pytest.approx(1.001) and not found[ADAMW]["kept"] and not found[ADAMW]["ahead"]


def test_a_page_begins_with_the_verdict():
    rows, chosen = reported({})
    told = summary.summarized(TOY, rows, chosen)
    environment = {"seeds": [0, 1, 2], "commit": "c", "machine": "m", "torch": "t"}
    content = {"settings": {**main.settings(TOY), "summary": told}, "environment": environment, "command": "python"}
    page = noisy_pinn.page(content)
    assert page.startswith("**No gate passes") and all(name in page for name in (*GATES, EARLY, summary.CLOCK))


# ---- the command -----------------------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again_and_no_run_begins_after_the_time(tmp_path, monkeypatch):
    asked = main.Arguments(True, 1, tmp_path, False)
    jobs = choices.tuning(replace(TOY, steps=1), [100])[:2]
    ledger = Ledger(tmp_path, "source")
    assert main.done(TOY, asked, ledger, jobs, -math.inf) is None
    first = main.done(TOY, asked, ledger, jobs, math.inf)
    monkeypatch.setattr(main.runs, "row", None)
    assert main.done(TOY, asked, Ledger(tmp_path, "source"), jobs, -math.inf) == first


def test_a_quick_run_writes_a_table_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x", "--quick", "--seeds", "1", "--no-progress", "--out", str(tmp_path)])
    monkeypatch.setattr(main, "TOY", 2)
    main.main(noisy_pinn.TASK, None)
    assert (tmp_path / "results.json").is_file() and (tmp_path / "noisy_pinn.png").is_file()
    assert "AdamW, slower" in capsys.readouterr().out
