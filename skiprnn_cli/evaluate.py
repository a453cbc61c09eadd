"""``skiprnn evaluate``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from skiprnn_cli import options
from skiprnn_cli.messages import note

if TYPE_CHECKING:
    from pipelines.runs.classes import OfClass
    from pipelines.runs.evaluation import RunEvaluation

FEW = 20  # classes that are listed without being asked for


@click.command(
    epilog="""\b
Examples:
  skiprnn evaluate adding-lstm
  skiprnn evaluate runs/NAME --split val --json
  skiprnn evaluate runs/NAME --per-class --confusion confusion.png"""
)
@options.run_argument
@options.split
@options.checkpoint
@options.data_of_run
@options.device
@options.own_cell
@click.option(
    "--per-class/--no-per-class", default=None, help=f"List the classes one by one.  [default: up to {FEW} of them]"
)
@click.option(
    "--confusion", type=options.PATH, help="Draw which classes are taken for which: a .png, .pdf or .svg file."
)
@click.option(
    "--sample", is_flag=True, help="Let a Bernoulli gate draw, as in training; without this it rounds, as any gate."
)
@click.option("--seed", type=click.IntRange(min=0), help="Of the draws of --sample.  [default: the run's]")
@options.overwrite
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    run: Path | None,
    split: str,
    checkpoint: str,
    data: Path | None,
    device: str | None,
    cell: str | None,
    per_class: bool | None,
    confusion: Path | None,
    sample: bool,
    seed: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Evaluate RUN, or the run under runs/ trained last: metric, used samples, cost and time per sequence.

    Where labels are several, or of the steps, other metrics follow the first; those of steps are over all steps of
    all sequences.

    Where there are classes a table has the precision, recall and support of each (its sequences, or its steps where
    each has an answer), and how much is used of what is of it.

    Cost counts one multiply-accumulate per number of a weight matrix used, as the paper does, and those of the network
    that looks at video frames, absent ones too. Time is the median of several forward passes of one batch, beside the
    same weights with skipping off (the plain LSTM or GRU, on the compiled engine where that can run; of other cells the
    gate is kept open); and of single sequences, read by a stream that takes only the samples it uses. Where skipping is
    slower, by more than a twentieth, the reason is given.
    """
    from pipelines.runs.evaluation import evaluate_run
    from skiprnn_cli.gen_data import ensure_data_of_model

    if seed is not None and not sample:
        raise click.UsageError("--seed is of what --sample draws; add that, or drop --seed.")
    run = options.chosen_run(run, cell)
    ensure_data_of_model(run, data)
    if confusion is not None:
        from pipelines.runs.figures import check_confusion

        check_confusion(run, confusion, overwrite=overwrite)  # before the work
    report = evaluate_run(run, split=split, checkpoint=checkpoint, data=data, device=device, sample=sample, seed=seed)
    options.say_reordered(report.columns_reordered)
    if confusion is not None:
        from pipelines.runs.figures import plot_confusion

        counted, of_split = sum(of.support for of in report.by_class), f"{report.sequences:,} {report.split} sequences"
        of_what = of_split if counted == report.sequences else f"{counted:,} steps of {of_split}"
        title = f"{report.model} on {report.task}, {of_what}"
        plot_confusion(report.by_class, confusion, title, overwrite=overwrite)
    if as_json:
        import json
        import math
        from dataclasses import asdict

        known = asdict(report)
        known["other_metrics"] = {  # NaN of labels none of which occurs; JSON has no such thing
            name: None if math.isnan(value) else value for name, value in report.other_metrics.items()
        }
        click.echo(json.dumps(known))
    else:
        click.echo(_text(report))
        if per_class and not report.by_class:
            note(f"note: {report.task} has no single class to list results of")
        elif per_class or (per_class is None and 0 < len(report.by_class) <= FEW):
            click.echo("\n" + _classes(report.by_class))
    if confusion is not None:
        click.echo(f"wrote {confusion}", err=as_json)


def _text(r: "RunEvaluation") -> str:
    solved = {True: "  (solved)", False: "  (not solved)", None: ""}[r.solved]
    given = f"{round(r.steps_per_sequence, 2):g}"
    milliseconds = 1e3 * r.seconds_per_sequence
    plain_milliseconds = 1e3 * r.seconds_per_sequence_without_skipping
    lines = {
        "run": f"{r.run}, checkpoint {r.checkpoint} of step {r.step}",
        "model": f"{r.model}{' that draws' if r.sampled else ''} on {r.task}, {r.sequences:,} {r.split} sequences",
        r.metric_name: f"{r.metric:.6g}{solved}",
        **{name: f"{value:.6g}" for name, value in r.other_metrics.items()},
        "used samples": f"{r.used_mean:.2f} ± {r.used_std:.2f} of {given} ({r.used_percent:.1f} %)",
        **({} if r.price is None else {"price": f"{r.price:.2f} λ a sequence, growth and features included"}),
        "cost": f"{r.cost:.3g} multiply-accumulates a sequence; without skipping {r.cost_without_skipping:.3g}",
        "time": f"{milliseconds:.3f} ms a sequence; without skipping {plain_milliseconds:.3f} ms: skipping is "
        f"{plain_milliseconds / milliseconds:.2f}x as fast ({r.device}, batch {r.batch_size})",
    }
    if r.seconds_alone is not None:
        alone, plain_alone = 1e3 * r.seconds_alone, 1e3 * r.seconds_alone_without_skipping
        lines["time alone"] = (
            f"{alone:.3f} ms a sequence, one at a time by a stream; the plain cell {plain_alone:.3f} ms: "
            f"the stream is {plain_alone / alone:.2f}x as fast"
        )
    if r.not_faster is not None:
        lines["not faster"] = f"skipping saves no time in a batch: {r.not_faster}"
    if r.alone_not_faster is not None:
        lines["not faster alone"] = f"a stream saves no time: {r.alone_not_faster}"
    width = max(14, *(len(name) + 2 for name in lines))
    return "\n".join(f"{name:<{width}}{value}" for name, value in lines.items())


def _classes(found: "list[OfClass]") -> str:
    """The classes, one a row."""
    rows = [["class", "precision", "recall", "support", "used samples"]]
    for c in found:
        mean, percent = c.used_mean, c.used_percent
        used = "—" if percent is None else f"{percent:.1f} %"
        rows.append(
            [
                c.name,
                _share(c.precision),
                _share(c.recall),
                f"{c.support:,}",
                used if mean is None else f"{mean:.1f} ({used})",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{row[0]:<{widths[0]}}"
        + "".join(f"  {text:>{width}}" for text, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def _share(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"
