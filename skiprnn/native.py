"""The compiled CPU path, native.cpp in float32: training of one layer, and inference of stacks.

The extension is built when the package is installed, if there is a C++ compiler; without it, ``events.py`` runs in
torch operations. ``trains`` and ``infers`` say which it is; a library that was built but cannot be loaded is named in a
warning. Forward passes share sequences out among torch's threads.
"""

import ctypes
import mmap
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from skiprnn.cells import Cell, GRUCell, GRUResetBeforeCell, LayerWeights, LSTMCell

KINDS: dict[type[Cell], int] = {LSTMCell: 0, GRUCell: 1, GRUResetBeforeCell: 2}
_UNITS = 16  # of a vector in native.cpp


class _Problem(ctypes.Structure):
    """``Problem`` of native.cpp, field by field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("T", "B", "D", "H", "gru")),
        *((name, ctypes.c_int64) for name in ("x_t", "x_b", "go_t", "go_b", "gg_t", "gg_b")),
        *((name, ctypes.c_void_p) for name in ("x", "lengths", "w_x", "w_h", "bias_x", "bias_h", "w_p")),
        ("b_p", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("h", "c", "p", "acc", "tape_h", "tape_c", "tape_p", "tape_a", "tape_t")),
        *((name, ctypes.c_void_p) for name in ("counts", "output", "update_gate", "grad_output", "grad_gate")),
        *(
            (name, ctypes.c_void_p)
            for name in ("w_h_back", "w_x_back", "grad_h", "grad_c", "grad_p", "grad_acc", "grad_x")
        ),
    ]


class _Sums(ctypes.Structure):
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
    for structure in (_Problem, _Sums, _Layer, _Stack, _Inference, _Follower):
        layout = layout * 1009 + ctypes.sizeof(structure)
    if built_for != layout:
        warnings.warn("skiprnn's compiled CPU path is of another version; install skiprnn again", stacklevel=2)
        return None
    return library


LIBRARY = _load()


def trains(cell: Cell, num_layers: int, tensors: tuple[Tensor, ...]) -> bool:
    """Whether ``NativeEvents`` computes this: one LSTM or GRU (reset_after) layer, float32, CPU, no autocast."""
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
        self.units = HP = _padded(H)
        weights = [LayerWeights(*(tensor.contiguous() for tensor in layer)) for layer in layers]
        w_p = update_weight.contiguous()
        raw_layers, packed_layers = (_Layer * len(layers))(), (_Layer * len(layers))()
        floats = HP
        for raw, layer in zip(raw_layers, weights, strict=True):
            raw.D = D = layer.weight_ih.shape[1]
            _point(raw, w_x=layer.weight_ih, w_h=layer.weight_hh, bias_x=layer.bias_ih, bias_h=layer.bias_hh)
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
        _point(self._structure, h=states[0], c=states[-1], p=p)
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
    _point(problem, **tensors, update_gate=update_gate)
    LIBRARY.skiprnn_infer(ctypes.byref(problem), ctypes.c_int64(min(torch.get_num_threads(), B)))  # type: ignore[union-attr]
    return output, update_gate, p, acc, [tensor[k] for k in range(len(layers)) for tensor in last]


def refuse_double_backward() -> None:
    """Raise where autograd wants to differentiate a hand-written backward pass, by ``create_graph=True``."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the event-driven engine cannot be differentiated twice; make the module with engine='reference' for that"
        )


class NativeEvents(torch.autograd.Function):
    """The function of ``events._Events``, for one layer."""

    @staticmethod
    def forward(
        ctx: Any,
        cell: Cell,
        lengths: Tensor | None,
        x: Tensor,
        update_weight: Tensor,
        update_bias: Tensor,
        p: Tensor,
        acc: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        x = x if x.stride(2) == 1 else x.contiguous()
        T, B, _ = x.shape
        H = len(update_weight)
        ends = x.new_full((B,), T, dtype=torch.int64) if lengths is None else lengths.long().clamp(0, T).contiguous()
        states = [state.detach().contiguous().clone() for state in tensors[: cell.num_states]]
        weights = LayerWeights(*tensors[cell.num_states :])
        tape = _Tape.blank(cell, x, H)
        p, acc = p.detach().clone(), acc.detach().clone()
        output, update_gate = _reserve(T * B * H, huge_pages=True).view(T, B, H), x.new_zeros(T, B)
        problem, _kept = _describe(cell, x, ends, weights, update_weight, update_bias, tape)
        _point(problem, h=states[0], c=states[-1], p=p, acc=acc, output=output, update_gate=update_gate)
        LIBRARY.skiprnn_forward(ctypes.byref(problem), ctypes.c_int64(_workers(B)))  # type: ignore[union-attr]
        ctx.save_for_backward(x, update_weight, update_bias, ends, *weights, *tape)
        ctx.cell = cell
        ctx.set_materialize_grads(False)
        return output, update_gate, p, acc, *states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        x, update_weight, update_bias, ends, *tensors = ctx.saved_tensors
        cell: Cell = ctx.cell
        weights, tape = LayerWeights(*tensors[:4]), _Tape(*tensors[4:])
        T, B, D = x.shape
        H = len(update_weight)
        HP, DP = _padded(H), _padded(D)
        GP = cell.num_gates * HP
        grad_output, grad_gate, grad_p, grad_acc, *grad_states = grads
        states = [x.new_zeros(B, H) if g is None else g.contiguous().clone() for g in grad_states]
        gp, ga = (x.new_zeros(B) if g is None else g.contiguous().clone() for g in (grad_p, grad_acc))
        grad_x = x.new_zeros(T, B, D) if ctx.needs_input_grad[2] else None

        problem, _kept = _describe(cell, x, ends, weights, update_weight, update_bias, tape)
        w_h_back = _pad_gates(weights.weight_hh, cell.num_gates, HP).view(GP, HP // _UNITS, _UNITS).transpose(0, 1)
        w_x_back = _pad_gates(weights.weight_ih, cell.num_gates, DP).view(GP, DP // _UNITS, _UNITS).transpose(0, 1)
        w_h_back, w_x_back = w_h_back.contiguous(), w_x_back.contiguous()
        _point(
            problem, w_h_back=w_h_back, w_x_back=w_x_back, grad_h=states[0], grad_c=states[-1], grad_p=gp, grad_acc=ga
        )
        if grad_x is not None:
            _point(problem, grad_x=grad_x)
        if grad_output is not None:
            grad_output = grad_output if grad_output.stride(2) == 1 else grad_output.contiguous()
            problem.go_t, problem.go_b = grad_output.stride()[:2]
            _point(problem, grad_output=grad_output)
        if grad_gate is not None:
            problem.gg_t, problem.gg_b = grad_gate.stride()
            _point(problem, grad_gate=grad_gate)

        workers = _workers(B)
        shapes = {"w_x": (GP, DP), "w_h": (GP, HP), "bias_x": (GP,), "bias_h": (GP,), "w_p": (HP,), "b_p": (1,)}
        sums = {name: x.new_zeros(workers, *shape) for name, shape in shapes.items()}
        parts = (_Sums * workers)()
        for w in range(workers):
            _point(parts[w], **{name: part[w] for name, part in sums.items()})
        LIBRARY.skiprnn_backward(ctypes.byref(problem), parts, ctypes.c_int64(workers))  # type: ignore[union-attr]
        shut = saturated(tape.p.view(B, -1)[:, 0], tape.a.view(B, -1)[:, 0], ends)
        gp, ga = gp.masked_fill(shut, 0), ga.masked_fill(shut, 0)
        total = {name: part.sum(0) for name, part in sums.items()}
        unpadded = {
            name: total[name].view(cell.num_gates, HP, -1)[:, :H, :size].reshape(cell.num_gates * H, -1)
            for name, size in (("w_x", D), ("w_h", H), ("bias_x", 1), ("bias_h", 1))
        }
        grad_weights = (unpadded["w_x"], unpadded["w_h"], unpadded["bias_x"][:, 0], unpadded["bias_h"][:, 0])
        return None, None, grad_x, total["w_p"][:H], total["b_p"], gp, ga, *states, *grad_weights


def saturated(p: Tensor, acc: Tensor, ends: Tensor) -> Tensor:
    """Whether the first sum is 1 whatever p and acc, so that they get no gradient: only states made by hand are so."""
    return (p > 1 - acc) & (ends > 0)


class _Tape(NamedTuple):
    """What forward leaves for backward: memory for an update at every step, of which only what is used gets real."""

    h: Tensor
    c: Tensor
    p: Tensor
    a: Tensor
    t: Tensor
    counts: Tensor

    @classmethod
    def blank(cls, cell: Cell, x: Tensor, H: int) -> Self:
        T, B, _ = x.shape
        rows, HP = B * (T + 1), _padded(H)
        h = _reserve(rows * HP)
        c = _reserve(rows * HP) if cell.num_states == 2 else h
        return cls(h, c, _reserve(rows), _reserve(rows), _reserve(rows), x.new_zeros(B, dtype=torch.int32))


def _reserve(floats: int, *, huge_pages: bool = False) -> Tensor:
    """Zeros that, where they are many, take memory only where they are touched, page by page."""
    if floats < 2**18:
        return torch.zeros(floats, dtype=torch.float32, device="cpu")
    memory = mmap.mmap(-1, 4 * floats, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0))
    if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a hint, which not every kernel takes
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32)


def _describe(
    cell: Cell,
    x: Tensor,
    ends: Tensor,
    weights: LayerWeights,
    update_weight: Tensor,
    update_bias: Tensor,
    tape: _Tape,
) -> tuple[_Problem, list[Tensor]]:
    """The problem as both passes need it, and the tensors it points to."""
    T, B, D = x.shape
    H = len(update_weight)
    gates = cell.num_gates
    tensors = {
        "x": x,
        "lengths": ends,
        "w_x": _packed(weights.weight_ih, gates),
        "w_h": _packed(weights.weight_hh, gates),
        "bias_x": _packed(weights.bias_ih[:, None], gates),
        "bias_h": _packed(weights.bias_hh[:, None], gates),
        "w_p": _packed(update_weight[:, None], 1),
        "tape_h": tape.h, "tape_c": tape.c, "tape_p": tape.p, "tape_a": tape.a, "tape_t": tape.t, "counts": tape.counts,
    }  # fmt: skip
    problem = _Problem(
        T=T, B=B, D=D, H=H, gru=int(type(cell) is GRUCell), x_t=x.stride(0), x_b=x.stride(1), b_p=update_bias.item()
    )
    return _point(problem, **tensors), list(tensors.values())


def _point(structure: Any, **tensors: Tensor) -> Any:
    for name, tensor in tensors.items():
        setattr(structure, name, tensor.data_ptr())
    return structure


def _packed(weight: Tensor, gates: int) -> Tensor:
    """(G*H, K) -> (G*HP/16, K, 16)."""
    weight = weight.detach().contiguous()
    H, K = weight.shape[0] // gates, weight.shape[1]
    out = weight.new_empty(gates * _padded(H) // _UNITS, K, _UNITS)
    LIBRARY.skiprnn_pack(weight.data_ptr(), gates, H, K, out.data_ptr())  # type: ignore[union-attr]
    return out


def _pad_gates(weight: Tensor, gates: int, columns: int) -> Tensor:
    """(G*H, N) -> (G*HP, columns), zeros added."""
    H = weight.shape[0] // gates
    shaped = weight.detach().view(gates, H, -1)
    return pad(shaped, (0, columns - shaped.shape[2], 0, _padded(H) - H)).reshape(gates * _padded(H), columns)


def _padded(size: int) -> int:
    return -(-size // _UNITS) * _UNITS


def _workers(batch: int) -> int:
    blocks = -(-batch // int(LIBRARY.skiprnn_block()))  # type: ignore[union-attr]
    return min(torch.get_num_threads(), blocks)
