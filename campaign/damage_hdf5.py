"""Ways to change what an HDF5 file holds."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np

from campaign.damage import damage_file


def damage_hdf5(path: Path, rng: Random) -> str:
    """Change what an HDF5 file holds, keeping it HDF5."""
    with h5py.File(path, "r+") as file:
        items: list[str] = []
        file.visit(items.append)
        datasets = [name for name in items if isinstance(file[name], h5py.Dataset)]
        described = [name for name in ["/", *items] if file[name].attrs]
        name = rng.choice(datasets)
        if described and rng.random() < 0.35:
            return _damage_attribute(file[rng.choice(described)], rng)
        if rng.random() < 0.2:
            return _relink(file, rng.choice(items), rng)
        return _replace(file, name, rng)


def _damage_attribute(item: Any, rng: Random) -> str:
    key = rng.choice(list(item.attrs))
    value = rng.choice([
        -1, 0, 2**62, 0.5, float("nan"), "", "x", "\u00e9", b"\xff\xfe", np.bytes_(b"\xff\xfe"), np.zeros(3),
        np.zeros((0,)), h5py.Empty("f4"), h5py.Empty("S1"), ["a", "b"], True, "[" * 5_000, "x" * 60_000,
        np.array([b"\xff", b"a"]), 1j, "[NaN, 1]", "{}", '"ab"',
    ])  # fmt: skip
    del item.attrs[key]
    if rng.random() < 0.15:
        return f"attribute {key} taken out"
    item.attrs[key] = value
    return f"attribute {key} = {value!r:.40}"


def _relink(file: h5py.File, name: str, rng: Random) -> str:
    match rng.randrange(7):
        case 0:
            file.move(name, f"{name}-")
            return f"{name} renamed"
        case 1:
            file.id.links.move(name.encode(), file.id, name.encode() + b"\xff\xfe")
            return f"{name} renamed to what is not UTF-8"
        case 2:
            del file[name]
            return f"{name} taken out"
        case 3:
            target = rng.choice(["/nowhere", f"/{name}", "/"])
            del file[name]
            file[name] = h5py.SoftLink(target)
            return f"{name} a soft link to {target}"
        case 4:
            del file[name]
            file[name] = h5py.ExternalLink(rng.choice(["nowhere.h5", "/dev/zero", "."]), name)
            return f"{name} an external link to nowhere"
        case 5:
            is_group = isinstance(file[name], h5py.Group)
            del file[name]
            if is_group:
                file[name] = np.zeros(3)
            else:
                file.create_group(name)
            return f"{name} a group instead of a dataset, or the other way round"
        case _:
            file.create_group("surplus")["x"] = np.zeros((2, 3, 2), np.float32)
            return "a group added"


def _replace(file: h5py.File, name: str, rng: Random) -> str:
    old = file[name]
    value = old[()]
    numbers = value.dtype.kind in "fiu"
    shape = value.shape

    def put(how: str, data: Any = None, **options: Any) -> str:
        if isinstance(data, np.ndarray) and data.dtype.kind == "O":
            options.setdefault("dtype", old.dtype)
        del file[name]
        file.create_dataset(name, data=data, **options)
        return f"{name} {how}"

    def virtual() -> str:
        layout = h5py.VirtualLayout(shape, old.dtype)
        layout[...] = h5py.VirtualSource("nowhere.h5", "x", shape)
        del file[name]
        file.create_virtual_dataset(name, layout)
        return f"{name} a virtual dataset of nowhere"

    options: list[Callable[[], str]] = [
        lambda: put("a null dataspace", h5py.Empty("f4")),
        lambda: put("a scalar", np.float32(1)),
        lambda: put("a text", "text"),
        lambda: put("bytes that are not UTF-8", np.array([b"\xff\xfe"] * max(len(value), 1), dtype="S2")),
        lambda: put("strings that are not UTF-8", [b"\xff\xfe"] * max(len(value), 1), dtype=h5py.string_dtype()),
        lambda: put("of no rows", value[:0]),
        lambda: put("one row less", value[:-1]),
        lambda: put("one row more", np.concatenate([value, value[:1]])),
        lambda: put("of one more dimension", value[None]),
        lambda: put("flat", value.reshape(-1)),
        lambda: put("transposed", value.T),
        lambda: put("compound", np.zeros(len(value), dtype=[("a", "f4"), ("b", "i8")])),
        lambda: put("of references", np.full(len(value), file.ref, dtype=object), dtype=h5py.ref_dtype),
        lambda: put("of ragged rows", shape=(len(value),), dtype=h5py.vlen_dtype(np.float32)),
        lambda: put("an enumeration", np.zeros(shape, np.int8), dtype=h5py.enum_dtype({"a": 0, "b": 1}, "i1")),
        virtual,
        lambda: put("unwritten", shape=shape, dtype=old.dtype, chunks=True if shape else None),
        lambda: put("deflated", value, compression="gzip") if numbers and value.size else put("gone", np.zeros(0)),
    ]
    if numbers and value.size:
        kinds = ("f8", "f2", "i1", "u8", "i4", "c8", "?", ">f4", ">i8")
        extremes: list[float] = [-1, 0, 127] if value.dtype.itemsize == 1 else [-1, 0, 127, 2**31 - 1]
        if value.dtype.kind == "f":
            extremes += [float("nan"), float("inf"), 6e4]
        if value.dtype.kind == "i" and value.dtype.itemsize == 8:
            extremes += [2**62, -(2**62)]

        def poke() -> str:
            row, number = rng.randrange(value.size), rng.choice(extremes)
            changed = value.copy()
            changed.reshape(-1)[row] = np.array(number).astype(value.dtype)
            old[...] = changed
            return f"{name} has {number} at {row}"

        options += [lambda: put("of another type", value.astype(rng.choice(kinds)))] + [poke] * 8
    return rng.choice(options)()


def damage_array_file(path: Path, rng: Random) -> str:
    """Damage an HDF5 file, inside or in its bytes."""
    if rng.random() < 0.5:
        return damage_file(path, rng)
    return f"{path.name}: {damage_hdf5(path, rng)}"
