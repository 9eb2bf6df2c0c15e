"""The reference is the optimizer it is held against, each switch does what it says, and rates are counted right."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import ndtr

from experiments.gate_statistics import rates, summary, traps
from experiments.gate_statistics.reference import Reference, Switches
from experiments.label_noise.settings import TASKS
from jumpstart.optim.gated_adamw import GatedAdamW


@pytest.mark.parametrize("rule", ["hard", "soft", "snr"])
@pytest.mark.parametrize("uncorrected", [False, True])
def test_the_reference_is_the_optimizer(rule, uncorrected):
    torch.manual_seed(0)
    mine, theirs = (torch.nn.Parameter(torch.ones(50, dtype=torch.float64)) for _ in range(2))
    reference = Reference([mine], 0.1, 0.3, rule, Switches(uncorrected=uncorrected))
    optimizer = GatedAdamW([theirs], lr=0.1, weight_decay=0.3, rule=rule, correction=not uncorrected)
    for _ in range(25):
        mine.grad = torch.randn(50, dtype=torch.float64) + torch.linspace(0, 3, 50, dtype=torch.float64)
        theirs.grad = mine.grad.clone()
        reference.step()
        optimizer.step()
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert reference.open[0] == 1 and 0 < reference.open[-1] < 1


def test_what_moves_is_what_the_closed_form_says():
    coordinates, looks = 1200, 20
    shares = rates.measured(rates.gaussian(coordinates, 1), coordinates, 8, 150, looks)
    for name, form in rates.FORMS.items():
        for signal, share in zip(rates.SIGNALS, shares[name], strict=True):
            # 300 coordinates, and looks that averages make alike: as good as four that are independent
            error = math.sqrt(0.25 / (4 * 300))
            assert abs(share - form.rate(signal, 8)) < 4 * error, (name, signal)


def test_a_networks_gradients_have_no_signal_and_unit_variance():
    x, y = TASKS["toy"].data()
    draw = rates.network(30, 0, (x[:80], y[:80]), epochs=2)
    many = draw(200_000).double()
    assert many.shape == (200_000, 30)
    assert float(many.mean(0).abs().max()) < 6 / math.sqrt(200_000)
    assert float((many.square().mean(0) - 1).abs().max()) < 0.1
    assert len(torch.unique(many[:, 0])) <= 80  # drawn from the samples with replacement


def test_microbatches_that_are_averaged_alike_open_as_many_as_their_noise_says():
    found = traps.microbatches(0, 2000)
    said = 1 / sum(traps.TOKENS)
    own = sum(1 / n for n in traps.TOKENS) / len(traps.TOKENS) ** 2
    assert found["by tokens"] == pytest.approx(2 * ndtr(-1), abs=0.01)
    assert found["alike"] == pytest.approx(2 * ndtr(-math.sqrt(said / own)), abs=0.01)


def gates(case, gradient, steps=1):
    """The mean gate after some steps along one gradient."""
    p = torch.zeros_like(gradient)
    reference = Reference([p], 0.1, case.decay, case.rule, case.switches)
    for _ in range(steps):
        p.grad = case.scale * gradient
        reference.step()
    return reference.open


def test_each_switch_does_what_it_says():
    g = 2.0 ** torch.arange(-3, 4, dtype=torch.float64)
    assert gates(traps.Case(), g) == [1]
    first = Reference([torch.zeros(7, dtype=torch.float64)], 0.1, switches=Switches(first=True))
    gate, _ = first.gate(first.parameters[0], g)
    state = first.state[first.parameters[0]]
    torch.testing.assert_close((state["m"] / 0.1) ** 2, state["s"] / 0.01)  # a tie, which rounding decides
    assert float(gate.mean()) < 1
    # an absolute epsilon shuts small gradients' gates; a rule without one knows no unit
    small = traps.Case("snr", Switches(epsilon=1e-8), scale=1e-6)
    assert gates(small, g, 5)[-1] < 0.1 < 0.9 < gates(traps.Case("snr", scale=1e-6), g, 5)[-1]
    noise = [traps.without_signal(traps.Case(switches=s), 0, 500, 150, 20)
             for s in (Switches(uncorrected=True), Switches(), Switches(divided=63.0))]  # fmt: skip
    assert noise[0] < 0.01 < noise[1] < 0.5 < 0.8 < noise[2]
    assert traps.without_signal(traps.Case(switches=Switches(alpha=99.0)), 0, 500, 150, 20) == 0


def test_decay_inside_the_gate_spares_what_is_shut():
    for inside in (False, True):
        p = torch.ones(400)
        reference = Reference([p], 0.1, 0.5, switches=Switches(uncorrected=True, inside=inside))
        generator = torch.Generator().manual_seed(0)
        for _ in range(40):
            before = p.clone()
            p.grad = torch.randn(400, generator=generator)
            reference.step()
        assert reference.open[-1] < 0.01
        still = float((p == before).double().mean())
        assert still > 0.98 if inside else still == 0


def test_tables_say_what_was_measured():
    rows = [{"part": "rates", "source": source, "seed": 0, "form": "exact, batch", "batch": 8, "signal": signal,
             "open": share, "closed form": 0.3}
            for source, at in (("gaussian", 0.35), ("network", 0.5))
            for signal, share in ((0.0, at), (1.0, 0.9))]  # fmt: skip
    lines = summary.rates(rows)
    assert summary.wide(lines) == [
        {"form": "exact, batch", "batch": 8, "signal 0": "30% / 35% / 50%", "signal 1": "70% / 10% / 10%"}
    ]
    assert "at most 0.6 (exact, batch, b = 8, signal 1)" in summary.says(lines)
    assert [summary.percent(v) for v in (0.0, 1e-5, 0.0512, 0.0996, 0.1, 1.0)] == [
        "0%", "0.001%", "5.1%", "10%", "10%", "100%",
    ]  # fmt: skip
    line = summary.traps([{"part": "traps", "case": "a", "without signal": v} for v in (0.1, 0.3)])[0]
    assert line["without signal"] == pytest.approx(0.2) and line["norm"] is None
