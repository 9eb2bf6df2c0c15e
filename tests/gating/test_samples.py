"""Per-sample statistics against a loop over samples with plain autograd, float64."""

from __future__ import annotations

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from jumpstart.gating import contributions
from jumpstart.gating.samples import Recorder, noise, record, samples, used

from .kinds import KINDS, B, agree, each_of, made, oracle, randn, variance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [contributions.CHUNK, 1], ids=["whole", "by one"])
def test_every_kind_of_layer(kind, chunk, monkeypatch):
    monkeypatch.setattr(contributions, "CHUNK", chunk)
    model, x, args, y = made(kind)
    weights = torch.tensor([0.1, 0.4, 0.2, 0.1, 0.2]).double()
    state, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = oracle(model, x, y, weights)
    model.load_state_dict(state)
    with record(model):
        (weights * each_of(model(*args), y)).sum().backward()
        agree(model, found)
        assert torch.equal(drawn, torch.get_rng_state())
    plain = copy.deepcopy(model)
    plain.load_state_dict(state)
    (weights * each_of(plain(*args), y)).sum().backward()
    # Statistics of a layer move once a call: what is run again is no call.
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_variance_is_that_of_the_gradient_whatever_the_reduction(reduction):
    model, x, _, y = made("mlp")
    scale = 1 / B if reduction == "mean" else 1.0
    found = oracle(model, x, y, torch.full((B,), scale, dtype=torch.float64))
    with record(model):
        getattr(each_of(model(x), y), reduction)().backward()
        agree(model, found)


def test_backward_passes_accumulate_until_a_step_or_zero_grad():
    model, x, _, y = made("mlp")
    weights = torch.linspace(0.1, 1, B).double()
    found = oracle(model, x, y, weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with record(model):
        for way in ("none", "zeros", "used", "scaled"):
            for low, high in ((0, 1), (1, 5)):
                (weights[low:high] * each_of(model(x[low:high]), y[low:high])).sum().backward()
                if way == "scaled" and low == 0:  # between two backward passes
                    for p in model.parameters():
                        p.grad *= 2
            if way == "scaled":
                found = {name: torch.cat([2 * rows[:1], rows[1:]]) for name, rows in found.items()}
            agree(model, found)
            optimizer.zero_grad(set_to_none=way == "none")
            if way == "used":
                for p in model.parameters():
                    used(p)
        assert all(noise(p) is None or not noise(p).any() for p in model.parameters())


def test_clipping_and_unscaling_scale_the_noise():
    model, x, _, y = made("mlp")
    found = oracle(model, x, y, torch.ones(B).double())
    with record(model):
        (1024 * each_of(model(x), y).sum()).backward()
        for p in model.parameters():
            p.grad.data.mul_(1 / 1024)
        agree(model, found)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        clipped = {name: rows * (0.01 / (norm + 1e-6)) for name, rows in found.items()}
        torch.autograd.grad(each_of(model(x), y).sum(), list(model.parameters()))  # goes elsewhere
        agree(model, clipped)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("kind", ["mlp", "sequence", "conv2d", "layer norm", "shared", "attention"])
def test_single_and_half_precision(kind, dtype, tolerance):
    model, x, _, y = made(kind)
    model, x = model.to(dtype), x.to(dtype) if x.is_floating_point() else x
    wide = copy.deepcopy(model).double()
    found = oracle(wide, x.double() if x.is_floating_point() else x, y, torch.ones(B).double())
    with record(model):
        each_of(model(x), y.to(dtype)).sum().backward()
        for name, p in model.named_parameters():
            rows = found[name]
            # (b Σ c² − G²)/(b − 1): what is left where the signal dominates is as exact as what was taken off.
            scale = B / (B - 1) * rows.square().sum(0).norm()
            assert noise(p).dtype == torch.float32
            assert (noise(p).double() - variance(rows)).norm() <= tolerance * scale, name


def test_autocast():
    model, x, _, y = made("attention")
    model, x = model.float(), x.float()
    found = oracle(model, x, y.float(), torch.ones(B))
    with record(model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(x)
        each_of(out.float(), y.float()).sum().backward()
        for name, p in model.named_parameters():
            want = variance(found[name])
            assert (noise(p) - want).norm() <= 0.1 * want.norm(), name


def test_checkpoints_frozen_parameters_and_evaluations_between():
    model, x, _, y = made("mlp")
    model[0].bias.requires_grad_(False)
    found = oracle(model, x, y, torch.ones(B).double())
    with record(model):
        out = checkpoint(lambda x: model[2](model[1](model[0](x))), x, use_reentrant=False)
        with torch.no_grad():
            model(x[:2])
        model(x[:3])  # never differentiated
        other = torch.autograd.grad(each_of(model(x[:2]), y[:2]).sum(), model[0].weight)
        assert other[0].any()
        each_of(out, y).sum().backward()
        agree(model, found)


def test_a_checkpoint_keeps_no_inputs():
    """What is kept for the record is kept as autograd keeps it: dropped, and made again in the backward pass."""
    model, _, _, _ = made("mlp")
    kept = []

    class Seen(nn.Module):
        def forward(self, x):
            x = x * 2
            kept.append(weakref.ref(x))
            return x

    inner = nn.Sequential(Seen(), model[0])
    with record(inner):
        out = checkpoint(inner, randn(B, 3), use_reentrant=False)
        gc.collect()
        assert kept[0]() is None
        out.sum().backward()
        assert samples(model[0].weight) == B


def test_calls_of_the_model_in_one_backward_pass_are_rows_of_the_same_samples():
    model, x, _, y = made("sequence")
    found = oracle(Pairs(model), (x, x.flip(1) * 2), y, torch.ones(B).double())
    with record(model):
        each_of(model(x) * model(x.flip(1) * 2), y).sum().backward()
        agree(model, {name.removeprefix("model."): rows for name, rows in found.items()})


class Pairs(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, one, two):
        return self.model(one) * self.model(two)


def test_a_graph_that_is_kept_is_asked_twice():
    model, x, _, y = made("mlp")
    found = oracle(model, x, y, torch.ones(B).double())
    with record(model):
        loss = each_of(model(x), y).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        agree(model, {name: torch.cat([rows, rows]) for name, rows in found.items()})


def test_microbatches():
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(8, 2)).double()
    x, y = randn(9, 3, 4), randn(9, 2)
    rows, cuts = [], ((0, 4), (4, 9), (1, 7))
    with record(model, each="microbatch") as recorder:
        for low, high in cuts:
            model.zero_grad()
            each_of(model(x[low:high]), y[low:high]).sum().backward()
            rows.append([p.grad.clone() for p in model.parameters()])
        model.zero_grad()
        for low, high in cuts:
            each_of(model(x[low:high]), y[low:high]).sum().backward()
        for p, parts in zip(model.parameters(), zip(*rows, strict=True), strict=True):
            want = variance(torch.stack(parts))
            assert samples(p) == 3 and (noise(p) - want).norm() <= 1e-10 * want.norm()
        assert isinstance(recorder, Recorder)


def test_chosen_parameters_and_two_models():
    (one, x, _, y), (two, *_) = made("mlp"), made("mlp")
    found, other = (oracle(model, x, y, torch.ones(B).double()) for model in (one, two))
    with record(one, params=[one[2].weight]), record(two):
        each_of(one(x), y).sum().backward()
        agree(one, {"2.weight": found["2.weight"]})
        assert samples(two[2].weight) == 0
        each_of(two(x), y).sum().backward()
        agree(two, other)


def test_nothing_is_left_behind():
    model, x, _, y = made("attention")
    plain = copy.deepcopy(model)
    recorder = record(model)
    each_of(model(x), y).sum().backward()
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for other in (copy.deepcopy(model), torch.load(stream, weights_only=False)):
        other.zero_grad()
        each_of(other(x), y).sum().backward()
        assert all(samples(p) == 0 for p in other.parameters())
    assert all(samples(p) == B for p in model.parameters())
    recorder.remove()
    assert all(samples(p) == 0 and noise(p) is None for p in model.parameters())
    for module, bare in zip(model.modules(), plain.modules(), strict=True):
        assert len(module._forward_hooks) == len(bare._forward_hooks) == len(module._forward_pre_hooks) == 0
    assert not any(p._backward_hooks for p in model.parameters())
    recorder = record(model)
    each_of(model(x), y).sum().backward()
    gone = [weakref.ref(model), weakref.ref(next(model.parameters()))]
    del model, module, bare, other
    gc.collect()
    assert [find() for find in gone] == [None, None]
    recorder.remove()


def test_memory_is_bounded_by_chunks(monkeypatch):
    """No tensor of all per-sample gradients: the largest one made in a backward pass is of a chunk."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and not out._is_view():
                self.size = max(self.size, out.numel())
            return out

    rows, width = 64, 24
    for model, x, bound in (
        (nn.Linear(width, width), randn(rows, width), width**2),
        (nn.Linear(width, width), randn(rows, 3, width), 4 * width**2),
        (nn.Conv1d(width, width, 1), randn(rows, width, 3), 4 * width**2),
        (nn.Embedding(500, width), torch.arange(rows * 3).view(rows, 3), 500 * width),
        (nn.RNN(width, width, batch_first=True), randn(rows, 2, width), 6 * width**2),
    ):
        model = model.double()
        monkeypatch.setattr(contributions, "CHUNK", 4 * width**2)
        with record(model):
            out = model(x)
            loss = (out[0] if isinstance(out, tuple) else out).square().sum()
            with Largest() as largest:
                loss.backward()
            p = next(model.parameters())
            assert noise(p).shape == p.shape
        assert largest.size <= max(bound, 3 * rows * width) < rows * p.numel()


def test_functional_stand_ins_are_not_recorded():
    model, x, _, y = made("mlp")
    with record(model):
        others = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
        each_of(torch.func.functional_call(model, others, x), y).sum().backward()
        torch.func.grad(lambda o: each_of(torch.func.functional_call(model, o, x), y).sum())(others)
        assert all(samples(p) == 0 for p in model.parameters())
        found = oracle(model, x, y, torch.ones(B).double())
        out = model(x)
        other = torch.func.functional_call(model, others, 2 * x)  # differentiated first
        (each_of(out, y).sum() + each_of(other, y).sum()).backward()
        agree(model, found)
