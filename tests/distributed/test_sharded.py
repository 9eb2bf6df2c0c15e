"""Models in shards (FSDP2) of every kind compute what one process computes; what is quick of it is in test_same."""

from __future__ import annotations

import pytest

from .jobs import spawn
from .test_same import CLOSE

LOOSE = 1e-6  # of skips that were rehearsed on a loop's past


@pytest.mark.slow
@pytest.mark.parametrize(("module", "size"), [("kept", 2), ("kept", 3), ("sharded", 3)])
def test_as_one_process(tmp_path, module, size):
    found = spawn(module, size, tmp_path)
    for rank in found:
        assert rank["code"] == 0, rank["out"][-3000:]
        numbers = {name: value for name, value in rank.items() if isinstance(value, float)}
        far = {n: v for n, v in numbers.items() if not v <= (LOOSE if n.startswith("loose") else CLOSE)}
        assert far == {}
        assert len(numbers) > (7 if module == "sharded" else 20)
        assert all(value is True for value in rank.values() if isinstance(value, bool))


@pytest.mark.slow
def test_meshes_of_four_processes(tmp_path):
    found = spawn("meshes", 4, tmp_path)
    for at, rank in enumerate(found):
        assert rank["code"] == 0, rank["out"][-3000:]
        assert max(value for value in rank.values() if isinstance(value, float)) <= CLOSE
        assert ("a group that is given" in rank) == (at < 2)
        for name, words in {"no group": "give group=", "tensor parallel": "DTensor"}.items():
            kind, text = rank.get(name, ("InputError", words))
            assert kind == "InputError" and words in text
        assert rank["tensor parallel alone"][0] == "InputError" and "DTensor" in rank["tensor parallel alone"][1]
