"""One seed for every test, and the generator as it was found."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    state = torch.get_rng_state()
    torch.manual_seed(3)
    yield
    torch.set_rng_state(state)
