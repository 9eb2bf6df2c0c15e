"""jumpstart: skip training steps by solving them.

    import jumpstart as js

    objective = js.supervised(model, inputs, targets, loss="mse")
    solution = js.solve(objective)          # where training would end; changes nothing
    result = js.jump(objective)             # move the weights there, if the real loss agrees
    optimizer = js.JumpOptimizer(torch.optim.AdamW(model.parameters()), objective)

Names are loaded on first use, so that ``import jumpstart`` and ``import jumpstart.optim`` bring nothing that is not
asked for. See docs/theory.md for the equations that docstrings cite.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import (
        bases,
        distributed,
        domains,
        errors,
        features,
        gating,
        gp,
        integrations,
        losses,
        optim,
        trajectory,
        weighting,
    )
    from .comparison.ablate import ablate
    from .comparison.ablation import Ablation
    from .comparison.compare import compare
    from .comparison.contenders import fitted, jumped, jumps_only, lbfgs, stepped
    from .comparison.report import Report
    from .fitting.fit import CollocationWarning, StagnationWarning, fit
    from .fitting.result import FitOutcome, FitResult
    from .flow.horizon import Steps, steps
    from .jumping.jump import JumpResult, jump
    from .jumping.jumper import Jumper
    from .jumping.trust import Outcome, Trust
    from .losses.base import Loss
    from .objectives.loading.sampled import from_loader
    from .objectives.objective import Objective, supervised
    from .objectives.residual import Term, residual
    from .skipping.result import SkipOutcome, SkipResult
    from .skipping.skip import Skipper, skip
    from .solver.solution import Solution
    from .solver.solve import load, solve
    from .training.jump_optimizer import JumpOptimizer
    from .training.proposals.fit_head import HeadResult, fit_head
    from .training.writers import JsonLines, TensorBoard

__version__ = "0.1.0"

# Public name -> the module that defines it.
_DEFINED = {
    "Ablation": "comparison.ablation",
    "ablate": "comparison.ablate",
    "compare": "comparison.compare",
    "fitted": "comparison.contenders",
    "jumped": "comparison.contenders",
    "jumps_only": "comparison.contenders",
    "lbfgs": "comparison.contenders",
    "stepped": "comparison.contenders",
    "Report": "comparison.report",
    "CollocationWarning": "fitting.fit",
    "FitOutcome": "fitting.result",
    "FitResult": "fitting.result",
    "StagnationWarning": "fitting.fit",
    "fit": "fitting.fit",
    "Steps": "flow.horizon",
    "steps": "flow.horizon",
    "JumpResult": "jumping.jump",
    "Jumper": "jumping.jumper",
    "jump": "jumping.jump",
    "Outcome": "jumping.trust",
    "Trust": "jumping.trust",
    "Loss": "losses.base",
    "Objective": "objectives.objective",
    "supervised": "objectives.objective",
    "from_loader": "objectives.loading.sampled",
    "Term": "objectives.residual",
    "residual": "objectives.residual",
    "Solution": "solver.solution",
    "load": "solver.solve",
    "solve": "solver.solve",
    "JumpOptimizer": "training.jump_optimizer",
    "JsonLines": "training.writers",
    "TensorBoard": "training.writers",
    "HeadResult": "training.proposals.fit_head",
    "fit_head": "training.proposals.fit_head",
    "SkipOutcome": "skipping.result",
    "SkipResult": "skipping.result",
    "Skipper": "skipping.skip",
    "skip": "skipping.skip",
}
# Public name -> the module that it is.
_MODULES = {
    "bases": "bases",
    "distributed": "distributed",
    "domains": "domains",
    "errors": "errors",
    "features": "features",
    "gating": "gating",
    "gp": "gp",
    "integrations": "integrations",
    "losses": "losses",
    "optim": "optim",
    "trajectory": "trajectory",
    "weighting": "weighting",
}

__all__ = [
    "Ablation",
    "CollocationWarning",
    "FitOutcome",
    "FitResult",
    "HeadResult",
    "JsonLines",
    "JumpOptimizer",
    "JumpResult",
    "Jumper",
    "Loss",
    "Objective",
    "Outcome",
    "Report",
    "SkipOutcome",
    "SkipResult",
    "Skipper",
    "Solution",
    "StagnationWarning",
    "Steps",
    "TensorBoard",
    "Term",
    "Trust",
    "ablate",
    "bases",
    "compare",
    "distributed",
    "domains",
    "errors",
    "features",
    "fit",
    "fit_head",
    "fitted",
    "from_loader",
    "gating",
    "gp",
    "integrations",
    "jump",
    "jumped",
    "jumps_only",
    "lbfgs",
    "load",
    "losses",
    "optim",
    "residual",
    "skip",
    "solve",
    "stepped",
    "steps",
    "supervised",
    "trajectory",
    "weighting",
]


def __getattr__(name: str) -> Any:
    if name in _DEFINED:
        found = getattr(importlib.import_module(f".{_DEFINED[name]}", __name__), name)
    elif name in _MODULES:
        found = importlib.import_module(f".{_MODULES[name]}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
