"""``skiprnn export``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from skiprnn_cli import options

if TYPE_CHECKING:
    from pipelines.runs.export import Export


@click.command(epilog="Example: skiprnn export runs/NAME --out model.onnx")
@options.run_argument
@click.option("--int8", is_flag=True, help="Quantise the weights of matrix products to 8 bits.")
@options.split
@options.checkpoint
@options.data_of_run
@options.own_cell
@click.option("--out", type=options.PATH, help="An .onnx file.  [default: RUN/model.onnx]")
@options.overwrite
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    run: Path | None,
    int8: bool,
    split: str,
    checkpoint: str,
    data: Path | None,
    cell: str | None,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write one step of RUN, or of the run under runs/ trained last, as an ONNX graph, and check it.

    The graph takes x (B, D) and the state h (layers, B, H), c (LSTMs only), update_prob (B) and cum_update_prob (B),
    and returns output, the same state with _out added to the names, and skip_next (B): how many of the following
    inputs will not be used, 2^63 - 1 if none will any more. Having left them all out, set cum_update_prob to 1: then
    the next step updates. The state to begin with stands in the file's metadata under the names of the inputs, as JSON.
    The check replays the split in ONNX Runtime, step by step. Needs the extra export: pip install 'skiprnn[export]'.
    """
    from pipelines.runs.export import export_run

    run = options.chosen_run(run, cell)
    report = export_run(
        run, out or run / "model.onnx", int8=int8, split=split, checkpoint=checkpoint, data=data, overwrite=overwrite
    )
    if as_json:
        import json
        from dataclasses import asdict

        click.echo(json.dumps(asdict(report)))
    else:
        click.echo(_text(report, split))


def _text(e: "Export", split: str) -> str:
    kind = "8-bit weights" if e.int8 else "float32"
    lines = {
        "wrote": f"{e.out} ({kind}, {e.bytes:,} bytes)",
        "checked": f"{e.sequences:,} {split} sequences in ONNX Runtime, step by step, beside the run itself",
        "equal gates": f"{e.gates_equal:,} of {e.gates:,} ({e.gates_equal / e.gates:.4%})",
        "output": f"differs by at most {e.output_difference:.2g}",
        e.metric_name: f"{e.metric_exported:.6g}; the run itself {e.metric:.6g}",
        "used samples": f"{e.used_mean_exported:.2f}; the run itself {e.used_mean:.2f}",
    }
    return "\n".join(f"{name:<14}{value}" for name, value in lines.items())
