"""What ``cuda``'s loops leave at updates, as rows, and the products over all rows.

Where the host knows how many rows there are, products are the library's. Where it must not wait to know, as while a
step is captured as a CUDA graph, there is room for an update at every step, and kernels that read the number on the
device do the products, in float32 whatever torch is told of TF32.
"""

from functools import lru_cache
from typing import NamedTuple, Self

import torch
from torch import Tensor

from skiprnn.cells import Cell, LayerWeights, LSTMCell
from skiprnn.engines.cuda_kernels import FUSED, PRODUCERS, STEPS, TAKERS, TILE, Constants, Kernels

BLOCKS = 3  # of a product over rows that the device counts, which a multiprocessor runs beside each other


class Stored(NamedTuple):
    """What forward leaves for backward: the start, and at updates what they made, in places of every step."""

    p: Tensor  # (B,)
    acc: Tensor  # (B,)
    h: Tensor  # (B, H)
    c: Tensor  # (B, H)
    gates_at: Tensor  # (2, T, B), p, and the sum that opened, or CUT
    h_at: Tensor  # (T, B, H)
    c_at: Tensor  # (T, B, H), of a GRU h_at
    steps: Tensor  # (T + 1, B) int32, how many updates there were, and from there their steps


class Rows(NamedTuple):
    """The same, a row for each sequence's first state and one for the state after each of its updates, in order."""

    t: Tensor  # (R,) int32, the update's step; -1 for a first state, and where there is no row
    p: Tensor  # (R,)
    a: Tensor  # (R,)
    h: Tensor  # (R, H)
    c: Tensor  # (R, H), of a GRU h
    x: Tensor  # (R, D + 1), the sample used and a one, or (R, D)
    first: Tensor  # (B,) int64, row of the first state
    updates: Tensor  # (B,) int32, how many

    @classmethod
    def of(cls, stored: Stored, x: Tensor, cell: Cell, kernels: Kernels, counted: list[int] | None) -> Self:
        """Bring them into rows, with room for so many updates of each sequence, or for one at every step."""
        (T, B, D), H = x.shape, stored.h.shape[1]
        rows, most = (T * B + B, T) if counted is None else (sum(counted) + B, max(counted))
        t = torch.empty(rows, dtype=torch.int32, device=x.device)
        is_gru, ones = not isinstance(cell, LSTMCell), int(D <= FUSED)
        p, a = x.new_empty(2, rows)
        h = x.new_empty(rows, H)
        taken = cls(
            t if counted is not None else t.fill_(-1), p, a, h, h if is_gru else torch.empty_like(h),
            x.new_empty(rows, D + ones), torch.empty(B, dtype=torch.int64, device=x.device), stored.steps[0],
        )  # fmt: skip
        kernels.launch("take", (B, most // STEPS + 1), TAKERS, 0, (
            *stored, x, taken.first, *taken[:6], T, B, D, ones, *x.stride()[:2], stored.h.stride(0), stored.c.stride(0),
        ))  # fmt: skip
        return taken

    def sequences(self) -> Tensor:
        """The sequence of each row, (R,) int64."""
        rows = torch.arange(len(self.t), device=self.t.device)
        return torch.searchsorted(self.first, rows, right=True) - 1


class Products(NamedTuple):
    """The products over rows."""

    rows: Rows
    kernels: Kernels
    constants: Constants
    counted: bool
    """Whether each row is one; otherwise the device knows how many are."""

    def states_share(
        self, weights: LayerWeights, shares: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The states' share of the gates in all rows. Of a GRU that resets before, r's and z's; n's at all steps; and
        r⊙h of the updates, as rows.
        """
        rows, H = self.rows, self.constants.units
        if not self.constants.reset_before:
            return self._of_states(weights.weight_hh, weights.bias_hh), None, None
        (T, B), of_n = shares.shape[:2], slice(2 * H, None)
        hidden = self._of_states(weights.weight_hh[: 2 * H], weights.bias_hh[: 2 * H])
        states, used = hidden.new_empty(T * B, H), torch.empty_like(rows.h)
        self.kernels.launch("reset", (B, T // STEPS + 1), TAKERS, 0, (
            shares, weights.weight_ih, weights.bias_ih, hidden, rows.h, rows.t, rows.first, rows.updates, lengths,
            states, used, T, B, *shares.stride()[:2],
        ))  # fmt: skip
        return hidden, torch.addmm(weights.bias_hh[of_n], states, weights.weight_hh[of_n].T), used

    def by_weights(
        self, grad_gates: Tensor, of_input: Tensor | None, reset_used: Tensor | None, features: int
    ) -> tuple[Tensor, ...]:
        """Gradients by weight_ih, weight_hh, bias_ih and bias_hh.

        Args:
            grad_gates: by the gates' shares, (R, gradients, H).
            of_input: of these the input's, as the method gives them; needed where rows are counted.
            reset_used: of a GRU that resets before, from ``states_share``.
            features: of a sample.
        """
        rows, H, states = self.rows, self.constants.units, self.constants.gates * self.constants.units
        flat, before, after = grad_gates.flatten(1), states if reset_used is None else 2 * H, slice(2 * H, 3 * H)
        if of_input is not None and self.counted:
            both = of_input.T @ rows.x
            weight_ih, bias_ih = both[:, :features], both[:, features] if features <= FUSED else of_input.sum(0)
            weight_hh = flat[1:, :before].T @ rows.h[:-1]  # a row's update began from the row before
            by_reset = None if reset_used is None else flat[:, after].T @ reset_used
            bias_hh = bias_ih if flat.shape[1] == states else flat[:, :states].sum(0)
        else:
            whole = self._sums(flat, rows.h, rows.x[:, :features], earlier=1)
            inputs = whole if len(whole) == states else torch.cat([whole[: 2 * H], whole[3 * H :]])
            weight_ih, bias_ih = inputs[:, H:-1], inputs[:, -1]
            weight_hh, bias_hh = whole[:before, :H], whole[:states, -1]
            by_reset = None if reset_used is None else self._sums(flat[:, after], reset_used)[:, :-1]
        return weight_ih, weight_hh if by_reset is None else torch.cat([weight_hh, by_reset]), bias_ih, bias_hh

    def by_gate(self, grad_logit: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients by update_weight and update_bias, of that by the gate's logit, (R,)."""
        if self.counted:
            return grad_logit @ self.rows.c, grad_logit.sum()[None]
        sums = self._sums(grad_logit[:, None], self.rows.c)[0]
        return sums[:-1], sums[-1:]

    def of_input(self, grad_gates: Tensor) -> Tensor:
        """Of the gradients by the gates' shares those of the input's, (R, N*H): a GRU that resets after has two n."""
        if grad_gates.shape[1] == self.constants.gates:
            return grad_gates.flatten(1)
        return torch.cat([grad_gates[:, :2], grad_gates[:, 3:]], 1).flatten(1)

    def _of_states(self, weight: Tensor, bias: Tensor) -> Tensor:
        """rows.h @ weight.T + bias, (R, N)."""
        rows, columns = self.rows, len(weight)
        if self.counted:
            return torch.addmm(bias, rows.h, weight.T)
        across = -(-columns // TILE)
        lanes = max(_blocks(rows.h.device) // across, 1)
        out = rows.h.new_empty(len(rows.h), columns)
        self.kernels.launch("shares", (across, lanes), PRODUCERS, 0, (
            rows.h, weight, bias, out, rows.first, rows.updates, len(rows.first), columns, lanes,
        ))  # fmt: skip
        return out

    def _sums(self, left: Tensor, right: Tensor, beside: Tensor | None = None, *, earlier: int = 0) -> Tensor:
        """left.T @ [right, beside, 1] over all rows, of right the row before where ``earlier`` is 1.

        left is (R, N), right (R, K), beside (R, M), the result (N, K + M + 1).
        """
        rows, columns = self.rows, left.shape[1]
        widths = right.shape[1], 0 if beside is None else beside.shape[1]
        down, across = -(-columns // TILE), -(-(sum(widths) + 1) // TILE)
        lanes = max(_blocks(left.device) // (down * across), 1)
        parts = left.new_empty(lanes, columns, sum(widths) + 1)
        self.kernels.launch("sums", (down * across, lanes), PRODUCERS, 0, (
            left, right, beside, parts, rows.first, rows.updates, len(rows.first), columns, *widths, earlier,
            left.stride(0), right.stride(0), 0 if beside is None else beside.stride(0), across, lanes,
        ))  # fmt: skip
        return parts.sum(0)


@lru_cache
def _blocks(device: torch.device) -> int:
    """How many blocks of a product a GPU runs at a time."""
    return BLOCKS * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
