"""What a function and a model read besides their arguments, so that a traced copy can be told to be out of date."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable
from typing import Any

import numpy
from torch import Tensor, nn

DEPTH = 5  # functions called by functions called by …
PLAIN = (int, float, complex, str, bytes, bool, type(None))
FOREIGN = ("torch", "numpy", "math", "functools", "builtins")  # their functions do not change


def fingerprint(value: Any, names: tuple[str, ...] = (), depth: int = DEPTH) -> Any:
    """Numbers, tensors and functions that ``value`` holds or reads: closures, defaults, globals, attributes.

    To be compared by ==. Tensors count by identity and version, so that changes in place show. Of objects, classes and
    modules the own attributes count, and those that the code which reads them names. What is hidden deeper than
    ``DEPTH`` is not seen.

    Args:
        names: looked up by the code that reads ``value``.
    """
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor):
        return id(value), value._version, tuple(value.shape)
    if isinstance(value, numpy.ndarray):
        return value.shape, value.tobytes() if value.nbytes <= 4096 else id(value)
    if depth == 0 or isinstance(value, (nn.Module, types.BuiltinFunctionType)):
        return id(value)
    for kind, read in _KINDS.items():
        if isinstance(value, kind):
            return read(value, names, depth)
    return _object(value, names, depth)


def _method(value: types.MethodType, names: tuple[str, ...], depth: int) -> Any:
    inner = _names(value.__func__.__code__) if hasattr(value.__func__, "__code__") else ()
    return fingerprint(value.__func__, names, depth), fingerprint(value.__self__, inner, depth - 1)


def _home(value: Any, names: tuple[str, ...], depth: int) -> Any:
    """A class or a module."""
    home = getattr(value, "__module__", None) or getattr(value, "__name__", "")
    return id(value) if _foreign(home) else (id(value), _attributes(value, names, depth))


def _object(value: Any, names: tuple[str, ...], depth: int) -> Any:
    code = getattr(type(value).__call__, "__code__", None) if callable(value) else None
    inner = (*names, *(_names(code) if code is not None else ()), *getattr(type(value), "__slots__", ()))
    own = fingerprint(vars(value), names, depth - 1) if hasattr(value, "__dict__") else None
    return id(value), own, _attributes(value, inner, depth)


def of_model(model: nn.Module) -> Any:
    """The modules of a model, and the numbers and tensors among their attributes that are not registered."""
    found = []
    for module in model.modules():
        plain = [(k, v) for k, v in vars(module).items() if isinstance(v, PLAIN)]
        hidden = [(k, id(v), v._version) for k, v in vars(module).items() if isinstance(v, Tensor)]
        shared = _attributes(type(module), _names(code), 1) if (code := _forward(module)) is not None else ()
        found.append((id(module), id(type(module)), tuple(plain), tuple(hidden), shared))
    return tuple(found)


def _forward(module: nn.Module) -> types.CodeType | None:
    return None if _foreign(type(module).__module__) else getattr(type(module).forward, "__code__", None)


def _function(fn: types.FunctionType, _: tuple[str, ...], depth: int) -> Any:
    if _foreign(fn.__module__):
        return id(fn)
    cells = []
    for cell in fn.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # a name that is not bound yet
            cells.append(None)
    names = _names(fn.__code__)
    world = [fn.__globals__[name] for name in names if name in fn.__globals__]
    held = [*cells, fn.__defaults__, fn.__kwdefaults__, *world]
    return id(fn.__code__), tuple(fingerprint(item, names, depth - 1) for item in held)


def _attributes(value: Any, names: Iterable[str], depth: int) -> Any:
    """Data among the named attributes, inherited ones and slots included."""
    found = []
    for name in dict.fromkeys(names):
        item = getattr(value, name, None) if isinstance(name, str) and not name.startswith("__") else None
        if isinstance(item, (*PLAIN, Tensor, numpy.ndarray, tuple, list, dict)):
            found.append((name, fingerprint(item, (), depth - 1)))
    return tuple(found)


def _foreign(module: str | None) -> bool:
    return module is not None and module.split(".")[0] in FOREIGN


@functools.lru_cache(maxsize=256)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """Names that a function and the ones defined inside it look up."""
    inner = [name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names(const)]
    return tuple(dict.fromkeys([*code.co_names, *inner]))


# What holds or reads other things -> its fingerprint, from its names and depth.
_KINDS: dict[Any, Callable[[Any, tuple[str, ...], int], Any]] = {
    (tuple, list): lambda value, names, depth: tuple(fingerprint(item, names, depth - 1) for item in value),
    dict: lambda value, names, depth: tuple((str(k), fingerprint(v, names, depth - 1)) for k, v in value.items()),
    functools.partial: lambda value, names, depth: tuple(
        fingerprint(item, names, depth - 1) for item in (value.func, value.args, value.keywords)
    ),
    types.MethodType: _method,
    types.FunctionType: _function,
    (type, types.ModuleType): _home,
}
