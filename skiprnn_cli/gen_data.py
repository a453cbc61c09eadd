"""``skiprnn gen-data``."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.errors import SkipRNNError
from pipelines.runs.config import DATA, DEFAULT_SIZES, OWN_TASKS
from skiprnn_cli import options
from skiprnn_cli.groups import Group
from skiprnn_cli.messages import note

if TYPE_CHECKING:
    from pipelines.tasks import SyntheticTask


@click.group("gen-data", cls=Group, epilog="Example: skiprnn gen-data adding --length 100 --out data/adding-100.h5")
def command() -> None:
    """Make a data file: generate a synthetic data set, or convert a public one or your own.

    Writes an HDF5 file with splits train, val and test, and all parameters in its attributes. The same parameters and
    seed give the same bytes of data.
    """


seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the split and other draws."
)
out_option = click.option("--out", type=options.PATH, help="File to write.  [default: data/NAME.h5]")
source_option = click.option("--source", type=options.PATH, help="Where the original files lie.  [default: download]")


def file_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every data file."""
    for name, size in reversed(DEFAULT_SIZES.items()):
        function = click.option(
            f"--{name}",
            type=click.IntRange(min=1),
            default=size,
            show_default=True,
            help=f"Sequences of the {name} split.",
        )(function)
    function = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the draws.")(
        function
    )
    function = click.option("--out", type=options.PATH, help="File to write.  [default: data/TASK.h5]")(function)
    return options.overwrite(function)


@command.command(epilog="Example: skiprnn gen-data adding --seed 1 --out data/adding-1.h5")
@click.option("--length", type=click.IntRange(min=10), default=50, show_default=True, help="Steps of a sequence.")
@file_options
def adding(length: int, **of_file: Any) -> None:
    """Generate the adding task: sum the two marked values of a sequence."""
    from pipelines.tasks import Adding

    _write(Adding(length=length), **of_file)


@command.command(epilog="Example: skiprnn gen-data sine --sampling-period 0.5 --out data/sine-0.5ms.h5")
@click.option(
    "--sampling-period",
    type=options.Number(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Time between samples, in ms.",
)
@click.option(
    "--duration",
    type=options.Number(min=0, min_open=True),
    default=100.0,
    show_default=True,
    help="Of a sequence, in ms.",
)
@file_options
def sine(sampling_period: float, duration: float, **of_file: Any) -> None:
    """Generate the sine task: is the wave's period between 5 and 6 ms?"""
    from pipelines.tasks import Sine

    _write(Sine(sampling_period=sampling_period, duration=duration), **of_file)


@command.command(
    short_help="Convert MNIST: digits pixel by pixel, 784 steps.",
    epilog="Example: skiprnn gen-data mnist --digits 1,7 --source ~/mnist",
)
@click.option("--digits", default="0,1,2,3,4,5,6,7,8,9", show_default=True, help="Classes, such as 1,7.")
@source_option
@seed_option
@out_option
@options.overwrite
def mnist(digits: str, source: Path | None, seed: int, out: Path | None, overwrite: bool) -> None:
    """Convert MNIST: digits pixel by pixel, 784 steps, split 55,000/5,000/10,000.

    --source is a folder with the four original IDX files, compressed or not; without it they are downloaded, 11 MB.
    """
    from pipelines.data.files import check_writable
    from pipelines.sources.mnist import BYTES, write_mnist
    from pipelines.tasks import Mnist

    task = Mnist(digits=digits.replace(",", "").replace(" ", ""))
    name = "mnist" if len(task.digits) == 10 else f"mnist-{task.digits}"
    path = out or DATA / f"{name}.h5"
    check_writable(path, overwrite=overwrite)
    with _download(BYTES, source) as advance:
        done = write_mnist(
            task, path, source=source, cache=DATA / "originals", seed=seed, overwrite=overwrite, on_progress=advance
        )
    if done.others:
        click.echo(f"warning: not the files of MNIST as published: {', '.join(done.others)}", err=True)
    click.echo(f"wrote {path}: {_counts(done.sizes)} sequences, seed {seed}")


@command.command(epilog="Example: skiprnn gen-data imdb --length 400 --word2vec GoogleNews-vectors-negative300.bin")
@click.option("--length", type=click.IntRange(min=1), default=200, show_default=True, help="Words of a review.")
@source_option
@click.option("--word2vec", type=options.PATH, help="Initial word vectors, .bin, .txt or .npz.  [default: random]")
@click.option(
    "--min-count", type=click.IntRange(min=1), default=5, show_default=True, help="Rarer words are one unknown word."
)
@seed_option
@out_option
@options.overwrite
def imdb(
    length: int,
    source: Path | None,
    word2vec: Path | None,
    min_count: int,
    seed: int,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Convert IMDB: film reviews word by word, are they positive?

    --source is the folder aclImdb, its archive, or a folder with *train*.jsonl and *test*.jsonl (label, text), xz or
    not; without it the archive is downloaded, 84 MB. 15 % of the training reviews are for validation, class by class.
    """
    from pipelines.data.files import check_writable
    from pipelines.sources.imdb import BYTES, write_imdb

    path = out or DATA / ("imdb.h5" if length == 200 else f"imdb-{length}.h5")
    check_writable(path, overwrite=overwrite)
    with _download(BYTES, source) as advance:
        written = write_imdb(
            path,
            length=length,
            source=source,
            cache=DATA / "originals",
            word2vec=word2vec,
            min_count=min_count,
            seed=seed,
            overwrite=overwrite,
            on_progress=advance,
        )
    click.echo(f"wrote {path}: {_counts(written.sizes)} sequences, seed {seed}")
    click.echo(
        f"vocabulary: {written.vocabulary:,} words of the training text; vectors were found for "
        f"{100 * written.covered_words:.1f} % of them, which are {100 * written.covered_tokens:.1f} % of the text"
    )


@command.command(
    short_help="Convert your own sequences, with labels.",
    epilog="""\b
Examples:
  skiprnn gen-data own recordings/ --out data/recordings.h5
  skiprnn gen-data own table.csv --id patient --time seconds --label diagnosis
  skiprnn gen-data own NAME_TRAIN.ts NAME_TEST.ts""",
)
@click.argument("source", type=options.PATH, nargs=-1, required=True)
@click.option("--val", type=options.Number(0, 1, max_open=True), default=0.15, show_default=True, help="Share of val.")
@click.option(
    "--test", type=options.Number(0, 1, max_open=True), default=0.15, show_default=True, help="Share of test."
)
@click.option(
    "--task", type=click.Choice(OWN_TASKS), help="What the labels are.  [default: what they look like, which is said]"
)
@options.classes
@click.option(
    "--per-step/--per-sequence", "each_step", default=None, help="What has a label.  [default: by the shape of y]"
)
@click.option(
    "--label-column",
    "--label",
    "label_columns",
    multiple=True,
    metavar="NAME",
    help="A folder: this column of its CSV files is the label of each step. A table: this column is the label of a "
    "sequence, or with --per-step of each step. May be given several times.",
)
@click.option("--id", "id_column", metavar="COLUMN", help="A table: this column says which sequence a row is of.")
@click.option(
    "--time",
    "time_column",
    metavar="COLUMN",
    help="A table: the rows of a sequence are sorted by this column, of numbers or dates.  [default: as they stand]",
)
@options.header
@click.option("--allow-outside", is_flag=True, help="Read files outside SOURCE, too, where labels.csv names such.")
@seed_option
@out_option
@options.overwrite
def own(
    source: tuple[Path, ...],
    task: str | None,
    classes: bool | None,
    each_step: bool | None,
    label_columns: tuple[str, ...],
    id_column: str | None,
    time_column: str | None,
    val: float,
    test: float,
    header: bool | None,
    allow_outside: bool,
    seed: int,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Convert your own sequences in SOURCE, with labels to each of them or to each of their steps.

    SOURCE is an .npz or .h5 file with x (N, T, D) and y. A label a sequence: y (N,), integers or strings for classes,
    floats for numbers to predict; several: y (N, K), integers of 0 and 1 for labels that may hold at once, floats for
    numbers, and perhaps their names (K,). A label a step, or several: y (N, T), or (N, T, K). Sequences of different
    length have lengths (N,), or lie end to end in x (rows, D) with offsets (N + 1,), and y of steps with them. An array
    columns (D,) of texts names the features.

    Or SOURCE is a folder of CSV files, a sample a row, and labels.csv with the columns file and label, or with several
    columns of labels; labels of steps are columns of the files themselves, see --label-column.

    Or SOURCE is one CSV or Parquet table with a row a sample: --id, --label and perhaps --time name its columns, and
    all others are features. Parquet needs pyarrow: pip install 'skiprnn[parquet]'.

    Or SOURCE is a .ts file of the UCR and UEA archives; NAME_TRAIN.ts and NAME_TEST.ts together, or a folder with the
    two, keep the official split.

    An array or column split (train, val, test) fixes the split; where it has no val, that is drawn from train. Features
    are standardised by the training split, and their names are stored: predict puts columns in that order and refuses
    others.
    """
    if len(source) > 2:
        raise click.UsageError("Several SOURCEs are NAME_TRAIN.ts and NAME_TEST.ts; put others into one.")
    options.check_classes(task, classes)
    import_own(
        source, out or data_file_of(source), task=task, classes=classes, each_step=each_step,
        label_columns=label_columns, id_column=id_column, time_column=time_column, val=val, test=test, header=header,
        allow_outside=allow_outside, seed=seed, overwrite=overwrite,
    )  # fmt: skip


def data_file_of(source: Sequence[Path]) -> Path:
    """Where the data file of one's own sequences goes by default."""
    name = source[0].resolve().stem
    return DATA / f"{name if len(source) == 1 else name.rpartition('_')[0] or name}.h5"


def import_own(source: Sequence[Path], path: Path, **settings: Any) -> None:
    """Convert a user's own sequences, saying so."""
    from pipelines.sources.own import write_own

    written = write_own(source, path, **settings)
    options.say_numeric_headers(written.numeric_headers)
    click.echo(
        f"wrote {path}: {_counts(written.sizes)} sequences of up to {written.steps:,} steps, task {written.task.name}"
    )
    click.echo(f"took {written.taken}")
    for said in written.notes:
        note(f"note: {said}")


@contextmanager
def _download(size: int, source: Path | None) -> Iterator[Callable[[int], None]]:
    """Show how a download gets on, if there is one."""
    from skiprnn_cli.progress import counted

    if source is not None:
        yield lambda count: None
        return
    with counted("downloading", size, "bytes") as advance:
        yield advance


def _counts(sizes: dict[str, int]) -> str:
    return ", ".join(f"{size:,} {name}" for name, size in sizes.items())


def _write(
    task: "SyntheticTask", train: int, val: int, test: int, seed: int, out: Path | None, overwrite: bool
) -> None:
    write_with_progress(
        task, out or DATA / f"{task.name}.h5", {"train": train, "val": val, "test": test}, seed, overwrite
    )


def write_with_progress(task: "SyntheticTask", path: Path, sizes: dict[str, int], seed: int, overwrite: bool) -> None:
    """Generate a data file, saying so."""
    from pipelines.data.files import check_writable
    from pipelines.sources.synthetic import generate
    from skiprnn_cli.progress import counted

    check_writable(path, overwrite=overwrite)
    with counted(f"generating {task.name}", sum(sizes.values()), "sequences") as advance:
        generate(task, path, sizes, seed=seed, overwrite=overwrite, on_progress=advance)
    click.echo(f"wrote {path}: {_counts(sizes)} sequences, seed {seed}")


def ensure_data(path: Path, task: "SyntheticTask") -> None:
    """Generate a data file if it is missing."""
    if not path.exists():
        usual = type(task)().parameters()
        others = {name: value for name, value in task.parameters().items() if value != usual[name]}
        said = "".join(f" --{name.replace('_', '-')} {value:g}" for name, value in others.items())
        note(f"no data file {path} yet: generating it, as `skiprnn gen-data {task.name}{said}` does")
        write_with_progress(task, path, DEFAULT_SIZES, 0, overwrite=True)


def ensure_data_of_model(run: Path, data: Path | None) -> None:
    """Of a model, generate the data it is to be tried on, or say how to get it, unless other data was named."""
    from pipelines.runs.directory import load_config, load_task
    from pipelines.runs.named import is_model
    from pipelines.tasks import Mnist, SyntheticTask, task_of_attributes

    if data is not None or not is_model(run):
        return
    path = Path(load_config(run).data)
    task = task_of_attributes(load_task(run), run / "task.json")
    if isinstance(task, SyntheticTask):
        ensure_data(path, task)
    elif not path.exists():
        digits = f" --digits {task.digits}" if isinstance(task, Mnist) and path.name != "mnist.h5" else ""
        made = f"make it with `skiprnn gen-data {task.name}{digits}`, or " if task.name in command.commands else ""
        raise SkipRNNError(f"no data file {path}, on which {run.name} is tried; {made}name one with --data")
