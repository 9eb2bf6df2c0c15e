"""TensorBoard's own files, read back."""

import pytest
import torch

import jumpstart as js
from jumpstart.training.writers import TensorBoard

from ..training.loops import train

pytestmark = pytest.mark.integrations
pytest.importorskip("tensorboard")


def test_numbers_of_jumps_are_in_the_files(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    x = torch.randn(8, 3)
    y = x.sum(1, keepdim=True)
    inner = torch.optim.SGD(model.parameters(), 0.01)
    optimizer = js.JumpOptimizer(
        inner, js.supervised(model, x, y), at={2, 3}, search=True, on_jump=TensorBoard(tmp_path)
    )
    train(model, x, y, optimizer, 3)
    found = EventAccumulator(str(tmp_path)).Reload()
    rows = found.Scalars("jumpstart/actual")
    assert [row.step for row in rows] == [2, 3]
    assert [row.value for row in rows] == pytest.approx([result.actual for result in optimizer.results])
