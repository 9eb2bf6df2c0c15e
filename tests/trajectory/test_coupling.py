"""A readout judged on moves that it has not seen, against chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jumpstart import errors
from jumpstart.trajectory import coupling

from ..problems import randn


def test_a_readout_that_holds_is_told_from_chance():
    readout, moved = randn(0, 6, 20), randn(1, 20)
    found = coupling(readout, moved, readout @ moved + 0.1 * randn(2, 6))
    assert found.correlation > 0.99 and found.error < 0.1 and found.chance == pytest.approx(1 / 201)
    assert found.correlation == pytest.approx(np.corrcoef(found.predicted, found.real)[0, 1])
    assert found.error == pytest.approx(np.linalg.norm(found.predicted - found.real) / np.linalg.norm(found.real))
    assert abs(float(found.permuted.mean())) < 0.2


def test_one_that_does_not_is_chance():
    chances = [coupling(randn(s, 6, 20), randn(s + 50, 20), randn(s + 99, 6), seed=s).chance for s in range(30)]
    assert 0.3 < np.mean(chances) < 0.7


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = coupling(randn(0, 3, 5), randn(1, 5), randn(2, 3), seed=4)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.permuted, coupling(randn(0, 3, 5), randn(1, 5), randn(2, 3), seed=4).permuted)


@pytest.mark.parametrize(("arguments", "kind", "words"), [
    ((randn(0, 3, 5), randn(1, 4), randn(2, 3)), errors.ShapeError, "(3, 5)"),
    ((randn(0, 3, 5), randn(1, 5), randn(2, 3), 0), errors.InputError, "permutations=0"),
    ((randn(0, 3, 5), randn(1, 5) * torch.nan, randn(2, 3)), errors.NonFiniteError, "NaN"),
    ((randn(0, 3, 5), randn(1, 5), torch.zeros(3)), errors.InputError, "all of them zero"),
])  # fmt: skip
def test_what_does_not_belong_together_is_refused(arguments, kind, words):
    with pytest.raises(kind) as caught:
        coupling(*arguments)
    assert words in str(caught.value)
