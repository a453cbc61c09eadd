"""``skiprnn plot-curves``."""

from pathlib import Path

import click

from skiprnn_cli import options


@click.command(epilog="Example: skiprnn plot-curves runs/adding-* --out curves.pdf")
@click.argument("runs", type=options.PATH, nargs=-1)
@click.option("--out", type=options.PATH, default="curves.png", show_default=True, help="A .png, .pdf or .svg file.")
@options.overwrite
def command(runs: tuple[Path, ...], out: Path, overwrite: bool) -> None:
    """Draw validation metric and used samples against training for RUNS, or the run under runs/ trained last.

    Runs that differ in their seed only make one curve: mean line, shading from minimum to maximum.
    """
    from pipelines.runs.figures import plot_curves

    chosen = list(runs) or [options.chosen_run(None)]
    click.echo(f"wrote {plot_curves(chosen, out, overwrite=overwrite)}")
