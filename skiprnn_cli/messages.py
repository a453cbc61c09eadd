"""What commands say beside results, warnings and errors, to standard error: nothing with -q, more with -v."""

import click

QUIET, USUAL, VERBOSE = 0, 1, 2
LEVEL = "skiprnn.level"  # in what click's contexts share


def level() -> int:
    """How much the command that runs is to say."""
    context = click.get_current_context(silent=True)
    return USUAL if context is None else int(context.meta.get(LEVEL, USUAL))


def note(text: str) -> None:
    """Say what is no result, unless the command is to be quiet."""
    if level() >= USUAL:
        click.echo(text, err=True)


def detail(text: str) -> None:
    """Say what only -v asks for."""
    if level() >= VERBOSE:
        click.echo(text, err=True)


def _option(names: tuple[str, str], chosen: int, text: str) -> click.Option:
    def choose(context: click.Context, parameter: click.Parameter, asked: bool) -> None:
        if asked:
            context.meta[LEVEL] = chosen

    return click.Option(names, is_flag=True, expose_value=False, callback=choose, help=text)


def level_options() -> list[click.Parameter]:
    """The options -q and -v, of the group and of every command."""
    return [
        _option(("-q", "--quiet"), QUIET, "Show no progress and no notes, only results, warnings and errors."),
        _option(("-v", "--verbose"), VERBOSE, "Show more, and more often."),
    ]
