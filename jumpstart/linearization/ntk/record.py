"""Record how a network uses its parameters: layer inputs, layer outputs and the gradients at those outputs.

One forward pass runs under a `TorchFunctionMode` that sees every functional call (F.linear, conv, embedding,
norms).  A call that receives one of the watched parameter tensors, matched by identity, is kept as a `Use`.
Backward passes to the recorded outputs then give all that per-sample parameter gradients are made of; several at a
time where torch's batching rules give what one backward pass for a random combination of them does.
Anything this file does not recognise is simply not recorded; `batch` finds out by a check against autograd, and
`dense` takes a slower route for the parameters concerned.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...utils.autodiff import normal
from ...utils.fallback import described

Call = Callable[[dict[str, Tensor], Any], Tensor]

# Relative disagreement at which a check against autograd fails.
_RTOL = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}

WRONG_RULE = "torch's batching rule for an operation in the model gives other derivatives than autograd"

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")

# function as the mode sees it -> (kind, its argument names in order)
_WATCHED: dict[Any, tuple[str, tuple[str, ...]]] = {
    F.linear: ("linear", ("input", "weight", "bias")),
    torch.conv1d: ("conv", _CONV),
    torch.conv2d: ("conv", _CONV),
    torch.conv3d: ("conv", _CONV),
    F.embedding: (
        "embedding",
        ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
    ),
    F.layer_norm: ("layer_norm", ("input", "normalized_shape", "weight", "bias", "eps")),
    F.rms_norm: ("rms_norm", ("input", "normalized_shape", "weight", "eps")),
    F.group_norm: ("group_norm", ("input", "num_groups", "weight", "bias", "eps")),
    F.batch_norm: (
        "batch_norm",
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    ),
}

# A parameter, or an embedding of positions, that meets the batch by broadcasting in a sum or product.
_BROADCAST: dict[Any, str] = {
    Tensor.add: "shift",
    Tensor.__add__: "shift",
    Tensor.__radd__: "shift",
    torch.add: "shift",
    Tensor.mul: "scale",
    Tensor.__mul__: "scale",
    Tensor.__rmul__: "scale",
    torch.mul: "scale",
}


_PEOPLE = {"shift": "a sum", "scale": "a product", "linear": "a linear layer", "conv": "a convolution"}


@dataclass(eq=False)
class Use:
    """One functional call that read watched parameters.

    `weight` / `bias` are parameter names (None: absent or not watched), `weight_shape` is the shape of the
    weight tensor even when unwatched, `input` is detached, `out` is the graph tensor whose gradient is the
    layer's delta, `args` the bound arguments, `delta` (n, c, *out.shape[1:]) once `backpropagate` has run.
    """

    kind: str
    weight: str | None
    bias: str | None
    weight_shape: tuple[int, ...]
    input: Tensor
    out: Tensor
    args: dict[str, Any]
    delta: Tensor | None = None


@dataclass
class Tape:
    """A recorded forward pass: `u` (n, c) with its graph, `leaves` the parameter copies it was taken at.

    `dropped` names the parameters with a use that has no per-sample form, and why; `unbatched` says why backward passes
    for several cotangents go one by one, once that was met; `trusted` that they were compared in an earlier tape.
    """

    u: Tensor
    n: int
    c: int
    leaves: dict[str, Tensor]
    uses: list[Use] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    unbatched: str | None = None
    trusted: bool = False


class _UseRecorder(TorchFunctionMode):
    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.uses: list[Use] = []
        self.tables: dict[int, tuple[Tensor, Use]] = {}  # embeddings returned so far; the tensor pins its id

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        watched = _WATCHED.get(func)
        if watched is None:
            return self._broadcast(_BROADCAST[func], args, out) if func in _BROADCAST and not kwargs else out
        kind, order = watched
        bound = dict(zip(order, args, strict=False)) | kwargs
        weight = self.names.get(id(bound.get("weight")))
        bias = self.names.get(id(bound.get("bias")))
        if (weight is None and bias is None) or not out.requires_grad:
            return out
        shape = () if bound.get("weight") is None else tuple(bound["weight"].shape)
        rest = {k: v for k, v in bound.items() if k not in ("input", "weight", "bias")}
        self.uses.append(Use(kind, weight, bias, shape, bound["input"].detach(), out, rest))
        # The caller gets a copy, so that in-place operations on it leave the recorded output intact.
        result = out.clone()
        if kind == "embedding":
            self.tables[id(result)] = (result, self.uses[-1])
        return result

    def _broadcast(self, kind: str, args: tuple[Any, ...], out: Tensor) -> Tensor:
        """Record `batch + p` or `batch * p`; an embedding of positions + batch becomes one per sample."""
        if not out.requires_grad:
            return out
        for p, other in (args, args[::-1]):
            if kind == "shift" and id(p) in self.tables:
                use = self.tables[id(p)][1]
                shape = (out.shape[0], *use.input.shape[-(out.dim() - 2) :]) if out.dim() > 2 else ()
                fewer = p.dim() < out.dim() or p.shape[0] != out.shape[0]
                if fewer and p.shape[:-1].numel() == out.shape[1:-1].numel() and shape == out.shape[:-1]:
                    index = use.input.reshape(1, *shape[1:]).expand(shape)
                    if use in self.uses:
                        self.uses.remove(use)
                    self.uses.append(Use(use.kind, use.weight, None, use.weight_shape, index, out, use.args))
                    return out.clone()
            if id(p) in self.names and isinstance(other, Tensor):
                # a view keeps the input's own number of dimensions equal to the output's
                inner = other.detach().reshape(*[1] * (out.dim() - other.dim()), *other.shape)
                self.uses.append(Use(kind, self.names[id(p)], None, tuple(p.shape), inner, out, {}))
                return out.clone()
        return out


def record(call: Call, params: Mapping[str, Tensor], x: Any) -> Tape:
    """Run `call` once on detached leaf copies of `params`, recording the uses of each.

    Returns a `Tape` (graph alive).  Raises TypeError unless `call` returns one real floating tensor and
    ValueError unless it has a leading batch dimension.  Independent of the caller's grad mode.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        leaves = {k: p.detach().requires_grad_(True) for k, p in params.items()}
        recorder = _UseRecorder({id(p): k for k, p in leaves.items()})
        stack.enter_context(recorder)
        u = call(leaves, x)
    if not isinstance(u, Tensor) or not u.is_floating_point():
        raise TypeError("call must return one real floating-point tensor of shape (n, *out)")
    if u.dim() == 0 or u.numel() == 0:
        raise ValueError(f"call must return a non-empty tensor with a leading batch dimension, got {u.shape}")
    n = u.shape[0]
    with torch.enable_grad():
        tape = Tape(u.reshape(n, -1), n, u.numel() // n, leaves)
    for use in recorder.uses:
        if (reason := _mixed(use, n)) is None:
            tape.uses.append(use)
        else:
            tape.dropped |= {name: reason for name in (use.weight, use.bias) if name is not None}
    return tape


def _mixed(use: Use, n: int) -> str | None:
    """Why a use cannot be differentiated sample by sample; None if it can, rows of its input being samples."""
    x, args, shape, out = use.input, use.args, use.weight_shape, use.out.shape
    what = f"{_PEOPLE.get(use.kind, use.kind)} with an input of shape {tuple(x.shape)}"
    if use.kind in ("shift", "scale"):
        apart = len(out) > 0 and out[0] == n and (len(shape) < len(out) or shape[0] == 1)
        return None if apart else f"{what} does not meet {n} samples one by one"
    if x.dim() == 0 or x.shape[0] != n or out[0] != n:
        return f"{what} does not have {n} samples in its first dimension"
    if use.kind == "embedding" and (args.get("max_norm") is not None or args.get("scale_grad_by_freq", False)):
        return "an embedding with max_norm or scale_grad_by_freq"
    least = {
        "linear": 2,
        "conv": len(shape),  # one dimension fewer means an unbatched image
        "layer_norm": len(args.get("normalized_shape", ())) + 1,
        "rms_norm": len(args.get("normalized_shape", ())) + 1,
    }
    return f"{what} has no dimension for samples" if x.dim() < least.get(use.kind, 1) else None


def backpropagate(tape: Tape, dtype: torch.dtype) -> None:
    """Fill `use.delta` (n, c, *out.shape[1:]): row (i, j) is d(sum_i' u[i', j]) / d out[i], stored in `dtype`.

    If samples do not interact this is d u[i, j] / d out[i].  c backward passes, no parameter gradients.
    """
    if not tape.uses:
        return
    outs = [use.out for use in tape.uses]
    for use in tape.uses:
        use.delta = use.out.new_empty((tape.n, tape.c, *use.out.shape[1:]), dtype=dtype)
    for lo in range(0, tape.c, 16):
        block = slice(lo, min(lo + 16, tape.c))
        seeds = tape.u.new_zeros(block.stop - lo, tape.n, tape.c)
        for row, j in enumerate(range(lo, block.stop)):
            seeds[row, :, j] = 1.0
        for use, g in zip(tape.uses, pull_back(tape, outs, seeds), strict=True):
            assert use.delta is not None
            if tape.c == 1 and g is not None and g.dtype == dtype:
                use.delta = g.transpose(0, 1)
            else:
                use.delta[:, block] = 0.0 if g is None else g.transpose(0, 1)


def pull_back(tape: Tape, inputs: list[Tensor], seeds: Tensor) -> list[Tensor | None]:
    """Vector-Jacobian products (k, *input) of u with k cotangents `seeds` (k, *u.shape); None for unreached.

    Batched over cotangents where every operation has a batching rule (1.2 to 2 times faster) that is right, else a
    loop, and `tape.unbatched` says why. A rule can be wrong without an error (PReLU's, where cotangents are as many as
    channels): one more backward pass, for a random combination of the cotangents, tells.
    """

    def pull(seed: Tensor, batched: bool) -> list[Tensor | None]:
        got = torch.autograd.grad(tape.u, inputs, seed, retain_graph=True, allow_unused=True, is_grads_batched=batched)
        return [g.to_dense() if g is not None and g.is_sparse else g for g in got]

    if len(seeds) > 1 and tape.unbatched is None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*performance drop.*")
            try:
                found = pull(seeds, True)
                mix = normal((len(seeds),), len(seeds)).to(seeds)
                truth = None if tape.trusted else pull(torch.tensordot(mix, seeds, dims=1), False)
                if truth is None or _mixed_alike(found, mix, truth):
                    return found
                tape.unbatched = WRONG_RULE
            except Exception as error:  # whatever a batching rule runs into, a loop is exact
                tape.unbatched = described(error)
    rows = [pull(seed, False) for seed in seeds]
    return [None if g[0] is None else torch.stack([t for t in g if t is not None]) for g in zip(*rows, strict=True)]


def _mixed_alike(found: list[Tensor | None], mix: Tensor, truth: list[Tensor | None]) -> bool:
    """Are products for several cotangents, mixed with weights (k,), the product for the mixed cotangent?"""
    pairs = [
        (torch.tensordot(mix.to(g.dtype), g, dims=1) if g is not None else None, t)
        for g, t in zip(found, truth, strict=True)
    ]
    norms = [t.double().norm() for _, t in pairs if t is not None]
    floor = torch.stack(norms).norm() if norms else mix.new_zeros(())
    for g, t in pairs:
        one = g if g is not None else t
        if one is None:
            continue
        left, right = (torch.zeros_like(one) if v is None else v for v in (g, t))
        if disagree(left, right, floor, max((mix.dtype, one.dtype), key=lambda d: torch.finfo(d).eps)):
            return False
    return True


def disagree(guess: Tensor, truth: Tensor, floor: Tensor | float, precision: torch.dtype) -> bool:
    """Do guess and truth differ by more than rounding?  `floor` is the scale of all gradients together:
    below its rounding error a gradient that vanishes by symmetry (a key bias) is noise on both sides."""
    rtol = _RTOL.get(precision, 1e-3)
    atol = min(256 * torch.finfo(precision).eps, 0.1 * rtol)
    error = (guess - truth).norm()
    scale = torch.maximum(guess.norm(), truth.norm())
    # written so that NaN counts as disagreement
    return not bool(error <= rtol * scale + atol * floor)


def split_batch(x: Any, n: int) -> tuple[list[Tensor], Callable[[list[Tensor]], Any]]:
    """Take apart nested tuples / lists / dicts into the tensors whose leading dimension is n.

    Returns those tensors and a function that puts replacements for them back; other leaves are kept.
    """
    found: list[Tensor] = []

    def strip(v: Any) -> Any:
        if isinstance(v, Tensor) and v.dim() > 0 and v.shape[0] == n:
            found.append(v)
        elif isinstance(v, Mapping):
            for item in v.values():
                strip(item)
        elif isinstance(v, list | tuple):
            for item in v:
                strip(item)

    strip(x)

    def rebuild(tensors: list[Tensor]) -> Any:
        pending = iter(tensors)

        def fill(v: Any) -> Any:
            if isinstance(v, Tensor) and v.dim() > 0 and v.shape[0] == n:
                return next(pending)
            if isinstance(v, Mapping):
                return {k: fill(item) for k, item in v.items()}
            if isinstance(v, list | tuple):
                items = [fill(item) for item in v]
                if hasattr(v, "_fields"):  # namedtuple
                    return type(v)(*items)
                return type(v)(items)
            return v

        return fill(x)

    return found, rebuild
