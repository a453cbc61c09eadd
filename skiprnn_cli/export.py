"""``skiprnn export``."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from skiprnn_cli import options
from skiprnn_cli.messages import note

if TYPE_CHECKING:
    from pipelines.runs.export import Export

NAMED = 5  # of the answer's names, at most
ANSWERS = {"classes": "probabilities of", "labels": "probabilities, each by itself, of", "numbers": "numbers:"}


@click.command(
    epilog="""\b
Examples:
  skiprnn export runs/NAME --out model.onnx
  skiprnn export runs/NAME --format torch --out model.pt2"""
)
@options.run_argument
@click.option(
    "--format",
    type=click.Choice(["onnx", "torch"]),
    default="onnx",
    show_default=True,
    help="onnx: one step, for ONNX Runtime. torch: whole sequences, for torch.export.load.",
)
@click.option(
    "--input",
    type=click.Choice(["raw", "network"]),
    default="raw",
    show_default=True,
    help="What x is. raw: samples as predict takes them. network: standardised, or word vectors.",
)
@click.option("--int8", is_flag=True, help="ONNX: 8 bits for the weights of matrix products and word vectors.")
@options.split
@options.checkpoint
@options.data_of_run
@options.own_cell
@click.option("--out", type=options.PATH, help="An .onnx or .pt2 file.  [default: RUN/model.onnx or RUN/model.pt2]")
@options.overwrite
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    run: Path | None,
    format: Literal["onnx", "torch"],
    input: Literal["raw", "network"],
    int8: bool,
    split: str,
    checkpoint: str,
    data: Path | None,
    cell: str | None,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the network of RUN, or of the run under runs/ trained last, for other programs, and check it.

    The ONNX graph is one step. It takes x (B, D), or the numbers of words (B,), and the state h (layers, B, H), c
    (LSTMs only), update_prob (B) and cum_update_prob (B), and returns answer, probabilities or numbers in their own
    units; output, what the answer is computed from; the same state with _out added to the names; and skip_next (B): how
    many of the following inputs will not be used, 2^63 - 1 if none will any more. Having left them all out, set
    cum_update_prob to 1: then the next step updates. x is raw, and standardised or embedded inside, unless --input
    network is given.

    The state to begin with stands in the file's metadata under the names of the inputs, all else that one must know
    under skiprnn, both as JSON: the task, the names of the answer's entries, mean and std of the features, the words.
    examples/onnx_loop.py is the whole loop. Needs the extra export: pip install 'skiprnn[export]'.

    The torch program takes x (B, T, D), or words (B, T), and lengths (B,), any numbers of sequences and steps, and
    returns answer, output and the gate (B, T). Loading it needs `import skiprnn`, whose compiled code runs it.

    The check reads the file again and runs the split, beside the run itself.
    """
    if int8 and format == "torch":
        raise click.UsageError("--int8 is for ONNX; drop it, or --format torch")
    from pipelines.runs.export import SUFFIXES, export_run
    from skiprnn_cli.gen_data import ensure_data_of_model

    run = options.chosen_run(run, cell)
    ensure_data_of_model(run, data)
    out = out or options.output_of_run(run, f"model{SUFFIXES[format]}")
    note(f"writing {out} and checking it on the {split} split")
    report = export_run(
        run, out, format=format, input=input, int8=int8, split=split, checkpoint=checkpoint, data=data,
        overwrite=overwrite,
    )  # fmt: skip
    if as_json:
        import json
        from dataclasses import asdict

        click.echo(json.dumps(asdict(report)))
    else:
        click.echo(_text(report, split))


def _text(e: "Export", split: str) -> str:
    kind = "8-bit weights" if e.int8 else "float32"
    where = {"onnx": "ONNX Runtime, step by step", "torch": "torch, whole"}[e.format]
    about, more = e.about, len(e.about["names"]) - NAMED
    names = ", ".join(about["names"][:NAMED]) + (f" and {more} more" if more > 0 else "")
    lines = {
        "wrote": f"{e.out} ({kind}, {e.bytes:,} bytes)",
        "x": about["x"],
        "answer": f"{ANSWERS[about['answers']]} {names}",
        "checked": f"{e.sequences:,} {split} sequences in {where}, beside the run itself",
        "equal gates": f"{e.gates_equal:,} of {e.gates:,} ({100 * e.gates_equal / e.gates:.4f} %)",
        "output": f"differs by at most {e.output_difference:.2g}",
        e.metric_name: f"{e.metric_exported:.6g}; the run itself {e.metric:.6g}",
        "used samples": f"{e.used_mean_exported:.2f}; the run itself {e.used_mean:.2f}",
    }
    if e.format == "torch":
        lines["to load it"] = "import skiprnn first, then torch.export.load"
    return "\n".join(f"{name:<14}{value}" for name, value in lines.items())
