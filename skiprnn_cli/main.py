"""The command group: finds commands without importing them all, and turns errors into messages."""

import codecs
import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import click
from click.core import ParameterSource

from skiprnn_cli.groups import Group, variable_of
from skiprnn_cli.messages import level_options

COMMANDS = {
    "gen-data": "Make a data file: adding, sine, mnist, imdb or your own.",
    "extract-features": "Compute the features of videos' frames: UCF-101 or your own.",
    "train": "Train a model, or continue a run.",
    "runs": "List runs: what they are, how far, how good.",
    "models": "List trained models that are ready, or fetch others.",
    "evaluate": "Evaluate a trained run: metric, used samples, cost, time.",
    "predict": "Predict on a sequence, reading only the samples used.",
    "reproduce": "Train the models of a table of the paper, ours beside it.",
    "sweep": "Train a grid of models of one's own.",
    "report": "Write a sweep's tables, curves and figures as one page.",
    "export": "Write a trained run for ONNX Runtime or for torch.",
    "plot-usage": "Draw which samples a trained model used and skipped.",
    "plot-curves": "Draw metric and used samples against training.",
    "plot-tradeoff": "Draw metric against used samples for sweeps.",
    "completion": "Print what makes a shell complete commands and options.",
}
KEEPS = ("extract-features", "reproduce", "sweep")  # what they have done when they are stopped

NEEDED = {  # what commands import, and what it is called where it is installed from
    **{
        name: name
        for name in ("filelock", "h5py", "matplotlib", "numpy", "rich", "safetensors", "torch", "torchvision")
    },
    "PIL": "pillow",
    "cv2": "opencv-python",
}
TYPED = "skiprnn.typed"  # the command line, in what click's contexts share
AS_IT_CAME = "skiprnn-as-it-came"  # how characters are encoded that are none
MESSAGE = 1_500  # characters, besides those of what was typed

WRITERS = ("click.utils", __name__)  # modules that write to standard output

EPILOG = """\b
Example, from nothing to a figure:
  skiprnn gen-data adding
  skiprnn train --cell lstm --lam 1e-5 --preset quick
  skiprnn evaluate
  skiprnn plot-usage
"""


class LazyGroup(Group):
    """Imports a command's module only when it is called, so that ``skiprnn --help`` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def find(self, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"skiprnn_cli.{name.replace('-', '_')}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, *arguments: Any, **settings: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors=AS_IT_CAME)
        try:
            try:
                return super().main(*arguments, **settings)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
        except OSError as error:
            if not _is_of_output(error):
                raise
            _drop_output()
            if isinstance(error, BrokenPipeError):
                sys.exit(128 + signal.SIGPIPE)
            click.echo(f"Error: cannot write to standard output: {error.strerror}", err=True)
            sys.exit(1)

    def make_context(self, *arguments: Any, **settings: Any) -> click.Context:
        with _quiet_pipe():  # of --help
            return super().make_context(*arguments, **settings)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[TYPED] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        from pipelines.errors import SkipRNNError

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)
        words = [word.rpartition("=")[2] for word in ctx.args]
        try:
            with _quiet_pipe():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(_how_to_go_on(ctx), err=True)
            sys.exit(128 + signal.SIGINT)
        except click.BadParameter as error:
            if not (place := _place(error)):
                raise
            raise click.BadParameter(f"{error.message}{place}", error.ctx, error.param, error.param_hint) from error
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except Exception as error:
            files = [word for word in words if os.path.lexists(word)]
            if ctx.params["debug"] or _is_of_output(error):
                raise
            if isinstance(error, ModuleNotFoundError) and (name := NEEDED.get((error.name or "").partition(".")[0])):
                raise click.ClickException(
                    f"this needs {name}, which is not installed here; `pip install {name}`, or install skiprnn again"
                ) from error
            if not isinstance(error, SkipRNNError) and not files:
                raise
            said = str(error) if isinstance(error, SkipRNNError) else _unforeseen(error, files)
            raise click.ClickException(_shortened(said, MESSAGE + 2 * sum(map(len, words)))) from error


def _as_it_came(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode what is no character: a byte of a name that is no text as it came, others as an escape."""
    assert isinstance(error, UnicodeEncodeError)
    code = ord(error.object[error.start])
    encoded = bytes([code - 0xDC00]) if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}".encode()
    return encoded, error.start + 1


codecs.register_error(AS_IT_CAME, _as_it_came)


@contextmanager
def _quiet_pipe() -> Iterator[None]:
    """End without a word, as SIGPIPE does, where nobody reads standard output any more."""
    try:
        yield
    except BrokenPipeError as error:
        if not _is_of_output(error):
            raise
        _drop_output()
        sys.exit(128 + signal.SIGPIPE)


def _how_to_go_on(ctx: click.Context) -> str:
    """What to say after Ctrl-C."""
    typed, command = ctx.meta[TYPED], ctx.invoked_subcommand
    kept = "what is done is kept; go on" if command in KEEPS else "nothing was written; begin again"
    return f"stopped, {kept} with: skiprnn {shlex.join(typed)}"


def _place(error: click.BadParameter) -> str:
    """Where a wrong value comes from, if not from the command line."""
    if error.ctx is None or error.param is None or error.param.name is None:
        return ""
    source = error.ctx.get_parameter_source(error.param.name)
    if source is ParameterSource.ENVIRONMENT:
        return f" It comes from the environment, {variable_of(error.param, str(error.ctx.auto_envvar_prefix))}."
    return f" It comes from {error.ctx.params.get('config')}." if source is ParameterSource.DEFAULT_MAP else ""


def _shortened(said: str, most: int) -> str:
    """A message that a file made too long, without its middle: it begins with the place and ends with the remedy."""
    return said if len(said) <= most else f"{said[: most // 2]} […] {said[-most // 4 :]}"


def _unforeseen(error: Exception, files: list[str]) -> str:
    """What to say of an error that nobody thought of, while a user's files were read."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return f"out of memory while working on {', '.join(files)}; give it less, or run it where there is more"
    said = " ".join(str(error).split())[:300]
    return (
        f"unforeseen {type(error).__name__} while working on {', '.join(files)}: {said}. `skiprnn --debug ...` shows "
        "where it arose; please report it"
    )


def _is_of_output(error: Exception) -> bool:
    """Whether it was raised by writing to standard output, such as to a full disk."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return isinstance(error, OSError) and place is not None and place.tb_frame.f_globals["__name__"] in WRITERS


def _drop_output() -> None:
    """Keep Python from trying once more, at its exit, to write what cannot be written."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(number: int, frame: object) -> None:
    """End on SIGTERM as an exception does, temporary files removed."""
    sys.exit(128 + number)


def _show_version(context: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if not asked or context.resilient_parsing:
        return
    from skiprnn import __version__, compiled

    engine = compiled.instructions()
    if compiled.multiplies_bfloat16():
        engine = f"{engine} with bfloat16"
    missing = "no compiled CPU engine: install skiprnn again where there is a C++ compiler"
    click.echo(f"skiprnn, version {__version__} ({f'compiled CPU engine: {engine}' if engine else missing})")
    context.exit()


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "SKIPRNN"},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    allow_from_autoenv=False,
    callback=_show_version,
    help="Show the version, and what the CPU engine was compiled for.",
)
@click.option("--debug", is_flag=True, help="Show where in the code an error arose.")
def cli(debug: bool) -> None:
    """Skip RNN: LSTMs and GRUs that learn which samples to skip.

    Results go to standard output, progress to standard error. Exit codes: 0 done, 1 an error, 2 wrong usage, 130 and
    143 stopped by Ctrl-C or SIGTERM.

    Any option may come from the environment, as SKIPRNN_COMMAND_OPTION: SKIPRNN_TRAIN_LR=1e-3 is `train --lr 1e-3`,
    SKIPRNN_GEN_DATA_ADDING_SEED=1 is `gen-data adding --seed 1`. The command line comes first.
    """


cli.params += level_options()
