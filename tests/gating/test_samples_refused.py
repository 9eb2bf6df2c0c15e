"""What per-sample statistics cannot tell is said, with the name of the module or the parameter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from jumpstart.errors import InputError, NoParametersError
from jumpstart.gating.samples import noise, record, samples, used

X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)


def net(*more):
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), *more, nn.Linear(4, 2)).double()


class Functional(nn.Module):
    """Uses a child's weight without calling the child, beside a call if asked to."""

    def __init__(self, beside):
        super().__init__()
        self.inner, self.outer, self.beside = nn.Linear(3, 4), nn.Linear(4, 2), beside

    def forward(self, x):
        found = F.linear(x, self.inner.weight, self.inner.bias)
        return self.outer(found + self.inner(x.sin()) if self.beside else found)


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.position = nn.Embedding(5, 4), nn.Embedding(9, 4)

    def forward(self, x):
        return self.token(x) + self.position(self.places(x))

    def places(self, x):
        return torch.arange(x.shape[1])


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False).eval()])
def test_batch_norm_is_refused_when_the_pass_reaches_it(norm):
    model = net(norm)
    with record(model):
        with torch.no_grad():
            model(X)
        with pytest.raises(InputError, match=r"2 \(BatchNorm1d\).*each='microbatch'"):
            model(X)
        if norm.track_running_stats:
            norm.eval()
            model(X).sum().backward()
            assert samples(model[0].weight) == 4
    model.train()(X).sum().backward()


@pytest.mark.parametrize("length", [3, 4])
def test_rows_that_are_no_samples(length):
    """Positions, also where there happen to be as many as samples."""
    model, x = Positions(), torch.zeros(4, length, dtype=torch.long)
    with record(model), pytest.raises(InputError, match=r"position \(Embedding\).*params=, or expand its indices"):
        model(x)
    model.places = lambda x: torch.arange(x.shape[1]).expand(x.shape)
    with record(model):
        model(x).sum().backward()
        assert samples(model.position.weight) == 4 and not noise(model.position.weight).any()
    del model.places
    model.zero_grad()
    with record(model, params=[model.token.weight]):
        model(x).sum().backward()
        assert samples(model.token.weight) == 4
    model.zero_grad()
    with record(model, each="microbatch"):
        model(x).sum().backward()
        assert samples(model.position.weight) == 1


def test_another_axis():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 2)

        def forward(self, x):
            return self.inner(x.T).T

    model = Turned().double()
    with record(model), pytest.raises(InputError, match=r"inner \(Linear\) makes \(3, 2\).*\(4\) in dimension 0"):
        model(X)
    model(X)  # no hook is left
    with record(model.inner), pytest.raises(InputError, match="makes"):
        model.inner(X[0, :1].expand(4))


@pytest.mark.parametrize("beside", [False, True])
def test_a_weight_that_a_function_uses(beside):
    model = Functional(beside).double()
    with record(model):
        model(X).square().sum().backward()
        assert noise(model.outer.weight) is not None
        with pytest.raises(InputError, match=r"inner\.weight.*(account for|no layer was seen to add)"):
            noise(model.inner.weight)


@pytest.mark.parametrize("kind", ["penalty", "gradient of a gradient", "on the gradient"])
def test_a_gradient_that_no_sample_accounts_for(kind):
    model = net()
    with record(model):
        for trouble in (False, True, False):  # seen in the second backward pass as in the first, and over with the next
            x = X.clone().requires_grad_(kind == "gradient of a gradient")
            model.zero_grad()
            loss = model(x).square().sum()
            handle = None
            if trouble and kind == "penalty":
                loss = loss + 0.01 * sum(p.square().sum() for p in model.parameters())
            elif trouble and kind == "on the gradient":
                handle = model[0].weight.register_hook(lambda g: 2 * g.clamp(-1, 1))
            elif trouble:
                loss = loss + torch.autograd.grad(model(x).sum(), x, create_graph=True)[0].square().sum()
            loss.backward()
            if trouble:
                with pytest.raises(InputError, match=r"0\.weight"):
                    noise(model[0].weight)
            else:
                assert noise(model[0].weight) is not None
            if handle is not None:
                handle.remove()


def test_gradients_that_were_changed():
    model = net()
    with record(model):
        model(X).square().sum().backward()
        nn.utils.clip_grad_value_(model.parameters(), float(model[0].weight.grad.abs().median()))
        with pytest.raises(InputError, match="more than one factor"):
            noise(model[0].weight)
        model.zero_grad()
        model(X).sum().backward()
        used(model[0].weight)  # and no zero_grad()
        assert noise(model[0].weight) is not None
        model(X).sum().backward()
        with pytest.raises(InputError, match="not zero when the record"):
            noise(model[0].weight)
    with record(model):
        model(X).sum().backward()
        with pytest.raises(InputError, match="not zero when the record"):
            noise(model[0].weight)


def test_a_batch_of_one_and_none():
    model = net()
    with record(model):
        assert noise(model[0].weight) is None and samples(model[0].weight) == 0
        model(X[:1]).sum().backward()
        assert samples(model[0].weight) == 1
        with pytest.raises(InputError, match="batch of one"):
            noise(model[0].weight)
        model.zero_grad()
        model(X[:0]).sum().backward()
        assert samples(model[0].weight) == 0
        model(X).sum().backward()
        assert samples(model[0].weight) == 4 and noise(model[0].weight) is not None


def test_passes_of_different_batches_in_one_backward_pass():
    model = net()
    with record(model):
        (model(X).sum() + model(X[:2]).square().sum()).backward()
        with pytest.raises(InputError, match="2 and 4 rows"):
            noise(model[0].weight)


def test_random_modules_and_reentrant_checkpoints():
    attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
    x = torch.randn(3, 5, 4)
    with record(attention):
        state = torch.get_rng_state()
        out = attention(x, x, x)[0]
        after = torch.get_rng_state()
        out.sum().backward()
        assert not torch.equal(state, after) and torch.equal(after, torch.get_rng_state())
        with pytest.raises(InputError, match="random numbers"):
            noise(attention.in_proj_weight)
    model = net()
    with record(model):
        checkpoint(model, X.clone().requires_grad_(), use_reentrant=True).sum().backward()
        with pytest.raises(InputError, match="use_reentrant=False"):
            noise(model[0].weight)


def test_packed_sequences_masks_by_sample_and_sparse_gradients():
    lstm = nn.LSTM(3, 2, batch_first=True)
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(4, 5, 3), torch.tensor([5, 4, 2, 1]), batch_first=True)
    with record(lstm), pytest.raises(InputError, match="PackedSequence"):
        lstm(packed)
    attention, x = nn.MultiheadAttention(4, 2, batch_first=True), torch.randn(3, 5, 4)
    with record(attention), pytest.raises(InputError, match="attn_mask"):
        attention(x, x, x, attn_mask=torch.zeros(6, 5, 5))
    table = nn.Embedding(5, 2, sparse=True)
    for each in ("sample", "microbatch"):
        with record(table, each=each):
            table(torch.tensor([[1, 2], [0, 1]])).sum().backward()
            with pytest.raises(InputError, match="sparse=False"):
                noise(table.weight)
            table.zero_grad()


def test_trouble_is_over_with_the_gradient():
    model = Functional(True).double()
    with record(model):
        for set_to_none in (False, True):
            (model(X).square().sum() + model(X[:2]).sum()).backward()
            with pytest.raises(InputError, match="2 and 4 rows"):
                noise(model.outer.weight)
            model.zero_grad(set_to_none=set_to_none)
            model(X).square().sum().backward()
            assert noise(model.outer.weight) is not None
            model.zero_grad()


def test_not_finite_gradients_are_not_our_complaint():
    """An overflow under GradScaler: whoever steps skips it."""
    model = net()
    with record(model):
        (model(X) * float("inf")).sum().backward()
        assert not torch.isfinite(noise(model[0].weight)).all()
        model.zero_grad()
        model(X).sum().backward()
        assert torch.isfinite(noise(model[0].weight)).all()


def test_arguments():
    model = net()
    with pytest.raises(InputError, match="'rows'"):
        record(model, each="rows")
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        record(model.parameters())
    with pytest.raises(InputError, match="no parameter of Sequential"):
        record(model, params=[nn.Parameter(X)])
    with pytest.raises(NoParametersError):
        record(nn.Tanh())
    with pytest.raises(InputError, match="complex"):
        record(nn.Linear(2, 2).to(torch.complex64))
    with pytest.raises(InputError, match="no shape yet"):
        record(nn.LazyLinear(2))
    with record(model), pytest.raises(InputError, match="recorded already"):
        record(model, params=model[0].weight)
    record(model).remove()
