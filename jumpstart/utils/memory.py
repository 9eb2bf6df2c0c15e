"""How much memory a solve may take."""

from __future__ import annotations

import os

import torch

from .containers import free_memory


def available_memory(device: torch.device) -> float:
    """Half of the memory that is free on the device, or to the container up to its limit, in bytes."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's, to be used again
        return 0.5 * (torch.cuda.mem_get_info(device)[0] + cached)
    try:
        free = float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        free = 2.0**32
    return 0.5 * min(free, free_memory())


ALWAYS = 2.0**28  # bytes that may be taken whatever is free, so that small problems are the same on every machine
FREE = "half of the memory that is free now"


def allowance(device: torch.device, limit: float | None = None) -> float:
    """The bytes that may be taken: the limit where one is given, or else half of what is free."""
    return float(limit) if limit is not None else max(ALWAYS, available_memory(device))
