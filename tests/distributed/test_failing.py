"""A process that fails, differs or dies: a named outcome on all processes, and weights as before."""

from __future__ import annotations

import pytest

from .jobs import spawn

RANK, INPUT, PARTED, GONE = "RankError", "InputError", "DivergedError", "GroupError"
# What is asked -> the error on every process, and words of its message.
CASES = {
    "error in a jump": (RANK, "rank 1 of 2 failed"), "error in a solve": (RANK, "a sample that cannot be read"),
    "error in a fit": (RANK, "rank 1"), "error in a skip": (RANK, "rank 1"),
    "memory in a jump": (RANK, "out of memory"), "memory in a solve": (RANK, "out of memory"),
    "memory in a fit": (RANK, "out of memory"), "memory in a skip": (RANK, "out of memory"),
    "nan in a solve": ("NonFiniteError", "NaN"),
    "other weights": (INPUT, "what the model holds"), "other model": (INPUT, "parameters differs"),
    "other loss": (INPUT, "the loss differs between processes (rank 0: mse; rank 1: huber)"),
    "other options": (INPUT, "delta differs"), "other targets": (INPUT, "the shape of a row differs"),
    "other dtype": (INPUT, "the dtype differs"), "other outputs": ("ShapeError", "outputs differ between processes"),
    "own targets": ("ShapeError", "squared-error"), "a loss with targets": (INPUT, "gathered"),
    "NaN in inputs": (RANK, "rank 1"), "nothing": ("EmptyBatchError", "no process has a sample"),
    "no group": (INPUT, "group='world'"), "mode": (INPUT, "mode of a module"),
    "batch statistics": (INPUT, "BatchNorm1d in train mode"), "meta on one": (INPUT, "meta"),
    "a function of the network": (INPUT, "cannot be spread"), "other version": (INPUT, "jumpstart's version differs"),
    "parted": (PARTED, "the processes have parted"), "other options of a call": (PARTED, "parted"),
    "moved apart": (PARTED, "other numbers"), "other buffers": (PARTED, "and buffers"),
    "a skip past BatchNorm": (INPUT, "BatchNorm in train mode"), "a file": (INPUT, "not saved"),
    "path": (INPUT, "path="),
    "a head": (INPUT, "one process"), "a recorder": (INPUT, "one process"), "a loader": (INPUT, "from_loader"),
    "a group that is gone": (GONE, "not initialized"), "an objective of it": (GONE, "does not reach"),
}  # fmt: skip


# Of models in shards (``kept.refused``).
CASES |= {
    "mixed precision": (INPUT, "param_dtype=torch.bfloat16"), "output dtype": (INPUT, "output_dtype=torch.float32"),
    "meta": (INPUT, "call to_empty"), "closure": (INPUT, "make it a method"),
    "compiled inside": (INPUT, "compile the whole"), "tensor parallel": (INPUT, "'0' is parallelized"),
    "another group": (INPUT, "'0.weight' lies on the processes [0, 1]"), "offload": (INPUT, "CPUOffloadPolicy"),
    "in a forward pass": (INPUT, "in the middle of a forward pass"), "FSDP1": (INPUT, "FSDP1"),
    "record": (INPUT, "works with DistributedDataParallel"), "a loader of shards": (INPUT, "from_loader"),
    "other shards": (INPUT, "'0.weight' (shape, dtype, placements) differs"),
    "a copy": (INPUT, "neither be copied"),
    "no room": ("MemoryLimitError", "the model's weights take 400 bytes whole"),
    "ZeRO in the backward pass": (INPUT, "overlap_with_ddp"),
    "another model's optimizer": (INPUT, "does not hold"),
}  # fmt: skip
# The same of a model in shards (FSDP2).
QUIET = ("nan in a jump", "nan in a fit", "nan in a skip")
QUIET += tuple(f"shards: {name}" for name in QUIET)
CASES |= {f"shards: {name}": case for name, case in CASES.items() if " in a " in name}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    found = spawn("failing", 2, tmp_path_factory.mktemp("failing"), timeout=20.0)
    for rank in found:
        assert rank["code"] == 0, rank["out"][-3000:]
    return found


@pytest.mark.parametrize("case", CASES)
def test_all_processes_are_told(told, case):
    kind, words = CASES[case]
    for rank in told:
        found, text, *same = rank[case]
        assert found == kind, text
        assert words in text
        assert same in ([], [True])


def test_every_case_is_judged(told):
    quiet = set(QUIET)
    assert {name for name, value in told[0].items() if isinstance(value, list)} == set(CASES) | quiet


@pytest.mark.parametrize("case", QUIET)
def test_what_is_not_finite_somewhere_moves_nobody(told, case):
    """An outcome or a named error, the same on all."""
    assert told[0][case][::2] == told[1][case][::2]
    assert told[0][case][2] or not case.endswith("nan in a jump")


def lost(folder, how, seconds=4.0, **extra):
    found = spawn("failing", 3, folder, timeout=seconds, lost=1, JOB_HOW=how, **extra)
    for rank in found:
        assert rank["code"] == 0, rank["out"][-3000:]
        kind, text, same = rank["found"]
        assert kind == GONE and same
        assert f"{seconds:g} s that the group waits" in text
        assert rank["seconds"] < 4 * seconds
        assert rank["again"][0] == GONE  # and at once


@pytest.mark.parametrize("how", ["dies", "sleeps"])
def test_a_process_that_is_lost(tmp_path, how):
    lost(tmp_path, how)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["dies", "sleeps"])
def test_a_process_that_is_lost_with_its_shards(tmp_path, how):
    lost(tmp_path, how, JOB_SHARDS="1")
