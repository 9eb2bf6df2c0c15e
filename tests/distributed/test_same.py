"""Two and three gloo processes compute what one computes, and hold the same bits."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from . import resumed
from .jobs import near, spawn

CLOSE = 1e-10
# Agreements and payloads of each product; "preparing" is one agreement more, before what asks the parts anew.
COUNTS = {
    "value": (2, 1), "gradient": (3, 2), "evaluate": (3, 2), "outputs": (1, 1), "jvp": (1, 1), "vjp": (1, 1),
    "second": (1, 1), "second_pull": (1, 1), "graph": (1, 1), "graph.T": (1, 1), "jacobian": (3, 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("same")
    found = {size: spawn("same", size, folder, JOB_PROBLEMS=str(6 - size)) for size in (2, 3)}
    return {**found, "folder": folder}


@pytest.mark.parametrize("size", [2, 3])
def test_as_one_process(told, size):
    for rank in told[size]:
        assert rank["code"] == 0, rank["out"][-3000:]
    for rank in told[size]:
        numbers = {name: value for name, value in rank.items() if isinstance(value, float)}
        assert {name: value for name, value in numbers.items() if not (value <= CLOSE or "loose" in name)} == {}
        assert numbers["loose loop"] <= 1e3 * numbers["loose reordered"] + CLOSE
        assert sum(isinstance(value, float) for value in rank.values()) > 70


@pytest.mark.parametrize("size", [2, 3])
def test_weights_have_the_same_bits(told, size):
    assert len(told[size][0]["weights"]) > 15
    for rank in told[size][1:]:
        assert rank["weights"] == told[size][0]["weights"]


@pytest.mark.parametrize("size", [2, 3])
def test_collectives_are_counted(told, size):
    for rank in told[size]:
        for loss in ("mse", "cross_entropy", "huber"):
            counted = {name: tuple(rank[f"counts {loss} {name}"]) for name in COUNTS}
            assert counted == COUNTS


@pytest.mark.parametrize("size", [2, 3])
def test_a_gradient_that_is_no_mean_over_processes_has_no_variance(told, size):
    assert all("not the mean over" in rank["clipped"] for rank in told[size])


def test_what_moves_nothing_writes_to_no_shard(told):
    for rank in told[2]:
        assert rank["refused leaves all"] and rank["a jump writes in place"]


@pytest.mark.parametrize("kind", resumed.KINDS)
def test_a_run_goes_on_in_groups_of_other_sizes(told, kind):
    """Two processes, then three, then one: as one that was never interrupted."""
    assert all(rank["code"] == 0 for size in (2, 3) for rank in told[size])
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert near(resumed.stage(told["folder"], kind), resumed.alone()) <= CLOSE
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_twenty_random_problems(tmp_path):
    found = spawn("same", 2, tmp_path, JOB_PROBLEMS="20")
    for rank in found:
        assert rank["code"] == 0, rank["out"][-3000:]
        apart = {name: value for name, value in rank.items() if name.startswith(tuple(f"jump {i} " for i in range(20)))}
        assert len(apart) == 80
        assert max(apart.values()) <= CLOSE
        assert rank["weights"] == found[0]["weights"]
