"""``skiprnn predict``."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skiprnn_cli import options

if TYPE_CHECKING:
    from pipelines.runs.prediction import Answer, Prediction, VideoPrediction

SHOWN = 5  # classes of a video, the likeliest


@click.command(
    epilog="""\b
Examples:
  skiprnn predict runs/NAME data/adding.h5 --index 3
  skiprnn predict runs/NAME recording.csv --json
  sensor | skiprnn predict runs/NAME -
  skiprnn predict runs/NAME clip.avi --compare"""
)
@click.argument("run", type=options.PATH)
@click.argument("input", type=options.PATH)
@click.option("--dataset", help="Array of an NPZ or HDF5 file.  [default: the only one, x or test/x]")
@click.option("--index", type=click.IntRange(min=0), help="Predict on this one of several sequences, counted from 0.")
@options.header
@options.checkpoint
@click.option("--compare", is_flag=True, help="A video: say how long it takes with every frame used, too.")
@click.option("--weights", help="A video: file of the weights that its features need.  [default: where they came from]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="cpu", show_default=True, help="Where.")
@options.own_cell
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
def command(
    run: Path,
    input: Path,
    dataset: str | None,
    index: int | None,
    header: bool | None,
    checkpoint: str,
    compare: bool,
    weights: str | None,
    device: str,
    cell: str | None,
    as_json: bool,
) -> None:
    """Predict with the trained RUN on the sequences in INPUT, reading only the samples it uses.

    INPUT is a CSV file (a sample a row), a .npy, .npz, .h5 or .hdf5 file of numbers (T, D) or (N, T, D), or - for CSV
    rows on standard input, which are answered as they come: a line after each row that is used, and a last one for the
    whole. Of a run with an answer to each step the same lines come of files too: what is said at a step that is used
    stands until the next one, whose number is given with it. A run on MNIST takes images too; one on IMDB takes a text,
    in a file or on standard input; one on UCF-101 or other videos takes a video, of which only the frames used go
    through the convolutional network. Samples that are skipped are neither parsed nor checked. Runs on the CPU, in
    compiled code, unless --device says otherwise.
    """
    from pipelines.data.doors import TEXT
    from pipelines.errors import SkipRNNError
    from pipelines.runs.prediction import Predictor

    run = options.chosen_run(run, cell)
    predictor = Predictor(run, checkpoint=checkpoint, device=device, weights=weights, compare=compare)
    if str(input) != "-":
        _say(predictor.file(input, dataset=dataset, index=index, header=header), as_json)
        return
    if dataset is not None or index is not None:
        raise SkipRNNError("standard input holds one sequence; drop --dataset and --index")
    if sys.stdin is None:
        raise SkipRNNError("standard input is closed; name a file instead of -")
    with click.open_file("-", encoding="utf-8-sig", errors="replace") as lines:
        if predictor.reads_text:
            _say([predictor.text(lines.read(TEXT), "standard input")], as_json)
        else:
            _say(predictor.rows(lines, "standard input", header), as_json)


def _say(found: "Iterable[Answer | Prediction]", as_json: bool) -> None:
    from pipelines.runs.prediction import Answer

    told = False
    for said in found:
        if not isinstance(said, Answer):
            options.say_numeric_headers(int(said.numeric_header))
            options.say_reordered(said.columns_reordered and not told)
            told = told or said.columns_reordered
        if as_json:
            click.echo(json.dumps(asdict(said)))
        else:
            click.echo(_line(said) if isinstance(said, Answer) else _text(said))


def _line(answer: "Answer") -> str:
    until = "the end" if answer.until is None else answer.until
    return f"{answer.step:>10}  {_words(answer.answer)}, until {until}"


def _text(p: "Prediction") -> str:
    from pipelines.runs.prediction import VideoPrediction

    if isinstance(p, VideoPrediction):
        return _video_text(p)
    used = f"used {p.used:,} of {p.given:,} samples ({_share(p.used, p.given)})"
    return f"{p.sequence}: {_words(p.answer)}, {used}, {1e3 * p.seconds:.3f} ms"


def _video_text(p: "VideoPrediction") -> str:
    lines = [f"{p.sequence}: {_words(p.answer)}"]
    best = sorted(p.answer["probabilities"].items(), key=lambda pair: -pair[1])[:SHOWN]
    lines += [f"  {probability:7.2%}  {name}" for name, probability in best]
    absent = p.used - p.frames_used
    more = f", and {absent} of {p.given - p.frames} absent ones" if p.given > p.frames else ""
    lines.append(
        f"used {p.frames_used} of {p.frames} frames ({_share(p.frames_used, p.frames)}){more}: {p.seconds:.3f} s"
    )
    if p.seconds_with_every_frame is not None and p.answer_with_every_frame is not None:
        lines.append(
            f"with every frame used: {_words(p.answer_with_every_frame)}, {p.seconds_with_every_frame:.3f} s: skipping "
            f"is {p.seconds_with_every_frame / p.seconds:.2f}x as fast"
        )
    return "\n".join(lines)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "there are none"


def _words(answer: dict[str, Any]) -> str:
    return ", ".join(f"{name} {text}" for name, value in answer.items() if (text := _value(value)) is not None)


def _value(value: Any) -> str | None:
    """A number or text, or a list of texts; None of all else, which is for --json."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return " + ".join(value) or "none"
    if isinstance(value, list | dict):
        return None
    return f"{value:.6g}" if isinstance(value, float) else str(value)
