"""``skiprnn plot-usage``."""

from pathlib import Path

import click

from skiprnn_cli import options

MOST = 100  # sequences in a figure


def _numbers(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Numbers that commas separate, each once."""
    texts = [text.strip() for text in value.split(",")] if value is not None else []
    if not all(text.isascii() and text.isdecimal() for text in texts) or len(texts) > MOST:
        raise click.BadParameter(f"{value!r:.60} is not up to {MOST} numbers from 0, such as 3,17.")
    return tuple(dict.fromkeys(map(int, texts)))


@click.command(
    epilog="""\b
Examples:
  skiprnn plot-usage runs/NAME --examples 6 --out usage.pdf
  skiprnn plot-usage adding-lstm
  skiprnn plot-usage runs/NAME --sequences 3,17 --feature speed"""
)
@options.run_argument
@click.option("--examples", type=click.IntRange(1, MOST), help="Sequences to draw.  [default: 10; videos: 3]")
@click.option("--sequences", callback=_numbers, help="Draw these of the split, counted from 0, such as 3,17.")
@click.option(
    "--feature", help="Name, or number from 0, of the feature that is drawn over time.  [default: the task's]"
)
@options.split
@options.checkpoint
@options.data_of_run
@click.option("--videos", type=options.PATH, help="Folder of the videos.  [default: where they were extracted from]")
@options.device
@options.own_cell
@click.option(
    "--out",
    type=options.PATH,
    help="A .png, .pdf or .svg file; .html for imdb.  [default: RUN/usage.png]",
)
@options.overwrite
def command(
    run: Path | None,
    examples: int | None,
    sequences: tuple[int, ...],
    feature: str | None,
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

    Above each sequence stand its number in the split, what the model says of it, and what is true. One of more than 400
    samples is a line over a strip, which is blue where no sample was used, and the redder the more were. Of videos it
    makes a contact sheet of all frames. Where each step has an answer, the labels and the predictions over
    time stand under the samples.
    """
    from pipelines.runs.figures import plot_usage
    from skiprnn_cli.gen_data import ensure_data_of_model

    if sequences and examples is not None:
        raise click.UsageError("--sequences says how many there are; drop --examples")
    run = options.chosen_run(run, cell)
    ensure_data_of_model(run, data)
    path = plot_usage(
        run,
        out or options.output_of_run(run, "usage.png"),
        examples=examples,
        chosen=sequences,
        feature=feature,
        split=split,
        checkpoint=checkpoint,
        data=data,
        videos=videos,
        device=device,
        overwrite=overwrite,
    )
    click.echo(f"wrote {path}")
