"""What loaders may do wrong: each is named and quoted, nothing has changed, and the next call goes on."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import jumpstart as js
from jumpstart import errors

from ...problems import flat, mlp, randn

N = 40
X, Y = randn(0, N, 4), randn(1, N, 3)
DATA = TensorDataset(X, Y)
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, N, 8)]


class ItsOwn(IterableDataset):
    def __iter__(self):
        return self

    def __next__(self):
        return X[0], Y[0]


class Endless(Dataset):
    def __getitem__(self, i):
        return X[i], Y[i]


REFUSED = {
    "tensor": (X, {}, "TensorDataset"),
    "pair of tensors": ((X, Y), {}, "inputs, targets"),
    "number": (3, {}, "got 3"),
    "text": ("train.csv", {}, "train.csv"),
    "nothing": ([], {}, "the list gives no samples"),
    "empty dataset": (TensorDataset(X[:0], Y[:0]), {}, "no samples"),
    "dataset without length": (Endless(), {}, "__len__"),
    "its own iterator": (ItsOwn(), {}, "its own iterator"),
    "inputs alone": ([X], {}, r"tensor of shape \(40, 4\)"),
    "triples": ([(X, Y, X)], {}, "split="),
    "no labels": ([{"x": X, "y": Y}], {}, r"keys \['x', 'y'\] and no 'labels'"),
    "another target": ([{"x": X, "labels": Y}], {"target": "y"}, "no 'y'"),
    "target of pairs": (DATA, {"target": "y"}, "for batches that are mappings"),
    "target and split": (DATA, {"target": "y", "split": lambda b: b}, "nothing beside split="),
    "text in inputs": ([{"x": X, "text": ["a"] * N, "labels": Y}], {}, r"inputs\['text'\]\[0\] = 'a'"),
    "targets that are a dict": ([(X, {"a": Y})], {}, "one tensor"),
    "rows that differ": ([(X, Y[:-1])], {}, r"\(40, 4\) and targets of shape \(39, 3\)"),
    "no tensor": ([(1.0, Y)], {}, "inputs 1.0"),
    "split gives one": (DATA, {"split": lambda b: b[0]}, "split returned tensor"),
    "split is no function": (DATA, {"split": "x"}, "split='x'"),
    "collate_fn of a loader": (DataLoader(DATA), {"collate_fn": list}, "has its own"),
    "collate_fn of batches": (BATCHES, {"collate_fn": list}, "gives batches"),
    "collate_fn that drops": (DATA, {"collate_fn": lambda s: (X[:7], Y[:7])}, "makes 7 rows of 1"),
    "too few": (DATA, {"samples": N + 1}, "at most 40, or 20"),
    "samples": (DATA, {"samples": 0}, "samples=0"),
    "samples as text": (DATA, {"samples": "all"}, "samples='all'"),
    "seed": (DATA, {"seed": -1}, "seed=-1"),
    "weights": (DATA, {"weights": X}, r"\['weights'\] is no option"),
    "a loss with targets": (DATA, {"loss": js.losses.mse(Y)}, "targets already"),
    "shift": (DATA, {"shift": "yes"}, "shift='yes'"),
    "batch_sampler without batches": (DataLoader(DATA, batch_sampler=[1, 2]), {}, "batch_sampler gives 1"),
}


@pytest.mark.parametrize(("loader", "options", "words"), REFUSED.values(), ids=REFUSED)
def test_refused_at_the_door(loader, options, words):
    model, state = mlp(0), torch.get_rng_state()
    with pytest.raises(errors.InputError, match=words) as caught:
        js.from_loader(model, loader, **{"loss": "mse", "samples": 4, **options})
    assert len(str(caught.value)) < 400
    assert torch.equal(state, torch.get_rng_state())


def test_no_model():
    with pytest.raises(errors.InputError, match="function"):
        js.from_loader(lambda x: x, DATA, "mse")


def test_an_iterator_that_is_used_up():
    data = js.from_loader(mlp(0), iter(BATCHES), "mse", 16)
    data()
    data.acceptance()
    with pytest.raises(errors.InputError, match="used up after 40 samples, 8 of the last 16"):
        data()
    with pytest.raises(errors.InputError, match="used up after 40"):
        data()


def test_an_iterator_cannot_go_back():
    data = js.from_loader(mlp(0), iter(BATCHES), "mse", 8)
    state = data.state_dict()
    data()
    after = data.state_dict()
    with pytest.raises(errors.InputError, match="has given 8 samples and cannot go back to 0"):
        data.load_state_dict(state)
    assert data.state_dict() == after
    ahead = js.from_loader(mlp(0), iter(BATCHES), "mse", 8)
    ahead.load_state_dict(after)
    assert torch.equal(ahead().parts[0].inputs, X[8:16])


def test_an_iterable_that_gives_nothing_the_second_time():
    class Once:
        def __init__(self):
            self.left = iter(BATCHES)

        def __iter__(self):
            yield from self.left

    data = js.from_loader(mlp(0), Once(), "mse", 16)
    data()
    data()
    with pytest.raises(errors.InputError, match="begin anew"):
        data()


class Broken(Dataset):
    """Raises at some places, as often as told."""

    def __init__(self, places, times=1, error=KeyError):
        self.places, self.times, self.error = set(places), times, error

    def __len__(self):
        return N

    def __getitem__(self, i):
        if i in self.places and self.times:
            self.times -= 1
            raise self.error(f"sample {i} is gone")
        return X[i], Y[i]


def test_a_dataset_that_raises_in_the_middle():
    """Named, with the original as its cause; weights and random numbers as before; the next call takes the next."""
    model = mlp(0)
    data = js.from_loader(model, DataLoader(Broken({10}), 8), "mse", 8)
    data()
    before, state = flat(model), torch.get_rng_state()
    with pytest.raises(
        errors.EvaluationError, match=r"DataLoader raised KeyError: 'sample 10 is gone' at test_tr"
    ) as e:
        data()
    assert isinstance(e.value.__cause__, KeyError)
    assert torch.equal(before, flat(model))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(data().parts[0].inputs, X[16:24])
    for error in (MemoryError, KeyboardInterrupt):
        data = js.from_loader(model, DataLoader(Broken({10}, error=error), 8), "mse", 16)
        with pytest.raises(error):
            data()
        assert torch.equal(state, torch.get_rng_state())


def test_batches_that_raise_in_the_middle():
    """The order itself broke off: the next call begins where this one did."""
    left = [1]

    class Breaking:
        def __iter__(self):
            for at, batch in enumerate(BATCHES):
                if at == 3 and left:
                    left.pop()
                    raise OSError("connection lost")
                yield batch

    data = js.from_loader(mlp(0), Breaking(), "mse", 16)
    assert torch.equal(data().parts[0].inputs, X[:16])
    with pytest.raises(errors.EvaluationError, match="connection lost"):
        data()
    assert torch.equal(data().parts[0].inputs, X[16:32])


def test_something_else_in_the_middle():
    data = js.from_loader(mlp(0), [*BATCHES[:2], (X[16:24],), *BATCHES[3:]], "mse", 16)
    data()
    for _ in range(2):
        with pytest.raises(errors.InputError, match="the loader gives"):
            data()


def test_bad_numbers_and_bad_targets_go_by():
    """The objective refuses them by name, and the next samples are others."""
    bad = X.clone()
    bad[3] = float("nan")
    data = js.from_loader(mlp(0), DataLoader(TensorDataset(bad, Y), 8), "mse", 8)
    with pytest.raises(errors.NonFiniteError, match="inputs"):
        data()
    assert torch.equal(data().parts[0].inputs, X[8:16])
    with pytest.raises(errors.InputError, match="cross_entropy"):
        js.from_loader(mlp(0), DATA, "cross_entropy", 8)()


def test_a_sampler_that_cannot_be_copied():
    class Locked:
        def __init__(self):
            self.lock = threading.Lock()

        def __iter__(self):
            return iter(range(N))

        def __len__(self):
            return N

    with pytest.raises(errors.InputError, match=r"Locked|BatchSampler cannot be copied"):
        js.from_loader(mlp(0), DataLoader(DATA, 8, sampler=Locked()), "mse", 8)


def test_samples_that_cannot_be_told_apart():
    class Objects(IterableDataset):
        def __iter__(self):
            return iter([(X[i], object()) for i in range(N)])

    data = js.from_loader(
        mlp(0), Objects(), "mse", 8, collate_fn=lambda s: (torch.stack([x for x, _ in s]), Y[: len(s)])
    )
    with pytest.raises(errors.OutputTypeError, match="told from others"):
        data()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"position": -1}, "'position': -1"),
        ({"seed": True}, "'seed': True"),
        ({"last": "abc"}, "last='abc'"),
        ({"size": 39}, "39 samples in a pass, the TensorDataset has 40"),
        ({"more": 1}, "it holds dict with keys"),
    ],
)
def test_states_of_something_else(change, words):
    data = js.from_loader(mlp(0), DATA, "mse", 8)
    data()
    state = data.state_dict()
    with pytest.raises(errors.InputError, match=words):
        data.load_state_dict({**state, **change})
    with pytest.raises(errors.InputError, match="no state"):
        data.load_state_dict([])
    assert data.state_dict() == state


def test_a_state_behind_the_end_of_a_pass():
    state = js.from_loader(mlp(0), BATCHES, "mse", 36)
    state()
    other = js.from_loader(mlp(0), BATCHES[:2], "mse", 8)
    other.load_state_dict(state.state_dict())
    with pytest.raises(errors.InputError, match="after 36 samples of a pass, and the list gives only 16"):
        other()


def test_an_objective_of_another_model_is_refused_by_the_wrapper():
    model, other = mlp(0), mlp(1)
    objective = js.from_loader(other, DATA, "mse", 8)()
    with pytest.raises(errors.InputError):
        js.JumpOptimizer(torch.optim.SGD(model.parameters(), 0.1), objective)


def test_batchnorm_in_chunks_is_refused():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    with pytest.raises(errors.InputError, match="BatchNorm"):
        js.from_loader(model, DATA, "mse", 16, chunk=8)()
