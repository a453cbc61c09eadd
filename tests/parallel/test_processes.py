"""Processes of this machine; what they do with their jobs is tested by those who use them."""

import signal
import subprocess
import sys
from collections import deque
from pathlib import Path
from types import SimpleNamespace

from pipelines.parallel.processes import _Worker


def test_a_process_that_starts_never_gets_ctrl_c():
    held = []

    def submit(work, job):  # which starts the process; that inherits what is held
        held.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))

    worker = object.__new__(_Worker)
    worker._work, worker.queue, worker._executor = None, deque(), SimpleNamespace(submit=submit)
    assert worker.take("job")
    assert signal.SIGINT in held[0]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_it_can_end_with_its_parent_before_torch_is_there():
    code = "import sys, pipelines.parallel.processes; print('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "False\n"
