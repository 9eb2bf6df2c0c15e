"""What a function looks like along lines: whether its slope jumps, and whether its curvature is the same all along.

A convex function's slope rises along a line by the integral of its curvature, and by its jumps: automatic derivatives
know the first part alone. What is missing shrinks with the interval where the function is smooth (like its length where
curvature jumps, as Huber's does; like its cube elsewhere), and stays where it has a kink.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NotSmoothError
from ..utils.autodiff import normal

Along = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

SAMPLES = 64  # whose losses are looked at, evenly spread
INTERVALS = 16  # of a line at first
NEAR = 2.0  # length of the short lines; long ones reach past outputs and targets
WIDE_LEVELS, NARROW = 3, 64  # halvings of every interval, and how many go on from there
LEVELS, JUMP = 44, 1e-5  # halvings, and the jump that is one, relative to the largest slope on the line
COARSE_LEVELS, COARSE_JUMP = 14, 1e-2  # for functions in single precision
FLAT = 1e-9  # relative change of a curvature that is constant


@dataclass
class Lines:
    """Lines through outputs, targets and zero, where losses have their kinks.

    Attributes:
        centers, directions: (L, …) rows of outputs. samples: (L,) whose loss each is about.
        flat: whether curvature was found constant on every line, once they have been looked at.
    """

    centers: Tensor
    directions: Tensor
    samples: Tensor
    flat: bool = False

    @staticmethod
    def through(u: Tensor, targets: Tensor) -> Lines:
        """For outputs u (n, …) and targets (n, …), of the same shape or another."""
        n = len(u)
        picks = torch.linspace(0, n - 1, min(n, SAMPLES), device="cpu").round().long().to(u.device)
        rows = u[picks]
        centers, reach = [rows, torch.zeros_like(rows)], 1 + rows.reshape(len(picks), -1).abs().amax(1)
        if targets.is_floating_point():
            reach = reach + targets[picks].reshape(len(picks), -1).abs().amax(1)
            if targets.shape == u.shape:
                centers.append(targets[picks].to(u))
        reach = reach.reshape(-1, *(1,) * (u.dim() - 1))
        found = []
        for seed, (center, length) in enumerate(
            (c, r) for c in centers for r in (NEAR * torch.ones_like(reach), 4 * reach)
        ):
            way = normal(rows.shape, seed).to(u)
            size = way.reshape(len(picks), -1).abs().amax(1).reshape(reach.shape)
            found.append((center, length * way / size))
        return Lines(torch.cat([c for c, _ in found]), torch.cat([d for _, d in found]), picks.repeat(len(found)))

    def ask(self, along: Along, line: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and curvature at positions s (m,) of lines (m,)."""
        way = self.directions[line]
        return along(self.centers[line] + s.reshape(-1, *(1,) * (way.dim() - 1)) * way, way, self.samples[line])


@dataclass(frozen=True)
class Pieces:
    """Intervals of lines, with slope and curvature at both ends."""

    line: Tensor
    left: Tensor
    width: float
    slopes: tuple[Tensor, Tensor]
    bends: tuple[Tensor, Tensor]

    def missing(self) -> Tensor:
        """How much more the slope rises than its curvature says, by the trapezoidal rule."""
        rise = self.slopes[1] - self.slopes[0]
        return torch.nan_to_num(rise - 0.5 * self.width * (self.bends[0] + self.bends[1]), 0.0, 0.0, 0.0)

    def some(self, chosen: Tensor) -> Pieces:
        pair = [(a[chosen], b[chosen]) for a, b in (self.slopes, self.bends)]
        return Pieces(self.line[chosen], self.left[chosen], self.width, pair[0], pair[1])


def require_smooth(lines: Lines, along: Along, name: str, coarse: bool = False) -> None:
    """Look for kinks, and tell the lines whether their curvature is constant.

    Args:
        along: slope and curvature of samples' losses at rows, along directions. name: of the loss, for people.
        coarse: the function computes in single precision.

    Raises:
        NotSmoothError: a slope jumps; with what to take instead.
    """
    pieces, largest, lines.flat = _first(lines, along, 1e-4 if coarse else FLAT)
    for level in range(COARSE_LEVELS if coarse else LEVELS):
        rank = pieces.missing().abs() / largest[pieces.line]
        if float(rank.max()) < 0.1 * JUMP:
            return
        if level >= WIDE_LEVELS and len(rank) > NARROW:
            pieces = pieces.some(rank.topk(NARROW).indices)
        pieces = _halved(pieces, lines, along)
    rank = pieces.missing().abs() / largest[pieces.line]
    at = int(rank.argmax())
    if float(rank[at]) > (COARSE_JUMP if coarse else JUMP):
        line = int(pieces.line[at])
        unit = float(torch.linalg.vector_norm(lines.directions[line]))
        before, after = (float(slope[at]) / unit for slope in pieces.slopes)
        raise NotSmoothError(
            kinked(
                name,
                f"its slope jumps from {before:.3g} to {after:.3g}, first seen for sample {int(lines.samples[line])}",
            )
        )


def kinked(name: str, why: str = "its slope jumps") -> str:
    """The refusal of a loss with kinks, for people."""
    return (
        f"the loss {name} is not smooth ({why}): jumps and closed forms need a slope without kinks. Take loss='huber' "
        "with a small delta= in place of |u − y|, F.softplus(x) or F.relu(x)**2 in place of hinges relu(x), and q·r + "
        "F.softplus(−r·k)/k with r = y − u in place of the quantile loss."
    )


def _first(lines: Lines, along: Along, flat: float) -> tuple[Pieces, Tensor, bool]:
    """The first intervals, the largest slope of each line, and whether curvature is constant on all of them."""
    count = len(lines.samples)
    ends = torch.linspace(-0.937, 1.063, INTERVALS + 1, dtype=torch.float64, device="cpu")  # no end is a center
    s = ends.to(lines.directions).expand(count, -1)
    line = torch.arange(count, device=s.device)[:, None].expand(s.shape)
    slope, bend = (x.reshape(s.shape) for x in lines.ask(along, line.reshape(-1), s.reshape(-1)))
    finite = torch.isfinite(slope) & torch.isfinite(bend)
    largest = torch.where(finite, slope, torch.zeros_like(slope)).abs().amax(1).clamp_min(1e-300)
    spread = bend.amax(1) - bend.amin(1)
    constant = bool(finite.all()) and bool((spread <= flat * bend.abs().amax(1)).all())
    slope = torch.where(finite, slope, torch.full_like(slope, torch.nan))
    pairs = [(x[:, :-1].reshape(-1), x[:, 1:].reshape(-1)) for x in (slope, bend)]
    width = float(ends[1] - ends[0])
    pieces = Pieces(line[:, :-1].reshape(-1), s[:, :-1].reshape(-1), width, pairs[0], pairs[1])
    # A slope that rises where no curvature was seen had it in between.
    constant = constant and bool((pieces.missing().abs() <= flat * largest[pieces.line]).all())
    return pieces, largest, constant


def _halved(pieces: Pieces, lines: Lines, along: Along) -> Pieces:
    """Of each interval the half where more is missing."""
    half = 0.5 * pieces.width
    middle = pieces.left + half
    slope, bend = lines.ask(along, pieces.line, middle)
    halves = [
        Pieces(pieces.line, pieces.left, half, (pieces.slopes[0], slope), (pieces.bends[0], bend)),
        Pieces(pieces.line, middle, half, (slope, pieces.slopes[1]), (bend, pieces.bends[1])),
    ]
    first = halves[0].missing().abs() >= halves[1].missing().abs()

    def either(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(first, a, b)

    pairs = [
        (either(a[0], b[0]), either(a[1], b[1]))
        for a, b in ((halves[0].slopes, halves[1].slopes), (halves[0].bends, halves[1].bends))
    ]
    return Pieces(pieces.line, either(pieces.left, middle), half, pairs[0], pairs[1])
