"""Low-discrepancy points: a scrambled Sobol sequence, mapped, and drawn on until enough points are accepted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from ..errors import InputError

Candidates = Callable[[NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]  # of the unit cube -> points, accepted

BITS = 52  # of a coordinate; 30, the default, is too coarse for a cube that is shared out among many pieces
HALF = 2.0 ** -(BITS + 1)  # half a cell: no coordinate is exactly 0 or 1, so that points do not lie on the boundary
BLOCK = 2**10, 2**17  # least and most points drawn at once
PATIENCE = 2**16  # candidates after which a set that hardly accepts any is given up
LEAST = 1e-4  # share of accepted candidates below which it is
SHARE = 2**14  # candidates that a share is measured by, and as many again until half as many are accepted
_SEED = "rng" if "rng" in inspect.signature(qmc.Sobol).parameters else "seed"  # scipy's name for it changed


def sequence(cube: int, seed: int) -> qmc.Sobol:
    """The scrambled Sobol sequence of a seed, in as many coordinates as a set needs (a single point needs none)."""
    options: dict[str, Any] = {_SEED: np.random.default_rng(seed)}
    return qmc.Sobol(max(cube, 1), scramble=True, bits=BITS, **options)


def draw(candidates: Candidates, cube: int, count: int, seed: int, what: str) -> NDArray[Any]:
    """The first ``count`` accepted points; fewer of the same seed are the first of more.

    Raises:
        InputError: hardly any candidate is accepted.
    """
    engine = sequence(cube, seed)
    block = min(max(1 << (count - 1).bit_length(), BLOCK[0]), BLOCK[1])  # a power of two: balanced
    found, have, tried = [], 0, 0
    while have < count:
        x, accepted = candidates(engine.random(block) + HALF)
        found.append(x[accepted])
        have, tried = have + len(found[-1]), tried + block
        if have < count and tried >= PATIENCE and have < LEAST * tried:
            raise InputError(_nowhere(what, have, tried))
    return np.concatenate(found)[:count]


def share(candidates: Candidates, cube: int, what: str) -> float:
    """The share of candidates that are accepted, of the first 16,384 or, where few are, of up to 16 times as many.

    Raises:
        InputError: hardly any candidate is accepted.
    """
    engine, accepted, tried = sequence(cube, 0), 0, 0
    while accepted < SHARE / 2 and tried < 16 * SHARE:
        accepted += int(candidates(engine.random(SHARE) + HALF)[1].sum())
        tried += SHARE
    if accepted < LEAST * tried:
        raise InputError(_nowhere(what, accepted, tried))
    return accepted / tried


def shared_out(weights: Sequence[float] | NDArray[Any], u: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Which piece each number of (0, 1) goes to, in proportion to weights, and its place in (0, 1) of that piece."""
    edges = np.concatenate([[0.0], np.cumsum(weights)])
    edges /= edges[-1]
    which = np.clip(np.searchsorted(edges, u, side="right") - 1, 0, len(edges) - 2)
    place = (u - edges[which]) / (edges[which + 1] - edges[which])
    return which, np.clip(place, HALF, 1 - HALF)


def _nowhere(what: str, have: int, tried: int) -> str:
    return (
        f"no points are found in {what}: {have} of {tried:,} candidates lie in it, fewer than one in 10,000. It is "
        "empty, or of measure zero, or tiny beside the sets that it is made of. For a face use box.face(axis, side) "
        "or .boundary(); for a small set begin with a small Box around it."
    )
