"""jumpstart on a case, every answer against the oracle: right, refused by name, or a fault."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import jumpstart as js
from jumpstart import errors

from .case import Case, Data
from .oracle import Oracle, Ran, close, reals, trainable
from .snapshot import UNMADE, Snapshot, default_state_kept

RIGHT, REFUSED, WARNED, SILENT, RAW, UNDUE = "right", "refused", "warned", "SILENT", "RAW", "UNDUE"
FAULTS = (SILENT, RAW, UNDUE)
INTEGRATED = 1e-5  # of flows that are integrated: jumpstart's local error is 1e-8, and kinks cost a power
LONGEST = 1200  # letters of a message; whole tensors are longer

# (rtol of the movement, atol of the outputs) by the coarsest arithmetic
TOLERANCES = {
    torch.float64: (1e-6, 1e-10),
    torch.float32: (2e-3, 2e-5),
    torch.float16: (5e-2, 1e-2),
    torch.bfloat16: (2e-1, 5e-2),
}


@dataclass
class Check:
    """One question and how it ended."""

    what: str
    status: str
    detail: str = ""


@dataclass
class Verdict:
    """A case's checks; its status is a fault where there is one, else how the first solution ended."""

    name: str
    checks: list[Check] = field(default_factory=list)
    oracle: str = "has an answer"
    seconds: float = 0.0

    @property
    def status(self) -> str:
        found = [check.status for check in self.checks]
        for fault in (RAW, SILENT, UNDUE):
            if fault in found:
                return fault
        main = [check.status for check in self.checks if check.what in ("objective", "solve", "outputs")]
        for status in (REFUSED, WARNED):
            if status in main:
                return status
        return RIGHT

    @property
    def faults(self) -> list[Check]:
        return [check for check in self.checks if check.status in FAULTS]

    def __str__(self) -> str:
        lines = [f"{self.status:<8} {self.name}  [{self.oracle}] {self.seconds:.2f} s"]
        return "\n".join([*lines, *(f"    {c.status:<8} {c.what:<24} {c.detail}" for c in self.checks)])


def brief(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text.splitlines()[0][:300] if text else ''}"


class Trial:
    """Asks jumpstart everything about one case."""

    def __init__(self, case: Case) -> None:
        self.case, self.verdict = case, Verdict(case.name)
        self.warned = self.kinked = False  # kinks are told once an objective

    def run(self) -> Verdict:
        begun = time.perf_counter()
        with warnings.catch_warnings(), default_state_kept():
            warnings.simplefilter("ignore")
            self.oracle = Oracle(self.case)
            self.verdict.oracle = self.oracle.trouble or ("F differs from G" if self.oracle.differ else "linear")
            try:
                self._solutions()
                self._jump()
            except Exception as error:  # of this file
                where = traceback.extract_tb(error.__traceback__)[-1]
                self._say("trial", RAW, f"{brief(error)} at {where.filename.split('/')[-1]}:{where.lineno}")
        self.verdict.seconds = time.perf_counter() - begun
        return self.verdict

    def _say(self, what: str, status: str, detail: str = "") -> None:
        self.verdict.checks.append(Check(what, status, detail))

    def attempt(self, what: str, do: Callable[[], Any]) -> tuple[bool, Any]:
        """Whether it went through, and what came of it; a refusal is noted, and so is an exception of torch's."""
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                with self.case.around():
                    found = do()
            self.kinked = self.kinked or any(issubclass(w.category, errors.KinkWarning) for w in seen)
            self.warned = self.kinked or any(w.category.__module__.startswith("jumpstart") for w in seen)
            return True, found
        except errors.JumpstartError as error:
            undue = self.case.answers and self.oracle.trouble is None
            self._say(what, UNDUE if undue else REFUSED, brief(error))
            if "tensor([" in str(error) or len(str(error)) > LONGEST or not str(error):
                self._say(what, RAW, f"a message of {len(str(error))} letters, with whole tensors in it or empty")
        except Exception as error:
            self._say(what, RAW, brief(error))
        return False, None

    def _tolerances(self) -> tuple[float, float]:
        kinds = [self.model_dtype, self.oracle.coarse, self.case.coarse or torch.float64]
        coarse = max((k for k in kinds if k in TOLERANCES), key=lambda k: torch.finfo(k).eps)
        rtol, atol = TOLERANCES[coarse]
        rtol = rtol if self.case.loss in ("mse", "residual") else max(rtol, INTEGRATED)
        return (max(rtol, 1e-4), max(atol, 1e-8)) if self.oracle.differ else (rtol, atol)

    def _compare(self, what: str, got: Any, want: Tensor, base: Tensor, bound: float = 0.0) -> None:
        miss = close(got, want, base, *self._tolerances(), bound) if isinstance(got, Tensor) else float("nan")
        if miss is None:
            self._say(what, RIGHT)
        elif not isinstance(got, Tensor) or got.shape != want.shape:
            shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
            self._say(what, SILENT, f"shape {shape}, not {tuple(want.shape)}")
        else:
            self._say(what, WARNED if self.warned else SILENT, f"off by {miss:.2g} of the movement")

    # -- solutions ---------------------------------------------------------------------------------------------

    def _solutions(self) -> None:
        model, data = self.case.model(), self.case.data()
        self.model_dtype = max(
            (p.dtype for p in trainable(model).values() if p.dtype in TOLERANCES),
            key=lambda k: torch.finfo(k).eps,
            default=torch.float64,
        )
        for p in list(model.parameters())[:1] if isinstance(model, nn.Module) else ():
            if p.requires_grad and p.dtype in TOLERANCES and not isinstance(p, UNMADE):
                p.grad = torch.full_like(p, 0.25)  # somebody's gradient, to be left alone
        before = Snapshot(model)
        done, objective = self.attempt("objective", lambda: self.case.ask(model, data))
        for basis in ("auto", "dense", "krylov") if done else ():
            if self.case.later is not None and basis != "auto":  # each on a model of its own
                torch.set_default_dtype(torch.float32)
                torch.set_default_device(None)
                model, data = self.case.model(), self.case.data()
                done, objective = self.attempt("objective", lambda: self.case.ask(model, data))  # noqa: B023
            if done:
                self._solution(model, data, objective, basis)
        self._left_alone("left alone by solve", before.changes(model))

    def _solution(self, model: nn.Module, data: Data, objective: Any, basis: str) -> None:
        tag = "" if basis == "auto" else f"{basis}: "
        done, solution = self.attempt(f"{tag}solve", lambda: js.solve(objective, basis=basis))
        if not done:
            return
        o = self.oracle
        if o.trouble is not None:
            self._no_answer(solution, tag)
            return
        fine = max(self._tolerances()) < 1e-2  # 16 bits of K do not determine the end of a run
        times = [
            share / o.top for share in ((0.3, 20.0 if fine else 1.0) if basis == "auto" else (2.0 if fine else 1.0,))
        ]
        wants = [o.at(t) for t in times]
        if self.case.later is not None:  # after the oracle has said all, for it may change defaults
            self.case.later(model, data)
        for t, want in zip(times, wants, strict=True):
            self._at(solution, t, want, f"{tag}outputs", basis == "auto" or self.case.later is not None)
        if basis != "auto" or self.case.later is not None:
            return
        for rate in o.rates if self.case.loss == "mse" and self.case.coarse is None else ():
            done, got = self.attempt("steps", lambda rate=rate: solution.outputs(js.steps(2, lr=rate)))
            if done:
                self._compare("steps", got, o.steps(2, rate).outputs, o.u0)
        if self.case.order and not o.differ:
            self._second(solution)

    def _at(self, solution: Any, t: float, want: Ran, what: str, everything: bool) -> None:
        o = self.oracle
        done, got = self.attempt(what, lambda: solution.outputs(t))
        if not done:
            return
        kind = solution.basis.kind
        done, bound = (True, 0.0) if kind == "dense" else self.attempt("bound", lambda: solution.error_bound(t))
        if not done:
            return
        if "krylov" not in what and bound > 0.01 * float((want.outputs - o.u0).norm()):
            bound = 0.01 * float((want.outputs - o.u0).norm())  # 1%, or a warning
        got = got.reshape(want.outputs.shape) if self.case.objective is not None and got.numel() == o.size else got
        self._compare(what, got, want.outputs, o.u0, bound)
        if not everything:
            return
        done, got = self.attempt("parameters", lambda: solution.parameters(t))
        if done:
            flat = torch.cat([reals(got[k]) if k in got else reals(p) for k, p in trainable(o.model()).items()])
            if flat.shape != want.theta.shape:
                self._say("parameters", SILENT, f"{flat.numel()} numbers of {want.theta.numel()}")
            else:
                self._compare("parameters", flat, want.theta, o.theta, bound * 1e3)
        done, got = self.attempt("loss", lambda: solution.loss(t))
        if done and not bound:
            low, high = sorted((want.loss, o.value0))
            rtol, atol = self._tolerances()
            good = abs(got - want.loss) <= 4 * rtol * (high - low) + 4 * atol * max(abs(high), 1e-6)
            self._say("loss", RIGHT if good else SILENT, "" if good else f"{got:.6g}, not {want.loss:.6g}")
        self._predict(solution, t, want.queries, bound)

    def _predict(self, solution: Any, t: float, want: Tensor | None, bound: float) -> None:
        queries = self.case.data().queries
        if queries is None:
            return
        done, got = self.attempt("predict", lambda: solution.predict(queries, t))
        if not done:
            return
        if want is None:
            self._say("predict", SILENT, "an answer where the module has none")
        else:
            assert self.oracle._queries is not None
            self._compare("predict", got, want, self.oracle._queries[0], bound * 10)

    def _no_answer(self, solution: Any, tag: str) -> None:
        """Where no linear map follows training, only the way along a tiny step may be answered, or nothing."""
        o = self.oracle
        done, got = self.attempt(f"{tag}outputs", lambda: solution.outputs(1e-6))
        if not done:
            return
        if "no linear map" in (o.trouble or "") and self.case.loss == "mse":
            real = o.sgd(o.rates[1])[0].reshape(o.u0.shape)  # two steps: the second is past a kink
            done, got = self.attempt(f"{tag}steps", lambda: solution.outputs(js.steps(2, lr=o.rates[1])))
            if done and close(got, real, o.u0, 0.02, 1e-10) is None:
                self._say(f"{tag}outputs", RIGHT, "to first order in steps of SGD")
                return
        self._say(f"{tag}outputs", WARNED if self.warned else SILENT, f"an answer where none is right: {o.trouble}")

    def _second(self, solution: Any) -> None:
        """order=2 must err less than order=1, and by a higher power of t."""
        o, misses = self.oracle, []
        for t in (0.05 / o.top, 0.0125 / o.top):
            real = o.flow(t)
            done, got = self.attempt("order=2", lambda t=t: solution.outputs(t, order=2))
            if not done:
                return
            first = float((o.at(t).outputs - real).norm())
            misses.append((float((got - real).norm()), first, float((real - o.u0).norm())))
        (big, _, _), (small, first, moved) = misses
        floor = 1e-8 * moved + 1e-11 * float(o.u0.norm())
        good = small <= floor or (small <= 0.5 * first and small <= 0.06 * big)
        self._say(
            "order=2", RIGHT if good else SILENT, "" if good else f"misses {big:.1e}, {small:.1e}, first {first:.1e}"
        )

    # -- jumps -------------------------------------------------------------------------------------------------

    def _jump(self) -> None:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        model, data, o = self.case.model(), self.case.data(), self.oracle
        before = Snapshot(model)
        result = None
        done, objective = self.attempt("objective of the jump", lambda: self.case.ask(model, data))
        if done:
            done, result = self.attempt("jump", lambda: js.jump(objective))
        accepted = result is not None and result.accepted
        self._left_alone("left alone by jump", before.changes(model, weights=not accepted))
        if result is None:
            return
        if not accepted:
            idle = self.case.moves and o.trouble is None
            self._say("jump", UNDUE if idle else RIGHT, str(result.outcome))
        elif o.trouble is not None and "no linear map" not in o.trouble:
            self._say("jump", SILENT, f"accepted, where no answer is right: {o.trouble}")
        else:
            theta = torch.cat([reals(p) for p in trainable(model).values()])
            value = float(o.case.value(o.u(theta), o.targets))
            rtol, atol = self._tolerances()
            near = abs(value - result.actual) <= 10 * (rtol * abs(o.value0 - value) + atol * max(abs(o.value0), 1e-3))
            good = value < o.value0 and near
            said = f"loss {o.value0:.6g} → {value:.6g}, said {result.actual:.6g}"
            self._say("jump", RIGHT if good else SILENT, said)

    def _left_alone(self, what: str, changes: list[str]) -> None:
        if not self.case.own and (self.case.later is None or "solve" not in what):
            self._say(what, SILENT if changes else RIGHT, ", ".join(changes)[:200])


def ask(case: Case) -> Verdict:
    """The verdict on one case."""
    return Trial(case).run()
