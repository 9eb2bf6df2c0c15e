"""Files changed by hand with digests that are right again: what a bug or an attacker leaves, not what damage does."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch

from jumpstart.archive import container

HEADER = "jumpstart.npy"


def unpacked(path):
    """The header as a table, and the .npy arrays by name (bfloat16 as integers)."""
    with np.load(path) as found:
        arrays = {name: found[name] for name in found.files}
    return json.loads(arrays.pop(container.HEADER).tobytes()), arrays


def npy(array, allow_pickle=False):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=allow_pickle)
    return buffer.getvalue()


def packed(path, header, entries, mode=zipfile.ZIP_STORED):
    """A zip of raw entries behind a header, sealed; returns the path."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    with zipfile.ZipFile(path, "w", mode) as file:
        file.comment = b"0" * container.SEAL
        file.writestr(zipfile.ZipInfo(HEADER), npy(np.frombuffer(text, dtype=np.uint8)), zipfile.ZIP_STORED)
        for name, content in entries.items():
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), content, mode)
    return sealed(path)


def sealed(path):
    """The digest of the whole file put right."""
    with Path(path).open("r+b") as file:
        text = container.seal(file)
        file.seek(-container.SEAL, io.SEEK_END)
        file.write(text.encode())
    return path


def forged(source, target, change, digests=True):
    """A copy of a file after ``change(header, arrays)``, its seal and, unless told otherwise, its digests put right."""
    header, arrays = unpacked(source)
    change(header, arrays)
    table = header.get("tensors")
    for name, array in arrays.items() if digests and isinstance(table, dict) else ():
        told = table.get(name)
        if isinstance(told, dict) and told.get("dtype") in container.NAMES and array.dtype != object:
            tensor = torch.from_numpy(array.copy())
            dtype = container.NAMES[told["dtype"]]
            told["sha256"] = container.digest(tensor.view(dtype) if dtype.itemsize == tensor.dtype.itemsize else tensor)
    return packed(target, header, {name: npy(array, True) for name, array in arrays.items()})
