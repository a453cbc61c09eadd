"""The forms a batch may have, those that ``torch.nn.LSTM`` takes, and how results get the form of their input."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from skiprnn.problem import transformed

Input = Tensor | PackedSequence
"""(T, B, D), (B, T, D), or (T, D) of one sequence; or a packed batch. Numbers of a table's rows: without D."""
Lengths = Tensor | Sequence[int]


class Layout(NamedTuple):
    """The form of an input; inside, everything is (T, B, ...)."""

    batch_first: bool = False
    batched: bool = True
    packed: PackedSequence | None = None
    lengths: Tensor | None = None  # of the packed sequences, in the order in which they are packed

    def steps(self, tensor: Tensor) -> Input:
        """What has values for every step, (T, B, ...), in the form of the input."""
        if self.packed is not None and self.lengths is not None:
            data = pack_padded_sequence(tensor, self.lengths).data
            return PackedSequence(data, *self.packed[1:])
        if not self.batched:
            return tensor.squeeze(1)
        return tensor.transpose(0, 1) if self.batch_first else tensor

    def taken(self, tensors: Sequence[Tensor], gate: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """A state's tensors, (layers, B, H), and those of its gate, (..., B), as the caller has them, made so."""
        order = None if self.packed is None else self.packed.sorted_indices
        return self._reordered(tensors, gate, order, Tensor.unsqueeze)

    def given(self, tensors: Sequence[Tensor], gate: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The reverse of ``taken``."""
        order = None if self.packed is None else self.packed.unsorted_indices
        return self._reordered(tensors, gate, order, Tensor.squeeze)

    def _reordered(
        self, tensors: Sequence[Tensor], gate: Sequence[Tensor], order: Tensor | None, one: Any
    ) -> tuple[list[Tensor], list[Tensor]]:
        if not self.batched:
            return [one(tensor, 1) for tensor in tensors], [one(tensor, -1) for tensor in gate]
        if order is None:
            return list(tensors), list(gate)
        return [tensor[:, order] for tensor in tensors], [tensor[..., order] for tensor in gate]


def lay_out(
    input: Input, lengths: Lengths | None, input_size: int, batch_first: bool, table: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Layout]:
    """An input as (T, B, D), or of numbers of a table's rows as (T, B, 1), its lengths, and its form.

    Raises:
        ValueError: the input, its lengths or the table have the wrong shape, type or range.
    """
    if table is not None:
        return _lay_out_numbers(input, lengths, input_size, batch_first, table)
    if isinstance(input, PackedSequence):
        _check(input.data, input_size, (2,), "the data of a packed input must be (N, D)")
        if lengths is not None:
            raise ValueError("a packed input has lengths of its own; pass no others")
        return _unpacked(input, input.data)
    layout = "(B, T, D)" if batch_first else "(T, B, D)"
    _check(input, input_size, (2, 3), f"input must be {layout}, or (T, D) of one sequence,")
    return _of_tensor(input, lengths, batch_first, "(T, D)")


def _lay_out_numbers(
    input: Input, lengths: Lengths | None, input_size: int, batch_first: bool, table: Tensor
) -> tuple[Tensor, Tensor | None, Layout]:
    if table.dim() != 2 or table.shape[1] != input_size or not table.is_floating_point():
        raise ValueError(
            f"a table must be (N, D) floating point numbers with D = {input_size}, got {table.dtype} of shape"
            f" {tuple(table.shape)}"
        )
    if isinstance(input, PackedSequence):
        _check_numbers(input.data, table, (1,), "the data of a packed input must be (N,)")
        if lengths is not None:
            raise ValueError("a packed input has lengths of its own; pass no others")
        return _unpacked(input, input.data[:, None])
    layout = "(B, T)" if batch_first else "(T, B)"
    _check_numbers(input, table, (1, 2), f"input must be {layout}, or (T,) of one sequence,")
    return _of_tensor(input[..., None], lengths, batch_first, "(T,)")


def _unpacked(packed: PackedSequence, data: Tensor) -> tuple[Tensor, Tensor, Layout]:
    x, lengths = pad_packed_sequence(PackedSequence(data, packed.batch_sizes))
    return x, lengths.to(x.device), Layout(packed=packed, lengths=lengths)


def _of_tensor(
    input: Tensor, lengths: Lengths | None, batch_first: bool, single: str
) -> tuple[Tensor, Tensor | None, Layout]:
    if input.dim() == 3:
        x = input.transpose(0, 1) if batch_first else input
        return x, None if lengths is None else _checked(lengths, x), Layout(batch_first)
    if lengths is not None:
        raise ValueError(f"lengths are those of a batch; of one sequence, {single}, pass the steps that count")
    return input[:, None], None, Layout(batched=False)


def _check_numbers(numbers: Tensor, table: Tensor, dimensions: tuple[int, ...], wanted: str) -> None:
    if numbers.dim() not in dimensions or numbers.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"{wanted} int32 or int64 numbers of the table's rows, got {numbers.dtype} of shape {tuple(numbers.shape)}"
        )
    if numbers.device != table.device:
        raise ValueError(f"numbers and table must lie on one device, got {numbers.device} and {table.device}")
    if not numbers.is_cpu or not numbers.numel() or torch.compiler.is_compiling() or transformed():
        return
    lowest, highest = (int(bound) for bound in numbers.aminmax())
    if not 0 <= lowest <= highest < len(table):
        raise ValueError(f"numbers must be those of the table's {len(table)} rows, got {lowest}..{highest}")


def _check(input: Tensor, input_size: int, dimensions: tuple[int, ...], wanted: str) -> None:
    if input.dim() not in dimensions or input.shape[-1] != input_size:
        raise ValueError(f"{wanted} with D = {input_size}, got shape {tuple(input.shape)}")
    if not input.is_floating_point():
        raise ValueError(f"input must be floating point, got {input.dtype}")


def _checked(lengths: Lengths, x: Tensor) -> Tensor:
    steps, batch, _ = x.shape
    if not isinstance(lengths, Tensor):
        lengths = torch.tensor(lengths, device="cpu")
    if lengths.shape != (batch,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(f"lengths must be ({batch},) integers, got {lengths.dtype} of shape {tuple(lengths.shape)}")
    checked = batch and lengths.is_cpu and not torch.compiler.is_compiling()
    if checked and not 0 <= lengths.min() <= lengths.max() <= steps:
        raise ValueError(f"lengths must lie in 0..{steps}, got {int(lengths.min())}..{int(lengths.max())}")
    return lengths.to(x.device)
