"""How the command ends: as Python does, but for the time that taking torch down takes."""

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys, threading, time, types
from skiprnn_cli.__main__ import main

class Torch(types.ModuleType):
    def __del__(self, print=print):
        print("taken down")

sys.modules["torch"] = Torch("torch")
atexit.register(lambda: print("at the exit"))
sys.modules["__main__"].__file__ = "bin/skiprnn"
{more}
sys.argv = ["skiprnn", *{arguments}]
main()
"""


def run(*arguments, more=""):
    code = PROGRAM.format(arguments=arguments, more=more)
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["evaluate", "a", "b"], 2)])
def test_what_is_said_and_done_at_the_exit_is_not_lost(arguments, code):
    result = run(*arguments)
    assert result.returncode == code
    assert result.stdout.endswith("at the exit\n")  # and torch is not taken down
    assert ("Usage: skiprnn" in result.stdout) == (code == 0)


def test_a_thread_is_waited_for():
    said = run("--help", more="threading.Thread(target=lambda: (time.sleep(0.5), print('the thread'))).start()").stdout
    assert said.endswith("the thread\nat the exit\ntaken down\n")


def test_a_profiler_has_its_say():
    assert run("--help", more="sys.setprofile(lambda *_: None)").stdout.endswith("at the exit\ntaken down\n")


def test_a_program_that_calls_the_command_ends_as_it_does():
    assert run("--help", more="sys.modules['__main__'].__file__ = 'bin/pytest'").stdout.endswith("taken down\n")
