"""``skiprnn plot-tradeoff``."""

from pathlib import Path

import click

from skiprnn_cli import options


@click.command(epilog="Example: skiprnn plot-tradeoff sweeps/adding-quick --out tradeoff.pdf")
@click.argument("folders", type=options.PATH, nargs=-1, required=True)
@click.option("--out", type=options.PATH, default="tradeoff.png", show_default=True, help="A .png, .pdf or .svg file.")
@options.overwrite
def command(folders: tuple[Path, ...], out: Path, overwrite: bool) -> None:
    """Draw test metric against used samples for what sweep or reproduce left in FOLDERS.

    A small dot is a run, a large one the mean over the seeds of a λ. Lines say from where the task counts as solved,
    and how few samples suffice where that is known.
    """
    from pipelines.grids.tradeoff import plot_tradeoff

    click.echo(f"wrote {plot_tradeoff(list(folders), out, overwrite=overwrite)}")
