"""``skiprnn report``."""

from pathlib import Path

import click

from skiprnn_cli import options


@click.command(epilog="Example: skiprnn report reproduced/adding-quick")
@click.argument("folder", type=options.PATH)
@click.option("--out", type=options.PATH, help="Page to write.  [default: FOLDER/report.html]")
@click.option(
    "--cell",
    "cells",
    type=options.CELL,
    multiple=True,
    help="A cell of your own that runs in it have; its code is imported and run. May be repeated.",
)
@options.overwrite
def command(folder: Path, out: Path | None, cells: tuple[str, ...], overwrite: bool) -> None:
    """Write what reproduce or sweep left in FOLDER as one page: tables, learning curves, usage figures."""
    from pipelines.data.files import check_writable
    from pipelines.grids.report import count_figures, write_report
    from skiprnn_cli.progress import counted

    path = out or folder / "report.html"
    count = count_figures(folder)
    check_writable(path, overwrite=overwrite)
    with counted("drawing", count, "figures") as advance:
        write_report(folder, path, overwrite=overwrite, on_progress=advance)
    click.echo(f"wrote {path}")
