"""The dense empirical neural tangent kernel K = J D J2ᵀ, computed layer by layer.

Parameters used in recognised layers are contracted from layer inputs and backpropagated deltas; whether that
is exact for a parameter is checked against autograd with a random cotangent.  The others are differentiated
sample by sample (verified likewise), and what interacts across samples output by output.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from jumpstart.kernel.capture import Call, Tape, Use, backpropagate, pull_back, record, split_batch
from jumpstart.kernel.contract import Accumulator, Layer

# Relative disagreement at which a check against autograd fails.
_RTOL = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}

Metric = Mapping[str, Tensor] | None


@torch.inference_mode(False)
@torch.no_grad()
def dense_kernel(
    call: Call,
    params: Mapping[str, Tensor],
    x: Any,
    x2: Any = None,
    *,
    metric: Metric = None,
    chunk_bytes: int = 2**28,
    report: dict[str, str] | None = None,
) -> Tensor:
    """Empirical NTK K = J D J2ᵀ of shape (n * c, n2 * c), rows and columns sample-major (i * c + j).

    Args:
        call: pure function (params, batch) -> u of shape (n, *out) with prod(out) = c, or (n,) with c = 1;
            it may run many times, so a buffer that it updates in place is updated as often.
        params: the parameters that the kernel is taken over, name -> tensor.
        x, x2: batches in whatever form `call` accepts; x2 None means x2 = x, giving an exactly symmetric K.
        metric: D = diag(metric), name -> nonnegative tensor shaped like the parameter; None is the identity.
        chunk_bytes: bound in bytes on explicit per-sample gradients held at a time (at least one row of the
            parameter, or one sample, is held).
        report: if given, receives name -> "layerwise", "per-sample" or "per-output", the route taken.

    K has the dtype of u and the parameters, float32 for half precision.  Memory besides K and chunks: the
    deltas, c times the outputs of the recorded layers.  No `.grad` is touched, no global RNG is used.

    Raises:
        TypeError: `call` does not return one real floating tensor.
        ValueError: u has no batch dimension, u and u2 disagree in c, or `metric` does not fit `params`.
    """
    _check_metric(params, metric)
    sides = [_Side(call, params, x)]
    if x2 is not None:
        sides.append(_Side(call, params, x2))
    one, two = sides[0], sides[-1]
    if one.tape.c != two.tape.c:
        raise ValueError(f"u has {one.tape.c} outputs per sample on x but {two.tape.c} on x2")
    acc = Accumulator(one.tape.c, one.tape.n, two.tape.n, x2 is None, one.tape.u, one.dtype)

    failed = {name for side in sides for name in side.check_layers()}
    route = {name: "per-sample" if name in failed else "layerwise" for name in params}
    _add_layers(acc, one, two, [k for k in params if k not in failed], metric, chunk_bytes)

    names = [k for k in params if k in failed]
    coupled = {name for side in sides for name in side.check_samples(names)} if names else set()
    for name in coupled:
        route[name] = "per-output"
    for kind, jacobian in (
        ("per-sample", _Side.jacobian_by_sample),
        ("per-output", _Side.jacobian_by_output),
    ):
        for group in _groups([k for k in params if route[k] == kind], params, one, two, chunk_bytes):
            _add_explicit(acc, one, two, group, jacobian, metric, chunk_bytes)
    if report is not None:
        report.update(route)
    return acc.finish()


class _Side:
    """One batch: its recorded pass and the three ways to differentiate it."""

    def __init__(self, call: Call, params: Mapping[str, Tensor], x: Any) -> None:
        self.call = call
        self.tape: Tape = record(call, params, x)
        self.batch, self.rebuild = split_batch(x, self.tape.n)
        dtype = self.tape.u.dtype
        for p in params.values():
            dtype = torch.promote_types(dtype, p.dtype)
        self.dtype = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
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
        self.exact = self._exact()

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.tape.u.device, self.dtype)

    def _exact(self) -> dict[str, Tensor]:
        """Autograd's gradient of (w * u).sum(); parameters that u does not depend on are left out."""
        if not self.connected:
            return {}
        names = list(self.tape.leaves)
        seed = self.w.to(self.tape.u.dtype)
        got = torch.autograd.grad(
            self.tape.u, [self.tape.leaves[k] for k in names], seed, retain_graph=True, allow_unused=True
        )
        pairs = zip(names, got, strict=True)
        return {k: _strided(g).to(self.dtype) for k, g in pairs if g is not None}

    def _disagree(self, guess: Tensor, truth: Tensor, floor: Tensor) -> bool:
        """Do guess and truth differ by more than rounding?  `floor` is the scale of all gradients together:
        below its rounding error a gradient that vanishes by symmetry (a key bias) is noise on both sides."""
        rtol = _RTOL.get(self.precision, 1e-3)
        atol = min(256 * torch.finfo(self.precision).eps, 0.1 * rtol)
        error = (guess - truth).norm()
        scale = torch.maximum(guess.norm(), truth.norm())
        # written so that NaN counts as disagreement
        return not bool(error <= rtol * scale + atol * floor)

    def _floor(self) -> Tensor:
        norms = [g.norm() for g in self.exact.values()]
        return torch.stack(norms).norm() if norms else torch.zeros((), device=self.tape.u.device)

    def check_layers(self) -> set[str]:
        """Names whose gradients cannot be assembled from the recorded layers."""
        floor = self._floor()
        mixed = [layer.mix(self.w) for layer in self.layers]
        bad = set(self.tape.dropped)
        for name in self.tape.leaves:
            uses, truth = self.used.get(name, []), self.exact.get(name)
            if name in bad or not uses:
                bad.update(() if truth is None else (name,))
                continue
            probe = None
            kinds = {(mixed[at].use.kind, role) for at, role in uses}
            if truth is not None and kinds and kinds <= {("linear", "weight"), ("conv", "weight")}:
                # A random combination of columns needs one matrix-vector product instead of a matrix product.
                flat = truth.flatten(1)
                probe = self.random(flat.shape[1])
                truth = flat @ probe
            totals = [mixed[at].total(role, probe).flatten() for at, role in uses]
            if truth is None:
                truth = torch.zeros_like(totals[0])
            guess = sum(totals, start=torch.zeros_like(truth.flatten()))
            truth = truth.flatten()
            if self._disagree(guess, truth, floor):
                bad.add(name)
        return bad

    def check_samples(self, names: list[str]) -> set[str]:
        """Names whose gradient is not the sum of those of the samples taken one by one."""
        truths = {k: self.exact[k] for k in names if k in self.exact}
        if not truths:
            return set()
        if not self.batch:
            return set(truths)
        floor, sums = self._floor(), {k: torch.zeros_like(g) for k, g in truths.items()}
        fixed = {k: p.detach() for k, p in self.tape.leaves.items()}

        def pulled(w: Tensor, *sample: Tensor) -> dict[str, Tensor]:
            return vjp(lambda p: self._alone(fixed, p, sample), {k: fixed[k] for k in truths})[1](w)[0]

        step = max(1, 2**26 // sum(8 * fixed[k].numel() for k in truths))
        try:
            with _functorch():
                for lo in range(0, self.tape.n, step):
                    part = [t[lo : lo + step] for t in self.batch]
                    got = vmap(pulled)(self.w[lo : lo + step].to(self.tape.u.dtype), *part)
                    for k, g in got.items():
                        sums[k] += g.to(self.dtype).sum(0)
            self.jacobian_by_sample(list(truths), 0, 1)  # one level of vmap more: does that work too?
        except Exception:
            # Whatever a model does that vmap or a batch of one cannot follow, the general route can.
            return set(truths)
        return {k for k, truth in truths.items() if self._disagree(sums[k], truth, floor)}

    def _alone(self, fixed: dict[str, Tensor], p: dict[str, Tensor], sample: tuple[Tensor, ...]) -> Tensor:
        """Outputs (c,) of one sample as a function of the parameters p."""
        u = self.call({**fixed, **p}, self.rebuild([t.unsqueeze(0) for t in sample]))
        return u.reshape(self.tape.c)

    def jacobian_by_sample(self, names: list[str], lo: int, hi: int) -> dict[str, Tensor]:
        """Jacobian blocks (m, c, *shape) of samples [lo, hi), each sample passed through alone."""
        fixed = {k: p.detach() for k, p in self.tape.leaves.items()}
        chosen = {k: fixed[k] for k in names}

        def rows(*sample: Tensor) -> Any:
            return jacrev(lambda p: self._alone(fixed, p, sample))(chosen)

        with _functorch():
            return vmap(rows)(*(t[lo:hi] for t in self.batch))

    def jacobian_by_output(self, names: list[str], lo: int, hi: int) -> dict[str, Tensor]:
        """Jacobian blocks (m, c, *shape) of samples [lo, hi), every output through the whole batch."""
        u, leaves = self.tape.u, [self.tape.leaves[k] for k in names]
        m, c = hi - lo, self.tape.c
        seeds = u.new_zeros(m * c, *u.shape)
        seeds[:, lo:hi] = torch.eye(m * c, dtype=u.dtype, device=u.device).view(m * c, m, c)

        pairs = zip(pull_back(u, leaves, seeds), leaves, strict=True)
        blocks = [p.new_zeros(m * c, *p.shape) if g is None else g for g, p in pairs]
        return {k: g.view(m, c, *g.shape[1:]) for k, g in zip(names, blocks, strict=True)}


def _strided(g: Tensor) -> Tensor:
    return g.to_dense() if g.is_sparse else g


@contextmanager
def _functorch() -> Any:
    """Keep to kernels that functorch can differentiate and batch."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*performance drop.*")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _check_metric(params: Mapping[str, Tensor], metric: Metric) -> None:
    if metric is None:
        return
    for name, p in params.items():
        d = metric.get(name)
        if d is None or d.shape != p.shape:
            raise ValueError(f"metric for {name!r} must be a tensor of shape {tuple(p.shape)}")
        if not bool((d >= 0).all()):
            raise ValueError(f"metric for {name!r} has negative or NaN entries")


def _constant(metric: Metric, name: str) -> float | None:
    """The value of a metric that is the same for the whole parameter, else None."""
    if metric is None:
        return 1.0
    low, high = torch.aminmax(metric[name].detach())
    return float(low) if bool(low == high) else None


def _add_layers(acc: Accumulator, one: _Side, two: _Side, names: list[str], metric: Metric, chunk_bytes: int) -> None:
    """Add the contributions of the parameters whose recorded layers explain them."""
    # A constant metric is a factor; a parameter used twice has cross terms that the Gram form lacks.
    scale = {k: _constant(metric, k) for k in names if len(one.used.get(k, ())) == len(two.used.get(k, ())) == 1}
    done: set[str] = set()
    for at, layer in enumerate(one.layers):
        weight, bias = layer.use.weight, layer.use.bias
        factor = None if weight is None else scale.get(weight)
        if weight is None or factor is None or two.used[weight] != [(at, "weight")]:
            continue
        other = two.layers[at]
        if other.use.kind != layer.use.kind or not layer.matrix_like or layer.groups > 1:
            continue
        if not _gram_pays(layer, other):
            continue
        shift = None if bias is None or two.used.get(bias) != [(at, "bias")] else scale.get(bias)
        acc.add_gram(layer, other, factor, shift or 0.0)
        done.add(weight)
        if bias is not None and shift is not None:
            done.add(bias)
    for name in names:
        if name not in done and one.used.get(name) and two.used.get(name):
            _add_gradients(acc, one, two, name, metric, chunk_bytes)


def _gram_pays(one: Layer, two: Layer) -> bool:
    """Is the sum over pairs of positions cheaper than explicit gradients?  Costs per entry of K, in flops."""
    pairs = _positions(one.use) * _positions(two.use)
    if pairs == 1:
        return True
    out, inner = one.use.weight_shape[0], prod(one.use.weight_shape[1:])
    if one.use.kind == "embedding":
        out, inner = inner, 0
        explicit = out * one.use.weight_shape[0]
    else:
        explicit = out * inner * (1 + _positions(one.use) / (one.c * min(one.n, two.n)))
    return pairs * (out + inner / one.c + 64) < explicit  # 64: a memory-bound product and sum


def _positions(use: Use) -> int:
    if use.kind == "embedding":
        return prod(use.input.shape[1:])
    return prod(use.out.shape[2:]) if use.kind == "conv" else prod(use.out.shape[1:-1])


def _add_gradients(acc: Accumulator, one: _Side, two: _Side, name: str, metric: Metric, chunk_bytes: int) -> None:
    """Add one parameter by explicit per-sample gradients, in chunks of its leading dimension."""
    shape = one.tape.leaves[name].shape
    sides = [one] if acc.symmetric else [one, two]
    rows = shape[0] if shape else 1
    unit = max(side.layers[at].rows_per_unit(role) for side in sides for at, role in side.used[name])
    row_bytes = sum(side.tape.n for side in sides) * acc.c * prod(shape[1:]) * acc.k.element_size()
    step = max(1, chunk_bytes // (row_bytes * unit)) * unit
    root = None if metric is None else metric[name].detach().to(acc.k).sqrt()
    for lo in range(0, rows, step):
        hi = min(lo + step, rows)
        parts: list[Tensor] = []
        for side in sides:
            g = sum(side.layers[at].gradient(role, lo, hi) for at, role in side.used[name])
            assert isinstance(g, Tensor)
            parts.append(g if root is None else g * root.reshape(rows, -1)[lo:hi].reshape(-1))
        acc.add_outer(parts[0], parts[-1])


def _groups(
    names: list[str], params: Mapping[str, Tensor], one: _Side, two: _Side, chunk_bytes: int
) -> list[list[str]]:
    """All names at once if their explicit Jacobians fit in chunk_bytes, else one by one."""
    names = [k for k in names if k in one.exact and k in two.exact]  # without a path to u: zero
    rows = (one.tape.n + two.tape.n) * one.tape.c
    fits = rows * sum(params[k].numel() for k in names) * 8 <= chunk_bytes
    return ([names] if names else []) if fits else [[k] for k in names]


def _add_explicit(
    acc: Accumulator,
    one: _Side,
    two: _Side,
    names: list[str],
    jacobian: Callable[[_Side, list[str], int, int], dict[str, Tensor]],
    metric: Metric,
    chunk_bytes: int,
) -> None:
    """Add parameters by explicit Jacobians, blocks of samples against blocks of samples."""
    c = acc.c
    row_bytes = c * sum(one.tape.leaves[k].numel() for k in names) * acc.k.element_size()
    # Differentiation holds activations for every row besides the gradients, hence the cap.
    step = max(1, min(chunk_bytes // (2 * row_bytes), max(1, 1024 // c)))
    k4 = acc.k.view(c, acc.n, c, acc.n2)

    def block(side: _Side, lo: int) -> tuple[slice, Tensor]:
        hi = min(lo + step, side.tape.n)
        parts = jacobian(side, names, lo, hi)
        flat = []
        for k in names:
            g = parts[k].detach().to(acc.k.dtype).reshape(hi - lo, c, -1)
            flat.append(g if metric is None else g * metric[k].detach().to(acc.k).sqrt().reshape(-1))
        return slice(lo, hi), torch.cat(flat, 2).transpose(0, 1).reshape(c * (hi - lo), -1)

    for lo in range(0, acc.n, step):
        rows, a = block(one, lo)
        for lo2 in range(lo if acc.symmetric else 0, acc.n2, step):
            cols, b = (rows, a) if acc.symmetric and lo2 == lo else block(two, lo2)
            tile = (a @ b.T).view(c, rows.stop - rows.start, c, cols.stop - cols.start)
            k4[:, rows, :, cols] += tile
            if acc.symmetric and lo2 != lo:  # outputs j < j' occur with samples i > i' too
                k4[:, cols, :, rows] += tile.permute(2, 3, 0, 1)
