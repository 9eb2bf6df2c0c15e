"""The guard: what is borrowed comes back whole, after errors, after interrupts at random moments, beside threads."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._functorch import eager_transforms
from torch.autograd import forward_ad

import jumpstart as js
from jumpstart.errors import NondeterministicError
from jumpstart.linearization.linearize import linearize
from jumpstart.utils import guard
from jumpstart.utils.guard import guarded

from ..problems import mlp, randn

X, Y = randn(0, 16, 4), randn(1, 16, 2)
POINTS = randn(2, 12, 4)


def net() -> nn.Module:
    """Norms, buffers, dropout in eval mode amid a model in train mode, and a tensor as plain attribute."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)
    )
    model = model.double().train()
    model[3].eval(), model[4].eval()
    model.mark = torch.zeros(2)
    return model


def switches() -> list[bool]:
    backends = torch.backends.cuda
    return [
        torch.backends.mha.get_fastpath_enabled(), backends.flash_sdp_enabled(), backends.math_sdp_enabled(),
        backends.mem_efficient_sdp_enabled(), backends.cudnn_sdp_enabled(), torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(), torch._C._is_fwd_grad_enabled(),
    ]  # fmt: skip


def stacks() -> list[int]:
    return [
        torch._C._functorch.get_dynamic_layer_stack_depth(), torch._C._len_torch_dispatch_stack(),
        torch._C._len_torch_function_stack(), eager_transforms.JVP_NESTING, forward_ad._current_level,
        torch.get_num_threads(), id(warnings.filters),
    ]  # fmt: skip


class Picture:
    """A model and the process, to be compared with themselves later."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tensors, self.flags = self._tensors(), self._flags()
        self.values = [t.clone() for t in self.tensors]
        self.random = torch.get_rng_state()

    def _tensors(self) -> list[torch.Tensor]:
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        return [t for _, t in named] + [self.model.mark]

    def _flags(self) -> list:
        kinds = [(type(t), t.requires_grad, t.grad is None) for t in self._tensors()]
        return [kinds, [m.training for m in self.model.modules()], switches(), stacks()]

    @property
    def moved(self) -> bool:
        return not all(torch.equal(a, b) for a, b in zip(self.tensors, self.values, strict=True))

    def require_whole(self) -> None:
        here = self._tensors()
        assert len(here) == len(self.tensors)
        assert all(a is b for a, b in zip(here, self.tensors, strict=True)), "other tensors in the model's places"
        assert self._flags() == self.flags
        assert torch.equal(torch.get_rng_state(), self.random)
        assert all(bool(torch.isfinite(t).all()) for t in here)


# -- actions -------------------------------------------------------------------------------------------------------


def objective(model: nn.Module) -> js.Objective:
    return js.supervised(model, X, Y)


def residual(model: nn.Module) -> js.Objective:
    def slope(net, x):
        return torch.func.jacrev(net)(x).diagonal()[:2] - x[:2]

    return js.residual(model, js.Term(slope, POINTS))


def plain() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    model.mark = torch.zeros(2)
    return model


def wrapped(model: nn.Module, optimizer: torch.optim.Optimizer) -> js.JumpOptimizer:
    return js.JumpOptimizer(optimizer, objective(model), at=(), search=True)


def solved(model: nn.Module, _: object) -> js.Solution:
    return js.solve(objective(model), "dense")


# Name -> the model, what is made of it (and of an optimizer that has taken a step), and what is done then.
ACTIONS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Any], Callable[[Any], Any]]] = {
    "objective": (net, lambda model, _: model, objective),
    "residual": (plain, lambda model, _: model, residual),
    "jump": (net, lambda model, _: objective(model), js.jump),
    "jump of a residual": (plain, lambda model, _: residual(model), js.jump),
    "solve": (net, lambda model, _: objective(model), lambda o: js.solve(o, "dense")),
    "krylov": (net, lambda model, _: objective(model), lambda o: js.solve(o, "krylov", depth=4)),
    "check": (net, solved, lambda s: s.check(1.0, X)),
    "predict": (net, solved, lambda s: s.predict(X, 1.0)),
    "risk": (net, solved, lambda s: s.best_horizon()),
    "fit": (net, lambda model, _: objective(model), lambda o: js.fit(o, jumps=3, progress=False)),
    "optimizer": (net, wrapped, lambda o: o.jump()),
}


def interrupts(count: int, seed: int) -> dict[str, int]:
    """Interrupt every action at random moments; everything is whole afterwards. Returns how it went."""
    source, told = random.Random(seed), dict.fromkeys(("interrupted", "finished", "moved"), 0)
    names, duration = list(ACTIONS), {}

    def ring(*_: object) -> None:
        raise KeyboardInterrupt

    before, ctrl_c = signal.signal(signal.SIGALRM, ring), signal.getsignal(signal.SIGINT)
    try:
        for turn in range(-len(names), count):  # the first turns are timed, and import what torch imports late
            name = names[turn % len(names)]
            make, prepare, act = ACTIONS[name]
            model = make()
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
            nn.functional.mse_loss(model(X), Y).backward()
            optimizer.step()
            optimizer.zero_grad()
            subject, measure = prepare(model, optimizer), objective(model)
            start, seen = measure.value(measure.theta()), Picture(model)
            begun = time.perf_counter()
            try:
                if turn >= 0:
                    signal.setitimer(signal.ITIMER_REAL, source.uniform(1e-4, duration[name]))
                act(subject)
                signal.setitimer(signal.ITIMER_REAL, 0)
                duration[name] = min(duration.get(name, 1e9), time.perf_counter() - begun)
                told["finished"] += turn >= 0
            except KeyboardInterrupt:
                told["interrupted"] += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            seen.require_whole()
            assert all({"exp_avg", "exp_avg_sq", "step"} == set(optimizer.state[p]) for p in model.parameters()), name
            assert all(bool(torch.isfinite(t).all()) for s in optimizer.state.values() for t in s.values()), name
            if seen.moved:  # by a jump that was accepted, whole
                told["moved"] += turn >= 0
                assert "jump" in name or name in ("fit", "optimizer"), name
                if "residual" not in name:
                    assert measure.value(measure.theta()) < start, name
            if isinstance(subject, js.Objective):  # what was half found out is found out again
                fresh = (residual if "residual" in name else objective)(model)
                assert subject.value(fresh.theta()) == fresh.value(fresh.theta()), name
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    print(f"{count} alarms at random moments over {len(names)} actions: {told}")
    assert signal.getsignal(signal.SIGINT) is ctrl_c
    return told


def test_interrupts_leave_everything_whole():
    told = interrupts(33, 0)
    assert told["interrupted"] > 10


@pytest.mark.slow
def test_a_thousand_interrupts_leave_everything_whole():
    told = interrupts(1500, 1)
    assert told["interrupted"] >= 1000


@pytest.mark.parametrize("where", ["swapped", "levels"])
def test_an_interrupt_in_the_worst_places(monkeypatch, where):
    """Inside the swap of parameters, between its halves; and where torch has opened a level of forward mode."""
    model = net()
    o, real = objective(model), torch.nn.utils.stateless.NamedMemberAccessor.swap_tensors_dict
    enter = eager_transforms.enter_jvp_nesting

    def half(self, tensors, allow_missing=False):
        real(self, dict(list(tensors.items())[:3]), allow_missing)
        raise KeyboardInterrupt

    def late():
        enter()
        forward_ad.enter_dual_level()
        forward_ad._current_level = -1
        raise KeyboardInterrupt

    seen, expected = Picture(model), linearize(o).jvp(o.theta())
    with monkeypatch.context() as patched:
        if where == "swapped":
            patched.setattr(torch.nn.utils.stateless.NamedMemberAccessor, "swap_tensors_dict", half)
        else:
            patched.setattr(eager_transforms, "enter_jvp_nesting", late)
        with pytest.raises(KeyboardInterrupt):
            linearize(o).jvp(o.theta())
    seen.require_whole()
    assert not seen.moved
    assert torch.equal(linearize(o).jvp(o.theta()), expected)
    assert js.jump(o).accepted


@pytest.fixture
def ctrl_c():
    """Python's own handler, also where the shell that started the tests has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("where", ["torch", "fallback", "user"])
def test_an_interrupt_is_not_lost_to_errors_over_it(monkeypatch, ctrl_c, where):
    """Torch's clean-up raises over it, a fallback swallows that: it comes out all the same, unless the user met it."""
    model, met = net(), []
    real = eager_transforms._grad_increment_nesting

    def interrupted():
        met.append(where)
        if len(met) == (2 if where == "fallback" else 1):
            signal.raise_signal(signal.SIGINT)  # before the level is there, which is then closed in vain
        return real()

    class Calm(nn.Linear):
        def forward(self, x):
            try:
                if not met:
                    met.append(where)
                    signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                met.append("kept")
            return super().forward(x)

    if where == "user":
        assert js.jump(js.supervised(Calm(4, 2).double(), X, Y)).accepted
        assert met == ["user", "kept"]
        return
    model[3].train(False)
    o = objective(model)
    lin, seen = linearize(o), Picture(model)
    with monkeypatch.context() as patched:
        patched.setattr(eager_transforms, "_grad_increment_nesting", interrupted)
        with pytest.raises(KeyboardInterrupt):
            linearize(o) if where == "torch" else lin.jacobian()
    assert (len(met) > 2) == (where == "fallback")  # it had gone on
    seen.require_whole()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("level", ["grad_increment_nesting", "vmap_increment_nesting"])
def test_an_interrupt_as_a_level_is_entered(monkeypatch, ctrl_c, level):
    """Its context hangs on the interrupt's frames; forgetting these later takes no level from others."""
    model = plain()
    o, done = residual(model), []
    seen = Picture(model)

    def entered(self):
        value = next(self.gen)
        if self.gen.__name__ == level and not done:
            done.append(level)
            signal.raise_signal(signal.SIGINT)
        return value

    def forgetting(x):
        caught.clear()
        gc.collect()
        return (x**3).sum()

    caught = []
    with monkeypatch.context() as patched:
        patched.setattr(contextlib._GeneratorContextManager, "__enter__", entered)
        try:
            js.jump(o)
        except KeyboardInterrupt as error:
            caught.append(error)
    assert done
    assert caught
    seen.require_whole()
    assert torch.equal(torch.func.grad(forgetting)(torch.ones(3)), 3 * torch.ones(3))
    seen.require_whole()


def test_a_second_interrupt_while_giving_back(monkeypatch):
    model = net()
    seen, end, tried = Picture(model), guard.Entry.end, []

    def interrupted(self):
        tried.append(self)
        if len(tried) == 1:
            raise KeyboardInterrupt
        end(self)

    monkeypatch.setattr(guard.Entry, "end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        js.supervised(model, X, Y)
    seen.require_whole()
    assert guard._current is None


# -- modes and random numbers --------------------------------------------------------------------------------------


def test_under_inference_mode_and_no_grad():
    model = net()
    expected = js.solve(objective(model)).outputs(1.0)
    o = objective(model)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            seen = Picture(model)
            found = js.solve(o)
            assert torch.allclose(found.outputs(1.0), expected)
            assert found.check(0.1).train.error < 0.1
            seen.require_whole()


class Seeded(nn.Module):
    """Noise with a seed of its own, drawn from the global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()
        self.mark = torch.zeros(1)

    def forward(self, x):
        torch.manual_seed(7)
        return self.inner(x + 0.1 * torch.randn(x.shape, dtype=x.dtype))


@pytest.mark.parametrize("alone", [True, False])
def test_a_model_that_draws_leaves_the_generator_as_it_was(alone):
    """Also where other threads live, so that a changed state alone would not say who drew."""
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    if not alone:
        other.start()
    try:
        model = Seeded()
        torch.manual_seed(3)
        seen = Picture(model)
        o = objective(model)
        js.solve(o).check(1.0)
        js.jump(o)
        model.inner[4].train()
        with pytest.raises(NondeterministicError):
            js.jump(js.supervised(model.inner, X, Y))
        model.inner[4].eval()
        seen.require_whole()
    finally:
        stop.set()


def test_draws_of_another_thread_are_its_own():
    """A model that draws nothing moves no generator: what another thread drew meanwhile stays drawn."""
    wanted, drawn, state = threading.Event(), threading.Event(), []

    class Waiting(nn.Linear):
        def forward(self, x):
            if not drawn.is_set():
                wanted.set()
                assert drawn.wait(20)
            return super().forward(x)

    def draw():
        wanted.wait(20)
        torch.rand(5)
        state.append(torch.get_rng_state())
        drawn.set()
        time.sleep(0.5)  # alive when the guard ends

    thread = threading.Thread(target=draw)
    thread.start()
    js.supervised(Waiting(4, 2).double(), X, Y)
    assert torch.equal(torch.get_rng_state(), state[0])
    thread.join()


# -- threads -------------------------------------------------------------------------------------------------------


def pairs(count: int) -> int:
    """Two threads at a time jump different models, while a third draws; everything is as before after each pair."""

    def work(seed: int, model: nn.Module, found: list) -> None:
        x = randn(seed, 24, 4)
        try:
            o = js.supervised(model, x, x.sum(1, keepdim=True).sin())
            found += [js.jump(o).actual, js.solve(o, "krylov", depth=3).check(0.1).train.error]
        except BaseException as error:
            found.append(error)

    def model(seed: int) -> nn.Module:
        made = mlp(seed, 4, 8, 1)
        made.mark = torch.zeros(1)
        return made

    starts, expected = [model(0), model(1)], [[], []]
    for seed, alone in enumerate(expected):
        work(seed, copy.deepcopy(starts[seed]), alone)
    interval, draws, stop, repeats = sys.getswitchinterval(), [], threading.Event(), 0

    def draw() -> None:
        while not stop.wait(0):
            draws.append(tuple(torch.rand(4).tolist()))

    sys.setswitchinterval(1e-4)
    drawer = threading.Thread(target=draw)
    drawer.start()
    try:
        for _ in range(count):
            models, found = [copy.deepcopy(start) for start in starts], [[], []]
            before = [Picture(m) for m in models]
            threads = [threading.Thread(target=work, args=(i, models[i], found[i])) for i in (0, 1)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert found == expected, (found, expected)
            for picture in before:
                picture.random = torch.get_rng_state()  # the drawer's
                stop.wait(0)
                assert picture._flags() == picture.flags, (picture._flags(), picture.flags)
                assert all(a is b for a, b in zip(picture._tensors(), picture.tensors, strict=True))
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        drawer.join()
    repeats = len(draws) - len(set(draws))
    print(f"{count} pairs of threads, {repeats} of {len(draws)} draws of another thread repeated")
    return repeats


def test_pairs_of_threads():
    assert pairs(4) == 0


@pytest.mark.slow
def test_a_hundred_pairs_of_threads():
    assert pairs(100) == 0


def test_a_child_process_does_not_wait_for_a_thread_that_it_lacks():
    inside, leave = threading.Event(), threading.Event()

    def hold():
        guarded(lambda: None)(lambda: (inside.set(), leave.wait(20)))()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(20)
    assert not torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads
        child = os.fork()
    if child == 0:
        good = torch.backends.mha.get_fastpath_enabled() and guarded(lambda: None)(lambda: True)()
        os._exit(0 if good else 1)
    end = time.monotonic() + 20
    while (status := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
        time.sleep(0.01)
    leave.set()
    thread.join()
    assert status == (child, 0)
