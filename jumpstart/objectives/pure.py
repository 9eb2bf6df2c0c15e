"""The model as a pure function of its weights, and what evaluating it must leave as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from ..distributed.sharded import apart
from ..errors import UnknownNameError
from ..utils import threads
from ..utils.cost import Counting
from ..utils.guard import drawing, guarded
from .parameters import ParameterSpace


class Constants(Protocol):
    """What a network reads besides the weights that move, as it was at some time (``snapshot``)."""

    @property
    def modes(self) -> Sequence[tuple[nn.Module, bool]]: ...

    def tensors(self) -> dict[str, Tensor]: ...

    def difference(self, model: nn.Module) -> str | None: ...


class Net:
    """The model as a pure function: ``Net(...).bind(θ)(x)`` evaluates it at θ and changes nothing.

    Args:
        training: None leaves every submodule's mode as it is; False or True evaluates in that mode, and puts
            each submodule's own mode back afterwards.
        select: what is trained of what the model returns (``outputs.Chosen``); None for all of it.

    Attributes:
        snapshot: buffers, weights that do not move and modes to read in place of the model's present ones.
    """

    def __init__(
        self,
        model: nn.Module,
        space: ParameterSpace,
        training: bool | None = None,
        select: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self.model, self.space, self.training, self.select = model, space, training, select
        self.snapshot: Constants | None = None
        # By part and modes: the ways into the kernel that were found to be exact (linearization.ntk.assemble).
        self.routes: WeakKeyDictionary[Any, dict] = WeakKeyDictionary()
        self._held: Mapping[str, Tensor] | None = None  # what the model holds, inside ``within``
        self.draws = False  # whether an evaluation was seen to take random numbers from a global generator
        self.large = False  # whether its operations are long enough for several threads

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("routes", "_held")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, routes=WeakKeyDictionary(), _held=None)  # a copy finds its ways again

    def learn(self, counted: Counting, like: Tensor) -> None:
        """Take in what was counted in an evaluation with outputs ``like``."""
        work = counted.work
        self.draws = self.draws or counted.drew
        self.large = work.seconds(like.dtype, like.device) >= threads.LONG_CALL * max(1, work.calls)

    def call(self, params: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Evaluate with parameters given by name; buffers are copies, so that none is written to."""
        # A compiled module is entered by the one that it was made of: transforms do not go through compiled code.
        found = self.reach("_orig_mod" if hasattr(self.model, "_orig_mod") else "", params, *args, **kwargs)
        return found if self.select is None else self.select(found)

    @guarded(lambda net, /, *_, **__: net.model)
    def reach(self, path: str, params: Mapping[str, Tensor], /, *args: Any, **kwargs: Any) -> Any:
        """Call a submodule or a method of the model by its path ("" for the model), with parameters given by name."""
        module: nn.Module = _At(self.model, path) if path else self.model
        if params is self._held:
            return module(*args, **kwargs)
        return self._swapped(module, "model." if path else "", params, args, kwargs)

    @guarded(lambda net, /, *_, **__: net.model)
    def within(self, params: Mapping[str, Tensor], call: Callable[[], Any]) -> Any:
        """Call a function while the model holds these parameters: a backward pass may run layers once more.

        Activation checkpoints do; they would find the model's own weights, and gradients would be of neither. Inside, a
        call with these very parameters swaps nothing.
        """
        before, self._held = self._held, params
        try:
            return self._swapped(_Holding(self.model), "model.", params, (call,), {})
        finally:
            self._held = before

    def _swapped(self, module: nn.Module, prefix: str, params: Mapping[str, Tensor], args: Any, kwargs: Any) -> Any:
        """Call a module that holds the model at a prefix, the model's tensors swapped for given ones meanwhile."""
        if self.draws:
            drawing()
        if self.large:
            threads.widen()
        given, mode = {name: buffer.clone() for name, buffer in self.model.named_buffers()}, self.training
        if self.snapshot is not None:
            given.update(self.snapshot.tensors())
            mode = self.snapshot.modes if mode is None else mode
        given.update(params)
        # Ties are resolved here: functional_call would swap a module that stands at two places twice, and back wrongly.
        tensors = {prefix + name: given[first] for name, first in ties(self.model) if first in given}
        with attributes_kept(self.model), module_mode(self.model, mode), uncached_parametrizations(), apart(self.model):
            return functional_call(module, tensors, args, kwargs, tie_weights=False)

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer by name, as the model holds them or the snapshot does."""
        return {**tensors_of(self.model), **({} if self.snapshot is None else self.snapshot.tensors())}

    def bind(self, theta: Tensor) -> Bound:
        return Bound(self, self.space.unflatten(theta))


class _At(nn.Module):
    """A model whose call is that of something inside it, so that one swap of tensors serves all of the model."""

    def __init__(self, model: nn.Module, path: str) -> None:
        super().__init__()
        self.model, self.path = model, path

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return attribute(self.model, self.path)(*args, **kwargs)


class _Holding(nn.Module):
    """Calls a function of nothing while its model's tensors are swapped."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[[], Any]) -> Any:
        return call()


def ties(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Each place of a parameter or buffer in a module, once, and the first name of what stands there."""
    first: dict[int, str] = {}
    for prefix, module in model.named_modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    place = f"{prefix}.{name}" if prefix else name
                    yield place, first.setdefault(id(tensor), place)


def attribute(model: nn.Module, path: str) -> Any:
    """What stands at a path of names and keys inside a module.

    Raises:
        KeyError: nothing does.
    """
    found: Any = model
    for name in path.split("."):
        children = found._modules if isinstance(found, nn.Module) else {}
        try:
            found = children[name] if name in children else getattr(found, name)
        except AttributeError:
            raise KeyError(path) from None
    return found


class Bound:
    """The model at given weights, called like the model; ``net.name``, ``net["layer.name"]`` is what stands there.

    A residual reads the unknowns of its equation this way: ``net.viscosity`` where the model holds
    ``self.viscosity = nn.Parameter(…)``. A submodule or a method of the model's own is called at the same weights:
    ``net.pressure(x)``, ``net["u"](x)`` for an ``nn.ModuleDict``.
    """

    def __init__(self, net: Net, params: Mapping[str, Tensor], path: str = "") -> None:
        self._net, self._params, self._path = net, params, path

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._path:
            return self._net.reach(self._path, self._params, *args, **kwargs)
        return self._net.call(self._params, *args, **kwargs)

    @property
    def model(self) -> nn.Module:
        """The module that is bound."""
        return self._net.model

    def __getitem__(self, name: str | int) -> Any:
        path = f"{self._path}.{name}" if self._path else str(name)
        if path in self._params:
            return self._params[path]
        tensors = self._net.tensors()
        if path in tensors:
            return tensors[path]
        found = attribute(self._net.model, path)
        if isinstance(found, Tensor):  # tied: known by its first name
            first = next((other for other, tensor in tensors_of(self._net.model).items() if tensor is found), None)
            if first is not None:
                return self._params.get(first, tensors[first])
        # nn.Module's own methods would answer for the weights that the model holds, and not for these.
        if isinstance(found, nn.Module) or (callable(found) and not hasattr(nn.Module, path.split(".")[-1])):
            return Bound(self._net, self._params, path)
        if callable(found) or (isinstance(found, Tensor) and found.requires_grad):
            raise KeyError(path)
        return found

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copying and pickling ask for what is not there yet
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            known = [n for n, _ in self._net.model.named_children()] + list(tensors_of(self._net.model))
            raise UnknownNameError(
                f"the network has no parameter, buffer or submodule {name!r} to be read by; it has {known[:8]}. Write "
                f"net[{name + '.weight'!r}] for one inside a layer."
            ) from None

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer by name, those that move at the given weights."""
        return {**self._net.tensors(), **self._params}


def tensors_of(net: Any) -> dict[str, Tensor]:
    """Parameters and buffers by name, of a module or of a bound network; empty for anything else."""
    if isinstance(net, Bound):
        return net.tensors()
    return {**dict(net.named_parameters()), **dict(net.named_buffers())} if isinstance(net, nn.Module) else {}


@contextlib.contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """What a call leaves on modules besides buffers (weights cached on first use, counters, activations) is taken back:
    the next call finds what the first one found, and no tensor of a transform stays behind."""
    before = [(module, module.__dict__.copy()) for module in model.modules()]
    try:
        yield
    finally:
        for module, kept in before:
            present = module.__dict__
            for name in present.keys() - kept.keys():
                del present[name]
            for name, value in kept.items():
                if present.get(name, present) is not value:
                    present[name] = value


@contextlib.contextmanager
def uncached_parametrizations() -> Iterator[None]:
    """Under ``parametrize.cached()`` weights come from the cache, whatever is put in: not in here."""
    kept, parametrize._cache_enabled = parametrize._cache_enabled, 0
    try:
        yield
    finally:
        parametrize._cache_enabled = kept


@contextlib.contextmanager
def module_mode(model: nn.Module, training: bool | Sequence[tuple[nn.Module, bool]] | None) -> Iterator[None]:
    """Every submodule in train or eval mode (or in one of its own each) for a while; None leaves them as they are."""
    if training is None:
        yield
        return
    before = [(module, module.training) for module in model.modules()]
    try:
        if isinstance(training, bool):
            model.train(training)
        else:
            for module, flag in training:
                module.training = flag
        yield
    finally:
        for module, flag in before:
            module.training = flag
