"""torch.nn's own layers, each between the input and a small readout."""

# ruff: noqa: E731  (tables: one case a line)
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .case import Case, D, Data, Readout, batch, floats

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
    for make in (linear, convolutions, pools, norms, activations):
        yield from make()


assert D is torch.float64
