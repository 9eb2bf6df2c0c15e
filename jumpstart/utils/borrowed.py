"""What an evaluation borrows of the model, the thread and the process: as it was found, and how it is put back."""

from __future__ import annotations

import contextlib
import functools
import operator
import traceback
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import eager_transforms
from torch.autograd import forward_ad

from . import threads

_STANDARD = vars(nn.Module()).keys()  # attributes of every module, none of which is a tensor
_functorch: Any = torch._C._functorch  # type: ignore[attr-defined]  # its stack of transforms has no public face

Contents = tuple[nn.Module, dict, dict, bool, dict[str, Tensor]]


def contents(model: nn.Module) -> list[Contents]:
    """What every module holds: parameters, buffers, mode, and tensors that are plain attributes."""
    return [
        (
            module,
            dict(module._parameters),
            dict(module._buffers),
            module.training,
            {name: here[name] for name in here.keys() - _STANDARD if isinstance(here[name], Tensor)},
        )
        for module, here in ((module, vars(module)) for module in model.modules())
        if isinstance(module._parameters, dict)  # not scripted
    ]


def put_back(module: nn.Module, parameters: dict, buffers: dict, training: bool, plain: dict[str, Tensor]) -> None:
    pairs: list[tuple[dict, dict]] = [(module._parameters, parameters), (module._buffers, buffers)]
    for own, kept in pairs:
        if not own and not kept:
            continue
        if list(own) != list(kept) or not all(map(operator.is_, own.values(), kept.values())):
            new = {name: value for name, value in own.items() if name not in kept}  # registered on the way
            own.clear()
            own.update(kept)
            own.update(new)
    if module.training != training:
        module.training = training
    here = vars(module)
    for name, value in plain.items():
        if here.get(name) is not value:
            here[name] = value


def generators(beside: Iterable[Tensor]) -> list[tuple[torch.Generator, Tensor]]:
    """The global generators of the devices of some tensors, and where they are: read, which disturbs nobody."""
    found = [torch.default_generator]
    if torch.cuda.is_initialized():
        places = {t.device.index for t in beside if t.device.type == "cuda"}
        found += [torch.cuda.default_generators[place] for place in places if place is not None]
    return [(generator, generator.get_state()) for generator in found]


def rewind(generator: torch.Generator, state: Tensor) -> None:
    if not torch.equal(generator.get_state(), state):
        generator.set_state(state)


class Process:
    """What of the thread and the process is borrowed, as it was found."""

    def __init__(self) -> None:
        attention = torch.backends.cuda
        self.switches: list[tuple[Callable[[], bool], Callable[[bool], None], bool, bool]] = [
            (get, put, bool(get()), wanted)
            for get, put, wanted in (
                (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled, False),
                (attention.math_sdp_enabled, attention.enable_math_sdp, True),
                (attention.flash_sdp_enabled, attention.enable_flash_sdp, False),
                (attention.mem_efficient_sdp_enabled, attention.enable_mem_efficient_sdp, False),
                (attention.cudnn_sdp_enabled, attention.enable_cudnn_sdp, False),
            )
        ]
        self.grad, self.forward_grad = torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled()
        self.inference: Any = torch.inference_mode(False) if torch.is_inference_mode_enabled() else None
        self.filters = warnings.filters
        self.threads: int | None = None
        self.stacks = Stacks()

    def switch(self) -> None:
        """Keep to attention kernels that forward mode, second derivatives and vmap know; leave inference mode."""
        if self.inference is not None:
            self.inference.__enter__()
        for _, put, was, wanted in self.switches:
            if was != wanted:
                put(wanted)
        self.threads = threads.narrow()

    def steps(self, errors: list[BaseException]) -> list[Callable[[], Any]]:
        """What puts it all back, in order, each without need of the others; without errors, torch has done much."""
        found: list[Callable[[], Any]] = []
        if errors:
            found += [lambda: close_contexts(errors), self.stacks.unwind]
        if self.inference is not None:
            found.append(lambda: self.inference.__exit__(None, None, None))
        found += [self.modes_back, self.switches_back]
        if self.threads is not None:
            found.append(functools.partial(threads.restore, self.threads))
        return found

    def modes_back(self) -> None:
        torch.set_grad_enabled(self.grad)
        torch._C._set_fwd_grad_enabled(self.forward_grad)
        if warnings.filters is not self.filters:  # a catch_warnings that was never left
            warnings.filters = self.filters
            warnings._filters_mutated()  # type: ignore[attr-defined]

    def switches_back(self) -> None:
        for get, put, was, _ in self.switches:
            if get() != was:
                put(was)


def close_contexts(errors: list[BaseException]) -> None:
    """Leave the contexts that errors have come out of half entered or half left, from the inside.

    Their generators would be closed when the error's frames are forgotten, at any time: a level of torch's transforms
    is then taken from whoever works at that time.
    """
    chain: list[BaseException] = []
    for error in errors:
        link: BaseException | None = error
        while link is not None and link not in chain:
            chain.append(link)
            link = link.__context__
    for error in reversed(chain):  # the first one is the innermost
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        for frame in reversed(frames):
            context = frame.f_locals.get("self")
            if isinstance(context, contextlib._GeneratorContextManager):
                with contextlib.suppress(Exception):  # what it says, unwinding mends
                    context.gen.close()


class Stacks:
    """Levels of transforms and modes that an interrupt inside torch may leave behind (private parts of torch's)."""

    def __init__(self) -> None:
        self.layers = _functorch.get_dynamic_layer_stack_depth()
        self.in_place = _functorch.get_inplace_requires_grad_allowed()
        self.dispatch = torch._C._len_torch_dispatch_stack()
        self.function = torch._C._len_torch_function_stack()
        self.nesting = eager_transforms.JVP_NESTING
        self.level = forward_ad._current_level

    def unwind(self) -> None:
        if _functorch.get_dynamic_layer_stack_depth() > self.layers:
            _functorch.pop_dynamic_layer_stack_and_undo_to_depth(self.layers)
        _functorch.set_inplace_requires_grad_allowed(self.in_place)
        while torch._C._len_torch_function_stack() > self.function:
            torch._C._pop_torch_function_stack()
        while torch._C._len_torch_dispatch_stack() > self.dispatch:
            torch._C._pop_torch_dispatch_stack(None)
        eager_transforms.JVP_NESTING = self.nesting
        if self.level == -1:
            forward_ad._current_level = self.level
            with contextlib.suppress(RuntimeError):  # raised where no level of forward mode is open
                torch._C._exit_dual_level(level=0)
