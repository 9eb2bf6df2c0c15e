"""torch.nn's own layers, each between the input and a small readout."""

# ruff: noqa: E731  (tables: one case a line)
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .case import Case, D, Data, Readout, batch, floats, tokens

First = Callable[[Any], Tensor]


def layer(name: str, make: Callable[[], nn.Module], *shape: int, **kw: Any) -> Iterator[Case]:
    """A layer with five samples, and with as many samples as outputs."""
    pick, train = kw.pop("pick", None), kw.pop("train", True)

    def build() -> nn.Module:
        return Readout(make().double(), floats(2, *shape), pick=pick).double().train(train)

    few = kw.pop("few", True)
    yield Case(name, build, batch(*shape), answers=kw.pop("answers", True), **kw)
    if few:
        yield Case(f"{name}, n = c", build, batch(*shape, n=2, c=2), answers=True, **kw)


def convolutions() -> Iterator[Case]:
    for name, make, shape in (
        ("Conv1d", lambda: nn.Conv1d(2, 3, 3), (2, 6)),
        ("Conv1d stride dilation", lambda: nn.Conv1d(2, 3, 2, stride=2, dilation=2), (2, 8)),
        ("Conv1d circular", lambda: nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"), (2, 5)),
        ("Conv1d replicate", lambda: nn.Conv1d(2, 2, 3, padding=2, padding_mode="replicate"), (2, 5)),
        ("Conv2d", lambda: nn.Conv2d(2, 2, 3), (2, 5, 5)),
        ("Conv2d no bias", lambda: nn.Conv2d(2, 2, 2, bias=False), (2, 4, 4)),
        ("Conv2d depthwise", lambda: nn.Conv2d(2, 4, 2, groups=2), (2, 4, 4)),
        ("Conv2d same reflect", lambda: nn.Conv2d(1, 2, 3, padding="same", padding_mode="reflect"), (1, 4, 4)),
        ("Conv2d 1x1", lambda: nn.Conv2d(3, 2, 1), (3, 3, 3)),
        ("Conv3d", lambda: nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
        ("ConvTranspose1d", lambda: nn.ConvTranspose1d(2, 2, 3, stride=2, output_padding=1), (2, 4)),
        ("ConvTranspose2d", lambda: nn.ConvTranspose2d(2, 2, 2, stride=2), (2, 3, 3)),
        ("ConvTranspose2d groups", lambda: nn.ConvTranspose2d(2, 4, 2, groups=2, padding=1), (2, 4, 4)),
        ("ConvTranspose3d", lambda: nn.ConvTranspose3d(1, 1, 2), (1, 2, 2, 2)),
    ):
        yield from layer(f"conv/{name}", make, *shape)
    yield from layer("conv/Unfold", lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.Unfold(2)), 1, 4, 4)
    yield from layer("conv/Fold", lambda: nn.Sequential(nn.Linear(4, 4), nn.Fold((3, 3), 2)), 4, 4)
    yield from layer("conv/PixelShuffle", lambda: nn.Sequential(nn.Conv2d(1, 4, 2), nn.PixelShuffle(2)), 1, 3, 3)
    yield from layer("conv/PixelUnshuffle", lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.PixelUnshuffle(2)), 1, 4, 4)


def pools() -> Iterator[Case]:
    def after(make: Callable[[], nn.Module], dims: int = 2) -> Callable[[], nn.Module]:
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        return lambda: nn.Sequential(conv(1, 2, 2), make())

    for name, make, dims in (
        ("MaxPool1d", lambda: nn.MaxPool1d(2), 1),
        ("MaxPool2d", lambda: nn.MaxPool2d(2, padding=1), 2),
        ("MaxPool3d", lambda: nn.MaxPool3d(2), 3),
        ("AvgPool1d", lambda: nn.AvgPool1d(2, ceil_mode=True), 1),
        ("AvgPool2d", lambda: nn.AvgPool2d(2, count_include_pad=False, padding=1), 2),
        ("AvgPool3d", lambda: nn.AvgPool3d(2), 3),
        ("LPPool1d", lambda: nn.LPPool1d(2, 2), 1),
        ("LPPool2d", lambda: nn.LPPool2d(3, 2), 2),
        ("AdaptiveAvgPool1d", lambda: nn.AdaptiveAvgPool1d(3), 1),
        ("AdaptiveAvgPool2d", lambda: nn.AdaptiveAvgPool2d((2, None)), 2),
        ("AdaptiveMaxPool1d", lambda: nn.AdaptiveMaxPool1d(2), 1),
        ("AdaptiveMaxPool2d", lambda: nn.AdaptiveMaxPool2d(2), 2),
        ("AdaptiveMaxPool3d", lambda: nn.AdaptiveMaxPool3d(1), 3),
        ("Upsample nearest", lambda: nn.Upsample(scale_factor=2), 1),
        ("Upsample bilinear", lambda: nn.Upsample(size=(5, 4), mode="bilinear", align_corners=True), 2),
        ("Upsample bicubic", lambda: nn.Upsample(scale_factor=2, mode="bicubic"), 2),
        ("ReflectionPad", lambda: nn.ReflectionPad2d(1), 2),
        ("ReplicationPad", lambda: nn.ReplicationPad1d((2, 0)), 1),
        ("CircularPad", lambda: nn.CircularPad2d(1), 2),
        ("ConstantPad", lambda: nn.ConstantPad1d(1, 0.5), 1),
        ("Softmax2d", lambda: nn.Softmax2d(), 2),
        ("ChannelShuffle", lambda: nn.ChannelShuffle(2), 2),
        ("LocalResponseNorm", lambda: nn.LocalResponseNorm(2), 2),
        ("CrossMapLRN2d", lambda: nn.CrossMapLRN2d(2), 2),
    ):
        odd = {"answers": False, "few": False} if name in ("CrossMapLRN2d", "LPPool1d", "LPPool2d") else {}
        yield from layer(f"pool/{name}", after(make, dims), 1, *[4] * dims, **odd)
    # chosen at random by the layer itself, in eval mode too
    yield from layer(
        "pool/FractionalMaxPool2d", after(lambda: nn.FractionalMaxPool2d(2, output_size=3)), 1, 6, 6, few=False
    )


def norms() -> Iterator[Case]:
    for train in (True, False):
        mode = "train" if train else "eval"
        for name, make, shape in (
            ("BatchNorm1d", lambda: nn.BatchNorm1d(4), ()),
            ("BatchNorm1d sequence", lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.BatchNorm1d(2)), ()),
            ("BatchNorm1d no affine", lambda: nn.BatchNorm1d(4, affine=False), ()),
            ("BatchNorm1d no stats", lambda: nn.BatchNorm1d(4, track_running_stats=False), ()),
            ("BatchNorm1d momentum None", lambda: nn.BatchNorm1d(4, momentum=None), ()),
            ("InstanceNorm1d", lambda: nn.Sequential(nn.Unflatten(1, (1, 4)), nn.InstanceNorm1d(1, affine=True)), ()),
            (
                "InstanceNorm1d stats",
                lambda: nn.Sequential(nn.Unflatten(1, (1, 4)), nn.InstanceNorm1d(1, track_running_stats=True)),
                (),
            ),
        ):
            whole = lambda make=make: nn.Sequential(nn.Linear(3, 4), make())
            yield from layer(f"norm/{name} {mode}", whole, 3, *shape, train=train, few=not train)
    for name, make in (
        ("BatchNorm2d", lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2))),
        ("GroupNorm", lambda: nn.Sequential(nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4))),
        ("LayerNorm image", lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.LayerNorm((2, 3, 3)))),
        ("InstanceNorm2d", lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.InstanceNorm2d(2, affine=True))),
    ):
        yield from layer(f"norm/{name}", make, 1, 4, 4)
    yield from layer("norm/BatchNorm3d", lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2)), 1, 3, 3, 3)
    yield from layer(
        "norm/SyncBatchNorm eval", lambda: nn.Sequential(nn.Linear(3, 4), nn.SyncBatchNorm(4)), 3, train=False
    )
    yield from layer("norm/LayerNorm", lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), 3, order=True)
    yield from layer("norm/LayerNorm no bias", lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, bias=False)), 3)
    yield from layer("norm/RMSNorm", lambda: nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4)), 3)


def activations() -> Iterator[Case]:
    plain = [
        "ELU",
        "Hardshrink",
        "Hardsigmoid",
        "Hardtanh",
        "Hardswish",
        "LeakyReLU",
        "LogSigmoid",
        "PReLU",
        "ReLU",
        "ReLU6",
        "SELU",
        "CELU",
        "GELU",
        "Sigmoid",
        "SiLU",
        "Mish",
        "Softplus",
        "Softshrink",
        "Softsign",
        "Tanh",
        "Tanhshrink",
    ]
    smooth = {"GELU", "SiLU", "Softplus", "Tanh", "Mish"}
    for name in plain:
        make = lambda name=name: nn.Sequential(nn.Linear(3, 4), getattr(nn, name)())
        yield from layer(f"activation/{name}", make, 3, order=name in smooth)
    for name, make in (
        ("PReLU channels", lambda: nn.PReLU(4)),
        ("GELU tanh", lambda: nn.GELU("tanh")),
        ("Threshold", lambda: nn.Threshold(0.1, 0.3)),
        ("GLU", lambda: nn.GLU()),
        ("Softmin", lambda: nn.Softmin(-1)),
        ("Softmax", lambda: nn.Softmax(-1)),
        ("LogSoftmax", lambda: nn.LogSoftmax(-1)),
        ("ReLU in place", lambda: nn.ReLU(inplace=True)),
        ("SiLU in place", lambda: nn.SiLU(inplace=True)),
        ("Maxout", lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.AdaptiveMaxPool1d(1))),
    ):
        yield from layer(f"activation/{name}", lambda make=make: nn.Sequential(nn.Linear(3, 4), make()), 3)
    conv = lambda: nn.Sequential(nn.Conv1d(1, 3, 2), nn.PReLU(3))
    yield from layer("activation/PReLU after conv", conv, 1, 4)
    for train in (True, False):
        rrelu = lambda: nn.Sequential(nn.Linear(3, 4), nn.RReLU())
        yield from layer(f"activation/RReLU {'train' if train else 'eval'}", rrelu, 3, train=train, few=not train)
    for name, make in (
        ("Dropout", lambda: nn.Dropout(0.5)),
        ("AlphaDropout", lambda: nn.AlphaDropout(0.3)),
        ("FeatureAlphaDropout", lambda: nn.FeatureAlphaDropout(0.3)),
        ("Dropout1d", lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Dropout1d(0.5))),
        ("Dropout2d", lambda: nn.Sequential(nn.Unflatten(1, (4, 1, 1)), nn.Dropout2d(0.5))),
        ("Dropout3d", lambda: nn.Sequential(nn.Unflatten(1, (4, 1, 1, 1)), nn.Dropout3d(0.5))),
    ):
        whole = lambda make=make: nn.Sequential(nn.Linear(3, 4), make())
        yield from layer(f"dropout/{name} eval", whole, 3, train=False, few=False)
        yield from layer(f"dropout/{name} train", whole, 3, few=False)
    yield from layer("dropout/Dropout p=0 train", lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.0)), 3)
    yield from layer(
        "dropout/Dropout p=1 train",
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(1.0)),
        3,
        answers=False,
        few=False,
    )


def recurrent() -> Iterator[Case]:
    last: First = lambda out: out[0][:, -1]
    for name, make in (
        ("RNN tanh", lambda: nn.RNN(2, 3, batch_first=True)),
        ("RNN relu", lambda: nn.RNN(2, 3, nonlinearity="relu", batch_first=True)),
        ("LSTM", lambda: nn.LSTM(2, 3, batch_first=True)),
        ("LSTM bidirectional", lambda: nn.LSTM(2, 2, batch_first=True, bidirectional=True)),
        ("LSTM projected", lambda: nn.LSTM(2, 3, batch_first=True, proj_size=2)),
        ("LSTM two layers", lambda: nn.LSTM(2, 2, num_layers=2, batch_first=True)),
        ("GRU", lambda: nn.GRU(2, 3, batch_first=True)),
        ("GRU no bias", lambda: nn.GRU(2, 3, batch_first=True, bias=False)),
    ):
        yield from layer(f"recurrent/{name}", make, 3, 2, pick=last)
        if name in ("LSTM", "GRU"):
            yield from layer(f"recurrent/{name} eval", make, 3, 2, pick=last, train=False, few=False)
    yield from layer(
        "recurrent/LSTM dropout train", lambda: nn.LSTM(2, 2, 2, batch_first=True, dropout=0.5), 3, 2, few=False
    )
    yield from layer("recurrent/RNNCell", lambda: nn.RNNCell(2, 3), 2)
    yield from layer("recurrent/LSTMCell", lambda: nn.LSTMCell(2, 3), 2)
    yield from layer("recurrent/GRUCell", lambda: nn.GRUCell(2, 3), 2)

    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.r, self.o = nn.GRU(2, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.o(self.r(x.transpose(0, 1))[1][0])

    yield Case("recurrent/GRU time first", lambda: TimeFirst().double(), batch(3, 2), answers=True)


def attention() -> Iterator[Case]:
    class Attend(nn.Module):
        def __init__(self, **kw: Any) -> None:
            super().__init__()
            self.mask, self.causal = kw.pop("mask", None), kw.pop("causal", False)
            self.weights = kw.pop("weights", True)
            self.m = nn.MultiheadAttention(4, 2, batch_first=True, **kw)

        def forward(self, x: Tensor) -> Tensor:
            mask = None
            if self.mask:
                mask = (torch.arange(x.shape[1]) >= 2).expand(x.shape[0], -1)
            causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1) if self.causal else None
            return self.m(x, x, x, key_padding_mask=mask, attn_mask=causal, need_weights=self.weights)[0]

    for name, kw in (
        ("MultiheadAttention", {}),
        ("MultiheadAttention fast", {"weights": False}),
        ("MultiheadAttention causal", {"causal": True}),
        ("MultiheadAttention padded", {"mask": True}),
        ("MultiheadAttention bias_kv", {"add_bias_kv": True}),
        ("MultiheadAttention zero_attn", {"add_zero_attn": True}),
        ("MultiheadAttention no bias", {"bias": False}),
    ):
        yield from layer(f"attention/{name}", lambda kw=kw: Attend(**kw), 3, 4, few=False)
        if not kw or "weights" in kw:
            yield from layer(f"attention/{name} eval", lambda kw=kw: Attend(**kw), 3, 4, train=False, few=False)
    small = {"d_model": 4, "nhead": 2, "dim_feedforward": 4, "batch_first": True}
    for name, make in (
        ("EncoderLayer", lambda: nn.TransformerEncoderLayer(dropout=0.0, **small)),
        ("EncoderLayer norm first", lambda: nn.TransformerEncoderLayer(dropout=0.0, norm_first=True, **small)),
        ("EncoderLayer gelu", lambda: nn.TransformerEncoderLayer(dropout=0.0, activation="gelu", **small)),
        ("Encoder", lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(dropout=0.0, **small), 1)),
    ):
        yield from layer(f"attention/{name} train", make, 3, 4, few=False)
        yield from layer(f"attention/{name} eval", make, 3, 4, train=False)
    yield from layer(
        "attention/EncoderLayer dropout train", lambda: nn.TransformerEncoderLayer(**small), 3, 4, few=False
    )

    class Decode(nn.Module):
        def __init__(self, whole: bool) -> None:
            super().__init__()
            kw = {"dropout": 0.0, **small}
            self.t = (
                nn.Transformer(num_encoder_layers=1, num_decoder_layers=1, **kw)
                if whole
                else nn.TransformerDecoderLayer(**kw)
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.t(x, x[:, :2])

    yield from layer("attention/DecoderLayer", lambda: Decode(False), 3, 4, few=False)
    yield from layer("attention/Transformer", lambda: Decode(True), 3, 4, few=False)


def embeddings() -> Iterator[Case]:
    class Words(nn.Module):
        def __init__(self, embed: nn.Module, fill: bool = False, bag: bool = False) -> None:
            super().__init__()
            self.e, self.o, self.bag = embed, nn.Linear(3, 2), bag
            if fill:
                nn.init.normal_(embed.weight)

        def forward(self, i: Tensor) -> Tensor:
            return self.o(torch.tanh(self.e(i) if self.bag else self.e(i).mean(1)))

    for name, make, good in (
        ("Embedding", lambda: Words(nn.Embedding(7, 3)), True),
        ("padding zero row", lambda: Words(nn.Embedding(7, 3, padding_idx=0)), False),
        ("padding filled row", lambda: Words(nn.Embedding(7, 3, padding_idx=0), fill=True), False),
        ("scale_grad_by_freq", lambda: Words(nn.Embedding(7, 3, scale_grad_by_freq=True)), False),
        ("sparse", lambda: Words(nn.Embedding(7, 3, sparse=True)), False),
        ("max_norm", lambda: Words(nn.Embedding(7, 3, max_norm=1.0)), False),
        ("max_norm large", lambda: Words(nn.Embedding(7, 3, max_norm=100.0)), False),
        ("bag sum", lambda: Words(nn.EmbeddingBag(7, 3, mode="sum"), bag=True), False),
        ("bag mean", lambda: Words(nn.EmbeddingBag(7, 3, mode="mean"), bag=True), False),
        ("bag max", lambda: Words(nn.EmbeddingBag(7, 3, mode="max"), bag=True), False),
        ("bag padding", lambda: Words(nn.EmbeddingBag(7, 3, mode="mean", padding_idx=0), fill=True, bag=True), False),
        ("bag scale", lambda: Words(nn.EmbeddingBag(7, 3, mode="sum", scale_grad_by_freq=True), bag=True), False),
        ("bag sparse", lambda: Words(nn.EmbeddingBag(7, 3, mode="sum", sparse=True), bag=True), False),
        ("bag max_norm", lambda: Words(nn.EmbeddingBag(7, 3, mode="sum", max_norm=1.0), bag=True), False),
        ("from_pretrained frozen", lambda: Words(nn.Embedding.from_pretrained(floats(7, 3))), True),
    ):
        for n in (5, 2):
            data = batch(4, n=n, make=tokens)
            yield Case(
                f"embedding/{name}{', n = c' if n == 2 else ''}", lambda make=make: make().double(), data, answers=good
            )

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e = nn.Embedding(4, 3, padding_idx=0)
            nn.init.normal_(self.e.weight)
            self.o = nn.Linear(3, 4)
            self.o.weight = self.e.weight

        def forward(self, i: Tensor) -> Tensor:
            return self.o(torch.tanh(self.e(i).mean(1)))

    few = lambda *s, seed=0: tokens(*s, high=4, seed=seed)
    yield Case("embedding/padding and tied", lambda: Tied().double(), batch(4, n=4, c=4, make=few))

    class Offsets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.o = nn.EmbeddingBag(7, 3, mode="sum"), nn.Linear(3, 2)

        def forward(self, i: Tensor, w: Tensor) -> Tensor:
            starts = torch.arange(0, i.numel(), i.shape[1])
            return self.o(self.e(i.reshape(-1), starts, per_sample_weights=w.reshape(-1)))

    data = lambda: Data((tokens(5, 3), floats(5, 3)), floats(5, 2, seed=2), (tokens(2, 3, seed=4), floats(2, 3)))
    yield Case("embedding/bag offsets", lambda: Offsets().double(), data)

    class Lm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e = nn.Embedding(4, 3)

        def forward(self, i: Tensor) -> Tensor:
            return torch.tanh(self.e(i)) @ self.e.weight.T

    y = lambda: Data(few(3, 2, seed=1), few(3, 2, seed=2), few(2, 2, seed=3))
    yield Case("embedding/language model", lambda: Lm().double(), y, loss="cross_entropy", answers=True)


def linear() -> Iterator[Case]:
    yield from layer("linear/Linear", lambda: nn.Linear(3, 4), 3, order=True, moves=True)
    yield from layer("linear/Linear no bias", lambda: nn.Linear(3, 4, bias=False), 3)
    yield from layer("linear/Linear on sequences", lambda: nn.Linear(2, 3), 3, 2)
    yield from layer("linear/Identity", nn.Identity, 3)
    yield from layer("linear/Flatten", lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), 3, 2)
    yield Case("linear/one neuron", lambda: nn.Linear(1, 1).double(), batch(1, c=1), answers=True, moves=True)
    yield Case("linear/zero weights", lambda: zeroed(nn.Linear(3, 2).double()), batch(3), answers=True, moves=True)
    for n in (5, 2):
        two = lambda n=n: Data(
            (floats(n, 3, seed=1), floats(n, 2, seed=5)), floats(n, 2, seed=2), (floats(3, 3), floats(3, 2))
        )
        yield Case(f"linear/Bilinear n={n}", lambda: nn.Bilinear(3, 2, 2).double(), two, answers=True)
        yield Case(
            f"linear/CosineSimilarity n={n}", lambda: Pair(nn.CosineSimilarity()), lambda n=n: pairs(n), answers=True
        )
        yield Case(
            f"linear/PairwiseDistance n={n}", lambda: Pair(nn.PairwiseDistance()), lambda n=n: pairs(n), answers=True
        )
    for name, make in (
        ("LazyLinear made", nn.LazyLinear),
        ("LazyConv1d made", lambda c: nn.LazyConv1d(c, 2)),
        ("LazyBatchNorm1d made", None),
    ):

        def build(make: Any = make) -> nn.Module:
            seq = nn.Sequential(make(2) if make else nn.LazyBatchNorm1d(), nn.Flatten(), nn.LazyLinear(2)).double()
            seq(floats(5, 2, 3) if make else floats(5, 3, seed=1))
            return seq

        yield Case(f"linear/{name}", build, batch(*((2, 3) if make else (3,))), answers=True)
    yield Case("linear/lazy, not yet made", lambda: nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)).double(), batch(3))
    yield Case(
        "linear/AdaptiveLogSoftmax",
        lambda: LogProb(),
        batch(3, n=3, c=4, target=(3, 4)),
        answers=False,
    )


class LogProb(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.AdaptiveLogSoftmaxWithLoss(3, 4, [2]).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.a.log_prob(x)


class Pair(nn.Module):
    def __init__(self, compare: nn.Module) -> None:
        super().__init__()
        self.l, self.compare = nn.Linear(3, 4).double(), compare

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.compare(self.l(a), self.l(b))


def pairs(n: int) -> Data:
    return Data((floats(n, 3, seed=1), floats(n, 3, seed=5)), floats(n, seed=2), (floats(3, 3), floats(3, 3, seed=6)))


def zeroed(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    return model


def cases() -> Iterator[Case]:
    for make in (linear, convolutions, pools, norms, activations, recurrent, attention, embeddings):
        yield from make()


assert D is torch.float64
