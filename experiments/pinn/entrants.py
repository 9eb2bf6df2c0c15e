"""Who races for time budgets, and with which settings.

What authors choose for each problem (rates, damping, cutoffs) is a grid here, from which
``experiments.pinn.hyperparameters`` chooses on other seeds; until it has, the first of the grid counts. Close
relatives (AdamW and Adam, the two self-scaled methods, points that are drawn anew) share what one of them chose.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from jumpstart.comparison.contenders import Contender
from jumpstart.report import records

from . import rivals
from .equations import Drawn
from .rivals.quasi_newton import EVERY
from .rivals.sampled import Renewal

Setting = dict[str, float]
JUMPS = "jumps"
RENEWED = " renewed"  # what a rival's name ends with that draws its points anew
DECAY = 1e-5  # AdamW's weight decay, as in experiments.pinn.tuning
RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "pinn" / "hyperparameters"


def grid(**values: tuple[float, ...]) -> tuple[Setting, ...]:
    """All combinations, the defaults (first values) first."""
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


@dataclass(frozen=True)
class Entrant:
    """A rival.

    Args:
        make: from an equation at points, the seconds of the run, and a setting.
        settings: what is chosen among, the default first. base: whose choice it starts from.
        planned: its schedule is made for the length of the run, so that it runs anew for each budget.
        linearizes: it needs the objective of jumps, whose building is then part of its time; others are given none.
    """

    make: Callable[[Drawn, float, Setting], Contender]
    settings: tuple[Setting, ...] = ({},)
    base: str | None = None
    planned: bool = False
    linearizes: bool = False


def _first(rival: Callable[..., Contender], **fixed: float) -> Callable[[Drawn, float, Setting], Contender]:
    return lambda drawn, seconds, setting: rival(drawn, setting["rate"], decay=seconds, **fixed)


def _first_anew(rival: Callable[..., Contender]) -> Callable[[Drawn, float, Setting], Contender]:
    return lambda drawn, seconds, setting: rival(
        drawn, setting["rate"], decay=seconds, renewal=Renewal(int(setting["every"]))
    )


def _scaled(method: str, anew: bool = False) -> Callable[[Drawn, float, Setting], Contender]:
    """Adam has at most a share of the run, set for each problem; points are drawn by residual as the authors do."""
    renewal = Renewal(EVERY, by_residual=True) if anew else None
    return lambda drawn, seconds, setting: rivals.self_scaled(drawn, method, setting["adam"] * seconds, renewal)


RATES = grid(rate=(1e-2, 1e-3, 3e-3, 3e-2, 1e-1, 3e-1))
ADAM = grid(adam=(0.1, 0.03, 0.3))
SPRING = grid(damping=(1e-6, 1e-8, 1e-4), momentum=(0.9, 0.5))
ENTRANTS: dict[str, Entrant] = {
    "Adam": Entrant(_first(rivals.adam), RATES, planned=True),
    "Adam renewed": Entrant(_first_anew(rivals.adam), grid(every=(100, 10, 1000)), "Adam", planned=True),
    "AdamW": Entrant(_first(rivals.adamw, weight_decay=DECAY), base="Adam", planned=True),
    "SOAP": Entrant(_first(rivals.soap), RATES, planned=True),
    "SOAP renewed": Entrant(_first_anew(rivals.soap), grid(every=(100, 10, 1000)), "SOAP", planned=True),
    "L-BFGS": Entrant(lambda drawn, *_: rivals.lbfgs(drawn)),
    "SSBroyden": Entrant(_scaled("ssbroyden"), ADAM, planned=True),
    "SSBroyden renewed": Entrant(_scaled("ssbroyden", True), base="SSBroyden", planned=True),
    "SS-BFGS": Entrant(_scaled("ssbfgs"), base="SSBroyden", planned=True),
    "SS-BFGS renewed": Entrant(_scaled("ssbfgs", True), base="SS-BFGS", planned=True),
    "SSBroyden (scimba)": Entrant(
        lambda drawn, seconds, setting: rivals.scimba(drawn, adam=setting["adam"] * seconds),
        base="SSBroyden", planned=True,
    ),
    "torch-LM": Entrant(lambda drawn, *_: rivals.torch_lm(drawn), linearizes=True),
    "torchmin": Entrant(lambda drawn, *_: rivals.least_squares(drawn), linearizes=True),
    "ENG": Entrant(
        lambda drawn, _, setting: rivals.natural_gradient(drawn, setting["rcond"]),
        grid(rcond=(1e-13, 1e-15, 1e-10, 1e-7)), linearizes=True,
    ),
    "ANaGRAM": Entrant(
        lambda drawn, _, setting: rivals.anagram(drawn, setting["cutoff"]),
        grid(cutoff=(1e-5, 1e-7, 1e-6, 1e-4, 1e-3)), linearizes=True,
    ),
    "Nyström": Entrant(
        lambda drawn, _, setting: rivals.nystrom(drawn, setting["factor"], setting["floor"]),
        grid(factor=(10.0,), floor=(1e-4, 1e-6, 1e-2, 1.0)), linearizes=True,
    ),
    "SPRING": Entrant(
        lambda drawn, _, setting: rivals.spring(drawn, setting["damping"], setting["momentum"]),
        SPRING, linearizes=True,
    ),
    "SPRING renewed": Entrant(
        lambda drawn, _, setting: rivals.spring(drawn, setting["damping"], setting["momentum"], Renewal(1)),
        base="SPRING", linearizes=True,
    ),
    "D-NGD": Entrant(
        lambda drawn, _, setting: rivals.dual(drawn, setting["damping"]),
        grid(damping=(1e-6, 1e-10, 1e-8, 1e-4)), linearizes=True,
    ),
}  # fmt: skip
CONTENDERS = (JUMPS, *ENTRANTS)


@functools.cache
def chosen() -> dict[tuple[str, str], Setting]:
    """Settings by problem and rival, from the results of ``experiments.pinn.hyperparameters`` if there are any."""
    if not (RESULTS / records.NAME).is_file():
        return {}
    lines = records.read(RESULTS)["settings"]["chosen"]
    return {(line["problem"], line["contender"]): line["setting"] for line in lines}


def setting(problem: str, name: str) -> Setting:
    """A rival's setting for a problem: chosen, or else the default; with its base's."""
    entrant = ENTRANTS[name]
    own = chosen().get((problem, name), entrant.settings[0])
    return {**({} if entrant.base is None else setting(problem, entrant.base)), **own}
