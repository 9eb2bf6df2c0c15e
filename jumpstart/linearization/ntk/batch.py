"""One batch and the three ways to differentiate it, with the checks that decide between them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jacrev, vjp, vmap

from ...utils.autodiff import normal
from ...utils.fallback import described, fallback, theirs
from .contract import Layer
from .record import WRONG_RULE, Call, Tape, backpropagate, disagree, pull_back, record, split_batch

TOGETHER = "samples cannot be taken one by one"
APART = "samples interact (as under BatchNorm in train mode)"
_MATRICES = {("linear", "weight"), ("conv", "weight")}  # roles whose gradients are matrices


class RecordedBatch:
    """One batch: its recorded pass and the three ways to differentiate it.

    Args:
        trusted: the ways were compared with autograd before. unbatched: why backward passes went one by one then.
        looped: why samples were differentiated an output at a time then. dtype: of products, where that is wider.
    """

    def __init__(
        self,
        call: Call,
        params: Mapping[str, Tensor],
        x: Any,
        trusted: bool = False,
        unbatched: str | None = None,
        looped: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.call = call
        self.tape: Tape = record(call, params, x)
        self.tape.trusted, self.tape.unbatched = trusted, unbatched
        self.looped = looped  # why samples are differentiated an output at a time: one level of vmap, not two
        self._kept: dict[tuple[str, ...], dict[str, Tensor]] = {}  # whole Jacobians that a check has formed
        self.batch, self.rebuild = split_batch(x, self.tape.n)
        self.dtype = torch.promote_types(torch.float32, dtype or self.tape.u.dtype)
        for t in (self.tape.u, *params.values()):
            self.dtype = torch.promote_types(self.dtype, t.dtype)
        self.precision = max((t.dtype for t in (self.tape.u, *params.values())), key=lambda d: torch.finfo(d).eps)
        self.connected = self.tape.u.requires_grad and bool(params)
        self.layers: list[Layer] = []
        self.used: dict[str, list[tuple[int, str]]] = {}
        if self.connected:
            backpropagate(self.tape, self.dtype)
            self.layers = [Layer(use, self.dtype) for use in self.tape.uses]
        for at, layer in enumerate(self.layers):
            for role in ("weight", "bias"):
                name = getattr(layer.use, role)
                if name is not None:
                    self.used.setdefault(name, []).append((at, role))
        self.generator = torch.Generator().manual_seed(0x6B65726E)
        self.w = self.random(self.tape.n, self.tape.c)

    def random(self, *shape: int) -> Tensor:
        return normal(shape, self.generator).to(self.tape.u.device, self.dtype)

    @cached_property
    def exact(self) -> dict[str, Tensor]:
        """Autograd's gradient of (w * u).sum(); parameters that u does not depend on are left out."""
        if not self.connected:
            return {}
        names = list(self.tape.leaves)
        seed = self.w.to(self.tape.u.dtype)
        got = torch.autograd.grad(
            self.tape.u, [self.tape.leaves[k] for k in names], seed, retain_graph=True, allow_unused=True
        )
        pairs = zip(names, got, strict=True)
        return {k: strided(g).to(self.dtype) for k, g in pairs if g is not None}

    def _disagree(self, guess: Tensor, truth: Tensor, floor: Tensor) -> bool:
        return disagree(guess, truth, floor, self.precision)

    def _floor(self) -> Tensor:
        norms = [g.norm() for g in self.exact.values()]
        return torch.stack(norms).norm() if norms else torch.zeros((), device=self.tape.u.device)

    def check_layers(self) -> dict[str, str]:
        """Names whose gradients cannot be assembled from the recorded layers, and why."""
        floor = self._floor()
        mixed = [layer.mix(self.w) for layer in self.layers]
        bad = dict(self.tape.dropped)
        for name in self.tape.leaves:
            uses, truth = self.used.get(name, []), self.exact.get(name)
            if name in bad:
                continue
            try:
                astray = bool(uses) and self._astray(mixed, uses, truth, floor)
            except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
                bad[name] = f"its recorded uses cannot be put together ({described(error)})"
                continue
            if astray:
                bad[name] = "its recorded uses do not make up its gradient (another use, or samples that interact)"
            elif not uses and truth is not None:
                bad[name] = "no layer, sum or product that is known here uses it"
        return bad

    def _astray(self, mixed: list[Layer], uses: list[tuple[int, str]], truth: Tensor | None, floor: Tensor) -> bool:
        """Does what the layers ``uses`` sum to differ from autograd's gradient of one parameter?"""
        probe = None
        if truth is not None and {(mixed[at].use.kind, role) for at, role in uses} <= _MATRICES:
            # A random combination of columns needs one matrix-vector product instead of a matrix product.
            flat = truth.flatten(1)
            probe = self.random(flat.shape[1])
            truth = flat @ probe
        totals = [mixed[at].total(role, probe).flatten() for at, role in uses]
        if truth is None:
            truth = torch.zeros_like(totals[0])
        guess = sum(totals, start=torch.zeros_like(truth.flatten()))
        return self._disagree(guess, truth.flatten(), floor)

    def check_samples(self, names: list[str], step: int) -> dict[str, str]:
        """Names whose Jacobian is not that of the samples taken one by one, and why.

        Blocks of ``step`` samples, as the kernel is later made of, are formed and contracted with random cotangents;
        once more with an output at a time, where a batching rule is wrong or lacking for all outputs at once.
        """
        truths = {k: self.exact[k] for k in names if k in self.exact}
        if not truths:
            return {}
        if not self.batch:
            return dict.fromkeys(truths, f"no input has {self.tape.n} samples in its first dimension")
        first = self._checked(truths, step)
        if not first or APART in first.values():
            return first
        self.looped = WRONG_RULE if WRONG_RULE in first.values() else next(iter(first.values()))
        second = self._checked(truths, step)
        if len(second) < len(first):
            return second
        self.looped = None
        return first

    def _checked(self, truths: dict[str, Tensor], step: int) -> dict[str, str]:
        try:
            wrong = self._blocks_astray(truths, step)
            return {**wrong, **self._interacting(truths)} if wrong and APART not in wrong.values() else wrong
        except Exception as error:
            # Whatever a model does that vmap or a batch of one cannot follow, the general route can.
            return dict.fromkeys(truths, self._left(error))

    def _blocks_astray(self, truths: dict[str, Tensor], step: int) -> dict[str, str]:
        """Names whose blocks of at most ``step`` samples, of each size that occurs, are not what autograd gives."""
        n, names = self.tape.n, list(truths)
        spans = [(0, min(step, n))] + ([(n - n % step, n)] if n % step and n > step else [])
        # Blocks alone do not show that samples far apart interact.
        if spans[0][1] < n and (apart := self._interacting(truths)):
            return apart
        wrong: dict[str, str] = {}
        for lo, hi in spans:
            blocks = self.jacobian_by_sample(names, lo, hi)
            expected = truths if hi - lo == n else self._pulled(names, lo, hi)
            w = self.w[lo:hi].reshape(-1)
            for k in names:
                found = w @ blocks[k].detach().to(self.dtype).reshape(w.numel(), -1)
                if self._disagree(found, expected[k].reshape(-1), self._floor()):
                    wrong[k] = WRONG_RULE
            if hi - lo == n and not wrong:
                self._kept[tuple(names)] = blocks
        return wrong

    def _pulled(self, names: list[str], lo: int, hi: int) -> dict[str, Tensor]:
        """Autograd's gradient of (w * u).sum() over samples [lo, hi), by name."""
        seed = torch.zeros_like(self.tape.u)
        seed[lo:hi] = self.w[lo:hi].to(seed.dtype)
        leaves = [self.tape.leaves[k] for k in names]
        got = torch.autograd.grad(self.tape.u, leaves, seed, retain_graph=True, allow_unused=True)
        pairs = zip(names, leaves, got, strict=True)
        return {k: torch.zeros_like(p) if g is None else strided(g).to(self.dtype) for k, p, g in pairs}

    def _interacting(self, truths: dict[str, Tensor]) -> dict[str, str]:
        """Names whose gradient is not the sum of those of the samples taken one by one."""
        sums, floor = self._sums_over_samples(truths), self._floor()
        return dict.fromkeys((k for k, truth in truths.items() if self._disagree(sums[k], truth, floor)), APART)

    def _left(self, error: Exception) -> str:
        """Why samples are not taken one by one; torch's refusals to batch what the model does are no fault of ours."""
        if type(error) in (RuntimeError, NotImplementedError):
            return f"{TOGETHER} ({described(error)})"
        found = fallback(error)
        if found.unexpected:
            found.warn("the kernel")
        return found.reason

    def _sums_over_samples(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The gradient of (w * u).sum() by ``names``, with every sample passed through alone."""
        fixed = {k: p.detach() for k, p in self.tape.leaves.items()}
        chosen = {k: fixed[k] for k in names}
        sums = {k: torch.zeros_like(p, dtype=self.dtype) for k, p in chosen.items()}

        def pulled(w: Tensor, *sample: Tensor) -> dict[str, Tensor]:
            return vjp(lambda p: self._alone(fixed, p, sample), chosen)[1](w)[0]

        step = max(1, 2**26 // sum(8 * p.numel() for p in chosen.values()))
        with _functorch():
            for lo in range(0, self.tape.n, step):
                part = [t[lo : lo + step] for t in self.batch]
                got = vmap(pulled)(self.w[lo : lo + step].to(self.tape.u.dtype), *part)
                for k, g in got.items():
                    sums[k] += g.to(self.dtype).sum(0)
        return sums

    def _alone(self, fixed: dict[str, Tensor], p: dict[str, Tensor], sample: tuple[Tensor, ...]) -> Tensor:
        """Outputs (c,) of one sample as a function of the parameters p."""
        with theirs(TOGETHER):
            u = self.call({**fixed, **p}, self.rebuild([t.unsqueeze(0) for t in sample]))
            return u.reshape(self.tape.c)

    def jacobian_by_sample(self, names: list[str], lo: int, hi: int) -> dict[str, Tensor]:
        """Jacobian blocks (m, c, *shape) of samples [lo, hi), each sample passed through alone."""
        if hi - lo == self.tape.n and (kept := self._kept.pop(tuple(names), None)) is not None:
            return kept
        fixed = {k: p.detach() for k, p in self.tape.leaves.items()}
        chosen = {k: fixed[k] for k in names}
        samples = [t[lo:hi] for t in self.batch]

        def rows(*sample: Tensor) -> Any:
            return jacrev(lambda p: self._alone(fixed, p, sample))(chosen)

        def row(j: int) -> Callable[..., Any]:
            return lambda *sample: grad(lambda p: self._alone(fixed, p, sample)[j])(chosen)

        with _functorch():
            if self.looped is None:
                return vmap(rows)(*samples)
            found = [vmap(row(j))(*samples) for j in range(self.tape.c)]
        return {k: torch.stack([one[k] for one in found], 1) for k in names}

    def jacobian_by_output(self, names: list[str], lo: int, hi: int) -> dict[str, Tensor]:
        """Jacobian blocks (m, c, *shape) of samples [lo, hi), every output through the whole batch."""
        u, leaves = self.tape.u, [self.tape.leaves[k] for k in names]
        m, c = hi - lo, self.tape.c
        seeds = u.new_zeros(m * c, *u.shape)
        seeds[:, lo:hi] = torch.eye(m * c, dtype=u.dtype, device=u.device).view(m * c, m, c)

        pairs = zip(pull_back(self.tape, leaves, seeds), leaves, strict=True)
        blocks = [p.new_zeros(m * c, *p.shape) if g is None else g for g, p in pairs]
        return {k: g.view(m, c, *g.shape[1:]) for k, g in zip(names, blocks, strict=True)}


def strided(g: Tensor) -> Tensor:
    return g.to_dense() if g.is_sparse else g


@contextmanager
def _functorch() -> Any:
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*performance drop.*")
        yield
