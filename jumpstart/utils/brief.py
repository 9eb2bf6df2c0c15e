"""Values in messages: what they are and a few of their numbers, never a whole tensor."""

from __future__ import annotations

from typing import Any

import torch

LENGTH = 80  # characters of anything
NUMBERS = 4  # of a tensor


def brief(value: Any) -> str:
    """A value in a line: tensors and arrays by type, shape, dtype and their first numbers, the rest cut short."""
    if isinstance(value, torch.Tensor) or type(value).__module__.split(".")[0] == "numpy":
        shape = getattr(value, "shape", None)
        if shape is not None and hasattr(value, "dtype"):
            kind = "tensor" if isinstance(value, torch.Tensor) else type(value).__name__
            return f"{kind} of shape {tuple(shape)}, {value.dtype}{_numbers(value)}"
    if isinstance(value, torch.nn.Module):
        return type(value).__name__
    if isinstance(value, dict) and len(value) > NUMBERS:
        return f"{type(value).__name__} with keys {cut(repr(list(value)[:NUMBERS]))} and {len(value) - NUMBERS} more"
    if isinstance(value, (list, tuple)):
        inside = cut(", ".join(brief(entry) for entry in value[:NUMBERS]))
        more = f", … {len(value)} in all" if len(value) > NUMBERS else ""
        return f"[{inside}{more}]" if isinstance(value, list) else f"({inside}{more})"
    try:
        return cut(repr(value))
    except Exception as error:  # a message about a value must not fail for the value's own fault
        return f"{type(value).__name__} (whose repr raises {type(error).__name__})"


def cut(text: str) -> str:
    """The first line of a text, and no more than ``LENGTH`` characters of it."""
    lines = text.splitlines() or [""]
    text = lines[0] + (" …" if len(lines) > 1 else "")
    return text if len(text) <= LENGTH else text[: LENGTH - 1] + "…"


def _numbers(value: Any) -> str:
    if isinstance(value, torch.Tensor) and (value.is_meta or value.layout != torch.strided or value.is_quantized):
        return ""
    try:
        first = value.reshape(-1)[:NUMBERS].tolist()
    except Exception:  # a tensor inside a transform has no numbers to show
        return ""
    count = 1
    for size in value.shape:
        count *= size
    shown = ", ".join(f"{x:.4g}" if isinstance(x, float) else str(x) for x in first)
    return f" ({shown}{', …' if count > NUMBERS else ''})"
