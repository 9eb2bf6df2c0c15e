"""A network read off from its forward pass by ``torch.fx``, as a program that jets go through.

Known are the rows of the tables in ``handlers``: linear layers, elementwise functions, sums, products, constants and
concatenation. Anything else raises ``NotFollowed`` with the reason, and the caller takes the general way.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator
from typing import Any

from torch import fx, nn
from torch.fx.node import map_arg

from ...utils.fallback import NotFollowed, described
from .handlers import Reading, read_function, read_layer, read_method
from .program import Program, Step, Values


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # what is computed from buffers is computed anew, as they may change


def trace_network(model: nn.Module) -> Program:
    """The program of a model of one input.

    Raises:
        NotFollowed: control flow, or a layer or function that is not known.
    """
    tracer = _Tracer()
    with _attributes_kept(model):
        try:
            graph = tracer.trace(model)
        except Exception as error:  # any code of the model's own runs in there
            raise NotFollowed(f"torch.fx cannot trace the network's forward pass ({described(error)})") from error
        return _read(graph, Reading(model, {id(t): k for k, t in [*model.named_parameters(), *model.named_buffers()]}))


@contextlib.contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Take back the attributes in which ``torch.fx`` keeps constants that it met: the model is the user's."""
    before = set(vars(model))
    try:
        yield
    finally:
        for name in set(vars(model)) - before:
            delattr(model, name)


def _read(graph: fx.Graph, reading: Reading) -> Program:
    source, steps = _source(graph, reading), []
    for node in graph.nodes:
        if node.op in _READERS:
            steps.append((node, _READERS[node.op](node, reading)))
    (output,) = (node for node in graph.nodes if node.op == "output")
    result: Any = output.args[0]
    if not reading.is_jet(result):
        raise NotFollowed("the network returns something other than one tensor computed from its input")
    return Program(tuple(steps), source, result, frozenset(reading.linear), frozenset(reading.other))


def _source(graph: fx.Graph, reading: Reading) -> fx.Node:
    """The node of the one input; an argument left at its default, which ``args`` then holds, may not be read."""
    first, *more = [node for node in graph.nodes if node.op == "placeholder"] or [None]
    if first is None or any(not node.args for node in more):
        raise NotFollowed("the network takes more than one input, or none")
    for node in more:
        if node.users:
            raise NotFollowed(f"the network reads its optional argument {str(node.target)!r}")
    reading.jets.add(first)
    return first


def _attribute(node: fx.Node, reading: Reading) -> Step:
    """A parameter, a buffer or another attribute of the model, read by its own forward."""
    value = operator.attrgetter(str(node.target))(reading.model)
    name = reading.names.get(id(value))
    if name is None:
        return lambda values, tensors, wanted, passed: value
    reading.other.add(name)
    return lambda values, tensors, wanted, passed: tensors[name].clone()  # a step may write to it


def _reader(read: Callable[[fx.Node, Reading], Step]) -> Callable[[fx.Node, Reading], Step]:
    """``read`` for what depends on the input; what does not is computed as it stands."""

    def reader(node: fx.Node, reading: Reading) -> Step:
        if node.op != "call_module" and not any(reading.is_jet(other) for other in node.all_input_nodes):
            return _constant(node)
        step = read(node, reading)
        reading.jets.add(node)
        return step

    return reader


def _constant(node: fx.Node) -> Step:
    def step(values: Values, tensors: Any, wanted: Any, passed: Any) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), lambda other: values[other])
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    return step


_READERS: dict[str, Callable[[fx.Node, Reading], Step]] = {
    "get_attr": _attribute,
    "call_module": _reader(read_layer),
    "call_function": _reader(read_function),
    "call_method": _reader(read_method),
}
