"""``train --config FILE.toml``: options from a file, which the command line and the environment come before."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from pipelines.data.fields import check_fields
from pipelines.errors import SkipRNNError
from pipelines.runs.config import NONE, TrainConfig, is_own_cell
from skiprnn_cli import options
from skiprnn_cli.groups import did_you_mean

FILE_BYTES = 2**20  # at most
REMEDY = "keys are those of a run's config.json, or what `skiprnn train` calls them"
AS_TRAIN_CALLS_THEM = {"hidden": "hidden_size", "layers": "num_layers"}
FIELDS = [field.name for field in fields(TrainConfig)]


def read_options(path: Path) -> dict[str, Any]:
    """The options in a TOML file, by the names of the fields of ``TrainConfig``.

    Raises:
        SkipRNNError: it cannot be read, has a key that is none of them, or a value of another type.
    """
    from pipelines.data.doors import read_text, reading

    text = read_text(path, "TOML", "name a TOML file with --config", limit=FILE_BYTES)
    with reading(path, "TOML", REMEDY):
        read = tomllib.loads(text)
    found: dict[str, Any] = {}
    for key, value in read.items():
        name = key.replace("-", "_")
        name = AS_TRAIN_CALLS_THEM.get(name, name)
        place = f"{path}, line {_line(text, key)}"
        if name not in FIELDS:
            raise SkipRNNError(
                f"{place}: no option {key!r}.{did_you_mean(name, FIELDS)} {REMEDY[0].upper()}{REMEDY[1:]}"
            )
        if name in found:
            raise SkipRNNError(f"{place}: {key!r} is {name}, which stands there already; drop one of them")
        try:
            check_fields(TrainConfig, {name: None if value == NONE else value})
        except ValueError as error:
            raise SkipRNNError(f"{place}: {str(error).replace(name, key, 1)}") from error
        if name == "cell" and is_own_cell(value):
            raise SkipRNNError(
                f"{place}: code of your own is run only where the command line names it; drop the line, and pass "
                f"--cell {value}"
            )
        found[name] = value
    return found


def _line(text: str, key: str) -> int:
    """Where a key or a table first stands."""
    there = re.compile(rf"""\s*(\[+\s*)?["']?{re.escape(key)}["']?\s*[]=.]""")
    return next((number for number, line in enumerate(text.splitlines(), start=1) if there.match(line)), 1)


def _take(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    if path is not None:
        repeated = {option.name for option in context.command.params if getattr(option, "multiple", False)}
        context.default_map = {
            name: [part for part in value.split(",") if part] if name in repeated else value
            for name, value in read_options(path).items()
        }
    return path


config_option = click.option(
    "--config",
    type=options.PATH,
    is_eager=True,  # before the options that it gives values to
    callback=_take,
    help="Options from a TOML file, by their names here or in a run's config.json, such as lr = 1e-3; those on the "
    "command line or in the environment come before.",
)
