"""Compile the GPU kernels of one layer for an H100, without one, and print what each takes.

    python -m tests.sm90 [--code] lstm,1,2 gru-before,300,4,64

Each argument is a problem: cell (lstm, gru, gru-before), features, sequences of a block, and units if they are not 110.
With ``--code`` instructions are counted too, and barriers among them.
"""

import json
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from skiprnn.engines import cuda, cuda_kernels

CODE = "--code"
KERNELS = ("forward", "backward", "fill", "take", "reset", "shares", "sums")
OPERATION = r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9_]+)"  # of a dump of instructions


def report(cubin, kernel, counts_code=CODE in sys.argv):
    """Registers, bytes of stack, where some are spilled, and shared memory; if asked, instructions and barriers."""
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(cubin)
        said = re.search(rf"Function {kernel}:\n(.*)", _dumped(binary, "--dump-resource-usage"))[1]
        code = _dumped(binary, "--dump-sass", "-fun", kernel) if counts_code else ""
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", said)}
    operations = re.findall(OPERATION, code)
    counts = {"instructions": len(operations), "barriers": operations.count("BAR")} if code else {}
    return counts | {
        "registers": found["REG"],
        "stack": found["STACK"] + found["LOCAL"],
        "shared": found["SHARED"],
    }


def _dumped(binary, *options):
    tool = Path(find_spec("triton").origin).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([tool, *options, binary], capture_output=True, text=True, check=True).stdout


def usage(cell, features, rows, units=110):
    fused = features if features <= cuda.FUSED else 0
    constants = cuda_kernels.Constants(units, fused, cell != "lstm", rows, cell == "gru-before")
    cubin, _ = cuda_kernels.compiled(constants, "sm_90")
    found = {kernel: report(cubin, kernel) for kernel in KERNELS}
    for kernel, way in (("forward", "F"), ("backward", "B")):
        found[kernel]["shared"] += constants.shared(way)
    return found


if __name__ == "__main__":
    for case in [word for word in sys.argv[1:] if word != CODE]:
        name, *numbers = case.split(",")
        print(json.dumps({"case": case, **usage(name, *map(int, numbers))}), flush=True)
