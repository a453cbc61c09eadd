"""The one door: what comes of damaged, hostile and huge files, and that no other file is read."""

import io
import json
import os
import resource
import struct
import zipfile
from contextlib import closing

import h5py
import numpy as np
import pytest

from pipelines.data import doors, memory
from pipelines.data.arrays import map_npy, open_npz
from pipelines.data.doors import read_json, reading
from pipelines.data.hdf5 import HEAP, open_hdf5
from pipelines.errors import SkipRNNError

REMEDY = "mend it"


def refused(what, *words):
    """Call ``what``, which must refuse with all of the words in one line."""
    with pytest.raises(SkipRNNError) as caught:
        what()
    said = str(caught.value)
    assert "\n" not in said
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    "error", [KeyError("a"), RuntimeError("b\nc"), RecursionError(), UnicodeError(), OSError(5, "io")]
)
def test_whatever_goes_wrong_is_one_message_with_the_remedy(error):
    def fail():
        with reading("file", "HDF5", REMEDY):
            raise error

    refused(fail, "cannot read file: truncated, damaged or not HDF5", REMEDY)


def test_want_of_memory_is_called_by_its_name():
    def fail():
        with reading("file", "HDF5", REMEDY):
            raise MemoryError

    refused(fail, "not enough memory to read file")


def test_pipes_devices_and_folders_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(lambda: read_json(tmp_path / "pipe", dict, REMEDY), "a pipe or a device", REMEDY)
    refused(lambda: open_hdf5("/dev/zero", REMEDY), "a pipe or a device")
    refused(lambda: open_npz(tmp_path, REMEDY), "a folder")
    refused(lambda: map_npy(tmp_path / "none", REMEDY), "No such file")
    refused(lambda: doors.check_file(tmp_path / ("n" * 300), REMEDY), "too long")


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "\ud800"])
def test_json_that_holds_no_object(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(lambda: read_json(path, dict, REMEDY), "a.json", REMEDY)


def test_a_text_is_not_read_beyond_its_limit(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": "b" * 1000}))
    refused(lambda: read_json(path, dict, REMEDY, limit=100), "more than the 100 bytes")


def test_lines_have_an_end(monkeypatch):
    monkeypatch.setattr(doors, "LINE", 10)
    assert list(doors.lines_of(io.StringIO("1\n22\n"), "text")) == ["1\n", "22\n"]
    refused(lambda: list(doors.lines_of(io.StringIO("1\n" + 11 * "2"), "text")), "text, line 2: longer than 10")


@pytest.fixture
def hdf5(tmp_path):
    """Make an HDF5 file with ``fill(file)``, and open it."""
    opened = []

    def make(fill):
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            fill(file)
        opened.append(open_hdf5(path, REMEDY))
        return opened[-1]

    yield make
    for file in opened:
        file.close()


def test_arrays_groups_and_attributes(hdf5):
    def fill(file):
        file["a/b"] = np.arange(6).reshape(3, 2)
        file["words"] = ["é", "b"]
        file.attrs.update({"text": "t", "number": np.float32(0.5), "list": [1, 2], "none": h5py.Empty("f")})

    file = hdf5(fill)
    assert file.names() == ["a/b", "words"]
    assert file.array("a/b", slice(1, 2)).tolist() == [[2, 3]]
    assert file.array("words").tolist() == ["é", "b"]
    assert file.attributes() == {"text": "t", "number": 0.5}
    assert "a/b" in file
    assert "a/c" not in file
    assert "b/c" not in file
    refused(lambda: file.array("a/c"), "has no a/c", REMEDY)
    refused(lambda: file.array("a"), "a is a group")


def test_other_files_are_not_read(hdf5, tmp_path):
    """Links, external storage and virtual datasets lead to another file, or to one that is none of HDF5's."""
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.full(4, 7.0)
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource(secret, "x", (4,))

    def fill(file):
        file["external"] = h5py.ExternalLink(str(secret), "x")
        file["group"] = h5py.ExternalLink(str(secret), "/")
        file["soft"] = h5py.SoftLink("/external")
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("raw", (4,), "f8", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])

    file = hdf5(fill)
    assert file.names() == ["raw", "virtual"]
    for name in ("external", "group/x", "soft"):
        assert name.split("/")[0] in file
        refused(lambda name=name: file.array(name), "is a link to another place")
    for name in ("virtual", "raw"):
        refused(lambda name=name: file.array(name), "stand in other files")


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        (lambda file: file.create_dataset("x", (2**40, 2), "f4", chunks=(1024, 2)), "claims 8.8 TB"),
        (lambda file: file.create_dataset("x", data=h5py.Empty("f4")), "x holds nothing"),
        (lambda file: file.create_dataset("x", data=np.zeros(2, "f4,i4")), "neither numbers nor texts"),
        (lambda file: file.create_dataset("x", (2,), h5py.ref_dtype), "neither numbers nor texts"),
        (lambda file: file.create_dataset("x", data=[b"\xff\xfe"], dtype=h5py.string_dtype()), "not HDF5"),
    ],
)
def test_arrays_that_cannot_be(hdf5, fill, words):
    file = hdf5(fill)
    refused(lambda: file.array("x"), words)


def test_texts_that_the_library_would_read_for_ever(tmp_path, monkeypatch):
    path, damaged = tmp_path / "texts.h5", tmp_path / "damaged.h5"
    with h5py.File(path, "w") as file:
        file.attrs["cell"] = "lstm"
        file["names"] = ["a", "bc" * 50, "é"]
        file["numbers"] = np.frombuffer(HEAP * 9, np.uint8)  # no heap, only its signature
    with closing(open_hdf5(path, REMEDY)) as opened:
        assert opened.attributes() == {"cell": "lstm"}
        assert opened.array("names").tolist() == ["a", "bc" * 50, "é"]
    content = path.read_bytes()
    start = content.index(HEAP)
    size = int.from_bytes(content[start + 8 : start + 16], "little")
    damaged.write_bytes(content[: start + 16] + bytes(size - 16) + content[start + size :])
    refused(lambda: open_hdf5(damaged, REMEDY), "texts at byte", "overwritten", REMEDY)
    for length in (2**64 - 16, 2**64 - 64, 2**63, size):  # of the first text: the library would stay there, or go back
        wrong = content[: start + 24] + struct.pack("<Q", length) + content[start + 32 :]
        damaged.write_bytes(wrong)
        refused(lambda: open_hdf5(damaged, REMEDY), "texts at byte", "overwritten", REMEDY)
    monkeypatch.setattr("pipelines.data.hdf5.LARGE", 0)  # as in files in which arrays are passed over
    refused(lambda: open_hdf5(damaged, REMEDY), "texts at byte", "overwritten", REMEDY)
    open_hdf5(path, REMEDY).close()


def test_numbers_that_look_like_texts_cost_no_time(tmp_path, monkeypatch):
    unit = struct.pack("<HHIQ", 1, 1, 0, 16) + HEAP + struct.pack("<Q", 2**18 + 16)  # leads through many
    path = tmp_path / "numbers.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.frombuffer(unit * 20_000, np.uint8)
        file.create_dataset("y", data=np.frombuffer(unit * 9, np.uint8), chunks=(24,))
    monkeypatch.setattr("pipelines.data.hdf5.TEXTS", 70_000)
    with closing(open_hdf5(path, REMEDY)) as opened:  # as many places as there are units, and not their square
        assert opened.names() == ["x", "y"]
    monkeypatch.setattr("pipelines.data.hdf5.TEXTS", 10_000)
    refused(lambda: open_hdf5(path, REMEDY), "more than 10,000 texts")
    monkeypatch.setattr("pipelines.data.hdf5.LARGE", 0)  # of large files arrays are left out
    monkeypatch.setattr("pipelines.data.hdf5.TEXTS", 0)
    open_hdf5(path, REMEDY).close()


def test_texts_do_not_have_the_lengths_that_a_file_claims(tmp_path):
    path = tmp_path / "texts.h5"
    with h5py.File(path, "w") as file:
        file["names"] = ["ab"] * 9
        at = file["names"].id.get_offset()
        file.attrs["cell"] = "lstm"
    content = bytearray(path.read_bytes())
    assert content[at : at + 4] == (2).to_bytes(4, "little")
    content[at : at + 4] = (3 * 2**30).to_bytes(4, "little")
    path.write_bytes(content)
    before = resource.getrlimit(resource.RLIMIT_AS)
    with closing(open_hdf5(path, REMEDY)) as opened:
        started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        refused(lambda: opened.array("names"), str(path), REMEDY)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - started < 2**20  # KiB
        assert opened.attributes() == {"cell": "lstm"}
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_memory_is_asked_before_it_is_taken(hdf5, monkeypatch):
    file = hdf5(lambda file: file.create_dataset("x", data=np.ones((1000, 10), np.float32)))
    monkeypatch.setattr(memory, "available", lambda: 4_000)
    assert file.array("x", slice(3, 4)).shape == (1, 10)
    refused(lambda: file.array("x"), "takes 40 KB of memory, and 4 KB are free")


def npy(shape, data=b"", order="False", dtype="'<f4'"):
    """A .npy file of any header."""
    header = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


HEADERS = [
    npy("(2, 2)", bytes(8)),  # half of it
    npy("(2**40,)"),
    npy("(1099511627776, 7)"),
    npy("(-1,)"),
    npy("(2,)", bytes(16), dtype="'O'"),
    npy("(2,)", bytes(16), dtype="'<f4"),
    npy("(2, (3,", bytes(16)),
    b"\x93NUMPY\x09\x00",
    b"text",
    b"",
]


@pytest.mark.parametrize("data", HEADERS, ids=range(len(HEADERS)))
def test_headers_of_numpy(tmp_path, data):
    (tmp_path / "a.npy").write_bytes(data)
    refused(lambda: map_npy(tmp_path / "a.npy", REMEDY), "a.npy", REMEDY)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", data)
    with closing(open_npz(tmp_path / "a.npz", REMEDY)) as arrays:
        refused(lambda: arrays.array("x"), "a.npz", REMEDY)


def test_a_deflate_bomb_is_not_inflated(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy("(1048576,)", bytes(2**22)))
    with closing(open_npz(tmp_path / "a.npz", REMEDY)) as arrays:
        assert arrays.array("x").sum() == 0
        monkeypatch.setattr(doors, "LARGE", 2**21)
        refused(lambda: arrays.array("x"), "claims 4.19 MB", "stored")


def test_limits_of_control_groups_count(tmp_path, monkeypatch):
    for folder, limit in ((tmp_path, "max"), (tmp_path / "job", "1000000")):
        folder.mkdir(exist_ok=True)
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text("900000")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 300000\n")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_groups", lambda controller: [] if controller else [tmp_path / "job", tmp_path])
    assert memory.available() == 400_000
