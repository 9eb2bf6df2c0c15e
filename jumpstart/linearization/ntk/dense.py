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

from ...errors import KernelError
from ...utils.fallback import fallback
from ...utils.guard import guarded
from ...utils.progress import track
from .batch import RecordedBatch
from .contract import Accumulator, Layer
from .record import Call, Use, disagree

UNBATCHED = "backward passes"  # among reasons by parameter
LOOPED = "samples"  # likewise
Diagonal = Mapping[str, Tensor] | None  # of a metric, by parameter


@guarded(lambda *_, **__: None)
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
    dtype: torch.dtype | None = None,
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
        trusted: a report of an earlier call with the same `call` and batches; its routes, and what ``reasons`` then
            received, are taken unchecked.
        dtype: of the products between gradients, where it is wider than that of u and the parameters.
        report: if given, receives name -> "layerwise", "per-sample" or "per-output", the route taken.
        reasons: if given, receives name -> why, for parameters that are not "layerwise", unless routes are trusted;
            under ``UNBATCHED`` why backward passes go one by one and under ``LOOPED`` why samples do, an output at a
            time, where they do.

    K has the dtype of u and the parameters, float32 for half precision, or ``dtype``.  Memory besides K and chunks: the
    deltas, c times the outputs of the recorded layers.  No `.grad` is touched, no global RNG is used.

    Raises:
        TypeError: `call` does not return one real floating tensor.
        ValueError: u has no batch dimension, u and u2 disagree in c, or `metric` does not fit `params`.
        KernelError: not even one backward pass after the other gives one linear map J.
    """
    _check_metric(params, metric)
    known = trusted is not None and trusted.keys() == params.keys()
    told = dict(reasons or {}) if known else {}
    batches = [
        RecordedBatch(call, params, given, known, told.get(UNBATCHED), told.get(LOOPED), dtype)
        for given in ([x] if x2 is None else [x, x2])
    ]
    one, two = batches[0], batches[-1]
    if one.tape.c != two.tape.c:
        raise ValueError(f"u has {one.tape.c} outputs per sample on x but {two.tape.c} on x2")
    found: dict[str, str] = {}
    if trusted is not None and known:
        route = dict(trusted)
        kernel = _formed(one, two, x2 is None, route, metric, chunk_bytes)
    else:
        route = _routes(params, batches, found, chunk_bytes)
        kernel, route = _confirmed(one, two, x2 is None, route, found, metric, chunk_bytes)
    if report is not None:
        report.update(route)
    if reasons is not None:
        reasons.update(found)
        for batch in batches:
            loops = ((UNBATCHED, batch.tape.unbatched), (LOOPED, batch.looped))
            reasons.update({key: why for key, why in loops if why is not None})
    return kernel


def _formed(
    one: RecordedBatch,
    two: RecordedBatch,
    symmetric: bool,
    route: Mapping[str, str],
    metric: Diagonal,
    chunk_bytes: int,
) -> Tensor:
    """The kernel by the given route for each parameter."""
    acc = Accumulator(one.tape.c, one.tape.n, two.tape.n, symmetric, one.tape.u, one.dtype)
    _add_layers(acc, one, two, [k for k in route if route[k] == "layerwise"], metric, chunk_bytes)
    for kind, jacobian in (
        ("per-sample", RecordedBatch.jacobian_by_sample),
        ("per-output", RecordedBatch.jacobian_by_output),
    ):
        groups = _groups([k for k in route if route[k] == kind], one, two, chunk_bytes)
        for group in track(groups, label=f"kernel: {kind}"):
            _add_explicit(acc, one, two, group, jacobian, metric, chunk_bytes)
    return acc.finish()


def _confirmed(
    one: RecordedBatch,
    two: RecordedBatch,
    symmetric: bool,
    route: dict[str, str],
    reasons: dict[str, str],
    metric: Diagonal,
    chunk_bytes: int,
) -> tuple[Tensor, dict[str, str]]:
    """The kernel, compared with autograd as a whole, and the routes taken: if need be one backward pass an output."""
    try:
        kernel = _formed(one, two, symmetric, route, metric, chunk_bytes)
        if not _astray(kernel, one, two, metric):
            return kernel, route
        why = "the kernel that it was part of disagreed with autograd"
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the general way is exact whatever a fast one has run into
        found = fallback(error)
        found.warn("the kernel")
        why = found.reason
    reasons.update({k: f"{reasons[k]}; {why}" if k in reasons else why for k in route if route[k] != "per-output"})
    route = dict.fromkeys(route, "per-output")
    one.tape.unbatched = two.tape.unbatched = why
    kernel = _formed(one, two, symmetric, route, metric, chunk_bytes)
    if _astray(kernel, one, two, metric):
        raise KernelError(
            "the model's backward passes are not one linear map: ⟨w, K w⟩ differs from ‖Jᵀw‖² for a random w, one "
            "output at a time. Look for backward hooks that clip or change gradients, or a custom backward that is not "
            "linear in what it is given."
        )
    return kernel, route


def _astray(kernel: Tensor, one: RecordedBatch, two: RecordedBatch, metric: Diagonal) -> bool:
    """Does w₁ᵀ K w₂ differ from <J₁ᵀw₁, D J₂ᵀw₂>?  Both gradients are there from the checks of the routes."""
    shared = [k for k in one.exact if k in two.exact]

    def inner(a: RecordedBatch, b: RecordedBatch) -> Tensor:
        terms = [
            (a.exact[k].double() * b.exact[k] * (1.0 if metric is None else metric[k].detach())).sum() for k in shared
        ]
        return torch.stack(terms).sum() if terms else kernel.new_zeros((), dtype=torch.float64)

    guess = torch.dot(one.w.reshape(-1), (kernel @ two.w.reshape(-1))).double()
    size = inner(one, one).clamp_min(0).sqrt() * inner(two, two).clamp_min(0).sqrt()
    # Relative to what it could be, as it may cancel; entries round each at their own size.
    return disagree(guess + size, inner(one, two) + size, kernel.double().norm(), one.precision)


def _routes(
    params: Mapping[str, Tensor], batches: list[RecordedBatch], reasons: dict[str, str], chunk_bytes: int
) -> dict[str, str]:
    """The way that each parameter is taken, checked against autograd on every batch; ``reasons`` receives why."""
    for batch in batches:
        reasons.update(batch.check_layers())
    route = {name: "per-sample" if name in reasons else "layerwise" for name in params}
    together: dict[str, str] = {}
    for group in _groups([k for k in params if k in reasons], batches[0], batches[-1], chunk_bytes):
        for batch in batches:
            together |= batch.check_samples(group, _step(batches[0], group, chunk_bytes))
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


def _groups(names: list[str], one: RecordedBatch, two: RecordedBatch, chunk_bytes: int) -> list[list[str]]:
    """All names at once if their explicit Jacobians fit in chunk_bytes, else one by one."""
    names = [k for k in names if k in one.exact and k in two.exact]  # without a path to u: zero
    rows = (one.tape.n + two.tape.n) * one.tape.c
    fits = rows * sum(one.tape.leaves[k].numel() for k in names) * 8 <= chunk_bytes
    return ([names] if names else []) if fits else [[k] for k in names]


def _step(one: RecordedBatch, names: list[str], chunk_bytes: int) -> int:
    """Samples whose explicit Jacobian is formed at a time."""
    c = one.tape.c
    row_bytes = c * sum(one.tape.leaves[k].numel() for k in names) * one.w.element_size()
    # Differentiation holds activations for every row besides the gradients, hence the cap.
    return max(1, min(chunk_bytes // max(1, 2 * row_bytes), max(1, 1024 // c)))


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
    c, step = acc.c, _step(one, names, chunk_bytes)

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
