"""The layers, functions and methods that jets can go through, each a row of a table: what it is -> who reads it.

A handler takes a node of the traced forward pass and what is known so far, and gives the step of the program, or raises
``NotFollowed`` with the reason. An elementwise function is a row with its ``Tower``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ...utils.fallback import NotFollowed
from .jets import (
    COS,
    EXP,
    LOG,
    SIGMOID,
    SIN,
    TANH,
    Index,
    Jet,
    Tower,
    differentiated,
    elementwise,
    mapped,
    power,
    product,
    summed,
)
from .program import LinearPass, Step, Values


@dataclass
class Reading:
    """What is known of a network while its graph is read from top to bottom.

    Attributes:
        names: of parameters and buffers, by identity.
        jets: nodes that depend on the input. linear, other: names of tensors used by linear layers, and otherwise.
    """

    model: nn.Module
    names: dict[int, str]
    jets: set[fx.Node] = field(default_factory=set)
    linear: set[str] = field(default_factory=set)
    other: set[str] = field(default_factory=set)

    def is_jet(self, value: Any) -> bool:
        return isinstance(value, fx.Node) and value in self.jets


LayerHandler = Callable[[fx.Node, nn.Module, Reading], Step]
Handler = Callable[[fx.Node, Reading], Step]


def _source(node: fx.Node, reading: Reading, what: str) -> fx.Node:
    """The one argument of a node, which must depend on the input."""
    if len(node.args) != 1 or node.kwargs:
        raise NotFollowed(f"{what} is called with arguments that derivative streams do not know")
    if not reading.is_jet(node.args[0]):
        raise NotFollowed(f"{what} is applied to something that does not depend on the input")
    assert isinstance(node.args[0], fx.Node)
    return node.args[0]


# -- layers --------------------------------------------------------------------------------------------------------


def read_layer(node: fx.Node, reading: Reading) -> Step:
    """``call_module``: a layer of the model."""
    module = reading.model.get_submodule(str(node.target))
    kind = type(module)
    what = f"layer {str(node.target)!r} of type {kind.__name__}"
    if kind not in LAYERS:
        raise NotFollowed(f"{what} is not known to derivative streams")
    if module._forward_hooks or module._forward_pre_hooks:
        raise NotFollowed(f"{what} has forward hooks")
    if getattr(module, "inplace", False):
        raise NotFollowed(f"{what} works in place")
    _source(node, reading, what)
    return LAYERS[kind](node, module, reading)


def _linear(node: fx.Node, module: nn.Module, reading: Reading) -> Step:
    source: Any = node.args[0]
    if any(t is not None and id(t) not in reading.names for t in (module.weight, module.bias)):
        raise NotFollowed(f"layer {str(node.target)!r} has a weight or bias that is no parameter or buffer")
    weight = reading.names[id(module.weight)]
    bias = None if module.bias is None else reading.names[id(module.bias)]
    reading.linear.update({weight} if bias is None else {weight, bias})

    def step(
        values: Values, tensors: Mapping[str, Tensor], wanted: list[Index], passed: list[LinearPass] | None
    ) -> Jet:
        before, w = values[source], tensors[weight]
        b = None if bias is None else tensors[bias]
        after = {index: F.linear(value, w, None if index else b) for index, value in before.items()}
        if passed is not None:
            for value in after.values():
                if not value.requires_grad:
                    value.requires_grad_()
            passed.append(LinearPass(weight, bias, before, after))
        return after

    return step


def _identity(node: fx.Node, module: nn.Module, reading: Reading) -> Step:
    source: Any = node.args[0]
    return lambda values, tensors, wanted, passed: values[source]


def _activation(tower: Tower) -> LayerHandler:
    return lambda node, module, reading: _elementwise(node.args[0], tower)


def _smooth(node: fx.Node, module: nn.Module, reading: Reading) -> Step:
    """A module without parameters that acts on every number alone: its derivatives by nested forward mode."""
    return _elementwise(node.args[0], differentiated(module))


def _elementwise(source: Any, tower: Tower) -> Step:
    return lambda values, tensors, wanted, passed: elementwise(tower, values[source], wanted)


# -- functions and methods -----------------------------------------------------------------------------------------


def read_function(node: fx.Node, reading: Reading) -> Step:
    """``call_function``: a function of torch's, or an operator."""
    if node.target not in FUNCTIONS:
        raise NotFollowed(f"function {_called(node)} is not known to derivative streams")
    return FUNCTIONS[node.target](node, reading)


def read_method(node: fx.Node, reading: Reading) -> Step:
    """``call_method``: a method of a tensor."""
    if node.target not in METHODS:
        raise NotFollowed(f"method .{node.target}() is not known to derivative streams")
    return METHODS[node.target](node, reading)


def _called(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


def _function(tower: Tower) -> Handler:
    return lambda node, reading: _elementwise(_source(node, reading, f"function {_called(node)}"), tower)


def _negative(node: fx.Node, reading: Reading) -> Step:
    source = _source(node, reading, "function neg")
    return lambda values, tensors, wanted, passed: mapped(torch.neg, values[source])


def _power(node: fx.Node, reading: Reading) -> Step:
    source, k = _two(node)
    if not reading.is_jet(source) or isinstance(k, bool) or not isinstance(k, (int, float)):
        raise NotFollowed("a power other than by a fixed number, or of something that does not depend on the input")
    return _elementwise(source, power(k))


def _cat(node: fx.Node, reading: Reading) -> Step:
    args: Any = node.args
    if not args or set(node.kwargs) - {"dim"}:
        raise NotFollowed("cat is called with keywords that are not known to derivative streams")
    sources, dim = args[0], args[1] if len(args) > 1 else node.kwargs.get("dim", 0)
    if not isinstance(sources, (list, tuple)) or not all(reading.is_jet(part) for part in sources):
        raise NotFollowed("cat of something that does not depend on the input")
    if dim not in (-1, 1):
        raise NotFollowed(f"cat along dimension {dim}, not along the last one")

    def step(values: Values, tensors: Any, wanted: list[Index], passed: Any) -> Jet:
        parts = [values[source] for source in sources]
        present = [index for index in wanted if any(index in part for part in parts)]
        zero = [torch.zeros_like(part[()]) for part in parts]
        return {
            index: torch.cat([part.get(index, z) for part, z in zip(parts, zero, strict=True)], -1) for index in present
        }

    return step


def _columns(node: fx.Node, reading: Reading) -> Step:
    """``x[..., a:b]`` or ``x[:, a:b]``: some of the coordinates."""
    source, index = _two(node)
    if not reading.is_jet(source):
        raise NotFollowed("an index that depends on the input")
    last = index[-1] if isinstance(index, tuple) and len(index) == 2 and index[0] in (..., slice(None)) else None
    if isinstance(last, list) and all(isinstance(i, int) for i in last):
        chosen: Any = last
    elif isinstance(last, slice) and all(b is None or isinstance(b, int) for b in (last.start, last.stop, last.step)):
        chosen = last
    else:
        raise NotFollowed(f"the index {index} is neither [..., a:b] nor [:, a:b]")
    return lambda values, tensors, wanted, passed: mapped(lambda v: v[..., chosen], values[source])


# -- arithmetic ----------------------------------------------------------------------------------------------------


def _two(node: fx.Node) -> tuple[Any, Any]:
    if len(node.args) != 2 or node.kwargs:
        raise NotFollowed(f"{_called(node)} is called with other than two arguments")
    return node.args[0], node.args[1]


def _operands(node: fx.Node, reading: Reading) -> tuple[Any, Any, bool, bool]:
    """Both operands, and which of them depend on the input: at least one does."""
    a, b = _two(node)
    return a, b, reading.is_jet(a), reading.is_jet(b)


def _value(values: Values, operand: Any) -> Any:
    return values[operand] if isinstance(operand, fx.Node) else operand


def _sum(sign: float) -> Handler:
    def read(node: fx.Node, reading: Reading) -> Step:
        a, b, left, right = _operands(node, reading)
        if left and right:
            return lambda values, tensors, wanted, passed: summed(values[a], values[b], sign)
        if left:
            return lambda values, tensors, wanted, passed: _shifted(values[a], sign * _value(values, b))
        return lambda values, tensors, wanted, passed: _from(_value(values, a), values[b], sign)

    return read


def _shifted(jet: Jet, constant: Any) -> Jet:
    return {**jet, (): jet[()] + constant}


def _from(constant: Any, jet: Jet, sign: float) -> Jet:
    """constant + sign·jet."""
    return summed({(): constant + torch.zeros_like(jet[()])}, jet, sign)


def _product(node: fx.Node, reading: Reading) -> Step:
    a, b, left, right = _operands(node, reading)
    if left and right:
        return lambda values, tensors, wanted, passed: product(values[a], values[b], wanted)
    jet, constant = (a, b) if left else (b, a)
    return lambda values, tensors, wanted, passed: _scaled(values[jet], _value(values, constant))


def _scaled(jet: Jet, constant: Any) -> Jet:
    return mapped(lambda v: v * constant, jet)


RECIPROCAL = power(-1)


def _quotient(node: fx.Node, reading: Reading) -> Step:
    a, b, left, right = _operands(node, reading)

    def step(values: Values, tensors: Any, wanted: list[Index], passed: Any) -> Jet:
        if not right:
            divisor = _value(values, b)
            return mapped(lambda v: v / divisor, values[a])
        inverse = elementwise(RECIPROCAL, values[b], wanted)
        return product(values[a], inverse, wanted) if left else _scaled(inverse, _value(values, a))

    return step


# -- the tables ----------------------------------------------------------------------------------------------------

# torch's own know no second forward derivative outside of autograd
SILU = differentiated(lambda x: x * torch.sigmoid(x))
MISH = differentiated(lambda x: x * torch.tanh(F.softplus(x)))

LAYERS: dict[type[nn.Module], LayerHandler] = {
    nn.Linear: _linear,
    nn.Identity: _identity,
    nn.Tanh: _activation(TANH),
    nn.Sigmoid: _activation(SIGMOID),
    nn.SiLU: _activation(SILU),
    nn.Mish: _activation(MISH),
    nn.GELU: _smooth,
    nn.Softplus: _smooth,
    nn.ELU: _smooth,
    nn.CELU: _smooth,
    nn.LogSigmoid: _smooth,
    nn.Softsign: _smooth,
    nn.Tanhshrink: _smooth,
}

FUNCTIONS: dict[Any, Handler] = {
    torch.tanh: _function(TANH),
    F.tanh: _function(TANH),
    torch.sigmoid: _function(SIGMOID),
    F.sigmoid: _function(SIGMOID),
    torch.sin: _function(SIN),
    torch.cos: _function(COS),
    torch.exp: _function(EXP),
    F.silu: _function(SILU),
    F.mish: _function(MISH),
    F.gelu: _function(differentiated(F.gelu)),
    F.softplus: _function(differentiated(F.softplus)),
    F.elu: _function(differentiated(F.elu)),
    torch.erf: _function(differentiated(torch.erf)),
    torch.square: _function(power(2)),
    torch.sqrt: _function(power(0.5)),
    torch.rsqrt: _function(power(-0.5)),
    torch.reciprocal: _function(RECIPROCAL),
    torch.log: _function(LOG),
    torch.atan: _function(differentiated(torch.atan)),
    torch.neg: _negative,
    operator.neg: _negative,
    torch.pow: _power,
    operator.pow: _power,
    torch.cat: _cat,
    operator.getitem: _columns,
    torch.add: _sum(1.0),
    operator.add: _sum(1.0),
    operator.iadd: _sum(1.0),
    torch.sub: _sum(-1.0),
    operator.sub: _sum(-1.0),
    torch.mul: _product,
    operator.mul: _product,
    operator.imul: _product,
    torch.div: _quotient,
    operator.truediv: _quotient,
}

METHODS: dict[Any, Handler] = {
    "tanh": _function(TANH),
    "sigmoid": _function(SIGMOID),
    "sin": _function(SIN),
    "cos": _function(COS),
    "exp": _function(EXP),
    "log": _function(LOG),
    "square": _function(power(2)),
    "sqrt": _function(power(0.5)),
    "reciprocal": _function(RECIPROCAL),
    "pow": _power,
}
