"""cuda_kernels.cu on the CPU: compiled by g++ for each problem, kept in .cache/, a block's threads as fibers."""

import ctypes
import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from skiprnn.engines import cuda_kernels

HERE = Path(__file__).parent
EMULATOR = HERE / "cuda_on_cpu.cpp"
KEPT = HERE.parent / ".cache" / "cuda_on_cpu"
COMPILER = shutil.which("g++")


@cache
def kernels(constants):
    return _OnCPU(constants)


class _OnCPU:
    def __init__(self, constants):
        sources = EMULATOR.read_bytes() + cuda_kernels.SOURCE.read_bytes() + repr(constants.defined()).encode()
        built = KEPT / f"{hashlib.sha256(sources).hexdigest()[:24]}.so"
        if not built.exists():
            if COMPILER is None:
                pytest.skip("needs g++, for the emulator of the kernels")
            KEPT.mkdir(parents=True, exist_ok=True)
            made = built.with_suffix(f".{os.getpid()}")
            defined = [f"-D{name}={value}" for name, value in constants.defined().items()]
            source = f'-DSOURCE="{cuda_kernels.SOURCE}"'
            command = [COMPILER, "-std=c++17", "-O1", "-fPIC", "-shared", source, *defined, EMULATOR, "-o", made]
            subprocess.run(command, check=True, capture_output=True, text=True)
            made.replace(built)
        self.library = ctypes.CDLL(str(built))

    def launch(self, name, grid, block, shared, arguments):
        packed = cuda_kernels.pack(arguments)
        launch = getattr(self.library, f"launch_{name}")
        launch.argtypes = [ctypes.c_char_p, ctypes.c_int64, *4 * [ctypes.c_int]]
        launch(bytes(packed), ctypes.sizeof(packed), *(*grid, 1)[:2], block, shared)
