"""What is known of an optimizer: the metric it moves in, its weight decay, and what a jump must tell its state.

One registry, open to users: a row is an :class:`Adapter`, and :func:`register` adds one. Conventions are those of
``torch.optim``: a metric D is such that the last step, momentum apart, was −rate·D∘gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, MetricError
from ..utils.brief import brief

State = Mapping[str, Any]  # of one parameter: optimizer.state[parameter]
Group = Mapping[str, Any]  # of optimizer.param_groups
Optimizer = torch.optim.Optimizer


@dataclass(frozen=True)
class Adapter:
    """What is known of one kind of optimizer. It is used for a parameter whose state and group it knows in full.

    Attributes:
        name: for messages.
        types: classes, or endings of the class's name in lower case; empty for any optimizer with this state.
        state: entries of a parameter's state that must be there. optional: others that may be. A state with an entry
            in neither is of another kind.
        group: keys of the parameter group that must be there.
        metric: (state, group) -> D, shaped like the parameter; None for plain gradient steps, D = 1. Raises
            MetricError where the state gives none.
        coupled: weight decay is added to the gradient and so passes through D (Adam's L2 term); otherwise it acts on
            the weights as it is. Where the group has the key ``decoupled_weight_decay``, that decides.
        moments: averages of gradients by entry; (state, group) -> the factor by which the gradient at the new point
            becomes what the entry should hold after a jump (best what one step from rest leaves), 0 to start it afresh.
        copies: entries that hold weights (averages, the other sequence of schedule-free methods): they move by the
            jump's displacement, or the next step would undo it.
        elementwise: every entry of a parameter is moved by itself, so that several may be one long tensor.
        told: called after an accepted jump, once an optimizer, with it and the displacement of every parameter that
            moved; for what the entries above cannot say.

    Raises:
        InputError: a field that cannot be, or would do nothing.

    Example:
        >>> adapter = Adapter("signed", types=("lion",), state=("exp_avg",), moments={"exp_avg": lambda s, g: 1.0})
    """

    name: str
    types: tuple[type | str, ...] = ()
    state: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    metric: Callable[[State, Group], Tensor] | None = None
    coupled: bool = False
    moments: Mapping[str, Callable[[State, Group], float]] = field(default_factory=dict)
    copies: tuple[str, ...] = ()
    elementwise: bool = False
    told: Callable[[Optimizer, Mapping[Tensor, Tensor]], None] | None = None

    def __post_init__(self) -> None:
        for what in ("types", "state", "optional", "group", "copies"):
            given, allowed = getattr(self, what), (type, str) if what == "types" else (str,)
            if not isinstance(given, tuple) or not all(isinstance(entry, allowed) for entry in given):
                raise InputError(f"Adapter({self.name!r}): {what}={brief(given)} must be a tuple of names.")
        if not self.types and not self.state:
            raise InputError(f"Adapter({self.name!r}) would fit every optimizer: give types, or entries of its state.")
        unknown = {*self.moments, *self.copies} - {*self.state, *self.optional}
        if unknown:
            raise InputError(
                f"Adapter({self.name!r}): {sorted(unknown)} of moments or copies are not among state and optional."
            )
        if self.coupled and self.metric is None:
            raise InputError(f"Adapter({self.name!r}): coupled=True does nothing without a metric: leave it out.")

    def fits(self, optimizer: Optimizer, state: State, group: Group) -> bool:
        """Whether this is the kind of optimizer, and everything that is read is there and nothing else."""
        if self.types and not any(_is(optimizer, kind) for kind in self.types):
            return False
        present = {key for key, value in state.items() if value is not None}
        return (
            present >= set(self.state)
            and present <= {*self.state, *self.optional}
            and all(key in group for key in self.group)
        )


def _is(optimizer: Optimizer, kind: type | str) -> bool:
    if isinstance(kind, str):
        return type(optimizer).__name__.lower().endswith(kind.lower())
    return isinstance(optimizer, kind)


def register(adapter: Adapter) -> None:
    """Add an adapter; it is asked before all that are there already.

    Raises:
        InputError: this is no Adapter.

    Example:
        >>> import torch
        >>> from jumpstart.optim import Adapter, register
        >>> def metric(state, group):
        ...     return 1 / (state["exp_avg_var"].sqrt() + group["eps"])
        >>> entries = ("step", "exp_avg", "exp_avg_var")
        >>> register(Adapter("AdaBelief", types=("adabelief",), state=entries, group=("eps",), metric=metric))
    """
    if not isinstance(adapter, Adapter):
        raise InputError(f"register takes a js.optim.Adapter, got {brief(adapter)}.")
    REGISTRY.append(adapter)


def find(optimizer: Optimizer, parameter: Tensor, group: Group) -> Adapter | None:
    """The newest adapter that fits a parameter's state and group; None where nothing is known."""
    state = optimizer.state.get(parameter, {})
    return next((adapter for adapter in reversed(REGISTRY) if adapter.fits(optimizer, state, group)), None)


def rate(optimizer: Optimizer, group: Group) -> float:
    """The learning rate of a group.

    Raises:
        MetricError: there is none.
    """
    if "lr" not in group:
        raise MetricError(
            f"metric: a parameter group of {type(optimizer).__name__} has no learning rate 'lr', only "
            f"{sorted(key for key in group if key != 'params')}: pass metric=None for the plain metric."
        )
    return float(group["lr"])


def moves(group: Group) -> bool:
    """Whether an optimizer moves the parameters of a group at all: its rate is not zero."""
    return float(group.get("lr", 1.0)) != 0


def climbing(optimizer: Optimizer) -> set[Tensor]:
    """The parameters whose gradients are of the negative objective."""
    return {p for group in optimizer.param_groups if group.get("maximize") for p in group["params"]}


def diagonal(optimizer: Optimizer, name: str, parameter: Tensor, group: Group) -> tuple[Tensor, bool]:
    """D of one parameter, shaped like it, and whether weight decay passes through it.

    Raises:
        MetricError: the state is unknown or partial, or gives no metric.
    """
    kind, state = type(optimizer).__name__, optimizer.state.get(parameter, {})
    adapter = find(optimizer, parameter, group)
    if adapter is None:
        remedy = "pass metric=None for the plain metric"
        if not state:
            raise MetricError(
                f"metric: {kind} has no state for {name!r} yet: take a few steps first (a parameter that gets no "
                f"gradient is left out with params=[…]), or {remedy}."
            )
        raise MetricError(
            f"metric: nothing is known of {kind} with the state {sorted(state)} and the group keys "
            f"{sorted(key for key in group if key != 'params')} that {name!r} has: describe it with "
            f"js.optim.register(js.optim.Adapter(…)), or {remedy}."
        )
    if parameter.is_complex():  # two real numbers an entry, as torch's optimizers take it
        parameter = torch.view_as_real(parameter.detach())
        whole = state.items()
        state = {k: torch.view_as_real(v) if isinstance(v, Tensor) and v.is_complex() else v for k, v in whole}
    if adapter.metric is None:
        return torch.ones_like(parameter), False
    try:
        d = adapter.metric(state, group)
    except KeyError as error:
        raise MetricError(f"metric: the adapter {adapter.name!r} reads {error}, which it does not declare.") from error
    if not isinstance(d, Tensor) or d.shape != parameter.shape:
        got = tuple(d.shape) if isinstance(d, Tensor) else type(d).__name__
        raise MetricError(
            f"metric: the adapter {adapter.name!r} returned {got} for {name!r} of shape {tuple(parameter.shape)}."
        )
    return d, not group.get("decoupled_weight_decay", not adapter.coupled)


@torch.no_grad()
def carry(optimizer: Optimizer, moved: Mapping[Tensor, Tensor]) -> None:
    """Carry the copies of the weights in an optimizer's state along with the weights.

    Args:
        moved: parameter -> its displacement.
    """
    for parameter, group in _held(optimizer, moved):
        adapter = find(optimizer, parameter, group)
        for key in () if adapter is None else adapter.copies:
            copy = optimizer.state[parameter].get(key)
            if isinstance(copy, Tensor):
                copy.add_(moved[parameter].to(copy))


def tell(optimizer: Optimizer, moved: Mapping[Tensor, Tensor]) -> None:
    """Tell an optimizer that weights moved: copies move along, and adapters that ask for it are called."""
    carry(optimizer, moved)
    for call in listeners(optimizer):
        call(optimizer, moved)


def listeners(optimizer: Optimizer) -> list[Callable[[Optimizer, Mapping[Tensor, Tensor]], None]]:
    """What adapters ask to be called after an accepted jump, each once."""
    found = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            adapter = find(optimizer, parameter, group)
            if adapter is not None and adapter.told is not None and adapter.told not in found:
                found.append(adapter.told)
    return found


@torch.no_grad()
def refresh(optimizer: Optimizer, gradients: Mapping[Tensor, Tensor | None]) -> None:
    """Make the first moments describe the new point: the gradient there, or nothing. Others are not touched.

    Args:
        gradients: parameter -> gradient at the new point; None starts the parameter's moments afresh.

    Raises:
        MetricError: an adapter reads what it does not declare.
    """
    for parameter, group in _held(optimizer, gradients):
        state, gradient = optimizer.state.get(parameter, {}), gradients[parameter]
        adapter = find(optimizer, parameter, group) or UNKNOWN
        for key, factor in adapter.moments.items():
            moment = state.get(key)
            if not isinstance(moment, Tensor):
                continue
            moment.zero_()
            if gradient is not None:
                try:
                    moment.add_(gradient.to(moment), alpha=factor(state, group))
                except KeyError as error:
                    raise MetricError(
                        f"the adapter {adapter.name!r} reads {error} for {key!r}, which it does not declare."
                    ) from error


def _held(optimizer: Optimizer, chosen: Mapping[Tensor, Any]) -> Iterator[tuple[Tensor, Group]]:
    """Those of some parameters that an optimizer holds, with their groups."""
    for group in optimizer.param_groups:
        yield from ((parameter, group) for parameter in group["params"] if parameter in chosen)


# ---- torch.optim, and schedule-free methods -------------------------------------------------------------------------


def _steps(state: State) -> float:
    steps = float(state["step"])
    if steps < 1:
        raise MetricError("metric: the optimizer has not taken a step yet: take a few first, or pass metric=None.")
    return steps


def _second(state: State, group: Group) -> Tensor:
    """v, or its largest value so far."""
    if not group.get("amsgrad", False):
        return state["exp_avg_sq"]
    if state.get("max_exp_avg_sq") is None:
        raise MetricError("metric: amsgrad=True, but the state holds no 'max_exp_avg_sq': the option came too late.")
    return state["max_exp_avg_sq"]


def adam(state: State, group: Group) -> Tensor:
    correction = 1 - float(group["betas"][1]) ** _steps(state)
    return 1 / ((_second(state, group) / correction).sqrt() + group["eps"])


def _sparse_adam(state: State, group: Group) -> Tensor:
    """ε is added before the bias is corrected, in this one and in RAdam."""
    correction = 1 - float(group["betas"][1]) ** _steps(state)
    return correction**0.5 / (state["exp_avg_sq"].sqrt() + group["eps"])


def _radam(state: State, group: Group) -> Tensor:
    """Liu et al. (arXiv:1908.03265): plain steps until the variance is tractable, then rectified ones."""
    beta, steps = float(group["betas"][1]), _steps(state)
    top = 2 / (1 - beta) - 1
    length = top - 2 * steps * beta**steps / (1 - beta**steps)
    if length <= 5:
        return torch.ones_like(state["exp_avg_sq"])
    rectified = ((length - 4) * (length - 2) * top / ((top - 4) * (top - 2) * length)) ** 0.5
    return rectified * _sparse_adam(state, group)


def _rmsprop(state: State, group: Group) -> Tensor:
    square = state["square_avg"]
    if group["centered"]:
        if state.get("grad_avg") is None:
            raise MetricError("metric: centered=True, but the state holds no 'grad_avg': the option came too late.")
        square = (square - state["grad_avg"].square()).clamp_min(0)
    return 1 / (square.sqrt() + group["eps"])


def _adagrad(state: State, group: Group) -> Tensor:
    slowed = 1 + (_steps(state) - 1) * group["lr_decay"]
    return 1 / (slowed * (state["sum"].sqrt() + group["eps"]))


def _schedule_free_adam(state: State, group: Group) -> Tensor:
    """Defazio et al. (arXiv:2405.15682); steps are counted in the group."""
    correction = 1 - float(group["betas"][1]) ** float(group["k"])
    return 1 / ((state["exp_avg_sq"] / correction).sqrt() + group["eps"])


def no_metric(who: str, why: str) -> Callable[[State, Group], Tensor]:
    """For optimizers that are known not to move in a diagonal metric."""

    def refuse(state: State, group: Group) -> Tensor:
        raise MetricError(f"metric: {who} gives none ({why}): pass metric=None for the plain metric.")

    return refuse


# What one step from rest leaves, not what moments settle at: that would be ten steps' worth of a gradient that the
# narrow valley of a jump's end turns at once (docs/decisions/0021).
def averaged(state: State, group: Group) -> float:
    return 1 - float(group["betas"][0])


def accumulated(state: State, group: Group) -> float:
    return 1 - float(group["dampening"])


def _afresh(state: State, group: Group) -> float:
    return 0.0


def mixed(state: State, group: Group) -> float:
    return 1 - float(group.get("momentum", 0.9))


def _restart(optimizer: Optimizer, moved: Mapping[Tensor, Tensor]) -> None:
    """L-BFGS: its pairs and its last gradient belong to the way so far; without them it starts anew."""
    for state in optimizer.state.values():
        state.clear()


ADAM = ("step", "exp_avg", "exp_avg_sq")
_SCHEDULE_FREE = ("k", "weight_sum", "lr_max", "weight_lr_power")
_LBFGS = (
    *("func_evals", "n_iter", "d", "t", "old_dirs", "old_stps"),
    *("ro", "al", "H_diag", "prev_flat_grad", "prev_loss"),
)

# The newest is asked first. ``foreach``, ``fused`` and ``capturable`` change nothing that is read; an optimizer with
# ``maximize`` is taken to climb −Φ, so that its moments hold gradients of Φ like any other's.
REGISTRY: list[Adapter] = [
    Adapter(
        "SGD",
        types=(torch.optim.SGD,),
        optional=("momentum_buffer",),
        group=("momentum", "dampening"),
        moments={"momentum_buffer": accumulated},
        elementwise=True,
    ),
    Adapter(
        "Adam",
        state=ADAM,
        optional=("max_exp_avg_sq",),
        group=("betas", "eps"),
        metric=adam,
        coupled=True,
        moments={"exp_avg": averaged},
        elementwise=True,
    ),
    Adapter(
        "AdamW",
        types=(torch.optim.AdamW, "adamw"),
        state=ADAM,
        optional=("max_exp_avg_sq",),
        group=("betas", "eps"),
        metric=adam,
        moments={"exp_avg": averaged},
        elementwise=True,
    ),
    Adapter(
        "SparseAdam",
        types=(torch.optim.SparseAdam,),
        state=ADAM,
        group=("betas", "eps"),
        metric=_sparse_adam,
        moments={"exp_avg": averaged},
    ),
    Adapter(
        "RAdam",
        types=(torch.optim.RAdam, "radam"),
        state=ADAM,
        group=("betas", "eps"),
        metric=_radam,
        coupled=True,
        moments={"exp_avg": averaged},
        elementwise=True,
    ),
    # Its look-ahead changes the momentum's share, not the denominator.
    Adapter(
        "NAdam",
        state=(*ADAM, "mu_product"),
        group=("betas", "eps"),
        metric=adam,
        coupled=True,
        moments={"exp_avg": averaged},
        elementwise=True,
    ),
    # Its momentum is of preconditioned gradients: it starts afresh.
    Adapter(
        "RMSprop",
        state=("square_avg",),
        optional=("step", "grad_avg", "momentum_buffer"),
        group=("alpha", "eps", "centered"),
        metric=_rmsprop,
        coupled=True,
        moments={"momentum_buffer": _afresh},
        elementwise=True,
    ),
    Adapter(
        "Adagrad",
        state=("step", "sum"),
        group=("eps", "lr_decay"),
        metric=_adagrad,
        coupled=True,
        elementwise=True,
    ),
    Adapter(
        "Adadelta",
        types=(torch.optim.Adadelta,),
        state=("square_avg", "acc_delta"),
        optional=("step",),
        metric=no_metric("Adadelta", "its step is also scaled by the size of past updates"),
        elementwise=True,
    ),
    Adapter(
        "Adamax",
        types=(torch.optim.Adamax,),
        state=("step", "exp_avg", "exp_inf"),
        group=("betas",),
        metric=no_metric("Adamax", "its denominator is the largest gradient so far, not a second moment"),
        moments={"exp_avg": averaged},
        elementwise=True,
    ),
    Adapter(
        "Adafactor",
        types=("adafactor",),
        state=("step",),
        optional=("row_var", "col_var", "variance"),
        metric=no_metric("Adafactor", "its rate follows the size of the weights and of the update"),
    ),
    # buffer ← μ·buffer + (1 − μ)·gradient, other than SGD's.
    Adapter(
        "Muon",
        types=("muon",),
        state=("momentum_buffer",),
        metric=no_metric("Muon", "it orthogonalizes its update"),
        moments={"momentum_buffer": mixed},
    ),
    Adapter(
        "ASGD",
        types=(torch.optim.ASGD,),
        state=("step", "eta", "mu", "ax"),
        metric=no_metric("ASGD", "its rate falls by a schedule of its own"),
        copies=("ax",),
        elementwise=True,
    ),
    Adapter(
        "Rprop",
        types=(torch.optim.Rprop,),
        state=("step", "prev", "step_size"),
        metric=no_metric("Rprop", "it moves by the signs of the gradient"),
        moments={"prev": _afresh},
        elementwise=True,
    ),
    Adapter(
        "LBFGS",
        types=(torch.optim.LBFGS,),
        optional=_LBFGS,
        metric=no_metric("LBFGS", "it moves along quasi-Newton directions"),
        told=_restart,
    ),
    # Weights are y; z is the sequence that gradients move, x (kept by the reference versions, with y) the average.
    Adapter(
        "schedule-free SGD",
        state=("z",),
        optional=("x", "y"),
        group=("momentum", *_SCHEDULE_FREE),
        copies=("z", "x", "y"),
        elementwise=True,
    ),
    Adapter(
        "schedule-free AdamW",
        state=("z", "exp_avg_sq"),
        optional=("x", "y"),
        group=("betas", "eps", *_SCHEDULE_FREE),
        metric=_schedule_free_adam,
        copies=("z", "x", "y"),
        elementwise=True,
    ),
    Adapter(
        "schedule-free RAdam",
        state=("z", "exp_avg_sq"),
        optional=("x", "y"),
        group=("silent_sgd_phase", *_SCHEDULE_FREE),
        metric=no_metric("schedule-free RAdam", "its rate and its weight decay are rectified step by step"),
        copies=("z", "x", "y"),
        elementwise=True,
    ),
]

# For the moments of an optimizer of which nothing is known: names that are in use for averages of gradients.
UNKNOWN = Adapter(
    "unknown",
    state=("exp_avg",),
    optional=("momentum_buffer",),
    moments={
        "exp_avg": lambda state, group: averaged(state, group) if "betas" in group else 0.0,
        "momentum_buffer": _afresh,
    },
)
