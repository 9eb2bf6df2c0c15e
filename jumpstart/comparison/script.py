"""A user's own file for ``jumpstart compare`` and ``jumpstart ablate``: a function that makes a problem from a seed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..objectives.objective import Objective
from ..report.names import file_name
from ..utils.brief import brief
from .ablate import variants_of
from .ablation import Ablation
from .contenders import Contender, fitted, jumped, lbfgs, stepped
from .race import Limits
from .seeds import over_seeds

EXAMPLE = """
    import torch
    import jumpstart as js

    x = torch.linspace(-1, 1, 50)[:, None]

    def problem(seed):
        model = torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        return model, lambda net: js.supervised(net, x, (3 * x).sin())
"""
# What is varied where a script does not say: the parts of a jump that can be left out.
VARIANTS: dict[str, Any] = {
    "as it is": {},
    "no second order": {"geodesic": False},
    "loss never rises": {"nonmonotone": False},
    "search over horizons": {"search": "horizon"},
}


class Script:
    """A file with ``problem(seed) -> (model, objective)``, where ``objective(net)`` makes the objective of a copy.

    torch's seed is set before it is called. Besides, the file may have ``evaluate(net)``, further numbers to record;
    ``contenders``, those of a comparison by name, the first the baseline; ``variants``, those of an ablation.

    Raises:
        InputError: there is no such file, or it has no function ``problem``; shows one. What the file itself raises
            comes out as it is.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"{path} is no file: give a Python file with a function such as:\n{EXAMPLE}")
        self.module = _loaded(self.path)
        self.problem: Any = getattr(self.module, "problem", None)
        if not callable(self.problem):
            raise InputError(f"{path} has no function problem(seed): write one, such as:\n{EXAMPLE}")
        self.evaluate = self._perhaps("evaluate", callable, "a function of the model that returns numbers by name")

    def compare(
        self,
        seeds: int | Sequence[int],
        seconds: float,
        steps: int | None = None,
        folder: str | Path | None = None,
        progress: bool | None = None,
    ) -> Ablation:
        """Its contenders, or the usual ones, as ``compare(seeds=…)``."""
        given = self._perhaps("contenders", _table, "contenders by name")
        contenders = usual(seconds, steps) if given is None else dict(given)
        told = {"seconds": seconds, "steps": steps}
        return self._run("compare", contenders, told, seconds, steps, seeds, folder, progress)

    def ablate(
        self,
        seeds: int | Sequence[int],
        seconds: float,
        steps: int | None = None,
        folder: str | Path | None = None,
        progress: bool | None = None,
    ) -> Ablation:
        """Its variants, or those of ``VARIANTS``, as :func:`jumpstart.ablate`."""
        given = self._perhaps("variants", _table, "options of fit by name, the usual ones first")
        contenders, told = variants_of(VARIANTS if given is None else given, seconds, steps)
        return self._run("ablate", contenders, told, seconds, steps, seeds, folder, progress)

    def _run(
        self,
        who: str,
        contenders: Mapping[str, Contender],
        told: Mapping[str, Any],
        seconds: float,
        steps: int | None,
        seeds: int | Sequence[int],
        folder: str | Path | None,
        progress: bool | None,
    ) -> Ablation:
        limits = Limits(dict.fromkeys(contenders, seconds), steps)
        return over_seeds(
            self.start, contenders, limits, told, seeds, evaluate=self.evaluate,
            name=file_name(self.path.stem, who), who=who, folder=folder, progress=progress,
        )  # fmt: skip

    def start(self, seed: int) -> tuple[nn.Module, Callable[[nn.Module], Objective]]:
        """What ``problem(seed)`` returned; torch's random state outside is left alone.

        Raises:
            InputError: it is no pair of a model and a function.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found = self.problem(seed)
        pair = isinstance(found, (tuple, list)) and len(found) == 2
        if not pair or not isinstance(found[0], nn.Module) or isinstance(found[1], Objective) or not callable(found[1]):
            raise InputError(
                f"{self.path}: problem({seed}) returned {brief(found)}; it returns a torch.nn.Module and a function "
                f"that makes the objective of a copy of it, such as:\n{EXAMPLE}"
            )
        return found[0], found[1]

    def _perhaps(self, name: str, fits: Callable[[Any], bool], what: str) -> Any:
        found = getattr(self.module, name, None)
        if found is not None and not fits(found):
            raise InputError(f"{self.path}: {name} is {brief(found)}: {what}.")
        return found


def usual(seconds: float, steps: int | None) -> dict[str, Contender]:
    """Who is compared where a script does not say: two that step, and three ways to jump."""

    def adamw(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=1e-2)

    return {
        "AdamW 0.01": stepped(adamw),
        "L-BFGS": lbfgs(),
        "AdamW 0.01, skipping": jumped(adamw),
        "AdamW 0.01 + jumps": jumped(adamw, at=20, search=True),
        "fit": fitted(**({"budget": seconds} if steps is None else {"jumps": steps})),
    }


def _table(found: Any) -> bool:
    return isinstance(found, Mapping) and bool(found)


def _loaded(path: Path) -> ModuleType:
    """The file as a module of its own name, with its folder on the path as where Python runs it."""
    name = f"_jumpstart_script_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no Python file: its name ends in {path.suffix!r}, not in .py.")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    sys.modules[name] = module  # what is defined there can be looked up by its module, as pickle and dataclasses do
    spec.loader.exec_module(module)
    return module
