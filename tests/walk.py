"""A newcomer's walk: which files of the package a call passes through, in the order in which it first enters them.

python -m tests.walk            solve, jump, fit and JumpOptimizer.step on a small residual problem
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import jumpstart as js

ROOT = Path(js.__file__).resolve().parent


def passed(call: Callable[[], Any]) -> list[str]:
    """Files of the package that functions are entered in while ``call`` runs, each once, in order."""
    found: dict[str, None] = {}

    def watch(frame: Any, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and ROOT in path.parents and frame.f_code.co_name not in ("<module>", "<lambda>"):
            found.setdefault(str(path.relative_to(ROOT)))

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return list(found)


def objective() -> Any:
    """u'' = −sin x with zero ends, a network of 25 parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.linspace(0, 3, 12, dtype=torch.float64)[:, None]
    ends = x[[0, -1]]
    second = torch.func.hessian
    return js.residual(
        model,
        js.Term(lambda net, z: second(lambda y: net(y)[0])(z)[0] + torch.sin(z), x, name="inside"),
        js.Term(lambda net, z: net(z), ends, name="ends"),
    )


def walks() -> dict[str, list[str]]:
    """For each of the four calls; objectives are built before, and every call has been made once before."""
    found = {}
    for name in ("solve", "jump", "fit", "JumpOptimizer.step"):
        for _ in range(2):
            problem = objective()
            optimizer = js.JumpOptimizer(torch.optim.SGD(problem.model.parameters(), 1e-3), problem, at=1, search=True)
            calls = {
                "solve": lambda problem=problem: js.solve(problem).outputs(1.0),
                "jump": lambda problem=problem: js.jump(problem),
                "fit": lambda problem=problem: js.fit(problem, jumps=3, progress=False),
                "JumpOptimizer.step": optimizer.step,
            }
            found[name] = passed(calls[name])
    return found


if __name__ == "__main__":
    for title, files in walks().items():
        print(f"{title} ({len(files)} files): {' · '.join(name.removesuffix('.py') for name in files)}")
