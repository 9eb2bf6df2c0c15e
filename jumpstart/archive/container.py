"""One file format for all that is saved: written whole or not at all, read without executing or believing anything.

A file is a .npz, a zip of .npy entries that ``numpy.load`` opens without pickle. Its first entry, ``jumpstart.npy``, is
the header in JSON: kind, version, content, and for each tensor its dtype, shape, layout in memory and SHA-256. Its last
64 bytes, the zip's comment, are the SHA-256 of all before them, so that a flipped bit is found wherever it lies, the
zip's own tables included. Nothing is compressed and sizes are compared before data are read, so that reading takes no
more memory than the file is long. A digest is no signature: it finds damage, and says nothing about who wrote the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ArchiveError
from ..utils import files, strict_json, version

HEADER = "jumpstart"
MAGIC, MAGIC_AT = b"PK\x03\x04", 30  # of a zip's first entry, and where that entry's name stands
END = b"PK\x05\x06"  # of the record that a zip ends in
END_SIZE = 22
SEAL = 64  # characters of a SHA-256
CHUNK = 2**20
# How each dtype is stored: NumPy knows no bfloat16, whose bits are kept as integers.
STORED = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.float16: torch.float16,
    torch.bfloat16: torch.int16,
    torch.int64: torch.int64,
    torch.int32: torch.int32,
    torch.uint8: torch.uint8,
}
NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in STORED}


@dataclass(frozen=True)
class Kind:
    """What a file holds: a word for it in the file, the version that is written and read, and words for people."""

    name: str
    version: int
    what: str  # "saved solution"
    remedy: str  # "save it again"


@dataclass(frozen=True)
class Spec:
    """What a header says of a tensor before it is read; ``layout`` lists dimensions from the outermost in memory."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    layout: tuple[int, ...]
    sha256: str

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write(
    path: str | os.PathLike[str],
    kind: Kind,
    content: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    unbounded: Collection[str] = (),
) -> Path:
    """Write a file and return its path as given; one of that name is replaced at the end, whole or not at all.

    Args:
        content: whatever JSON can say, and numbers that are not finite.
        tensors: by name (letters, digits, dots); on any device, kept with dtype and layout in memory.
        unbounded: names of tensors that may hold NaN or infinity.

    Raises:
        ArchiveError: the file cannot be written, or what is to be written cannot be read back.
    """
    table: dict[str, Any] = {}
    plain: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if not re.fullmatch(r"\w[\w.]*", name) or name == HEADER or tensor.dtype not in STORED:
            raise ArchiveError(f"{path}: {name!r} of {tensor.dtype} cannot be stored; known are {sorted(NAMES)}.")
        if name not in unbounded and not bool(torch.isfinite(tensor).all()):
            raise ArchiveError(f"{path}: {name!r} holds NaN or infinity, so the file would not be read back.")
        layout = _layout(tensor)
        # Sums of another order round differently, so the layout in memory is kept.
        packed = tensor.detach().permute(layout).contiguous().cpu()
        described = str(tensor.dtype).removeprefix("torch."), list(tensor.shape), layout, digest(packed)
        table[name] = dict(zip(("dtype", "shape", "layout", "sha256"), described, strict=True))
        plain[name] = packed.view(STORED[packed.dtype]).numpy()
    header = {
        "kind": kind.name,
        "version": kind.version,
        "jumpstart": version.installed(),
        "torch": torch.__version__,
        "tensors": table,
        "content": content,
    }
    text = np.frombuffer(strict_json.dumps(header).encode(), dtype=np.uint8)
    return _replaced(Path(path), {HEADER: text, **plain})


def require_writable(path: str | os.PathLike[str]) -> None:
    """Find out at once, with a small file beside it, whether ``path`` could be written; half files of killed runs go.

    Raises:
        ArchiveError: it is a folder or a device, or its folder is missing, closed to us or full.
    """
    whole = _target(Path(path))
    files.sweep(whole)
    try:
        files.try_to_write(whole)
    except OSError as error:
        raise ArchiveError(f"{path} cannot be written ({error}): give a path in a folder that can be.") from error


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], kind: Kind) -> Iterator[Reader]:
    """Open a file for its content and the shapes of its tensors; ``Reader.load`` brings these in.

    Whatever goes wrong inside is taken for a fault of the file: check it there, and nothing else.

    Raises:
        ArchiveError: there is no such file; it was written by something else; it is cut short, damaged, of another
            kind or version; header and data do not belong together.
    """
    where = Path(path)
    try:
        if not where.exists():
            raise ArchiveError(f"{path}: there is no such file.")
        if not where.is_file():
            raise ArchiveError(f"{path} is a folder or a device, not a {kind.what}: give the path of a file.")
        with where.open("rb") as file, _opened(file, kind, f"{path}") as reader:
            yield reader
    except ArchiveError:
        raise
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read ({error}): check its permissions, and the disk.") from error
    except Exception as error:  # whatever a file of unknown origin can bring about
        raise ArchiveError(
            f"{path} holds no {kind.what}, is damaged or too large ({type(error).__name__}: {error}): {kind.remedy}."
        ) from error


@dataclass(frozen=True)
class Reader:
    """A file whose seal, kind and version are right; only its header is in memory yet.

    Attributes:
        content: as it was given to :func:`write`; to be believed no more than any input.
        specs: of each tensor by name; the entries' sizes agree.
    """

    content: dict[str, Any]
    specs: dict[str, Spec]
    entries: zipfile.ZipFile

    def load(self, unbounded: Collection[str] = ()) -> dict[str, Tensor]:
        """Every tensor, on the CPU.

        Raises:
            ValueError: an entry is not what the header says, or holds NaN or infinity without being ``unbounded``.
        """
        found = {}
        for name, spec in self.specs.items():
            tensor = found[name] = self._tensor(name, spec)
            if name not in unbounded and not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} holds NaN or infinity")
        return found

    def _tensor(self, name: str, spec: Spec) -> Tensor:
        shape = tuple(spec.shape[i] for i in spec.layout)
        with self.entries.open(f"{name}.npy") as entry:
            if np.lib.format.read_magic(entry) != (1, 0):
                raise ValueError(f"{name} is of another .npy version")
            told, by_columns, dtype = np.lib.format.read_array_header_1_0(entry)
            stored = torch.empty(0, dtype=STORED[spec.dtype], device="cpu").numpy().dtype
            if (told, by_columns, dtype) != (shape, False, stored):
                raise ValueError(f"{name} is {told} of {dtype}, and {shape} of {stored} by the header")
            if self.entries.getinfo(f"{name}.npy").file_size - entry.tell() != spec.bytes:
                raise ValueError(f"{name} is of another size than its shape says")
            packed = torch.empty(shape, dtype=spec.dtype, device="cpu")
            buffer = packed.reshape(-1).view(torch.uint8).numpy()
            for start in range(0, spec.bytes, CHUNK):
                piece = entry.read(min(CHUNK, spec.bytes - start))
                buffer[start : start + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
            entry.read()  # to the end, where the zip's own checksum is compared
        if digest(packed) != spec.sha256:
            raise ValueError(f"{name} does not match its SHA-256")
        return packed.permute([spec.layout.index(i) for i in range(len(spec.layout))])


def digest(*pieces: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes; of several, as if they were stacked along the first dimension."""
    first, shapes = pieces[0], [tuple(piece.shape) for piece in pieces]
    shape: Any = shapes[0]
    if len(pieces) > 1:
        alike = all(piece.dim() and piece.shape[1:] == first.shape[1:] for piece in pieces)
        shape = (sum(s[0] for s in shapes), *first.shape[1:]) if alike else shapes
    found = hashlib.sha256(f"{first.dtype}{shape}".encode())
    for piece in pieces:
        dense = piece.detach() if piece.layout is torch.strided else piece.detach().to_dense()
        plain = dense.cpu().resolve_conj().resolve_neg().contiguous()
        found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def seal(file: IO[bytes]) -> str:
    """SHA-256 of all but the last 64 bytes of an open file."""
    left = file.seek(0, os.SEEK_END) - SEAL
    file.seek(0)
    found = hashlib.sha256()
    while left > 0 and (piece := file.read(min(CHUNK, left))):
        found.update(piece)
        left -= len(piece)
    return found.hexdigest()


# -- writing -----------------------------------------------------------------------------------------------------


def _replaced(path: Path, table: Mapping[str, np.ndarray]) -> Path:
    whole = _target(path)
    try:
        with files.replacing(whole) as file:
            _zipped(file, table)
            sealed = seal(file)
            file.seek(-SEAL, os.SEEK_END)
            file.write(sealed.encode())
    except OSError as error:
        raise ArchiveError(f"{path} cannot be written ({error}): what stood there before is unchanged.") from error
    return path


def _zipped(file: IO[bytes], table: Mapping[str, np.ndarray]) -> None:
    entries = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)
    try:
        entries.comment = b"0" * SEAL
        for name, array in table.items():
            # A date of its own would make two files of the same content differ.
            entry = entries.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)
            np.lib.format.write_array(entry, array, version=(1, 0), allow_pickle=False)
            entry.close()
        entries.close()
    except BaseException:
        # The file is thrown away: a zip that tried to end it properly would raise in place of what has happened.
        entries.fp = None
        raise


def _target(path: Path) -> Path:
    """Where a file really goes: the end of symbolic links, and nothing that is no file."""
    try:
        whole = path.resolve()
        free = whole.is_file() or not whole.exists()
    except (OSError, RuntimeError, ValueError) as error:  # no permission to look, a circle of links, a null character
        raise ArchiveError(f"{path} cannot be written ({error}): give a path in a folder that can be.") from error
    if not free:
        raise ArchiveError(f"{path} is a folder or a device: give the path of a file.")
    return whole


def _layout(tensor: Tensor) -> list[int]:
    """Dimensions from the outermost in memory to the innermost."""
    return sorted(range(tensor.dim()), key=lambda i: -tensor.stride(i))


# -- reading -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(file: IO[bytes], kind: Kind, path: str) -> Iterator[Reader]:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start, mark = file.read(MAGIC_AT + len(HEADER) + 4), f"{HEADER}.npy".encode()
    if not (start.startswith(MAGIC) and start[MAGIC_AT:] == mark):
        seen = f"begins with {start[:16]!r}" if size else "is empty"
        raise ArchiveError(f"{path} holds no {kind.what}: it {seen}, as no file of jumpstart does: {kind.remedy}.")
    file.seek(max(0, size - END_SIZE - SEAL))
    tail = file.read()
    if not tail.startswith(END):
        raise ArchiveError(f"{path} is cut short or damaged ({size} bytes, without the end of a file): {kind.remedy}.")
    if tail[-SEAL:] != seal(file).encode():
        raise ArchiveError(f"{path} is damaged: its SHA-256 is not the one that it ends in: {kind.remedy}.")
    file.seek(0)
    with zipfile.ZipFile(file) as entries:
        names = [info.filename for info in entries.infolist()]
        packed = [info.filename for info in entries.infolist() if info.compress_type != zipfile.ZIP_STORED]
        if packed or sum(info.file_size for info in entries.infolist()) > size:
            raise ValueError(f"entries {packed[:4]} are compressed, or all of them longer than the file")
        header = _header(entries)
        if header["kind"] != kind.name:
            raise ArchiveError(f"{path} holds a {str(header['kind'])[:40]!r}, not a {kind.what}: {kind.remedy}.")
        _require_version(header, kind, path)
        specs = {name: _spec(told) for name, told in header["tensors"].items()}
        if names != [f"{name}.npy" for name in (HEADER, *specs)]:
            raise ValueError(f"the header is of {list(specs)[:9]}, the entries are {names[:9]}")
        for name, spec in specs.items():
            if spec.bytes > entries.getinfo(f"{name}.npy").file_size:
                raise ValueError(f"{name} of shape {spec.shape} is larger than its entry")
        content = header["content"]
        if not isinstance(content, dict):
            raise TypeError("the content is no table")
        yield Reader(content, specs, entries)


def _header(entries: zipfile.ZipFile) -> dict[str, Any]:
    with entries.open(f"{HEADER}.npy") as entry:
        if np.lib.format.read_magic(entry) != (1, 0):
            raise ValueError("the header is of another .npy version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(entry)
        text = entry.read()
    if dtype != np.uint8 or shape != (len(text),):
        raise ValueError("the header is no text")
    header = strict_json.loads(text)
    if not isinstance(header, dict):
        raise TypeError("the header is no table")
    return header


def _require_version(header: dict[str, Any], kind: Kind, path: str) -> None:
    found = header["version"]
    if type(found) is not int:
        raise TypeError(f"the version is {found!r}")
    told = f"{path} is of format {found}, written by jumpstart {str(header.get('jumpstart'))[:40]}; this is"
    if found > kind.version:
        raise ArchiveError(f"{told} {version.installed()}, which reads format {kind.version}: upgrade it.")
    if found < kind.version:
        raise ArchiveError(f"{told} {version.installed()}, which reads format {kind.version} alone: {kind.remedy}.")


def _spec(told: dict[str, Any]) -> Spec:
    shape, layout = tuple(told["shape"]), tuple(told["layout"])
    if any(type(n) is not int or n < 0 for n in (*shape, *layout)) or sorted(layout) != list(range(len(shape))):
        raise ValueError(f"no shape and layout: {shape}, {layout}")
    return Spec(NAMES[told["dtype"]], shape, layout, str(told["sha256"]))
