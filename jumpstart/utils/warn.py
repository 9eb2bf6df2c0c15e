"""Warnings that point at the caller's own line, however many frames of ours and of torch's are in between."""

from __future__ import annotations

import os
import sys
import warnings

import torch

_OURS = tuple(os.path.join(os.path.dirname(path), "") for path in (os.path.dirname(__file__), torch.__file__))


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the innermost frame outside this package and torch, so that once a line means once a line of theirs."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
