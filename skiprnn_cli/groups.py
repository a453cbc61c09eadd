"""Groups of commands: what is mistyped is met with what is alike, and every command has what all have."""

import os
from collections.abc import Iterable
from difflib import get_close_matches

import click

from skiprnn_cli.messages import level_options


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " Did you mean 'train'?", or nothing where no name is like the word."""
    alike = get_close_matches(word, list(known), n=1)
    return f" Did you mean {alike[0]!r}?" if alike else ""


def variable_of(option: click.Parameter, prefix: str) -> str:
    """The environment variable that an option is read from, SKIPRNN_COMMAND_OPTION, named as its flag is."""
    flag = max(option.opts, key=len).lstrip("-").replace("-", "_")
    return f"{prefix}_{flag}".upper()


class Group(click.Group):
    """A group whose commands take -q and -v, and any option from the environment."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = self.find(cmd_name)
        if command is None or isinstance(command, click.Group):
            return command
        if not any("--quiet" in parameter.opts for parameter in command.params):
            command.params += level_options()
        if ctx.auto_envvar_prefix is not None:
            prefix = f"{ctx.auto_envvar_prefix}_{cmd_name}".replace("-", "_")
            for option in command.params:
                name = variable_of(option, prefix)
                if isinstance(option, click.Option) and name != f"{prefix}_{option.name}".upper():  # which is Click's
                    option.envvar = name
        return command

    def _warn_of_variables(self, ctx: click.Context, name: str, command: click.Command) -> None:
        """Say which of the environment's variables look like an option of the command that runs, and are none."""
        prefix = f"{ctx.auto_envvar_prefix}_{name}".replace("-", "_").upper()
        known = {
            variable_of(option, prefix).removeprefix(f"{prefix}_"): variable_of(option, prefix)
            for option in command.params
            if isinstance(option, click.Option)
        }
        for variable in os.environ:
            word = variable.removeprefix(f"{prefix}_")
            if word not in (variable, *known):
                alike = "".join(f" Did you mean {known[near]}?" for near in get_close_matches(word, known, n=1))
                click.echo(
                    f"Warning: {variable} is no option of {ctx.command_path} {name}, and is ignored.{alike}", err=True
                )

    def find(self, name: str) -> click.Command | None:
        """The command of a name, or None."""
        return self.commands.get(name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.find(name) is None:
            raise click.UsageError(f"No such command {name!r}.{did_you_mean(name, self.list_commands(ctx))}", ctx)
        found, command, rest = super().resolve_command(ctx, args)
        if command is not None and not isinstance(command, click.Group) and not ctx.resilient_parsing:
            self._warn_of_variables(ctx, name, command)
        return found, command, rest
