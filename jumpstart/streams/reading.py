"""What a function reads besides its arguments, so that a traced copy of it can be told to be out of date."""

from __future__ import annotations

import functools
import types
from typing import Any

import numpy
from torch import Tensor, nn

DEPTH = 4  # functions called by functions called by …
PLAIN = (int, float, complex, str, bytes, bool, type(None))


def fingerprint(fn: Any, depth: int = DEPTH) -> Any:
    """Numbers, tensors and functions that ``fn`` reads from closures, defaults, globals or its object.

    To be compared by ==. Tensors count by identity and version (in-place changes show), objects by their attributes.
    What is hidden deeper is not seen.
    """
    if isinstance(fn, PLAIN):
        return fn
    if isinstance(fn, Tensor):
        return id(fn), fn._version, tuple(fn.shape)
    if isinstance(fn, numpy.ndarray):
        return fn.shape, fn.tobytes() if fn.nbytes <= 4096 else id(fn)
    if isinstance(fn, (nn.Module, type, types.ModuleType, types.BuiltinFunctionType)) or depth == 0:
        return id(fn)
    if isinstance(fn, (tuple, list)):
        return tuple(fingerprint(item, depth - 1) for item in fn)
    if isinstance(fn, dict):
        return tuple((str(key), fingerprint(value, depth - 1)) for key, value in fn.items())
    if isinstance(fn, functools.partial):
        return tuple(fingerprint(item, depth - 1) for item in (fn.func, fn.args, fn.keywords))
    if isinstance(fn, types.MethodType):
        return fingerprint(fn.__func__, depth), fingerprint(fn.__self__, depth - 1)
    if isinstance(fn, types.FunctionType):
        if fn.__module__ is not None and fn.__module__.split(".")[0] in ("torch", "numpy", "math"):
            return id(fn)
        cells = []
        for cell in fn.__closure__ or ():
            try:
                cells.append(cell.cell_contents)
            except ValueError:  # a name that is not bound yet
                cells.append(None)
        names = _names(fn.__code__)
        world = [fn.__globals__[name] for name in names if name in fn.__globals__]
        return id(fn.__code__), fingerprint([*cells, fn.__defaults__, fn.__kwdefaults__, *world], depth - 1)
    return (id(fn), fingerprint(vars(fn), depth - 1)) if hasattr(fn, "__dict__") else id(fn)


@functools.lru_cache(maxsize=256)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """Names that a function and the ones defined inside it look up."""
    inner = [name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names(const)]
    return tuple(dict.fromkeys([*code.co_names, *inner]))
