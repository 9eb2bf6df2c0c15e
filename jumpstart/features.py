"""What goes before a network, and behind it: coordinates scaled, made periodic or into waves; conditions met exactly.

Plain torch modules of few lines, through which derivative streams go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .utils.brief import brief


class Scaled(nn.Module):
    """Coordinates of a box (…, d) to [−1, 1]: x ↦ (2x − low − high) / (high − low).

    Args:
        low, high: (d,), or a domain that has both, such as a ``js.domains.Box``.

    Attributes:
        outputs: how many numbers come out.

    Raises:
        InputError: arguments that cannot be used, quoted.
    """

    centre: Tensor
    radii: Tensor

    def __init__(self, low: Any, high: Any = None) -> None:
        super().__init__()
        if high is None:
            if not (hasattr(low, "low") and hasattr(low, "high")):
                raise InputError(f"Scaled({brief(low)}): give low and high, or a box that has both.")
            low, high = low.low, low.high
        first, last = (torch.as_tensor(side, dtype=torch.get_default_dtype()) for side in (low, high))
        if first.dim() != 1 or first.shape != last.shape or not bool((first < last).all()):
            raise InputError(f"Scaled(low={brief(low)}, high={brief(high)}): give d numbers each, low below high.")
        self.register_buffer("centre", 0.5 * (first + last))
        self.register_buffer("radii", 0.5 * (last - first))
        self.outputs = len(first)

    def forward(self, x: Tensor) -> Tensor:
        """Scaled coordinates (…, d)."""
        return (x - self.centre) / self.radii


class Periodic(nn.Module):
    """Coordinates (…, d) with some of them replaced by waves, so that whatever follows has their period.

    Comes out: for each periodic axis cos and sin of 2πkx/period, k = 1 … harmonics, then the other coordinates as they
    are. (Dong & Ni 2021, arXiv:2007.07442.)

    Args:
        inputs: d. periods: by axis. harmonics: how many.

    Attributes:
        outputs: how many numbers come out.

    Raises:
        InputError: arguments that cannot be used, quoted.

    Example:
        >>> waves = Periodic(2, {0: 2.0})  # x of period 2, and t
        >>> waves(torch.tensor([0.5, 3.0]))
        tensor([-4.3711e-08,  1.0000e+00,  3.0000e+00])
    """

    def __init__(self, inputs: int, periods: Mapping[int, float], harmonics: int = 1) -> None:
        super().__init__()
        _require_count("Periodic", inputs=inputs, harmonics=harmonics)
        if not isinstance(periods, Mapping) or not periods:
            raise InputError(f"Periodic(periods={brief(periods)}): give periods by axis, such as {{0: 2.0}}.")
        for axis, period in periods.items():
            if isinstance(axis, bool) or not isinstance(axis, int) or not 0 <= axis < inputs:
                raise InputError(f"Periodic(periods={brief(periods)}): axis {axis!r} is none of 0 to {inputs - 1}.")
            if not (_finite(period) and period > 0):
                raise InputError(f"Periodic(periods={brief(periods)}): {period!r} is no positive, finite period.")
        self.inputs, self.harmonics = inputs, harmonics
        self.periods = {axis: float(period) for axis, period in sorted(periods.items())}
        self.plain = [axis for axis in range(inputs) if axis not in self.periods]
        self.outputs = len(self.plain) + 2 * harmonics * len(self.periods)

    def forward(self, x: Tensor) -> Tensor:
        """Waves and what is left, (…, outputs)."""
        found = []
        for axis, period in self.periods.items():
            for k in range(1, self.harmonics + 1):
                angle = x[..., axis : axis + 1] * (2 * math.pi * k / period)
                found += [torch.cos(angle), torch.sin(angle)]
        found += [x[..., axis : axis + 1] for axis in self.plain]
        return torch.cat(found, -1)


class Fourier(nn.Module):
    """Coordinates (…, d) to sin and cos of 2π B x, with B (count, d) Gaussian and frozen (Tancik et al. 2020,
    arXiv:2006.10739): what lets a network follow fine detail.

    Args:
        inputs: d. count: of waves. scale: their standard deviation, in cycles a unit; one for each coordinate if
            several are given. seed: of B; the global random state is left alone.

    Attributes:
        outputs: how many numbers come out, 2 · count.

    Raises:
        InputError: arguments that cannot be used, quoted.
    """

    def __init__(self, inputs: int, count: int, scale: float | Sequence[float] = 1.0, seed: int = 0) -> None:
        super().__init__()
        _require_count("Fourier", inputs=inputs, count=count)
        scales = torch.as_tensor(scale, dtype=torch.float64)
        if scales.shape not in ((), (inputs,)) or not bool((torch.isfinite(scales) & (scales > 0)).all()):
            raise InputError(f"Fourier(scale={brief(scale)}): give a positive number, or one for each of {inputs}.")
        waves = torch.randn(count, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        linear: Any = nn.utils.skip_init(nn.Linear, inputs, count, bias=False)  # which would draw of its own
        self.waves: nn.Linear = linear.requires_grad_(False)
        with torch.no_grad():
            self.waves.weight.copy_(2 * math.pi * scales * waves)
        self.outputs = 2 * count

    def forward(self, x: Tensor) -> Tensor:
        """Sines and cosines (…, 2 · count)."""
        angles = self.waves(x)
        return torch.cat([torch.sin(angles), torch.cos(angles)], -1)


class Corner(nn.Module):
    """Coordinates (…, 2) as they are, and what a solution is like at a corner that juts into its domain.

    There u is a sum of r^(kπ/ω) sin(kπθ/ω), with distance r and angle θ from one side to the other at ω: its slope is
    infinite where ω > π, which no smooth network comes near. Comes out: x, y, and these for k = 1 … terms, each
    harmonic and zero on both sides. (Fix, Gulati & Wakoff 1973; Grisvard 1985, section 4.4.)

    Args:
        corner: (2,). first, last: points (2,) on its sides; the domain lies counter-clockwise from first to last.
        terms: how many.

    Attributes:
        outputs: how many numbers come out. angle: ω.

    Raises:
        InputError: arguments that cannot be used, quoted.

    Example:
        >>> front = Corner((0, 0), (0, 1), (1, 0))  # the L-shape [−1, 1]² less its upper right quarter
        >>> front(torch.tensor([[-0.5, -0.5]]))
        tensor([[-0.5000, -0.5000,  0.7937]])
    """

    def __init__(self, corner: Sequence[float], first: Sequence[float], last: Sequence[float], terms: int = 1) -> None:
        super().__init__()
        _require_count("Corner", terms=terms)
        at, one, two = (_point(name, p) for name, p in (("corner", corner), ("first", first), ("last", last)))
        begin, end = (math.atan2(p[1] - at[1], p[0] - at[0]) for p in (one, two))
        if at in (one, two):
            raise InputError(f"Corner(corner={brief(corner)}): a point of a side is the corner itself.")
        self.angle = (end - begin) % (2 * math.pi) or 2 * math.pi  # both sides on one line: a slit
        self.corner, self.terms, self.outputs = at, terms, 2 + terms
        middle = begin + 0.5 * self.angle  # the opposite direction, where the angle jumps, is outside of the domain
        self.direction = (math.cos(middle), math.sin(middle))

    def forward(self, x: Tensor) -> Tensor:
        """Coordinates and corner functions (…, 2 + terms)."""
        (a, b), (c, s) = self.corner, self.direction
        dx, dy = x[..., 0:1] - a, x[..., 1:2] - b
        along, across = c * dx + s * dy, c * dy - s * dx
        square = along * along + across * across
        theta = 2 * torch.atan(across / (torch.sqrt(square) + along)) + 0.5 * self.angle
        found = [x[..., 0:1], x[..., 1:2]]
        for k in range(1, self.terms + 1):
            power = k * math.pi / self.angle
            found.append(square ** (0.5 * power) * torch.sin(power * theta))
        return torch.cat(found, -1)


class Kink(nn.Module):
    """What a solution is like where its start has a kink: |s| spread by diffusion, (…, 1).

    From |s| at the start, u_t = D u_ss leads to √(4Dτ/π) e^(−s²/4Dτ) + s erf(s / √4Dτ), τ after it: a layer that no
    smooth network of few weights comes near. A periodic network meets it wherever the start's slopes differ at the two
    ends. (Flyer & Fornberg 2003, J. Comput. Phys. 184, take such functions out of a transient.) Put it beside the
    coordinates: ``Beside(Periodic(2, {0: 2.0}), Kink(1.0, 1e-4, period=2.0))``.

    Args:
        at: coordinate of the kink. diffusion: D, in lengths² a time.
        axis, time: which coordinates of a row (…, d) are s and t. start: when the kink is there; t is not earlier.
        period: of s, so that the kink is there once a period and what comes out is smooth elsewhere.
        rounded: width of the kink at the start, a length: derivatives are finite there.

    Attributes:
        outputs: how many numbers come out, 1.

    Raises:
        InputError: arguments that cannot be used, quoted.

    Example:
        >>> front = Kink(1.0, 1e-4)
        >>> front(torch.tensor([[0.5, 0.0], [1.0, 0.25]]))
        tensor([[0.5000],
                [0.0056]])
    """

    outputs = 1

    def __init__(
        self, at: float, diffusion: float, *, axis: int = 0, time: int = -1, start: float = 0.0,
        period: float | None = None, rounded: float = 1e-6,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, value in (("at", at), ("start", start)):
            if not _finite(value):
                raise InputError(f"Kink({name}={brief(value)}): give a finite number.")
        for name, value in (
            ("diffusion", diffusion),
            ("rounded", rounded),
            ("period", 1 if period is None else period),
        ):
            if not (_finite(value) and value > 0):
                raise InputError(f"Kink({name}={brief(value)}): give a positive, finite number.")
        for name, value in (("axis", axis), ("time", time)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise InputError(f"Kink({name}={brief(value)}): give the number of a coordinate.")
        if axis == time:
            raise InputError(f"Kink(axis={axis}, time={time}): place and time are two coordinates.")
        self.at, self.diffusion, self.axis, self.time = float(at), float(diffusion), axis, time
        self.start, self.period, self.rounded = float(start), period, float(rounded)

    def forward(self, x: Tensor) -> Tensor:
        """The spread kink (…, 1) at coordinates x (…, d)."""
        s, times = (_column(x, axis) for axis in (self.axis, self.time))
        s = s - self.at
        if self.period is not None:  # odd over a period: all that is even in s is periodic
            s = torch.sin(s * (math.pi / self.period)) * (self.period / math.pi)
        width = torch.sqrt((times - self.start) * (4 * self.diffusion) + self.rounded**2)
        scaled = s / width
        return width * torch.exp(-(scaled * scaled)) / math.sqrt(math.pi) + s * torch.erf(scaled)


class Beside(nn.Module):
    """Several modules of the same coordinates, their outputs side by side: (…, sum of outputs).

    Args:
        parts: modules, such as those of ``js.features``; ``torch.nn.Identity()`` stands for the coordinates themselves.

    Attributes:
        outputs: how many numbers come out; None where a part does not say.

    Raises:
        InputError: fewer than two parts, or something that is no module.

    Example:
        >>> front = Beside(Periodic(2, {0: 2.0}), Kink(1.0, 1e-4, period=2.0))
        >>> front.outputs
        4
    """

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        if len(parts) < 2 or not all(isinstance(part, nn.Module) for part in parts):
            raise InputError(f"Beside({brief(parts)}): give two torch.nn.Modules or more.")
        self.parts = nn.ModuleList(parts)
        counts: list[Any] = [part.outputs for part in parts if hasattr(part, "outputs")]
        self.outputs: int | None = sum(counts) if len(counts) == len(parts) else None

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all parts (…, outputs), in their order, at coordinates x (…, d)."""
        return torch.cat([part(x) for part in self.parts], -1)


def _point(name: str, given: Any) -> tuple[float, float]:
    try:
        x, y = (float(v) for v in given)
    except (TypeError, ValueError):
        raise InputError(f"Corner({name}={brief(given)}): give a point (x, y).") from None
    if not (math.isfinite(x) and math.isfinite(y)):
        raise InputError(f"Corner({name}={brief(given)}): give a point (x, y) of finite numbers.")
    return x, y


def _column(x: Tensor, axis: int) -> Tensor:
    """One coordinate (…, 1), counted from the end where negative."""
    return x[..., axis : axis + 1 or None]


class Constrained(nn.Module):
    """A network whose values are put into a form that meets conditions exactly: x ↦ form(x, net(x)).

    Args:
        net: the network. form: a function of coordinates (…, d) and values (…, c), such as
            ``lambda x, u: x[..., :1] * (1 - x[..., :1]) * u`` for zero at both ends.

    Raises:
        InputError: arguments that cannot be used, quoted.
    """

    def __init__(self, net: nn.Module, form: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise InputError(f"Constrained(net={brief(net)}): give a torch.nn.Module.")
        if not callable(form):
            raise InputError(f"Constrained(form={brief(form)}): give a function of coordinates and values.")
        self.net, self.form = net, form

    def forward(self, x: Tensor) -> Tensor:
        """Values (…, c) that meet the conditions."""
        return self.form(x, self.net(x))


def _finite(value: Any) -> bool:
    """Whether it is a finite number, and no tensor of one."""
    return not isinstance(value, bool) and isinstance(value, (int, float)) and abs(value) < math.inf


def _require_count(kind: str, **counts: Any) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{kind}({name}={brief(value)}): give a whole number of at least 1.")
