"""The command group: finds commands without importing them all, and turns errors into messages."""

import signal
import sys
import threading
from importlib import import_module
from importlib.metadata import version
from typing import Any

import click

COMMANDS = {
    "gen-data": "Make a data file: adding, sine, mnist, imdb or your own.",
    "extract-features": "Compute the features of videos' frames: UCF-101 or your own.",
    "train": "Train a model, or continue a run.",
    "evaluate": "Evaluate a trained run: metric, used samples, cost, time.",
    "predict": "Predict on a sequence, reading only the samples used.",
    "reproduce": "Train the models of a table of the paper, ours beside it.",
    "sweep": "Train a grid of models of one's own.",
    "report": "Write a sweep's tables, curves and figures as one page.",
    "export": "Write a trained run's step as an ONNX graph.",
    "plot-usage": "Draw which samples a trained model used and skipped.",
    "plot-curves": "Draw metric and used samples against training.",
}

EPILOG = """\b
Example, from nothing to a figure:
  skiprnn gen-data adding
  skiprnn train --cell lstm --lam 1e-5 --preset quick
  skiprnn evaluate
  skiprnn plot-usage
"""


class LazyGroup(click.Group):
    """Imports a command's module only when it is called, so that ``skiprnn --help`` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"skiprnn_cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        from pipelines.errors import SkipRNNError

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)
        try:
            return super().invoke(ctx)
        except SkipRNNError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            click.echo("stopped", err=True)
            sys.exit(128 + signal.SIGINT)


def _terminate(number: int, frame: object) -> None:
    """End on SIGTERM as an exception does, temporary files removed."""
    sys.exit(128 + number)


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("skiprnn"), prog_name="skiprnn")
def cli() -> None:
    """Skip RNN: LSTMs and GRUs that learn which samples to skip.

    Results go to standard output, progress to standard error. Exit codes: 0 done, 1 an error, 2 wrong usage, 130 and
    143 stopped by Ctrl-C or SIGTERM.
    """
