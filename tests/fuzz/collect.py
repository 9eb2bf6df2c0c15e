"""Every case, by name."""

from __future__ import annotations

from functools import cache

from . import (
    afterwards,
    data,
    everyday,
    forwards,
    gradients,
    layers,
    outputs,
    parameters,
    parametrized,
    residuals,
    sequences,
    targets,
    wrappers,
)
from .case import Case

FILES = (
    everyday,
    layers,
    sequences,
    gradients,
    parametrized,
    parameters,
    forwards,
    outputs,
    wrappers,
    data,
    targets,
    residuals,
    afterwards,
)


@cache
def cases() -> dict[str, Case]:
    found = [case for file in FILES for case in file.cases()]
    table = {case.name: case for case in found}
    assert len(table) == len(found), "two cases have one name"
    return table
