"""The event loop of one layer on a GPU, forward and backward: one program owns some sequences from start to end.

Nothing is exchanged between programs. A program does the next update of all its sequences at once, each at its own
step, with the recurrent weights in registers where they fit, so that time follows the updates. Tensors are (ROWS,), one
entry a sequence, (ROWS, HP), or (ROWS, WINDOW, HP); HP is the number of units, H, padded to a power of 2. Padding stays
zero. Gates come in torch's order and are computed in float32.
"""

import triton
import triton.language as tl


@triton.jit
def forward(
    x,  # inputs, or their share of the gates if D is 0; steps and sequences x_t and x_b apart
    w_x, b_x, w_h, b_h, w_p, b_p,
    h, c, p, acc,  # before the first step; what is left after the last is written back
    ends,  # (B,), lengths
    output, update_gate,  # (T, B, H), (T, B) zeros
    c_at, p_at, a_at,  # (T, B, H), (T, B), (T, B), written at updates, if SAVES; a: the sum that opened
    T, B, x_t, x_b,
    H: tl.constexpr, HP: tl.constexpr, D: tl.constexpr, GRU: tl.constexpr, SAVES: tl.constexpr,
    HELD: tl.constexpr,  # how many of the gates' recurrent matrices are kept in registers
    PRECISION: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    unit = tl.arange(0, HP)
    exists = row < B
    there = exists[:, None] & (unit < H)[None, :]
    own = row[:, None] * H + unit[None, :]
    h_now = tl.load(h + own, mask=there, other=0.0)
    c_now = h_now if GRU else tl.load(c + own, mask=there, other=0.0)
    p_now = tl.load(p + row, mask=exists, other=0.0)
    end = tl.load(ends + row, mask=exists, other=0).to(tl.int32)
    b_gate = tl.load(b_p)
    v_0 = _held(w_h, 0, H, HP, False, HELD, PRECISION)
    v_1 = _held(w_h, 1, H, HP, False, HELD, PRECISION)
    v_2 = _held(w_h, 2, H, HP, False, HELD, PRECISION)
    v_3 = _held(w_h, 3, H, HP, False, HELD, PRECISION)

    start = tl.full((ROWS,), 0, tl.int32)
    stop = tl.where(exists, T, 0)
    t, total = _next_update(p_now, tl.load(acc + row, mask=exists, other=0.0), start - 1, end)
    _fill(output, h_now, row, there, unit, start, tl.where(t < end, t, stop), B, H)
    while tl.max((t < end).to(tl.int32), 0) > 0:
        on = t < end
        place = t.to(tl.int64) * B + row
        x_0, x_1, x_2, x_3 = _input_gates(x, t.to(tl.int64) * x_t + row * x_b, on, w_x, b_x, unit, H, D, GRU)
        h_0 = _product(h_now, v_0, h + row * H, exists, w_h, 0, H, HP, False, HELD, PRECISION) + _vector(
            b_h, 0, unit, H
        )
        h_1 = _product(h_now, v_1, h + row * H, exists, w_h, 1, H, HP, False, HELD, PRECISION) + _vector(
            b_h, 1, unit, H
        )
        h_2 = _product(h_now, v_2, h + row * H, exists, w_h, 2, H, HP, False, HELD, PRECISION) + _vector(
            b_h, 2, unit, H
        )
        if GRU:
            _, z, n = _gru(x_0, x_1, x_2, h_0, h_1, h_2)
            h_new = (1 - z) * n + z * h_now
            c_new = h_new
        else:
            h_3 = _product(h_now, v_3, h + row * H, exists, w_h, 3, H, HP, False, HELD, PRECISION) + _vector(
                b_h, 3, unit, H
            )
            i, f, g, o = _lstm(x_0 + h_0, x_1 + h_1, x_2 + h_2, x_3 + h_3)
            c_new = f * c_now + i * g
            h_new = o * _tanh(c_new)
        h_now = tl.where(on[:, None], h_new, h_now)
        c_now = tl.where(on[:, None], c_new, c_now)
        p_now = tl.where(on, _sigmoid(tl.sum(c_now * _vector(w_p, 0, unit, H)[None, :], 1) + b_gate), p_now)
        if not (HELD == 4 or (GRU and HELD == 3)):
            tl.debug_barrier()
            tl.store(h + own, h_now, mask=there)
            tl.debug_barrier()

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
    x, w_x, b_x, w_h, w_p, b_p,
    # One row for each sequence's first state and one for the state after each of its updates:
    hidden,  # (R, G*H), the state's share of the gates
    h_rows, c_rows, p_rows, a_rows, t_rows,  # t: the update's step, -1 for the first state
    first, count,  # (B,), number of a sequence's first row, and of its updates
    acc, ends,
    grad_output, grad_gate,
    grad_h, grad_c, grad_p, grad_acc,  # after the last step; those before the first written back
    grad_gates,  # (R, 4*H), of the update that led to the row; GRU: r, z, n and the hidden share of n
    grad_logit,  # (R,)
    bound,  # of the gate's gradient
    B, x_t, x_b, go_t, go_b, gg_t, gg_b,
    H: tl.constexpr, HP: tl.constexpr, D: tl.constexpr, GRU: tl.constexpr,
    HAS_OUTPUT: tl.constexpr, HAS_GATE: tl.constexpr, HELD: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    unit = tl.arange(0, HP)
    exists = row < B
    there = exists[:, None] & (unit < H)[None, :]
    own = row[:, None] * H + unit[None, :]
    G_h = tl.load(grad_h + own, mask=there, other=0.0)
    G_c = G_h if GRU else tl.load(grad_c + own, mask=there, other=0.0)
    gp = tl.load(grad_p + row, mask=exists, other=0.0)
    ga = tl.load(grad_acc + row, mask=exists, other=0.0)
    last = tl.load(ends + row, mask=exists, other=0).to(tl.int32)  # the step after the segment
    j = tl.load(count + row, mask=exists, other=-1).to(tl.int32)  # the update that began the segment; 0 is none
    window = tl.arange(0, WINDOW)
    v_0 = _held(w_h, 0, H, HP, True, HELD, PRECISION)
    v_1 = _held(w_h, 1, H, HP, True, HELD, PRECISION)
    v_2 = _held(w_h, 2, H, HP, True, HELD, PRECISION)
    v_3 = _held(w_h, 3, H, HP, True, HELD, PRECISION)

    while tl.max(j, 0) >= 0:
        on = j >= 0
        at = tl.load(first + row, mask=exists, other=0) + j
        mine = there & on[:, None]
        cells = at[:, None] * H + unit[None, :]
        t = tl.load(t_rows + at, mask=on, other=0).to(tl.int32)
        p_now = tl.load(p_rows + at, mask=on, other=0.0)
        h_now = tl.load(h_rows + cells, mask=mine, other=0.0)
        c_now = h_now if GRU else tl.load(c_rows + cells, mask=mine, other=0.0)

        # The skipped steps of the segment, WINDOW of them at a time, falling.
        s_0, s_1, s_2, s_3 = _hidden_gates(hidden, at, mine, unit, H, GRU)
        acc_now = tl.load(acc + row, mask=j == 0, other=0.0)
        behind = last - 1
        while tl.max(tl.where(on, behind - t, 0), 0) > 0:
            step = behind[:, None] - window[None, :]
            skipped = on[:, None] & (step > t[:, None])
            far = step.to(tl.int64)
            x_0, x_1, x_2, x_3 = _input_gates(x, far * x_t + (row * x_b)[:, None], skipped, w_x, b_x, unit, H, D, GRU)
            if GRU:
                _, z, n = _gru(x_0, x_1, x_2, s_0[:, None, :], s_1[:, None, :], s_2[:, None, :])
                moved = (1 - z) * (n - h_now[:, None, :])  # candidate minus state
                logit = tl.sum((h_now[:, None, :] + moved) * _vector(w_p, 0, unit, H), 2)
            else:
                i, f, g, o = _lstm(
                    x_0 + s_0[:, None, :], x_1 + s_1[:, None, :], x_2 + s_2[:, None, :], x_3 + s_3[:, None, :]
                )
                c_new = f * c_now[:, None, :] + i * g
                logit = tl.sum(c_new * _vector(w_p, 0, unit, H), 2)
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
            kept = tl.where(skipped, kept, 0.0)
            risen = tl.where(skipped, _sigmoid(logit + tl.load(b_p)) - p_now[:, None], 0.0)
            gain = tl.where(skipped, gain, 0.0)
            for k in tl.static_range(WINDOW):
                this = (window == k)[None, :]
                gu = tl.sum(tl.where(this, gain, 0.0), 1) + tl.sum(tl.where(this, risen, 0.0), 1) * gp
                ga += _bounded(gu - tl.sum(tl.where(this, kept, 0.0), 1) * ga, bound)
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
        through_gate = d_logit[:, None] * _vector(w_p, 0, unit, H)[None, :]
        if GRU:
            grad_new = G_h + through_gate
            r, z, n = _gru(x_0, x_1, x_2, q_0, q_1, q_2)
            d_2 = tl.where(mine, grad_new * (1 - z) * (1 - n * n), 0.0)
            d_0 = d_2 * q_2 * r * (1 - r)
            d_1 = tl.where(mine, grad_new * (h_old - n) * z * (1 - z), 0.0)
            d_3 = d_2 * r
            G_old = grad_new * z
        else:
            c_old = tl.load(c_rows + (before[:, None] * H + unit[None, :]), mask=mine, other=0.0)
            gu += tl.sum(tl.where(mine, (c_now - c_old) * G_c, 0.0), 1)
            i, f, g, o = _lstm(x_0 + q_0, x_1 + q_1, x_2 + q_2, x_3 + q_3)
            tanh_c = _tanh(c_now)
            grad_new = G_c + through_gate + G_h * o * (1 - tanh_c * tanh_c)
            d_0 = tl.where(mine, grad_new * g * i * (1 - i), 0.0)
            d_1 = tl.where(mine, grad_new * c_old * f * (1 - f), 0.0)
            d_2 = tl.where(mine, grad_new * i * (1 - g * g), 0.0)
            d_3 = tl.where(mine, G_h * tanh_c * o * (1 - o), 0.0)
            G_c = tl.where(on[:, None], grad_new * f, G_c)
            G_old = tl.zeros((ROWS, HP), tl.float32)
        start = at * (4 * H)
        place = grad_gates + (start[:, None] + unit[None, :])
        written = there & (j >= 0)[:, None]
        tl.store(place, d_0, mask=written)
        tl.store(place + H, d_1, mask=written)
        tl.store(place + 2 * H, d_2, mask=written)
        tl.store(place + 3 * H, d_3, mask=written)
        if not (HELD == 4 or (GRU and HELD == 3)):
            tl.debug_barrier()
        G_old += _product(d_0, v_0, grad_gates + start, on, w_h, 0, H, HP, True, HELD, PRECISION)
        G_old += _product(d_1, v_1, grad_gates + start + H, on, w_h, 1, H, HP, True, HELD, PRECISION)
        if GRU:
            G_old += _product(d_3, v_2, grad_gates + start + 3 * H, on, w_h, 2, H, HP, True, HELD, PRECISION)
        else:
            G_old += _product(d_2, v_2, grad_gates + start + 2 * H, on, w_h, 2, H, HP, True, HELD, PRECISION)
            G_old += _product(d_3, v_3, grad_gates + start + 3 * H, on, w_h, 3, H, HP, True, HELD, PRECISION)
        G_h = tl.where(on[:, None], G_old, G_h)
        gu = _bounded(gu, bound)
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
def _bounded(x, bound):
    return tl.where(x > bound, bound, tl.where(x < -bound, -bound, x))


@triton.jit
def _next_update(p, total, t, end):
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
def _fill(output, h, row, there, unit, t, until, B, H):
    """Write h as the output of the steps from t to ``until``, exclusive."""
    for k in range(tl.max(until - t, 0)):
        place = (t + k).to(tl.int64) * B + row
        tl.store(output + (place[:, None] * H + unit[None, :]), h, mask=there & (t + k < until)[:, None])


@triton.jit
def _input_gates(x, place, wanted, w_x, b_x, unit, H: tl.constexpr, D: tl.constexpr, GRU: tl.constexpr):
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
        q_0, q_1, q_2 = _vector(b_x, 0, unit, H), _vector(b_x, 1, unit, H), _vector(b_x, 2, unit, H)
        q_3 = q_2 if GRU else _vector(b_x, 3, unit, H)
        for d in tl.static_range(D):
            value = tl.load(x + (start + d), mask=tl.expand_dims(wanted, -1), other=0.0).to(tl.float32)
            column = w_x + unit * D + d
            q_0 = q_0 + value * tl.load(column, mask=unit < H, other=0.0)
            q_1 = q_1 + value * tl.load(column + H * D, mask=unit < H, other=0.0)
            q_2 = q_2 + value * tl.load(column + 2 * H * D, mask=unit < H, other=0.0)
            if not GRU:
                q_3 = q_3 + value * tl.load(column + 3 * H * D, mask=unit < H, other=0.0)
    return q_0, q_1, q_2, q_3


@triton.jit
def _hidden_gates(hidden, at, there, unit, H: tl.constexpr, GRU: tl.constexpr):
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
def _vector(vectors, gate: tl.constexpr, unit, H: tl.constexpr):
    """A gate's part of a (G*H,) vector, (HP,)."""
    return tl.load(vectors + (unit + gate * H), mask=unit < H, other=0.0)


@triton.jit
def _held(
    weight,
    gate: tl.constexpr,
    H: tl.constexpr,
    HP: tl.constexpr,
    FLIP: tl.constexpr,
    HELD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A gate's matrix, if it is one of those HELD in registers."""
    return _matrix(weight, gate, 0, HP, H, HP, FLIP, PRECISION) if gate < HELD else 0


@triton.jit
def _matrix(
    weight,
    gate: tl.constexpr,
    begin,
    WIDTH: tl.constexpr,
    H: tl.constexpr,
    HP: tl.constexpr,
    FLIP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """WIDTH columns, from ``begin`` on, of a gate's (HP, HP) matrix, transposed if FLIP."""
    down, across = tl.arange(0, HP)[:, None], (begin + tl.arange(0, WIDTH))[None, :]
    place = across * H + down if FLIP else down * H + across
    matrix = tl.load(weight + (gate * H * H + place), mask=(down < H) & (across < H), other=0.0)
    return matrix.to(tl.bfloat16) if PRECISION == "bf16" else matrix


@triton.jit
def _product(
    a,
    held,
    at,
    wanted,
    weight,
    gate: tl.constexpr,
    H: tl.constexpr,
    HP: tl.constexpr,
    FLIP: tl.constexpr,
    HELD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A gate's matrix times (ROWS, HP) values: ``held`` times ``a`` if it is HELD, else both are read in parts.

    Units come first in the product, since the tensor cores take 8 sequences at least, but 16 of what comes first.
    """
    if gate < HELD:
        if PRECISION == "bf16":
            product = tl.dot(held, tl.trans(a).to(tl.bfloat16))
        else:
            product = tl.dot(held, tl.trans(a), input_precision=PRECISION)
    else:
        WIDTH: tl.constexpr = 64 if PRECISION == "tf32" else 32  # columns at a time
        product = tl.zeros((HP, a.shape[0]), tl.float32)
        for begin in range(0, HP, WIDTH):
            some = begin + tl.arange(0, WIDTH)
            part = tl.load(at[None, :] + some[:, None], mask=wanted[None, :] & (some < H)[:, None], other=0.0)
            matrix = _matrix(weight, gate, begin, WIDTH, H, HP, FLIP, PRECISION)
            if PRECISION == "bf16":
                product = tl.dot(matrix, part.to(tl.bfloat16), product)
            else:
                product = tl.dot(matrix, part, product, input_precision=PRECISION)
    return tl.trans(product)


@triton.jit
def _lstm(i, f, g, o):
    return _sigmoid(i), _sigmoid(f), _tanh(g), _sigmoid(o)


@triton.jit
def _gru(x_r, x_z, x_n, h_r, h_z, h_n):
    r = _sigmoid(x_r + h_r)
    return r, _sigmoid(x_z + h_z), _tanh(x_n + r * h_n)


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):
    return 2 / (1 + tl.exp(-2 * x)) - 1
