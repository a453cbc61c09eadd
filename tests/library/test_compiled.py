"""The compiled extension as Python finds it."""

import ctypes

import pytest
import torch

from skiprnn import compiled
from tests.problems import needs_compiled


def test_structures_are_read_from_their_definitions():
    kind = compiled._structure("Sums { const float *w_x, *w_h; int64_t n; float b, c; const Layer *layer; }")
    pointer = ctypes.c_void_p
    assert kind._fields_ == [
        ("w_x", pointer), ("w_h", pointer), ("n", ctypes.c_int64), ("b", ctypes.c_float), ("c", ctypes.c_float),
        ("layer", pointer),
    ]  # fmt: skip
    assert [getattr(kind, name).offset for name, _ in kind._fields_] == [0, 8, 16, 24, 28, 32]
    with pytest.raises(AttributeError, match="w_y"):
        kind().w_y = 3
    with pytest.raises(AttributeError, match="w_y"):
        kind(w_y=3)


@needs_compiled
def test_all_structures_are_there():
    compiled.LIBRARY.skiprnn_size.restype = ctypes.c_int64
    assert list(compiled._STRUCTURES) == ["Layer", "Stack", "Problem", "Follower"]
    for number, kind in enumerate(compiled._STRUCTURES.values()):
        assert ctypes.sizeof(kind) == compiled.LIBRARY.skiprnn_size(ctypes.c_int64(number))


@needs_compiled
def test_a_library_of_another_source_is_not_used(monkeypatch, tmp_path):
    (tmp_path / "native.cpp").write_text("another")
    monkeypatch.setattr(compiled, "SOURCE", tmp_path / "native.cpp")
    with pytest.warns(UserWarning, match="is of another version; install skiprnn again"):
        assert compiled._load() == (None, {})
    with pytest.MonkeyPatch.context() as older:
        older.setattr(compiled.ctypes, "CDLL", lambda path: object())  # lacks all functions
        with pytest.warns(UserWarning, match="is of another version; install skiprnn again"):
            assert compiled._load() == (None, {})
    monkeypatch.setattr(compiled, "SOURCE", tmp_path / "missing.cpp")  # as where it was installed from a wheel
    assert compiled._load()[0] is not None


def test_a_library_that_cannot_be_loaded_is_named(monkeypatch, tmp_path):
    (tmp_path / "library.so").write_text("none")

    class Spec:
        origin = str(tmp_path / "library.so")

    monkeypatch.setattr(compiled, "find_spec", lambda name: Spec)
    with pytest.warns(UserWarning, match="cannot be loaded, torch runs in its place"):
        assert compiled._load() == (None, {})
    assert compiled.fits((torch.zeros(1, dtype=torch.float64),)) is not None


@needs_compiled
def test_instruction_sets_are_those_there_are(monkeypatch):
    with pytest.raises(ValueError, match="most must be one of avx512, avx2, any, got 'sse'"):
        compiled.instructions("sse")
    monkeypatch.setenv("SKIPRNN_INSTRUCTIONS", "AVX2")
    with pytest.warns(UserWarning, match="SKIPRNN_INSTRUCTIONS is AVX2, not avx512, avx2, any"):
        compiled._load()
