"""Compile cuda_kernels.cu for a problem and a GPU, by NVRTC, which comes with torch for CUDA, and launch it."""

import ctypes
import struct
import sys
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cu")
FUSED = 4  # features up to which the kernels multiply the inputs themselves, instead of one product before
STEPS = 8  # of a sequence, that a block of the kernels around the loops takes
TAKERS = 128  # threads of such a block
TILE = 64  # rows and columns of a block of the products over rows
PRODUCERS = 256  # threads of such a block
AROUND = ("fill", "take", "reset", "shares", "sums")  # kernels that are not the loops
WARP = 32
LANES = {"F": 4, "B": 8}  # threads that share the sums of a unit going forward, and of two units going back
HELD = {"F": {1: 20, 2: 20, 4: 12}, "B": {1: 24, 2: 24, 4: 20}}
"""Of the values that a thread multiplies, those whose weights are in registers, by the sequences of a block."""
FRUGAL = 40  # the same, of GPUs with less shared memory: slower, as some go to and fro

Size = tuple[int, int, int]
Argument = Tensor | int | float | None


class Kernels(Protocol):
    """The kernels of cuda_kernels.cu, compiled."""

    def launch(self, name: str, grid: Sequence[int], block: int, shared: int, arguments: Sequence[Argument]) -> None:
        """Run a kernel on so many blocks of so many threads, with so many bytes of shared memory of its own."""


class Constants(NamedTuple):
    """What the kernels are compiled for."""

    units: int
    features: int
    """0 where the input's share of the gates is given."""
    gru: bool
    rows: int
    reset_before: bool = False
    draws: bool = False
    bounded: bool = False
    narrow: bool = False
    frugal: bool = False

    def defined(self) -> dict[str, int]:
        return {
            "UNITS": self.units,
            "FEATURES": self.features,
            "GRU": int(self.gru),
            "RESET_BEFORE": int(self.reset_before),
            "DRAWS": int(self.draws),
            "BOUNDED": int(self.bounded),
            "ROWS": self.rows,
            "NARROW": int(self.narrow),
            "BLOCK": self.block,
            "SLICE_F": self.slice("F"),
            "SLICE_B": self.slice("B"),
            "HELD_F": self.held("F"),
            "HELD_B": self.held("B"),
            "STEPS": STEPS,
            "TAKERS": TAKERS,
            "TILE": TILE,
            "PRODUCERS": PRODUCERS,
        }

    @property
    def gates(self) -> int:
        return 3 if self.gru else 4

    @property
    def block(self) -> int:
        """Threads of the loops."""
        return WARP * _blocks(LANES["B"] * _blocks(self.units, 2), WARP)

    def slice(self, way: str) -> int:
        """Values that a thread multiplies, in fours: of the states, or of the gradients of the gates."""
        if way == "B" and self.reset_before:  # some of each gate
            return self.gates * 4 * _blocks(self.units, 4 * LANES[way])
        return 4 * _blocks(self.units if way == "F" else self.gates * self.units, 4 * LANES[way])

    def held(self, way: str) -> int:
        return min(max(HELD[way][self.rows], FRUGAL * self.frugal), self.slice(way))

    def shared(self, way: str) -> int:
        """Bytes for the weights that registers do not hold, and those of the inputs."""
        apart = self.slice(way) - self.held(way)
        rest = (apart if way == "F" else apart // 2) * self.block
        return 16 * (rest + (self.features + 2) * self.units)


def _blocks(of: int, size: int) -> int:
    return -(-of // size)


def compiled(constants: Constants, architecture: str, *options: str) -> tuple[bytes, str]:
    """The machine code for an architecture, such as sm_90, and what the compiler says."""
    from cuda.bindings import nvrtc

    _, program = nvrtc.nvrtcCreateProgram(SOURCE.read_bytes(), SOURCE.name.encode(), 0, [], [])
    try:
        defined = [f"-D{name}={value}" for name, value in constants.defined().items()]
        chosen = [f"--gpu-architecture={architecture}", "--std=c++17", *defined, *options]
        (error,) = nvrtc.nvrtcCompileProgram(program, len(chosen), [option.encode() for option in chosen])
        _, size = nvrtc.nvrtcGetProgramLogSize(program)
        said = bytes(size)
        nvrtc.nvrtcGetProgramLog(program, said)
        log = said.rstrip(b"\0 ").decode()
        if error.value:
            raise RuntimeError(f"{SOURCE.name} could not be compiled for {architecture} ({error.name}): {log}")
        _, size = nvrtc.nvrtcGetCUBINSize(program)
        binary = bytes(size)
        nvrtc.nvrtcGetCUBIN(program, binary)
        return binary, log
    finally:
        nvrtc.nvrtcDestroyProgram(program)


@cache
def kernels(constants: Constants, device: torch.device) -> Kernels:
    """Compiled for a problem and a GPU, once a process."""
    return _OnGPU(constants, device)


class _OnGPU:
    def __init__(self, constants: Constants, device: torch.device) -> None:
        major, minor = torch.cuda.get_device_capability(device)
        binary, _ = compiled(constants, f"sm_{major}{minor}")
        from cuda.bindings import driver

        self.driver, self.device = driver, device
        self.module = self.done(driver.cuModuleLoadData(binary))
        self.context = self.done(driver.cuCtxGetCurrent())
        self.functions: dict[tuple[str, int], Any] = {}
        for name in AROUND:  # at once: some are first needed while a step is captured as a CUDA graph
            self.function(name, 0)

    def launch(self, name: str, grid: Sequence[int], block: int, shared: int, arguments: Sequence[Argument]) -> None:
        function = self.functions.get((name, shared)) or self.function(name, shared)
        packed = pack(arguments)
        where = (ctypes.c_void_p * 1)(ctypes.addressof(packed))
        stream = torch.cuda.current_stream(self.device).cuda_stream
        across, down = (*grid, 1)[:2]
        if not int(self.done(self.driver.cuCtxGetCurrent())):  # a thread, as autograd's, that has not used the GPU yet
            self.done(self.driver.cuCtxSetCurrent(self.context))
        self.done(
            self.driver.cuLaunchKernel(
                function, across, down, 1, block, 1, 1, shared, stream, ctypes.addressof(where), 0
            )
        )

    def function(self, name: str, shared: int) -> Any:
        function = self.done(self.driver.cuModuleGetFunction(self.module, name.encode()))
        most = self.driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self.done(self.driver.cuFuncSetAttribute(function, most, shared))  # with what is not dynamic, above 48 KB
        self.functions[name, shared] = function
        return function

    def done(self, said: tuple[Any, ...]) -> Any:
        error, *results = said
        if error.value:
            raise RuntimeError(f"the GPU's driver refused the kernels of {SOURCE.name}: {error.name}")
        return results[0] if results else None


def pack(arguments: Sequence[Argument]) -> ctypes.Array[ctypes.c_int64]:
    """As a kernel's structure has them: 64 bits each."""
    words = [
        argument.data_ptr() if isinstance(argument, Tensor)
        else _bits(argument) if isinstance(argument, float)
        else argument or 0
        for argument in arguments
    ]  # fmt: skip
    return (ctypes.c_int64 * len(words))(*words)


@lru_cache
def _bits(number: float) -> int:
    return int.from_bytes(struct.pack("d", number), sys.byteorder)
