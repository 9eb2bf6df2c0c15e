"""The model as a pure function of its weights, and what evaluating it must leave as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.func import functional_call

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

    Attributes:
        snapshot: buffers, weights that do not move and modes to read in place of the model's present ones.
    """

    def __init__(self, model: nn.Module, space: ParameterSpace, training: bool | None = None) -> None:
        self.model, self.space, self.training = model, space, training
        self.snapshot: Constants | None = None
        # By part and modes: the ways into the kernel that were found to be exact (linearization.ntk.assemble).
        self.routes: WeakKeyDictionary[Any, dict] = WeakKeyDictionary()
        self.draws = False  # whether an evaluation was seen to take random numbers from a global generator
        self.large = False  # whether its operations are long enough for several threads

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "routes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, routes=WeakKeyDictionary())  # a copy finds its ways again

    def learn(self, counted: Counting, like: Tensor) -> None:
        """Take in what was counted in an evaluation with outputs ``like``."""
        work = counted.work
        self.draws = self.draws or counted.drew
        self.large = work.seconds(like.dtype, like.device) >= threads.LONG_CALL * max(1, work.calls)

    @guarded(lambda net, /, *_, **__: net.model)
    def call(self, params: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Evaluate with parameters given by name; buffers are copies, so that none is written to."""
        if self.draws:
            drawing()
        if self.large:
            threads.widen()
        tensors = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        mode = self.training
        if self.snapshot is not None:
            tensors.update(self.snapshot.tensors())
            mode = self.snapshot.modes if mode is None else mode
        tensors.update(params)
        with module_mode(self.model, mode):
            return functional_call(self.model, tensors, args, kwargs)

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer by name, as the model holds them or the snapshot does."""
        return {**tensors_of(self.model), **({} if self.snapshot is None else self.snapshot.tensors())}

    def bind(self, theta: Tensor) -> Bound:
        return Bound(self, self.space.unflatten(theta))


class Bound:
    """The model at given weights, called like the model; ``net.name``, ``net["layer.name"]`` is a parameter or buffer.

    A residual reads the unknowns of its equation this way: ``net.viscosity`` where the model holds
    ``self.viscosity = nn.Parameter(…)``.
    """

    def __init__(self, net: Net, params: Mapping[str, Tensor]) -> None:
        self._net, self._params = net, params

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._net.call(self._params, *args, **kwargs)

    @property
    def model(self) -> nn.Module:
        """The module that is bound."""
        return self._net.model

    def __getitem__(self, name: str) -> Tensor:
        if name in self._params:
            return self._params[name]
        return self._net.tensors()[name]

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_"):  # copying and pickling ask for what is not there yet
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            known = list(tensors_of(self._net.model))
            raise AttributeError(
                f"the network has no parameter or buffer {name!r}; it has {known[:8]}. Write net[{name + '.weight'!r}] "
                "for one inside a layer."
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
