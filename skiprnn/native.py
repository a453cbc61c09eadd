"""The compiled CPU path, native.cpp in float32: inference of stacks, and what training in native_events.py builds on.

The extension is built when the package is installed, if there is a C++ compiler; without it, ``events.py`` runs in
torch operations. ``trains`` and ``infers`` say which it is; a library that was built but cannot be loaded is named in a
warning. Forward passes share sequences out among torch's threads.
"""

import ctypes
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from skiprnn.cells import Cell, GRUCell, GRUResetBeforeCell, LayerWeights, LSTMCell

KINDS: dict[type[Cell], int] = {LSTMCell: 0, GRUCell: 1, GRUResetBeforeCell: 2}
UNITS = 16  # of a vector in native.cpp


class Problem(ctypes.Structure):
    """``Problem`` of native.cpp, field by field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("T", "B", "D", "H", "gru")),
        *((name, ctypes.c_int64) for name in ("x_t", "x_b", "go_t", "go_b", "gg_t", "gg_b")),
        *((name, ctypes.c_void_p) for name in ("x", "lengths", "w_x", "w_h", "bias_x", "bias_h", "w_p")),
        *((name, ctypes.c_float) for name in ("b_p", "gate_grad_clip")),
        *((name, ctypes.c_void_p) for name in ("h", "c", "p", "acc", "tape_h", "tape_c", "tape_p", "tape_a", "tape_t")),
        *((name, ctypes.c_void_p) for name in ("counts", "output", "update_gate", "grad_output", "grad_gate")),
        *(
            (name, ctypes.c_void_p)
            for name in ("w_h_back", "w_x_back", "grad_h", "grad_c", "grad_p", "grad_acc", "grad_x")
        ),
    ]


class Sums(ctypes.Structure):
    """``Sums`` of native.cpp."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("w_x", "w_h", "bias_x", "bias_h", "w_p", "b_p")]


class _Layer(ctypes.Structure):
    """``Layer`` of native.cpp."""

    _fields_ = [("D", ctypes.c_int64), *((name, ctypes.c_void_p) for name in ("w_x", "w_h", "bias_x", "bias_h"))]


class _Stack(ctypes.Structure):
    """``Stack`` of native.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("kind", "layers", "H")),
        ("layer", ctypes.POINTER(_Layer)),
        ("w_p", ctypes.c_void_p),
        ("b_p", ctypes.c_float),
    ]


class _Inference(ctypes.Structure):
    """``Inference`` of native.cpp."""

    _fields_ = [
        ("stack", ctypes.POINTER(_Stack)),
        *((name, ctypes.c_int64) for name in ("T", "B", "x_t", "x_b")),
        *((name, ctypes.c_void_p) for name in ("x", "lengths", "h", "c", "p", "acc", "output", "update_gate")),
    ]


class _Follower(ctypes.Structure):
    """``Follower`` of native.cpp."""

    _fields_ = [
        ("stack", ctypes.POINTER(_Stack)),
        *((name, ctypes.c_void_p) for name in ("h", "c", "p")),
        *((name, ctypes.c_int64) for name in ("skips", "used", "last")),
    ]


def _load() -> ctypes.CDLL | None:
    spec = find_spec("skiprnn._native")
    if spec is None or spec.origin is None:
        return None
    try:
        library = ctypes.CDLL(spec.origin)
        library.skiprnn_layout.restype = library.skiprnn_block.restype = ctypes.c_int64
        integer, pointer = ctypes.c_int64, ctypes.c_void_p
        library.skiprnn_pack.argtypes = [pointer, integer, integer, integer, pointer]
        library.skiprnn_skipped_steps.argtypes = [pointer, pointer, integer, pointer]
        library.skiprnn_advance.argtypes = [pointer, pointer, integer, integer]
        library.skiprnn_follow.argtypes = [pointer, pointer, integer, integer]
        built_for = library.skiprnn_layout()
    except (OSError, AttributeError) as error:
        warnings.warn(f"skiprnn's compiled CPU path cannot be loaded, torch runs in its place: {error}", stacklevel=2)
        return None
    layout = 0
    for structure in (Problem, Sums, _Layer, _Stack, _Inference, _Follower):
        layout = layout * 1009 + ctypes.sizeof(structure)
    if built_for != layout:
        warnings.warn("skiprnn's compiled CPU path is of another version; install skiprnn again", stacklevel=2)
        return None
    return library


LIBRARY = _load()


def trains(cell: Cell, num_layers: int, tensors: tuple[Tensor, ...]) -> bool:
    """Whether ``native_events`` computes this: one LSTM or GRU (reset_after) layer, float32, CPU, no autocast."""
    return _has_backward(cell, num_layers) and _computes(tensors)


def infers(cell: Cell, num_layers: int, tensors: tuple[Tensor, ...]) -> bool:
    """Whether ``infer``, which runs one sequence after the other, is the fastest way to do without gradients."""
    steps, batch, _ = tensors[0].shape
    most = 3 if _has_backward(cell, num_layers) else 8  # as measured on 1 to 8 sequences a thread
    if batch > most * torch.get_num_threads() or type(cell) not in KINDS or not _computes(tensors):
        return False
    return steps * batch >= 8 or sum(weight.numel() for weight in tensors[1:]) < 500_000  # packing weights pays off


def streams(cell: Cell, parameters: tuple[Tensor, ...]) -> bool:
    """Whether a ``Follower`` runs a stack with these parameters."""
    return type(cell) in KINDS and _computes(parameters)


def counts(p: Tensor, acc: Tensor) -> bool:
    """Whether ``skipped_steps`` and ``advance`` count for these probabilities and sums."""
    fits = all(t.dtype is torch.float32 and t.is_cpu for t in (p, acc))
    return LIBRARY is not None and fits and p.dim() == 1 and p.shape == acc.shape


def _has_backward(cell: Cell, num_layers: int) -> bool:
    return num_layers == 1 and type(cell) in (LSTMCell, GRUCell)


def _computes(tensors: tuple[Tensor, ...]) -> bool:
    return (
        LIBRARY is not None
        and tensors[0].numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and all(t.dtype is torch.float32 and t.is_cpu for t in tensors)
    )


class PackedStack:
    """A stack's weights as native.cpp wants them, copied when this is made."""

    def __init__(self, cell: Cell, layers: Sequence[LayerWeights], update_weight: Tensor, update_bias: Tensor) -> None:
        H = len(update_weight)
        self.units = HP = padded(H)
        weights = [LayerWeights(*(tensor.contiguous() for tensor in layer)) for layer in layers]
        w_p = update_weight.contiguous()
        raw_layers, packed_layers = (_Layer * len(layers))(), (_Layer * len(layers))()
        floats = HP
        for raw, layer in zip(raw_layers, weights, strict=True):
            raw.D = D = layer.weight_ih.shape[1]
            point(raw, w_x=layer.weight_ih, w_h=layer.weight_hh, bias_x=layer.bias_ih, bias_h=layer.bias_hh)
            floats += cell.num_gates * HP * (D + H + 2)
        sizes = {"kind": KINDS[type(cell)], "layers": len(layers), "H": H}
        raw_stack = _Stack(**sizes, layer=raw_layers, w_p=w_p.data_ptr(), b_p=update_bias.item())
        self.structure = _Stack(layer=packed_layers)
        memory = w_p.new_empty(floats)
        LIBRARY.skiprnn_pack_stack(  # type: ignore[union-attr]
            ctypes.byref(raw_stack), ctypes.byref(self.structure), ctypes.c_void_p(memory.data_ptr())
        )
        self._kept = packed_layers, memory  # what the structure points to


class Follower:
    """One sequence through a packed stack, its samples coming bit by bit."""

    def __init__(self, stack: PackedStack, states: list[Tensor], p: Tensor) -> None:
        """Update ``states``, (num_layers, stack.units) each, and ``p``, (1,), in place: contiguous, float32, CPU."""
        self._kept = stack, states, p
        self._structure = _Follower(stack=ctypes.pointer(stack.structure))
        self._address = ctypes.addressof(self._structure)
        point(self._structure, h=states[0], c=states[-1], p=p)
        self._follow = LIBRARY.skiprnn_follow  # type: ignore[union-attr]

    def take(self, samples: Tensor, skips: int) -> tuple[int, int, int]:
        """Take samples (n, D), one at least being used; the first ``skips`` and those the gate skips are not read.

        Returns:
            How many were used, which was the last, and how many after all of them will be skipped.
        """
        samples = samples if samples.stride(1) == 1 else samples.contiguous()
        structure = self._structure
        structure.skips = skips
        self._follow(self._address, samples.data_ptr(), samples.stride(0), len(samples))
        return structure.used, structure.last, structure.skips


def skipped_steps(p: Tensor, acc: Tensor) -> Tensor:
    """``clock.skipped_steps`` in float32 on the CPU."""
    p, acc, steps = p.contiguous(), acc.contiguous(), p.new_empty(p.shape, dtype=torch.int64)
    LIBRARY.skiprnn_skipped_steps(p.data_ptr(), acc.data_ptr(), len(p), steps.data_ptr())  # type: ignore[union-attr]
    return steps


def advance(p: Tensor, acc: Tensor, steps: int) -> Tensor:
    """``clock.advance`` in float32 on the CPU."""
    p, acc = p.contiguous(), acc.clone(memory_format=torch.contiguous_format)
    LIBRARY.skiprnn_advance(p.data_ptr(), acc.data_ptr(), len(p), steps)  # type: ignore[union-attr]
    return acc


def infer(
    cell: Cell,
    layers: Sequence[LayerWeights],
    lengths: Tensor | None,
    x: Tensor,
    update_weight: Tensor,
    update_bias: Tensor,
    p: Tensor,
    acc: Tensor,
    states: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """The forward pass for inference: output, update_gate, p, acc and states, shaped as they came."""
    x = x if x.stride(2) == 1 else x.contiguous()
    T, B, _ = x.shape
    ends = x.new_full((B,), T, dtype=torch.int64) if lengths is None else lengths.long().clamp(0, T).contiguous()
    p, acc = p.detach().clone(), acc.detach().clone()
    last = [torch.stack(list(states[k :: cell.num_states])).detach() for k in range(cell.num_states)]  # (L, B, H) each
    output, update_gate = x.new_empty(T, B, len(update_weight)), x.new_zeros(T, B)
    stack = PackedStack(cell, layers, update_weight, update_bias)
    problem = _Inference(stack=ctypes.pointer(stack.structure), T=T, B=B, x_t=x.stride(0), x_b=x.stride(1))
    tensors = {"x": x, "lengths": ends, "h": last[0], "c": last[-1], "p": p, "acc": acc, "output": output}
    point(problem, **tensors, update_gate=update_gate)
    LIBRARY.skiprnn_infer(ctypes.byref(problem), ctypes.c_int64(min(torch.get_num_threads(), B)))  # type: ignore[union-attr]
    return output, update_gate, p, acc, [tensor[k] for k in range(len(layers)) for tensor in last]


def point(structure: Any, **tensors: Tensor) -> Any:
    for name, tensor in tensors.items():
        setattr(structure, name, tensor.data_ptr())
    return structure


def packed(weight: Tensor, gates: int) -> Tensor:
    """(G*H, K) -> (G*HP/16, K, 16)."""
    weight = weight.detach().contiguous()
    H, K = weight.shape[0] // gates, weight.shape[1]
    out = weight.new_empty(gates * padded(H) // UNITS, K, UNITS)
    LIBRARY.skiprnn_pack(weight.data_ptr(), gates, H, K, out.data_ptr())  # type: ignore[union-attr]
    return out


def padded(size: int) -> int:
    return -(-size // UNITS) * UNITS
