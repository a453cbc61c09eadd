"""What ``cuda``'s loops leave at updates, as rows, and the products over all rows.

Where the host knows how many rows there are, products are the library's. Where it must not wait to know, as while a
step is captured as a CUDA graph, there is room for an update at every step, and kernels that read the number on the
device do the products, in float32.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from skiprnn.cells import Cell, LayerWeights, LSTMCell
from skiprnn.engines.cuda_kernels import FUSED, PRODUCERS, STEPS, TAKERS, TILE, Constants, Kernels

BLOCKS = 512  # of a product over rows that are counted on the device, about


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

    def by_weights(self, grad_gates: Tensor, reset_used: Tensor | None, features: int) -> tuple[Tensor, ...]:
        """Gradients by weight_ih, weight_hh, bias_ih and bias_hh, of those by the gates' shares, (R, gradients, H)."""
        if self.counted:
            return self._by_weights_counted(grad_gates, reset_used, features)
        rows, H, gates = self.rows, self.constants.units, self.constants.gates * self.constants.units
        flat = grad_gates.flatten(1)
        before = 2 * H if self.constants.reset_before else gates
        by_input = self._sums(flat, gates, rows.x, features, input_columns=True)
        by_state = [self._sums(flat, before, rows.h, H, earlier=1)]
        if reset_used is not None:
            by_state.append(self._sums(flat[:, before:], H, reset_used, H))
        both = torch.cat(by_state)
        return by_input[:, :-1], both[:, :-1], by_input[:, -1], both[:, -1]

    def by_gate(self, grad_logit: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients by update_weight and update_bias, of that by the gate's logit, (R,)."""
        if self.counted:
            return grad_logit @ self.rows.c, grad_logit.sum()[None]
        sums = self._sums(grad_logit[:, None], 1, self.rows.c, self.constants.units)[0]
        return sums[:-1], sums[-1:]

    def of_input(self, grad_gates: Tensor) -> Tensor:
        """Of the gradients by the gates' shares those of the input's, (R, N*H): a GRU that resets after has two n."""
        if grad_gates.shape[1] == self.constants.gates:
            return grad_gates.flatten(1)
        return torch.cat([grad_gates[:, :2], grad_gates[:, 3:]], 1).flatten(1)

    def _by_weights_counted(self, grad_gates: Tensor, reset_used: Tensor | None, features: int) -> tuple[Tensor, ...]:
        rows, H = self.rows, self.constants.units
        of_state, of_input = grad_gates[:, : self.constants.gates].flatten(1), self.of_input(grad_gates)
        both = of_input.T @ rows.x
        bias_ih = both[:, features] if features <= FUSED else of_input.sum(0)
        by_h = of_state if reset_used is None else of_state[:, : 2 * H]
        weight_hh = by_h[1:].T @ rows.h[:-1]  # a row's update began from the row before
        if reset_used is not None:
            weight_hh = torch.cat([weight_hh, of_state[:, 2 * H :].T @ reset_used])
        bias_hh = bias_ih if grad_gates.shape[1] == self.constants.gates else of_state.sum(0)
        return both[:, :features], weight_hh, bias_ih, bias_hh

    def _of_states(self, weight: Tensor, bias: Tensor) -> Tensor:
        """rows.h @ weight.T + bias, (R, N)."""
        rows, columns = self.rows, len(weight)
        if self.counted:
            return torch.addmm(bias, rows.h, weight.T)
        across = -(-columns // TILE)
        lanes = max(BLOCKS // across, 1)
        out = rows.h.new_empty(len(rows.h), columns)
        self.kernels.launch("shares", (across, lanes), PRODUCERS, 0, (
            rows.h, weight, bias, out, rows.first, rows.updates, len(rows.first), columns, lanes,
        ))  # fmt: skip
        return out

    def _sums(
        self, left: Tensor, columns: int, right: Tensor, width: int, *, earlier: int = 0, input_columns: bool = False
    ) -> Tensor:
        """left[:, :columns].T @ right[:, :width] over all rows, and the sums of left beside it, (columns, width + 1).

        ``earlier``: of right the row so many before. ``input_columns``: of left the gradients of the input's share.
        """
        rows = self.rows
        down, across = -(-columns // TILE), -(-(width + 1) // TILE)
        lanes = max(BLOCKS // (down * across), 1)
        parts = left.new_empty(lanes, columns, width + 1)
        left_out = 2 * self.constants.units if input_columns and left.shape[1] > columns else columns
        self.kernels.launch("sums", (down * across, lanes), PRODUCERS, 0, (
            left, right, parts, rows.first, rows.updates, len(rows.first), columns, left_out, width, earlier,
            left.stride(0), right.stride(0), across, lanes,
        ))  # fmt: skip
        return parts.sum(0)
