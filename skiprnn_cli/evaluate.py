"""``skiprnn evaluate``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from skiprnn_cli import options

if TYPE_CHECKING:
    from pipelines.runs.evaluation import RunEvaluation


@click.command(epilog="Example: skiprnn evaluate runs/NAME --split val --json")
@options.run_argument
@options.split
@options.checkpoint
@options.data_of_run
@options.device
@options.own_cell
@click.option(
    "--sample", is_flag=True, help="Let a Bernoulli gate draw, as in training; without this it rounds, as any gate."
)
@click.option("--seed", type=click.IntRange(min=0), help="Of the draws of --sample.  [default: the run's]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    run: Path | None,
    split: str,
    checkpoint: str,
    data: Path | None,
    device: str | None,
    cell: str | None,
    sample: bool,
    seed: int | None,
    as_json: bool,
) -> None:
    """Evaluate RUN, or the run under runs/ trained last: metric, used samples, cost and time per sequence.

    Where labels are several, or of the steps, other metrics follow the first; those of steps are over all steps of
    all sequences.

    Cost counts one multiply-accumulate per number of a weight matrix used, as the paper does, and those of the network
    that looks at video frames, absent ones too. Time is the median of several forward passes of one batch, beside the
    same weights with skipping off (the plain LSTM or GRU, on the compiled engine where that can run; of other cells the
    gate is kept open); and of single sequences, read by a stream that takes only the samples it uses.
    """
    from pipelines.runs.evaluation import evaluate_run

    if seed is not None and not sample:
        raise click.UsageError("--seed is of what --sample draws; add that, or drop --seed.")
    report = evaluate_run(
        options.chosen_run(run, cell), split=split, checkpoint=checkpoint, data=data, device=device, sample=sample,
        seed=seed,
    )  # fmt: skip
    if as_json:
        import json
        from dataclasses import asdict

        click.echo(json.dumps(asdict(report)))
    else:
        click.echo(_text(report))


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
    width = max(14, *(len(name) + 2 for name in lines))
    return "\n".join(f"{name:<{width}}{value}" for name, value in lines.items())
