"""Cells by the names that runs have of them: the library's, and cells of one's own, which are code.

The name of one's own, ``package.module:Cell``, is imported where somebody asks for it, on the command line. That it
stands in a run's ``config.json`` imports nothing, since run directories come from others too.
"""

import importlib
import os
import sys
import traceback
from typing import Any

import torch

import pipelines
import skiprnn
from pipelines.errors import SkipRNNError
from pipelines.runs.config import TrainConfig
from skiprnn import SkipRNN
from skiprnn.cells import Cell, cell_named

_imported: dict[str, Cell] = {}  # in this process, by name
_OTHERS = ("<frozen ", *(path for module in (pipelines, skiprnn, torch, importlib) for path in module.__path__))
"""Where files begin that are not a user's."""


def cell_of(config: TrainConfig) -> Cell:
    """The cell of a configuration.

    Raises:
        SkipRNNError: it is one's own, and nobody asked for it.
    """
    cell = cell_named(config.cell, reset_after=config.reset_after) or _imported.get(config.cell)
    if cell is None:
        raise SkipRNNError(
            f"this needs the cell {config.cell}, code that is not imported because a file says so; if you trust it, "
            f"add --cell {config.cell}"
        )
    return cell


def import_cell(name: str) -> Cell:
    """Import a cell of one's own, for this process, and try it on a few numbers.

    Args:
        name: ``package.module:Cell``, a subclass of ``skiprnn.cells.Cell`` that takes no arguments, or an instance.
            The module is looked for where Python does, then in the working folder.

    Raises:
        SkipRNNError: it is not there, is no cell, or raises something.
    """
    if name not in _imported:
        cell = _found(name)
        try:
            _try(cell)
        except Exception as error:
            raise SkipRNNError(f"the cell {name} fails when it is tried: {_said(error)}; see docs/cells.md") from error
        _imported[name] = cell
    return _imported[name]


def _found(name: str) -> Cell:
    module_name, _, path = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # last, so that it hides nothing
    importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise SkipRNNError(
                f"cannot import the cell {name}: there is no module {error.name}; run this in the folder that holds "
                "it, install it, or name its folder in PYTHONPATH"
            ) from error
        raise SkipRNNError(f"cannot import the cell {name}: {_said(error)}; mend the module") from error
    where = getattr(found, "__file__", None) or "built in"
    for part in path.split("."):
        if not hasattr(found, part):
            raise SkipRNNError(f"cannot import the cell {name}: {module_name} ({where}) has no {path}")
        found = getattr(found, part)
    if isinstance(found, type) and issubclass(found, Cell):
        try:
            return found()
        except Exception as error:
            raise SkipRNNError(
                f"cannot make the cell {name}: {_said(error)}; name an instance, or a class that takes no arguments"
            ) from error
    if not isinstance(found, Cell):
        kind = f"the class {found.__name__}" if isinstance(found, type) else f"a {type(found).__name__}"
        raise SkipRNNError(f"{name} ({where}) is {kind}, not a skiprnn.cells.Cell; see docs/cells.md")
    return found


def _try(cell: Cell) -> None:
    """Run both passes of a small stack, some of whose samples are skipped; weights are as they come."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        with torch.device("meta"):  # as it is measured before memory is taken for it
            SkipRNN(cell, 2, 3, 2)
        for engine in ("reference", "events"):
            rnn = SkipRNN(cell, 2, 3, 2, update_bias=-1.0, engine=engine)
            output, state, _ = rnn(torch.randn(4, 2, 2))
            torch.stack([tensor.sum() for tensor in (output, *state)]).sum().backward()  # type: ignore[no-untyped-call]


def _said(error: BaseException) -> str:
    """An error that code of one's own raised: its kind, what it says, and the last of its lines."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    places = [place for place in traceback.extract_tb(error.__traceback__) if not place.filename.startswith(_OTHERS)]
    if isinstance(error, SyntaxError) or not places:  # which says where
        return said
    return f"{said} ({places[-1].filename}, line {places[-1].lineno})"
