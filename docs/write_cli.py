"""Write docs/cli.md, the page of all commands, from their help.

python docs/write_cli.py
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from skiprnn_cli.main import cli

PAGE = Path(__file__).with_name("cli.md")
HEAD = """\
# All commands

What `skiprnn COMMAND --help` (or `-h`) says, in one page. The [guide](guide.md) shows them at work.

Every command has `-q`, `--quiet` (no progress and no notes, only results, warnings and errors) and `-v`, `--verbose`
(more, and more often).
"""


EVERYWHERE = {"--quiet", "--verbose"}


def page() -> str:
    """The page."""
    context = click.Context(cli, info_name="skiprnn", **cli.context_settings)
    return "\n".join([HEAD, *_sections(cli, context, level=2)])


def _sections(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    arguments = " ".join(part for part in command.collect_usage_pieces(context) if part != "[OPTIONS]")
    yield f"{'#' * level} {context.command_path}\n"
    yield f"    {context.command_path} [OPTIONS] {arguments}".rstrip() + "\n"
    yield from (_prose(paragraph) + "\n" for paragraph in (command.help or "").split("\n\n"))
    options = [one for one in command.params if isinstance(one, click.Option) and not EVERYWHERE & set(one.opts)]
    if options:
        yield "\n".join(_option(one, context) for one in options) + "\n"
    if command.epilog:
        title, _, example = command.epilog.replace("\b\n", "").partition(":")
        lines = [line.strip() for line in example.strip().splitlines()]
        yield f"{title}:\n\n" + "\n".join(f"    {line}" for line in lines) + "\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            below = click.Context(inner, info_name=name, parent=context, **inner.context_settings)
            yield from _sections(inner, below, level if context.parent is None else level + 1)


def _option(option: click.Option, context: click.Context) -> str:
    """An item of the list: names, what they take, help, default and range."""
    names = "/".join([*option.opts, *option.secondary_opts])
    takes = "" if option.is_flag or option.count else f" {option.make_metavar(context)}"
    extra = option.get_help_extra(context)
    notes = [f"default: {extra['default']}"] if extra.get("default") else []
    notes += [extra[name] for name in ("range", "required") if extra.get(name)]
    said = option.help or ""
    if notes:
        said += f" [{'; '.join(notes)}]"
    return f"- `{names}{takes}`: {_prose(said)}"


def _prose(text: str) -> str:
    """Help as Markdown: names of options as code, and nothing that Markdown would read otherwise; code as it is."""
    parts = " ".join(text.split()).split("`")  # every second one is code
    for place in range(0, len(parts), 2):
        escaped = re.sub(r"([*<_[\]])", r"\\\1", parts[place])
        parts[place] = re.sub(r"(?<![\w-])(--[a-z][a-z0-9-]*)", r"`\1`", escaped)
    return "`".join(parts)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit("usage: python docs/write_cli.py, without arguments")
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
