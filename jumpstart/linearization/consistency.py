"""Asked once of a linearization: is there one function, and are torch's derivatives those of it and of training?

Three maps ought to belong together: J v (how the outputs move), Jᵀw (what training pulls the weights by), and the
function that the model computes. Each identity below costs a pass or two, once for an objective and its modes. What
two passes of one function may differ by goes by the arithmetic inside, not by the dtype of the outputs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InconsistentError, NondeterministicError, NoParametersError
from ..objectives.pure import Bound, Net
from ..utils.autodiff import normal
from ..utils.cost import Counting, Ledger, Work
from .products import Linearization

NAMED = 4  # parameters that a message names
PROBED = 64  # parameters up to which each is probed alone, to find those at fault
KINKED = 0.01  # of the response: a kink's part up to this is not told
FINER = 10  # how much smaller a second step is that tells a kink from a bend
SETTLED = 0.3  # relative change of a kink's part from step to step


@dataclass(frozen=True)
class Consistency:
    """What was found beside what is refused.

    Attributes:
        still_responds: whether the outputs respond to weights that get no gradient (a padding row), which matters where
            weight decay moves them.
        kink: share of the outputs' response that is another one forwards than backwards. rows: those that it is in.
    """

    still_responds: bool = False
    kink: float = 0.0
    rows: tuple[int, ...] = ()


class _Tracing(Counting):
    """Counts operations, and writes down which they are and their scalars; sizes of views are the data's."""

    def __init__(self) -> None:
        super().__init__()
        self.trace: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.trace.append((str(func), tuple(x for x in args if isinstance(x, (bool, int, float, str)))))
        return super().__torch_dispatch__(func, types, args, kwargs)


def require_deterministic(lin: Linearization) -> tuple[Work, tuple[Any, ...]]:
    """Ask the network twice and compare. Returns the work of a forward pass, and which operations it is made of.

    Raises:
        NondeterministicError: the answers differ by more than rounding; says what they draw, or that nothing is drawn.
    """
    work, trace, lin.arithmetic = require_repeatable(lin.net, lin.u, lambda: lin.outputs(lin.theta))
    return work, trace


def require_repeatable(net: Net, u: Tensor, ask: Callable[[], Tensor]) -> tuple[Work, tuple[Any, ...], torch.dtype]:
    """Ask again what was answered with outputs u: the work, the operations, and the arithmetic inside.

    Raises:
        NondeterministicError: the answers differ by more than rounding.
    """
    python = random.getstate()
    with _Tracing() as counted:
        again = ask()
    net.learn(counted, again)
    drawn = counted.random + (["random"] if random.getstate() != python else [])
    random.setstate(python)
    scale = torch.linalg.vector_norm(u).clamp_min(torch.finfo(u.dtype).tiny)
    difference = float(torch.linalg.vector_norm(again - u) / scale)
    arithmetic = _coarser(counted.coarsest, u.dtype)
    if difference > torch.finfo(arithmetic).eps ** 0.75:
        cause, remedy = _noise(net, drawn)
        raise NondeterministicError(
            f"the model answered twice with outputs {difference:.1e} apart (relative){cause}: there is no one "
            f"function to linearize. {remedy}"
        )
    return counted.work, tuple(counted.trace), arithmetic


def _coarser(found: torch.dtype | None, own: torch.dtype) -> torch.dtype:
    return own if found is None or torch.finfo(found).eps < torch.finfo(own).eps else found


def _noise(net: Net, drawn: list[str]) -> tuple[str, str]:
    """What makes the answers differ, as far as can be told, and what to do."""
    noisy = [
        name or type(module).__name__
        for name, module in net.model.named_modules()
        if (module.training if net.training is None else net.training) and "Dropout" in type(module).__name__
    ]
    if noisy:
        return (
            f" ({', '.join(noisy[:NAMED])} in train mode)",
            "Call model.eval(), or pass training=False to the objective to evaluate in eval mode and keep the loop in "
            "train mode; fix any other noise with a seed inside the model.",
        )
    if drawn:
        return (
            f" (it draws random numbers in the mode that it is evaluated in: {', '.join(drawn[:NAMED])})",
            "Draw them before, as inputs, or from a generator that is seeded inside of the call.",
        )
    return (
        " (no random numbers of torch or Python were drawn)",
        "Look for NumPy's random numbers, for state outside of the model that a call changes, and for operations "
        "that are not deterministic (torch.use_deterministic_algorithms).",
    )


def require_consistent(lin: Linearization) -> Consistency:
    """Hold J v, Jᵀw, training's gradient and the function itself against each other along random v and w.

    Only weights that receive a gradient are asked about: others (behind ``no_grad`` or ``detach``, padding rows) stay
    where they are.

    Raises:
        NoParametersError: the outputs have no path to the weights at all.
        InconsistentError: names the parameters at fault, the cause if it can be seen, and a remedy.
    """
    ledger, lin.ledger = lin.ledger, Ledger()
    try:
        eps = torch.finfo(_coarser(lin.arithmetic, lin.theta.dtype)).eps
        tolerance = eps**0.375
        generator = torch.Generator().manual_seed(0)
        v = normal(lin.theta.shape, generator).to(lin.theta) * _sizes(lin)
        w = normal(lin.u.shape, generator).to(lin.u)
        pulled = lin.vjp(w)
        if not bool(torch.isfinite(pulled).all()):
            return Consistency()  # what needs derivatives refuses them, where they are used
        if not bool((pulled != 0).any()):
            _require_path(lin)
        _require_training_gradient(lin, w, pulled, tolerance)
        moving = pulled != 0
        image = lin.jvp(v * moving)
        _require_adjoint(lin, v * moving, w, image, pulled, tolerance)
        slope = _slopes(lin, v * moving)
        _require_differences(lin, v * moving, image, slope, eps)
        kink, rows = _kinks(lin, image, slope, eps)
        still, responds = v * ~moving, False
        if bool((still != 0).any()):
            response = torch.linalg.vector_norm(lin.jvp(still))
            responds = bool(response > eps**0.75 * torch.linalg.vector_norm(image))
        return Consistency(responds, kink, rows)
    finally:
        ledger.gradients += lin.ledger.gradient_evaluations
        lin.ledger = ledger


def _sizes(lin: Linearization) -> Tensor:
    """The size of each weight: the root mean square of its parameter, or 1 where that is zero."""
    pieces = [piece.square().mean().sqrt().expand_as(piece) for piece in lin.theta.split(lin.net.space.sizes)]
    return torch.cat([torch.where(piece > 0, piece, torch.ones_like(piece)) for piece in pieces])


def _by_parameter(lin: Linearization, vector: Tensor) -> Iterator[tuple[str, Tensor]]:
    return zip(lin.net.space.names, vector.split(lin.net.space.sizes), strict=True)


def _require_path(lin: Linearization) -> None:
    """Where nothing is pulled: a stationary point (a head of zeros, dead units) is one, a constant model is none."""

    def found() -> bool:
        with torch.enable_grad():
            leaf = lin.theta.detach().clone().requires_grad_()
            for part in lin.parts:
                with part.translated(lin.net.model):
                    if part.outputs(lin.net.bind(leaf)).requires_grad:
                        return True
        return False

    if found() if lin.shards is None else lin.shards.world.any("a path", lin.shards.world.attempt("paths", found)):
        return
    raise NoParametersError(
        f"the outputs depend on none of the trainable parameters {_listed(list(lin.net.space.names))}, as far as torch "
        "can differentiate them: look for detach(), no_grad() or .data in forward, or for outputs that are made of the "
        "inputs alone."
    )


def _require_training_gradient(lin: Linearization, w: Tensor, pulled: Tensor, tolerance: float) -> None:
    """Jᵀw is what the model itself gives by backward passes, its own parameters in it."""
    present = dict(lin.net.model.named_parameters())
    names = [name for name in lin.net.space.names if present[name].requires_grad]
    if not names or not torch.equal(lin.net.space.read(lin.net.model), lin.theta):
        return  # at other weights than the model's there is nothing to compare with
    lin.ledger.gradients += 1
    space, scale, off = lin.net.space, torch.linalg.vector_norm(pulled), []
    rows = lin.mine(w)

    def as_trained() -> Tensor:
        own = {name: torch.zeros_like(present[name]) for name in space.names}
        net, at = Bound(lin.net, {}), 0
        for part, count in zip(lin.parts, lin.counts, strict=True):
            with part.translated(lin.net.model), torch.enable_grad():
                u = part.outputs(net)
                if u.requires_grad:
                    leaves = [present[name] for name in names]
                    found = torch.autograd.grad(u, leaves, rows[at : at + count], allow_unused=True)
                    for name, g in zip(names, found, strict=True):
                        own[name] += 0 if g is None else g.to_dense() if g.is_sparse else g
            at += count
        return space.flatten(own)

    truth = lin.total("training's gradient", as_trained)
    scale = torch.maximum(scale, torch.linalg.vector_norm(truth))
    for (name, mine), (_, trained) in zip(_by_parameter(lin, pulled), _by_parameter(lin, truth), strict=True):
        if name in names and not bool(torch.linalg.vector_norm(mine - trained) <= tolerance * scale):
            off.append(name)
    if off:
        hooked = [name for name in off if present[name]._backward_hooks]
        why = (
            f"a gradient hook on {hooked[0]!r} changes them: remove it (handle.remove()); a mask is params=[…], a "
            "factor a metric"
            if hooked
            else "the model uses these parameters past its own attributes (a closure, a list, a cache): let it read "
            "self.name in forward"
        )
        raise InconsistentError(
            f"training pulls {_listed(off)} by other gradients than the model gives as a function of its weights: "
            f"{why}."
        )


def _require_adjoint(lin: Linearization, v: Tensor, w: Tensor, image: Tensor, pulled: Tensor, tolerance: float) -> None:
    """⟨w, J v⟩ = ⟨Jᵀw, v⟩."""

    def differ(v: Tensor, image: Tensor) -> bool:
        there, back = (w.double() * image.double()).sum(), torch.dot(pulled.double(), v.double())
        scale = torch.linalg.vector_norm(image.double()) + torch.linalg.vector_norm((pulled * v).double())
        return not bool((there - back).abs() <= tolerance * scale)

    if not differ(v, image):
        return
    off = [name for name, one in _alone(lin, v) if differ(one, lin.jvp(one))] or list(lin.net.space.names)
    scaled = [
        name or type(module).__name__
        for name, module in lin.net.model.named_modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.scale_grad_by_freq
    ]
    why = (
        f"{scaled[0]!r} scales its gradients by frequency: set scale_grad_by_freq=False"
        if scaled
        else "look for a padding_idx in a table that is used twice, and for a custom backward or a gradient hook that "
        "changes gradients, and leave it out while jumpstart is asked"
    )
    raise InconsistentError(
        f"the gradients that torch gives for {_listed(off)} are not those of the outputs (⟨w, J v⟩ ≠ ⟨Jᵀw, v⟩): {why}, "
        "or leave these parameters out with params=[…]."
    )


def _require_differences(
    lin: Linearization, v: Tensor, image: Tensor, slope: Callable[..., Tensor], eps: float
) -> None:
    """The function itself moves by J v: a difference that settles (two steps agree) on something else is refused."""
    size, start = torch.linalg.vector_norm(image.double()), lin.u.double()
    if not bool(torch.isfinite(size)):
        return

    def agrees(found: Tensor, step: float) -> bool:
        floor = 64 * eps / abs(step) * torch.linalg.vector_norm(start)
        return bool(torch.linalg.vector_norm(found - image.double()) <= tolerance * size + floor)

    tolerance = min(0.02, 3 * eps ** (1 / 4))
    step = _step(eps)
    for first in (step, 30 * step):
        one = slope(first)
        if agrees(one, first) or not bool(torch.isfinite(one).all()):
            return
        two = slope(first / 3)
        if agrees(two, first / 3):
            return
        apart = torch.linalg.vector_norm(one - image.double())
        # Backwards as well: at a kink (a ReLU of exactly 0) the two sides differ, and any slope between them is right.
        if all(bool(torch.linalg.vector_norm(one - other) <= 0.1 * apart) for other in (two, slope(-first))):
            off = [name for name, v in _alone(lin, v) if _off(slope(first, v), lin.jvp(v).double())]
            raise InconsistentError(
                f"the outputs do not move with {_listed(off or list(lin.net.space.names))} as torch's derivative says: "
                "a stopped gradient (detach, .data, a buffer that forward updates) on a path that matters, a "
                "straight-through estimate, or a backward of another function. Evaluate in eval mode (training=False) "
                "if it is for training alone, leave these parameters out with params=[…], or let it be differentiated."
            )


def _step(eps: float) -> float:
    """Between rounding and curvature: 1e-5 in float64, 2e-3 in float32."""
    return 0.1 * eps ** (1 / 4)


def _slopes(lin: Linearization, v: Tensor) -> Callable[..., Tensor]:
    """(f(θ + εv) − f(θ))/ε for a step ε, along v unless another direction is given."""
    start = lin.u.double()

    @lru_cache(maxsize=8)
    def ours(step: float) -> Tensor:
        return (lin.outputs(lin.theta + step * v).double() - start) / step

    def slope(step: float, along: Tensor | None = None) -> Tensor:
        return ours(step) if along is None else (lin.outputs(lin.theta + step * along).double() - start) / step

    return slope


def _kinks(
    lin: Linearization, image: Tensor, slope: Callable[[float], Tensor], eps: float
) -> tuple[float, tuple[int, ...]]:
    """The share of J v that differs by the side it is looked at from, half of that being off; and the rows of it.

    At a kink (a ReLU whose input is exactly 0) the two sides' slopes stay apart as the step shrinks, at a bend they do
    not; kinks that are only near come and go with the step.
    """
    size = torch.linalg.vector_norm(image.double())
    noise = 4 * eps * torch.linalg.vector_norm(lin.u.double())
    step, before = _step(eps), None
    while bool(noise / step <= KINKED / 2 * size):
        apart = slope(step) - slope(-step)
        length = torch.linalg.vector_norm(apart)
        if not bool(length / 2 > KINKED * size) or not bool(torch.isfinite(length)):
            break
        if before is not None and bool(torch.linalg.vector_norm(apart - before) <= SETTLED * length):
            by_row = torch.linalg.vector_norm(apart.reshape(len(apart), -1), dim=1)
            rows = (by_row > KINKED * by_row.max()).nonzero()[:, 0]
            return float(length / 2 / size), tuple(rows.tolist())
        step, before = step / FINER, apart
    return 0.0, ()


def _off(found: Tensor, image: Tensor) -> bool:
    scale = torch.maximum(torch.linalg.vector_norm(found), torch.linalg.vector_norm(image))
    return bool(torch.linalg.vector_norm(found - image) > 0.05 * scale)


def _alone(lin: Linearization, v: Tensor) -> Iterator[tuple[str, Tensor]]:
    """v in one parameter alone, for each of them; for none where they are many."""
    names = lin.net.space.names
    for i, name in enumerate(names if len(names) <= PROBED else ()):
        pieces = [piece if j == i else torch.zeros_like(piece) for j, (_, piece) in enumerate(_by_parameter(lin, v))]
        yield name, torch.cat(pieces)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(repr(name) for name in names[:NAMED]) + more
