"""What a data file was converted from, stored in its attributes, so that it is converted again only if that changed."""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.data.doors import check_file, file_digest, parse_json, reading
from pipelines.data.schema import read_attributes
from pipelines.errors import SkipRNNError
from pipelines.sources.own.forms import files_of
from pipelines.sources.own.raw import REMEDY, How


@dataclass(frozen=True)
class Fingerprint:
    """A source and how it is converted."""

    source_digest: str  # SHA-256 of the files that are read: their names and what they hold
    source_place: str  # SHA-256 of where they lie, seen from the data file
    source_options: str  # JSON: how they are converted


def fingerprint(sources: Sequence[Path], out: Path, how: How, options: dict[str, Any]) -> Fingerprint:
    """The fingerprint of a source that is converted to ``out``; its files are read whole for it.

    Raises:
        SkipRNNError: the source, or a file that it names, cannot be read.
    """
    digest, root = hashlib.sha256(), sources[0] if sources[0].is_dir() else sources[0].parent
    for path in files_of(sources, how):
        check_file(path, REMEDY)
        with reading(path, "a readable file", REMEDY):
            name = path.relative_to(root) if path.is_relative_to(root) else path
            digest.update(f"{name}\0{file_digest(path)}\n".encode("utf-8", "surrogateescape"))
    place = "\0".join(_seen_from(out, path) for path in sources).encode("utf-8", "surrogateescape")
    return Fingerprint(
        digest.hexdigest(), hashlib.sha256(place).hexdigest(), json.dumps({**vars(how), **options}, sort_keys=True)
    )


def _seen_from(out: Path, source: Path) -> str:
    try:
        return os.path.relpath(source.resolve(), out.resolve().parent)
    except ValueError:  # on another drive
        return str(source.resolve())


def how_of(options: dict[str, Any]) -> How:
    """How a source was read, by the stored options; what is outside of it is for the user alone to allow."""
    known: dict[str, Any] = {}
    for names, kind in ((("id_column", "time_column"), str), (("each_step", "header"), bool)):
        known |= {name: value for name in names if isinstance(value := options.get(name), kind)}
    columns = options.get("label_columns")
    return How(label_columns=tuple(map(str, columns)) if isinstance(columns, list) else (), **known)


def stored_fingerprint(path: Path) -> Fingerprint | None:
    """That of a data file; None where it has none."""
    try:
        attributes = read_attributes(path)
    except SkipRNNError:
        return None
    names = ("source_digest", "source_place", "source_options")
    found = [attributes.get(name) for name in names]
    if not all(isinstance(text, str) for text in found):
        return None
    with suppress(ValueError):
        parse_json(str(found[-1]), dict)
        return Fingerprint(*map(str, found))
    return None
