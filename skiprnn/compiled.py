"""The compiled extension, engines/native.cpp: its functions and structures.

It is built when the package is installed, if there is a C++ compiler; without it torch operations do its work. One that
cannot be loaded, or was built from another native.cpp than lies here, is named in a warning.
"""

import ctypes
import hashlib
import os
import re
import warnings
from importlib.util import find_spec
from itertools import count as count_up
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

UNITS = 16  # of a vector in native.cpp
INSTRUCTIONS = ("avx512", "avx2", "any")
SOURCE = Path(__file__).parent / "engines" / "native.cpp"
_KINDS = {"int64_t": ctypes.c_int64, "float": ctypes.c_float}


def _structure(described: str) -> type[ctypes.Structure]:
    """From its definition in C++: ``Layer { int64_t D; const float *w_x, *w_h; }``."""
    name, body = described.rstrip("}; ").split(" {")
    fields = []
    for declaration in filter(None, map(str.strip, body.split(";"))):
        kind, names = re.fullmatch(r"(?:const )?(\w+) (.*)", declaration).groups()  # type: ignore[union-attr]
        for field in names.split(","):
            pointer = "*" in field
            fields.append((field.strip(" *"), ctypes.c_void_p if pointer else _KINDS[kind]))
    return type(name, (ctypes.Structure,), {"__slots__": (), "_fields_": fields})  # and takes no other names


def _load() -> tuple[ctypes.CDLL | None, dict[str, type[ctypes.Structure]]]:
    spec = find_spec("skiprnn._native")
    if spec is None or spec.origin is None:
        return None, {}
    try:
        library = ctypes.CDLL(spec.origin)
        integer, pointer = ctypes.c_int64, ctypes.c_void_p
        library.skiprnn_source.restype = library.skiprnn_instructions.restype = ctypes.c_char_p
        library.skiprnn_instructions.argtypes = [ctypes.c_char_p]
        library.skiprnn_pairs.restype = integer
        library.skiprnn_sums.argtypes, library.skiprnn_sums.restype = [pointer], integer
        library.skiprnn_count.argtypes = [pointer, pointer, pointer, integer, pointer]
        library.skiprnn_follow.argtypes = [pointer, pointer, integer, integer]
        library.skiprnn_structure.argtypes, library.skiprnn_structure.restype = [integer], ctypes.c_char_p
        source = library.skiprnn_source().decode()
    except OSError as error:
        warnings.warn(f"skiprnn's compiled CPU path cannot be loaded, torch runs in its place: {error}", stacklevel=2)
        return None, {}
    except AttributeError:  # it lacks what it should have
        source = ""
    if not source or (SOURCE.exists() and digest(SOURCE) != source):
        warnings.warn("skiprnn's compiled CPU path is of another version; install skiprnn again", stacklevel=2)
        return None, {}
    most = os.environ.get("SKIPRNN_INSTRUCTIONS")
    if most and most not in INSTRUCTIONS:
        warnings.warn(f"SKIPRNN_INSTRUCTIONS is {most}, not {', '.join(INSTRUCTIONS)}: it is ignored", stacklevel=2)
    structures = [_structure(text.decode()) for text in takewhile(bool, map(library.skiprnn_structure, count_up()))]
    return library, {structure.__name__: structure for structure in structures}


def digest(source: Path) -> str:
    """What the library says of the source it was built from."""
    return hashlib.sha256(source.read_bytes()).hexdigest()[:16]


LIBRARY, _STRUCTURES = _load()


def instructions(most: str | None = None) -> str | None:
    """The instruction set that compiled code uses, ``"avx512"``, ``"avx2"`` or ``"any"``; None where it was not built.

    Args:
        most: from now on the best of them that the machine has, up to this one.

    Raises:
        ValueError: there is no such set.
    """
    if most not in (None, *INSTRUCTIONS):
        raise ValueError(f"most must be one of {', '.join(INSTRUCTIONS)}, got {most!r}")
    if LIBRARY is None:
        return None
    chosen: bytes = LIBRARY.skiprnn_instructions(most.encode() if most else None)
    return chosen.decode()


def multiplies_bfloat16() -> bool:
    """Whether compiled code has instructions for products of bfloat16; otherwise it rounds and multiplies float32."""
    return LIBRARY is not None and bool(LIBRARY.skiprnn_pairs())


def structure(name: str, *, count: int = 0, **values: Any) -> Any:
    """A structure of native.cpp, or an array of so many."""
    kind = _STRUCTURES[name]
    return (kind * count)() if count else kind(**values)


def point(structure: Any, **tensors: Tensor) -> Any:
    """Let pointers of a structure point to tensors, which must be kept."""
    for name, tensor in tensors.items():
        setattr(structure, name, tensor.data_ptr())
    return structure


def call(name: str, *arguments: Any) -> None:
    """Call a function of the library; structures and tensors are passed by reference, numbers as int64."""
    given = [
        ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor)
        else ctypes.c_int64(a) if isinstance(a, int)
        else ctypes.byref(a)
        for a in arguments
    ]  # fmt: skip
    getattr(LIBRARY, f"skiprnn_{name}")(*given)


def fits(tensors: tuple[Tensor, ...]) -> str | None:
    """Why compiled code cannot compute with tensors; None if it can."""
    if LIBRARY is None:
        return "it was not built"
    if not all(tensor.dtype is torch.float32 and tensor.is_cpu for tensor in tensors):
        return "it computes float32 tensors on the CPU"
    return None


def counts(p: Tensor, acc: Tensor) -> bool:
    """Whether ``count`` counts for these probabilities and sums."""
    fit = all(t.dtype is torch.float32 and t.is_cpu for t in (p, acc))
    return LIBRARY is not None and fit and p.dim() == 1 and p.shape == acc.shape


def count(p: Tensor, acc: Tensor, limit: Tensor | int) -> tuple[Tensor, Tensor]:
    """``gate.count`` in float32 on the CPU."""
    p, sums = p.contiguous(), acc.clone(memory_format=torch.contiguous_format)
    limits = (
        limit.contiguous() if isinstance(limit, Tensor) else torch.full(p.shape, limit, dtype=torch.int64, device="cpu")
    )
    steps = torch.empty_like(limits)
    LIBRARY.skiprnn_count(  # type: ignore[union-attr]
        p.data_ptr(), sums.data_ptr(), limits.data_ptr(), len(p), steps.data_ptr()
    )
    return steps, sums


def padded(size: int) -> int:
    """The next multiple of 16."""
    return -(-size // UNITS) * UNITS
