"""Models of every kind of layer, and what each sample adds to their gradients: a loop with plain autograd."""

from __future__ import annotations

import torch
from torch import nn

from jumpstart.gating.samples import noise, samples

B = 5


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def each_of(outputs, targets):
    """A loss for every sample, not symmetric in anything."""
    return ((outputs - targets).square() + outputs.sin()).flatten(1).sum(1)


def oracle(model, x, y, weights):
    """What each sample adds: name → (b, *shape)."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = {name: [] for name in named}
    for i in range(len(y)):
        one = [v[i : i + 1] for v in x] if isinstance(x, tuple) else [x[i : i + 1]]
        loss = weights[i] * each_of(model(*one), y[i : i + 1]).sum()
        grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for (name, p), g in zip(named.items(), grads, strict=True):
            found[name].append(torch.zeros_like(p) if g is None else g)
    return {name: torch.stack(rows) for name, rows in found.items()}


def variance(rows):
    return len(rows) * rows.var(0)


def agree(model, found, tolerance=1e-10):
    for name, p in model.named_parameters():
        if name not in found:
            assert noise(p) is None and samples(p) == 0
            continue
        want = variance(found[name].to(torch.float64))
        assert samples(p) == len(found[name])
        assert (noise(p) - want).norm() <= tolerance * want.norm(), name
        assert torch.allclose(found[name].sum(0).to(p.dtype), p.grad, rtol=tolerance, atol=tolerance)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru = nn.LSTM(3, 4, 2, batch_first=True), nn.GRU(3, 4)

    def forward(self, x):
        out, (h, c) = self.lstm(x)
        return out + (h * c).movedim(1, 0).sum(1, keepdim=True) + self.gru(x.movedim(0, 1))[0].movedim(0, 1)


class Own(nn.Module):
    """Parameters of its own, in a list, behind a parametrization, and keywords and tuples between modules."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.table = nn.Parameter(randn(4)), nn.Parameter(randn(1, 1, 4))

        def forward(self, x, *, other, mask):
            return x * self.scale * mask, (other["x"] + self.table).tanh()

    def __init__(self):
        super().__init__()
        self.token, self.pair = nn.Parameter(randn(1, 1, 4)), self.Pair()
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.few = nn.ParameterList([randn(4)])

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        one, two = self.pair(x, other={"x": x}, mask=torch.ones(x.shape[1], 1).double())
        return self.normed(one + two).relu() * self.few[0]


class Shared(nn.Module):
    """A table that is the head as well, and a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.table, self.twice = nn.Embedding(7, 4, padding_idx=2), nn.Linear(4, 4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.twice(torch.tanh(self.twice(self.table(x)))))


class Crossed(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=False)

    def forward(self, x):
        x, mask = x.movedim(0, 1), x[:, :, 0] > 1
        found, weights = self.attention(x, x * x, x, key_padding_mask=mask, attn_mask=torch.zeros(6, 6).bool())
        return found.movedim(1, 0) + weights.sum(-1, keepdim=True) * weights.square().sum((1, 2), keepdim=True)


def conv(kind, *sizes, **options):
    return kind(4, 6, 3, groups=2, **options), randn(B, 4, *sizes)


def images():
    return randn(B, 4, 5, 6)


def tokens():
    return torch.randint(0, 7, (B, 6))


KINDS = {
    "mlp": lambda: (nn.Sequential(nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 2, bias=False)), randn(B, 3)),
    "sequence": lambda: (nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)), randn(B, 6, 3)),
    "positions": lambda: (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), randn(B, 2, 3, 3)),
    "conv1d": lambda: conv(nn.Conv1d, 9, stride=2, padding=2, padding_mode="replicate"),
    "conv2d": lambda: conv(nn.Conv2d, 8, 9, stride=(2, 1), padding=(1, 2), dilation=(1, 2), padding_mode="circular"),
    "conv same": lambda: (nn.Conv2d(4, 3, (2, 4), padding="same"), randn(B, 4, 6, 5)),
    "conv3d": lambda: conv(nn.Conv3d, 4, 5, 4, padding=1),
    "transposed": lambda: (nn.ConvTranspose2d(4, 3, 2, stride=2), images()),
    "embedding": lambda: (nn.Embedding(7, 3, padding_idx=2), tokens()),
    "bag": lambda: (nn.EmbeddingBag(7, 3, mode="mean"), tokens()),
    "layer norm": lambda: (nn.Sequential(nn.LayerNorm((3, 4)), nn.LayerNorm(4, bias=False)), randn(B, 6, 3, 4)),
    "rms norm": lambda: (nn.RMSNorm(4), randn(B, 6, 4)),
    "group norm": lambda: (nn.Sequential(nn.GroupNorm(2, 4), nn.PReLU(4), nn.PReLU()), images()),
    "instance norm": lambda: (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), images()),
    "batch norm": lambda: (nn.BatchNorm2d(4).eval(), images()),
    "bilinear": lambda: (nn.Bilinear(3, 4, 2), (randn(B, 3), randn(B, 4))),
    "recurrent": lambda: (Recurrent(), randn(B, 6, 3)),
    "attention": lambda: (nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), randn(B, 6, 4)),
    "attention with masks": lambda: (Crossed(), randn(B, 6, 4)),
    "own parameters": lambda: (Own(), randn(B, 6, 4)),
    "shared": lambda: (Shared(), tokens()),
}


def made(kind):
    model, x = KINDS[kind]()
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    args = x if isinstance(x, tuple) else (x,)
    with torch.no_grad():
        shape = model(*args).shape
    return model, x, args, randn(*shape)
