"""Where ``skiprnn`` and ``python -m skiprnn_cli`` begin."""

import atexit
import os
import sys
import threading
from pathlib import Path
from typing import NoReturn


def main() -> None:
    """Run the command."""
    try:
        from skiprnn_cli.main import cli
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.exit("Error: the commands of skiprnn need click, which is not installed here; `pip install click`")
    try:
        cli(prog_name="skiprnn")
    except SystemExit as end:
        if isinstance(end.code, int) and "torch" in sys.modules and _is_program():
            _leave(end.code)
        raise


def _is_program() -> bool:
    """Whether the process was started for this command, rather than a program that calls it."""
    program = sys.modules["__main__"]
    spec = getattr(program, "__spec__", None)
    name = spec.name.split(".")[0] if spec is not None else Path(getattr(program, "__file__", "")).stem
    return name in ("skiprnn", "skiprnn_cli")


def _leave(code: int) -> NoReturn:
    """End without taking Python and torch down, which takes half a second: all that was to be done has been."""
    watched = sys.gettrace() is not None or sys.getprofile() is not None
    if watched or any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        sys.exit(code)
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.exit(code)
    os._exit(code)


if __name__ == "__main__":
    main()
