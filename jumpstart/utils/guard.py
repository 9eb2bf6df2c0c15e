"""The one way in: whatever is borrowed of the model, the thread and the process is given back whole at the end.

Evaluating a network as a function swaps its parameters out, switches attention kernels and modes, and stacks torch's
transforms up, all of it in Python, where an interrupt may come between any two steps, and much of it for the whole
process. So whoever enters the library passes the guard: the outermost entry remembers, the last thing done is to put
everything back, with signals held (docs/decisions/0018-guard-and-threads.md). One lock for all threads: torch's
forward mode has one level for the whole process, so that two threads inside would spoil each other's derivatives.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch._functorch import eager_transforms
from torch.autograd import forward_ad

from . import threads
from .interrupts import uninterrupted, unwatch, watch

P = ParamSpec("P")
R = TypeVar("R")

_OWN = (*torch.__path__, str(Path(__file__).resolve().parent.parent), contextlib.__file__)
_STANDARD = vars(nn.Module()).keys()  # attributes of every module, none of which is a tensor
WAIT = 0.02  # seconds between looks for an interrupt, while another thread is inside

_lock = threading.RLock()
_current: Entry | None = None  # the innermost entry of the thread that holds the lock


def guarded(about: Callable[..., Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function that evaluates a network: it takes the guard, unless it is called from inside.

    Args:
        about: the function's own arguments -> the module that it is about; anything else stands for none.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def entered(*args: P.args, **kwargs: P.kwargs) -> R:
            model = about(*args, **kwargs)
            if _inside(model):
                return function(*args, **kwargs)
            entry = Entry(model)
            try:
                entry.begin()
                return function(*args, **kwargs)
            except BaseException as error:
                entry.error = error
                raise
            finally:
                try:
                    entry.end()
                except BaseException:
                    entry.end()  # a second interrupt on the way in; nothing is done twice
                    raise
                if (lost := entry.lost()) is not None:
                    raise lost

        return entered

    return decorate


def drawing() -> None:
    """Say that random numbers are drawn from torch's global generators: they go back to where they were found."""
    if _current is not None and _current.thread == threading.get_ident():
        _current.outermost.drew = True


def _inside(model: Any) -> bool:
    entry = _current
    return (
        entry is not None
        and entry.thread == threading.get_ident()
        and (not isinstance(model, nn.Module) or id(model) in entry.known)
    )


class Entry:
    """One way in and out again; an inner one for another model remembers that model alone."""

    def __init__(self, model: Any) -> None:
        self.model = model if isinstance(model, nn.Module) else None
        self.thread = threading.get_ident()
        self.locked, self.over, self.drew = False, False, False
        self.error: BaseException | None = None  # that the function ended with
        self.interrupts: list[BaseException] = []  # that signal handlers raised meanwhile
        self.outer: Entry | None = None
        self.outermost = self
        self.known: set[int] = set()
        self.contents: list[tuple[nn.Module, dict, dict, bool, dict[str, Tensor]]] = []
        self.generators: list[tuple[torch.Generator, Tensor]] = []
        self.process: _Process | None = None

    def begin(self) -> None:
        """Take the lock, remember, and switch."""
        global _current
        while not self.locked:
            with uninterrupted():
                self.locked = _lock.acquire(timeout=WAIT)
        with uninterrupted():
            self.outer = _current
            self.outermost = self if _current is None else _current.outermost
            self.known = set() if _current is None else set(_current.known)
            if self.model is not None:
                self.known.add(id(self.model))
                self.contents = _contents(self.model)
                self.generators = _generators(self.model)
            _current = self
            if self.outer is None:
                self.process = _Process()
                self.process.switch()
                watch(self.interrupts)

    def end(self) -> None:
        """Put everything back, whatever has happened, and release the lock."""
        global _current
        with uninterrupted():
            if self.over or not self.locked:
                return
            troubles: list[Exception] = []
            steps: list[Callable[[], Any]] = []
            if self.process is not None:
                steps += self.process.steps(self.error is not None or bool(self.interrupts))
            steps += [functools.partial(_put_back, *kept) for kept in self.contents]
            if self.outermost.drew or threading.active_count() == 1:  # else it may be another thread's draws
                steps += [functools.partial(_rewind, *kept) for kept in self.generators]
            for step in steps:
                try:
                    step()
                except Exception as error:  # the others are still to be done; raised below
                    troubles.append(error)
            unwatch(self.interrupts)
            if _current is self:
                _current = self.outer
            self.over = True
            _lock.release()
            if troubles:
                raise troubles[0]

    def lost(self) -> BaseException | None:
        """An interrupt that torch's clean-up has replaced or a fallback swallowed; none that the user's code met."""
        for interrupt in reversed(self.interrupts):
            if interrupt is self.error:
                return None
            trace = interrupt.__traceback__
            if trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OWN):
                return interrupt
        return None


def _contents(model: nn.Module) -> list[tuple[nn.Module, dict, dict, bool, dict[str, Tensor]]]:
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


def _put_back(module: nn.Module, parameters: dict, buffers: dict, training: bool, plain: dict[str, Tensor]) -> None:
    for own, kept in ((module._parameters, parameters), (module._buffers, buffers)):
        if not own and not kept:
            continue
        if list(own) != list(kept) or not all(map(operator.is_, own.values(), kept.values())):
            new = {name: value for name, value in own.items() if name not in kept}  # registered on the way
            own.clear()
            own.update({**kept, **new})
    if module.training != training:
        module.training = training
    here = vars(module)
    for name, value in plain.items():
        if here.get(name) is not value:
            here[name] = value


def _generators(model: nn.Module) -> list[tuple[torch.Generator, Tensor]]:
    """The global generators that the model may draw from, and where they are: read, which disturbs nobody."""
    found = [torch.default_generator]
    if torch.cuda.is_initialized():
        places = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
        found += [torch.cuda.default_generators[place] for place in places if place is not None]
    return [(generator, generator.get_state()) for generator in found]


def _rewind(generator: torch.Generator, state: Tensor) -> None:
    if not torch.equal(generator.get_state(), state):
        generator.set_state(state)


class _Process:
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
        self.stacks = _Stacks()

    def switch(self) -> None:
        """Keep to attention kernels that forward mode, second derivatives and vmap know; leave inference mode."""
        if self.inference is not None:
            self.inference.__enter__()
        for _, put, was, wanted in self.switches:
            if was != wanted:
                put(wanted)
        self.threads = threads.narrow()

    def steps(self, failed: bool) -> list[Callable[[], Any]]:
        """What puts it all back, in order, each without need of the others."""
        found: list[Callable[[], Any]] = [self.stacks.unwind] if failed else []  # else torch has done it itself
        if self.inference is not None:
            found.append(lambda: self.inference.__exit__(None, None, None))
        found += [self._modes, self._switches]
        if self.threads is not None:
            found.append(functools.partial(threads.restore, self.threads))
        return found

    def _modes(self) -> None:
        torch.set_grad_enabled(self.grad)
        torch._C._set_fwd_grad_enabled(self.forward_grad)
        if warnings.filters is not self.filters:  # a catch_warnings that was never left
            warnings.filters = self.filters
            warnings._filters_mutated()  # type: ignore[attr-defined]

    def _switches(self) -> None:
        for get, put, was, _ in self.switches:
            if get() != was:
                put(was)


class _Stacks:
    """Levels of transforms and modes that an interrupt inside torch may leave behind (private parts of torch's)."""

    def __init__(self) -> None:
        self.layers = torch._C._functorch.get_dynamic_layer_stack_depth()
        self.in_place = torch._C._functorch.get_inplace_requires_grad_allowed()
        self.dispatch = torch._C._len_torch_dispatch_stack()
        self.function = torch._C._len_torch_function_stack()
        self.nesting = eager_transforms.JVP_NESTING
        self.level = forward_ad._current_level

    def unwind(self) -> None:
        if torch._C._functorch.get_dynamic_layer_stack_depth() > self.layers:
            torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(self.layers)
        torch._C._functorch.set_inplace_requires_grad_allowed(self.in_place)
        while torch._C._len_torch_function_stack() > self.function:
            torch._C._pop_torch_function_stack()
        while torch._C._len_torch_dispatch_stack() > self.dispatch:
            torch._C._pop_torch_dispatch_stack(None)
        eager_transforms.JVP_NESTING = self.nesting
        if self.level == -1:
            forward_ad._current_level = self.level
            with contextlib.suppress(RuntimeError):  # raised where no level of forward mode is open
                torch._C._exit_dual_level(level=0)


def _after_fork() -> None:
    """In a child process the thread that held the lock may not exist."""
    global _lock, _current
    entry = _current
    if entry is not None and entry.thread == threading.get_ident():
        return
    _lock, _current = threading.RLock(), None
    if entry is not None and entry.outermost.process is not None:
        entry.outermost.process._switches()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
