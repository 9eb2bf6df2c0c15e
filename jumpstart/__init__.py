"""jumpstart: skip training steps by solving them.

    import jumpstart as js

    objective = js.supervised(model, inputs, targets, loss="mse")
    solution = js.solve(objective)          # where training would end; changes nothing
    result = js.jump(objective)             # move the weights there, if the real loss agrees
    optimizer = js.JumpOptimizer(torch.optim.AdamW(model.parameters()), objective)

See docs/theory.md for the equations that docstrings cite.
"""

import importlib
from typing import Any

from . import bases, errors, gate, losses
from .contenders import fitted, jumped, jumps_only, lbfgs, stepped
from .diagnostics import Report, compare
from .fitting import FitOutcome, FitResult, StagnationWarning, fit
from .horizon import Steps, steps
from .jumping import JumpResult, jump
from .losses import Loss
from .objective import Objective, supervised
from .residual import Term, residual
from .solution import Solution
from .solver import load, solve
from .training import JumpOptimizer
from .trust import Outcome, Trust

__version__ = "0.1.0"

__all__ = [
    "FitOutcome",
    "FitResult",
    "JumpOptimizer",
    "JumpResult",
    "Loss",
    "Objective",
    "Outcome",
    "Report",
    "Solution",
    "StagnationWarning",
    "Steps",
    "Term",
    "Trust",
    "bases",
    "compare",
    "errors",
    "fit",
    "fitted",
    "gate",
    "jump",
    "jumped",
    "jumps_only",
    "lbfgs",
    "load",
    "losses",
    "residual",
    "solve",
    "stepped",
    "steps",
    "supervised",
]


def __getattr__(name: str) -> Any:
    if name == "gp":  # gpytorch is loaded by those who ask for it
        return importlib.import_module(".gp", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
