"""Endings begin where the run at constant rate was, take what they say, and are compared by seed."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from experiments import endings
from experiments.endings import CONSTANT, COSINE, LINEAR, TOY, State, start


@pytest.fixture(scope="module")
def toy():
    return TOY["toy"], TOY["toy"].data()


def flat(state: State) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in state.model.parameters()])


def test_a_branch_goes_on_where_the_run_was(toy):
    state = start(*toy, 0)
    branches, _, rows = endings.trunk(state, endings.OPTIONS)
    assert [branch.step for branch in (branches[0.2], branches[0.1])] == [32, 36]
    twin = branches[0.2].clone()
    for rows_ in itertools.islice(twin.batches(), 8):
        twin.take(rows_)
    assert torch.equal(flat(twin), flat(state))  # as if it had never been cut
    assert rows[0]["ending"] == CONSTANT and len(rows) == 1 + 3 + 3


def test_a_decay_of_no_steps_is_the_branch_and_the_rate_ends_at_nothing(toy):
    assert endings.factor(LINEAR, (1.0, 0.0), 0.25) == 0.75 and endings.factor(LINEAR, (2.0, 0.1), 1.0) == 0.1
    assert endings.factor(COSINE, (1.0, 0.0), 0.5) == pytest.approx(0.5)
    state = start(*toy, 0)
    before = flat(state)
    endings.decayed(state, LINEAR, (0.0, 0.0), 3)
    assert torch.equal(flat(state), before)


def later(toy):
    """A run after some steps: moments have something in them."""
    state = start(*toy, 0)
    for rows in itertools.islice(state.batches(), 20):
        state.take(rows)
    state.step = 20
    return state


def test_what_a_jump_costs_is_free_of_steps(toy):
    """With all of the ending kept free, the move is made from the branch itself."""
    state, branch, other = later(toy), later(toy), later(toy)
    row = endings.spared(state, endings.SKIP, 256, 20, 20.0)
    assert row["moved"] > 0 and row["kept"] == 1
    start_ = endings.test(branch.model, branch.data, "cross_entropy")["test loss"]
    assert endings.test(state.model, state.data, "cross_entropy")["test loss"] < start_
    endings.spared(other, endings.SKIP, 256, 4, 0.0)  # four steps first
    assert not torch.equal(flat(other), flat(state))


def test_statistics_are_means_over_samples(toy):
    _, data = toy
    model = nn.Sequential(nn.Linear(64, 5), nn.BatchNorm1d(5))
    endings.refresh(model, data)
    parts = data.x[: endings.STATISTICS].split(256)
    expected = torch.stack([model[0](part).mean(0) for part in parts]).mean(0)
    assert torch.allclose(model[1].running_mean, expected, atol=1e-5) and model[1].momentum == 0.1


def test_an_option_beyond_the_time_is_not_chosen():
    def row(option, loss, time):
        return {"share": 0.1, "ending": endings.JUMP, "option": option, "test loss": loss, "time": time, "cost": time}

    rows = [
        {"share": share, "ending": ending, "option": options[0], "test loss": 1.0, "time": 1.0}
        for share in endings.SHARES
        for ending, options in endings.OPTIONS.items()
        if (share, ending) != (0.1, endings.JUMP)
    ]
    found = endings.choose([*rows, row(128, 0.5, 1.0), row(256, 0.4, 1.05), row(512, 0.1, 3.0)])
    assert found["0.1"][endings.JUMP] == {"option": 256, "cost": 1.05}
    found = endings.choose([*rows, row(128, 0.5, 2.0), row(256, 0.1, 3.0)])
    assert found["0.1"][endings.JUMP]["option"] == 128  # none is in time: the cheapest


def test_losses_are_compared_by_seed():
    def row(ending, seed, loss):
        return {"task": "toy", "share": 0.1, "seed": seed, "ending": ending, "option": None, "test loss": loss,
                "accuracy": 0.5, "time": 1.0}  # fmt: skip

    rows = [row(LINEAR, 0, 1.0), row(LINEAR, 1, 2.0), row(CONSTANT, 0, 1.5), row(CONSTANT, 1, 1.9)]
    line = {found["ending"]: found for found in endings.summarized(rows)}[CONSTANT]
    assert (
        line["beside linear"] == pytest.approx({"median": 0.2, "min": -0.1, "max": 0.5}) and line["below linear"] == 1
    )
