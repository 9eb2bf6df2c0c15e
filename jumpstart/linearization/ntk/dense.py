"""The dense empirical neural tangent kernel K = J D J2ᵀ, computed layer by layer.

Parameters used in recognised layers are contracted from layer inputs and backpropagated deltas; whether that
is exact for a parameter is checked against autograd with a random cotangent.  The others are differentiated
sample by sample (verified likewise), and what interacts across samples output by output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from ...utils.progress import track
from .batch import RecordedBatch
from .contract import Accumulator, Layer
from .record import Call, Use

UNBATCHED = "backward passes"  # among reasons by parameter
Diagonal = Mapping[str, Tensor] | None  # of a metric, by parameter


@torch.inference_mode(False)
@torch.no_grad()
def dense_kernel(
    call: Call,
    params: Mapping[str, Tensor],
    x: Any,
    x2: Any = None,
    *,
    metric: Diagonal = None,
    chunk_bytes: int = 2**28,
    report: dict[str, str] | None = None,
    reasons: dict[str, str] | None = None,
    trusted: Mapping[str, str] | None = None,
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
        trusted: a report of an earlier call with the same `call` and batches; its routes are taken unchecked.
        report: if given, receives name -> "layerwise", "per-sample" or "per-output", the route taken.
        reasons: if given, receives name -> why, for parameters that are not "layerwise", unless routes are trusted;
            and under ``UNBATCHED`` why backward passes go one by one, where they do.

    K has the dtype of u and the parameters, float32 for half precision.  Memory besides K and chunks: the
    deltas, c times the outputs of the recorded layers.  No `.grad` is touched, no global RNG is used.

    Raises:
        TypeError: `call` does not return one real floating tensor.
        ValueError: u has no batch dimension, u and u2 disagree in c, or `metric` does not fit `params`.
    """
    _check_metric(params, metric)
    batches = [RecordedBatch(call, params, x)]
    if x2 is not None:
        batches.append(RecordedBatch(call, params, x2))
    one, two = batches[0], batches[-1]
    if one.tape.c != two.tape.c:
        raise ValueError(f"u has {one.tape.c} outputs per sample on x but {two.tape.c} on x2")
    acc = Accumulator(one.tape.c, one.tape.n, two.tape.n, x2 is None, one.tape.u, one.dtype)

    found: dict[str, str] = {}
    known = trusted is not None and trusted.keys() == params.keys()
    route = dict(trusted) if trusted is not None and known else _routes(params, batches, found)
    _add_layers(acc, one, two, [k for k in params if route[k] == "layerwise"], metric, chunk_bytes)
    for kind, jacobian in (
        ("per-sample", RecordedBatch.jacobian_by_sample),
        ("per-output", RecordedBatch.jacobian_by_output),
    ):
        groups = _groups([k for k in params if route[k] == kind], params, one, two, chunk_bytes)
        for group in track(groups, label=f"kernel: {kind}"):
            _add_explicit(acc, one, two, group, jacobian, metric, chunk_bytes)
    if report is not None:
        report.update(route)
    if reasons is not None:
        single = [batch.tape.unbatched for batch in batches if batch.tape.unbatched is not None]
        reasons.update(found if not single else {**found, UNBATCHED: single[0]})
    return acc.finish()


def _routes(params: Mapping[str, Tensor], batches: list[RecordedBatch], reasons: dict[str, str]) -> dict[str, str]:
    """The way that each parameter is taken, checked against autograd on every batch; ``reasons`` receives why."""
    for batch in batches:
        reasons.update(batch.check_layers())
    route = {name: "per-sample" if name in reasons else "layerwise" for name in params}
    names = [k for k in params if k in reasons]
    together = {name: why for batch in batches for name, why in batch.check_samples(names).items()} if names else {}
    for name, why in together.items():
        route[name] = "per-output"
        reasons[name] = f"{reasons[name]}; {why}"
    return route


def _check_metric(params: Mapping[str, Tensor], metric: Diagonal) -> None:
    if metric is None:
        return
    for name, p in params.items():
        d = metric.get(name)
        if d is None or d.shape != p.shape:
            raise ValueError(f"metric for {name!r} must be a tensor of shape {tuple(p.shape)}")
        if not bool((d >= 0).all()):
            raise ValueError(f"metric for {name!r} has negative or NaN entries")


def _constant(metric: Diagonal, name: str) -> float | None:
    """The value of a metric that is the same for the whole parameter, else None."""
    if metric is None:
        return 1.0
    low, high = torch.aminmax(metric[name].detach())
    return float(low) if bool(low == high) else None


def _add_layers(
    acc: Accumulator, one: RecordedBatch, two: RecordedBatch, names: list[str], metric: Diagonal, chunk_bytes: int
) -> None:
    """Add the contributions of the parameters whose recorded layers explain them."""
    # A constant metric is a factor; a parameter used twice has cross terms that the Gram form lacks.
    scale = {k: _constant(metric, k) for k in names if len(one.used.get(k, ())) == len(two.used.get(k, ())) == 1}
    done: set[str] = set()
    for at, layer in enumerate(track(one.layers, label="kernel: layers")):
        weight, bias = layer.use.weight, layer.use.bias
        if weight is None or scale.get(weight) is None or not _gram_fits(one, two, at):
            continue
        shift = None if bias is None or two.used.get(bias) != [(at, "bias")] else scale.get(bias)
        acc.add_gram(layer, two.layers[at], scale[weight] or 0.0, shift or 0.0)
        done.update({weight} if bias is None or shift is None else {weight, bias})
    rest = [name for name in names if name not in done and one.used.get(name) and two.used.get(name)]
    for name in track(rest, label="kernel: parameters"):
        _add_gradients(acc, one, two, name, metric, chunk_bytes)


def _gram_fits(one: RecordedBatch, two: RecordedBatch, at: int) -> bool:
    """Is one layer the same matrix in both batches, and its Gram form the cheaper one?"""
    layer, weight = one.layers[at], one.layers[at].use.weight
    if weight is None or two.used[weight] != [(at, "weight")]:
        return False
    other = two.layers[at]
    if other.use.kind != layer.use.kind or not layer.matrix_like or layer.groups > 1:
        return False
    return _gram_pays(layer, other)


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


def _add_gradients(
    acc: Accumulator, one: RecordedBatch, two: RecordedBatch, name: str, metric: Diagonal, chunk_bytes: int
) -> None:
    """Add one parameter by explicit per-sample gradients, in chunks of its leading dimension."""
    shape = one.tape.leaves[name].shape
    batches = [one] if acc.symmetric else [one, two]
    rows = shape[0] if shape else 1
    unit = max(batch.layers[at].rows_per_unit(role) for batch in batches for at, role in batch.used[name])
    row_bytes = sum(batch.tape.n for batch in batches) * acc.c * prod(shape[1:]) * acc.k.element_size()
    step = max(1, chunk_bytes // (row_bytes * unit)) * unit
    root = None if metric is None else metric[name].detach().to(acc.k).sqrt()
    for lo in track(range(0, rows, step), label=f"kernel: {name}"):
        hi = min(lo + step, rows)
        parts: list[Tensor] = []
        for batch in batches:
            g = sum(batch.layers[at].gradient(role, lo, hi) for at, role in batch.used[name])
            assert isinstance(g, Tensor)
            parts.append(g if root is None else g * root.reshape(rows, -1)[lo:hi].reshape(-1))
        acc.add_outer(parts[0], parts[-1])


def _groups(
    names: list[str], params: Mapping[str, Tensor], one: RecordedBatch, two: RecordedBatch, chunk_bytes: int
) -> list[list[str]]:
    """All names at once if their explicit Jacobians fit in chunk_bytes, else one by one."""
    names = [k for k in names if k in one.exact and k in two.exact]  # without a path to u: zero
    rows = (one.tape.n + two.tape.n) * one.tape.c
    fits = rows * sum(params[k].numel() for k in names) * 8 <= chunk_bytes
    return ([names] if names else []) if fits else [[k] for k in names]


def _add_explicit(
    acc: Accumulator,
    one: RecordedBatch,
    two: RecordedBatch,
    names: list[str],
    jacobian: Callable[[RecordedBatch, list[str], int, int], dict[str, Tensor]],
    metric: Diagonal,
    chunk_bytes: int,
) -> None:
    """Add parameters by explicit Jacobians, blocks of samples against blocks of samples."""
    c = acc.c
    row_bytes = c * sum(one.tape.leaves[k].numel() for k in names) * acc.k.element_size()
    # Differentiation holds activations for every row besides the gradients, hence the cap.
    step = max(1, min(chunk_bytes // (2 * row_bytes), max(1, 1024 // c)))

    def block(batch: RecordedBatch, lo: int) -> tuple[slice, Tensor]:
        hi = min(lo + step, batch.tape.n)
        parts = jacobian(batch, names, lo, hi)
        flat = []
        for k in names:
            g = parts[k].detach().to(acc.k.dtype).reshape(hi - lo, c, -1)
            flat.append(g if metric is None else g * metric[k].detach().to(acc.k).sqrt().reshape(-1))
        return slice(lo, hi), torch.cat(flat, 2).reshape((hi - lo) * c, -1)

    for lo in track(range(0, acc.n, step), label="kernel: samples"):
        rows, a = block(one, lo)
        for lo2 in range(lo if acc.symmetric else 0, acc.n2, step):
            cols, b = (rows, a) if acc.symmetric and lo2 == lo else block(two, lo2)
            acc.add_block(rows, cols, a, b)
