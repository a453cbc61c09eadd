"""``skiprnn models``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from skiprnn_cli import options
from skiprnn_cli.groups import Group

if TYPE_CHECKING:
    from pipelines.runs.config import TrainConfig
    from pipelines.runs.named import ListedModel, ModelRecord

NEEDED = ("name", "metric", "used", "task", "size", "model")


@click.group(
    "models",
    cls=Group,
    invoke_without_command=True,
    epilog="""\b
Examples:
  skiprnn models
  skiprnn predict adding-lstm recording.csv
  skiprnn models fetch imdb-lstm --from imdb-lstm.zip""",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a model, one a line.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List trained models that are ready: those that came with skiprnn, and those that were fetched.

    A model's name is taken for a run by predict, evaluate, plot-usage and export, which write into the current folder
    then, and in Python: skiprnn.load("adding-lstm"). Metric and used samples are those of the test split. Fetched
    models lie in ~/.cache/skiprnn/models, or where SKIPRNN_MODELS says.
    """
    if ctx.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError(f"--json is of the list; drop it, or {ctx.invoked_subcommand}.")
        return
    from pipelines.runs.named import list_models
    from skiprnn_cli.tables import show_table

    models = list_models()
    if as_json:
        import json
        from dataclasses import asdict

        for model in models:
            listed = asdict(model)
            record = listed.pop("record")
            click.echo(json.dumps({**listed, **record}))
    elif models:
        rows = [_cells(model) for model in models]
        show_table({name: [row[name] for row in rows] for name in rows[0]}, NEEDED, numbers=("used", "size"))


@command.command(
    epilog="Example: skiprnn models fetch imdb-lstm --from https://example.org/imdb.zip --sha256 9f86d08..."
)
@click.argument("name")
@click.option(
    "--from",
    "source",
    metavar="URL|PATH",
    help="Archive that `models pack` made, .zip or .tar.  [default: where skiprnn knows it to lie]",
)
@click.option(
    "--sha256", metavar="HEX", help="What the archive must hash to; needed with a URL that skiprnn does not know."
)
@options.overwrite
def fetch(name: str, source: str | None, sha256: str | None, overwrite: bool) -> None:
    """Fetch a model, which is then at hand as NAME, as those that came with skiprnn are."""
    from pipelines.runs.packing import fetch as fetch_model

    path = fetch_model(name, source, sha256=sha256, overwrite=overwrite)
    click.echo(f"fetched {name} into {path}")


@command.command(epilog="Example: skiprnn models pack runs/NAME --out adding-lstm.zip")
@options.run_argument
@click.option("--out", type=options.PATH, required=True, help="A .zip file, or a folder that the model is to be.")
@options.data_of_run
@options.overwrite
def pack(run: Path | None, out: Path, data: Path | None, overwrite: bool) -> None:
    """Make a model of RUN, or of the run under runs/ trained last, to pass on.

    It holds the best checkpoint's network without its optimizer, the options, the task, and model.json: how good it is
    on the test split, and how it was trained. Paths of this machine are left out.
    """
    from pipelines.data.doors import file_digest
    from pipelines.runs.packing import pack as pack_model
    from skiprnn_cli.gen_data import ensure_data_of_model

    run = options.chosen_run(run)
    ensure_data_of_model(run, data)
    record = pack_model(run, out, _command_of, data=data, overwrite=overwrite)
    click.echo(f"wrote {out}: {_said(record)} on {record.sequences:,} test sequences")
    if out.is_file():
        click.echo(f"sha256 {file_digest(out)}")


def _said(record: "ModelRecord") -> str:
    return f"{record.model} on {record.task}, {record.metric_name} {record.metric:.4g}, {_used(record)} samples used"


def _used(record: "ModelRecord") -> str:
    return f"{record.used_samples:.1f} of {round(record.given_samples, 1):g}"


def _cells(model: "ListedModel") -> dict[str, str]:
    from pipelines.data.memory import in_words

    record = model.record
    return {
        "name": model.name,
        "task": record.task,
        "model": record.model,
        "metric": f"{record.metric_name} {record.metric:.4g}",
        "used": _used(record),
        "size": in_words(model.bytes),
        "fetched": "fetched" if model.fetched else "",
    }


def _command_of(config: "TrainConfig") -> str:
    """The command that trains a run of a configuration: its cell, and what differs from the preset."""
    import shlex
    from dataclasses import asdict

    from pipelines.runs.config import DATA, NONE, configure
    from skiprnn_cli.train import command as train

    usual = asdict(configure(config.task, config.preset, cell=config.cell))
    usual |= {"cell": None, "data": str(DATA / f"{config.task}.h5"), "device": config.device}
    words = ["skiprnn", "train", "--task", config.task, "--preset", config.preset]
    for option in train.params:
        value = getattr(config, option.name or "", None)
        if not isinstance(option, click.Option) or option.name not in usual or value == usual[option.name]:
            continue
        if isinstance(value, bool):
            words.append(option.opts[0] if value else option.secondary_opts[0])
        elif value is not None or option.name in ("gate_clip", "memory", "patience", "max_skip"):
            said = str(NONE if value is None else value)
            values = said.split(",") if option.multiple else [said]
            words += [word for one in values for word in (option.opts[0], one)]
    return shlex.join(words)
