"""Three small problems, one of each kind: a regression, a classification, a differential equation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import jumpstart as js
from jumpstart.demo import poisson

TRAIN, HELD = 96, 400
NOISY = 240  # samples of the regression: more than its network has parameters, so that noise is not fitted to the end
NOISE = 0.1  # of the regression's targets


@dataclass(frozen=True)
class Kind:
    """A problem of its own for each seed.

    Attributes:
        rows: training samples, or collocation points inside. build: the objective of a network on some of them.
        again: another of as many, in the place of one that ``build`` made.
        held: error on data that nothing was fitted to.
    """

    name: str
    start: Callable[[int], nn.Module]
    rows: int
    build: Callable[[nn.Module, Tensor], js.Objective]
    held: Callable[[nn.Module], float]
    again: Callable[[js.Objective, Tensor], js.Objective] | None = None

    def redrawn(self, objective: js.Objective, net: nn.Module, rows: Tensor) -> js.Objective:
        return self.build(net, rows) if self.again is None else self.again(objective, rows)

    def objective(self, net: nn.Module) -> js.Objective:
        return self.build(net, torch.arange(self.rows))


def network(seed: int, inputs: int, outputs: int, width: int = 24) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs)).double()


def regression() -> Kind:
    """A smooth function of three inputs, with noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(NOISY + HELD, 3, generator=generator, dtype=torch.float64) * 2 - 1
    clean = (2 * x[:, :1]).sin() + x[:, 1:2] * x[:, 2:]
    y = clean + NOISE * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    return Kind(
        "regression", lambda seed: network(seed, 3, 1), NOISY,
        lambda net, rows: js.supervised(net, x[:NOISY][rows], y[:NOISY][rows]),
        lambda net: float((net(x[NOISY:]) - clean[NOISY:]).square().mean()),
    )  # fmt: skip


def classification() -> Kind:
    """Three clouds in the plane that overlap."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(TRAIN + HELD) % 3
    centres = torch.tensor([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]], dtype=torch.float64)
    x = centres[labels] + 0.6 * torch.randn(TRAIN + HELD, 2, generator=generator, dtype=torch.float64)
    return Kind(
        "classification", lambda seed: network(seed, 2, 3), TRAIN,
        lambda net, rows: js.supervised(net, x[:TRAIN][rows], labels[:TRAIN][rows], "cross_entropy"),
        lambda net: float(nn.functional.cross_entropy(net(x[TRAIN:]), labels[TRAIN:])),
    )  # fmt: skip


def equation() -> Kind:
    """Poisson's equation on the unit square."""
    inside, sides, fine = poisson.grid(10), poisson.boundary(8), poisson.grid(23)
    exact = poisson.exact(fine)

    def build(net: nn.Module, rows: Tensor) -> js.Objective:
        return js.residual(net, js.Term(poisson.equation, inside[rows]), js.Term(lambda u, x: u(x), sides, weight=10.0))

    return Kind(
        "equation", lambda seed: network(seed, 2, 1, 20), len(inside), build,
        lambda net: float((net(fine)[:, 0] - exact).norm() / exact.norm()),
        lambda objective, rows: objective.resampled([inside[rows], None]),  # type: ignore[attr-defined]
    )  # fmt: skip


KINDS = {"regression": regression, "classification": classification, "equation": equation}
