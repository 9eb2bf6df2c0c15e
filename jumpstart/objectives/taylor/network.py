"""A network read off from its forward pass by ``torch.fx``, as a program that jets go through.

Known are the rows of the tables in ``handlers``: linear layers, elementwise functions, sums, products, constants and
concatenation. Anything else raises ``NotFollowed`` with the reason, and the caller takes the general way.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from ...utils.fallback import NotFollowed, described
from .handlers import Reading, read_function, read_layer, read_method
from .program import Program, Step


def trace_network(model: nn.Module) -> Program:
    """The program of a model of one input.

    Raises:
        NotFollowed: control flow, or a layer or function that is not known.
    """
    tracer = fx.Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:  # any code of the model's own runs in there
        raise NotFollowed(f"torch.fx cannot trace the network's forward pass ({described(error)})") from error
    reading = Reading(model, {id(t): name for name, t in [*model.named_parameters(), *model.named_buffers()]})
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
    return lambda values, tensors, wanted, passed: tensors[name]


def _jet(read: Callable[[fx.Node, Reading], Step]) -> Callable[[fx.Node, Reading], Step]:
    """What a reader gives depends on the input."""

    def reader(node: fx.Node, reading: Reading) -> Step:
        step = read(node, reading)
        reading.jets.add(node)
        return step

    return reader


_READERS: dict[str, Callable[[fx.Node, Reading], Step]] = {
    "get_attr": _attribute,
    "call_module": _jet(read_layer),
    "call_function": _jet(read_function),
    "call_method": _jet(read_method),
}
