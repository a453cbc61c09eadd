"""``skiprnn predict``."""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from skiprnn_cli import options
from skiprnn_cli.messages import note

if TYPE_CHECKING:
    from pipelines.runs.prediction import Answer, Input, Prediction, Predictor, VideoPrediction

WIDEST, NARROWEST = 60, 12  # characters of a table's first column, and of the others


@click.command(
    epilog="""\b
Examples:
  skiprnn predict mnist-gru digit.png
  skiprnn predict runs/NAME data/adding.h5 --index 3
  skiprnn predict runs/NAME recording.csv --json
  skiprnn predict runs/NAME recordings
  sensor | skiprnn predict runs/NAME -
  skiprnn predict runs/NAME clip.avi --compare"""
)
@click.argument("run", type=options.PATH)
@click.argument("inputs", type=options.PATH, nargs=-1, metavar="INPUTS...")
@click.option("--dataset", help="Array of an NPZ or HDF5 file.  [default: the only one, x or test/x]")
@click.option("--index", type=click.IntRange(min=0), help="Predict on this one of several sequences, counted from 0.")
@options.header
@options.checkpoint
@click.option("--compare", is_flag=True, help="A video: say how long it takes with every frame used, too.")
@click.option("--weights", help="A video: file of the weights that its features need.  [default: where they came from]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="cpu", show_default=True, help="Where.")
@options.own_cell
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "jsonl"]),
    default="text",
    show_default=True,
    help="A line a sequence, on a terminal a table of several files; or a JSON object a line.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format jsonl.")
def command(
    run: Path,
    inputs: tuple[Path, ...],
    dataset: str | None,
    index: int | None,
    header: bool | None,
    checkpoint: str,
    compare: bool,
    weights: str | None,
    device: str,
    cell: str | None,
    form: str,
    as_json: bool,
) -> None:
    """Predict with the trained RUN, or a model of `skiprnn models`, on INPUTS, reading only the samples it uses.

    An input is a CSV file (a sample a row), a .npy, .npz, .h5 or .hdf5 file of numbers (T, D) or (N, T, D), or - for
    CSV rows on standard input, which are answered as they come: a line after each row that is used, and a last one for
    the whole. Of a run with an answer to each step the same lines come of files too: what is said at a step that is
    used stands until the next one, whose number is given with it. A run on MNIST takes images of a digit too, of any
    size: one of 28 x 28 pixels as it is, in others the digit is found and put into the middle, as MNIST was made. One
    on IMDB takes a text, in a file or on standard input; one on UCF-101 or other videos takes a video, of which only
    the frames used go through the convolutional network. Samples that are skipped are neither parsed nor checked. Runs
    on the CPU, in compiled code, unless --device says otherwise.

    Of a folder the files in and below it are taken. The truth stands beside an answer where it is known: from a data
    file, from the labels.csv of a folder or beside a file, or, of the files of a folder that is given, from the name of
    the folder each lies in, if that is a class.
    """
    from pipelines.data.doors import TEXT
    from pipelines.errors import SkipRNNError
    from pipelines.runs.prediction import Predictor

    if not inputs:
        raise click.UsageError("RUN comes first: skiprnn predict RUN INPUT...")
    piped = Path("-") in inputs
    if piped and len(inputs) > 1:
        raise click.UsageError("standard input stands alone; drop - or the other inputs")
    run, as_json = options.chosen_run(run, cell), as_json or form == "jsonl"
    predictor = Predictor(run, checkpoint=checkpoint, device=device, weights=weights, compare=compare)
    if not piped:
        files = predictor.inputs(inputs)
        said = _each(predictor, files, dataset, index, header)
        if len(files) > 1 and not (as_json or predictor.each_step or compare) and _on_terminal():
            _table(said, [str(file.path) for file in files])
        else:
            _say(said, as_json)
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


def _on_terminal() -> bool:
    return sys.stdout.isatty()


def _each(
    predictor: "Predictor", files: "list[Input]", dataset: str | None, index: int | None, header: bool | None
) -> "Iterator[Answer | Prediction]":
    """Predict on one file after the other; of several, one that cannot be read does not keep the others waiting."""
    from pipelines.errors import SkipRNNError

    failed = 0
    for file in files:
        try:
            yield from predictor.file(file.path, dataset=dataset, index=index, header=header, label=file.label)
        except SkipRNNError as error:
            if len(files) == 1:
                raise
            failed += 1
            click.echo(f"Error: {error}", err=True)
    if failed:
        raise SkipRNNError(f"{failed:,} of {len(files):,} files could not be predicted on, for the reasons above")


def _table(found: "Iterable[Answer | Prediction]", names: list[str]) -> None:
    """The predictions on several files, one a row as they come, and how many are right where that can be told."""
    from pipelines.runs.prediction import Prediction

    widths: dict[str, int] = {"": min(max(map(len, names)), WIDEST)}
    right: list[bool] = []
    told: set[str] = set()
    for said in found:
        assert isinstance(said, Prediction)
        _notes(said, told)
        row = _row(said)
        if len(widths) == 1:
            widths |= {name: max(len(name), NARROWEST) for name in row if name}
            click.echo("  ".join(f"{name:<{widths[name]}}" for name in row).rstrip())
        widths |= {name: max(widths.get(name, 0), len(text)) for name, text in row.items()}
        click.echo("  ".join(f"{row.get(name, ''):<{width}}" for name, width in widths.items()).rstrip())
        if said.truth is not None and "class" in said.truth:
            right.append(said.truth["class"] == said.answer["class"])
    if right:
        click.echo(f"{sum(right):,} of {len(right):,} right ({100 * sum(right) / len(right):.1f} %)")


def _row(p: "Prediction") -> dict[str, str]:
    """A prediction's cells, by the names of their columns."""
    from pipelines.tasks.base import value_in_words

    row = {"": p.sequence}
    if likeliest := p.answer.get("likeliest"):
        (first, probability), (second, less), *_ = likeliest.items()
        width = max(map(len, likeliest))  # as the next rows will need it too
        row |= {
            "class": f"{first:<{width}}",
            "probability": f"{100 * probability:.1f} %",
            "next": f"{second:<{width}} {100 * less:.1f} %",
        }
    else:
        row |= {name: text for name, value in p.answer.items() if (text := value_in_words(value)) is not None}
    row |= {f"true {name}": value_in_words(value) or "" for name, value in (p.truth or {}).items()}
    return {**row, "used": f"{p.used:,} of {p.given:,}", "time": f"{1e3 * p.seconds:.3f} ms"}


def _say(found: "Iterable[Answer | Prediction]", as_json: bool) -> None:
    from pipelines.runs.prediction import Answer

    told: set[str] = set()
    for said in found:
        if not isinstance(said, Answer):
            _notes(said, told)
        if as_json:
            click.echo(json.dumps(asdict(said)))
        else:
            click.echo(_line(said) if isinstance(said, Answer) else _text(said))


def _notes(said: "Prediction", told: set[str]) -> None:
    """What is to be known of how a file was read, each only once of several files."""
    options.say_numeric_headers(int(said.numeric_header))
    options.say_reordered(said.columns_reordered and "order" not in told)
    told |= {"order"} if said.columns_reordered else set()
    for name in said.columns_left_out:
        if f"label {name}" not in told:
            note(f"note: the column {name} holds labels, and is left out")
        told.add(f"label {name}")


def _line(answer: "Answer") -> str:
    until = "the end" if answer.until is None else answer.until
    return f"{answer.step:>10}  {_words(answer)}, until {until}"


def _words(said: "Answer | Prediction") -> str:
    from pipelines.tasks.base import in_words

    truth = "" if said.truth is None else f"; true {in_words(said.truth)}"
    return in_words(said.answer) + truth


def _text(p: "Prediction") -> str:
    from pipelines.runs.prediction import VideoPrediction

    if isinstance(p, VideoPrediction):
        return _video_text(p)
    used = f"used {p.used:,} of {p.given:,} samples ({_share(p.used, p.given)})"
    return f"{p.sequence}: {_words(p)}; {used}, {1e3 * p.seconds:.3f} ms"


def _video_text(p: "VideoPrediction") -> str:
    from pipelines.tasks.base import in_words

    truth = "" if p.truth is None else f"; true {in_words(p.truth)}"
    lines = [f"{p.sequence}: class {p.answer['class']}{truth}"]
    lines += [f"  {100 * probability:6.2f} %  {name}" for name, probability in p.answer["likeliest"].items()]
    absent = p.used - p.frames_used
    more = f", and {absent} of {p.given - p.frames} absent ones" if p.given > p.frames else ""
    lines.append(
        f"used {p.frames_used} of {p.frames} frames ({_share(p.frames_used, p.frames)}){more}: {p.seconds:.3f} s"
    )
    if p.seconds_with_every_frame is not None and p.answer_with_every_frame is not None:
        lines.append(
            f"with every frame used: {in_words(p.answer_with_every_frame)}, {p.seconds_with_every_frame:.3f} s: "
            f"skipping is {p.seconds_with_every_frame / p.seconds:.2f}x as fast"
        )
    return "\n".join(lines)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "there are none"
