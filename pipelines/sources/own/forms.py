"""The forms in which a user's own sequences may lie in files, and what is said of others."""

import os
from collections.abc import Sequence
from pathlib import Path

from pipelines.data.doors import check_file
from pipelines.errors import SkipRNNError
from pipelines.sources.own import folder, table, ts
from pipelines.sources.own.arrays import read_arrays
from pipelines.sources.own.raw import REMEDY, How, Raw

ACCEPTED = (
    f"an .npz or .h5 file with x and y, a folder of CSV files with {folder.TABLE}, one CSV or Parquet table with --id, "
    "or .ts files"
)
ARRAYS = (".npz", ".h5", ".hdf5")
TABLES = (".csv", ".tsv", ".txt", *table.PARQUET)
HDF5 = b"\x89HDF\r\n\x1a\n"  # how such a file begins
SUFFIXES = (*ARRAYS, *TABLES, ts.SUFFIX, ".npy")  # of single files that are somebody's sequences


def read(sources: Sequence[Path], how: How) -> Raw:
    """A user's sequences.

    Args:
        sources: one file or folder, or NAME_TRAIN.ts and NAME_TEST.ts.
        how: how to read them.

    Raises:
        SkipRNNError: they are none of ACCEPTED, damaged, or contradict themselves.
    """
    kind = _kind(sources, how)
    if kind == "folder":
        return folder.read_folder(sources[0], how)
    if kind == "table":
        return table.read_table(sources[0], how)
    return ts.read_ts(ts.files_of(sources)) if kind == "ts" else read_arrays(sources[0], how)


def files_of(sources: Sequence[Path], how: How) -> list[Path]:
    """The files that ``read`` reads."""
    kind = _kind(sources, how)
    if kind == "folder":
        return folder.files_of(sources[0], how)
    return ts.files_of(sources) if kind == "ts" else list(sources)


def _kind(sources: Sequence[Path], how: How) -> str:
    """Which form a source has; what does not go with that is refused."""
    kind, source = _form(sources), sources[0]
    if kind != "table" and (how.id_column or how.time_column):
        raise SkipRNNError(f"{source} is no CSV or Parquet table, so it has no --id and no --time; drop them")
    if kind in ("arrays", "ts") and how.label_columns:
        raise SkipRNNError(f"{source} is no folder of CSV files, so it has no --label-column; its labels are y")
    if kind == "folder" and how.each_step is not None and how.each_step != bool(how.label_columns):
        raise SkipRNNError(
            "labels of steps are columns of the CSV files, which --label-column names, and those of sequences stand in "
            f"{folder.TABLE}"
        )
    return kind


def _form(sources: Sequence[Path]) -> str:
    source = sources[0]
    for path in sources:
        if not os.path.exists(path):
            raise SkipRNNError(f"no {path}; name {ACCEPTED}")
    if len(sources) > 1:
        return "ts"
    if source.is_dir():
        has_table = os.path.lexists(source / folder.TABLE)
        return "ts" if not has_table and ts.among(source) else "folder"
    suffix = source.suffix.lower()
    if suffix == ts.SUFFIX:
        return "ts"
    if suffix in TABLES:
        return "table"
    if suffix == ".npy":
        raise SkipRNNError(
            f"{source} holds one array, and labels are needed too: pass an .npz with x and y: "
            "np.savez('data.npz', x=x, y=y)"
        )
    if suffix not in ARRAYS:
        check_file(source, REMEDY)
        with source.open("rb") as file:
            if file.read(len(HDF5)) != HDF5:
                raise SkipRNNError(f"{source} is none of what is read; it takes {ACCEPTED}")
    return "arrays"
