"""Compile the GPU kernels for an H100, without one, and print what each takes.

    python -m tests.sm90 [--code] lstm,1,bf16,256 gru,300,float32,64

Each argument is a problem: cell, features, precision of the products, batch, and units if they are not 110. With
``--code`` instructions are counted too, which takes most of the time.
"""

import inspect
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from skiprnn.cells import GRU, LSTM
from skiprnn.engines import triton as triton_events
from skiprnn.engines import triton_kernels

CELLS = {"lstm": LSTM, "gru": GRU}
CODE = "--code"
OPERATION = r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9_]+)"  # of a dump of instructions

SIZES = ("T", "B", "gg_t", "gg_b", "x_t", "x_b", "go_t", "go_b")
LONGS = ("ends", "first")  # pointers to int64
INTEGERS = ("until", "t_at", "updates", "t_rows")  # and to int32


def compiled(kernel, precision, **options):
    """What a kernel takes, as ``report`` says it."""
    names = list(inspect.signature(kernel.fn).parameters)
    constants = {name: options[name] for name in names if name in options}
    narrow = set()
    if precision == "bf16" and options["D"] == 0 and kernel in (triton_kernels.forward, triton_kernels.backward):
        narrow = {"x"}
    signature = {}
    for name in names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in SIZES:
            signature[name] = "i32"
        elif name == "bound":
            signature[name] = "fp32"
        elif name in LONGS:
            signature[name] = "*i64"
        elif name in INTEGERS:
            signature[name] = "*i32"
        else:
            signature[name] = "*bf16" if name in narrow else "*fp32"
    aligned = [name for name, kind in signature.items() if kind.startswith("*")]
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(n),): v for n, v in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    program = triton.compile(
        source,
        target=GPUTarget("cuda", 90, 32),
        options={name: options[name] for name in ("num_warps", "num_stages", "enable_fp_fusion")},
    )
    return report(program)


def report(program):
    """Registers, bytes of stack, where some are spilled, and shared memory; if asked, instructions and barriers."""
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(program.asm["cubin"])
        said = _dumped(binary, "--dump-resource-usage")
        operations = re.findall(OPERATION, _dumped(binary, "--dump-sass")) if CODE in sys.argv else None
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    counts = {} if operations is None else {"instructions": len(operations), "barriers": operations.count("BAR")}
    return counts | {
        "registers": found["REG"],
        "stack": found["STACK"] + found["LOCAL"],
        "shared": program.metadata.shared,
    }


def _dumped(binary, option):
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([tool, option, binary], capture_output=True, text=True, check=True).stdout


def usage(cell, D, precision, batch, H=110):
    """Of both kernels, with the options that a batch gets on an H100."""
    forward, backward = (
        triton_events.options(cell, H, D, batch, precision == "bf16", processors=132, backward=back)
        for back in (False, True)
    )
    around = {**forward, "num_warps": 1, "STEPS": 8}
    rows = {"D": D, "ONES": int(forward["D"] > 0), "BATCH": triton.next_power_of_2(batch), "BLOCK": 16}
    kernels = {
        "forward": (triton_kernels.forward, {**forward, "SAVES": True, "EVERY": True}),
        "backward": (triton_kernels.backward, {**backward, "HAS_OUTPUT": True, "HAS_GATE": True}),
        "fill": (triton_kernels.fill, around),
        "take": (triton_kernels.take, {**around, **rows}),
    }
    return {name: compiled(kernel, precision, **options) for name, (kernel, options) in kernels.items()}


if __name__ == "__main__":
    for case in [word for word in sys.argv[1:] if word != CODE]:
        name, D, precision, batch, *units = case.split(",")
        print(
            json.dumps({"case": case, **usage(CELLS[name], int(D), precision, int(batch), *map(int, units))}),
            flush=True,
        )
