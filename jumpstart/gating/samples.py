"""Exact per-sample statistics of gradients, recorded while a loop of the user's own calls ``backward``.

c_i is what sample i adds to ``p.grad``, so that Σ_i c_i = p.grad =: G whatever the loss averages or weighs by. Of b
independent contributions, the variance of their sum is estimated without bias by (b Σ_i c_i² − G²)/(b − 1).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedParameter
from torch.utils.weak import WeakIdKeyDictionary

from ..distributed.wrapped import joined, require_whole
from ..errors import InputError, NoParametersError
from ..utils import guard
from ..utils.brief import brief
from .records import Record
from .units import Unit, holders
from .uses import Pass, seen, task

EACH = ("sample", "microbatch")


def record(
    model: nn.Module, params: Iterable[nn.Parameter] | None = None, each: str = "sample", group: Any = None
) -> Recorder:
    """Record Σ_i c_i² of every parameter from now on, in whatever backward passes there are, until ``remove()``.

    Samples are the rows of the model's first tensor input; row i of all calls that one backward pass goes through is
    sample i. A layer with another number of rows is refused; where samples are in another dimension inside of the
    model, as many as rows by chance, or where the network itself mixes rows (BatchNorm is told), use
    ``each="microbatch"``. The recorder is a context manager, too.

    Args:
        params: which parameters; all that require a gradient by default.
        each: ``"microbatch"`` takes each call of ``backward`` as one contribution, which any model allows.
        group: a process group whose processes' gradients are averaged before the variance is asked for, as by
            DistributedDataParallel, whose models bring their own: samples of all are then counted, by an all-reduce of
            each parameter's size, and every process must ask.

    Raises:
        InputError: nothing to record, or recorded already. Later, in the forward pass: a layer's rows are not samples,
            or BatchNorm makes them interact.
    """
    return Recorder(model, params, each, group)


def noise(parameter: Tensor) -> Tensor | None:
    """The variance of ``p.grad``, entry by entry; None where nothing is recorded.

    Gradients that were scaled since by one factor (``clip_grad_norm_``, ``GradScaler.unscale_``) are answered for as
    they are now: the variance is multiplied by the square of the factor of the norm. Any other change is refused.

    Raises:
        InputError: fewer than two samples; or the gradient has a part that no sample was seen to add.
    """
    found = _RECORDS.get(parameter)
    return None if found is None else found.noise()


def samples(parameter: Tensor) -> int:
    """How many contributions ``p.grad`` is the sum of, as far as recorded; 0 where nothing is."""
    found = _RECORDS.get(parameter)
    return 0 if found is None else found.samples


def used(parameter: Tensor) -> None:
    """A step was taken with ``p.grad``: the next backward pass starts the record anew."""
    found = _RECORDS.get(parameter)
    if found is not None:
        found.used = True


_RECORDS: WeakIdKeyDictionary = WeakIdKeyDictionary()  # parameter → Record; goes with the parameter


class Hook:
    """A hook that a copy or a file of the model does not take along, and that is silent where the library evaluates."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return None if guard.inside() else self.function(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[[], Any], tuple]:
        return _nothing, ()


def _nothing() -> Hook:
    return Hook(lambda *args, **kwargs: None)


class Recorder:
    """The hooks of one call of :func:`record`, whose arguments it has.

    Args:
        model, params, each, group: as for :func:`record`.

    Raises:
        InputError: what cannot be recorded, quoted.
    """

    def __init__(
        self, model: nn.Module, params: Iterable[nn.Parameter] | None = None, each: str = "sample", group: Any = None
    ) -> None:
        require_whole(model, "js.gating.record")
        model, world = joined(model, group)
        if not isinstance(model, nn.Module):
            raise InputError(f"record({brief(model)}): give the torch.nn.Module whose gradients are to be recorded.")
        if each not in EACH:
            raise InputError(f"each={brief(each)} is none of {list(EACH)}.")
        chosen = _chosen(model, params)
        self._handles: list[Any] = []
        self._records: list[Record] = []
        self._parameters = [weakref.ref(p) for p in chosen.values()]
        found: dict[int, Record] = {}
        for name, p in chosen.items():
            one = Record(name, p, each, world)
            found[id(p)] = _RECORDS[p] = one
            self._records.append(one)
            self._handles += [p.register_hook(one.arrive), p.register_post_accumulate_grad_hook(one.keep)]
        if each == "sample":
            self._watch(model, found)

    def _watch(self, model: nn.Module, found: dict[int, Record]) -> None:
        now = Pass()
        begin = Hook(lambda module, args, kwargs: self._begin(now, args, kwargs))
        self._handles.append(model.register_forward_pre_hook(begin, with_kwargs=True, prepend=True))
        for name, module, own in holders(model):
            records = {key: found[id(p)] for key, p in own.items() if id(p) in found}
            if records:
                unit = Hook(Unit(name, module, records, now))
                # Before others: the gradient is asked for at what the module itself has made.
                self._handles.append(module.register_forward_hook(unit, with_kwargs=True, prepend=True))
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm):
                refuse = Hook(lambda module, args, name=name: _refuse(module, name))
                self._handles.append(module.register_forward_pre_hook(refuse))
        end = Hook(lambda module, args, output: now.leave())
        self._handles.append(model.register_forward_hook(end, always_call=True))

    def _begin(self, now: Pass, args: tuple, kwargs: dict) -> None:
        now.enter(args, kwargs)
        if task() == -1:  # what a backward pass left behind that was for other gradients
            for one in self._records:
                one.fired.clear()

    def remove(self) -> None:
        """Take all hooks away and forget what was recorded."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for find, one in zip(self._parameters, self._records, strict=True):
            parameter = find()
            if parameter is not None and _RECORDS.get(parameter) is one:
                del _RECORDS[parameter]

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def _chosen(model: nn.Module, params: Iterable[nn.Parameter] | None) -> dict[str, nn.Parameter]:
    """Parameters to record, by name, each once."""
    named = dict(model.named_parameters())
    if params is not None:
        listed = [params] if isinstance(params, Tensor) else list(params)
        known = {id(p) for p in named.values()}
        for p in listed:
            if id(p) not in known:
                raise InputError(f"params holds {brief(p)}, which is no parameter of {type(model).__name__}.")
        wanted = {id(p) for p in listed}
        named = {name: p for name, p in named.items() if id(p) in wanted}
    named = {name: p for name, p in named.items() if p.requires_grad}
    if not named:
        raise NoParametersError(f"record: {type(model).__name__} has no parameter to record that requires a gradient.")
    for name, p in named.items():
        if isinstance(p, UninitializedParameter):
            raise InputError(f"{name} has no shape yet; run the model once before record().")
        if not p.is_floating_point():
            raise InputError(f"{name} is {p.dtype}: gates are for real parameters; leave it out by params=.")
        if p in _RECORDS:
            raise InputError(f"{name} is recorded already; remove() that recorder first.")
    return named


def _refuse(module: nn.Module, name: str) -> None:
    norm: Any = module
    if seen() and (norm.training or norm.running_mean is None):
        raise InputError(
            f"{name} ({type(module).__name__}) normalizes by its batch, so that samples interact and what each adds to "
            "a gradient is not its own; call .eval() on it, use GroupNorm or LayerNorm, or use each='microbatch'."
        )
