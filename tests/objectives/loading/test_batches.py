"""Batches as people have them, and models as people have them: mappings, padding, ModelOutput, tokens."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict, namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import jumpstart as js
from jumpstart import errors
from jumpstart.objectives.loading import batches
from jumpstart.training.next_step import NextStep

from ...problems import fill, mlp, randn

N, T, V = 24, 5, 7
X, Y = randn(0, N, 4), randn(1, N, 3)
CLASSES = torch.arange(N) % 3
TOKENS = torch.randint(V, (N, T), generator=torch.Generator().manual_seed(0))


@dataclasses.dataclass
class Output(OrderedDict):
    """As Hugging Face's ModelOutput: a dataclass that is a mapping of those of its fields that are not None."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)


@dataclasses.dataclass
class Plain:
    logits: torch.Tensor


RETURNS = {
    "tensor": lambda u: u,
    "model output": lambda u: Output(logits=u),
    "dict": lambda u: {"hidden": u * 0, "logits": u},
    "dataclass": Plain,
    "namedtuple": lambda u: namedtuple("Returned", "hidden logits")(u * 0, u),
    "object": lambda u: SimpleNamespace(logits=u),
}


class Model(nn.Module):
    """Keywords in, anything out; labels must not come in."""

    def __init__(self, returns=RETURNS["tensor"], inner=None):
        super().__init__()
        self.inner, self.returns = inner or mlp(0), returns

    def forward(self, x=None, scale=None, labels=None):
        assert labels is None
        return self.returns(self.inner(x) * (1 if scale is None else scale[:, None]))


class Language(nn.Module):
    """(n, T) tokens -> (n, T, V), each position from its own token and the mean of those before it."""

    def __init__(self, returns=RETURNS["model output"]):
        super().__init__()
        self.table, self.head, self.returns = nn.Embedding(V, 6), nn.Linear(6, V), returns

    def forward(self, input_ids, attention_mask=None):
        seen = self.table(input_ids)
        seen = seen if attention_mask is None else seen * attention_mask[..., None]
        steps = torch.arange(1, seen.shape[1] + 1).to(seen)[:, None]
        return self.returns(self.head(torch.tanh(seen + seen.cumsum(1) / steps)))


@pytest.mark.parametrize("returns", RETURNS.values(), ids=RETURNS)
@pytest.mark.parametrize("kind", [dict, UserDict])
def test_what_models_return(returns, kind):
    """Loss, gradient, kernel, jump and query of a model that returns something else are those of its tensor."""
    items = [kind(x=X[i : i + 8], scale=1.0 + X[i : i + 8, 0], labels=Y[i : i + 8]) for i in range(0, N, 8)]
    mine, plain = Model(returns), Model()
    for outputs in (None, "logits", lambda found: found if isinstance(found, torch.Tensor) else found.logits):
        if returns is RETURNS["dict"] and callable(outputs):
            outputs = lambda found: found["logits"]  # noqa: E731
        if returns is RETURNS["tensor"] and outputs == "logits":
            continue
        objective = js.from_loader(mine, items, "mse", N, outputs=outputs)()
        truth = plain.inner(X) * (1 + X[:, :1])
        loss = F.mse_loss(truth, Y)
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(plain.parameters()))])
        value, found = objective.gradient(objective.theta())
        assert value == pytest.approx(float(loss.detach()), rel=1e-12)
        assert torch.allclose(found, gradient, rtol=1e-10, atol=1e-13)
        solution = js.solve(objective, basis="dense")
        want = js.solve(js.supervised(plain, {"x": X, "scale": 1 + X[:, 0]}, Y), basis="dense")
        assert torch.allclose(solution.outputs(2.0), want.outputs(2.0), rtol=1e-9, atol=1e-10)
        query = {"x": X[:3], "scale": 1 + X[:3, 0]}
        assert torch.allclose(solution.predict(query, 2.0), want.predict(query, 2.0), rtol=1e-9, atol=1e-10)


def test_a_tuple_has_places():
    model = Model(lambda u: (u * 0, u))
    data = TensorDataset(X, Y)
    objective = js.from_loader(model, data, "mse", N, outputs=1)()
    assert objective.shape == (N, 3)
    for outputs, words in ((None, "a tuple of 2"), ("logits", "'logits'"), (2, "has no 2")):
        with pytest.raises(errors.OutputTypeError, match="outputs="):
            js.from_loader(model, data, "mse", N, outputs=outputs)()
        with pytest.raises(errors.OutputTypeError, match=words):
            js.from_loader(model, data, "mse", N, outputs=outputs)()
    with pytest.raises(errors.InputError, match="outputs=True"):
        js.from_loader(model, data, "mse", N, outputs=True)
    assert js.supervised(model, X, Y, outputs=1).subset("inner.0.*").shape == (N, 3)


def test_a_wrapped_loop_with_a_model_output():
    """The look at the optimizer's next step sees what the objective sees."""
    model = Model(RETURNS["model output"])
    objective = js.supervised(model, {"x": X}, Y, outputs="logits")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    net = NextStep(optimizer, objective, "keep", ()).loop
    assert torch.equal(net.bind(objective.theta())(x=X), model.inner(X))


def test_names_and_functions_that_split():
    rows = [{"x": X[i : i + 8], "y": Y[i : i + 8]} for i in range(0, N, 8)]
    one = js.from_loader(Model(), rows, "mse", N, target="y")()
    two = js.from_loader(Model(), [(b["y"], b["x"]) for b in rows], "mse", N, split=lambda b: (b[1], b[0]))()
    three = js.from_loader(Model(), [[(b["x"], 1 + 0 * b["x"][:, 0]), b["y"]] for b in rows], "mse", N)()
    assert len({float(o.value(o.theta())) for o in (one, two, three)}) == 1


def test_constants_beside_samples():
    """What has no row for each sample goes with every batch, and must be the same."""
    table = torch.arange(3.0, dtype=torch.float64)

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp(0)

        def forward(self, x, add, flag):
            return self.inner(x) + (add if flag else 0)

    def loader(change):
        return [({"x": X[i : i + 8], "add": table + change * i, "flag": True}, Y[i : i + 8]) for i in range(0, N, 8)]

    objective = js.from_loader(Fixed(), loader(0), "mse", 20)()
    truth = F.mse_loss(objective.model.inner(X[:20]) + table, Y[:20])
    assert objective.value(objective.theta()) == pytest.approx(float(truth.detach()), rel=1e-12)
    with pytest.raises(errors.InputError, match=r"inputs\['add'\] differ"):
        js.from_loader(Fixed(), loader(1), "mse", 20)()


def padding(samples):
    """To the longest, as a tokenizer's collator."""
    most = max(len(s["input_ids"]) for s in samples)
    ids = torch.stack([F.pad(s["input_ids"], (0, most - len(s["input_ids"]))) for s in samples])
    labels = torch.stack([F.pad(s["labels"], (0, most - len(s["labels"])), value=-100) for s in samples])
    mask = torch.stack([(torch.arange(most) < len(s["input_ids"])).long() for s in samples])
    return UserDict(input_ids=ids, attention_mask=mask, labels=labels)


class Sentences(torch.utils.data.Dataset):
    """Of different lengths; labels are the tokens themselves, or the tokens to come."""

    def __init__(self, causal=True):
        self.causal = causal

    def __len__(self):
        return N

    def __getitem__(self, i):
        tokens = TOKENS[i, : 2 + i % (T - 1)]
        return {"input_ids": tokens, "labels": tokens if self.causal else tokens.flip(0)}


def test_tokens_of_different_lengths_are_padded_together():
    """Causal language model: a mean over the tokens that count, the next one each, as its own loss has it."""
    model = fill(Language(), 0)
    data = js.from_loader(model, DataLoader(Sentences(), 4, collate_fn=padding), "cross_entropy", N, shift=True)
    objective = data()
    batch = padding([Sentences()[i] for i in range(N)])
    logits = model(batch["input_ids"], batch["attention_mask"]).logits
    truth = F.cross_entropy(logits[:, :-1].reshape(-1, V), batch["labels"][:, 1:].reshape(-1), ignore_index=-100)
    assert objective.shape == (N, T - 1, V)
    assert objective.value(objective.theta()) == pytest.approx(float(truth.detach()), rel=1e-12)
    assert js.jump(js.from_loader(model, DataLoader(Sentences(), 4, collate_fn=padding), "cross_entropy", 8,
                                  shift=True)()).accepted  # fmt: skip


def test_the_shift_is_not_guessed():
    model, causal = fill(Language(), 0), DataLoader(Sentences(), 4, collate_fn=padding)
    with pytest.raises(errors.InputError, match="shift=True"):
        js.from_loader(model, causal, "cross_entropy", 8)
    with pytest.raises(errors.InputError, match="shift=True"):
        js.from_loader(model, TensorDataset(TOKENS, TOKENS), "cross_entropy", 8)
    assert js.from_loader(model, causal, "cross_entropy", 8, shift=False)().shape[1] > 1
    other = DataLoader(Sentences(causal=False), 4, collate_fn=padding)
    batch = padding([Sentences(causal=False)[i] for i in range(8)])
    objective = js.from_loader(model, other, "cross_entropy", 8, ignore_index=-100)()
    logits = model(batch["input_ids"], batch["attention_mask"]).logits
    truth = F.cross_entropy(logits.reshape(-1, V), batch["labels"].reshape(-1), ignore_index=-100)
    assert objective.value(objective.theta()) == pytest.approx(float(truth.detach()), rel=1e-12)
    with pytest.raises(errors.ShapeError, match="shift=True"):
        js.from_loader(mlp(0), TensorDataset(X, CLASSES), "cross_entropy", 8, shift=True)


def test_batches_of_different_lengths_are_refused():
    ragged = [padding([Sentences()[i] for i in range(at, at + 3)]) for at in range(0, N, 3)]
    with pytest.raises(errors.ShapeError, match="pad"):
        js.from_loader(fill(Language(), 0), ragged, "cross_entropy", 8, shift=True)()
    with pytest.raises(errors.EvaluationError, match="equal size"):
        js.from_loader(fill(Language(), 0), Sentences(), "cross_entropy", 8, shift=True)()


def test_loss_options_and_classes():
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    data = js.from_loader(mlp(0), TensorDataset(X, CLASSES), "cross_entropy", N, class_weights=weights)
    objective = data()
    chosen = objective.parts[0].inputs
    truth = F.cross_entropy(objective.model(chosen), objective.loss.targets, weights)
    assert objective.value(objective.theta()) == pytest.approx(float(truth.detach()), rel=1e-12)
    with pytest.raises(errors.InputError, match="class_weights= does nothing"):
        js.from_loader(mlp(0), TensorDataset(X, Y), "mse", N, class_weights=weights)()


def test_a_loader_that_writes_over_its_batches():
    x, y = torch.empty(8, 4, dtype=torch.float64), torch.empty(8, 3, dtype=torch.float64)

    class Reusing:
        def __iter__(self):
            for i in range(0, N, 8):
                yield x.copy_(X[i : i + 8]), y.copy_(Y[i : i + 8])

    objective = js.from_loader(mlp(0), Reusing(), "mse", 20)()
    assert torch.equal(objective.parts[0].inputs, X[:20])
    assert torch.equal(objective.loss.targets, Y[:20])


def test_samples_keep_their_dtype_and_go_to_a_device():
    data = TensorDataset(X.float(), Y.float())
    objective = js.from_loader(mlp(0).float(), DataLoader(data, 5), "mse", 12)()
    assert objective.parts[0].inputs.dtype == torch.float32
    inputs, targets = batches.copied(({"x": X, "flag": True}, Y), torch.device("meta"))  # that every machine has
    assert (inputs["x"].device.type, inputs["flag"], targets.device.type) == ("meta", True, "meta")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_samples_go_where_the_model_is():
    data = js.from_loader(mlp(0).cuda(), DataLoader(TensorDataset(X, Y), 5), "mse", 12)
    objective = data()
    assert objective.parts[0].inputs.device.type == "cuda"
    assert js.jump(objective).accepted


def test_with_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).double().eval()
    encoded = [
        transformers.BatchEncoding(
            {"input_ids": TOKENS[i : i + 6], "attention_mask": TOKENS[i : i + 6] * 0 + 1, "labels": CLASSES[i : i + 6]}
        )
        for i in range(0, N, 6)
    ]
    objective = js.from_loader(model, encoded, "cross_entropy", 20)()
    truth = model(TOKENS[:20], attention_mask=torch.ones(20, T), labels=CLASSES[:20]).loss
    assert objective.value(objective.theta()) == pytest.approx(float(truth.detach()), rel=1e-10)
    config = transformers.GPT2Config(
        vocab_size=V, bos_token_id=0, eos_token_id=0, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0, attn_pdrop=0,
        embd_pdrop=0,
    )  # fmt: skip
    causal = transformers.GPT2LMHeadModel(config).double().eval()
    rows = [{"input_ids": row, "labels": row} for row in TOKENS]
    objective = js.from_loader(causal, DataLoader(rows, 6), "cross_entropy", 12, shift=True)()
    truth = causal(TOKENS[:12], labels=TOKENS[:12]).loss  # which is taken in float32
    assert objective.value(objective.theta()) == pytest.approx(float(truth.detach()), rel=1e-6)
