"""Ways to damage files: their bytes, the words of texts, and the insides of JSON and NPY."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

DEEP = "@deep@"
HUGE = "@huge@"
STRANGE: list[Any] = [
    None, True, False, -1, 0, 1, 3, 0.5, 10**30, -(10**30), 2**31, 2**63, 1e308, float("nan"),
    float("inf"), "", "1", "x" * 100_000, "\ud800", "\0", "../../etc/passwd", [], {}, [[], {}], [1, "a", None],
    {"a": {"b": 1}}, DEEP, HUGE,
]  # fmt: skip
TOKENS = [
    b"nan", b"inf", b"-inf", b"1e999", b"", b"abc", b"9" * 400, b"0x10", b"1_000", b"\xff\xfe", b"\0", b'"',
    b",,,,", b";", b"\t", b"\r", b"\n", b"\xef\xbb\xbf", "१२".encode(), b"-0", b"1e-400", b"None", b"'", b"\\", b"\x1a",
]  # fmt: skip


def damage_bytes(data: bytes, rng: Random) -> tuple[bytes, str]:
    """Flipped, overwritten, cut, inserted, doubled or zeroed bytes, half the time near an end, where headers are."""
    size = max(len(data), 1)
    at = rng.choice(
        [
            rng.randrange(size),
            rng.randrange(size),
            rng.randrange(min(size, 256)),
            size - 1 - rng.randrange(min(size, 256)),
        ]
    )
    span = rng.choice([1, 2, 4, 8, 64, 512, rng.randint(1, size)])
    noise = rng.randbytes(min(span, 4096))
    cut = data[at : at + span]
    match rng.randrange(9):
        case 0:
            flipped = bytes([data[at] ^ 1 << rng.randrange(8)]) if data else b""
            return data[:at] + flipped + data[at + 1 :], f"a bit flipped at {at}"
        case 1:
            return data[:at] + noise + data[at + len(noise) :], f"{len(noise)} bytes overwritten at {at}"
        case 2:
            return data[:at], f"cut at {at}"
        case 3:
            return data[:at] + noise + data[at:], f"{len(noise)} bytes inserted at {at}"
        case 4:
            return data[:at] + cut + data[at:], f"{len(cut)} bytes doubled at {at}"
        case 5:
            return data[:at] + bytes(len(cut)) + data[at + len(cut) :], f"{len(cut)} bytes zeroed at {at}"
        case 6:
            return data[:at] + b"\xff" * len(cut) + data[at + len(cut) :], f"{len(cut)} bytes all ones at {at}"
        case 7:
            return data[:at] + data[at + span :], f"{len(cut)} bytes taken out at {at}"
        case _:
            flips = bytearray(data)
            for _ in range(rng.randint(2, 30)):
                flips[rng.randrange(size)] ^= 1 << rng.randrange(8)
            return bytes(flips), "many bits flipped"


def damage_words(data: bytes, rng: Random) -> tuple[bytes, str]:
    """A line of a text taken out, doubled or put elsewhere, or a word replaced."""
    lines = data.split(b"\n")
    at = rng.choice([0, rng.randrange(len(lines)), rng.randrange(len(lines))])
    match rng.randrange(6):
        case 0:
            return b"\n".join(lines[:at] + lines[at + 1 :]), f"line {at} taken out"
        case 1:
            return b"\n".join(lines[:at] + [lines[at]] * 2 + lines[at + 1 :]), f"line {at} doubled"
        case 2:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
            return b"\n".join(lines), f"lines {at} and {other} exchanged"
        case _:
            separator = next((mark for mark in (b",", b" ") if mark in lines[at]), b"\t")
            words, token = lines[at].split(separator), rng.choice(TOKENS)
            words[rng.randrange(len(words))] = token
            lines[at] = separator.join(words)
            return b"\n".join(lines), f"{token[:10]!r} put into line {at}"


def damage_value(value: Any, rng: Random) -> tuple[Any, str]:
    """A JSON value with one part replaced, taken out or added."""
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        changed = value.copy()
        roll = rng.random()
        if roll < 0.2:
            del changed[key]
            return changed, f"{key} taken out"
        if roll < 0.3 and isinstance(changed, dict):
            changed[rng.choice([f"{key}_", "", "no such key"])] = changed.pop(key) if rng.random() < 0.5 else 1
            return changed, f"{key} renamed, or a key added"
        if roll < 0.45 and isinstance(changed[key], int | float) and not isinstance(changed[key], bool):
            changed[key] = changed[key] * 2 + 1
            return changed, f"{key} doubled, and one more"
        changed[key], how = damage_value(changed[key], rng)
        return changed, f"{key}: {how}"
    other = rng.choice(STRANGE)
    return other, f"{other!r:.40}"


def dumps(value: Any) -> bytes:
    """JSON, with what no dump makes: depth, and integers of many digits."""
    text = json.dumps(value).replace(f'"{DEEP}"', "[" * 5_000 + "]" * 5_000).replace(f'"{HUGE}"', "7" * 10_000)
    return text.encode()


def damage_json(data: bytes, rng: Random) -> tuple[bytes, str]:
    """A JSON text, or one of a JSON object a line, damaged by its values or its bytes."""
    if rng.random() < 0.3:
        return damage_bytes(data, rng)
    try:
        value, how = damage_value(json.loads(data), rng)
        return dumps(value), how
    except ValueError:
        lines = data.splitlines()
        if rng.random() < 0.2:
            return damage_words(data, rng)
        at = rng.randrange(len(lines))
        value, how = damage_value(json.loads(lines[at]), rng)
        lines[at] = dumps(value)
        return b"\n".join([*lines, b""]), f"line {at}: {how}"


def damage_npy(data: bytes, rng: Random) -> tuple[bytes, str]:
    """An NPY file with another header, or damaged bytes."""
    if rng.random() < 0.4:
        return damage_bytes(data, rng)
    length = struct.unpack("<H", data[8:10])[0]
    header, body = data[10 : 10 + length].decode(), data[10 + length :]
    shape = header[header.index("(") : header.index(")") + 1]
    kind = header.split("'descr': ")[1].split(", 'fortran")[0]
    other_shape = rng.choice(
        [
            "()",
            "(0,)",
            "(-1, 2)",
            "(3, 2)",
            "(2,)",
            "(1000000, 1000000, 2)",
            "(2**63,)",
            "(1,)*100",
            "'x'",
            f"({10**18}, 2)",
        ]
    )
    other_kind = rng.choice(
        [
            "'|O'",
            "'<f2'",
            "'>f4'",
            "'<c8'",
            "'<U3'",
            "'|V8'",
            "'<M8[s]'",
            "[('a', '<f4')]",
            "'<f16'",
            "'|S0'",
            "'<U999999999'",
            "7",
            "'|b1'",
            "'<i8'",
        ]
    )
    how, changed = rng.choice(
        [
            (f"shape {other_shape}", header.replace(shape, other_shape)),
            (f"dtype {other_kind}", header.replace(kind, other_kind)),
            ("order", header.replace("False", rng.choice(["True", "None", "[" * 500]))),
            ("no shape", header.replace("'shape'", "'shap'")),
            ("a header that is code", "__import__('os').system('touch hacked')"),
            ("a deep header", "(" * 5_000),
        ]
    )
    text = changed.rstrip().encode() + b"\n"
    version = rng.choice([b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x09\x00"])
    size = struct.pack("<H", len(text)) if version == b"\x01\x00" else struct.pack("<I", len(text))
    return data[:6] + version + size + text + body, f"{how}, version {version[0]}"


def damage_file(path: Path, rng: Random, damage: Callable[[bytes, Random], tuple[bytes, str]] = damage_bytes) -> str:
    """Damage a file's bytes; says how."""
    data, how = damage(path.read_bytes(), rng)
    path.write_bytes(data)
    return f"{path.name}: {how}"
