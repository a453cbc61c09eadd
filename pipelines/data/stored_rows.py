"""The features of a feature file while they stay there: mapped into memory where they lie in one piece, else read."""

import os
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from pipelines.data.doors import reading
from pipelines.data.hdf5 import Hdf5, open_hdf5
from pipelines.errors import SkipRNNError

REMEDY = "extract the features again"


class StoredRows:
    """Features that stay in their file, which each process opens for itself."""

    def __init__(self, path: Path, digest: str) -> None:
        self.path, self.digest = Path(path), digest
        self._opened: tuple[int, Tensor | h5py.Dataset] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __getitem__(self, rows: slice) -> Tensor:
        there = self._open()
        if isinstance(there, Tensor):
            return there[rows]
        with reading(self.path, "HDF5", REMEDY):
            return torch.from_numpy(there[rows])

    @property
    def mapped(self) -> Tensor | None:
        """All of them, mapped into memory; None where they lie in chunks."""
        there = self._open()
        return there if isinstance(there, Tensor) else None

    def _open(self) -> Tensor | h5py.Dataset:
        if self._opened is None or self._opened[0] != os.getpid():
            file = open_hdf5(self.path, REMEDY)
            if file.attributes().get("digest") != self.digest:
                raise SkipRNNError(f"{self.path} was made anew while it was in use; run the same command again")
            dataset = file.dataset("features")
            self._opened = os.getpid(), dataset if (mapped := _mapped(file, dataset)) is None else mapped
        return self._opened[1]


def _mapped(file: Hdf5, dataset: h5py.Dataset) -> Tensor | None:
    """The features, whose pages are read when they are used; None where they do not lie in one piece."""
    with reading(file.path, "HDF5", REMEDY), warnings.catch_warnings():
        offset = dataset.id.get_offset()
        if offset is None or offset % dataset.dtype.itemsize:
            return None
        values = np.memmap(file.path, dataset.dtype, "r", offset, dataset.shape)  # "c" would count as memory taken
        file.close()
        warnings.simplefilter("ignore")  # that nobody may write to it
        return torch.from_numpy(values)
