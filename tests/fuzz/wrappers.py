"""Compiled, traced and wrapped modules, and every precision."""

# ruff: noqa: E501, E731  (tables: one case a line)
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .case import Case, D, Data, Fn, batch, floats, mlp

Half, B16, Single = torch.float16, torch.bfloat16, torch.float32


class Twice(nn.Module):
    """Another module, called with other keywords."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)


def wrappers() -> Iterator[Case]:
    small = lambda: mlp().double()
    norm = lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    x = floats(5, 3, seed=1)
    for name, build in (
        ("scripted", lambda: torch.jit.script(small())),
        ("traced", lambda: torch.jit.trace(small(), x)),
        ("traced, frozen weights", lambda: torch.jit.freeze(torch.jit.script(small().eval()))),
        ("a scripted part", lambda: nn.Sequential(torch.jit.script(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)).double()),
        ("scripted BatchNorm", lambda: torch.jit.script(norm())),
        ("compiled, eager", lambda: torch.compile(small(), backend="eager")),
        ("compiled, aot_eager", lambda: torch.compile(small(), backend="aot_eager")),
        ("compiled in place", lambda: compiled(small())),
        ("a compiled part", lambda: nn.Sequential(torch.compile(nn.Linear(3, 4), backend="eager"), nn.Tanh(), nn.Linear(4, 2)).double()),
        ("a compiled function", lambda: Fn(torch.compile(lambda s, x: s.a(x).sin(), backend="eager"), mlp()).double()),
        ("fx", lambda: torch.fx.symbolic_trace(small())),
        ("exported", lambda: torch.export.export(small(), (x,)).module()),
        ("DataParallel", lambda: nn.DataParallel(small())),
        ("a DataParallel part", lambda: nn.Sequential(nn.DataParallel(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)).double()),
        ("AveragedModel", lambda: torch.optim.swa_utils.AveragedModel(small())),
        ("wrapped by hand", lambda: Twice(small())),
        ("forward replaced", lambda: replaced(small())),
        ("a class replaced", lambda: reclassed(small())),
        ("quantized", lambda: torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear}, dtype=torch.qint8)),
        ("meta device", lambda: mlp().to("meta")),
        ("ModuleList", lambda: nn.ModuleList([nn.Linear(3, 2)]).double()),
        ("not a module: a function", lambda: torch.tanh),
        ("deepcopied", lambda: copied(small())),
        ("pickled", lambda: pickled(small())),
        ("share_memory", lambda: small().share_memory()),
    ):  # fmt: skip
        good = name in ("wrapped by hand", "fx", "deepcopied", "pickled", "share_memory", "a class replaced")
        wide = name not in ("quantized", "meta device", "not a module: a function", "exported")
        yield Case(f"wrapped/{name}", build, batch(3), answers=good, wide=wide)


def compiled(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def replaced(model: Any) -> nn.Module:
    old = model.forward
    model.forward = lambda x: 2 * old(x)
    return model


class Louder(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


def reclassed(model: nn.Module) -> nn.Module:
    model.__class__ = Louder
    return model


def copied(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model)


def pickled(model: nn.Module) -> nn.Module:
    import pickle

    return pickle.loads(pickle.dumps(model))


def autocast(dtype: torch.dtype) -> Any:
    def forward(s: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype):
            return s.a(x)

    return forward


def precisions() -> Iterator[Case]:
    for dtype, name in ((Single, "float32"), (Half, "float16"), (B16, "bfloat16")):
        data = batch(3, dtype=dtype)
        good = dtype == Single
        yield Case(
            f"precision/{name}", lambda dtype=dtype: mlp().to(dtype), data, answers=good, coarse=None if good else dtype
        )
        conv = lambda dtype=dtype: nn.Sequential(nn.Conv1d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2)).to(dtype)
        yield Case(
            f"precision/{name} conv", conv, batch(1, 4, dtype=dtype), answers=good, coarse=None if good else dtype
        )
        mixed = lambda dtype=dtype: Fn(
            lambda s, x: s.b(torch.tanh(s.a(x.to(dtype))).to(x.dtype)),
            nn.Linear(3, 4).to(dtype),
            nn.Linear(4, 2).to(Single),
        )
        yield Case(
            f"precision/{name} inside float32",
            mixed,
            batch(3, dtype=Single),
            wide=False,
            coarse=None if good else dtype,
        )
        inner = lambda dtype=dtype: Fn(
            lambda s, x: s.b(torch.tanh(s.a(x)).to(dtype).to(x.dtype)), nn.Linear(3, 4), nn.Linear(4, 2)
        ).double()
        yield Case(f"precision/activations rounded to {name}", inner, batch(3), coarse=dtype)
        if dtype != Single:
            yield Case(
                f"precision/autocast {name} inside",
                lambda dtype=dtype: Fn(lambda s, x: autocast(dtype)(s, x).float(), mlp()),
                batch(3, dtype=Single),
                wide=False,
                coarse=dtype,
            )
            yield Case(
                f"precision/autocast {name} outputs",
                lambda dtype=dtype: Fn(autocast(dtype), mlp()),
                batch(3, dtype=Single),
                wide=False,
                coarse=dtype,
            )
            around = lambda dtype=dtype: torch.autocast("cpu", dtype)
            yield Case(f"precision/autocast {name} outside", mlp, batch(3, dtype=Single), around=around, coarse=dtype)
    both = lambda: Fn(lambda s, x: s.b(torch.tanh(s.a(x).double())), nn.Linear(3, 4), nn.Linear(4, 2).double())
    yield Case("precision/float32 and float64 weights", both, batch(3, dtype=Single), wide=False, coarse=Single)
    yield Case(
        "precision/float64 model, float32 inputs",
        lambda: Fn(lambda s, x: s.a(x.double()), mlp().double()),
        batch(3, dtype=Single),
        answers=True,
    )
    yield Case("precision/float32 weights, float64 inputs", mlp, batch(3), wide=False)
    yield Case("precision/float64 weights, float32 inputs", lambda: mlp().double(), batch(3, dtype=Single), wide=False)
    ints = lambda: Data(torch.arange(15).reshape(5, 3), floats(5, 2, seed=2), torch.ones(2, 3, dtype=torch.long))
    yield Case(
        "precision/integers, cast inside",
        lambda: Fn(lambda s, x: s.a(x.double() / 9), mlp().double()),
        ints,
        answers=True,
    )
    bits = lambda: Data(floats(5, 3, seed=1) > 0, floats(5, 2, seed=2), floats(2, 3) > 0)
    yield Case(
        "precision/booleans, cast inside", lambda: Fn(lambda s, x: s.a(x.double()), mlp().double()), bits, answers=True
    )
    bytes_ = lambda: Data(torch.arange(75, dtype=torch.uint8).reshape(5, 15), floats(5, 2, seed=2))
    yield Case(
        "precision/bytes, cast inside",
        lambda: Fn(lambda s, x: s.a(x.double() / 255), mlp(15).double()),
        bytes_,
        answers=True,
    )
    cplx = lambda: Data(
        torch.complex(floats(5, 3, seed=1), floats(5, 3, seed=4)),
        floats(5, 2, seed=2),
        torch.complex(floats(2, 3), floats(2, 3)),
    )
    yield Case("precision/complex inputs", lambda: Fn(lambda s, x: s.a(x.abs()), mlp().double()), cplx, answers=True)
    yield Case("precision/float8 weights", lambda: mlp().to(torch.float8_e4m3fn), batch(3, dtype=Single), wide=False)
    upcast = lambda: Fn(lambda s, x: F.linear(x, s.w.to(x.dtype)), w=nn.Parameter(floats(2, 3).to(torch.float8_e4m3fn)))
    yield Case("precision/float8 weights, cast inside", upcast, batch(3, dtype=Single), wide=False)


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Overriding(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def setting(get: Any, put: Any, value: Any) -> Iterator[None]:
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


@contextlib.contextmanager
def warnings_raise() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def surroundings() -> Iterator[Case]:
    """What is switched on around the call."""
    act = lambda: nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    for name, around, good in (
        ("no_grad", torch.no_grad, True),
        ("inference_mode", torch.inference_mode, False),
        ("set_grad_enabled(False)", lambda: torch.set_grad_enabled(False), True),
        ("anomaly mode", torch.autograd.detect_anomaly, False),
        ("deterministic algorithms", lambda: setting(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True), True),
        ("default dtype float64", lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.float64), True),
        ("default dtype float16", lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.float16), True),
        ("default device meta", lambda: torch.device("meta"), False),
        ("default device cpu", lambda: torch.device("cpu"), True),
        ("two threads", lambda: setting(torch.get_num_threads, torch.set_num_threads, 2), True),
        ("warnings are errors", warnings_raise, True),
        ("save_on_cpu", torch.autograd.graph.save_on_cpu, False),
        ("saved tensors hooks", lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t), False),
        ("a dispatch mode", Watching, False),
        ("a function mode", Overriding, False),
        ("the profiler", lambda: torch.autograd.profiler.profile(), False),
        ("multithreading off", lambda: torch.autograd.set_multithreading_enabled(False), True),
        ("forward AD", torch.autograd.forward_ad.dual_level, False),
        ("skip_init of modules", lambda: contextlib.nullcontext(), True),
    ):  # fmt: skip
        yield Case(f"around/{name}", act, batch(3), around=around, answers=good)
    made = lambda make: lambda: Data(make(5, 3), floats(5, 2, seed=2), make(3, 3))
    yield Case("around/model made in inference mode", lambda: inference(lambda: act()), batch(3), wide=False)
    yield Case("around/inputs made in inference mode", act, made(lambda *s: inference(lambda: floats(*s))))
    yield Case(
        "around/targets made in inference mode",
        act,
        lambda: Data(floats(5, 3, seed=1), inference(lambda: floats(5, 2)), floats(3, 3)),
    )
    small = lambda: nn.TransformerEncoderLayer(4, 2, 4, 0.0, batch_first=True).double().eval()
    whole = lambda: nn.Sequential(small(), nn.Flatten(), nn.Linear(12, 2)).double().eval()
    for name, around in (("no_grad", torch.no_grad), ("inference_mode", torch.inference_mode)):
        yield Case(f"around/encoder in eval, {name}", whole, batch(3, 4), around=around, answers=name == "no_grad")


def inference(make: Any) -> Any:
    with torch.inference_mode():
        return make()


def cases() -> Iterator[Case]:
    for make in (wrappers, precisions, surroundings):
        yield from make()


assert D is torch.float64
