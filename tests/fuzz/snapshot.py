"""What asking must leave as it was: the module to the bit, and what belongs to everybody in the process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

UNMADE = nn.parameter.UninitializedTensorMixin


class Snapshot:
    """What asking must leave as it was."""

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            model = nn.Identity()  # somebody's mistake, with nothing in it
        modules = model.named_modules()
        self.modules = [(name, m, getattr(m, "training", None), list(parameters(m))) for name, m in modules]
        self.grads = {name: (p.grad, p.requires_grad) for name, p in model.named_parameters()}
        self.kept = {name: grad.clone() for name, (grad, _) in self.grads.items() if grad is not None}
        self.values = {name: value(p) for name, p in model.named_parameters()}
        self.buffers = {name: (b, value(b)) for name, b in model.named_buffers()}
        self.process = process()

    def changes(self, model: nn.Module, weights: bool = True) -> list[str]:
        found = []
        model = model if isinstance(model, nn.Module) else nn.Identity()
        for name, m, training, kept in self.modules:
            if getattr(m, "training", None) != training:
                found.append(f"mode of {name!r}")
            if [(k, id(p)) for k, p in parameters(m)] != [(k, id(p)) for k, p in kept]:
                found.append(f"parameters of {name!r} are other objects")
        for name, p in model.named_parameters():
            grad, wanted = self.grads.get(name, (None, None))
            if p.grad is not grad or p.requires_grad != wanted:
                found.append(f"gradient or requires_grad of {name!r}")
            if grad is not None and not same(grad, self.kept[name]):
                found.append(f"gradient of {name!r} was written to")
            if weights and not same(value(p), self.values.get(name)):
                found.append(f"values of {name!r}")
        for name, b in model.named_buffers():
            if name not in self.buffers or self.buffers[name][0] is not b or not same(value(b), self.buffers[name][1]):
                found.append(f"buffer {name!r}")
        return found + [key for key, now in process().items() if not same(now, self.process[key])]


def parameters(m: nn.Module) -> list[tuple[str, Any]]:
    """A module's own parameters; scripted ones make new objects at every look."""
    return [] if isinstance(m, torch.jit.ScriptModule) else list(m._parameters.items())


def value(tensor: Tensor) -> Tensor:
    return tensor.detach().clone() if not isinstance(tensor, UNMADE) else torch.empty(0)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.is_meta or b.is_meta:
            return a.is_meta and b.is_meta
        return a.shape == b.shape and a.dtype == b.dtype and bits(a).equal(bits(b))
    return bool(a == b)


def bits(tensor: Tensor) -> Tensor:
    """So that NaN equals itself."""
    if tensor.is_quantized or tensor.is_sparse:
        return tensor.to_dense().int_repr() if tensor.is_quantized else tensor.to_dense()
    return tensor.resolve_conj().contiguous().reshape(-1).view(torch.uint8)


def process() -> dict[str, Any]:
    """What belongs to everybody in the process."""
    cuda = torch.backends.cuda
    return {
        "torch's random state": torch.get_rng_state(),
        "Python's random state": random.getstate(),
        "NumPy's random state": np.random.get_state()[1].tobytes(),  # type: ignore[union-attr, index]
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "attention's fast path": torch.backends.mha.get_fastpath_enabled(),
        "attention's kernels": (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()),
        "autocast": torch.is_autocast_enabled("cpu"),
    }


@contextmanager
def default_state_kept() -> Iterator[None]:
    """Whatever a module does to the process is undone before the next case."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    numpy, python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_num_threads(threads)
            torch.set_default_device(None)
            np.random.set_state(numpy)
            random.setstate(python)
