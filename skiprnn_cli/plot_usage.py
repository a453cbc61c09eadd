"""``skiprnn plot-usage``."""

from pathlib import Path

import click

from skiprnn_cli import options


@click.command(epilog="Example: skiprnn plot-usage runs/NAME --examples 6 --out usage.pdf")
@options.run_argument
@click.option("--examples", type=click.IntRange(1, 100), help="Sequences to draw.  [default: 10; videos: 3]")
@options.split
@options.checkpoint
@options.data_of_run
@click.option("--videos", type=options.PATH, help="Folder of the videos.  [default: where they were extracted from]")
@options.device
@options.own_cell
@click.option("--out", type=options.PATH, help="A .png, .pdf or .svg file; .html for imdb.  [default: RUN/usage.png]")
@options.overwrite
def command(
    run: Path | None,
    examples: int | None,
    split: str,
    checkpoint: str,
    data: Path | None,
    videos: Path | None,
    device: str | None,
    cell: str | None,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Draw which samples RUN, or the run under runs/ trained last, used (red) and skipped (blue).

    Of videos it makes a contact sheet of all frames. Where each step has an answer, the labels and the predictions over
    time stand under the samples.
    """
    from pipelines.runs.figures import plot_usage

    run = options.chosen_run(run, cell)
    path = plot_usage(
        run,
        out or run / "usage.png",
        examples=examples,
        split=split,
        checkpoint=checkpoint,
        data=data,
        videos=videos,
        device=device,
        overwrite=overwrite,
    )
    click.echo(f"wrote {path}")
