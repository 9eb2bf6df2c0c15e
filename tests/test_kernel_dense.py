"""dense_kernel against the explicit Jacobian, over architectures, routes and calling conventions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import weight_norm

from jumpstart.kernel.dense import dense_kernel

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


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", [*LAYERWISE, *OTHERS])
class TestAgainstJacobian:
    def test_symmetric(self, name, seed):
        call, params, batch = make(name, seed)
        x, report = batch(6), {}
        k = dense_kernel(call, params, x, report=report)
        close(k, explicit(call, params, x))
        assert torch.equal(k, k.T)
        assert torch.linalg.eigvalsh(k)[0] >= -1e-10 * k.norm()
        assert set(report) == set(params)
        if name in LAYERWISE:
            assert set(report.values()) == {"layerwise"}

    def test_rectangular_with_metric(self, name, seed):
        call, params, batch = make(name, seed)
        x, x2 = batch(6), batch(4)
        metric = {k: torch.rand_like(p) + 0.1 for k, p in params.items()}
        first = next(iter(params))
        metric[first] = torch.full_like(params[first], 0.7)
        close(dense_kernel(call, params, x, x2), explicit(call, params, x, x2))
        close(dense_kernel(call, params, x, metric=metric), explicit(call, params, x, metric=metric))
        k = dense_kernel(call, params, x, x2, metric=metric, chunk_bytes=4000)
        close(k, explicit(call, params, x, x2, metric))

    def test_small_chunks_one_sample_and_subset(self, name, seed):
        call, params, batch = make(name, seed)
        x = batch(5)
        k = dense_kernel(call, params, x, chunk_bytes=1)
        close(k, explicit(call, params, x))
        assert torch.equal(k, k.T)
        x = batch(1)
        close(dense_kernel(call, params, x), explicit(call, params, x))
        some = {k: p for at, (k, p) in enumerate(params.items()) if at % 2}
        close(dense_kernel(call, some, x), explicit(call, some, x))


@pytest.mark.parametrize("tie", ["functional", "module"])
def test_tied_weights_are_one_parameter(tie):
    """The kernel must contain the cross terms between the two uses of the embedding, and be layerwise."""
    torch.manual_seed(3)
    model = randomise(GPT(tie=tie))
    call, x, report = pure(model), tokens(6), {}
    params = {"emb.weight": model.emb.weight}
    k = dense_kernel(call, params, x, report=report)
    close(k, explicit(call, params, x))
    assert report == {"emb.weight": "layerwise"}
    emb, dec = model.emb.weight, model.emb.weight.detach().clone()

    def untied(p, x):
        h = p["emb"][x] + model.pos(torch.arange(x.shape[1]))
        h = h + model.att(model.ln1(h))
        h = model.ln3(h + model.down(F.gelu(model.up(model.ln2(h)))))
        return F.linear(h[:, -1], p["dec"])

    without = explicit(untied, {"emb": emb, "dec": dec}, x)
    assert (without - k).norm() > 1e-2 * k.norm()


def test_routes():
    call, params, batch = make("gpt-functional", 0)
    report = {}
    dense_kernel(call, params, batch(6), report=report)
    assert set(report.values()) == {"layerwise"}
    # As many samples as positions: the position indices look like a batch.
    x = batch(5)
    close(dense_kernel(call, params, x, report=report), explicit(call, params, x))
    assert set(report.values()) == {"layerwise"}

    def shuffled(p, x):  # broadcasting by something else than a sum
        return torch.maximum(F.embedding(torch.arange(5), p["pos"]), x).sum(1)

    x, pos = floats(5, 3)(5), {"pos": torch.randn(5, 3, dtype=torch.float64)}
    close(dense_kernel(shuffled, pos, x, report=report), explicit(shuffled, pos, x))
    assert report["pos"] == "per-sample"

    call, params, batch = make("raw", 0)
    x = batch(6)
    dense_kernel(call, params, x, report=report)
    assert report["w"] == "per-sample"  # one of its two uses is recorded: only the check can tell
    assert report["a.weight"] == report["c.bias"] == report["b"] == "layerwise"

    for name, start in (("weight-norm", "0.param"), ("encoder", "self_attn.in")):
        call, params, batch = make(name, 0)
        report = {}
        dense_kernel(call, params, batch(6), report=report)
        for k, route in report.items():
            assert route == ("per-sample" if k.startswith(start) or "self_attn" in k else "layerwise")


@pytest.mark.parametrize("seed", SEEDS)
def test_interacting_samples(seed):
    torch.manual_seed(seed)
    model = randomise(
        nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Tanh(), nn.Linear(6, 2))
    )
    call, params = pure(model), dict(model.named_parameters())
    x, x2, report = floats(4)(7), floats(4)(5), {}
    close(dense_kernel(call, params, x, report=report), explicit(call, params, x))
    assert report["0.weight"] == "per-output"
    assert report["1.weight"] == report["1.bias"] == report["3.weight"] == report["3.bias"] == "layerwise"
    close(dense_kernel(call, params, x, x2), explicit(call, params, x, x2))
    close(dense_kernel(call, params, x, chunk_bytes=1), explicit(call, params, x))


def test_data_dependent_control_flow():
    def call(p, x):
        h = x @ p["w"]
        return h if float(h.detach().sum()) > 0 else h**2

    torch.manual_seed(0)
    params, report = {"w": torch.randn(4, 2, dtype=torch.float64)}, {}
    x = floats(4)(6)
    close(dense_kernel(call, params, x, report=report), explicit(call, params, x))
    assert report == {"w": "per-output"}


def test_gram_and_gradient_forms_agree():
    """Layers wide enough that the Gram form is chosen for sequences, with tiles that cut through samples."""
    torch.manual_seed(0)
    model = randomise(
        nn.Sequential(nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 60), nn.Tanh(), nn.Flatten(), nn.Linear(120, 2))
    )
    call, params = pure(model), dict(model.named_parameters())
    x, x2 = floats(2, 3)(90), floats(2, 3)(70)
    k = dense_kernel(call, params, x)
    close(k, explicit(call, params, x))
    assert torch.equal(k, k.T)
    close(dense_kernel(call, params, x, x2), explicit(call, params, x, x2))
    some = {k: p for k, p in params.items() if k.endswith("weight")}
    close(dense_kernel(call, some, x), explicit(call, some, x))


class Cube(torch.autograd.Function):
    """No batching rule: neither vmap nor batched backward passes work."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy() ** 3)

    @staticmethod
    def backward(ctx, *grads):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(grads[0].numpy() * 3 * x.detach().numpy() ** 2)


def test_operation_without_batching_rule():
    torch.manual_seed(0)
    params = {k: torch.randn(4, 4, dtype=torch.float64) for k in ("a", "b")}

    def forward(cube):
        return lambda p, x: F.linear(cube(F.linear(x, p["a"]) @ p["b"]), p["b"])

    x, report = floats(4)(6), {}
    k = dense_kernel(forward(Cube.apply), params, x, report=report)
    close(k, explicit(forward(lambda h: h**3), params, x))
    assert report == {"a": "layerwise", "b": "per-output"}


def test_sequences_of_different_length():
    torch.manual_seed(0)
    model = randomise(nn.Sequential(nn.Linear(4, 40), nn.LayerNorm(40), nn.Tanh(), nn.Linear(40, 30)))
    net, params = pure(model), dict(model.named_parameters())

    def call(p, x):
        return net(p, x).mean(1)[:, :3]

    for t, t2 in ((3, 2), (1, 4), (30, 20)):
        x, x2 = floats(t, 4)(7), floats(t2, 4)(5)
        close(dense_kernel(call, params, x, x2), explicit(call, params, x, x2))


def test_embedding_gram():
    torch.manual_seed(0)
    model = randomise(nn.Sequential(nn.Embedding(300, 4, padding_idx=-1), nn.Flatten(), nn.Linear(8, 2)))
    call, params = pure(model), dict(model.named_parameters())
    x, x2 = torch.randint(300, (60, 2)), torch.randint(290, 300, (50, 2))
    x[:10] = torch.randint(290, 300, (10, 2))
    close(dense_kernel(call, params, x), explicit(call, params, x))
    close(dense_kernel(call, params, x, x2), explicit(call, params, x, x2))


@pytest.mark.parametrize(("n", "c"), [(300, 1), (90, 3), (700, 2)])
def test_tiles(n, c):
    torch.manual_seed(0)
    model = randomise(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, c)))
    call, params = pure(model), dict(model.named_parameters())
    x = floats(3)(n)
    k = dense_kernel(call, params, x)
    close(k, explicit(call, params, x))
    assert torch.equal(k, k.T)


def test_calling_conventions():
    """Flat output, nested inputs, grad mode off, unused and frozen parameters, nothing left behind."""
    torch.manual_seed(0)
    net = randomise(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)))
    params = {**dict(net.named_parameters()), "unused": nn.Parameter(torch.ones(3, dtype=torch.float64))}

    def call(p, x):
        p = {k: v for k, v in p.items() if k != "unused"}
        return functional_call(net, p, (x["a"] + x["b"][0],))[:, 0]

    x, state = {"a": floats(4)(6), "b": [floats(4)(6), None]}, torch.get_rng_state()
    report = {}
    with torch.no_grad():
        k = dense_kernel(call, params, x, report=report)
    close(k, explicit(call, {k: p for k, p in params.items() if k != "unused"}, x))
    with torch.inference_mode():
        assert torch.equal(k, dense_kernel(call, params, x))
    assert report["unused"] == "layerwise"
    assert not k.requires_grad
    assert all(p.grad is None and p.requires_grad for p in params.values())
    assert torch.equal(state, torch.get_rng_state())
    assert not dense_kernel(call, {"unused": params["unused"]}, x).any()
    assert not dense_kernel(call, {}, x).any()


def test_nested_input_on_the_sample_route():
    torch.manual_seed(0)
    params = {"w": torch.randn(4, 2, dtype=torch.float64)}

    def call(p, x):
        return torch.tanh(x["a"] @ p["w"]) * x["scale"] + x["b"][0][:, :2]

    x = {"a": floats(4)(6), "b": (floats(4)(6), "kept"), "scale": torch.tensor(2.0)}
    report = {}
    close(dense_kernel(call, params, x, report=report), explicit(call, params, x))
    assert report == {"w": "per-sample"}


def test_vanishing_gradient_is_not_a_disagreement():
    """A key bias has zero gradient in exact arithmetic; its rounding noise must not cost the fast route."""
    torch.manual_seed(0)
    model = randomise(nn.Sequential(Attention(8, 2), nn.Flatten(), nn.Linear(40, 3)))
    report = {}
    dense_kernel(pure(model), dict(model.named_parameters()), floats(5, 8)(6), report=report)
    assert set(report.values()) == {"layerwise"}


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_lower_precision(dtype, tol):
    torch.manual_seed(0)
    model = randomise(nn.Sequential(nn.Linear(4, 30), nn.LayerNorm(30), nn.Tanh(), nn.Linear(30, 2)))
    x = floats(4)(6)
    want = explicit(pure(model), dict(model.named_parameters()), x)
    model, report = model.to(dtype), {}
    k = dense_kernel(pure(model), dict(model.named_parameters()), x.to(dtype), report=report)
    assert k.dtype == torch.float32
    assert (k.double() - want).norm() <= tol * want.norm()
    assert set(report.values()) == {"layerwise"}


def test_errors():
    call, params, batch = make("mlp", 0)
    x = batch(3)
    with pytest.raises(TypeError, match="floating"):
        dense_kernel(lambda p, x: x.long(), params, x)
    with pytest.raises(ValueError, match="leading batch"):
        dense_kernel(lambda p, x: call(p, x).sum(), params, x)
    with pytest.raises(ValueError, match=r"0\.weight"):
        dense_kernel(call, params, x, metric={})
    with pytest.raises(ValueError, match="negative"):
        dense_kernel(call, params, x, metric={k: -torch.ones_like(p) for k, p in params.items()})
    with pytest.raises(ValueError, match="outputs per sample"):
        dense_kernel(lambda p, x: call(p, x)[:, : len(x)], params, x, batch(2))
