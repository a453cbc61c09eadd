"""The event loop of one layer on a GPU, forward and backward: one program owns some sequences from start to end.

Nothing is exchanged between programs. A program does the next update of all its sequences at once, each at its own
step, so that time follows the updates. Tensors are (ROWS,), one entry a sequence, (ROWS, HP), or (ROWS, WINDOW, HP); HP
is the number of units, H, padded to a power of 2. Padding stays zero. Gates come in torch's order, as a tuple, and are
computed in float32.

Products with the recurrent weights are float32 multiply-adds, for which the weights are laid out with a row for each
unit that is read (padded, so that four are loaded at once), some of them in registers; or, going forward, bfloat16 on
the tensor cores, all in registers. What a program exchanges between its threads goes through global memory.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=("T", "B"))
def forward(
    x,  # inputs, or their share of the gates if D is 0; steps and sequences x_t and x_b apart
    w_x, b_x, w_h, b_h, w_p, b_p,
    h, c, p, acc,  # before the first step
    h_end, c_end, p_end, acc_end,  # after the last
    ends,  # (B,), lengths
    output, update_gate,  # (T, B, H), written at updates if EVERY or SAVES; (T, B) zeros
    until,  # (T + 1, B) int32, if EVERY: the step up to which the state after an update, or in row 0 the first, is kept
    c_at, p_at, a_at,  # if SAVES: (T, B, H), (T, B), (T, B), written at updates; a: the sum that opened
    t_at, updates,  # if SAVES: steps of the updates, (T, B) int32, from the top; how many there were, (B,) int32
    scratch,  # (programs * ROWS, SLICES, 4 * HP)
    T, B, x_t, x_b,
    H: tl.constexpr, HP: tl.constexpr, D: tl.constexpr, GRU: tl.constexpr, SAVES: tl.constexpr, EVERY: tl.constexpr,
    HELD: tl.constexpr,  # the recurrent weights of HELD * SLICES units are kept in registers, or all of bfloat16
    BF16: tl.constexpr, ROWS: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    N: tl.constexpr = 3 if GRU else 4
    PAD: tl.constexpr = (H + 3) // 4 * 4
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
    if BF16:
        held = _matrices(w_h, H, HP, N)
    else:
        held = _held(w_h, H, N * PAD, 4 * HP, HELD, SLICES)
        tl.store(h_end + own, h_now, mask=there)
        tl.debug_barrier()

    start = tl.full((ROWS,), 0, tl.int32)
    done = start
    t, total = _next_update(p_now, tl.load(acc + row, mask=exists, other=0.0), start - 1, end)
    if EVERY:
        tl.store(until + row, tl.where(t < end, t, T), mask=exists)
    while tl.max((t < end).to(tl.int32), 0) > 0:
        on = t < end
        place = t.to(tl.int64) * B + row
        xs = _input_gates(x, t.to(tl.int64) * x_t + row * x_b, on, w_x, b_x, unit, H, D, N)
        if BF16:
            hs = _rounded_share(h_now, held, N)
        else:
            first = tl.program_id(0).to(tl.int64) * ROWS
            place_0 = h_end + first * H, first < B
            place_1 = h_end + (first + 1) * H, first + 1 < B
            place_2 = h_end + (first + 2) * H, first + 2 < B
            place_3 = h_end + (first + 3) * H, first + 3 < B
            places = (place_0, place_1, place_2, place_3)
            parts = scratch + first * (SLICES * 4 * HP)
            _multiply(places, held, w_h, parts, H, N * PAD, 4 * HP, ROWS, HELD, SLICES)
            hs = ()
            for n in tl.static_range(N):
                hs = hs + (_collected(parts, n * PAD, there, unit, 4 * HP, ROWS, SLICES),)
        hs = _added(hs, _vectors(b_h, unit, H, N), N)
        if GRU:
            _, z, n = _gru(xs, hs)
            h_new = (1 - z) * n + z * h_now
            c_new = h_new
        else:
            i, f, g, o = _lstm(xs[0] + hs[0], xs[1] + hs[1], xs[2] + hs[2], xs[3] + hs[3])
            c_new = f * c_now + i * g
            h_new = o * _tanh(c_new)
        h_now = tl.where(on[:, None], h_new, h_now)
        c_now = tl.where(on[:, None], c_new, c_now)
        p_now = tl.where(on, _sigmoid(tl.sum(c_now * _vector(w_p, unit, H)[None, :], 1) + b_gate), p_now)
        if not BF16:
            tl.debug_barrier()
            tl.store(h_end + own, h_now, mask=there)
            tl.debug_barrier()

        updated = there & on[:, None]
        tl.store(update_gate + place, 1.0, mask=on)
        if EVERY or SAVES:
            tl.store(output + place[:, None] * H + unit[None, :], h_now, mask=updated)
        if SAVES:
            tl.store(p_at + place, p_now, mask=on)
            tl.store(a_at + place, total, mask=on)
            tl.store(t_at + done.to(tl.int64) * B + row, t, mask=on)
            if not GRU:
                tl.store(c_at + place[:, None] * H + unit[None, :], c_now, mask=updated)
        done += on.to(tl.int32)
        later, total = _next_update(p_now, tl.where(on, 0.0, total), t, end)
        if EVERY:
            tl.store(until + place + B, tl.where(later < end, later, T), mask=on)
        t = tl.where(on, later, t)

    if BF16:
        tl.store(h_end + own, h_now, mask=there)
    if not GRU:
        tl.store(c_end + own, c_now, mask=there)
    tl.store(p_end + row, p_now, mask=exists)
    tl.store(acc_end + row, total, mask=exists)
    if SAVES:
        tl.store(updates + row, done, mask=exists)


@triton.jit(do_not_specialize=("T", "B"))
def fill(output, h, update_gate, until, T, B, H: tl.constexpr, HP: tl.constexpr, STEPS: tl.constexpr):
    """Write the state that is kept after each update, and before the first, as the output of the steps skipped."""
    b = tl.program_id(0).to(tl.int64)
    unit = tl.arange(0, HP)
    there = unit < H
    begin = tl.program_id(1) * STEPS
    wide = B.to(tl.int64)
    if begin == 0:
        first = tl.load(h + b * H + unit, mask=there)
        for t in range(0, tl.load(until + b)):
            tl.store(output + (t * wide + b) * H + unit, first, mask=there)
    for t in range(begin, tl.minimum(begin + STEPS, T)):
        place = t * wide + b
        if tl.load(update_gate + place) > 0:
            state = tl.load(output + place * H + unit, mask=there)
            for later in range(t + 1, tl.load(until + place + B)):
                tl.store(output + (later * wide + b) * H + unit, state, mask=there)


@triton.jit(do_not_specialize=("B",))
def take(
    p, acc, h, c,  # before the first step
    p_at, a_at, h_at, c_at, t_at, updates,  # as forward wrote them
    x,  # (T, B, D), steps and sequences x_t and x_b apart
    first,  # (B,) int64, number of a sequence's first row
    t_rows, p_rows, a_rows, h_rows, c_rows,  # as backward reads them
    x_rows,  # (R, D + 1), with a one, or (R, D)
    B, x_t, x_b,
    D: tl.constexpr, ONES: tl.constexpr, H: tl.constexpr, HP: tl.constexpr, GRU: tl.constexpr,
    BATCH: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Bring what was stored at updates into rows, STEPS of a sequence a program."""
    b = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * STEPS
    before = tl.arange(0, BATCH)
    start = tl.sum(tl.load(updates + before, mask=before < b, other=0).to(tl.int64), 0) + b
    if begin == 0:
        tl.store(first + b, start)
    unit = tl.arange(0, HP)
    for j in range(begin, tl.minimum(begin + STEPS, tl.load(updates + b) + 1)):
        row = start + j
        if j == 0:
            t = tl.full((), -1, tl.int64)
            probability, total = tl.load(p + b), tl.load(acc + b)
            state = tl.load(h + b * H + unit, mask=unit < H)
        else:
            t = tl.load(t_at + (j - 1) * B.to(tl.int64) + b).to(tl.int64)
            probability, total = tl.load(p_at + t * B + b), tl.load(a_at + t * B + b)
            state = tl.load(h_at + (t * B + b) * H + unit, mask=unit < H)
        tl.store(t_rows + row, t.to(tl.int32))
        tl.store(p_rows + row, probability)
        tl.store(a_rows + row, total)
        tl.store(h_rows + row * H + unit, state, mask=unit < H)
        if not GRU:
            if j == 0:
                state = tl.load(c + b * H + unit, mask=unit < H)
            else:
                state = tl.load(c_at + (t * B + b) * H + unit, mask=unit < H)
            tl.store(c_rows + row * H + unit, state, mask=unit < H)
        for d_0 in range(0, D + ONES, BLOCK):
            d = d_0 + tl.arange(0, BLOCK)
            value = tl.load(x + t * x_t + b * x_b + d, mask=(d < D) & (t >= 0), other=0.0)
            tl.store(x_rows + row * (D + ONES) + d, tl.where(d == D, 1.0, value), mask=d < D + ONES)


@triton.jit(do_not_specialize=("B", "gg_t", "gg_b"))
def backward(
    x, w_x, b_x, w_h, w_p, b_p,
    # One row for each sequence's first state and one for the state after each of its updates:
    hidden,  # (R, N*H), the state's share of the gates
    h_rows, c_rows, p_rows, a_rows, t_rows,  # t: the update's step, -1 for the first state
    first, count,  # (B,), number of a sequence's first row, and of its updates
    ends,
    grad_output, grad_gate,
    grad_h, grad_c, grad_p, grad_acc,  # after the last step
    first_h, first_c, first_p, first_acc,  # the same before the first
    grad_gates,  # (R, 4*H), of the update that led to the row; GRU: r, z, the hidden share of n, and n
    grad_logit,  # (R,)
    scratch, products,  # (programs * ROWS, 2, WINDOW), (programs * ROWS, SLICES, HP)
    bound,  # of the gate's gradient
    B, x_t, x_b, go_t, go_b, gg_t, gg_b,
    H: tl.constexpr, HP: tl.constexpr, D: tl.constexpr, GRU: tl.constexpr,
    HAS_OUTPUT: tl.constexpr, HAS_GATE: tl.constexpr, HELD: tl.constexpr, ROWS: tl.constexpr,
    SLICES: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    N: tl.constexpr = 3 if GRU else 4
    PAD: tl.constexpr = (H + 3) // 4 * 4
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    unit = tl.arange(0, HP)
    exists = row < B
    there = exists[:, None] & (unit < H)[None, :]
    own = row[:, None] * H + unit[None, :]
    G_h = tl.load(grad_h + own, mask=there, other=0.0)
    G_c = G_h if GRU else tl.load(grad_c + own, mask=there, other=0.0)
    gp = tl.load(grad_p + row, mask=exists, other=0.0)
    ga = tl.load(grad_acc + row, mask=exists, other=0.0)
    end = tl.load(ends + row, mask=exists, other=0).to(tl.int32)
    last = end  # the step after the segment
    j = tl.load(count + row, mask=exists, other=-1).to(tl.int32)  # the update that began the segment; 0 is none
    window = tl.arange(0, WINDOW)
    found = scratch + row * (2 * WINDOW)
    held = _held(w_h, N * H, PAD, HP, HELD, SLICES)
    parts = products + tl.program_id(0).to(tl.int64) * (ROWS * SLICES * HP)

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
        acc_now = tl.load(a_rows + at, mask=j == 0, other=0.0)
        behind = last - 1
        if tl.max(tl.where(on, behind - t, 0), 0) > 0:
            hs = _expanded(_hidden_gates(hidden, at, mine, unit, H, N), N)
            while tl.max(tl.where(on, behind - t, 0), 0) > 0:
                step = behind[:, None] - window[None, :]
                skipped = on[:, None] & (step > t[:, None])
                far = step.to(tl.int64)
                xs = _input_gates(x, far * x_t + (row * x_b)[:, None], skipped, w_x, b_x, unit, H, D, N)
                if GRU:
                    _, z, n = _gru(xs, hs)
                    moved = (1 - z) * (n - h_now[:, None, :])  # candidate minus state
                    logit = tl.sum((h_now[:, None, :] + moved) * _vector(w_p, unit, H), 2)
                else:
                    i, f, g, o = _lstm(xs[0] + hs[0], xs[1] + hs[1], xs[2] + hs[2], xs[3] + hs[3])
                    c_new = f * c_now[:, None, :] + i * g
                    logit = tl.sum(c_new * _vector(w_p, unit, H), 2)
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
                # What the threads found of a step goes to all of them, which then walk back over the steps.
                risen = _sigmoid(logit + tl.load(b_p)) - p_now[:, None]
                tl.store(found[:, None] + window[None, :], gain)
                tl.store(found[:, None] + (window + WINDOW)[None, :], risen)
                tl.debug_barrier()
                for k in tl.static_range(WINDOW):
                    valid = on & (behind - k > t)
                    total = acc_now + (behind - k - t).to(tl.float32) * p_now
                    gu = tl.load(found + k) + tl.load(found + (k + WINDOW)) * gp
                    ga = tl.where(valid, ga + _bounded(gu - total * ga, bound), ga)
                    gp = tl.where(valid, gp + ga, gp)
                tl.debug_barrier()
                behind -= WINDOW

        # The update that began it.
        on = j > 0
        mine = there & on[:, None]
        before = at - 1
        h_old = tl.load(h_rows + (before[:, None] * H + unit[None, :]), mask=mine, other=0.0)
        far = t.to(tl.int64)
        xs = _input_gates(x, far * x_t + row * x_b, on, w_x, b_x, unit, H, D, N)
        hs = _hidden_gates(hidden, before, mine, unit, H, N)
        if HAS_OUTPUT:
            G_h += tl.load(
                grad_output + (far * go_t + row * go_b)[:, None] + unit[None, :], mask=mine, other=0.0
            ).to(tl.float32)  # fmt: skip
        p_old = tl.load(p_rows + before, mask=on, other=0.0)
        gu = gp * (p_now - p_old) - ga * tl.load(a_rows + at, mask=on, other=0.0)
        gu += tl.sum(tl.where(mine, (h_now - h_old) * G_h, 0.0), 1)
        if HAS_GATE:
            gu += tl.load(grad_gate + far * gg_t + row * gg_b, mask=on, other=0.0)
        d_logit = tl.where(on, gp * p_now * (1 - p_now), 0.0)
        tl.store(grad_logit + at, d_logit, mask=j >= 0)
        through_gate = d_logit[:, None] * _vector(w_p, unit, H)[None, :]
        if GRU:
            grad_new = G_h + through_gate
            r, z, n = _gru(xs, hs)
            d_3 = tl.where(mine, grad_new * (1 - z) * (1 - n * n), 0.0)
            d_0 = d_3 * hs[2] * r * (1 - r)
            d_1 = tl.where(mine, grad_new * (h_old - n) * z * (1 - z), 0.0)
            d_2 = d_3 * r
            G_old = grad_new * z
        else:
            c_old = tl.load(c_rows + (before[:, None] * H + unit[None, :]), mask=mine, other=0.0)
            gu += tl.sum(tl.where(mine, (c_now - c_old) * G_c, 0.0), 1)
            i, f, g, o = _lstm(xs[0] + hs[0], xs[1] + hs[1], xs[2] + hs[2], xs[3] + hs[3])
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
        tl.debug_barrier()
        places = ()
        for r in tl.static_range(4):
            this = tl.arange(0, ROWS) == r
            is_on = tl.sum(tl.where(this & on, 1, 0), 0) > 0
            places = places + ((grad_gates + tl.sum(tl.where(this, start, 0), 0), is_on),)
        _multiply(places, held, w_h, parts, N * H, PAD, HP, ROWS, HELD, SLICES)
        G_old += _collected(parts, 0, there, unit, HP, ROWS, SLICES)
        G_h = tl.where(on[:, None], G_old, G_h)
        gu = _bounded(gu, bound)
        gp = tl.where(on, gu, gp)
        ga = tl.where(on, gu, ga)
        last = tl.where(on, t, last)
        j -= 1

    tl.store(first_h + own, G_h, mask=there)
    if not GRU:
        tl.store(first_c + own, G_c, mask=there)
    start = tl.load(first + row, mask=exists, other=0)
    before_first = tl.load(p_rows + start, mask=exists, other=0.0), tl.load(a_rows + start, mask=exists, other=0.0)
    shut = (before_first[0] > 1 - before_first[1]) & (end > 0)  # only states made by hand are so
    tl.store(first_p + row, tl.where(shut, 0.0, gp), mask=exists)
    tl.store(first_acc + row, tl.where(shut, 0.0, ga), mask=exists)


@triton.jit
def _bounded(x, bound):
    return tl.where(x > bound, bound, tl.where(x < -bound, -bound, x))


@triton.jit
def _next_update(p, total, t, end):
    """The first step after t at which the gate opens, with the sum at it; or ``end``, with the last step's sum."""
    t += 1
    shut = t < end
    while tl.max(shut.to(tl.int32), 0) > 0:
        t, total, shut = _some_steps(p, total, t, end, shut)
    return t, total


@triton.jit
def _some_steps(p, total, t, end, shut):
    """Add p for some steps more, while the gate is ``shut``."""
    for _ in tl.static_range(8):
        total = tl.where(shut, total + tl.where(p <= 1 - total, p, 1 - total), total)
        shut = shut & ~(total > 0.5)
        t = tl.where(shut, t + 1, t)
        shut = shut & (t < end)
    return t, total, shut


@triton.jit
def _input_gates(x, place, wanted, w_x, b_x, unit, H: tl.constexpr, D: tl.constexpr, N: tl.constexpr):
    """The input's share of the N gates where ``wanted``: (..., HP) each."""
    start = tl.expand_dims(place, -1)
    if D == 0:
        shares = _loaded(x + (start + unit), tl.expand_dims(wanted, -1) & (unit < H), H, N)
    else:
        shares = _vectors(b_x, unit, H, N)
        for d in tl.static_range(D):
            value = tl.load(x + (start + d), mask=tl.expand_dims(wanted, -1), other=0.0).to(tl.float32)
            shares = _plus(shares, _loaded(w_x + (unit * D + d), unit < H, H * D, N), value, N)
    return shares


@triton.jit
def _hidden_gates(hidden, at, there, unit, H: tl.constexpr, N: tl.constexpr):
    """The state's share of the gates in some rows: (ROWS, HP) each."""
    return _loaded(hidden + (at[:, None] * (N * H) + unit[None, :]), there, H, N)


@triton.jit
def _loaded(place, there, STEP: tl.constexpr, N: tl.constexpr):
    """Values at N places that are STEP apart."""
    values = ()
    for n in tl.static_range(N):
        values = values + (tl.load(place + n * STEP, mask=there, other=0.0).to(tl.float32),)
    return values


@triton.jit
def _vectors(vectors, unit, H: tl.constexpr, N: tl.constexpr):
    """The N gates' parts of an (N*H,) vector, (HP,) each."""
    return _loaded(vectors + unit, unit < H, H, N)


@triton.jit
def _vector(vector, unit, H: tl.constexpr):
    return tl.load(vector + unit, mask=unit < H, other=0.0)


@triton.jit
def _added(a, b, N: tl.constexpr):
    sums = ()
    for n in tl.static_range(N):
        sums = sums + (a[n] + b[n],)
    return sums


@triton.jit
def _plus(sums, parts, factor, N: tl.constexpr):
    grown = ()
    for n in tl.static_range(N):
        grown = grown + (sums[n] + parts[n] * factor,)
    return grown


@triton.jit
def _expanded(values, N: tl.constexpr):
    """(ROWS, HP) -> (ROWS, 1, HP)."""
    wide = ()
    for n in tl.static_range(N):
        wide = wide + (values[n][:, None, :],)
    return wide


@triton.jit
def _multiply(
    places, held, weights, parts, K: tl.constexpr, C: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, HELD: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """Up to four vectors of K values times a (K, C) matrix, which is read once: SLICES parts of each sum, in ``parts``.

    ``places`` says of each vector where it lies and whether it is wanted. A thread takes some columns, of every
    SLICES-th row.
    """
    slice = tl.arange(0, SLICES)
    column = tl.arange(0, WIDE)
    sums_0 = tl.zeros((SLICES, WIDE), tl.float32)
    sums_1 = sums_0
    sums_2 = sums_0
    sums_3 = sums_0
    for block in tl.static_range((K + SLICES - 1) // SLICES):
        k = block * SLICES + slice
        if block < HELD:
            rows = held[block]
        else:
            rows = _block(weights, k, column, K, C)
        sums_0 += rows * _factors(places[0], k, K)
        if ROWS > 1:
            sums_1 += rows * _factors(places[1], k, K)
        if ROWS > 2:
            sums_2 += rows * _factors(places[2], k, K)
            sums_3 += rows * _factors(places[3], k, K)
    own = parts + (slice[:, None] * WIDE + column[None, :])
    STEP: tl.constexpr = SLICES * WIDE
    tl.store(own, sums_0)
    if ROWS > 1:
        tl.store(own + STEP, sums_1)
    if ROWS > 2:
        tl.store(own + 2 * STEP, sums_2)
        tl.store(own + 3 * STEP, sums_3)
    tl.debug_barrier()


@triton.jit
def _collected(
    parts, offset: tl.constexpr, there, unit, WIDE: tl.constexpr, ROWS: tl.constexpr, SLICES: tl.constexpr
):  # fmt: skip
    """The sums of (ROWS, HP) columns from ``offset`` on."""
    place = parts + (tl.arange(0, ROWS)[:, None] * (SLICES * WIDE) + (unit + offset)[None, :])
    total = tl.load(place, mask=there, other=0.0)
    for s in tl.static_range(1, SLICES):
        total += tl.load(place + s * WIDE, mask=there, other=0.0)
    return total


@triton.jit
def _factors(place, k, K: tl.constexpr):
    return tl.load(place[0] + k, mask=(k < K) & place[1], other=0.0)[:, None]


@triton.jit
def _block(weights, k, column, K: tl.constexpr, C: tl.constexpr):
    """Some rows of a (K, C) matrix."""
    return tl.load(weights + (k[:, None] * C + column[None, :]), mask=(k < K)[:, None] & (column < C), other=0.0)


@triton.jit
def _held(weights, K: tl.constexpr, C: tl.constexpr, WIDE: tl.constexpr, HELD: tl.constexpr, SLICES: tl.constexpr):
    """The first HELD blocks of rows."""
    blocks = ()
    for block in tl.static_range(HELD):
        blocks = blocks + (_block(weights, block * SLICES + tl.arange(0, SLICES), tl.arange(0, WIDE), K, C),)
    return blocks


@triton.jit
def _matrices(w_h, H: tl.constexpr, HP: tl.constexpr, N: tl.constexpr):
    """The gates' (HP, HP) matrices in bfloat16."""
    down, across = tl.arange(0, HP)[:, None], tl.arange(0, HP)[None, :]
    place = w_h + (down * H + across)
    matrices = ()
    for n in tl.static_range(N):
        matrix = tl.load(place + n * H * H, mask=(down < H) & (across < H), other=0.0)
        matrices = matrices + (matrix.to(tl.bfloat16),)
    return matrices


@triton.jit
def _rounded_share(h_now, matrices, N: tl.constexpr):
    """The states' share of the gates, (ROWS, HP) each, on the tensor cores.

    Units come first in the product, since the tensor cores take 8 sequences at least, but 16 of what comes first.
    """
    states = tl.trans(h_now).to(tl.bfloat16)
    shares = ()
    for n in tl.static_range(N):
        shares = shares + (tl.trans(tl.dot(matrices[n], states)),)
    return shares


@triton.jit
def _lstm(i, f, g, o):
    return _sigmoid(i), _sigmoid(f), _tanh(g), _sigmoid(o)


@triton.jit
def _gru(x, h):
    r = _sigmoid(x[0] + h[0])
    return r, _sigmoid(x[1] + h[1]), _tanh(x[2] + r * h[2])


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):
    return 2 / (1 + tl.exp(-2 * x)) - 1
