"""Per-sample parameter gradients of recorded layer uses, and their contraction into a kernel matrix.

Index order inside this file is output-major, row (j, i) = output j of sample i, because a sample-by-sample
factor then broadcasts over contiguous memory.  `Accumulator.finish` returns the sample-major matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from .capture import Use


class Layer:
    """A use with its delta in a common form.

    Matrix-like kinds (linear, conv, embedding): `h` (n, T, g, b) inputs (T positions, g groups) and `d`
    (c, n, T, g, a) deltas, the weight being (g * a, b).  Embeddings have `index` (n, T) for a one-hot h.
    """

    def __init__(self, use: Use, dtype: torch.dtype) -> None:
        assert use.delta is not None
        self.use, self.dtype, self.delta = use, dtype, use.delta
        self.c, self.n = use.delta.shape[:2]
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
            return self.delta.reshape(c, n, self.groups, -1, prod(self.delta.shape[3:])).permute(0, 1, 4, 2, 3)
        d = self.delta.reshape(c, n, -1, 1, self.delta.shape[-1])
        pad = self.use.args.get("padding_idx") if kind == "embedding" else None
        if pad is not None:  # the padding row receives no gradient
            pad = pad % self.use.weight_shape[0]
            d = d * (self.index != pad)[None, :, :, None, None]
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
        mixed = torch.zeros_like(self.delta[:1])
        for j in range(self.c):
            mixed[0].addcmul_(self.delta[j], w[:, j].reshape(-1, *[1] * (mixed.dim() - 2)))
        out = Layer(self.use, self.dtype)
        out.c, out.delta = 1, mixed
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
            return (t.sum(axes) if axes else t).reshape(self.c, self.n, -1)
        if kind in ("layer_norm", "rms_norm"):
            keep = prod(self.use.args["normalized_shape"])
            return t.reshape(self.c, self.n, -1, keep).sum(2)
        if kind == "linear":
            return t.reshape(self.c, self.n, -1, t.shape[-1]).sum(2)
        return t.reshape(self.c, self.n, t.shape[2], -1).sum(3)

    def rows_per_unit(self, role: str) -> int:
        """How many leading entries of the parameter must stay together in a chunk."""
        return self.use.weight_shape[0] // self.groups if role == "weight" and self.groups > 1 else 1

    def gradient(self, role: str, lo: int, hi: int) -> Tensor:
        """Per-sample gradients (c * n, p) of entries [lo, hi) of the parameter's leading dimension."""
        c, n = self.c, self.n
        if role == "bias" or self.use.kind == "shift":
            return _leading(self.reduce(self.delta), self, role, lo, hi)
        if not self.matrix_like:
            return _leading(self.reduce(self.delta * self.normalized), self, role, lo, hi)
        if self.use.kind == "embedding":
            size = hi - lo
            out = self.d.new_zeros(c, n * size, self.d.shape[-1])
            sample, pos = torch.nonzero((self.index >= lo) & (self.index < hi), as_tuple=True)
            out.index_add_(1, sample * size + self.index[sample, pos] - lo, self.d[:, sample, pos, 0])
            return out.reshape(c * n, -1)
        if self.groups > 1:
            unit = self.rows_per_unit("weight")
            d, h = self.d[:, :, :, lo // unit : hi // unit], self.h[:, :, lo // unit : hi // unit]
        else:
            d, h = self.d[..., lo:hi], self.h
        if h.shape[1] == 1:
            return (d[:, :, 0, :, :, None] * h[:, 0, :, None, :]).reshape(c * n, -1)
        out = d.new_empty(c, n, *d.shape[3:], h.shape[-1])
        for j in range(c):  # one output at a time, else matmul would copy h for each of them
            torch.matmul(d[j].permute(0, 2, 3, 1), h.transpose(1, 2), out=out[j])
        return out.reshape(c * n, -1)

    def total(self, role: str, probe: Tensor | None) -> Tensor:
        """Sum over rows of `gradient` for the whole parameter, or its product with `probe` (b,) if given."""
        if role == "weight" and self.use.kind == "embedding":
            d = self.d[..., 0, :].sum(0).flatten(0, 1)
            out = d.new_zeros(self.use.weight_shape)
            return out.index_add_(0, self.index.reshape(-1), d)
        if role == "weight" and probe is not None:
            return torch.einsum("cntga,ntg->ga", self.d, self.h @ probe).reshape(-1)
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
    """Cut entries [lo, hi) of the leading parameter dimension out of g (c, n, p)."""
    width = g.shape[-1] // _leading_size(layer, role)
    return g[..., lo * width : hi * width].reshape(layer.c * layer.n, -1)


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


class Accumulator:
    """A kernel matrix under construction, (c * n, c * n2), output-major.

    With `symmetric` only the tiles on and above the diagonal are filled; `finish` mirrors them.
    """

    def __init__(self, c: int, n: int, n2: int, symmetric: bool, like: Tensor, dtype: torch.dtype) -> None:
        self.c, self.n, self.n2, self.symmetric = c, n, n2, symmetric
        self.k = like.new_zeros((c * n, c * n2), dtype=dtype)

    def tiles(self, rows: int = 0) -> Iterator[tuple[slice, slice, slice, slice]]:
        """Cover the (upper triangle of the) matrix by tiles (outputs, samples, outputs2, samples2)."""
        c, n, n2 = self.c, self.n, self.n2
        if not rows:
            # About eight row blocks waste little of the triangle and keep a tile near the cache.
            rows = 4096 if self.k.is_cuda else min(512, max(64, c * n // 8))
        if n <= rows:
            step = max(1, rows // n)
            for j in range(0, c, step):
                yield (
                    slice(j, min(j + step, c)),
                    slice(0, n),
                    slice(j if self.symmetric else 0, c),
                    slice(0, n2),
                )
            return
        for j in range(c):
            for i in range(0, n, rows):
                block = slice(i, min(i + rows, n))
                if self.symmetric:
                    yield slice(j, j + 1), block, slice(j, j + 1), slice(i, n)
                    if j + 1 < c:
                        yield slice(j, j + 1), block, slice(j + 1, c), slice(0, n)
                else:
                    yield slice(j, j + 1), block, slice(0, c), slice(0, n2)

    def cut(self, tile: tuple[slice, slice, slice, slice]) -> tuple[slice, slice]:
        """Row and column ranges of a tile in the flattened matrix."""
        j, i, k, l = tile
        rows = slice(j.start * self.n + i.start, (j.stop - 1) * self.n + i.stop)
        return rows, slice(k.start * self.n2 + l.start, (k.stop - 1) * self.n2 + l.stop)

    def four(self, t: Tensor, tile: tuple[slice, slice, slice, slice]) -> Tensor:
        j, i, k, l = tile
        shape = (j.stop - j.start, i.stop - i.start), (k.stop - k.start, l.stop - l.start)
        return t.unflatten(1, shape[1]).unflatten(0, shape[0])

    def add_outer(self, a: Tensor, b: Tensor) -> None:
        """K += a bᵀ for a (c * n, p), b (c * n2, p)."""
        for tile in self.tiles():
            rows, cols = self.cut(tile)
            self.k[rows, cols].addmm_(a[rows], b[cols].T)

    def add_gram(self, one: Layer, two: Layer, weight: float, bias: float) -> None:
        """K += sum over positions t, t' of (weight <h, h'> + bias) <d, d'>, never forming a gradient."""
        positions = one.d.shape[2]
        if positions == 1 and two.d.shape[2] == 1:
            self._add_gram_flat(one, two, weight, bias)
            return
        pos2 = two.d.shape[2]
        a = one.d.flatten(3)
        b = two.d.flatten(3).transpose(1, 2)  # positions before samples: the sums below run over whole rows
        budget = 2**19 // max(1, self.c * self.n2 * positions * pos2)
        for tile in self.tiles(max(1, budget)):
            j, i, k, l = tile
            rows, cols = self.cut(tile)
            size = (j.stop - j.start, i.stop - i.start, positions, k.stop - k.start, pos2, l.stop - l.start)
            left = a[j, i].reshape(-1, a.shape[-1])
            right = b[k, :, l].reshape(-1, b.shape[-1])
            buf = (left @ right.T).view(size)
            buf *= _input_gram(one, two, i, l, weight, bias)[None, :, :, None]
            self.four(self.k[rows, cols], tile).add_(buf.sum(4).sum(2))

    def _add_gram_flat(self, one: Layer, two: Layer, weight: float, bias: float) -> None:
        a, b = one.d.reshape(self.c * self.n, -1), two.d.reshape(self.c * self.n2, -1)
        full = None
        if self.c > 1:
            full = _input_gram(one, two, slice(None), slice(None), weight, bias)[:, 0, 0]
        for tile in self.tiles():
            _, i, _, l = tile
            rows, cols = self.cut(tile)
            hh = full[i, l] if full is not None else _input_gram(one, two, i, l, weight, bias)[:, 0, 0]
            buf = self.four(a[rows] @ b[cols].T, tile)
            self.four(self.k[rows, cols], tile).addcmul_(buf, hh[None, :, None, :])

    def finish(self) -> Tensor:
        """The kernel (n * c, n2 * c), sample-major; exactly symmetric if built as such."""
        if self.symmetric:
            size, step = self.k.shape[0], 128
            for r in range(0, size, step):
                s = min(r + step, size)
                block = self.k[r:s, r:s]
                block.copy_(block.triu() + block.triu(1).T)
                self.k[s:, r:s] = self.k[r:s, s:].T
        if self.c == 1:
            return self.k
        k = self.k.view(self.c, self.n, self.c, self.n2).permute(1, 0, 3, 2)
        return k.reshape(self.n * self.c, self.n2 * self.c)


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
