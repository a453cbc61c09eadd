"""Where ``skiprnn`` and ``python -m skiprnn_cli`` begin."""

import sys


def main() -> None:
    """Run the command."""
    try:
        from skiprnn_cli.main import cli
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.exit("Error: the commands of skiprnn need click, which is not installed here; `pip install click`")
    cli(prog_name="skiprnn")


if __name__ == "__main__":
    main()
