"""Networks of every kind that the kernel is tried on, and the explicit Jacobian as its oracle."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import weight_norm

SEEDS = (0, 1, 2)


def pure(model):
    buffers = dict(model.named_buffers())
    frozen = dict(model.named_parameters())
    return lambda p, x: functional_call(model, {**frozen, **buffers, **p}, x if isinstance(x, tuple) else (x,))


def jacobian(call, params, x):
    with sdpa_kernel(SDPBackend.MATH):
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        j = jacrev(lambda p: call(p, x).reshape(-1))({k: p.detach() for k, p in params.items()})
        torch.backends.mha.set_fastpath_enabled(fast)
    return {k: v.reshape(len(v), -1) for k, v in j.items()}


def explicit(call, params, x, x2=None, metric=None):
    one = jacobian(call, params, x)
    two = one if x2 is None else jacobian(call, params, x2)
    return sum((one[k] * (1.0 if metric is None else metric[k].reshape(-1))) @ two[k].T for k in params)


def close(got, want, tol=1e-10):
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    assert (got - want).norm() <= tol * want.norm()


def randomise(model):
    """Double precision, and no parameter or buffer at a special value such as LayerNorm's ones."""
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for name, b in model.named_buffers():
            if b.is_floating_point():
                b.copy_(torch.rand_like(b) + 0.5 if "var" in name else 0.3 * torch.randn_like(b))
    return model


class Attention(nn.Module):
    def __init__(self, d, heads, sdpa=True):
        super().__init__()
        self.heads, self.sdpa = heads, sdpa
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))

    def forward(self, h):
        n, t, d = h.shape
        q, k, v = (m(h).view(n, t, self.heads, -1).transpose(1, 2) for m in (self.q, self.k, self.v))
        if self.sdpa:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            mask = torch.ones(t, t, dtype=torch.bool).triu(1)
            y = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(mask, -torch.inf).softmax(-1) @ v
        return self.o(y.transpose(1, 2).reshape(n, t, d))


class GPT(nn.Module):
    """Causal transformer with learned positions; tie: "module" | "functional" | None."""

    def __init__(self, vocab=7, d=8, t=5, tie="functional", last=True, sdpa=True):
        super().__init__()
        self.tie, self.last = tie, last
        self.emb, self.pos = nn.Embedding(vocab, d), nn.Embedding(t, d)
        self.ln1, self.ln2, self.ln3 = (nn.LayerNorm(d) for _ in range(3))
        self.att, self.up, self.down = Attention(d, 2, sdpa), nn.Linear(d, 12), nn.Linear(12, d)
        if tie != "functional":
            self.decoder = nn.Linear(d, vocab, bias=False)
        if tie == "module":
            self.decoder.weight = self.emb.weight

    def forward(self, idx):
        h = self.emb(idx) + self.pos(torch.arange(idx.shape[1]))
        h = h + self.att(self.ln1(h))
        h = self.ln3(h + self.down(F.gelu(self.up(self.ln2(h)))))
        h = h[:, -1] if self.last else h
        return F.linear(h, self.emb.weight) if self.tie == "functional" else self.decoder(h)


class Raw(nn.Module):
    """A raw matrix parameter between recorded layers, which is also the weight of one of them."""

    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Linear(4, 6), nn.Linear(6, 2)
        self.w, self.b = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x):
        h = torch.tanh(self.a(x) @ self.w + self.b)
        return self.c(torch.tanh(F.linear(h, self.w)))


class Scales(nn.Module):
    """Parameters that broadcast in sums and products: positions, a layer scale, a scalar, a norm."""

    def __init__(self):
        super().__init__()
        self.pos, self.gamma = nn.Parameter(torch.randn(1, 3, 4)), nn.Parameter(torch.randn(4))
        self.column, self.scalar = nn.Parameter(torch.randn(3, 1)), nn.Parameter(torch.randn(()))
        self.table, self.out = nn.Embedding(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.tanh(self.pos + x) * self.scalar
        place = self.table(torch.arange(3)[None])
        h = self.gamma * (h + place) / (1 + h.square().mean(-1, keepdim=True)) + place
        return self.out(torch.mul(torch.tanh(h), self.column) + self.scalar).mean(1)


def mlp():
    return nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 7), nn.ReLU(inplace=True), nn.Linear(7, 3))


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, (3, 2), padding="same", groups=2, dilation=(1, 2)),
        nn.GroupNorm(2, 8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False, padding_mode="circular"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    ).eval()


def conv1d():
    return nn.Sequential(
        nn.Conv1d(2, 5, 3, padding="valid"),
        nn.BatchNorm1d(5),
        nn.SiLU(inplace=True),
        nn.Conv1d(5, 4, 4, padding="same", padding_mode="reflect"),
        nn.Tanh(),
        nn.Conv1d(4, 2, 2, stride=2, padding=1, dilation=2),
    ).eval()


def norms():
    return nn.Sequential(
        nn.Linear(4, 6),
        nn.LayerNorm((3, 6)),
        nn.Tanh(),
        nn.RMSNorm(6),
        nn.Linear(6, 4),
        nn.LayerNorm(4, bias=False),
    )


def bag():
    return nn.Sequential(nn.Embedding(7, 4, padding_idx=2), nn.Flatten(), nn.Linear(20, 6), nn.Tanh(), nn.Linear(6, 2))


def floats(*shape):
    return lambda n: torch.randn(n, *shape, dtype=torch.float64)


def tokens(n):
    return torch.randint(7, (n, 5))


LAYERWISE = {
    "mlp": (mlp, floats(4)),
    "sequence": (mlp, floats(5, 4)),
    "cnn": (cnn, floats(3, 9, 8)),
    "conv1d": (conv1d, floats(2, 11)),
    "norms": (norms, floats(3, 4)),
    "bag": (bag, tokens),
    "scales": (Scales, floats(3, 4)),
    "gpt-functional": (lambda: GPT(tie="functional"), tokens),
    "gpt-module": (lambda: GPT(tie="module"), tokens),
    "gpt-untied": (lambda: GPT(tie=None, last=False, sdpa=False), tokens),
}
OTHERS = {
    "encoder": (lambda: nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True), floats(3, 4)),
    "encoder-eval": (lambda: nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True).eval(), floats(3, 4)),
    "weight-norm": (
        lambda: nn.Sequential(weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)),
        floats(4),
    ),
    "raw": (Raw, floats(4)),
    "lstm": (lambda: First(nn.LSTM(4, 3, batch_first=True)), floats(3, 4)),
}


class First(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[0]


def make(name, seed):
    torch.manual_seed(seed)
    build, batch = (LAYERWISE | OTHERS)[name]
    model = randomise(build())
    return pure(model), dict(model.named_parameters()), batch
