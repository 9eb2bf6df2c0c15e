"""Per-sample parameter gradients of recorded layer uses, and their contraction into a kernel matrix.

Rows are sample-major throughout, row (i, j) = output j of sample i, so that nothing of the matrix's size is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .record import Use


class Layer:
    """A use with its delta in a common form.

    Matrix-like kinds (linear, conv, embedding): `h` (n, T, g, b) inputs (T positions, g groups) and `d`
    (n, c, T, g, a) deltas, the weight being (g * a, b).  Embeddings have `index` (n, T) for a one-hot h.
    """

    def __init__(self, use: Use, dtype: torch.dtype) -> None:
        assert use.delta is not None
        self.use, self.dtype, self.delta = use, dtype, use.delta
        self.n, self.c = use.delta.shape[:2]
        self.groups = int(use.args.get("groups", 1)) if use.kind == "conv" else 1

    @property
    def matrix_like(self) -> bool:
        return self.use.kind in ("linear", "conv", "embedding")

    @cached_property
    def h(self) -> Tensor:
        x = self.use.input.to(self.dtype)
        if self.use.kind == "linear":
            return x.reshape(self.n, -1, 1, x.shape[-1])
        return _im2col(x, self.use.weight_shape[2:], self.groups, self.use.args)

    @cached_property
    def index(self) -> Tensor:
        return self.use.input.reshape(self.n, -1)

    @cached_property
    def d(self) -> Tensor:
        c, n, kind = self.c, self.n, self.use.kind
        if kind == "conv":
            return self.delta.reshape(n, c, self.groups, -1, prod(self.delta.shape[3:])).permute(0, 1, 4, 2, 3)
        d = self.delta.reshape(n, c, -1, 1, self.delta.shape[-1])
        pad = self.use.args.get("padding_idx") if kind == "embedding" else None
        if pad is not None:  # the padding row receives no gradient
            pad = pad % self.use.weight_shape[0]
            d = d * (self.index != pad)[:, None, :, None, None]
        return d

    @cached_property
    def normalized(self) -> Tensor:
        """What the weight multiplies entrywise: a norm layer's normalised input, a product's other factor."""
        x, args, kind = self.use.input, self.use.args, self.use.kind
        if kind == "scale":
            return x.to(self.dtype)
        if kind == "layer_norm":
            y = F.layer_norm(x, args["normalized_shape"], eps=args.get("eps", 1e-5))
        elif kind == "rms_norm":
            y = F.rms_norm(x, args["normalized_shape"], eps=args.get("eps"))
        elif kind == "group_norm":
            y = F.group_norm(x, args["num_groups"], eps=args.get("eps", 1e-5))
        else:
            # Batch statistics couple the samples below this layer, but its own parameters stay affine.
            batch = bool(args.get("training", False))
            mean, var = (None, None) if batch else (args["running_mean"], args["running_var"])
            y = F.batch_norm(x, mean, var, training=batch, eps=args.get("eps", 1e-5))
        return y.to(self.dtype)

    def mix(self, w: Tensor) -> Layer:
        """The same layer with its deltas summed over outputs with weights w (n, c): a layer with c = 1."""
        mixed = w[:, None] @ self.delta.flatten(2)
        out = Layer(self.use, self.dtype)
        out.c, out.delta = 1, mixed.view(self.n, 1, *self.delta.shape[2:])
        for name in ("h", "index", "normalized"):  # share what was already computed
            if name in self.__dict__:
                out.__dict__[name] = self.__dict__[name]
        return out

    def reduce(self, t: Tensor) -> Tensor:
        """Sum a delta-shaped tensor over all positions that share a norm layer's or a bias's entries."""
        kind, shape = self.use.kind, self.use.weight_shape
        if kind in ("shift", "scale"):
            shape = (1,) * (t.dim() - 1 - len(shape)) + shape
            axes = [a for a in range(2, t.dim()) if shape[a - 1] == 1 and t.shape[a] != 1]
            return (t.sum(axes) if axes else t).reshape(self.n, self.c, -1)
        if kind in ("layer_norm", "rms_norm"):
            keep = prod(self.use.args["normalized_shape"])
            return t.reshape(self.n, self.c, -1, keep).sum(2)
        if kind == "linear":
            t = t.reshape(self.n, self.c, -1, t.shape[-1])
            return t[:, :, 0] if t.shape[2] == 1 else t.sum(2)
        return t.reshape(self.n, self.c, t.shape[2], -1).sum(3)

    def rows_per_unit(self, role: str) -> int:
        """How many leading entries of the parameter must stay together in a chunk."""
        return self.use.weight_shape[0] // self.groups if role == "weight" and self.groups > 1 else 1

    def gradient(self, role: str, lo: int, hi: int) -> Tensor:
        """Per-sample gradients (n * c, p) of entries [lo, hi) of the parameter's leading dimension."""
        c, n = self.c, self.n
        if role == "bias" or self.use.kind == "shift":
            return _leading(self.reduce(self.delta), self, role, lo, hi)
        if not self.matrix_like:
            return _leading(self.reduce(self.delta * self.normalized[:, None]), self, role, lo, hi)
        if self.use.kind == "embedding":
            size = hi - lo
            out = self.d.new_zeros(n * size, c, self.d.shape[-1])
            sample, pos = torch.nonzero((self.index >= lo) & (self.index < hi), as_tuple=True)
            out.index_add_(0, sample * size + self.index[sample, pos] - lo, self.d[sample, :, pos, 0])
            return out.view(n, size, c, -1).transpose(1, 2).reshape(n * c, -1)
        if self.groups > 1:
            unit = self.rows_per_unit("weight")
            d, h = self.d[:, :, :, lo // unit : hi // unit], self.h[:, :, lo // unit : hi // unit]
        else:
            d, h = self.d[..., lo:hi], self.h
        if h.shape[1] == 1:
            return (d[:, :, 0, :, :, None] * h[:, None, 0, :, None, :]).reshape(n * c, -1)
        groups, a, b = d.shape[3], d.shape[4], h.shape[-1]
        left = d.permute(0, 3, 1, 4, 2).reshape(n, groups, c * a, -1)
        out = left @ h.transpose(1, 2)  # (n, g, c * a, b)
        return out.view(n, groups, c, a, b).transpose(1, 2).reshape(n * c, -1)

    def total(self, role: str, probe: Tensor | None) -> Tensor:
        """Sum over rows of `gradient` for the whole parameter, or its product with `probe` (b,) if given."""
        if role == "weight" and self.use.kind == "embedding":
            d = self.d[..., 0, :].sum(1).flatten(0, 1)
            out = d.new_zeros(self.use.weight_shape)
            return out.index_add_(0, self.index.reshape(-1), d)
        if role == "weight" and probe is not None:
            return torch.einsum("nctga,ntg->ga", self.d, self.h @ probe).reshape(-1)
        return self.gradient(role, 0, _leading_size(self, role)).sum(0)


def _leading_size(layer: Layer, role: str) -> int:
    if layer.use.kind in ("shift", "scale") and not layer.use.weight_shape:
        return 1
    if layer.use.weight_shape:
        return layer.use.weight_shape[0]
    return (
        int(layer.delta.shape[2])
        if layer.use.kind in ("group_norm", "batch_norm")
        else layer.use.args["normalized_shape"][0]
    )


def _leading(g: Tensor, layer: Layer, role: str, lo: int, hi: int) -> Tensor:
    """Cut entries [lo, hi) of the leading parameter dimension out of g (n, c, p)."""
    width = g.shape[-1] // _leading_size(layer, role)
    return g[..., lo * width : hi * width].reshape(layer.n * layer.c, -1)


def _im2col(x: Tensor, kernel: tuple[int, ...], groups: int, args: dict) -> Tensor:
    """Patches (n, T, groups, channels / groups * prod(kernel)) of a convolution's input (n, channels, *)."""
    dims = len(kernel)

    def per_dim(v: int | tuple[int, ...]) -> tuple[int, ...]:
        v = (v,) if isinstance(v, int) else tuple(v)
        return v * dims if len(v) == 1 else v

    stride, dilation = per_dim(args.get("stride", 1)), per_dim(args.get("dilation", 1))
    span = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = args.get("padding", 0)
    if padding == "same":  # the surplus of an odd total goes behind, as in torch
        sides = [(s // 2, s - s // 2) for s in span]
    elif padding == "valid":
        sides = [(0, 0)] * dims
    else:
        sides = [(p, p) for p in per_dim(padding)]
    if any(side != (0, 0) for side in sides):
        x = F.pad(x, [p for side in reversed(sides) for p in side])
    for axis in range(dims):
        x = x.unfold(2 + axis, span[axis] + 1, stride[axis])[..., :: dilation[axis]]
    n, space = x.shape[0], x.shape[2 : 2 + dims]
    x = x.permute(0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims))
    return x.reshape(n, prod(space), groups, -1)


class Tile(NamedTuple):
    """A piece of the kernel: the rows of ``outputs`` of ``samples``, the columns of all samples from ``start`` on."""

    samples: slice
    outputs: slice
    start: int


class Accumulator:
    """A kernel matrix `k` (n * c, n2 * c) under construction, sample-major.

    With `symmetric` only the tiles on and above the diagonal are filled; `finish` mirrors them.  What is added first
    overwrites, so that memory is not touched only to be set to zero.
    """

    def __init__(self, c: int, n: int, n2: int, symmetric: bool, like: Tensor, dtype: torch.dtype) -> None:
        self.c, self.n, self.n2, self.symmetric = c, n, n2, symmetric
        self.k = like.new_empty((n * c, n2 * c), dtype=dtype)
        self.blank = True

    def tiles(self, rows: int = 0) -> Iterator[Tile]:
        """Cover the (upper triangle of the) matrix by tiles of about so many rows."""
        c, n = self.c, self.n
        if not rows:
            # About eight row blocks waste little of the triangle and keep a tile near the cache.
            rows = 4096 if self.k.is_cuda else min(512, max(64, c * n // 8))
        step, width = max(1, rows // c), min(c, rows)
        for i in range(0, n, step):
            for j in range(0, c, width):
                yield Tile(slice(i, min(i + step, n)), slice(j, min(j + width, c)), i if self.symmetric else 0)

    def add_block(self, rows: slice, cols: slice, a: Tensor, b: Tensor) -> None:
        """Rows and columns of samples: K += a bᵀ there."""
        if self.blank:
            self.k.zero_()
            self.blank = False
        c = self.c
        self.k[rows.start * c : rows.stop * c, cols.start * c : cols.stop * c].addmm_(a, b.T)

    def add_outer(self, a: Tensor, b: Tensor) -> None:
        """K += a bᵀ for gradients a (n * c, p), b (n2 * c, p)."""
        c, beta = self.c, 0 if self.blank else 1
        for i, j, start in self.tiles():
            rows = slice(i.start * c + j.start, (i.stop - 1) * c + j.stop)
            self.k[rows, start * c :].addmm_(a[rows], b[start * c :].T, beta=beta)
        self.blank = False

    def add_gram(self, one: Layer, two: Layer, weight: float, bias: float) -> None:
        """K += sum over positions t, t' of (weight <h, h'> + bias) <d, d'>, never forming a gradient."""
        c, t, t2 = self.c, one.d.shape[2], two.d.shape[2]
        flat = t == t2 == 1
        a = one.d.flatten(3)
        # Positions before samples: the sums below run over whole rows.
        b = two.d.flatten(3).permute(2, 0, 1, 3).reshape(t2, self.n2 * c, -1)
        # One gram for all tiles where it is small beside the matrix.
        grams = _input_gram(one, two, slice(None), slice(None), weight, bias) if flat and c > 1 else None
        scratch = b.new_empty(0)
        for i, j, start in self.tiles(0 if flat else max(1, 2**19 // max(1, c * self.n2 * t * t2))):
            left, right = a[i, j].reshape(-1, a.shape[-1]), b[:, start * c :].reshape(-1, b.shape[-1])
            size = left.shape[0] * right.shape[0]
            scratch = b.new_empty(size) if scratch.numel() < size else scratch
            pairs = torch.mm(left, right.T, out=scratch[:size].view(left.shape[0], right.shape[0]))
            pairs = pairs.view(i.stop - i.start, j.stop - j.start, t, t2, -1)
            inputs = (
                _input_gram(one, two, i, slice(start, None), weight, bias) if grams is None else grams[i, ..., start:]
            )
            if c > 1:
                inputs = inputs[..., None].expand(*inputs.shape, c).flatten(3)
            inputs, target = inputs[:, None], self.k.view(self.n, c, -1)[i, j, start * c :]
            if flat and self.blank:
                torch.mul(pairs[:, :, 0, 0], inputs[:, :, 0, 0], out=target)
            elif flat:
                target.addcmul_(pairs[:, :, 0, 0], inputs[:, :, 0, 0])
            elif self.blank:
                target.copy_(pairs.mul_(inputs).sum(3).sum(2))
            else:
                target.add_(pairs.mul_(inputs).sum(3).sum(2))
        self.blank = False

    def finish(self) -> Tensor:
        """The kernel (n * c, n2 * c); exactly symmetric if built as such."""
        if self.blank:
            return self.k.zero_()
        if self.symmetric:
            k, size, step = self.k, self.k.shape[0], 128
            for r in range(0, size, step):
                s = min(r + step, size)
                block = k[r:s, r:s]
                block.copy_(block.triu() + block.triu(1).T)
                k[s:, r:s] = k[r:s, s:].T
        return self.k


def _input_gram(one: Layer, two: Layer, i: slice, l: slice, weight: float, bias: float) -> Tensor:
    """weight <h_it, h'_lt'> + bias as (samples, T, T', samples2)."""
    if one.use.kind == "embedding":
        eq = one.index[i][:, :, None, None] == two.index[l].T[None, None]
        return eq.to(one.d.dtype).mul_(weight).add_(bias)
    a, b = one.h[i].flatten(2), two.h[l].flatten(2).transpose(0, 1)
    gram = a.flatten(0, 1) @ b.flatten(0, 1).T
    if weight != 1.0:
        gram *= weight
    if bias:
        gram += bias
    return gram.view(a.shape[0], a.shape[1], b.shape[0], b.shape[1])
