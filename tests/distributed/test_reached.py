"""Models in shards (FSDP2) whose modules are reached by other ways than as submodules; a group of one process."""

from __future__ import annotations

import weakref
from collections import deque

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import jumpstart as js

from .jobs import data, mlp, near, weights


@pytest.fixture(scope="module", autouse=True)
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Slotted:
    __slots__ = ("module",)

    def __init__(self, module):
        self.module = module


WAYS = {
    "a deque": (lambda module: deque([module]), lambda held: held[0]),
    "a slot": (Slotted, lambda held: held.module),
    "a method": (lambda module: module.forward, lambda held: held),
    "a weak reference": (weakref.ref, lambda held: held()),
    "a view": (lambda module: {0: module}.values(), lambda held: next(iter(held))),
}
MIRRORED = ("a deque", "a slot", "a method")


class Reaching(nn.Module):
    """Keeps its first layer in an attribute, and calls it by that."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 8).double(), nn.Linear(8, 2).double()
        self.held, self.open = WAYS[way][0](self.first), WAYS[way][1]

    def forward(self, x):
        return self.last(torch.tanh(self.open(self.held)(x)))


def sharded(model, part):
    fully_shard(part)
    return fully_shard(model)


def whole(model):
    return torch.cat([p.detach().full_tensor().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("way", WAYS)
def test_a_module_in_an_attribute(way):
    model, one = Reaching(way), Reaching(way)
    sharded(model, model.first)
    if way not in MIRRORED:
        with pytest.raises(js.errors.JumpstartError, match="own FSDPLinear is called from inside of a Reaching"):
            js.jump(js.supervised(model, *data(0, 12)), basis="krylov")
        model(data(0, 12)[0])  # the loop's own calls are as before
        return
    results = [js.jump(js.supervised(net, *data(0, 12)), basis="krylov") for net in (one, model)]
    assert all(result.accepted for result in results)
    assert near(whole(model), weights(one)) < 1e-12


def test_a_module_by_a_global_name():
    global NAMED
    NAMED = mlp(0)
    sharded(NAMED, NAMED[0])
    NAMED[1].register_forward_hook(lambda *args: args[2] + NAMED[0](torch.ones(1, 3, dtype=torch.float64)))
    with pytest.raises(js.errors.JumpstartError, match="a global name"):
        js.supervised(NAMED, *data(0, 12))
