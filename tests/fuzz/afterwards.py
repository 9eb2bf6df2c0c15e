"""What changes between a solution and the questions to it; answers stay about what was solved, or are refused."""

# ruff: noqa: E501, E731  (tables: one case a line)
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import jumpstart as js

from .case import Case, D, Data, Fn, batch, floats, mlp


def train_on(model: nn.Module, data: Data) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(5):
        optimizer.zero_grad()
        F.mse_loss(model(data.inputs), data.targets).backward()
        optimizer.step()


def norm() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    model(floats(9, 3, seed=6))
    return model


def written(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(floats(*tensor.shape, seed=77))


def frozen_first() -> nn.Module:
    model = mlp().double()
    model[0].requires_grad_(False)
    return model


def moved_first(model: Any, data: Data) -> None:
    written(model[0].weight)


def changed_attribute(model: Any, data: Data) -> None:
    model.k = 5.0


def cases() -> Iterator[Case]:
    plain = lambda: mlp().double()
    scaled = lambda: Fn(lambda s, x: s.k * s.a(x), mlp(), k=1.0).double()
    masked = lambda: Fn(lambda s, x: s.a(x * s.m), mlp(), m=nn.Buffer(torch.ones(3, dtype=D))).double()
    later: tuple[tuple[str, Callable[[], nn.Module], Callable[[Any, Data], Any], dict[str, Any]], ...] = (
        ("the model trains on", plain, train_on, {}),
        ("the model trains on, part of it solved", plain, train_on, {"params": "2"}),
        ("BatchNorm trains on", norm, train_on, {"training": False}),
        ("BatchNorm in train mode trains on", norm, train_on, {}),
        ("BatchNorm is put in eval", norm, lambda m, d: m.eval(), {}),
        ("a frozen weight is written to", frozen_first, moved_first, {}),
        ("a weight is written to", plain, moved_first, {}),
        ("a buffer is written to", masked, lambda m, d: written(m.m), {}),
        ("a buffer is replaced", masked, lambda m, d: setattr(m, "m", floats(3)), {}),
        ("an attribute is changed", scaled, changed_attribute, {}),
        ("inputs are overwritten", plain, lambda m, d: written(d.inputs), {}),
        ("inputs are overwritten through data", plain, lambda m, d: d.inputs.data.mul_(3), {}),
        ("targets are overwritten", plain, lambda m, d: written(d.targets), {}),
        ("queries are overwritten", plain, lambda m, d: None, {}),
        ("weights are frozen", plain, lambda m, d: m.requires_grad_(False), {}),
        ("weights are zeroed", plain, lambda m, d: [p.data.zero_() for p in m.parameters()], {}),
        ("weights are replaced", plain, lambda m, d: setattr(m[0], "weight", nn.Parameter(floats(5, 3))), {}),
        ("a layer is replaced", plain, lambda m, d: m.__setitem__(0, nn.Linear(3, 5).double()), {}),
        ("a layer is widened", plain, lambda m, d: (m.__setitem__(0, nn.Linear(3, 8).double()), m.__setitem__(2, nn.Linear(8, 2).double())), {}),
        ("an activation is replaced", plain, lambda m, d: m.__setitem__(1, nn.ReLU()), {}),
        ("the model becomes float32", plain, lambda m, d: m.float(), {}),
        ("the model is cast and back", plain, lambda m, d: m.half().double(), {}),
        ("the model goes to meta", plain, lambda m, d: m.to("meta"), {}),
        ("a hook is registered", plain, lambda m, d: m[0].register_forward_hook(lambda m, i, o: 2 * o), {}),
        ("a parametrization is registered", plain, lambda m, d: parametrizations.weight_norm(m[0]), {}),
        ("gradients are left", plain, lambda m, d: F.mse_loss(m(d.inputs), d.targets).backward(), {}),
        ("the model is in train mode again", lambda: nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5), nn.Linear(5, 2)).double().eval(), lambda m, d: m.train(), {}),
        ("another solve", plain, lambda m, d: js.solve(js.supervised(m, d.inputs, -d.targets)).outputs(1.0), {}),
        ("a jump", plain, lambda m, d: js.jump(js.supervised(m, d.inputs, d.targets)), {}),
        ("a jump with BatchNorm", norm, lambda m, d: js.jump(js.supervised(m, d.inputs, d.targets)), {}),
        ("the default dtype changes", plain, lambda m, d: torch.set_default_dtype(torch.float16), {}),
        ("the default device changes", plain, lambda m, d: torch.set_default_device("meta"), {}),
    )  # fmt: skip
    for name, build, change, options in later:
        good = name in (
            "gradients are left",
            "another solve",
            "a jump",
            "the default dtype changes",
            "the model trains on",
        )
        build_ = build
        if options.get("training") is False:
            build_ = lambda build=build: build().eval()
            change = lambda m, d, change=change: (m.train(), change(m, d))
        if "params" in options:  # and so that the oracle freezes what is not solved for
            yield Case(
                f"later/{name}", frozen_first, batch(3), later=lambda m, d: (m.requires_grad_(True), train_on(m, d))
            )
            continue
        yield Case(f"later/{name}", build_, batch(3), later=change, options=options, answers=good)
    for name, change in (
        ("inputs are overwritten", lambda m, d: written(d.inputs[0])),
        ("a shared table is overwritten", lambda m, d: written(d.inputs[1])),
    ):
        table = lambda: Data((floats(5, 3, seed=1), floats(3, 3)), floats(5, 2, seed=2), (floats(2, 3), floats(3, 3)))
        yield Case(f"later/{name}, tuple", lambda: Fn(lambda s, x, w: s.a(x @ w), mlp()).double(), table, later=change)
    classes = lambda: Data(floats(5, 3, seed=1), torch.tensor([0, 1, 1, 0, 1]), floats(3, 3))
    yield Case("later/classes are overwritten", plain, classes, "cross_entropy", later=lambda m, d: d.targets.zero_())
    half = lambda u, y: 0.5 * u.square().sum()
    at = lambda: Data(floats(6, 2, seed=5), None)
    ask = lambda m, d: js.residual(m, js.Term(lambda u, x: u(x) - x.sum(), d.inputs))
    rows = lambda m, x: m(x)[:, 0] - x.sum(1)
    for name, change in (
        ("points are overwritten", lambda m, d: written(d.inputs)),
        ("weights are zeroed", lambda m, d: [p.data.zero_() for p in m.parameters()]),
    ):
        yield Case(
            f"later/{name}, residual",
            lambda: mlp(2, 5, 1).double(),
            at,
            "residual",
            objective=ask,
            outputs=rows,
            phi=half,
            later=change,
        )
