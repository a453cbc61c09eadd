"""Compile the kernels for large stacks for an H100, without one, and print what each takes.

    python -m tests.sm90_graph [--code] lstm,512,bf16 gru,100,fp32 gru-before,512,fp32

Each argument is a problem of two layers: cell, units, precision of the products. ``--code`` as for ``tests.sm90``.
"""

import inspect
import json
import re
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from skiprnn.engines import graph_iterations, graph_kernels
from tests.sm90 import CODE, report

KINDS = {  # of arguments; others are pointers to float32
    "i32": ("i", "B", "T", "start", "x_t", "x_b", "D"),
    "*i64": ("table", "places", "first"),
    "*i32": ("t_now", "ends", "updates", "until", "steps"),
    "*bf16": (  # or float32
        "shares",
        "operand",
        "from_below",
        "hidden",
        "h_candidate",
        "grad_below",
        "rows",
        "of_reset",
        "left",
        "grad_left",
    ),
}


def compiled(kernel, precision, **options):
    """Registers, bytes of stack, where registers are spilled, shared memory, and loads of 16 bytes of a kernel."""
    names = list(inspect.signature(kernel.fn).parameters)
    constants = {name: options[name] for name in names if name in options}
    kinds = {name: kind for kind, some in KINDS.items() for name in some}
    signature = {name: "constexpr" if name in constants else kinds.get(name, "*fp32") for name in names}
    if precision == "fp32":
        signature = {name: kind.replace("bf16", "fp32") for name, kind in signature.items()}
    aligned = [name for name, kind in signature.items() if kind.startswith("*") or name == "B"]
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    program = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=graph_iterations.launch_options())
    vectors = len(re.findall(r"ld\.global\S*v4", program.asm["ptx"]))
    return report(program.asm["cubin"], program.metadata.name) | {"shared": program.metadata.shared, "vectors": vectors}


def usage(cell, units, precision):
    sizes = {
        "LAYERS": 2,
        "H": units,
        "GRU": cell != "lstm",
        "RESET": cell == "gru-before",
        "BLOCK": min(triton.next_power_of_2(units), graph_iterations.BLOCK),
    }
    given = {"HAS_OUTPUT": True, "HAS_GATE": True, "WINDOW": graph_iterations.WINDOW}
    kernels = {
        "begin": {"SAVES": True, "EVERY": True},
        "update": {"LAYER": 1, "SAVES": True, "EVERY": True, "PARTS": 1},
        "tally": {"CHUNK": graph_iterations.CHUNK, "BLOCK": 256},
        "candidates": {"LAYER": 1, "PARTS": 1},
        "walk": {"UPDATES": True, **given},
        "lower": {"LAYER": 0},
        "list_skipped": {"BLOCK": 256},
        "gather": {"BLOCK": 1024},
        "scatter": {"BLOCK": 1024},
    }
    if sizes["RESET"]:
        kernels |= {"reset": {"LAYER": 1}, "reset_skipped": {"LAYER": 1}, "reset_back": {"LAYER": 1}}
    return {
        name: compiled(getattr(graph_kernels, name), precision, **(sizes | options))
        for name, options in kernels.items()
    }


if __name__ == "__main__":
    for case in [word for word in sys.argv[1:] if word != CODE]:
        cell, units, precision = case.split(",")
        print(json.dumps({"case": case, **usage(cell, int(units), precision)}), flush=True)
