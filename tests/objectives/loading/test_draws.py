"""What is drawn: exactly so many samples, the loader's own, others for acceptance, the same after a resume, and nobody
else is disturbed. Samples carry their number, so that what an objective holds can be read off it."""

from __future__ import annotations

import json
import linecache
import random
import signal
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

import jumpstart as js
from jumpstart import errors

from ...problems import mlp, randn

N = 50
X, Y = torch.cat([torch.arange(N, dtype=torch.float64)[:, None] / N, randn(0, N, 3)], 1), randn(1, N, 3)
DATA = TensorDataset(X, Y)


class Streamed(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class Augmented(Dataset):
    """Draws from every global generator there is."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        noise = torch.rand(1).item() + random.random() + np.random.rand()
        return torch.cat([X[i, :1], X[i, 1:] + noise]), Y[i]


class Own(DataLoader):
    """Iterates in its own way, and keeps on itself how far it is."""

    at = 0

    def __iter__(self):
        self.at = 0
        for batch in super().__iter__():
            self.at += 1
            yield batch[0], batch[1] * 2


def batches(size=8):
    return [(X[i : i + size], Y[i : i + size]) for i in range(0, N, size)]


def collated(pairs):
    return torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])


def shuffled(**options):
    return DataLoader(DATA, 8, shuffle=True, **options)


LOADERS = {
    "dataset": lambda: DATA,
    "loader": lambda: DataLoader(DATA, 8),
    "shuffled": shuffled,
    "generator": lambda: shuffled(generator=torch.Generator().manual_seed(3)),
    "workers": lambda: shuffled(num_workers=2),
    "persistent workers": lambda: shuffled(num_workers=2, persistent_workers=True),
    "drop_last": lambda: shuffled(drop_last=True),
    "batch_sampler": lambda: DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 8, False)),
    "list of places": lambda: DataLoader(DATA, batch_sampler=[[i, i + 25] for i in range(25)]),
    "distributed": lambda: DataLoader(DATA, 8, sampler=DistributedSampler(DATA, num_replicas=1, rank=0)),
    "collate_fn": lambda: DataLoader(DATA, 8, collate_fn=collated),
    "no batch size": lambda: DataLoader(DATA, batch_size=None, sampler=BatchSampler(SequentialSampler(DATA), 8, False)),
    "streamed": lambda: DataLoader(Streamed(), 8),
    "streamed alone": Streamed,
    "batches": batches,
    "iterator": lambda: iter(batches() * 10),
    "augmented": lambda: DataLoader(Augmented(), 8, shuffle=True),
}
anything = pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)


def sampled(loader, samples=16, **options):
    return js.from_loader(mlp(0), loader, "mse", samples, **options)


def numbers(objective):
    return (torch.cat([part.inputs for part in objective.parts])[:, 0] * N).round().long().tolist()


def everywhere():
    """All global random states."""
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


@anything
def test_the_loss_is_that_of_the_samples_drawn_and_others_accept(make):
    """Three calls, each with its acceptance; Φ against F.mse_loss on the samples of those numbers."""
    data, before = sampled(make()), everywhere()
    for _ in range(3):
        jump = data()
        accept = data.acceptance()
        for objective in (jump, accept):
            chosen = numbers(objective)
            assert len(set(chosen)) == len(chosen) == 16
            held = objective.parts[0].inputs
            if not isinstance(getattr(data._drawer.source, "dataset", None), Augmented):
                assert torch.equal(held, X[chosen])
            truth = nn.functional.mse_loss(objective.model(held).detach(), Y[chosen])
            assert objective.value(objective.theta()) == pytest.approx(float(truth), rel=1e-12)
        assert not set(numbers(jump)) & set(numbers(accept))
    assert everywhere() == before


@anything
def test_fresh_samples_and_the_whole_pass(make):
    """50 samples in draws of 16: in nine draws, near three passes, each sample comes about as often, and none repeats.

    A pass without shuffling comes in the same order again, but 16 does not divide it.
    """
    data = sampled(make())
    drawn = [numbers(data()) for _ in range(9)]
    assert len({tuple(one) for one in drawn}) == 9
    counts = torch.bincount(torch.tensor(drawn).reshape(-1), minlength=N)
    assert int(counts.min()) >= 1
    assert int(counts.max()) <= 4


@anything
def test_a_resumed_run_draws_the_same(make, tmp_path):
    """Stopped between any two calls, through a file; numbers, contents (augmentation) and acceptance alike."""
    through, states, drawn = sampled(make(), seed=5), [], []
    for _ in range(4):
        states.append(through.state_dict())
        drawn.append([through().parts[0].inputs, through.acceptance().parts[0].inputs])
    for stop in (0, 1, 3):
        torch.save(states[stop], tmp_path / "state.pt")
        again = sampled(make(), seed=99)
        again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        torch.rand(3)
        for one in drawn[stop:]:
            assert torch.equal(again().parts[0].inputs, one[0])
            assert torch.equal(again.acceptance().parts[0].inputs, one[1])


def test_acceptance_after_a_resume_avoids_the_jump_before_it():
    data = sampled(DATA, 25)
    jump = numbers(data())
    again = sampled(DATA, 25)
    again.load_state_dict(data.state_dict())
    assert sorted(numbers(again.acceptance()) + jump) == list(range(N))


def test_a_state_goes_through_json():
    """Places that are tuples come back as lists."""
    pairs = {(i, "x"): (X[i], Y[i]) for i in range(N)}
    data, again = (sampled(DataLoader(pairs, 8, sampler=list(pairs)), 25) for _ in range(2))  # pyright: ignore
    jump = numbers(data())
    again.load_state_dict(json.loads(json.dumps(data.state_dict())))
    assert sorted(numbers(again.acceptance()) + jump) == list(range(N))


def test_interrupted_at_any_moment():
    """Global generators are as they were, and the next draw is the one that was interrupted.

    A signal comes at every 17th line that is traced, but where Python never looks for one: a bare ``try:``, and the
    assignments of ``uninterrupted`` itself.
    """
    data, plain = sampled(LOADERS["augmented"](), seed=1), sampled(LOADERS["augmented"](), seed=1)
    before, met, seen = everywhere(), 0, 0

    def interrupt(frame, event, _):
        nonlocal seen
        path = frame.f_code.co_filename
        if event == "line" and not path.endswith("interrupts.py"):
            seen += linecache.getline(path, frame.f_lineno).strip() != "try:"
            if seen == at:
                seen += 1
                signal.raise_signal(signal.SIGINT)
        return interrupt

    for at in range(1, 1400, 17):
        seen, state = 0, data.state_dict()
        sys.settrace(interrupt)
        try:
            data._drawer.draw(16)
        except KeyboardInterrupt:
            met += 1
        finally:
            sys.settrace(None)
        assert everywhere() == before, at
        data.load_state_dict(state)
    assert met > 20
    assert torch.equal(data().parts[0].inputs, plain().parts[0].inputs)


def test_acceptance_differs_each_time_and_before_any_jump():
    data = sampled(shuffled(), 10)
    first, second = numbers(data.acceptance()), numbers(data.acceptance())
    assert first != second


@pytest.mark.parametrize("name", ["generator", "workers", "persistent workers", "augmented"])
def test_the_loops_own_iteration_goes_on_as_without(name):
    """In the middle of two epochs: batches and random states as in a loop without jumpstart."""

    def loop(draw):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        loader = LOADERS[name]()
        data, seen = sampled(loader), []
        for _ in range(2):
            for i, (x, _) in enumerate(loader):
                seen.append(x)
                if draw and i % 3 == 1:
                    data()
                    data.acceptance()
        return torch.cat(seen), everywhere()

    (bare, left), (mine, mine_left) = loop(False), loop(True)
    assert torch.equal(bare, mine)
    assert left == mine_left


def test_a_loader_that_iterates_in_its_own_way():
    """Its own batches are taken (targets doubled), and how far the loop is stays with the loop."""
    loader = Own(DATA, 8)
    data = sampled(loader)
    for i, _ in enumerate(loader):
        assert loader.at == i + 1
        objective = data()
        chosen = numbers(objective)
        assert torch.equal(objective.loss.targets, 2 * Y[chosen])
    with pytest.raises(errors.InputError, match="persistent workers"):
        sampled(Own(DATA, 8, num_workers=1, persistent_workers=True))


class CountingSampler:
    """Counts its passes, and orders by them; with a generator of NumPy's."""

    def __init__(self):
        self.passes, self.own = 0, np.random.default_rng(0)

    def __len__(self):
        return N

    def __iter__(self):
        self.passes += 1
        return iter(self.own.permutation(N).tolist())


def test_a_sampler_with_a_state_is_copied():
    sampler = CountingSampler()
    state = sampler.own.bit_generator.state
    data = sampled(DataLoader(DATA, 8, sampler=sampler), 25)
    drawn = [tuple(numbers(data())) for _ in range(4)]
    assert len(set(drawn)) == 4  # each pass in an order of its own
    assert sorted(drawn[0] + drawn[1]) == sorted(drawn[2] + drawn[3]) == list(range(N))
    assert sampler.passes == 0
    assert sampler.own.bit_generator.state == state


def test_subsets_and_weights_are_the_samplers():
    few = list(range(10, 30))
    assert set(numbers(sampled(DataLoader(DATA, 4, sampler=SubsetRandomSampler(few)), 20)())) == set(few)
    assert set(numbers(sampled(Subset(DATA, few), 20)())) == set(few)
    weights = torch.zeros(N)
    weights[:5] = 1
    data = sampled(DataLoader(DATA, 4, sampler=WeightedRandomSampler(weights, N)), 40)
    assert set(numbers(data())) == set(range(5))  # with replacement, as the loop has them
    with pytest.raises(errors.InputError, match="0 samples besides"):
        data.acceptance()


def test_a_sampler_without_end():
    class Endless:
        def __iter__(self):
            while True:
                yield int(torch.randint(20, ()))

    data = sampled(DataLoader(DATA, 4, sampler=Endless()), 10)
    jump = set(numbers(data()))
    assert not jump & set(numbers(data.acceptance()))
    data = sampled(DataLoader(DATA, 4, sampler=Endless()), 200)
    assert len(numbers(data())) == 200
    with pytest.raises(errors.InputError, match="0 samples besides the 20 of"):
        data.acceptance()


def test_fixed_samples():
    """Once and for all, whichever is asked first; another objective only where other parameters are free."""
    a, b = sampled(DATA, fixed=True), sampled(DATA, fixed=True)
    assert a() is a()
    assert a.acceptance() is a.acceptance()
    accept, jump = b.acceptance(), b()
    assert numbers(accept) == numbers(a.acceptance())
    assert numbers(jump) == numbers(a())
    assert not set(numbers(jump)) & set(numbers(accept))
    a.model[0].weight.requires_grad_(False)
    assert "0.weight" not in a().space.names
    assert numbers(a()) == numbers(jump)
    again = sampled(DATA, fixed=True, seed=8)
    again.load_state_dict(a.state_dict())
    assert numbers(again()) == numbers(jump)


def test_what_is_known_of_the_loader():
    for loader, batch_size, size in (
        (DATA, None, N),
        (DataLoader(DATA, 8), 8, N),
        (DataLoader(DATA, 4, sampler=SubsetRandomSampler(range(20))), 4, 20),
        (DataLoader(Streamed(), 8), 8, None),
        (batches(8), 8, None),
        (DataLoader(DATA, batch_sampler=[[1, 2], [3, 4]] * 4), None, N),
    ):
        data = sampled(loader, 2)
        assert (data.samples, data.batch_size, data.dataset_size) == (2, batch_size, size)


def test_chunks_and_a_jump():
    """Memory in chunks gives the same loss; a jump along what is drawn leaves the loader where it was."""
    data, whole = sampled(DataLoader(DATA, 8), chunk=5), sampled(DataLoader(DATA, 8))
    one, two = data(), whole()
    assert len(one.parts) == 4
    assert one.value(one.theta()) == pytest.approx(two.value(two.theta()), rel=1e-12)
    jumped, state = whole(), whole.state_dict()
    assert js.jump(jumped).accepted
    assert whole.state_dict() == state


@pytest.mark.parametrize("seed", [0, 1])
def test_seeds(seed):
    a, b = sampled(DATA, seed=seed), sampled(DATA, seed=2)
    assert numbers(a()) == numbers(sampled(DATA, seed=seed)())
    assert numbers(a()) != numbers(b())
