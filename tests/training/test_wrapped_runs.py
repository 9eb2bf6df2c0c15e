"""Random loops, wrapped: nothing is raised into them, nothing is undone, nothing rises, nothing costs too much.

``pytest -m slow -s tests/training/test_wrapped_runs.py`` prints the counts of hundreds.
"""

import pytest
import torch

from .wrapped_runs import BATCHES, Run, trial

RUNS = 520
MINIBATCH = 280


def require(counts):
    assert counts.raised == []
    assert counts.not_finite == []
    assert counts.rose == []
    assert counts.dear == []
    assert counts.share <= 1
    assert counts.accepted > counts.runs / 2  # and jumps there are


def test_a_dozen_of_them():
    counts = trial(Run.draw(seed) for seed in range(12))
    require(counts)
    assert len(counts.undone) <= 1, counts


@pytest.mark.slow
def test_hundreds_of_them():
    torch.set_num_threads(1)
    counts = trial(Run.draw(seed) for seed in range(10_000, 10_000 + RUNS))
    print(f"\n{counts}")
    require(counts)
    assert len(counts.undone) <= 0.01 * counts.looked_at


@pytest.mark.slow
def test_along_minibatches_training_is_no_worse():
    torch.set_num_threads(1)
    fixed = {"data": BATCHES, "after": "keep", "bad_batch": False, "raises": False}
    counts = trial(Run.draw(seed, **fixed) for seed in range(20_000, 20_000 + MINIBATCH))
    print(f"\n{counts}")
    require(counts)
    assert sum(ratio > 1.01 for ratio in counts.ratios.values()) <= 0.1 * MINIBATCH
