"""A network as a list of layers that jets go through, read off from its forward pass by ``torch.fx``.

Known are linear layers, elementwise functions, sums, products, constants and concatenation; anything else makes
``trace`` answer None, and the caller takes the general way.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .jets import COS, EXP, SIGMOID, SIN, TANH, Index, Jet, Tower, differentiated, elementwise, mapped, product, summed

_FUNCTIONS: dict[Any, Tower] = {
    torch.tanh: TANH, torch.sigmoid: SIGMOID, torch.sin: SIN, torch.cos: COS, torch.exp: EXP, F.tanh: TANH,
    F.sigmoid: SIGMOID,
}  # fmt: skip
_FUNCTIONS |= {fn: differentiated(fn) for fn in (F.gelu, F.softplus, F.elu, torch.erf, torch.square, torch.atan)}
# torch's own knows no second forward derivative outside of autograd
SILU = differentiated(lambda x: x * torch.sigmoid(x))
MISH = differentiated(lambda x: x * torch.tanh(F.softplus(x)))
_FUNCTIONS |= {F.silu: SILU, F.mish: MISH}
_METHODS = {"tanh": TANH, "sigmoid": SIGMOID, "sin": SIN, "cos": COS, "exp": EXP}
_MODULES: dict[type, Tower | None] = {
    nn.Tanh: TANH,
    nn.Sigmoid: SIGMOID,
    nn.SiLU: SILU,
    nn.Mish: MISH,
    nn.Identity: None,
}
_SMOOTH = (nn.GELU, nn.Softplus, nn.ELU, nn.CELU, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink)
_ADD = (operator.add, torch.add, operator.iadd)
_SUB = (operator.sub, torch.sub)
_MUL = (operator.mul, torch.mul, operator.imul)
_DIV = (operator.truediv, torch.div)


@dataclass(frozen=True)
class Use:
    """One linear layer that was passed: names of its tensors, the jet that went in, and the one that came out."""

    weight: str
    bias: str | None
    before: Jet
    after: Jet


Step = Callable[[dict[fx.Node, Any], Mapping[str, Tensor], list[Index], list[Use] | None], Any]


@dataclass(frozen=True)
class Program:
    """Layers in order. ``linear`` names the tensors used by linear layers, ``other`` those used in any other way."""

    steps: tuple[tuple[fx.Node, Step], ...]
    source: fx.Node
    result: fx.Node
    linear: frozenset[str]
    other: frozenset[str]

    def run(self, tensors: Mapping[str, Tensor], jet: Jet, wanted: list[Index], uses: list[Use] | None = None) -> Jet:
        """The network's jet for that of its input.

        Args:
            tensors: parameters and buffers by name.
            wanted: indices to carry, closed (``jet.closed``).
            uses: linear layers are recorded here, each output asked for gradients, for the explicit Jacobian.
        """
        env: dict[fx.Node, Any] = {self.source: jet}
        for node, step in self.steps:
            env[node] = step(env, tensors, wanted, uses)
        return env[self.result]


def trace(model: nn.Module) -> Program | None:
    """The program of a model of one input, or None where it holds something else than is known here."""
    try:
        graph = fx.Tracer().trace(model)
        return _read(model, graph)
    except Exception:  # control flow, unknown layers: whatever cannot be read off goes the general way
        return None


def _read(model: nn.Module, graph: fx.Graph) -> Program | None:
    names = {id(t): name for name, t in [*model.named_parameters(), *model.named_buffers()]}
    source = result = None
    steps: list[tuple[fx.Node, Step]] = []
    linear: set[str] = set()
    other: set[str] = set()
    jets: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            if source is not None:
                if node.args:  # an optional argument that is left at its default
                    continue
                return None
            source = node
            jets.add(node)
        elif node.op == "output":
            result = node.args[0]
        elif node.op == "get_attr":
            value = operator.attrgetter(node.target)(model)
            name = names.get(id(value))
            if name is None:
                steps.append((node, lambda env, tensors, wanted, uses, value=value: value))
            else:
                other.add(name)
                steps.append((node, lambda env, tensors, wanted, uses, name=name: tensors[name]))
        else:
            step = _step(node, model, names, jets, linear)
            if step is None:
                return None
            steps.append((node, step))
            jets.add(node)
    if source is None or not isinstance(result, fx.Node) or result not in jets:
        return None
    return Program(tuple(steps), source, result, frozenset(linear), frozenset(other))


def _step(node: fx.Node, model: nn.Module, names: dict[int, str], jets: set[fx.Node], linear: set[str]) -> Step | None:
    args: Any = node.args
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if len(args) != 1 or node.kwargs or args[0] not in jets or module._forward_hooks or module._forward_pre_hooks:
            return None
        if getattr(module, "inplace", False):
            return None
        kind = type(module)
        if kind is nn.Linear:
            weight = names[id(module.weight)]
            bias = None if module.bias is None else names[id(module.bias)]
            linear.update({weight} if bias is None else {weight, bias})
            return _linear(args[0], weight, bias)
        if kind in _MODULES:
            tower = _MODULES[kind]
            return (lambda env, t, w, u: env[args[0]]) if tower is None else _elementwise(args[0], tower)
        return _elementwise(args[0], differentiated(module)) if kind in _SMOOTH else None
    if node.op == "call_method":
        tower = _METHODS.get(str(node.target))
        return _elementwise(args[0], tower) if tower is not None and len(args) == 1 and args[0] in jets else None
    fn = node.target
    if fn in _FUNCTIONS:
        return _elementwise(args[0], _FUNCTIONS[fn]) if len(args) == 1 and not node.kwargs and args[0] in jets else None
    if node.kwargs and not (fn is torch.cat and set(node.kwargs) == {"dim"}):
        return None
    if fn in (operator.neg, torch.neg) and args[0] in jets:
        return lambda env, t, w, u: mapped(torch.neg, env[args[0]])
    if fn in (operator.pow, torch.pow) and args[0] in jets and isinstance(args[1], int) and args[1] >= 1:
        return _elementwise(args[0], differentiated(lambda x, k=args[1]: x**k))
    if fn is torch.cat and len(args) in (1, 2) and all(part in jets for part in args[0]):
        dim = args[1] if len(args) == 2 else node.kwargs.get("dim", 0)
        return _cat(args[0]) if dim in (-1, 1) else None
    return _arithmetic(fn, args, jets)


def _linear(source: fx.Node, weight: str, bias: str | None) -> Step:
    def step(env: Any, tensors: Mapping[str, Tensor], wanted: list[Index], uses: list[Use] | None) -> Jet:
        before, w = env[source], tensors[weight]
        b = None if bias is None else tensors[bias]
        after = {index: F.linear(value, w, None if index else b) for index, value in before.items()}
        if uses is not None:
            for value in after.values():
                if not value.requires_grad:
                    value.requires_grad_()
            uses.append(Use(weight, bias, before, after))
        return after

    return step


def _elementwise(source: Any, tower: Tower) -> Step:
    return lambda env, tensors, wanted, uses: elementwise(tower, env[source], wanted)


def _cat(sources: Any) -> Step:
    def step(env: Any, tensors: Any, wanted: list[Index], uses: Any) -> Jet:
        parts = [env[source] for source in sources]
        present = [index for index in wanted if any(index in part for part in parts)]
        zero = [torch.zeros_like(part[()]) for part in parts]
        return {
            index: torch.cat([part.get(index, z) for part, z in zip(parts, zero, strict=True)], -1) for index in present
        }

    return step


def _arithmetic(fn: Any, args: tuple[Any, ...], jets: set[fx.Node]) -> Step | None:
    if len(args) != 2 or not any(arg in jets for arg in args if isinstance(arg, fx.Node)):
        return None
    left, right = (isinstance(arg, fx.Node) and arg in jets for arg in args)

    def value(env: dict[fx.Node, Any], arg: Any) -> Any:
        return env[arg] if isinstance(arg, fx.Node) else arg

    if fn in _ADD or fn in _SUB:
        sign = -1.0 if fn in _SUB else 1.0

        def add(env: Any, tensors: Any, wanted: Any, uses: Any) -> Jet:
            a, b = value(env, args[0]), value(env, args[1])
            if left and right:
                return summed(a, b, sign)
            if left:
                return {**a, (): a[()] + sign * b}
            return summed({(): a + torch.zeros_like(b[()])}, b, sign)

        return add
    if fn in _MUL:

        def multiply(env: Any, tensors: Any, wanted: list[Index], uses: Any) -> Jet:
            a, b = value(env, args[0]), value(env, args[1])
            if left and right:
                return product(a, b, wanted)
            jet, factor = (a, b) if left else (b, a)
            return mapped(lambda v: v * factor, jet)

        return multiply
    if fn in _DIV and left and not right:
        return lambda env, tensors, wanted, uses: mapped(lambda v: v / value(env, args[1]), env[args[0]])
    return None
