"""What stands between the products of a large stack on a GPU, forward and backward: one program a sequence.

Iteration k is the k-th update of every sequence that has so many, each at its own step; kernels do nothing to the
others, whose step is their end. All iterations are launched with the same arguments, so that a graph of them can be
captured once and replayed in later calls, on other tensors: addresses and sizes that differ lie in a ``table`` on the
device. Gates are computed in float32 and come in torch's order, an LSTM's i, f, g, o; a GRU's sums are n, r, z and the
state's share of n, so that the input's share and the state's are both contiguous. The GRU that resets before (RESET)
has a product more in each layer, of r⊙h: before it stands ``reset``, and going back, after it, ``reset_back``. So the
state's share of its first layer's gates are r and z alone, and the joint products of the others n, r and z.
"""

import triton
import triton.language as tl

# Entries of the table, (ENTRIES,) int64.
BASE = tl.constexpr(0)  # the iteration that comes first in the next replay
ACTIVE = tl.constexpr(1)  # whether any sequence goes on
STEPS = tl.constexpr(2)
SPAN = tl.constexpr(3)  # iterations of a segment
SHARES = tl.constexpr(4)  # the input's share of the first layer's gates; steps and sequences so many apart:
SHARES_T = tl.constexpr(5)
SHARES_B = tl.constexpr(6)
OUTPUT = tl.constexpr(7)  # (T, B, H)
GATE = tl.constexpr(8)  # (T, B)
COUNT = tl.constexpr(9)  # (T, B) int32, updates up to each step
GRAD_OUTPUT = tl.constexpr(10)
GRAD_OUTPUT_T = tl.constexpr(11)
GRAD_OUTPUT_B = tl.constexpr(12)
GRAD_GATE = tl.constexpr(13)
GRAD_GATE_T = tl.constexpr(14)
GRAD_GATE_B = tl.constexpr(15)
MOVED = tl.constexpr(16)  # (skipped steps, states * H), candidate minus state
RISEN = tl.constexpr(17)  # (skipped steps,), the candidate's probability minus the one that is kept
GRAD_SUMS = tl.constexpr(18)  # (layers, SPAN, B, 4 * H), of this segment
GRAD_LOGIT = tl.constexpr(19)  # (SPAN, B), of this segment
SEGMENTS = tl.constexpr(32)  # from here on, of each segment, the addresses of
FIELDS = tl.constexpr(8)  # so many:
STATE_H = tl.constexpr(0)  # (layers, SPAN + 1, B, H), before its first iteration and after each
STATE_C = tl.constexpr(1)  # the same, an LSTM's
PROBABILITY = tl.constexpr(2)  # (SPAN + 1, B)
OPENED = tl.constexpr(3)  # (SPAN, B), the sum that opened the gate
STEP = tl.constexpr(4)  # (SPAN, B) int32
KEPT = tl.constexpr(5)  # (layers, SPAN, B, 4 * H); LSTM: i, f, g, o; GRU: r, z, n, the state's share of n, or r⊙h


@triton.jit
def begin(
    table, state_h, t_now, p_now, sums, ends, updates,
    B, LAYERS: tl.constexpr, H: tl.constexpr, SAVES: tl.constexpr, EVERY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Find each sequence's first update."""
    b = tl.program_id(0).to(tl.int64)
    end = tl.load(ends + b)
    t, total = _next_update(tl.load(p_now + b), tl.load(sums + b), end * 0 - 1, end)
    tl.debug_barrier()
    tl.store(t_now + b, t)
    tl.store(sums + b, total)
    tl.store(updates + b, 0)
    last = state_h + ((LAYERS - 1) * B + b) * H
    _show(table, last, b, 0, t, end, 0, B, H, SAVES, EVERY, BLOCK)


@triton.jit(do_not_specialize=["i"])
def update(
    table,
    shares,  # products of the iteration: (B, gates * H)
    of_reset,  # if RESET, the product of r⊙h, (B, H)
    bias,  # (layers, 4 * H)
    w_p, b_p,
    state_h, state_c,  # (layers, B, H)
    operand,  # (B, layers * H), h as products want it
    t_now, p_now, sums, ends, updates,  # (B,)
    i, B,
    LAYER: tl.constexpr, LAYERS: tl.constexpr, H: tl.constexpr, GRU: tl.constexpr, RESET: tl.constexpr,
    SAVES: tl.constexpr, EVERY: tl.constexpr,  # whether outputs are wanted
    BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """A layer's update in the i-th iteration of a replay, after its product; and after the last layer's the gate's."""
    LAST: tl.constexpr = LAYER == LAYERS - 1
    b = tl.program_id(0).to(tl.int64)
    t = tl.load(t_now + b)
    end = tl.load(ends + b)
    on = t < end
    GATES: tl.constexpr = (3 if GRU and LAYER == 0 else 4) - (1 if RESET else 0)
    own = shares + b * (GATES * H)
    own_x = own
    if LAYER == 0:
        own_x = _input_shares(table, t, b, shares.dtype.element_ty)
    state = (LAYER * B + b) * H
    if SAVES:
        k = tl.load(table + BASE) + i
        span = tl.load(table + SPAN)
        segment = k // span
        j = k - segment * span
        rows = ((LAYER * (span + 1) + j) * B + b) * H
        kept = _kept(table, segment, shares.dtype.element_ty) + ((LAYER * span + j) * B + b) * (4 * H)
    logit = tl.zeros((BLOCK,), tl.float32)
    for part in range(PARTS):
        unit = (tl.program_id(1) * PARTS + part) * BLOCK + tl.arange(0, BLOCK)
        there = unit < H
        mine = there & on
        h_old = tl.load(state_h + state + unit, mask=there, other=0.0)
        s_0, s_1, s_2, s_3 = _sums(
            own_x, own, of_reset + b * H, bias + LAYER * 4 * H, unit, mine, H, GRU, RESET, LAYER == 0
        )
        if GRU:
            r, z, n = _sigmoid(s_1), _sigmoid(s_2), _new(s_0, s_1, s_3, RESET)
            h_new = tl.where(mine, (1 - z) * n + z * h_old, h_old)
            top = h_new
            if SAVES:
                _store_gates(kept, r, z, n, s_3, unit, mine, H)
                if RESET:  # of all sequences: a product reads it
                    tl.store(kept + (3 * H + unit), tl.where(mine, r * h_old, 0.0), mask=there)
        else:
            c_old = tl.load(state_c + state + unit, mask=there, other=0.0)
            c_i, c_f, c_g, c_o = _lstm(s_0, s_1, s_2, s_3)
            c_new = tl.where(mine, c_f * c_old + c_i * c_g, c_old)
            h_new = tl.where(mine, c_o * _tanh(c_new), h_old)
            tl.store(state_c + state + unit, c_new, mask=mine)
            top = c_new
            if SAVES:
                _store_gates(kept, c_i, c_f, c_g, c_o, unit, mine, H)
                slab_c = _slab(table, segment, STATE_C, tl.float32) + rows
                tl.store(slab_c + unit, c_old, mask=there & (j == 0))
                tl.store(slab_c + B * H + unit, c_new, mask=there)
        tl.store(state_h + state + unit, h_new, mask=mine)
        tl.store(operand + (b * (LAYERS * H) + LAYER * H + unit), h_new, mask=mine)
        if SAVES:  # of all sequences: products read them
            slab_h = _slab(table, segment, STATE_H, tl.float32) + rows
            tl.store(slab_h + unit, h_old, mask=there & (j == 0))
            tl.store(slab_h + B * H + unit, h_new, mask=there)
        if LAST:
            logit += tl.where(there, top * tl.load(w_p + unit, mask=there, other=0.0), 0.0)

    if LAST:
        p_old = tl.load(p_now + b)
        total = tl.load(sums + b)
        number = tl.load(updates + b) + 1
        p = tl.where(on, _sigmoid(tl.sum(logit, 0) + tl.load(b_p)), p_old)
        later, summed = _next_update(p, tl.where(on, 0.0, total), t, tl.where(on, end, t))
        tl.debug_barrier()
        tl.store(_address(table, GATE, tl.float32) + (t.to(tl.int64) * B + b), 1.0, mask=on)
        tl.store(t_now + b, later, mask=on)
        tl.store(p_now + b, p, mask=on)
        tl.store(sums + b, summed, mask=on)
        tl.store(updates + b, number, mask=on)
        if SAVES:
            row = j * B + b
            slab_p = _slab(table, segment, PROBABILITY, tl.float32) + row
            tl.store(slab_p, p_old, mask=j == 0)
            tl.store(slab_p + B, p)
            tl.store(_slab(table, segment, OPENED, tl.float32) + row, total)
            tl.store(_slab(table, segment, STEP, tl.int32) + row, t)
        if on:
            _show(table, state_h + state, b, t, later, end, number, B, H, SAVES, EVERY, BLOCK)


@triton.jit
def tally(table, t_now, ends, B, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """End a replay of CHUNK iterations: one program counts the sequences that go on."""
    active = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, B, BLOCK):
        b = start + tl.arange(0, BLOCK)
        t = tl.load(t_now + b, mask=b < B, other=0)
        active += (t < tl.load(ends + b, mask=b < B, other=0)).to(tl.int32)
    base = tl.load(table + BASE) + CHUNK
    total = tl.sum(active, 0)
    tl.debug_barrier()
    tl.store(table + ACTIVE, total.to(tl.int64))
    tl.store(table + BASE, base)


@triton.jit
def list_skipped(table, first, ends, places, T, B, BLOCK: tl.constexpr):
    """The places t * B + b of all skipped steps, by sequence, from each sequence's ``first`` on."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    t, b = place // B, place % B
    exists = t < T
    used = tl.load(_address(table, GATE, tl.float32) + place, mask=exists, other=1.0) > 0
    skipped = exists & ~used & (t < tl.load(ends + b))
    count = tl.load(_address(table, COUNT, tl.int32) + place, mask=exists, other=0)
    tl.store(places + (tl.load(first + b) + t - count), place, mask=skipped)


@triton.jit(do_not_specialize=["start"])
def candidates(
    table, places,
    from_below,  # (steps, gates * H), of the layers above the first
    hidden,  # the state's share of the gates, (segments, SPAN + 1, B, gates * H)
    of_reset,  # if RESET, the product of r⊙h, (steps, H)
    bias, w_p, b_p,
    h_candidate,  # (steps, H), for the layer above
    start,  # of the first of these steps in ``places``
    B,
    LAYER: tl.constexpr, LAYERS: tl.constexpr, H: tl.constexpr, GRU: tl.constexpr, RESET: tl.constexpr,
    BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """A layer's candidates at skipped steps: one program a step."""
    LAST: tl.constexpr = LAYER == LAYERS - 1
    STATES: tl.constexpr = LAYERS if GRU else 2 * LAYERS
    row = tl.program_id(0).to(tl.int64)
    n = row + start
    t, b, span, segment, j = _skipped_step(table, tl.load(places + n), B)
    if LAYER == 0:
        own_x = _input_shares(table, t, b, hidden.dtype.element_ty)
    else:
        own_x = from_below + row * ((3 if GRU else 4) * H)
    OF_STATE: tl.constexpr = (3 if GRU else 4) - (1 if RESET else 0)
    own = hidden + ((segment * (span + 1) + j) * B + b) * (OF_STATE * H)
    rows = ((LAYER * (span + 1) + j) * B + b) * H
    moved = _address(table, MOVED, hidden.dtype.element_ty) + n * (STATES * H)
    logit = tl.zeros((BLOCK,), tl.float32)
    for part in range(PARTS):
        unit = (tl.program_id(1) * PARTS + part) * BLOCK + tl.arange(0, BLOCK)
        there = unit < H
        h_old = tl.load(_slab(table, segment, STATE_H, tl.float32) + rows + unit, mask=there, other=0.0)
        s_0, s_1, s_2, s_3 = _sums(
            own_x, own, of_reset + row * H, bias + LAYER * 4 * H, unit, there, H, GRU, RESET, True
        )
        if GRU:
            z = _sigmoid(s_2)
            rose = (1 - z) * (_new(s_0, s_1, s_3, RESET) - h_old)
            h_new = h_old + rose
            top = h_new
        else:
            c_old = tl.load(_slab(table, segment, STATE_C, tl.float32) + rows + unit, mask=there, other=0.0)
            c_i, c_f, c_g, c_o = _lstm(s_0, s_1, s_2, s_3)
            top = c_f * c_old + c_i * c_g
            tl.store(moved + ((LAYERS + LAYER) * H + unit), top - c_old, mask=there)
            h_new = c_o * _tanh(top)
            rose = h_new - h_old
        tl.store(moved + (LAYER * H + unit), rose, mask=there)
        if LAST:
            logit += tl.where(there, top * tl.load(w_p + unit, mask=there, other=0.0), 0.0)
        else:
            tl.store(h_candidate + row * H + unit, h_new, mask=there)
    if LAST:
        p = tl.load(_slab(table, segment, PROBABILITY, tl.float32) + (j * B + b))
        risen = _sigmoid(tl.sum(logit, 0) + tl.load(b_p)) - p
        tl.store(_address(table, RISEN, tl.float32) + n, risen)


@triton.jit(do_not_specialize=["i"])
def walk(
    table,
    bound,  # (1,), of the gate's gradient
    p_first, acc_first,  # (B,), before the first step
    w_p,
    grad_below,  # (B, H), by the first layer's state, of the update before: yet to be added
    G,  # (B, states * H), by the states: h of all layers, then c
    gp_now, ga_now,  # (B,), by p and acc
    until,  # (B,), the step after those that are still to be walked
    updates,  # (B,)
    first,  # (B,), where a sequence's skipped steps begin in MOVED and RISEN
    operand,  # (B, 4 * H), gradients of the last layer's sums
    i, B,
    LAYERS: tl.constexpr, H: tl.constexpr, GRU: tl.constexpr, RESET: tl.constexpr, HAS_OUTPUT: tl.constexpr,
    HAS_GATE: tl.constexpr, UPDATES: tl.constexpr,  # whether an update began the steps; none did the first
    WINDOW: tl.constexpr,  # steps at a time
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Go back over the steps that kept the state of an update, and over the last layer's part of the update."""
    STATES: tl.constexpr = LAYERS if GRU else 2 * LAYERS
    WIDE: tl.constexpr = STATES * H
    LAST: tl.constexpr = LAYERS - 1
    b = tl.program_id(0).to(tl.int64)
    k = tl.load(table + BASE) - i
    own = G + b * WIDE
    for start in range(0, H, BLOCK):
        unit = start + tl.arange(0, BLOCK)
        there = unit < H
        arrived = tl.load(grad_below + b * H + unit, mask=there, other=0.0).to(tl.float32)
        tl.store(own + unit, tl.load(own + unit, mask=there, other=0.0) + arrived, mask=there)
    tl.debug_barrier()

    gp = tl.load(gp_now + b)
    ga = tl.load(ga_now + b)
    end = tl.load(until + b)
    largest = tl.load(bound)
    if UPDATES:
        on = tl.load(updates + b) > k
        span = tl.load(table + SPAN)
        segment = k // span
        j = k - segment * span
        slab_p = _slab(table, segment, PROBABILITY, tl.float32) + (j * B + b)
        t = tl.load(_slab(table, segment, STEP, tl.int32) + (j * B + b), mask=on, other=0)
        p = tl.load(slab_p + B, mask=on, other=0.0)
        acc = 0.0
    else:
        on = end >= 0
        t = k.to(tl.int32)  # -1
        p = tl.load(p_first + b)
        acc = tl.load(acc_first + b)
    if HAS_OUTPUT:
        given = tl.load(table + GRAD_OUTPUT).to(tl.pointer_type(tl.float32)) + b * tl.load(table + GRAD_OUTPUT_B)
        given_t = tl.load(table + GRAD_OUTPUT_T)
    if HAS_GATE:
        wanted = tl.load(table + GRAD_GATE).to(tl.pointer_type(tl.float32)) + b * tl.load(table + GRAD_GATE_B)
        wanted_t = tl.load(table + GRAD_GATE_T)

    window = tl.arange(0, WINDOW)
    behind = tl.where(on, end - 1, t)
    while behind > t:
        step = behind - window
        skipped = step > t
        place = tl.load(first + b) + (step - k - 1)
        moved = _address(table, MOVED, operand.dtype.element_ty) + place[:, None] * WIDE
        gains = tl.zeros((WINDOW, BLOCK), tl.float32)
        for start in range(0, WIDE, BLOCK):
            unit = start + tl.arange(0, BLOCK)
            mine = skipped[:, None] & (unit < WIDE)[None, :]
            grad = tl.load(own + unit, mask=unit < WIDE, other=0.0)
            gains += tl.load(moved + unit[None, :], mask=mine, other=0.0).to(tl.float32) * grad[None, :]
        if HAS_OUTPUT:  # the gradient of the state grows by each step's, going back
            tl.debug_barrier()
            for start in range(0, H, BLOCK):
                unit = start + tl.arange(0, BLOCK)
                mine = skipped[:, None] & (unit < H)[None, :]
                arriving = tl.load(given + (step * given_t)[:, None] + unit[None, :], mask=mine, other=0.0)
                change = tl.load(moved + (LAST * H + unit)[None, :], mask=mine, other=0.0).to(tl.float32)
                gains += change * tl.cumsum(arriving, 0)
                top = own + LAST * H + unit
                grad = tl.load(top, mask=unit < H, other=0.0) + tl.sum(arriving, 0)
                tl.store(top, grad, mask=unit < H)
            tl.debug_barrier()
        gain = tl.sum(gains, 1)
        if HAS_GATE:
            gain += tl.load(wanted + step * wanted_t, mask=skipped, other=0.0)
        risen = tl.load(_address(table, RISEN, tl.float32) + place, mask=skipped, other=0.0)
        kept = tl.where(skipped, acc + (step - t).to(tl.float32) * p, 0.0)  # the sum
        for w in tl.static_range(WINDOW):
            this = window == w
            gu = tl.sum(tl.where(this, gain, 0.0), 0) + tl.sum(tl.where(this, risen, 0.0), 0) * gp
            ga += _bounded(gu - tl.sum(tl.where(this, kept, 0.0), 0) * ga, largest)
            gp = tl.where(behind - w > t, gp + ga, gp)
        behind -= WINDOW

    if UPDATES:
        gains = tl.zeros((BLOCK,), tl.float32)
        for layer in tl.static_range(LAYERS):
            rows = ((layer * (span + 1) + j) * B + b) * H
            for start in range(0, H, BLOCK):
                unit = start + tl.arange(0, BLOCK)
                mine = (unit < H) & on
                grad = tl.load(own + layer * H + unit, mask=mine, other=0.0)
                if HAS_OUTPUT and layer == LAST:
                    grad += tl.load(given + t * given_t + unit, mask=mine, other=0.0)
                gains += _change(_slab(table, segment, STATE_H, tl.float32) + rows + unit, B * H, mine) * grad
                if not GRU:
                    grad = tl.load(own + (LAYERS + layer) * H + unit, mask=mine, other=0.0)
                    gains += _change(_slab(table, segment, STATE_C, tl.float32) + rows + unit, B * H, mine) * grad
        gu = tl.sum(gains, 0) + gp * (p - tl.load(slab_p, mask=on, other=0.0))
        gu -= ga * tl.load(_slab(table, segment, OPENED, tl.float32) + (j * B + b), mask=on, other=0.0)
        if HAS_GATE:
            gu += tl.load(wanted + t * wanted_t, mask=on, other=0.0)
        gu = _bounded(gu, largest)
        d_logit = tl.where(on, gp * p * (1 - p), 0.0)
        gp = tl.where(on, gu, gp)
        ga = tl.where(on, gu, ga)
        end = tl.where(on, t, end)
        rows = ((LAST * (span + 1) + j) * B + b) * H
        kept = ((LAST * span + j) * B + b) * (4 * H)
        for start in range(0, H, BLOCK):
            unit = start + tl.arange(0, BLOCK)
            mine = (unit < H) & on
            G_h = tl.load(own + LAST * H + unit, mask=mine, other=0.0)
            G_c = G_h
            if HAS_OUTPUT:
                G_h += tl.load(given + t * given_t + unit, mask=mine, other=0.0)
            through_gate = d_logit * tl.load(w_p + unit, mask=unit < H, other=0.0)
            if GRU:
                G_h += through_gate
            else:
                G_c = tl.load(own + (LAYERS + LAST) * H + unit, mask=mine, other=0.0) + through_gate
            G_h, G_c = _cell_backward(
                table, segment, rows, kept, operand + b * (4 * H), G_h, G_c, unit, mine, B, H, GRU, RESET
            )
            tl.store(own + LAST * H + unit, G_h, mask=mine)
            if not GRU:
                tl.store(own + (LAYERS + LAST) * H + unit, G_c, mask=mine)
        tl.debug_barrier()
        tl.store(_address(table, GRAD_LOGIT, tl.float32) + (j * B + b), d_logit)
    else:
        tl.debug_barrier()
        end = end * 0
    tl.store(gp_now + b, gp)
    tl.store(ga_now + b, ga)
    tl.store(until + b, end)


@triton.jit(do_not_specialize=["i"])
def lower(
    table,
    grad_below,  # (B, 2 * H), by the input and the state of the layer above
    G, updates, operand,
    i, B,
    LAYER: tl.constexpr, LAYERS: tl.constexpr, H: tl.constexpr, GRU: tl.constexpr, RESET: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Go back over the part of a layer below the last in an update."""
    STATES: tl.constexpr = LAYERS if GRU else 2 * LAYERS
    b = tl.program_id(0).to(tl.int64)
    k = tl.load(table + BASE) - i
    on = tl.load(updates + b) > k
    span = tl.load(table + SPAN)
    segment = k // span
    j = k - segment * span
    unit = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mine = (unit < H) & on
    own = G + b * (STATES * H)
    arrived = grad_below + b * (2 * H) + unit
    above = own + (LAYER + 1) * H + unit
    G_above = tl.load(above, mask=mine, other=0.0) + tl.load(arrived + H, mask=mine, other=0.0).to(tl.float32)
    tl.store(above, G_above, mask=mine)
    G_h = tl.load(own + LAYER * H + unit, mask=mine, other=0.0)
    G_h += tl.load(arrived, mask=mine, other=0.0).to(tl.float32)
    G_c = G_h
    if not GRU:
        G_c = tl.load(own + (LAYERS + LAYER) * H + unit, mask=mine, other=0.0)
    rows = ((LAYER * (span + 1) + j) * B + b) * H
    kept = ((LAYER * span + j) * B + b) * (4 * H)
    G_h, G_c = _cell_backward(table, segment, rows, kept, operand + b * (4 * H), G_h, G_c, unit, mine, B, H, GRU, RESET)
    tl.store(own + LAYER * H + unit, G_h, mask=mine)
    if not GRU:
        tl.store(own + (LAYERS + LAYER) * H + unit, G_c, mask=mine)


@triton.jit
def reset(
    table,
    shares,  # products of the iteration: (B, gates * H)
    bias,  # (layers, 4 * H)
    state_h,  # (layers, B, H)
    t_now, ends,
    left,  # (B, H)
    B, LAYER: tl.constexpr, LAYERS: tl.constexpr, H: tl.constexpr, GRU: tl.constexpr, RESET: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """r⊙h of a layer, between its products."""
    b = tl.program_id(0).to(tl.int64)
    t = tl.load(t_now + b)
    unit = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mine = (unit < H) & (t < tl.load(ends + b))
    own = shares + b * ((2 if LAYER == 0 else 3) * H)
    total = tl.load(bias + (LAYER * 4 + 1) * H + unit, mask=mine, other=0.0)
    if LAYER == 0:
        total += _share(own, 0, unit, mine, H)
        total += _share(_input_shares(table, t, b, shares.dtype.element_ty), 0, unit, mine, H)
    else:
        total += _share(own, 1, unit, mine, H)
    h = tl.load(state_h + (LAYER * B + b) * H + unit, mask=mine, other=0.0)
    tl.store(left + b * H + unit, _sigmoid(total) * h, mask=mine)


@triton.jit(do_not_specialize=["start"])
def reset_skipped(
    table, places, from_below, hidden, bias,  # as for ``candidates``
    left,  # (steps, H)
    start, B,
    LAYER: tl.constexpr, LAYERS: tl.constexpr, H: tl.constexpr, GRU: tl.constexpr, RESET: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """r⊙h of a layer at skipped steps."""
    row = tl.program_id(0).to(tl.int64)
    t, b, span, segment, j = _skipped_step(table, tl.load(places + (row + start)), B)
    unit = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = unit < H
    if LAYER == 0:
        own_x = _input_shares(table, t, b, hidden.dtype.element_ty)
    else:
        own_x = from_below + row * (3 * H)
    own = hidden + ((segment * (span + 1) + j) * B + b) * (2 * H)
    total = _share(own_x, 0, unit, there, H) + _share(own, 0, unit, there, H)
    total += tl.load(bias + (LAYER * 4 + 1) * H + unit, mask=there, other=0.0)
    rows = ((LAYER * (span + 1) + j) * B + b) * H
    h = tl.load(_slab(table, segment, STATE_H, tl.float32) + rows + unit, mask=there, other=0.0)
    tl.store(left + row * H + unit, _sigmoid(total) * h, mask=there)


@triton.jit(do_not_specialize=["i"])
def reset_back(
    table,
    grad_left,  # (B, H), by r⊙h
    G, updates, operand,
    i, B,
    LAYER: tl.constexpr, LAYERS: tl.constexpr, H: tl.constexpr, GRU: tl.constexpr, RESET: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """From r⊙h of a layer's update back to r, and to the state before."""
    b = tl.program_id(0).to(tl.int64)
    k = tl.load(table + BASE) - i
    on = tl.load(updates + b) > k
    span = tl.load(table + SPAN)
    segment = k // span
    j = k - segment * span
    unit = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mine = (unit < H) & on
    grad = tl.load(grad_left + b * H + unit, mask=mine, other=0.0).to(tl.float32)
    kept = ((LAYER * span + j) * B + b) * (4 * H)
    r = _share(_kept(table, segment, operand.dtype.element_ty) + kept, 0, unit, mine, H)
    rows = ((LAYER * (span + 1) + j) * B + b) * H
    h_old = tl.load(_slab(table, segment, STATE_H, tl.float32) + rows + unit, mask=mine, other=0.0)
    d_r = tl.where(mine, grad * h_old * r * (1 - r), 0.0)
    tl.store(operand + b * (4 * H) + H + unit, d_r, mask=unit < H)
    tl.store(_address(table, GRAD_SUMS, operand.dtype.element_ty) + kept + H + unit, d_r, mask=unit < H)
    own = G + b * (LAYERS * H) + LAYER * H + unit
    tl.store(own, tl.load(own, mask=mine, other=0.0) + grad * r, mask=mine)


@triton.jit(do_not_specialize=["start"])
def gather(x, steps, updates, rows, start, B, x_t, x_b, D, BLOCK: tl.constexpr):
    """The samples of some iterations, from ``start`` on, (iterations * B, D); zeros where a sequence had no update."""
    row = tl.program_id(0).to(tl.int64)
    b = row % B
    on = tl.load(updates + b) > start + row // B
    t = tl.load(steps + row, mask=on, other=0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sample = tl.load(x + (t * x_t + b * x_b) + d, mask=on & (d < D), other=0.0)
    tl.store(rows + row * D + d, sample, mask=d < D)


@triton.jit(do_not_specialize=["start"])
def scatter(rows, steps, updates, x, start, B, D, BLOCK: tl.constexpr):
    """The opposite of ``gather``, to (T, B, D)."""
    row = tl.program_id(0).to(tl.int64)
    b = row % B
    on = tl.load(updates + b) > start + row // B
    t = tl.load(steps + row, mask=on, other=0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sample = tl.load(rows + row * D + d, mask=on & (d < D), other=0.0).to(tl.float32)
    tl.store(x + (t * B + b) * D + d, sample, mask=on & (d < D))


@triton.jit
def split(x, pieces, x_row, K, SIX: tl.constexpr, BLOCK: tl.constexpr):
    """A row of float32 as three bfloat16, each the rest of those before: 1, 2, 3; or, if SIX, 1, 1, 2, 2, 1, 3."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = k < K
    value = tl.load(x + row * x_row + k, mask=there, other=0.0)
    one = value.to(tl.bfloat16)
    left = value - one.to(tl.float32)
    two = left.to(tl.bfloat16)
    three = (left - two.to(tl.float32)).to(tl.bfloat16)
    to = pieces + row * ((6 if SIX else 3) * K) + k
    tl.store(to, one, mask=there)
    if SIX:
        tl.store(to + K, one, mask=there)
        tl.store(to + 2 * K, two, mask=there)
        tl.store(to + 3 * K, two, mask=there)
        tl.store(to + 4 * K, one, mask=there)
        tl.store(to + 5 * K, three, mask=there)
    else:
        tl.store(to + K, two, mask=there)
        tl.store(to + 2 * K, three, mask=there)


@triton.jit
def _address(table, entry: tl.constexpr, kind: tl.constexpr):
    """A tensor of ours that the table tells of: memory from torch's allocator, aligned."""
    return tl.multiple_of(tl.load(table + entry).to(tl.pointer_type(kind)), 16)


@triton.jit
def _input_shares(table, t, b, kind: tl.constexpr):
    """Of the first layer's gates, at a step of a sequence."""
    return _address(table, SHARES, kind) + (t * tl.load(table + SHARES_T) + b * tl.load(table + SHARES_B))


@triton.jit
def _skipped_step(table, place, B):
    """Where a step stands, and in which place of which segment the state that it kept."""
    span = tl.load(table + SPAN)
    count = tl.load(_address(table, COUNT, tl.int32) + place).to(tl.int64)
    segment = tl.where(count > 0, count - 1, 0) // span
    return place // B, place % B, span, segment, count - segment * span


@triton.jit
def _slab(table, segment, field: tl.constexpr, kind: tl.constexpr):
    """What was saved of a segment."""
    return tl.multiple_of(tl.load(table + (SEGMENTS + segment * FIELDS + field)).to(tl.pointer_type(kind)), 16)


@triton.jit
def _kept(table, segment, products: tl.constexpr):
    """The gates: float16 where products are of bfloat16, in which 1 minus an open gate would be lost."""
    return _slab(table, segment, KEPT, tl.float32 if products == tl.float32 else tl.float16)


@triton.jit
def _next_update(p, total, t, end):
    """The first step after t at which the gate opens, with the sum at it; or ``end``, with the last step's sum."""
    t += 1
    shut = t < end
    while shut:
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
def _show(
    table, state, b, t, later, end, number, B,
    H: tl.constexpr, SAVES: tl.constexpr, EVERY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write a state as the output of the steps from t to the next update, or to the last step if none comes."""
    stop = tl.where(later < end, later, tl.load(table + STEPS).to(tl.int32))
    if EVERY:
        output = _address(table, OUTPUT, tl.float32) + b * H
        for start in range(0, H, BLOCK):
            unit = start + tl.arange(0, BLOCK)
            h = tl.load(state + unit, mask=unit < H, other=0.0)
            for step in range(t, stop):
                tl.store(output + (b * 0 + step) * (B * H) + unit, h, mask=unit < H)
    if SAVES:
        counts = _address(table, COUNT, tl.int32) + b
        for start in range(t, stop, 32):
            step = start + tl.arange(0, 32)
            tl.store(counts + step.to(tl.int64) * B, number, mask=step < stop)


@triton.jit
def _new(n, r, of_state, RESET: tl.constexpr):
    """A GRU's n, from sums."""
    return _tanh(n + (of_state if RESET else _sigmoid(r) * of_state))


@triton.jit
def _sums(
    x, h, of_reset, bias, unit, there,
    H: tl.constexpr, GRU: tl.constexpr, RESET: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """Sums of the gates: of the input's and the state's share if these are APART, else of one product for both."""
    b_0 = tl.load(bias + unit, mask=there, other=0.0)
    b_1 = tl.load(bias + H + unit, mask=there, other=0.0)
    b_2 = tl.load(bias + 2 * H + unit, mask=there, other=0.0)
    b_3 = tl.load(bias + 3 * H + unit, mask=there, other=0.0)
    h_0 = _share(h, 0, unit, there, H)
    h_1 = _share(h, 1, unit, there, H)
    if APART and GRU:
        h_n = _share(of_reset, 0, unit, there, H) if RESET else _share(h, 2, unit, there, H)
        x_0, x_1, x_2 = _share(x, 0, unit, there, H), _share(x, 1, unit, there, H), _share(x, 2, unit, there, H)
        return x_2 + b_0, x_0 + h_0 + b_1, x_1 + h_1 + b_2, h_n + b_3
    else:
        h_2 = _share(h, 2, unit, there, H)
        h_3 = _share(of_reset, 0, unit, there, H) if RESET else _share(h, 3, unit, there, H)
        if APART:
            h_0 += _share(x, 0, unit, there, H)
            h_1 += _share(x, 1, unit, there, H)
            h_2 += _share(x, 2, unit, there, H)
            h_3 += _share(x, 3, unit, there, H)
        return h_0 + b_0, h_1 + b_1, h_2 + b_2, h_3 + b_3


@triton.jit
def _share(shares, gate: tl.constexpr, unit, there, H: tl.constexpr):
    return tl.load(shares + (gate * H + unit), mask=there, other=0.0).to(tl.float32)


@triton.jit
def _store_gates(kept, v_0, v_1, v_2, v_3, unit, there, H: tl.constexpr):
    tl.store(kept + unit, v_0, mask=there)
    tl.store(kept + (H + unit), v_1, mask=there)
    tl.store(kept + (2 * H + unit), v_2, mask=there)
    tl.store(kept + (3 * H + unit), v_3, mask=there)


@triton.jit
def _change(state, further, mine):
    """By how much an update changed a state."""
    return tl.load(state + further, mask=mine, other=0.0) - tl.load(state, mask=mine, other=0.0)


@triton.jit
def _cell_backward(
    table, segment, rows, kept, operand, G_h, G_c, unit, mine, B,
    H: tl.constexpr, GRU: tl.constexpr, RESET: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the gates' sums; and those of the state before, as far as no product is needed."""
    gates = _kept(table, segment, operand.dtype.element_ty) + kept
    v_0 = _share(gates, 0, unit, mine, H)
    v_1 = _share(gates, 1, unit, mine, H)
    v_2 = _share(gates, 2, unit, mine, H)
    v_3 = _share(gates, 3, unit, mine, H)
    if GRU:  # r, z, n and the state's share of n
        h_old = tl.load(_slab(table, segment, STATE_H, tl.float32) + rows + unit, mask=mine, other=0.0)
        d_0 = G_h * (1 - v_1) * (1 - v_2 * v_2)
        d_2 = G_h * (h_old - v_2) * v_1 * (1 - v_1)
        if RESET:
            d_1, d_3 = tl.zeros_like(d_0), d_0  # of r only ``reset_back`` knows
        else:
            d_1, d_3 = d_0 * v_3 * v_0 * (1 - v_0), d_0 * v_0
        G_h = G_h * v_1
    else:
        slab_c = _slab(table, segment, STATE_C, tl.float32) + rows + unit
        c_old = tl.load(slab_c, mask=mine, other=0.0)
        tanh_c = _tanh(tl.load(slab_c + B * H, mask=mine, other=0.0))
        G_c += G_h * v_3 * (1 - tanh_c * tanh_c)
        d_0 = G_c * v_2 * v_0 * (1 - v_0)
        d_1 = G_c * c_old * v_1 * (1 - v_1)
        d_2 = G_c * v_0 * (1 - v_2 * v_2)
        d_3 = G_h * tanh_c * v_3 * (1 - v_3)
        G_c = G_c * v_1
        G_h = tl.zeros_like(G_h)
    d_0, d_1 = tl.where(mine, d_0, 0.0), tl.where(mine, d_1, 0.0)
    d_2, d_3 = tl.where(mine, d_2, 0.0), tl.where(mine, d_3, 0.0)
    _store_gates(operand, d_0, d_1, d_2, d_3, unit, unit < H, H)
    written = _address(table, GRAD_SUMS, operand.dtype.element_ty) + kept
    _store_gates(written, d_0, d_1, d_2, d_3, unit, unit < H, H)
    return G_h, G_c


@triton.jit
def _bounded(x, bound):
    return tl.where(x > bound, bound, tl.where(x < -bound, -bound, x))


@triton.jit
def _lstm(i, f, g, o):
    return _sigmoid(i), _sigmoid(f), _tanh(g), _sigmoid(o)


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):
    return 2 / (1 + tl.exp(-2 * x)) - 1
