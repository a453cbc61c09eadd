// The event-driven engine on the CPU in float32: forward and backward of one layer, a few sequences at a time (see
// native.py), and at the end of the file inference of a stack, one sequence at a time.
//
// A block of sequences runs its whole event loop here, so that weights stay in the cache and nothing but products and
// gates is left to do. Gates are padded to a multiple of 16 units; padded units stay zero. The tape of a sequence holds
// its states after each update, row 0 being the initial one; backward computes the gates again from it.

#include <cstdint>
#include <cstring>
#include <vector>

typedef float v16 __attribute__((vector_size(64)));
typedef float v8 __attribute__((vector_size(32)));
typedef float v4 __attribute__((vector_size(16)));
typedef int32_t i16 __attribute__((vector_size(64)));
typedef float u16 __attribute__((vector_size(64), aligned(4)));  // unaligned view

#define INLINE static inline __attribute__((always_inline))

// Structures that Python fills, which reads here what their fields are (see compiled.py).
#define STRUCTURE(name, ...)     \
    struct name { __VA_ARGS__ }; \
    static const char name##_text[] = #name " {" #__VA_ARGS__ "}";

STRUCTURE(Problem,
    int64_t T, B, D, H, gru;                       // sizes; gru: 0 LSTM, 1 GRU (reset after)
    int64_t x_t, x_b, go_t, go_b, gg_t, gg_b;      // strides of x, grad_output and grad_gate over time and batch
    const float *x;                                // (T, B, D)
    const int64_t *lengths;                        // (B,)
    const float *w_x, *w_h;                        // packed [GP/16][D or H][16]
    const float *bias_x, *bias_h;                  // (GP,)
    const float *w_p;                              // (HP,)
    float b_p, gate_grad_clip;                     // the latter infinite where there is no bound
    float *h, *c;                                  // (B, H): initial states in, final states out
    float *p, *acc;                                // (B,): likewise
    float *tape_h, *tape_c;                        // (B, T+1, HP)
    float *tape_p, *tape_a;                        // (B, T+1)
    int32_t *tape_t, *counts;                      // (B, T+1); (B,) updates
    float *output, *update_gate;                   // (T, B, H), (T, B)
    // backward
    const float *grad_output, *grad_gate;          // strided, or null
    const float *w_h_back, *w_x_back;              // packed [HP/16 or DP/16][GP][16]
    float *grad_h, *grad_c, *grad_p, *grad_acc;    // (B, H), (B,): of the final states in, of the initial ones out
    float *grad_x;                                 // (T, B, D), or null
);

STRUCTURE(Sums,                                    // one worker's gradients of the weights
    float *w_x, *w_h;                              // (GP, DP), (GP, HP)
    float *bias_x, *bias_h;                        // (GP,)
    float *w_p, *b_p;                              // (HP,), (1,)
);

STRUCTURE(Layer,                                   // weights and biases as in Problem
    int64_t D;
    const float *w_x, *w_h, *bias_x, *bias_h;
);

STRUCTURE(Stack,
    int64_t kind, layers, H;                       // kind: 0 LSTM, 1 GRU (reset after), 2 GRU (reset before)
    const Layer *layer;
    const float *w_p;                              // (HP,)
    float b_p;
);

STRUCTURE(Inference,
    const Stack *stack;
    int64_t T, B, x_t, x_b;
    const float *x;                                // (T, B, D), strided
    const int64_t *lengths;                        // (B,)
    float *h, *c;                                  // (layers, B, H): initial states in, final states out
    float *p, *acc;                                // (B,): likewise
    float *output, *update_gate;                   // (T, B, H), (T, B)
);

STRUCTURE(Follower,                                // one sequence, whose samples come bit by bit
    const Stack *stack;
    float *h, *c;                                  // (layers, HP)
    float *p;
    int64_t skips;                                 // of the next samples, not read; INT64_MAX: all
    int64_t used, last;                            // of the samples just taken: how many were, and which was the last
);

namespace {

const int ROWS = 32;      // sequences of a block
const int SKIPS = 64;     // skipped steps whose inputs go through one product
const int PENDING = 256;  // updates whose weight gradients are summed in one product

INLINE int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }
INLINE v16 load(const float *p) { return *(const u16 *)p; }
INLINE void store(float *p, v16 v) { *(u16 *)p = v; }
INLINE v16 splat(float s) { return s - v16{}; }
INLINE v16 first_lanes(v16 v, int64_t n) {
    const i16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return lane < (int32_t)n ? v : v16{};
}
INLINE float total(v16 v) {
    union { v16 whole; v8 half[2]; } a = {v};
    union { v8 whole; v4 half[2]; } b = {a.half[0] + a.half[1]};
    v4 s = b.half[0] + b.half[1];
    return (s[0] + s[1]) + (s[2] + s[3]);
}

INLINE v16 clamped(v16 x, float bound) {
    x = x > bound ? splat(bound) : x;
    return x < -bound ? splat(-bound) : x;
}

INLINE v16 exponential(v16 x) {  // relative error below 2e-7, for x within ±87
    v16 shifted = x * 1.44269504f + 12582912.0f;  // adding 1.5·2^23 rounds to an integer
    v16 n = shifted - 12582912.0f;
    v16 r = x - n * 0.693359375f + n * 2.12194440e-4f;
    v16 y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    return y * (v16)(((i16)shifted + 127) << 23);
}
INLINE v16 sigmoid(v16 x) { return 1.0f / (1.0f + exponential(-clamped(x, 87.0f))); }
INLINE v16 hyperbolic(v16 x) {
    v16 z = x * x;  // near zero the quotient would cancel
    v16 y = z * -5.70498872745e-3f + 2.06390887954e-2f;
    y = y * z - 5.37397155531e-2f;
    y = y * z + 1.33314422036e-1f;
    y = y * z - 3.33332819422e-1f;
    return z < 0.390625f ? y * z * x + x : 1.0f - 2.0f / (1.0f + exponential(2.0f * clamped(x, 10.0f)));
}

// One of the four steps (8, 4, 2, 1) of transposing 16 rows: exchanges lanes between rows whose numbers differ by S.
template <int S>
INLINE void transpose_step(const v16 *a, v16 *b) {
#define LOW(l) (((l) & ~S) + ((l) & S ? 16 : 0))
#define HIGH(l) (((l) | S) + ((l) & S ? 16 : 0))
#define LANES(of) of(0), of(1), of(2), of(3), of(4), of(5), of(6), of(7), of(8), of(9), of(10), of(11), of(12), of(13), of(14), of(15)
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        if (!(i & S)) {
#if defined(__clang__) || __GNUC__ >= 12
            b[i] = __builtin_shufflevector(a[i], a[i + S], LANES(LOW));
            b[i + S] = __builtin_shufflevector(a[i], a[i + S], LANES(HIGH));
#else
            b[i] = __builtin_shuffle(a[i], a[i + S], i16{LANES(LOW)});
            b[i + S] = __builtin_shuffle(a[i], a[i + S], i16{LANES(HIGH)});
#endif
        }
}

// C[MR, 16] (+)= A[MR, K] · W[K, 16]
template <int MR>
INLINE void tile(const float *A, int64_t lda, int64_t K, const float *W, float *C, int64_t ldc, const float *bias) {
    v16 sum[MR];
#pragma GCC unroll 8
    for (int m = 0; m < MR; m++) sum[m] = bias ? load(bias) : load(C + m * ldc);
    for (int64_t k = 0; k < K; k++) {
        v16 w = load(W + 16 * k);
#pragma GCC unroll 8
        for (int m = 0; m < MR; m++) sum[m] += A[m * lda + k] * w;
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; m++) store(C + m * ldc, sum[m]);
}

// C[16 NB] (+)= A[K] · W, for one row: several sums at a time, because each waits for its own last addition
template <int NB>
INLINE void row(const float *A, int64_t K, const float *W, float *C, const float *bias) {
    v16 sum[NB];
#pragma GCC unroll 4
    for (int m = 0; m < NB; m++) sum[m] = load((bias ? bias : C) + 16 * m);
    for (int64_t k = 0; k < K; k++) {
#pragma GCC unroll 4
        for (int m = 0; m < NB; m++) sum[m] += A[k] * load(W + 16 * (m * K + k));
    }
#pragma GCC unroll 4
    for (int m = 0; m < NB; m++) store(C + 16 * m, sum[m]);
}

// C[n, N] = bias + A[n, K] · W, or C += A · W where bias is null; W packed [N/16][K][16]
INLINE void product(const float *A, int64_t lda, int64_t n, int64_t K, const float *W, int64_t N, float *C, int64_t ldc,
                    const float *bias) {
    const int64_t tiled = n / 4 * 4;
    for (int64_t j = 0; tiled && j < N; j += 16) {
        const float *b = bias ? bias + j : nullptr;
        int64_t i = 0;
        for (; i + 8 <= tiled; i += 8) tile<8>(A + i * lda, lda, K, W + j * K, C + i * ldc + j, ldc, b);
        for (; i < tiled; i += 4) tile<4>(A + i * lda, lda, K, W + j * K, C + i * ldc + j, ldc, b);
    }
    for (int64_t i = tiled; i < n; i++) {
        int64_t j = 0;
        for (; j + 64 <= N; j += 64) row<4>(A + i * lda, K, W + j * K, C + i * ldc + j, bias ? bias + j : nullptr);
        for (; j < N; j += 16) row<1>(A + i * lda, K, W + j * K, C + i * ldc + j, bias ? bias + j : nullptr);
    }
}

// C[M, N] += A[n, M]ᵀ · B[n, N]; M is a multiple of 8, N of 16
INLINE void outer_product(const float *A, int64_t M, const float *B, int64_t N, int64_t n, float *C) {
    for (int64_t j = 0; j < N; j += 16)
        for (int64_t i = 0; i < M; i += 8) {
            v16 sum[8];
#pragma GCC unroll 8
            for (int m = 0; m < 8; m++) sum[m] = load(C + (i + m) * N + j);
            for (int64_t r = 0; r < n; r++) {
                v16 b = load(B + r * N + j);
#pragma GCC unroll 8
                for (int m = 0; m < 8; m++) sum[m] += A[r * M + i + m] * b;
            }
#pragma GCC unroll 8
            for (int m = 0; m < 8; m++) store(C + (i + m) * N + j, sum[m]);
        }
}

// Zeroed memory, handed out in pieces that start at multiples of 64 bytes; as plain pointers, because calls of
// std::vector are not inlined into functions for one instruction set.
struct Memory {
    std::vector<float> all;
    int64_t next;
    explicit Memory(int64_t floats) : all(floats + 16 * 12) { next = (64 - (uintptr_t)all.data() % 64) % 64 / 4; }
    float *take(int64_t floats) {
        float *piece = all.data() + next;
        next += padded(floats);
        return piece;
    }
};

struct Gates {  // activations of 16 units
    v16 i, f, g, o, tanh_c;  // LSTM; the GRU's r, z, n are i, f, g, and o is the hidden share of n
    v16 h, c;
};

template <bool GRU>
INLINE Gates candidate(const float *zx, const float *zh, int64_t HP, int64_t u, v16 h, v16 c) {
    Gates s;
    if (GRU) {
        s.i = sigmoid(load(zx + u) + load(zh + u));
        s.f = sigmoid(load(zx + HP + u) + load(zh + HP + u));
        s.o = load(zh + 2 * HP + u);
        s.g = hyperbolic(load(zx + 2 * HP + u) + s.i * s.o);
        s.h = (1.0f - s.f) * s.g + s.f * h;
        s.c = s.h;
    } else {
        s.i = sigmoid(load(zx + u) + load(zh + u));
        s.f = sigmoid(load(zx + HP + u) + load(zh + HP + u));
        s.g = hyperbolic(load(zx + 2 * HP + u) + load(zh + 2 * HP + u));
        s.o = sigmoid(load(zx + 3 * HP + u) + load(zh + 3 * HP + u));
        s.c = s.f * c + s.i * s.g;
        s.tanh_c = hyperbolic(s.c);
        s.h = s.o * s.tanh_c;
    }
    return s;
}

struct Skipped {  // 16 units of a candidate that was not taken
    v16 h, c;
};

// The same with fewer divisions, good to 2e-7 of 1: skipped steps are many, and only sums over units leave them.
template <bool GRU>
INLINE Skipped skipped_candidate(const float *zx, const float *zh, int64_t HP, int64_t u, v16 h, v16 c) {
    v16 i = exponential(-clamped(load(zx + u) + load(zh + u), 40.0f));
    v16 f = exponential(-clamped(load(zx + HP + u) + load(zh + HP + u), 40.0f));
    if (GRU) {
        v16 n = load(zx + 2 * HP + u) + load(zh + 2 * HP + u) / (1.0f + i);
        n = exponential(2.0f * clamped(n, 10.0f));
        v16 taken = (f * (n - 1.0f) + h * (n + 1.0f)) / ((1.0f + f) * (n + 1.0f));
        return {taken, taken};
    }
    v16 g = exponential(2.0f * clamped(load(zx + 2 * HP + u) + load(zh + 2 * HP + u), 10.0f));
    v16 o = exponential(-clamped(load(zx + 3 * HP + u) + load(zh + 3 * HP + u), 40.0f));
    c = c / (1.0f + f) + (g - 1.0f) / ((1.0f + i) * (1.0f + g));
    g = exponential(2.0f * clamped(c, 10.0f));
    return {(g - 1.0f) / ((1.0f + o) * (1.0f + g)), c};
}

INLINE float bounded(float x, float bound) { return x > bound ? bound : x < -bound ? -bound : x; }

INLINE float probability(float logit) { return sigmoid(v16{logit})[0]; }

// Between two powers of 2 every addition of p adds the same, after one in which a tie may have been rounded: after the
// addition that made `before` into `acc`, all but one of those up to the next power are done at once, `most` at the most.
INLINE int64_t skip_additions(float p, float before, float &acc, int64_t most) {
    const float gain = acc + p - acc;
    if (gain == 0) return most;  // p is too small to be added any more
    uint32_t bits[2];
    memcpy(&bits[0], &before, 4), memcpy(&bits[1], &acc, 4);
    if (bits[0] >> 23 != bits[1] >> 23) return 0;
    const uint32_t next = ((bits[1] >> 23) + 1) << 23;
    float power;
    memcpy(&power, &next, 4);
    const float room = (power < 0.5f ? power : 0.5f) - acc;
    const float additions = room / gain - 1;
    if (!(additions >= 1 && additions < 1e9f)) return 0;
    int64_t n = (int64_t)additions;
    if (n > most) n = most;
    acc += n * gain;
    return n;
}

// The step at which the gate opens next, or at least end; p is added up step by step as the reference does.
INLINE int64_t next_update(float p, float &acc, int64_t t, int64_t end) {
    for (t++; t < end; t++) {
        const float room = 1 - acc, before = acc;
        acc += p <= room ? p : room;
        if (acc > 0.5f) return t;
        if (!(acc > before)) return end;  // nor will it ever grow, NaN least of all
        if (p < 1e-3f) t += skip_additions(p, before, acc, end - 1 - t);
    }
    return end;
}

template <bool GRU>
INLINE void forward_block(const Problem &q, int64_t first, int64_t last) {
    const int64_t H = q.H, HP = padded(H), GP = (GRU ? 3 : 4) * HP, S = q.T + 1;
    Memory memory(ROWS * (q.D + HP + 2 * GP));
    float *xs = memory.take(ROWS * q.D), *hs = memory.take(ROWS * HP);
    float *zx = memory.take(ROWS * GP), *zh = memory.take(ROWS * GP);
    int64_t t[ROWS], active[ROWS];
    for (int64_t b = first; b < last; b++) {
        memcpy(q.tape_h + b * S * HP, q.h + b * H, H * sizeof(float));
        if (!GRU) memcpy(q.tape_c + b * S * HP, q.c + b * H, H * sizeof(float));
        q.tape_p[b * S] = q.p[b];
        q.tape_a[b * S] = q.acc[b];
        q.counts[b] = 0;
        t[b - first] = next_update(q.p[b], q.acc[b], -1, q.lengths[b]);
    }
    for (;;) {
        int64_t n = 0;
        for (int64_t b = first; b < last; b++)
            if (t[b - first] < q.lengths[b]) {
                memcpy(&xs[n * q.D], q.x + t[b - first] * q.x_t + b * q.x_b, q.D * sizeof(float));
                memcpy(&hs[n * HP], q.tape_h + (b * S + q.counts[b]) * HP, HP * sizeof(float));
                active[n++] = b;
            }
        if (n == 0) break;
        product(xs, q.D, n, q.D, q.w_x, GP, zx, GP, q.bias_x);
        product(hs, HP, n, H, q.w_h, GP, zh, GP, q.bias_h);
        for (int64_t r = 0; r < n; r++) {
            const int64_t b = active[r], k = b * S + q.counts[b]++, at = t[b - first];
            v16 dot{};
            for (int64_t u = 0; u < HP; u += 16) {
                v16 c = GRU ? v16{} : load(q.tape_c + k * HP + u);
                Gates s = candidate<GRU>(&zx[r * GP], &zh[r * GP], HP, u, load(&hs[r * HP + u]), c);
                if (u + 16 > H) s.h = first_lanes(s.h, H - u), s.c = first_lanes(s.c, H - u);  // were inputs infinite
                store(q.tape_h + (k + 1) * HP + u, s.h);
                if (!GRU) store(q.tape_c + (k + 1) * HP + u, s.c);
                dot += s.c * load(q.w_p + u);
            }
            const float p = probability(total(dot) + q.b_p);
            q.tape_t[k + 1] = (int32_t)at;
            q.tape_a[k + 1] = q.acc[b];
            q.tape_p[k + 1] = q.p[b] = p;
            q.acc[b] = 0;
            q.update_gate[at * q.B + b] = 1;
            t[b - first] = next_update(p, q.acc[b], at, q.lengths[b]);
        }
    }
    int64_t shown[ROWS] = {};
    for (int64_t at = 0; at < q.T; at++)
        for (int64_t b = first; b < last; b++) {
            int64_t &e = shown[b - first];
            if (e < q.counts[b] && q.tape_t[b * S + e + 1] == at) e++;
            memcpy(q.output + (at * q.B + b) * H, q.tape_h + (b * S + e) * HP, H * sizeof(float));
        }
    for (int64_t b = first; b < last; b++) {
        const int64_t k = b * S + q.counts[b];
        memcpy(q.h + b * H, q.tape_h + k * HP, H * sizeof(float));
        if (!GRU) memcpy(q.c + b * H, q.tape_c + k * HP, H * sizeof(float));
    }
}

// Gradients of the weights, summed over several updates at a time.
struct Pending {
    Memory memory;
    int64_t n = 0, DP, HP, GP;
    float *x, *h, *zx, *zh;  // (n, DP), (n, HP), (n, GP), (n, GP)
    Pending(int64_t DP, int64_t HP, int64_t GP)
        : memory((PENDING + ROWS) * (DP + HP + 2 * GP)), DP(DP), HP(HP), GP(GP), x(memory.take((PENDING + ROWS) * DP)),
          h(memory.take((PENDING + ROWS) * HP)), zx(memory.take((PENDING + ROWS) * GP)),
          zh(memory.take((PENDING + ROWS) * GP)) {}
};

template <bool GRU>
INLINE void flush(Pending &w, Sums &sums) {
    const float *zh = GRU ? w.zh : w.zx;
    outer_product(w.zx, w.GP, w.x, w.DP, w.n, sums.w_x);
    outer_product(zh, w.GP, w.h, w.HP, w.n, sums.w_h);
    for (int64_t r = 0; r < w.n; r++)
        for (int64_t u = 0; u < w.GP; u += 16) {
            store(sums.bias_x + u, load(sums.bias_x + u) + load(&w.zx[r * w.GP + u]));
            store(sums.bias_h + u, load(sums.bias_h + u) + load(zh + r * w.GP + u));
        }
    w.n = 0;
}

template <bool GRU>
INLINE void backward_block(const Problem &q, int64_t first, int64_t last, Sums &sums, Pending &w) {
    const int64_t D = q.D, H = q.H, HP = padded(H), DP = padded(D), GP = (GRU ? 3 : 4) * HP, S = q.T + 1;
    Memory memory(ROWS * (4 * HP + GP + DP) + SKIPS * (GP + D) + DP);
    float *Gh = memory.take(ROWS * HP), *Gc = memory.take(ROWS * HP), *hs = memory.take(ROWS * HP);
    float *back = memory.take(ROWS * HP), *zh = memory.take(ROWS * GP), *z = memory.take(SKIPS * GP);
    float *xs = memory.take(SKIPS * D), *dx = memory.take(ROWS * DP), *no_bias = memory.take(DP);
    int64_t active[ROWS], most = 0;
    for (int64_t b = first; b < last; b++) {
        const int64_t r = b - first;
        memcpy(&Gh[r * HP], q.grad_h + b * H, H * sizeof(float));
        if (!GRU) memcpy(&Gc[r * HP], q.grad_c + b * H, H * sizeof(float));
        if (q.grad_output)  // past its end a sequence's output repeats its last state
            for (int64_t t = q.lengths[b]; t < q.T; t++)
                for (int64_t u = 0; u < H; u++) Gh[r * HP + u] += q.grad_output[t * q.go_t + b * q.go_b + u];
        if (q.counts[b] > most) most = q.counts[b];
    }
    for (int64_t k = most; k >= 0; k--) {
        // the hidden share of the gates, for sequences whose last state this is
        int64_t n = 0;
        for (int64_t b = first; b < last; b++)
            if (q.counts[b] == k) {
                memcpy(&hs[n * HP], q.tape_h + (b * S + k) * HP, HP * sizeof(float));
                active[n++] = b - first;
            }
        if (n) product(hs, HP, n, H, q.w_h, GP, z, GP, q.bias_h);
        for (int64_t i = 0; i < n; i++) memcpy(&zh[active[i] * GP], &z[i * GP], GP * sizeof(float));

        // back over the steps skipped after update k, of one sequence after the other, several a product
        int64_t b = first, t = 0, at[SKIPS], of[SKIPS];
        for (bool entered = false;;) {
            int64_t m = 0;
            while (m < SKIPS && b < last) {
                const int64_t row = b * S + k, begin = k ? q.tape_t[row] : -1;
                if (q.counts[b] >= k && !entered) {
                    t = (k < q.counts[b] ? q.tape_t[row + 1] : q.lengths[b]) - 1;
                    entered = true;
                }
                if (q.counts[b] < k || t <= begin) {
                    b++;
                    entered = false;
                    continue;
                }
                memcpy(xs + m * D, q.x + t * q.x_t + b * q.x_b, D * sizeof(float));
                of[m] = b;
                at[m++] = t--;
            }
            if (m == 0) break;
            product(xs, D, m, D, q.w_x, GP, z, GP, q.bias_x);
            for (int64_t i = 0; i < m; i++) {
                const int64_t b = of[i], t = at[i], r = b - first, row = b * S + k, begin = k ? q.tape_t[row] : -1;
                const float p = q.tape_p[row], acc = k ? 0 : q.tape_a[row];
                if (q.grad_output)
                    for (int64_t u = 0; u < H; u++) Gh[r * HP + u] += q.grad_output[t * q.go_t + b * q.go_b + u];
                v16 gain{}, dot{};
                for (int64_t u = 0; u < HP; u += 16) {
                    v16 h = load(q.tape_h + row * HP + u), c = GRU ? v16{} : load(q.tape_c + row * HP + u);
                    Skipped s = skipped_candidate<GRU>(z + i * GP, zh + r * GP, HP, u, h, c);
                    gain += (s.h - h) * load(Gh + r * HP + u);
                    if (!GRU) gain += (s.c - c) * load(Gc + r * HP + u);
                    dot += s.c * load(q.w_p + u);
                }
                const float p_skipped = probability(total(dot) + q.b_p);
                float gu = total(gain) + q.grad_p[b] * (p_skipped - p) - q.grad_acc[b] * (acc + (t - begin) * p);
                if (q.grad_gate) gu += q.grad_gate[t * q.gg_t + b * q.gg_b];
                q.grad_acc[b] += bounded(gu, q.gate_grad_clip);
                q.grad_p[b] += q.grad_acc[b];
            }
        }
        if (k == 0) break;

        // back over update k
        n = 0;
        for (int64_t b = first; b < last; b++)
            if (q.counts[b] >= k) {
                const int64_t t = q.tape_t[b * S + k];
                float *px = &w.x[(w.n + n) * DP];
                memcpy(px, q.x + t * q.x_t + b * q.x_b, D * sizeof(float));
                memcpy(&w.h[(w.n + n) * HP], q.tape_h + (b * S + k - 1) * HP, HP * sizeof(float));
                active[n++] = b - first;
            }
        float *zx = &w.zx[w.n * GP], *h_before = &w.h[w.n * HP], *x_at = &w.x[w.n * DP];
        product(x_at, DP, n, D, q.w_x, GP, zx, GP, q.bias_x);
        product(h_before, HP, n, H, q.w_h, GP, z, GP, q.bias_h);
        for (int64_t i = 0; i < n; i++) {
            const int64_t r = active[i], b = first + r, row = b * S + k, t = q.tape_t[row];
            memcpy(&zh[r * GP], &z[i * GP], GP * sizeof(float));  // the segment before needs it too
            float *dz = zx + i * GP, *dzh = &w.zh[(w.n + i) * GP];
            if (q.grad_output)
                for (int64_t u = 0; u < H; u++) Gh[r * HP + u] += q.grad_output[t * q.go_t + b * q.go_b + u];
            const float p = q.tape_p[row], gp = q.grad_p[b], grad_logit = gp * p * (1 - p);
            v16 gain{};
            for (int64_t u = 0; u < HP; u += 16) {
                v16 h0 = load(h_before + i * HP + u), c0 = GRU ? v16{} : load(q.tape_c + (row - 1) * HP + u);
                Gates s = candidate<GRU>(dz, &z[i * GP], HP, u, h0, c0);
                v16 gh = load(&Gh[r * HP + u]);
                gain += (s.h - h0) * gh;
                store(sums.w_p + u, load(sums.w_p + u) + grad_logit * s.c);
                v16 via_gate = grad_logit * load(q.w_p + u);
                if (GRU) {
                    gh += via_gate;
                    v16 dn = gh * (1.0f - s.f) * (1.0f - s.g * s.g);
                    v16 dr = dn * s.o * s.i * (1.0f - s.i), dzz = gh * (h0 - s.g) * s.f * (1.0f - s.f);
                    store(dz + u, dr), store(dz + HP + u, dzz), store(dz + 2 * HP + u, dn);
                    store(dzh + u, dr), store(dzh + HP + u, dzz), store(dzh + 2 * HP + u, dn * s.i);
                    store(&back[i * HP + u], gh * s.f);
                } else {
                    v16 gc = load(&Gc[r * HP + u]);
                    gain += (s.c - c0) * gc;
                    gc += via_gate + gh * s.o * (1.0f - s.tanh_c * s.tanh_c);
                    store(dz + u, gc * s.g * s.i * (1.0f - s.i));
                    store(dz + HP + u, gc * c0 * s.f * (1.0f - s.f));
                    store(dz + 2 * HP + u, gc * s.i * (1.0f - s.g * s.g));
                    store(dz + 3 * HP + u, gh * s.tanh_c * s.o * (1.0f - s.o));
                    store(&Gc[r * HP + u], gc * s.f);
                    store(&back[i * HP + u], v16{});
                }
            }
            sums.b_p[0] += grad_logit;
            float gu = total(gain) + gp * (p - q.tape_p[row - 1]) - q.grad_acc[b] * q.tape_a[row];
            if (q.grad_gate) gu += q.grad_gate[t * q.gg_t + b * q.gg_b];
            q.grad_p[b] = q.grad_acc[b] = bounded(gu, q.gate_grad_clip);
        }
        product(GRU ? &w.zh[w.n * GP] : zx, GP, n, GP, q.w_h_back, HP, back, HP, nullptr);
        for (int64_t i = 0; i < n; i++) memcpy(&Gh[active[i] * HP], &back[i * HP], HP * sizeof(float));
        if (q.grad_x) {
            product(zx, GP, n, GP, q.w_x_back, DP, dx, DP, no_bias);
            for (int64_t i = 0; i < n; i++) {
                const int64_t b = first + active[i], t = q.tape_t[b * S + k];
                memcpy(q.grad_x + (t * q.B + b) * D, &dx[i * DP], D * sizeof(float));
            }
        }
        if ((w.n += n) >= PENDING) flush<GRU>(w, sums);
    }
    for (int64_t b = first; b < last; b++) {
        memcpy(q.grad_h + b * H, &Gh[(b - first) * HP], H * sizeof(float));
        if (!GRU) memcpy(q.grad_c + b * H, &Gc[(b - first) * HP], H * sizeof(float));
    }
}

// One update of a stack whose states are h and c, (layers, HP); returns the update probability.
template <int KIND>
INLINE float update(const Stack &q, const float *x, float *h, float *c, float *zx, float *zh) {
    const int64_t H = q.H, HP = padded(H), GP = (KIND ? 3 : 4) * HP;
    v16 dot{};
    for (int64_t l = 0; l < q.layers; x = h, h += HP, c += HP, l++) {
        const Layer &w = q.layer[l];
        product(x, w.D, 1, w.D, w.w_x, GP, zx, GP, w.bias_x);
        product(h, HP, 1, H, w.w_h, KIND == 2 ? 2 * HP : GP, zh, GP, w.bias_h);
        if (KIND == 2) {  // the candidate reads r⊙h
            float *n = zh + 2 * HP, *reset = zh;
            memcpy(n, w.bias_h + 2 * HP, HP * sizeof(float));
            for (int64_t u = 0; u < HP; u += 16)
                store(reset + u, sigmoid(load(zx + u) + load(zh + u)) * load(h + u));
            product(reset, HP, 1, H, w.w_h + 2 * HP * H, HP, n, HP, nullptr);
        }
        dot = v16{};
        for (int64_t u = 0; u < HP; u += 16) {
            Gates s;
            if (KIND == 2) {
                v16 z = sigmoid(load(zx + HP + u) + load(zh + HP + u));
                s.h = (1.0f - z) * hyperbolic(load(zx + 2 * HP + u) + load(zh + 2 * HP + u)) + z * load(h + u);
                s.c = s.h;
            } else
                s = candidate<KIND == 1>(zx, zh, HP, u, load(h + u), load(c + u));
            if (u + 16 > H) s.h = first_lanes(s.h, H - u), s.c = first_lanes(s.c, H - u);  // were inputs infinite
            store(h + u, s.h);
            store(c + u, s.c);
            dot += s.c * load(q.w_p + u);
        }
    }
    return probability(total(dot) + q.b_p);
}

INLINE float update(const Stack &q, const float *x, float *h, float *c, float *zx, float *zh) {
    return q.kind == 0   ? update<0>(q, x, h, c, zx, zh)
           : q.kind == 1 ? update<1>(q, x, h, c, zx, zh)
                         : update<2>(q, x, h, c, zx, zh);
}

// Worker `worker` of `workers` runs every workers-th sequence.
INLINE void infer(const Inference &q, int64_t worker, int64_t workers) {
    const Stack &stack = *q.stack;
    const int64_t H = stack.H, HP = padded(H), L = stack.layers;
    Memory memory(2 * L * HP + 8 * HP);
    float *h = memory.take(L * HP), *c = memory.take(L * HP), *zx = memory.take(4 * HP), *zh = memory.take(4 * HP);
    for (int64_t b = worker; b < q.B; b += workers) {
        for (int64_t l = 0; l < L; l++) {
            memcpy(h + l * HP, q.h + (l * q.B + b) * H, H * sizeof(float));
            memcpy(c + l * HP, q.c + (l * q.B + b) * H, H * sizeof(float));
        }
        int64_t shown = 0;
        for (int64_t t = -1;;) {
            const int64_t next = next_update(q.p[b], q.acc[b], t, q.lengths[b]);
            t = next < q.lengths[b] ? next : q.T;
            for (; shown < t; shown++) memcpy(q.output + (shown * q.B + b) * H, h + (L - 1) * HP, H * sizeof(float));
            if (t == q.T) break;
            q.p[b] = update(stack, q.x + t * q.x_t + b * q.x_b, h, c, zx, zh);
            q.acc[b] = 0;
            q.update_gate[t * q.B + b] = 1;
        }
        for (int64_t l = 0; l < L; l++) {
            memcpy(q.h + (l * q.B + b) * H, h + l * HP, H * sizeof(float));
            if (stack.kind == 0) memcpy(q.c + (l * q.B + b) * H, c + l * HP, H * sizeof(float));
        }
    }
}

// Takes T samples, of which one at least is used.
INLINE void follow(Follower &q, const float *x, int64_t x_t, int64_t T) {
    const int64_t HP = padded(q.stack->H);
    Memory memory(8 * HP);
    float *zx = memory.take(4 * HP), *zh = memory.take(4 * HP);
    int64_t t = q.skips;
    for (q.used = 0; t < T; q.used++) {
        float acc = 0;
        *q.p = update(*q.stack, x + t * x_t, q.h, q.c, zx, zh);
        q.last = t;
        t = next_update(*q.p, acc, t, INT64_MAX);
    }
    q.skips = t == INT64_MAX ? t : t - T;
}

// out, (gates * HP / 16, K, 16) = w, (gates * H, K), with its units padded
INLINE void pack(const float *w, int64_t gates, int64_t H, int64_t K, float *out) {
    for (int64_t g = 0; g < gates; g++, w += H * K)
        for (int64_t u = 0; u < H; u += 16, out += 16 * K) {
            const int64_t rows = H - u < 16 ? H - u : 16;
            int64_t k = 0;
            for (; rows == 16 && k + 16 <= K; k += 16) {
                v16 a[16], b[16];
#pragma GCC unroll 16
                for (int i = 0; i < 16; i++) a[i] = load(w + (u + i) * K + k);
                transpose_step<8>(a, b);
                transpose_step<4>(b, a);
                transpose_step<2>(a, b);
                transpose_step<1>(b, a);
#pragma GCC unroll 16
                for (int i = 0; i < 16; i++) store(out + 16 * (k + i), a[i]);
            }
            for (; k < K; k++)
                for (int64_t i = 0; i < 16; i++) out[16 * k + i] = i < rows ? w[(u + i) * K + k] : 0;
        }
}

// Worker `worker` of `workers` runs every workers-th block.
INLINE void forward(const Problem &q, int64_t worker, int64_t workers) {
    for (int64_t first = worker * ROWS; first < q.B; first += workers * ROWS) {
        const int64_t last = first + ROWS < q.B ? first + ROWS : q.B;
        if (q.gru)
            forward_block<true>(q, first, last);
        else
            forward_block<false>(q, first, last);
    }
}

INLINE void backward(const Problem &q, Sums &sums, int64_t worker, int64_t workers) {
    const int64_t HP = padded(q.H);
    Pending pending(padded(q.D), HP, (q.gru ? 3 : 4) * HP);
    for (int64_t first = worker * ROWS; first < q.B; first += workers * ROWS) {
        const int64_t last = first + ROWS < q.B ? first + ROWS : q.B;
        if (q.gru)
            backward_block<true>(q, first, last, sums, pending);
        else
            backward_block<false>(q, first, last, sums, pending);
    }
    if (q.gru)
        flush<true>(pending, sums);
    else
        flush<false>(pending, sums);
}

// The same for several instruction sets, of which the machine's best is called.
#define FOR_INSTRUCTIONS(suffix, attribute)                                                                       \
    attribute void forward_##suffix(const Problem &q, int64_t worker, int64_t workers) {                           \
        forward(q, worker, workers);                                                                              \
    }                                                                                                             \
    attribute void backward_##suffix(const Problem &q, Sums &sums, int64_t worker, int64_t workers) {              \
        backward(q, sums, worker, workers);                                                                       \
    }                                                                                                             \
    attribute void infer_##suffix(const Inference &q, int64_t worker, int64_t workers) { infer(q, worker, workers); } \
    attribute void follow_##suffix(Follower &q, const float *x, int64_t x_t, int64_t T) { follow(q, x, x_t, T); }  \
    attribute void pack_##suffix(const float *w, int64_t gates, int64_t H, int64_t K, float *out) {                \
        pack(w, gates, H, K, out);                                                                                \
    }
#if defined(__x86_64__) && defined(__GNUC__)
FOR_INSTRUCTIONS(avx512, __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma"))))
FOR_INSTRUCTIONS(avx2, __attribute__((target("avx2,fma"))))
#define CALL(name, ...)                                                                                           \
    (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") \
         ? name##_avx512(__VA_ARGS__)                                                                             \
     : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? name##_avx2(__VA_ARGS__)                  \
                                                                       : name##_any(__VA_ARGS__))
#else
#define CALL(name, ...) name##_any(__VA_ARGS__)
#endif
FOR_INSTRUCTIONS(any, )

}  // namespace

extern "C" {

// OpenMP, because its threads are torch's own: others would share the cores with those, which spin between uses.
void skiprnn_forward(const Problem *q, int64_t workers) {
#pragma omp parallel for schedule(static, 1) num_threads(workers)
    for (int64_t worker = 0; worker < workers; worker++) CALL(forward, *q, worker, workers);
}

void skiprnn_backward(const Problem *q, Sums *sums, int64_t workers) {
#pragma omp parallel for schedule(static, 1) num_threads(workers)
    for (int64_t worker = 0; worker < workers; worker++) CALL(backward, *q, sums[worker], worker, workers);
}

void skiprnn_infer(const Inference *q, int64_t workers) {
#pragma omp parallel for schedule(static, 1) num_threads(workers)
    for (int64_t worker = 0; worker < workers; worker++) CALL(infer, *q, worker, workers);
}

void skiprnn_follow(Follower *q, const float *x, int64_t x_t, int64_t T) { CALL(follow, *q, x, x_t, T); }

// How many of the next limit steps do not open the gate; acc becomes the sum that then does, or that after them.
void skiprnn_count(const float *p, float *acc, const int64_t *limit, int64_t B, int64_t *steps) {
    for (int64_t b = 0; b < B; b++) steps[b] = next_update(p[b], acc[b], -1, limit[b]);
}

void skiprnn_pack(const float *w, int64_t gates, int64_t H, int64_t K, float *out) {
    CALL(pack, w, gates, H, K, out);
}

// Copies a stack's weights, shaped as torch has them, into `memory`, as Stack describes them.
void skiprnn_pack_stack(const Stack *raw, Stack *packed, float *memory) {
    const int64_t H = raw->H, gates = raw->kind ? 3 : 4;
    Layer *layer = const_cast<Layer *>(packed->layer);
    const auto copy = [&memory, H](const float *w, int64_t gates, int64_t K) {
        float *const out = memory;
        skiprnn_pack(w, gates, H, K, out);
        memory += gates * padded(H) * K;
        return out;
    };
    for (int64_t l = 0; l < raw->layers; l++) {
        const Layer &w = raw->layer[l];
        layer[l] = {w.D, copy(w.w_x, gates, w.D), copy(w.w_h, gates, H), copy(w.bias_x, gates, 1),
                    copy(w.bias_h, gates, 1)};
    }
    *packed = {raw->kind, raw->layers, H, layer, copy(raw->w_p, 1, 1), raw->b_p};
}

int64_t skiprnn_block() { return ROWS; }
const char *skiprnn_source() { return SOURCE; }
const char *skiprnn_structure(int64_t number) {
    const char *const texts[] = {Problem_text, Sums_text, Layer_text, Stack_text, Inference_text, Follower_text};
    return number < 6 ? texts[number] : nullptr;
}
int64_t skiprnn_size(int64_t number) {
    const int64_t sizes[] = {sizeof(Problem), sizeof(Sums),      sizeof(Layer),
                             sizeof(Stack),   sizeof(Inference), sizeof(Follower)};
    return sizes[number];
}
}
