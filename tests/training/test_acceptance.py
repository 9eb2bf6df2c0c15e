"""The paired test: against SciPy's, by its rates of false acceptance, and where it must not accept."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import jumpstart as js
from jumpstart import errors
from jumpstart.training.acceptance import by_sample, improves, quantile

from ..problems import mlp, randn

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("n", [2, 3, 5, 30, 400])
@pytest.mark.parametrize("confidence", [0.5, 0.8413, 0.95, 0.999])
@pytest.mark.parametrize("shift", [-0.6, -0.1, 0.0, 0.3])
def test_it_is_the_paired_t_test(n, confidence, shift):
    before = randn(n, n).abs() * 100  # samples differ much more than they change
    after = before + randn(n + 1, n) + shift
    verdict = improves(before, after, confidence)
    truth = scipy.stats.ttest_rel(after.numpy(), before.numpy(), alternative="less")
    assert verdict.z == pytest.approx(truth.statistic, rel=1e-8)
    assert verdict.accepted == bool(truth.pvalue < 1 - confidence)
    assert verdict.accepted == (verdict.bound < 0)
    assert verdict.mean == pytest.approx(float((after - before).mean()), abs=1e-12)


DRAWS = {
    "normal": lambda g, *shape: torch.randn(*shape, generator=g, dtype=torch.float64),
    "heavy": lambda g, *shape: torch.from_numpy(
        scipy.stats.t(3).ppf(torch.rand(*shape, generator=g, dtype=torch.float64).numpy())
    ),
    "few much worse": lambda g, *shape: DRAWS["normal"](g, *shape).exp() - math.exp(0.5),
    "few much better": lambda g, *shape: -DRAWS["few much worse"](g, *shape),
}


def false_acceptances(kind, n, trials, confidence=0.95):
    """The share of trials without effect that are accepted."""
    changes = DRAWS[kind](torch.Generator().manual_seed(n), trials, n)
    before = torch.zeros(n, dtype=torch.float64)
    return sum(improves(before, row, confidence).accepted for row in changes) / trials


@pytest.mark.parametrize("n", [2, 5, 64])
@pytest.mark.parametrize("confidence", [0.8413, 0.95])
def test_false_acceptance_is_what_it_claims(n, confidence):
    """4,000 trials without effect, normal changes: within 3.3 standard errors of 1 − confidence."""
    trials, claimed = 4000, 1 - confidence
    rate = false_acceptances("normal", n, trials, confidence)
    assert abs(rate - claimed) <= 3.3 * math.sqrt(claimed * confidence / trials), rate


@pytest.mark.slow
def test_false_acceptance_under_heavy_tails():
    """Reported, 20,000 trials each at 0.05: what the docstring says, within 3.3 standard errors and its rounding."""
    told = {
        "normal": (0.05, 0.05, 0.05, 0.05), "heavy": (0.043, 0.045, 0.048, 0.05),
        "few much worse": (0.18, 0.21, 0.12, 0.07), "few much better": (0.01, 0.01, 0.02, 0.03),
    }  # fmt: skip
    for kind, row in told.items():
        found = [false_acceptances(kind, n, 20_000) for n in (2, 10, 100, 1000)]
        print(f"{kind:>16}", *(f"{rate:.4f}" for rate in found))
        for rate, claim in zip(found, row, strict=True):
            assert abs(rate - claim) <= 0.005 + 3.3 * math.sqrt(claim * (1 - claim) / 20_000)


def test_it_sees_what_an_unpaired_look_does_not():
    before = 100 * randn(0, 64).abs()
    after = before - 0.1 + 0.1 * randn(1, 64)
    assert improves(before, after).accepted
    assert scipy.stats.ttest_ind(after.numpy(), before.numpy(), alternative="less").pvalue > 0.4


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], []),
        ([1.0], [0.0]),  # one sample has no noise to be told from
        ([1.0, 1.0], [1.0, 1.0]),
        ([1.0, NAN, 1.0], [0.0, 0.0, 0.0]),
        ([1.0, 1.0, 1.0], [0.0, NAN, 0.0]),
        ([INF, 1.0, 1.0], [0.0, 0.0, 0.0]),
        ([1.0, 1.0, 1.0], [-INF, 0.0, 0.0]),
        ([1.0, 1.0], [2.0, 2.0]),
        ([1.0, 2.0], [0.0, 2.0]),  # t = −1: too near to say
    ],
)
def test_never_accepted(before, after):
    verdict = improves(torch.tensor(before), torch.tensor(after))
    assert not verdict.accepted
    assert not verdict.bound < 0
    assert "does not fall" in str(verdict)


def test_without_noise_the_sign_decides():
    ones = torch.ones(3)
    assert improves(ones, ones - 1e-6).accepted
    assert improves(ones, ones - 1e-6).z == -INF
    assert not improves(ones, ones + 1e-6).accepted
    assert improves(torch.tensor([0.1, 0.1, 0.1]), torch.zeros(3)).error == 0  # 0.1 summed three times is not 0.3


@pytest.mark.parametrize(
    ("before", "after", "confidence", "words"),
    [
        (torch.ones(3), torch.ones(4), 0.95, r"\(3,\) before and \(4,\) after"),
        (torch.ones(3, 2), torch.ones(3, 2), 0.95, r"\(3, 2\)"),
        (1.0, torch.ones(3), 0.95, "before=1.0"),
        (torch.ones(3), torch.ones(3), 1.0, "confidence=1.0"),
        (torch.ones(3), torch.ones(3), 0.2, "confidence=0.2"),
        (torch.ones(3), torch.ones(3), True, "confidence=True"),
    ],
)
def test_misuse(before, after, confidence, words):
    with pytest.raises(errors.InputError, match=words):
        improves(before, after, confidence)


def test_quantiles():
    assert quantile(0.95, 1) == INF
    assert quantile(0.95, 2) == pytest.approx(math.tan(math.pi * 0.45))  # Cauchy's
    assert quantile(0.5, 7) == pytest.approx(0, abs=1e-12)


def test_losses_by_sample():
    model, x, classes = mlp(0), randn(0, 12, 4), torch.arange(12) % 3
    objective = js.supervised(model, x, classes, loss="cross_entropy", chunk=5)
    found = by_sample(objective, objective.theta())
    assert torch.allclose(found, F.cross_entropy(model(x), classes, reduction="none"), rtol=1e-10)
    assert float(found.detach().mean()) == pytest.approx(objective.value(objective.theta()), rel=1e-12)


def test_a_jump_is_judged_by_samples_it_has_not_seen():
    """A jump that fits 12 noisy samples falls on its own and not on others; one that learns falls on both."""

    def verdicts(noise):
        x = randn(3, 200, 4)
        y = (1 - noise) * torch.tanh(x[:, :3]) + noise * randn(4, 200, 3)
        data = js.from_loader(mlp(0, width=30), TensorDataset(x, y), "mse", samples=12 if noise else 90)
        jump = data()
        accept, theta = data.acceptance(), jump.theta()
        before = [by_sample(o, theta) for o in (jump, accept)]
        assert js.jump(jump).accepted
        return [improves(b, by_sample(o, jump.theta())) for b, o in zip(before, (jump, accept), strict=True)]

    own, others = verdicts(noise=1.0)
    assert own.accepted and not others.accepted
    own, others = verdicts(noise=0.0)
    assert own.accepted and others.accepted
