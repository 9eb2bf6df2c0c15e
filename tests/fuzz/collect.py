"""Every case, by name."""

from __future__ import annotations

from functools import cache

from . import afterwards, data, everyday, forwards, gradients, layers, parametrized, residuals, wrappers
from .case import Case

FILES = (everyday, layers, gradients, parametrized, forwards, wrappers, data, residuals, afterwards)


@cache
def cases() -> dict[str, Case]:
    found = [case for file in FILES for case in file.cases()]
    table = {case.name: case for case in found}
    assert len(table) == len(found), "two cases have one name"
    return table
