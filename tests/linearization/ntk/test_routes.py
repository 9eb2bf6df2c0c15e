"""Which way each parameter of the dense kernel goes, and what must not lead it astray."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.metric import Metric
from jumpstart.linearization.ntk import train_kernel
from jumpstart.linearization.ntk.batch import RecordedBatch
from jumpstart.linearization.ntk.contract import Accumulator
from jumpstart.linearization.ntk.dense import dense_kernel
from jumpstart.objectives.objective import supervised

from .kernel_models import (
    GPT,
    SEEDS,
    Attention,
    close,
    explicit,
    floats,
    make,
    pure,
    randomise,
    tokens,
)


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


def test_routes_are_checked_once_for_each_mode(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    objective, asked = supervised(model, x, y), []
    check = RecordedBatch.check_layers
    monkeypatch.setattr(RecordedBatch, "check_layers", lambda batch: asked.append(batch) or check(batch))
    for training in (True, True, False, False, True):
        model.train(training)
        lin = linearize(objective)
        j = lin.jacobian()
        close(train_kernel(lin, Metric()), j @ j.T)
        with torch.no_grad():
            model[0].weight.mul_(1.1)
    assert len(asked) == 2


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("name", ["mlp", "sequence", "cnn", "bag", "norms"])
def test_tiles_of_any_size_cover_the_matrix(name, rows, monkeypatch):
    tiles = Accumulator.tiles
    monkeypatch.setattr(Accumulator, "tiles", lambda acc, _=0: tiles(acc, rows))
    call, params, batch = make(name, 0)
    x, x2 = batch(5), batch(4)
    k = dense_kernel(call, params, x)
    close(k, explicit(call, params, x))
    assert torch.equal(k, k.T)
    close(dense_kernel(call, params, x, x2), explicit(call, params, x, x2))
