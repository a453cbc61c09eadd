"""The event loop of one layer on a GPU, forward and backward: one program owns some sequences from start to end.

Nothing is exchanged between programs. A program does the next update of all its sequences at once, each at its own step,
with the recurrent weights in its processor's own memory where they fit, so that time follows the updates. Tensors are
(ROWS,), one entry a sequence, (ROWS, HP), or (ROWS, WINDOW, HP); HP is the number of units, H, padded to a power of 2.
Padding stays zero. Gates come in torch's order, and all of them are computed in float32.
"""

from typing import Any

import triton
import triton.language as tl


@triton.jit
def forward(
    x: Any,  # inputs, or their share of the gates if D is 0; steps and sequences x_t and x_b apart
    w_x: Any, b_x: Any, w_h: Any, b_h: Any, w_p: Any, b_p: Any,
    h: Any, c: Any, p: Any, acc: Any,  # before the first step; what is left after the last is written back
    ends: Any,  # (B,), lengths
    output: Any, update_gate: Any,  # (T, B, H), (T, B) zeros
    c_at: Any, p_at: Any, a_at: Any,  # (T, B, H), (T, B), (T, B), written at updates, if SAVES; a: the sum that opened
    T: Any, B: Any, x_t: Any, x_b: Any,
    H: tl.constexpr, HP: tl.constexpr, D: tl.constexpr, GRU: tl.constexpr, SAVES: tl.constexpr,
    RESIDENT: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    unit = tl.arange(0, HP)
    exists = row < B
    there = exists[:, None] & (unit < H)[None, :]
    own = row[:, None] * H + unit[None, :]
    h_now = tl.load(h + own, mask=there, other=0.0)
    c_now = h_now if GRU else tl.load(c + own, mask=there, other=0.0)
    p_now = tl.load(p + row, mask=exists, other=0.0)
    end = tl.load(ends + row, mask=exists, other=0).to(tl.int32)
    w_gate = tl.load(w_p + unit, mask=unit < H, other=0.0)
    b_gate = tl.load(b_p)
    bias_0, bias_1, bias_2, bias_3 = _vectors(b_h, unit, H, GRU)
    if RESIDENT:
        v_0, v_1, v_2, v_3 = _matrices(w_h, H, HP, GRU, True, PRECISION)

    start = tl.full((ROWS,), 0, tl.int32)
    stop = tl.where(exists, T, 0)
    t, total = _next_update(p_now, tl.load(acc + row, mask=exists, other=0.0), start - 1, end)
    _fill(output, h_now, row, there, unit, start, tl.where(t < end, t, stop), B, H)
    while tl.max((t < end).to(tl.int32), 0) > 0:
        on = t < end
        place = t.to(tl.int64) * B + row
        if not RESIDENT:
            v_0, v_1, v_2, v_3 = _matrices(w_h, H, HP, GRU, True, PRECISION)
        x_0, x_1, x_2, x_3 = _input_gates(x, t.to(tl.int64) * x_t + row * x_b, on, w_x, b_x, unit, H, D, GRU)
        h_0 = _product(h_now, v_0, PRECISION) + bias_0
        h_1 = _product(h_now, v_1, PRECISION) + bias_1
        h_2 = _product(h_now, v_2, PRECISION) + bias_2
        if GRU:
            _, z, n = _gru(x_0, x_1, x_2, h_0, h_1, h_2)
            h_new = (1 - z) * n + z * h_now
            c_new = h_new
        else:
            h_3 = _product(h_now, v_3, PRECISION) + bias_3
            i, f, g, o = _lstm(x_0 + h_0, x_1 + h_1, x_2 + h_2, x_3 + h_3)
            c_new = f * c_now + i * g
            h_new = o * _tanh(c_new)
        h_now = tl.where(on[:, None], h_new, h_now)
        c_now = tl.where(on[:, None], c_new, c_now)
        p_now = tl.where(on, _sigmoid(tl.sum(c_now * w_gate[None, :], 1) + b_gate), p_now)

        tl.store(update_gate + place, 1.0, mask=on)
        if SAVES:
            tl.store(p_at + place, p_now, mask=on)
            tl.store(a_at + place, total, mask=on)
            if not GRU:
                tl.store(c_at + place[:, None] * H + unit[None, :], c_now, mask=there & on[:, None])
        later, total = _next_update(p_now, tl.where(on, 0.0, total), t, end)
        _fill(output, h_now, row, there, unit, t, tl.where(on, tl.where(later < end, later, stop), t), B, H)
        t = tl.where(on, later, t)

    tl.store(h + own, h_now, mask=there)
    if not GRU:
        tl.store(c + own, c_now, mask=there)
    tl.store(p + row, p_now, mask=exists)
    tl.store(acc + row, total, mask=exists)


@triton.jit
def backward(
    x: Any, w_x: Any, b_x: Any, w_h: Any, w_p: Any, b_p: Any,
    # One row for each sequence's first state and one for the state after each of its updates:
    hidden: Any,  # (R, G*H), the state's share of the gates
    h_rows: Any, c_rows: Any, p_rows: Any, a_rows: Any, t_rows: Any,  # t: the update's step, -1 for the first state
    first: Any, count: Any,  # (B,), number of a sequence's first row, and of its updates
    acc: Any, ends: Any,
    grad_output: Any, grad_gate: Any,
    grad_h: Any, grad_c: Any, grad_p: Any, grad_acc: Any,  # after the last step; those before the first written back
    grad_gates: Any,  # (R, 4*H), of the update that led to the row; GRU: r, z, n and the hidden share of n
    grad_logit: Any,  # (R,)
    B: Any, x_t: Any, x_b: Any, go_t: Any, go_b: Any, gg_t: Any, gg_b: Any,
    H: tl.constexpr, HP: tl.constexpr, D: tl.constexpr, GRU: tl.constexpr,
    HAS_OUTPUT: tl.constexpr, HAS_GATE: tl.constexpr, RESIDENT: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, WINDOW: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    unit = tl.arange(0, HP)
    exists = row < B
    there = exists[:, None] & (unit < H)[None, :]
    own = row[:, None] * H + unit[None, :]
    G_h = tl.load(grad_h + own, mask=there, other=0.0)
    G_c = G_h if GRU else tl.load(grad_c + own, mask=there, other=0.0)
    gp = tl.load(grad_p + row, mask=exists, other=0.0)
    ga = tl.load(grad_acc + row, mask=exists, other=0.0)
    acc_first = tl.load(acc + row, mask=exists, other=0.0)
    last = tl.load(ends + row, mask=exists, other=0).to(tl.int32)  # the step after the segment
    first_row = tl.load(first + row, mask=exists, other=0)
    j = tl.load(count + row, mask=exists, other=-1).to(tl.int32)  # the update that began the segment; 0 is none
    w_gate = tl.load(w_p + unit, mask=unit < H, other=0.0)
    b_gate = tl.load(b_p)
    window = tl.arange(0, WINDOW)
    if RESIDENT:
        v_0, v_1, v_2, v_3 = _matrices(w_h, H, HP, GRU, False, PRECISION)

    while tl.max(j, 0) >= 0:
        on = j >= 0
        at = first_row + j
        mine = there & on[:, None]
        cells = at[:, None] * H + unit[None, :]
        t = tl.load(t_rows + at, mask=on, other=0).to(tl.int32)
        p_now = tl.load(p_rows + at, mask=on, other=0.0)
        h_now = tl.load(h_rows + cells, mask=mine, other=0.0)
        c_now = h_now if GRU else tl.load(c_rows + cells, mask=mine, other=0.0)

        # The skipped steps of the segment, WINDOW of them at a time, falling.
        s_0, s_1, s_2, s_3 = _hidden_gates(hidden, at, mine, unit, H, GRU)
        acc_now = tl.where(j == 0, acc_first, 0.0)
        behind = last - 1
        while tl.max(tl.where(on, behind - t, 0), 0) > 0:
            step = behind[:, None] - window[None, :]
            skipped = on[:, None] & (step > t[:, None])
            far = step.to(tl.int64)
            x_0, x_1, x_2, x_3 = _input_gates(
                x, far * x_t + (row * x_b)[:, None], skipped, w_x, b_x, unit, H, D, GRU
            )
            if GRU:
                _, z, n = _gru(x_0, x_1, x_2, s_0[:, None, :], s_1[:, None, :], s_2[:, None, :])
                moved = (1 - z) * (n - h_now[:, None, :])  # candidate minus state
                logit = tl.sum((h_now[:, None, :] + moved) * w_gate, 2)
            else:
                i, f, g, o = _lstm(
                    x_0 + s_0[:, None, :], x_1 + s_1[:, None, :], x_2 + s_2[:, None, :], x_3 + s_3[:, None, :]
                )
                c_new = f * c_now[:, None, :] + i * g
                logit = tl.sum(c_new * w_gate, 2)
                moved = o * _tanh(c_new) - h_now[:, None, :]
            if HAS_OUTPUT:  # the gradient of the state grows by each step's, going back
                arriving = tl.load(
                    grad_output + (far * go_t + (row * go_b)[:, None])[:, :, None] + unit,
                    mask=skipped[:, :, None] & (unit < H), other=0.0,
                ).to(tl.float32)  # fmt: skip
                gain = tl.sum(moved * (G_h[:, None, :] + tl.cumsum(arriving, 1)), 2)
                G_h += tl.sum(arriving, 1)
            else:
                gain = tl.sum(moved * G_h[:, None, :], 2)
            if not GRU:
                gain += tl.sum((c_new - c_now[:, None, :]) * G_c[:, None, :], 2)
            if HAS_GATE:
                gain += tl.load(grad_gate + far * gg_t + (row * gg_b)[:, None], mask=skipped, other=0.0)
            kept = acc_now[:, None] + (step - t[:, None]).to(tl.float32) * p_now[:, None]  # the sum
            keep = tl.where(skipped, 1 - kept, 1.0)
            risen = tl.where(skipped, _sigmoid(logit + b_gate) - p_now[:, None], 0.0)
            gain = tl.where(skipped, gain, 0.0)
            for k in tl.static_range(WINDOW):
                this = (window == k)[None, :]
                ga = (
                    tl.sum(tl.where(this, keep, 0.0), 1) * ga
                    + tl.sum(tl.where(this, risen, 0.0), 1) * gp
                    + tl.sum(tl.where(this, gain, 0.0), 1)
                )
                gp = tl.where(tl.sum((this & skipped).to(tl.int32), 1) > 0, gp + ga, gp)
            behind -= WINDOW

        # The update that began it.
        on = j > 0
        mine = there & on[:, None]
        before = at - 1
        h_old = tl.load(h_rows + (before[:, None] * H + unit[None, :]), mask=mine, other=0.0)
        q_0, q_1, q_2, q_3 = _hidden_gates(hidden, before, mine, unit, H, GRU)
        far = t.to(tl.int64)
        x_0, x_1, x_2, x_3 = _input_gates(x, far * x_t + row * x_b, on, w_x, b_x, unit, H, D, GRU)
        if HAS_OUTPUT:
            G_h += tl.load(
                grad_output + (far * go_t + row * go_b)[:, None] + unit[None, :], mask=mine, other=0.0
            ).to(tl.float32)  # fmt: skip
        gu = gp * (p_now - tl.load(p_rows + before, mask=on, other=0.0))
        gu -= ga * tl.load(a_rows + at, mask=on, other=0.0)
        gu += tl.sum(tl.where(mine, (h_now - h_old) * G_h, 0.0), 1)
        if HAS_GATE:
            gu += tl.load(grad_gate + far * gg_t + row * gg_b, mask=on, other=0.0)
        d_logit = tl.where(on, gp * p_now * (1 - p_now), 0.0)
        tl.store(grad_logit + at, d_logit, mask=j >= 0)
        if not RESIDENT:
            v_0, v_1, v_2, v_3 = _matrices(w_h, H, HP, GRU, False, PRECISION)
        if GRU:
            grad_new = G_h + d_logit[:, None] * w_gate[None, :]
            r, z, n = _gru(x_0, x_1, x_2, q_0, q_1, q_2)
            d_2 = tl.where(mine, grad_new * (1 - z) * (1 - n * n), 0.0)
            d_0 = d_2 * q_2 * r * (1 - r)
            d_1 = tl.where(mine, grad_new * (h_old - n) * z * (1 - z), 0.0)
            d_3 = d_2 * r
            G_old = (
                grad_new * z
                + _product(d_0, v_0, PRECISION)
                + _product(d_1, v_1, PRECISION)
                + _product(d_3, v_2, PRECISION)
            )
        else:
            c_old = tl.load(c_rows + (before[:, None] * H + unit[None, :]), mask=mine, other=0.0)
            gu += tl.sum(tl.where(mine, (c_now - c_old) * G_c, 0.0), 1)
            i, f, g, o = _lstm(x_0 + q_0, x_1 + q_1, x_2 + q_2, x_3 + q_3)
            tanh_c = _tanh(c_now)
            grad_new = G_c + d_logit[:, None] * w_gate[None, :] + G_h * o * (1 - tanh_c * tanh_c)
            d_0 = tl.where(mine, grad_new * g * i * (1 - i), 0.0)
            d_1 = tl.where(mine, grad_new * c_old * f * (1 - f), 0.0)
            d_2 = tl.where(mine, grad_new * i * (1 - g * g), 0.0)
            d_3 = tl.where(mine, G_h * tanh_c * o * (1 - o), 0.0)
            G_c = tl.where(on[:, None], grad_new * f, G_c)
            G_old = (
                _product(d_0, v_0, PRECISION)
                + _product(d_1, v_1, PRECISION)
                + _product(d_2, v_2, PRECISION)
                + _product(d_3, v_3, PRECISION)
            )
        G_h = tl.where(on[:, None], G_old, G_h)
        place = at[:, None] * (4 * H) + unit[None, :]
        written = there & (j >= 0)[:, None]
        tl.store(grad_gates + place, d_0, mask=written)
        tl.store(grad_gates + place + H, d_1, mask=written)
        tl.store(grad_gates + place + 2 * H, d_2, mask=written)
        tl.store(grad_gates + place + 3 * H, d_3, mask=written)
        gp = tl.where(on, gu, gp)
        ga = tl.where(on, gu, ga)
        last = tl.where(on, t, last)
        j -= 1

    tl.store(grad_h + own, G_h, mask=there)
    if not GRU:
        tl.store(grad_c + own, G_c, mask=there)
    tl.store(grad_p + row, gp, mask=exists)
    tl.store(grad_acc + row, ga, mask=exists)


@triton.jit
def _next_update(p, total, t, end):  # type: ignore[no-untyped-def]
    """The first step after t at which the gate opens, with the sum at it; or ``end``, with the last step's sum."""
    t += 1
    shut = t < end
    while tl.max(shut.to(tl.int32), 0) > 0:
        for _ in tl.static_range(8):
            total = tl.where(shut, total + tl.where(p <= 1 - total, p, 1 - total), total)
            shut = shut & ~(total > 0.5)
            t = tl.where(shut, t + 1, t)
            shut = shut & (t < end)
    return t, total


@triton.jit
def _fill(output, h, row, there, unit, t, until, B, H):  # type: ignore[no-untyped-def]
    """Write h as the output of the steps from t to ``until``, exclusive."""
    for k in range(tl.max(until - t, 0)):
        place = (t + k).to(tl.int64) * B + row
        tl.store(output + (place[:, None] * H + unit[None, :]), h, mask=there & (t + k < until)[:, None])


@triton.jit
def _input_gates(x, place, wanted, w_x, b_x, unit, H: tl.constexpr, D: tl.constexpr, GRU: tl.constexpr):  # type: ignore[no-untyped-def]
    """The input's share of the gates where ``wanted``: (..., HP) each, four of an LSTM, three of a GRU."""
    start = tl.expand_dims(place, -1)
    there = tl.expand_dims(wanted, -1) & (unit < H)
    if D == 0:
        q_0 = tl.load(x + (start + unit), mask=there, other=0.0).to(tl.float32)
        q_1 = tl.load(x + (start + unit + H), mask=there, other=0.0).to(tl.float32)
        q_2 = tl.load(x + (start + unit + 2 * H), mask=there, other=0.0).to(tl.float32)
        q_3 = q_2
        if not GRU:
            q_3 = tl.load(x + (start + unit + 3 * H), mask=there, other=0.0).to(tl.float32)
    else:
        q_0, q_1, q_2, q_3 = _vectors(b_x, unit, H, GRU)
        for d in tl.static_range(D):
            value = tl.load(x + (start + d), mask=tl.expand_dims(wanted, -1), other=0.0).to(tl.float32)
            q_0 = q_0 + value * tl.load(w_x + (unit * D + d), mask=unit < H, other=0.0)
            q_1 = q_1 + value * tl.load(w_x + ((unit + H) * D + d), mask=unit < H, other=0.0)
            q_2 = q_2 + value * tl.load(w_x + ((unit + 2 * H) * D + d), mask=unit < H, other=0.0)
            if not GRU:
                q_3 = q_3 + value * tl.load(w_x + ((unit + 3 * H) * D + d), mask=unit < H, other=0.0)
    return q_0, q_1, q_2, q_3


@triton.jit
def _hidden_gates(hidden, at, there, unit, H: tl.constexpr, GRU: tl.constexpr):  # type: ignore[no-untyped-def]
    """The state's share of the gates in some rows: (ROWS, HP) each, four of an LSTM, three of a GRU."""
    start = at[:, None] * ((3 if GRU else 4) * H) + unit[None, :]
    q_0 = tl.load(hidden + start, mask=there, other=0.0).to(tl.float32)
    q_1 = tl.load(hidden + start + H, mask=there, other=0.0).to(tl.float32)
    q_2 = tl.load(hidden + start + 2 * H, mask=there, other=0.0).to(tl.float32)
    q_3 = q_2
    if not GRU:
        q_3 = tl.load(hidden + start + 3 * H, mask=there, other=0.0).to(tl.float32)
    return q_0, q_1, q_2, q_3


@triton.jit
def _vectors(bias, unit, H: tl.constexpr, GRU: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each gate's part of a (G*H,) vector, (HP,)."""
    v_0 = tl.load(bias + unit, mask=unit < H, other=0.0)
    v_1 = tl.load(bias + unit + H, mask=unit < H, other=0.0)
    v_2 = tl.load(bias + unit + 2 * H, mask=unit < H, other=0.0)
    v_3 = v_2
    if not GRU:
        v_3 = tl.load(bias + unit + 3 * H, mask=unit < H, other=0.0)
    return v_0, v_1, v_2, v_3


@triton.jit
def _matrices(weight, H: tl.constexpr, HP: tl.constexpr, GRU: tl.constexpr, FLIP: tl.constexpr, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each gate's part of a (G*H, H) matrix, (HP, HP), transposed if FLIP."""
    v_0 = _matrix(weight, H, HP, FLIP, PRECISION)
    v_1 = _matrix(weight + H * H, H, HP, FLIP, PRECISION)
    v_2 = _matrix(weight + 2 * H * H, H, HP, FLIP, PRECISION)
    v_3 = v_2
    if not GRU:
        v_3 = _matrix(weight + 3 * H * H, H, HP, FLIP, PRECISION)
    return v_0, v_1, v_2, v_3


@triton.jit
def _matrix(weight, H: tl.constexpr, HP: tl.constexpr, FLIP: tl.constexpr, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    down, across = tl.arange(0, HP)[:, None], tl.arange(0, HP)[None, :]
    place = across * H + down if FLIP else down * H + across
    matrix = tl.load(weight + place, mask=(down < H) & (across < H), other=0.0)
    return matrix.to(tl.bfloat16) if PRECISION == "bf16" else matrix


@triton.jit
def _product(a, matrix, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    if PRECISION == "bf16":
        return tl.dot(a.to(tl.bfloat16), matrix)
    return tl.dot(a, matrix, input_precision=PRECISION)


@triton.jit
def _lstm(i, f, g, o):  # type: ignore[no-untyped-def]
    return _sigmoid(i), _sigmoid(f), _tanh(g), _sigmoid(o)


@triton.jit
def _gru(x_r, x_z, x_n, h_r, h_z, h_n):  # type: ignore[no-untyped-def]
    r = _sigmoid(x_r + h_r)
    return r, _sigmoid(x_z + h_z), _tanh(x_n + r * h_n)


@triton.jit
def _sigmoid(x):  # type: ignore[no-untyped-def]
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):  # type: ignore[no-untyped-def]
    return 2 / (1 + tl.exp(-2 * x)) - 1
