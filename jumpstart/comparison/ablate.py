"""``ablate``: a comparison of variants from the same starts; what each part is worth, seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from torch import nn

from ..errors import InputError
from ..fitting.settings import FitSettings
from ..jumping.jumper import Jumper
from ..objectives.objective import Objective
from ..utils.brief import brief
from .ablation import Ablation
from .contenders import Contender, fitted
from .race import Evaluate, Limits
from .seeds import Start, over_seeds, started

Variant = Mapping[str, Any] | Contender
OPTIONS = {f.name for f in fields(FitSettings)} | Jumper.OPTIONS | {"metric"}


def ablate(
    model: Start,
    objective: Callable[[nn.Module], Objective],
    variants: Mapping[str, Variant],
    *,
    seeds: int | Sequence[int] = 5,
    seconds: float = 10.0,
    steps: int | None = None,
    evaluate: Evaluate | None = None,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> Ablation:
    """Run variants from the same starts, a seed at a time, as :func:`jumpstart.compare` does.

    Args:
        model: a function of the seed, or a module that is copied and whose layers are initialized anew by the seed.
        objective: builds the objective for a copy of the model.
        variants: by name: options of :func:`jumpstart.fit`, or a contender as for ``compare``. The first is what the
            others are compared with.
        seeds: how many, from 0 on, or which.
        seconds, steps, evaluate: of each run, as for ``compare``.
        folder: where each seed's results.json goes, in ``seed-N``; seeds that are there already, of the same variants,
            limits and first loss, are read and not run again. Contenders are told apart by their functions' names.
        progress: a bar with the time left: None on terminals alone.

    Raises:
        InputError: quoting what cannot be compared. ArchiveError: the folder holds other runs.

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> def start(seed):
        ...     torch.manual_seed(seed)
        ...     return torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> from jumpstart import supervised
        >>> found = ablate(start, lambda m: supervised(m, x, x**2),
        ...                {"as it is": {}, "no second order": {"geodesic": False}}, seeds=2, steps=3)
        >>> found.variants
        ['as it is', 'no second order']
    """
    contenders, told = variants_of(variants, seconds, steps)
    limits = Limits(dict.fromkeys(contenders, seconds), steps)
    return over_seeds(
        lambda seed: (started(model, seed, "ablate"), objective), contenders, limits, told, seeds, evaluate=evaluate,
        folder=folder, progress=progress,
    )  # fmt: skip


def variants_of(variants: Any, seconds: float, steps: int | None) -> tuple[dict[str, Contender], dict[str, Any]]:
    """Variants as contenders, and what is asked for in words.

    Raises:
        InputError: quoting what is no variant.
    """
    if not isinstance(variants, Mapping) or not variants:
        raise InputError(f"ablate: variants={brief(variants)}: give options of fit by name, the usual ones first.")
    contenders = {name: _contender(name, variant, seconds, steps) for name, variant in variants.items()}
    told = {"seconds": seconds, "steps": steps, "variants": {name: _text(v) for name, v in variants.items()}}
    return contenders, told


def _contender(name: str, variant: Any, seconds: float, steps: int | None) -> Contender:
    if isinstance(variant, Mapping):
        if unknown := variant.keys() - OPTIONS:
            raise InputError(
                f"ablate: {sorted(unknown)} of {name!r} are no options of fit; there are {sorted(OPTIONS)}."
            )
        ends = {"budget", "jumps", "tolerance"} & variant.keys()
        limit: dict[str, Any] = {} if ends else {"jumps": steps} if steps is not None else {"budget": seconds}
        return fitted(**{**limit, **variant})
    if callable(variant):
        return cast(Contender, variant)
    raise InputError(f"ablate: the variant {name!r} is {brief(variant)}: options of fit, or a contender.")


def _text(variant: Variant) -> str:
    return repr(dict(variant)) if isinstance(variant, Mapping) else getattr(variant, "__qualname__", "contender")
