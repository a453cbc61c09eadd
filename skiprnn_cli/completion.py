"""``skiprnn completion``."""

import click
from click.shell_completion import get_completion_class


@click.command(
    epilog="""\b
Examples, each for good:
  skiprnn completion bash >> ~/.bashrc
  skiprnn completion zsh >> ~/.zshrc
  skiprnn completion fish > ~/.config/fish/completions/skiprnn.fish"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that makes a SHELL complete commands, options, their choices and files.

    For the shell that is open: eval "$(skiprnn completion bash)", or zsh likewise, or skiprnn completion fish | source.
    zsh needs `autoload -Uz compinit && compinit` before.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "skiprnn", "_SKIPRNN_COMPLETE").source())
