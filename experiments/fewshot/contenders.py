"""Who learns from few samples a class: each takes a network with a fresh head and its samples, tuning included.

All start from the same weights and see the same samples; who needs validation data takes them from these.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

import jumpstart as js
from jumpstart.flow.basis import Basis
from jumpstart.linearization.problem import LinearizedProblem

from .encoder import Top

FOLDS, HELD = 5, 4  # of cross-validation; one sample in so many is the validation set of training
STEPS, BATCH = (12, 25, 50), 16
RATES = {"adamw": (1e-4, 3e-4, 1e-3), "lp-ft": (3e-5, 1e-4, 3e-4)}
TRAINED = ["value", "out", "head"]  # by the second stage: what of the layer a kernel of thousands of outputs fits
MODES = 256  # leading ones: slower ones do not move within the horizons below
HORIZONS = [0.0, *(10 ** (k / 2) for k in range(-1, 7))]  # relaxation times of the fastest mode; 0 is the head itself


@dataclass
class Found:
    """What was learnt, what the contender says of it, and what is asked when the clock has stopped."""

    model: Top
    told: dict[str, float] = field(default_factory=dict)
    later: Callable[[], dict[str, float]] = dict


def head(model: Top, x: Tensor, y: Tensor) -> Found:
    """The head alone, solved; damping by leave-one-out."""
    found = js.fit_head(js.supervised(model, x, y, loss="cross_entropy"))
    found.apply()
    return Found(model, {"promised": found.leave_one_out})


def two_stages(model: Top, x: Tensor, y: Tensor) -> Found:
    """The head, then the network's linearized run from there, as far as leaving samples out says it is better."""
    objective = js.supervised(model, x, y, loss="cross_entropy", params=TRAINED)
    solved = js.fit_head(objective)
    solved.apply()

    def basis(problem: LinearizedProblem) -> Basis:
        return js.bases.dense(problem, rank=min(MODES, y.numel() * int(model.head.out_features)))

    solution = js.solve(objective, basis)
    horizons = torch.tensor(HORIZONS, dtype=torch.float64) / float(solution.spectrum[0])
    trusted = solution.check(float(horizons[-1])).trust_horizon  # as far as the network follows on its training samples
    horizons = horizons[horizons <= trusted]
    left = solution.leave_out(horizons, start=solved.without_each())
    best = int(left.risk.argmin())
    if best:
        model.load_state_dict(solution.parameters(float(horizons[best])), strict=False)
    told = {
        "promised": float(left.risk[best]), "of the head": float(left.risk[0]), "horizon": HORIZONS[best],
        "trusted": HORIZONS[len(horizons) - 1],
    }  # fmt: skip
    return Found(model, told, lambda: {"not carried": float(solution.leave_out(horizons).risk.min())})


def logistic(model: Top, x: Tensor, y: Tensor) -> Found:
    """scikit-learn's on the network's features, its damping by cross-validation."""
    from sklearn.linear_model import LogisticRegressionCV

    with torch.no_grad():
        features = model.features(x).double().numpy()
    chooser = LogisticRegressionCV(Cs=10, cv=FOLDS, max_iter=2000, scoring="neg_log_loss")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of what its next version calls its results
        found = chooser.fit(features, y.numpy())
    weight, bias = torch.tensor(found.coef_), torch.tensor(found.intercept_)
    if len(weight) == 1:  # of two classes one's odds
        weight, bias = torch.cat([-0.5 * weight, 0.5 * weight]), torch.cat([-0.5 * bias, 0.5 * bias])
    with torch.no_grad():
        model.head.weight.copy_(weight)
        model.head.bias.copy_(bias)
    return Found(model)


def trained(model: Top, x: Tensor, y: Tensor, rate: float, marks: tuple[int, ...]) -> list[Top]:
    """Copies after so many steps of AdamW on minibatches, all weights."""
    optimizer, found = torch.optim.AdamW(model.parameters(), rate), []
    generator = torch.Generator().manual_seed(0)
    order = torch.empty(0, dtype=torch.long)
    for step in range(1, marks[-1] + 1):
        if not len(order):
            order = torch.randperm(len(y), generator=generator)
        rows, order = order[:BATCH], order[BATCH:]
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        if step in marks:
            found.append(copy.deepcopy(model))
    return found


def tuned(model: Top, x: Tensor, y: Tensor, rates: tuple[float, ...], start: Callable[..., Found] | None) -> Found:
    """Rate and steps by the loss of a quarter that is held out, then all samples; from a head if one is given."""
    out = torch.zeros(len(y), dtype=torch.bool)
    for label in y.unique():
        out[(y == label).nonzero()[::HELD, 0]] = True

    def begin(rows: Tensor) -> Top:
        fresh = copy.deepcopy(model)
        return fresh if start is None else start(fresh, x[rows], y[rows]).model

    from_part, losses = begin(~out), {}
    for rate in rates:
        for steps, found in zip(STEPS, trained(copy.deepcopy(from_part), x[~out], y[~out], rate, STEPS), strict=True):
            with torch.no_grad():
                losses[rate, steps] = float(F.cross_entropy(found(x[out]), y[out]))
    rate, steps = min(losses, key=lambda place: losses[place])
    ended = trained(begin(torch.ones_like(out)), x, y, rate, (steps,))[0]
    return Found(ended, {"promised": losses[rate, steps], "rate": rate, "steps": float(steps)})


def adamw(model: Top, x: Tensor, y: Tensor) -> Found:
    return tuned(model, x, y, RATES["adamw"], None)


def lp_ft(model: Top, x: Tensor, y: Tensor) -> Found:
    """A logistic head, then all weights (Kumar et al. 2022)."""
    return tuned(model, x, y, RATES["lp-ft"], logistic)


LOGISTIC = "logistic, cross-validated"
CONTENDERS: dict[str, Callable[[Top, Tensor, Tensor], Found]] = {
    "head": head, "head, then network": two_stages, LOGISTIC: logistic,
    "LP-FT, tuned": lp_ft, "AdamW, tuned": adamw,
}  # fmt: skip
