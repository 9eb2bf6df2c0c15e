"""The file format: what comes back is what went in, to the bit; all else is refused by name, for little memory."""

from __future__ import annotations

import io
import json
import math
import os
import resource
import stat
import threading
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from jumpstart.archive import container
from jumpstart.archive.container import Kind, digest, reading, require_writable, write
from jumpstart.errors import ArchiveError

from ..problems import generator, randn
from .forgery import forged, npy, packed, sealed, unpacked

KIND = Kind("test", 3, "kept test", "run it again")
CONTENT = {"a": [1, 2.5, None, True, "text"], "deep": {"b": -0.0, "c": 1e-308}, "unit": "Ω"}


def tensors():
    """Every dtype, several layouts in memory, no dimension, no entry."""
    base = randn(0, 4, 6, 5)
    whole = {
        name: (base * 3).to(dtype) if dtype.is_floating_point else (base * 3).abs().to(dtype)
        for name, dtype in container.NAMES.items()
    }
    return {
        **whole,
        "turned": base.permute(2, 0, 1),
        "strided": base[:, ::2, 1:3],
        "expanded": base[:1, :1].expand(3, 2, 5),
        "turned.bfloat16": base.permute(2, 0, 1).to(torch.bfloat16),
        "scalar": torch.tensor(2.0),
        "empty": torch.empty(0, 3),
        "with.dots_1": torch.ones(2),
    }


def read(path, kind=KIND, **options):
    with reading(path, kind) as file:
        return file.content, file.load(**options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return write(tmp_path_factory.mktemp("saved") / "a.npz", KIND, CONTENT, tensors())


def layout(tensor):
    return sorted(range(tensor.dim()), key=lambda i: -tensor.stride(i))


def test_what_comes_back_is_what_went_in(saved):
    content, found = read(saved)
    assert content == CONTENT
    assert math.copysign(1, content["deep"]["b"]) == -1
    assert list(found) == list(tensors())
    for name, tensor in tensors().items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name
        assert layout(found[name]) == layout(tensor), name
        if tensor.numel():
            found[name].zero_()  # writable, and its own


def test_numpy_opens_it_without_pickle(saved):
    with np.load(saved, allow_pickle=False) as file:
        assert np.array_equal(file["float64"], tensors()["float64"].numpy())
        assert json.loads(file["jumpstart"].tobytes())["kind"] == "test"


def test_the_same_content_makes_the_same_bytes(saved, tmp_path):
    assert write(tmp_path / "b", KIND, CONTENT, tensors()).read_bytes() == saved.read_bytes()
    with zipfile.ZipFile(saved) as file:
        assert {info.date_time for info in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_numbers_that_are_not_finite_are_kept_and_the_header_stays_json(tmp_path):
    content = {"rows": [{"a": math.inf, "b": -math.inf}, {"a": math.nan, "b": 1.5}], "list": [math.inf]}
    path = write(tmp_path / "a", KIND, content, {})
    header, _ = unpacked(path)
    json.dumps(header, allow_nan=False)
    found, _ = read(path)
    assert found["rows"][0] == content["rows"][0] and found["list"] == [math.inf]
    assert math.isnan(found["rows"][1]["a"]) and found["rows"][1]["b"] == 1.5


def test_tensors_that_are_not_finite_are_refused_unless_expected(tmp_path):
    odd = {"a": torch.tensor([1.0, math.inf]), "b": torch.tensor([math.nan])}
    with pytest.raises(ArchiveError, match="'a' holds NaN or infinity"):
        write(tmp_path / "a", KIND, {}, odd)
    with pytest.raises(ArchiveError, match="'b' holds NaN or infinity"):
        write(tmp_path / "a", KIND, {}, odd, unbounded={"a"})
    assert not list(tmp_path.iterdir())
    path = write(tmp_path / "a", KIND, {}, odd, unbounded={"a", "b"})
    _, found = read(path, unbounded={"a", "b"})
    assert torch.equal(found["a"], odd["a"]) and bool(found["b"].isnan())
    with pytest.raises(ArchiveError, match="b holds NaN or infinity"):  # the reader says, not the file
        read(path, unbounded={"a"})


@pytest.mark.parametrize("name", ["jumpstart", "a/b", "../a", "", ".a", "a b"])
def test_names_that_cannot_be_kept(name, tmp_path):
    with pytest.raises(ArchiveError, match="cannot be stored"):
        write(tmp_path / "a", KIND, {}, {name: torch.ones(1)})
    assert not list(tmp_path.iterdir())


def test_dtypes_that_cannot_be_kept(tmp_path):
    with pytest.raises(ArchiveError, match=r"'z' of torch\.complex64 cannot be stored; known are \['bfloat16'"):
        write(tmp_path / "a", KIND, {}, {"z": torch.zeros(1, dtype=torch.complex64)})


def test_digests_tell_dtype_shape_and_bytes_apart():
    x = randn(0, 6, 4)
    others = [x.float(), x.reshape(4, 6), x.T, -x, x[:5], torch.cat([x[:5], x[5:] + 1e-15])]
    found = [digest(x), *[digest(other) for other in others]]
    assert len(set(found)) == len(found)
    assert digest(x.T.contiguous().T) == digest(x) == digest(x[:2], x[2:5], x[5:])
    assert digest(x[:2], x[3:]) != digest(x) != digest(x[2:], x[:2])
    for odd in (torch.tensor([True, False]), torch.tensor(1), torch.zeros(0, 2), torch.tensor([1 + 2j]).conj()):
        assert digest(odd) == digest(odd.clone())
    assert digest(torch.tensor([1 + 2j]).conj()) == digest(torch.tensor([1 - 2j]))
    assert digest(torch.eye(3).to_sparse()) == digest(torch.eye(3))


# -- writing -----------------------------------------------------------------------------------------------------


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write(tmp_path / "a", KIND, {"n": 1}, tensors())
    whole, real, calls = path.read_bytes(), np.lib.format.write_array, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*args, **options)

    monkeypatch.setattr(np.lib.format, "write_array", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(path, KIND, {"n": 2}, tensors())
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk_is_an_archive_error_and_costs_the_old_file_nothing(step, tmp_path, monkeypatch):
    path = write(tmp_path / "a", KIND, {"n": 1}, tensors())
    whole = path.read_bytes()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    where = {"write": (np.lib.format, "write_array"), "fsync": (os, "fsync"), "replace": (Path, "replace")}[step]
    monkeypatch.setattr(*where, full)
    with pytest.raises(ArchiveError, match=r"No space left on device.*unchanged"):
        write(path, KIND, {"n": 2}, tensors())
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_disk_that_really_is_full(tmp_path):
    """zipfile ends a file also where it has failed, and fails once more: still an ArchiveError, still no half file."""
    old = write(tmp_path / "a", KIND, {"n": 1}, {}).read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # Python ignores the signal, and write() fails
    try:
        with pytest.raises(ArchiveError, match=r"File too large.*unchanged"):
            write(tmp_path / "a", KIND, {"n": 2}, {"a": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "a").read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def places(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    os.mkfifo(tmp_path / "pipe")
    return ["folder", "file/a", "nowhere/a", "circle", "pipe", "a\0b", "x" * 300]


def test_places_that_cannot_be_written(tmp_path):
    for name in places(tmp_path):
        before = sorted(p.name for p in tmp_path.rglob("*"))
        for attempt in (lambda p: write(p, KIND, {}, {}), require_writable):
            with pytest.raises(ArchiveError):
                attempt(tmp_path / name)
        assert sorted(p.name for p in tmp_path.rglob("*")) == before
    require_writable(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ArchiveError, match="Permission denied"):
            require_writable(tmp_path / "a")
    finally:
        tmp_path.chmod(0o700)


def test_links_are_followed_long_names_are_fine_and_permissions_are_the_users(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a")
    write(tmp_path / "link", KIND, {"n": 5}, {})
    assert (tmp_path / "link").is_symlink() and read(tmp_path / "real" / "a")[0] == {"n": 5}
    long = write(tmp_path / ("Ω" * 127), KIND, {"n": 6}, {})
    assert read(long)[0] == {"n": 6}
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(long.stat().st_mode) == 0o666 & ~mask


def test_two_writers_at_once_leave_one_whole_file(tmp_path):
    big = {"a": randn(1, 200_000)}

    def writer(n):
        for _ in range(5):
            write(tmp_path / "a", KIND, {"n": n}, big)

    threads = [threading.Thread(target=writer, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content, found = read(tmp_path / "a")
    assert content["n"] in range(3) and torch.equal(found["a"], big["a"])
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


# -- damage ------------------------------------------------------------------------------------------------------


def regions(path):
    """A few bytes of everything that a zip is made of: each entry's own header, .npy header and data; tables; end."""
    size, marks = path.stat().st_size, {0, 1}
    with zipfile.ZipFile(path) as file:
        for info in file.infolist():
            start = info.header_offset
            marks |= {*range(start, start + 30, 3), *range(start + 30, start + 200, 17)}
        marks |= set(range(file.start_dir, size, 11))
    marks |= {int(at) for at in torch.linspace(0, size - 1, 120).tolist()} | set(range(size - 90, size, 2))
    return sorted(at for at in marks if 0 <= at < size)


def test_every_flipped_bit_is_found(saved, tmp_path):
    whole, bad = bytearray(saved.read_bytes()), tmp_path / "x"
    bits = torch.randint(0, 8, (len(whole),), generator=generator(0))
    at = regions(saved)
    for place in at:
        damaged = whole.copy()
        damaged[place] ^= 1 << int(bits[place])
        bad.write_bytes(damaged)
        with pytest.raises(ArchiveError, match=r"is damaged|is cut short|holds no kept test"):
            read(bad)
    assert len(at) > 500


def test_every_truncation_is_found(saved, tmp_path):
    whole, bad = saved.read_bytes(), tmp_path / "x"
    for part in [*(len(whole) * k // 20 for k in range(20)), len(whole) - 1, len(whole) - 64, len(whole) - 86, 43]:
        bad.write_bytes(whole[:part])
        with pytest.raises(ArchiveError, match=r"cut short|is empty|begins with"):
            read(bad)
    bad.write_bytes(whole + b"\0")
    with pytest.raises(ArchiveError):
        read(bad)
    bad.write_bytes(b"\0" + whole)
    with pytest.raises(ArchiveError):
        read(bad)


def test_foreign_files_are_called_that(tmp_path):
    plain, table, model = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(plain, np.zeros(3))
    np.savez(table, a=np.zeros(3))
    torch.save({"a": torch.zeros(2)}, model)
    for content in (b"hello", b"PK\x03\x04", plain.getvalue(), table.getvalue(), model.getvalue()):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ArchiveError, match=r"x holds no kept test: it begins with .*as no file of jumpstart does"):
            read(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(ArchiveError, match=r"it is empty.*run it again"):
        read(tmp_path / "x")


def test_what_is_no_file(tmp_path):
    places(tmp_path)
    with pytest.raises(ArchiveError, match="there is no such file"):
        read(tmp_path / "missing")
    for name in ("folder", "pipe"):
        with pytest.raises(ArchiveError, match="is a folder or a device"):
            read(tmp_path / name)
    for name in ("circle", "file/a", "x" * 300):
        with pytest.raises(ArchiveError):
            read(tmp_path / name)


def test_another_kind_and_other_versions(saved, tmp_path):
    with pytest.raises(ArchiveError, match=r"holds a 'test', not a saved poem: write another\."):
        read(saved, Kind("poem", 3, "saved poem", "write another"))
    with pytest.raises(ArchiveError, match=r"is of format 3, written by jumpstart .* which reads format 2: upgrade it"):
        read(saved, Kind("test", 2, "kept test", "run it again"))
    with pytest.raises(ArchiveError, match=r"is of format 3.* which reads format 4 alone: run it again"):
        read(saved, Kind("test", 4, "kept test", "run it again"))
    later = forged(saved, tmp_path / "x", lambda header, _: header.update(version=9, jumpstart="9.0", tensors=7))
    with pytest.raises(ArchiveError, match=r"is of format 9, written by jumpstart 9\.0"):
        read(later)


# -- files that lie ----------------------------------------------------------------------------------------------


def told(name, **changes):
    return lambda header, arrays: header["tensors"][name].update(changes)


def gone(*names):
    def change(header, arrays):
        for name in names:
            header.pop(name)

    return change


def swap(header, arrays):
    header["tensors"] = dict(reversed(header["tensors"].items()))


LIES = {
    "no tensors": gone("tensors"),
    "no content": gone("content"),
    "no kind": gone("kind"),
    "no version": gone("version"),
    "the version is text": lambda header, arrays: header.update(version="3"),
    "the version is a truth": lambda header, arrays: header.update(version=True),
    "the content is a list": lambda header, arrays: header.update(content=[1]),
    "tensors are a list": lambda header, arrays: header.update(tensors=[1]),
    "more entries than told": lambda header, arrays: arrays.update(more=np.ones(2)),
    "fewer entries than told": lambda header, arrays: arrays.pop("float64"),
    "another order": swap,
    "another shape": told("float64", shape=[6, 4, 5]),
    "fewer entries": told("float64", shape=[2, 6, 5]),
    "far more entries": told("float64", shape=[4, 6, 5_000_000_000]),
    "a negative shape": told("float64", shape=[-4, -6, 5]),
    "a shape of text": told("float64", shape="465"),
    "a shape of fractions": told("float64", shape=[4.0, 6, 5]),
    "an overflowing shape": told("empty", shape=[0, 10**30]),
    "no layout": told("float64", layout=[]),
    "a layout twice": told("float64", layout=[0, 1, 1]),
    "another dtype": told("float64", dtype="int64"),
    "an unknown dtype": told("float64", dtype="load"),
    "half the dtype": told("float64", dtype="float32"),
    "no digest": told("float64", sha256=""),
    "other numbers": lambda header, arrays: arrays.update(float64=arrays["float64"] + 1),
    "other bytes": lambda header, arrays: arrays.update(float64=arrays["float64"].astype(">f8")),
    "the same bytes as integers": lambda header, arrays: arrays.update(float64=arrays["float64"].view(np.int64)),
    "integers": lambda header, arrays: arrays.update(float64=arrays["float64"].astype(np.int64)),
    "by columns": lambda header, arrays: arrays.update(float64=np.asfortranarray(arrays["float64"])),
    "an object": lambda header, arrays: arrays.update(scalar=np.array(2.0, dtype=object)),
}


@pytest.mark.parametrize("name", LIES)
def test_headers_and_entries_that_do_not_belong_together(name, saved, tmp_path):
    path = forged(saved, tmp_path / "x", LIES[name], digests=False)
    with pytest.raises(ArchiveError, match=r"holds no kept test, is damaged or too large"):
        read(path)


def test_sizes_are_compared_before_the_first_tensor_is_asked_for(saved, tmp_path):
    for shape in ([4, 6, 6], [4, 6, 5_000_000_000]):
        path = forged(saved, tmp_path / "x", told("float64", shape=shape), digests=False)
        with pytest.raises(ArchiveError, match="larger than its entry"), reading(path, KIND):
            pass


def test_entries_that_go_on_behind_their_data(saved, tmp_path):
    header, arrays = unpacked(saved)
    entries = {name: npy(array) for name, array in arrays.items()}
    read(packed(tmp_path / "x", header, entries))
    with pytest.raises(ArchiveError, match="of another size than its shape says"):
        read(packed(tmp_path / "x", header, {**entries, "float64": entries["float64"] + b"more"}))


def test_a_forgery_that_changes_nothing_is_read(saved, tmp_path):
    """So what the forgeries above are refused for is what they changed."""
    _, found = read(forged(saved, tmp_path / "x", lambda header, arrays: None))
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors().items())
    forged(saved, tmp_path / "y", lambda header, arrays: arrays.update(float64=arrays["float64"] + 1))
    assert torch.equal(read(tmp_path / "y")[1]["float64"], tensors()["float64"] + 1)


@pytest.mark.parametrize("text", [b"{}", b"[]", b"7", b"{", b"\xff", b'{"kind": NaN}', b"[" * 100_000, b""])
def test_headers_that_are_no_table(text, tmp_path):
    with pytest.raises(ArchiveError, match="damaged or too large"):
        read(packed(tmp_path / "x", text, {}))


def test_words_for_numbers_that_are_finite_are_refused(tmp_path):
    for word, good in (("inf", True), ("1.5", False), ("x", False), (None, False)):
        header = {"kind": "test", "version": 3, "tensors": {}, "content": {"a": {"not finite": word}}}
        path = packed(tmp_path / "x", header, {})
        if good:
            assert read(path)[0] == {"a": math.inf}
        else:
            with pytest.raises(ArchiveError, match="damaged"):
                read(path)


def test_a_header_of_other_than_bytes(tmp_path):
    text = json.dumps({"kind": "test", "version": 3, "tensors": {}, "content": {}}).encode()
    for dtype, good in ((np.uint8, True), (np.int8, False), (np.bool_, False)):
        with zipfile.ZipFile(tmp_path / "x", "w") as file:
            file.comment = b"0" * container.SEAL
            file.writestr(zipfile.ZipInfo("jumpstart.npy"), npy(np.frombuffer(text, dtype=dtype)))
        sealed(tmp_path / "x")
        if good:
            assert read(tmp_path / "x") == ({}, {})
        else:
            with pytest.raises(ArchiveError, match="the header is no text"):
                read(tmp_path / "x")


def header_of(shape, dtype="float64"):
    spec = {"dtype": dtype, "shape": shape, "layout": list(range(len(shape))), "sha256": ""}
    return {"kind": "test", "version": 3, "tensors": {"a": spec}, "content": {}}


def claim(shape, descr="<f8"):
    """The head of a .npy file of this shape."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": descr, "fortran_order": False, "shape": shape})
    return head.getvalue()


def overlapping(path):
    """Two hundred entries in the table that are one and the same in the file."""
    count, content = 200, npy(np.zeros(100_000))
    header = header_of([100_000])
    header["tensors"] = {f"a{i}": header["tensors"]["a"] for i in range(count)}
    with zipfile.ZipFile(path, "w") as file:
        file.comment = b"0" * container.SEAL
        text = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
        file.writestr(zipfile.ZipInfo("jumpstart.npy"), npy(text))
        file.writestr(zipfile.ZipInfo("a0.npy"), content)
        first = file.filelist[1]
        for i in range(1, count):
            other = zipfile.ZipInfo(f"a{i}.npy")
            for name in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(other, name, getattr(first, name))
            file.filelist.append(other)
    return sealed(path)


def boundless(path):
    """Sizes in the zip's table that the file does not have."""
    packed(path, header_of([10_000_000]), {"a": claim((10_000_000,)) + bytes(80)})
    content, size = bytearray(path.read_bytes()), (80_000_000 + 128).to_bytes(4, "little")
    at = content.rindex(b"PK\x01\x02")  # the last entry of the table
    content[at + 20 : at + 28] = size + size
    path.write_bytes(content)
    return sealed(path)


BOMBS = {
    "compressed": lambda path: packed(
        path, header_of([10_000_000]), {"a": claim((10_000_000,)) + bytes(80_000_000)}, zipfile.ZIP_DEFLATED
    ),
    "a long shape": lambda path: packed(path, header_of([10_000_000]), {"a": claim((10_000_000,)) + bytes(80)}),
    "a long shape in the entry alone": lambda path: packed(
        path, header_of([10]), {"a": claim((10_000_000,)) + bytes(80)}
    ),
    "long in the zip's table": boundless,
    "one entry many times": overlapping,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_go_off(name, tmp_path):
    path = BOMBS[name](tmp_path / "x")
    size = path.stat().st_size
    tracemalloc.start()  # torch's own memory is not traced: what is asked of it is counted
    asked, real = [], torch.empty

    def empty(shape, **options):
        asked.append(math.prod(shape) if isinstance(shape, tuple) else shape)
        return real(shape, **options)

    try:
        torch.empty = empty
        with pytest.raises(ArchiveError, match="damaged or too large"):
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        torch.empty = real
        tracemalloc.stop()
    assert peak < 2_000_000 + 2 * size
    assert sum(asked) * 8 < 2_000_000


def test_the_count_of_what_is_asked_for_sees_a_tensor(tmp_path, monkeypatch):
    """The test above can fail: a file that is what it says asks for its size."""
    path, asked, real = write(tmp_path / "a", KIND, {}, {"a": randn(0, 300, 1000)}), [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda shape, **options: asked.append(shape) or real(shape, **options))
    read(path)
    assert (300, 1000) in asked


def test_the_memory_that_reading_takes_is_about_the_file(tmp_path):
    path = write(tmp_path / "a", KIND, {}, {"a": randn(0, 1000, 1000).T})
    tracemalloc.start()
    try:
        read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * container.CHUNK  # besides the tensor itself, which torch holds


class Malice:
    """Unpickling this creates a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("name", ["jumpstart", "float64", "extra"])
def test_pickles_are_never_executed(name, saved, tmp_path):
    mark, path = tmp_path / "executed", tmp_path / "bad"
    malice = npy(np.array([Malice(mark)], dtype=object), allow_pickle=True)
    if name == "jumpstart":
        with zipfile.ZipFile(path, "w") as file:
            file.comment = b"0" * container.SEAL
            file.writestr(zipfile.ZipInfo("jumpstart.npy"), malice)
        sealed(path)
    else:
        header, arrays = unpacked(saved)
        packed(path, header, {**{key: npy(value) for key, value in arrays.items()}, name: malice})
    with zipfile.ZipFile(path) as file:
        assert b"executed" in file.read(f"{name}.npy")  # the pickle is in there
    with pytest.raises(ArchiveError, match="damaged"):
        read(path)
    assert not mark.exists()
    with np.load(path, allow_pickle=True) as careless:
        careless[name].tolist()[0].close()
    assert mark.exists()  # it would have been, otherwise
