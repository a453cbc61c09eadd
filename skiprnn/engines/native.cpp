// The event-driven engine on the CPU in float32: forward and backward of a stack, a block of sequences at a time (see
// native.py), and at the end of the file one sequence whose samples come bit by bit. Under autocast what products multiply
// is rounded to bfloat16; all sums are float32.
//
// A block of sequences runs its whole event loop here, so that weights stay in the cache and nothing but products and
// gates is left to do. Gates are padded to a multiple of 16 units; padded units stay zero. The tape of a sequence holds
// its states after each update, row 0 being the initial one, and the update's gates; or what they are cheap to compute
// from, where that serves the steps skipped before it too (see keeps_share).

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

// What a register of AVX-512, of AVX2 and of any machine holds. Code is for any such V, since compilers keep vectors wider
// than a register in memory.
typedef float v16 __attribute__((vector_size(64)));
typedef float v8 __attribute__((vector_size(32)));
typedef float v4 __attribute__((vector_size(16)));
template <class V>
constexpr int lanes = sizeof(V) / sizeof(float);
template <class V>
using ints = decltype(V{} < V{});  // int32_t, as many

#define INLINE static inline __attribute__((always_inline))

// Structures that Python fills, which reads here what their fields are (see compiled.py).
#define STRUCTURE(name, ...)     \
    struct name { __VA_ARGS__ }; \
    static const char name##_text[] = #name " {" #__VA_ARGS__ "}";

STRUCTURE(Layer,                                   // shaped as in torch, or packed by skiprnn_pack_stack
    int64_t D, form;                               // form: of w_x and w_x_back (see Form); D is 0 where x are the products
    const float *w_x, *w_h, *bias_x, *bias_h;      // packed [GP/16][D or H][16] and (GP,)
    const float *w_x_back, *w_h_back;              // packed [DP/16 or HP/16][GP][16], for training
);

STRUCTURE(Stack,
    int64_t kind, layers, H, form;                 // kind: 0 LSTM, 1 GRU (reset after), 2 GRU (reset before)
    const Layer *layer;
    const float *w_p;                              // (HP,)
    float b_p, low, high;                          // low and high: bounds of the update probability
);

STRUCTURE(Problem,
    const Stack *stack;
    int64_t T, B;
    int64_t N;                                     // rows of x that samples are taken from, or 0: x are the samples
    int64_t x_t, x_b, go_t, go_b, gg_t, gg_b;      // strides of x, grad_output and grad_gate over time and batch
    const float *x;                                // (T, B, D) or (N, D); where D is 0 their products with w_x, gates * H
    const int64_t *numbers;                        // (T, B), of the rows, or null
    const int64_t *lengths;                        // (B,)
    const float *draws;                            // (T, B), what sums are compared with, or null: 0.5
    float *h, *c;                                  // (layers, B, H): initial states in, final states out
    float *p, *acc;                                // (B,): likewise
    float *output, *update_gate;                   // (T, B, H), or null, and (T, B)
    float *shares;                                 // (workers, N, GP): rows' shares of the gates once used, or null
    uint8_t *known;                                // (workers, N): those that are
    float *tape_h, *tape_c, *tape_g;               // (layers, B, T+1, HP or KP), or null: nobody will go back
    float *tape_p, *tape_a;                        // (B, T+1)
    int32_t *tape_t, *counts;                      // (B, T+1); (B,) updates
    // backward
    float gate_grad_clip;                          // infinite where there is no bound
    const float *grad_output, *grad_gate;          // strided, or null
    float *grad_h, *grad_c, *grad_p, *grad_acc;    // (layers, B, H), (B,): of the final states in, of the initial out
    float *grad_x;                                 // shaped as x, with a worker's (workers, N, D), or null
    float *sums;                                   // (workers, skiprnn_sums): each worker's gradients of the weights
);

STRUCTURE(Follower,                                // one sequence, whose samples come bit by bit
    const Stack *stack;
    float *h, *c;                                  // (layers, HP)
    float *p;
    int64_t skips;                                 // of the next samples, not read; INT64_MAX: all
    int64_t used, last;                            // of the samples just taken: how many were, and which was the last
);

namespace {

// What products multiply: float32; that rounded to bfloat16; or pairs of bfloat16 in the place of one float32, which
// halves what they read, for instructions that take them so. Of raw weights, ROUNDED asks for either of the latter.
enum Form { FLOATS, ROUNDED, PAIRS };

const int ROWS = 32;      // sequences of a block, at most
const int SKIPS = 64;     // skipped steps whose inputs go through one product
const int PENDING = 256;  // updates whose weight gradients are summed in one product

INLINE int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }
template <class V>
INLINE V load(const float *p) {
    typedef V unaligned __attribute__((aligned(4)));
    return *(const unaligned *)p;
}
template <class V>
INLINE void store(float *p, V v) {
    typedef V unaligned __attribute__((aligned(4)));
    *(unaligned *)p = v;
}
template <class V>
INLINE V splat(float s) {
    return s - V{};
}
template <class V>
INLINE V first_lanes(V v, int64_t n) {
    ints<V> lane;
#pragma GCC unroll 16
    for (int i = 0; i < lanes<V>; i++) lane[i] = i;
    return lane < (int32_t)n ? v : V{};
}
INLINE float total(v4 v) { return (v[0] + v[1]) + (v[2] + v[3]); }
INLINE float total(v8 v) {
    union { v8 whole; v4 half[2]; } a = {v};
    return total(a.half[0] + a.half[1]);
}
INLINE float total(v16 v) {
    union { v16 whole; v8 half[2]; } a = {v};
    return total(a.half[0] + a.half[1]);
}

template <class V>
INLINE V clamped(V x, float bound) {
    x = x > bound ? splat<V>(bound) : x;
    return x < -bound ? splat<V>(-bound) : x;
}

template <class V>
INLINE V exponential(V x) {  // relative error below 2e-7, for x within ±87
    V shifted = x * 1.44269504f + 12582912.0f;  // adding 1.5·2^23 rounds to an integer
    V n = shifted - 12582912.0f;
    V r = x - n * 0.693359375f + n * 2.12194440e-4f;
    V y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    return y * (V)(((ints<V>)shifted + 127) << 23);
}
template <class V>
INLINE V sigmoid(V x) {
    return 1.0f / (1.0f + exponential(-clamped(x, 87.0f)));
}
template <class V>
INLINE V hyperbolic(V x) {
    V z = x * x;  // near zero the quotient would cancel
    V y = z * -5.70498872745e-3f + 2.06390887954e-2f;
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
            b[i] = __builtin_shuffle(a[i], a[i + S], ints<v16>{LANES(LOW)});
            b[i + S] = __builtin_shuffle(a[i], a[i + S], ints<v16>{LANES(HIGH)});
#endif
        }
}

// Bits of bfloat16 in the low halves, rounded to the nearest, to even where two are.
template <class V>
INLINE auto bfloat16(V x) {
    typedef uint32_t naturals __attribute__((vector_size(sizeof(V))));
    const naturals bits = (naturals)x, nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return x == x ? nearest : (bits >> 16 | 0x40);
}
template <class V>
INLINE V rounded(V x) {
    return (V)(bfloat16(x) << 16);
}
template <class V>
INLINE V paired(V first, V second) {
    return (V)(bfloat16(first) | bfloat16(second) << 16);
}

// A's numbers in a form, without space between rows: (n, K), or (n, (K + 1) / 2) of pairs.
template <class V>
INLINE void form_rows(Form form, const float *A, int64_t lda, int64_t n, int64_t K, float *out) {
    typedef uint16_t halves __attribute__((vector_size(sizeof(V) / 2)));
    for (int64_t r = 0; r < n; r++, A += lda)
        for (int64_t k = 0; k < K; k += lanes<V>) {
            float here[lanes<V>] = {};
            const int64_t count = K - k < lanes<V> ? K - k : lanes<V>;
            if (count < lanes<V>) memcpy(here, A + k, count * sizeof(float));
            const V whole = load<V>(count < lanes<V> ? here : A + k);
            if (form == ROUNDED) {
                const V one = rounded(whole);
                memcpy(out, &one, count * sizeof(float)), out += count;
            } else {
                const halves pairs = __builtin_convertvector(bfloat16(whole), halves);
                memcpy(out, &pairs, (count + 1) / 2 * sizeof(float)), out += (count + 1) / 2;
            }
        }
}

// The same of a sum over A's n rows: (n, M), or ((n + 1) / 2, M) of pairs; M is a multiple of 16.
template <class V>
INLINE void form_columns(Form form, const float *A, int64_t lda, int64_t n, int64_t M, float *out) {
    for (int64_t r = 0; r < n; r += form == PAIRS ? 2 : 1)
        for (int64_t m = 0; m < M; m += lanes<V>, out += lanes<V>) {
            const V first = load<V>(A + r * lda + m);
            store(out, form == ROUNDED ? rounded(first)
                                       : paired(first, r + 1 < n ? load<V>(A + (r + 1) * lda + m) : V{}));
        }
}

// Memory of a thread, for what a product multiplies in another form.
float *scratch(int64_t floats) {
    static thread_local std::vector<float> memory;
    if ((int64_t)memory.size() < floats) memory.resize(floats);
    return memory.data();
}

// Numbers of A, and what adds their product with a vector of W.
template <class V>
struct Float {
    typedef float number;
    typedef V vector;
    INLINE V multiply_add(V sum, float a, V w) { return sum + a * w; }
};
struct Pair {
    typedef int32_t number;
    typedef v16 vector;
    INLINE v16 multiply_add(v16 sum, int32_t a, v16 w) {
#if defined(__x86_64__) && defined(__GNUC__)
        asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"((v16)(a - ints<v16>{})));
#endif
        return sum;
    }
};

// C[R, 16 P] = bias + A[R, K] · W[K, 16 P], or C += A · W where bias is null; steps from one row, sum or panel to the next
template <class Kind, int R, int P>
INLINE void tile(const typename Kind::number *A, int64_t a_r, int64_t a_k, int64_t K, const float *W, int64_t w_k,
                 int64_t w_p, float *C, int64_t ldc, const float *bias) {
    typedef typename Kind::vector V;
    const int each = 16 / lanes<V>, vectors = P * each;  // of a panel, of all
    V sum[R][vectors];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) sum[r][v] = load<V>((bias ? bias : C + r * ldc) + lanes<V> * v);
    for (int64_t k = 0; k < K; k++) {
        V w[vectors];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) w[v] = load<V>(W + v / each * w_p + v % each * lanes<V> + k * w_k);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const typename Kind::number a = A[r * a_r + k * a_k];
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) sum[r][v] = Kind::multiply_add(sum[r][v], a, w[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) store(C + r * ldc + lanes<V> * v, sum[r][v]);
}

// The same for N columns, a multiple of 16, and all of n rows that are full tiles; returns how many those are.
template <class Kind, int R, int P>
INLINE int64_t tiles(const typename Kind::number *A, int64_t a_r, int64_t a_k, int64_t n, int64_t K, const float *W,
                     int64_t w_k, int64_t w_p, int64_t N, float *C, int64_t ldc, const float *bias) {
    const int64_t whole = n / R * R;
    int64_t j = 0;
    for (; whole && j + 16 * P <= N; j += 16 * P)
        for (int64_t i = 0; i < whole; i += R)
            tile<Kind, R, P>(A + i * a_r, a_r, a_k, K, W + j / 16 * w_p, w_k, w_p, C + i * ldc + j, ldc,
                             bias ? bias + j : nullptr);
    for (; whole && j < N; j += 16)
        for (int64_t i = 0; i < whole; i += R)
            tile<Kind, R, 1>(A + i * a_r, a_r, a_k, K, W + j / 16 * w_p, w_k, w_p, C + i * ldc + j, ldc,
                             bias ? bias + j : nullptr);
    return whole;
}

// The same for all of n rows.
template <class Kind, int R, int P>
INLINE void product(const typename Kind::number *A, int64_t a_r, int64_t a_k, int64_t n, int64_t K, const float *W,
                    int64_t w_k, int64_t w_p, int64_t N, float *C, int64_t ldc, const float *bias) {
    const int single = lanes<typename Kind::vector> < 8 ? 2 : 4;  // panels of one row
    int64_t i = tiles<Kind, R, P>(A, a_r, a_k, n, K, W, w_k, w_p, N, C, ldc, bias);
    if (R > 4) i += tiles<Kind, 4, P>(A + i * a_r, a_r, a_k, n - i, K, W, w_k, w_p, N, C + i * ldc, ldc, bias);
    i += tiles<Kind, 2, 2 * P>(A + i * a_r, a_r, a_k, n - i, K, W, w_k, w_p, N, C + i * ldc, ldc, bias);
    tiles<Kind, 1, single>(A + i * a_r, a_r, a_k, n - i, K, W, w_k, w_p, N, C + i * ldc, ldc, bias);
}

#if defined(__x86_64__) && defined(__GNUC__)
#define AVX512 __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma")))
#define AVX2 __attribute__((target("avx2,fma")))

AVX512 __attribute__((noinline)) void pair_product(const float *A, int64_t lda, int64_t n, int64_t K, const float *W,
                                                   int64_t N, float *C, int64_t ldc, const float *bias) {
    const int64_t pairs = (K + 1) / 2;
    float *formed = scratch(n * pairs);
    form_rows<v16>(PAIRS, A, lda, n, K, formed);
    product<Pair, 8, 2>((const int32_t *)formed, pairs, 1, n, pairs, W, 16, 16 * pairs, N, C, ldc, bias);
}
AVX512 __attribute__((noinline)) void pair_outer_product(const float *A, int64_t lda, int64_t M, const float *B, int64_t N,
                                                         int64_t n, float *C) {
    const int64_t pairs = (n + 1) / 2;
    float *a = scratch(pairs * (M + N)), *b = a + pairs * M;
    form_columns<v16>(PAIRS, A, lda, n, M, a), form_columns<v16>(PAIRS, B, N, n, N, b);
    product<Pair, 8, 2>((const int32_t *)a, 1, M, M, pairs, b, N, 16, N, C, N, nullptr);
}
bool supports_pairs() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16");
}
const bool has_pairs = supports_pairs();
#else
void pair_product(const float *, int64_t, int64_t, int64_t, const float *, int64_t, float *, int64_t, const float *) {}
void pair_outer_product(const float *, int64_t, int64_t, const float *, int64_t, int64_t, float *) {}
const bool has_pairs = false;
#endif

// An instruction set: what a register holds, and its products, in tiles of R rows and P panels, as many sums as there are
// registers for. A product is C[n, N] = bias + A[n, K] · W, or C += A · W where bias is null, W packed [N/16][K][16]; the
// outer product is C[M, N] += A[n, M]ᵀ · B[n, N]; M is a multiple of 16, and so is N, that of B and C.
#define INSTRUCTIONS(name, V, R, P, ...)                                                                             \
    struct name {                                                                                                    \
        typedef V vector;                                                                                            \
        __VA_ARGS__ static void product(const float *A, int64_t lda, int64_t n, int64_t K, const float *W, int64_t N, \
                                        float *C, int64_t ldc, const float *bias) {                                  \
            ::product<Float<V>, R, P>(A, lda, 1, n, K, W, 16, 16 * K, N, C, ldc, bias);                              \
        }                                                                                                            \
        __VA_ARGS__ static void outer_product(const float *A, int64_t lda, int64_t M, const float *B, int64_t N,      \
                                              int64_t n, float *C) {                                                 \
            ::product<Float<V>, R, P>(A, 1, lda, M, n, B, N, 16, N, C, N, nullptr);                                  \
        }                                                                                                            \
        __VA_ARGS__ static void product(int64_t form, const float *A, int64_t lda, int64_t n, int64_t K,             \
                                        const float *W, int64_t N, float *C, int64_t ldc, const float *bias) {       \
            if (form == FLOATS) return product(A, lda, n, K, W, N, C, ldc, bias);                                    \
            if (form == PAIRS) return pair_product(A, lda, n, K, W, N, C, ldc, bias);                                \
            float *formed = scratch(n * K);                                                                          \
            form_rows<V>(ROUNDED, A, lda, n, K, formed);                                                             \
            product(formed, K, n, K, W, N, C, ldc, bias);                                                            \
        }                                                                                                            \
        __VA_ARGS__ static void outer_product(int64_t form, const float *A, int64_t lda, int64_t M, const float *B,  \
                                              int64_t N, int64_t n, float *C) {                                      \
            if (form == FLOATS) return outer_product(A, lda, M, B, N, n, C);                                         \
            if (form == PAIRS) return pair_outer_product(A, lda, M, B, N, n, C);                                     \
            float *a = scratch(n * (M + N)), *b = a + n * M;                                                         \
            form_columns<V>(ROUNDED, A, lda, n, M, a), form_columns<V>(ROUNDED, B, N, n, N, b);                      \
            outer_product(a, M, M, b, N, n, C);                                                                      \
        }                                                                                                            \
    };
#ifdef AVX512
INSTRUCTIONS(Avx512, v16, 8, 2, AVX512 __attribute__((noinline)))
INSTRUCTIONS(Avx2, v8, 6, 1, AVX2 __attribute__((noinline)))
#endif
INSTRUCTIONS(Any, v4, 4, 1, __attribute__((noinline)))

// Zeroed memory in pieces that start at multiples of 64 bytes, freed together.
struct Memory {
    std::vector<void *> pieces;
    float *take(int64_t floats) {
        const size_t bytes = padded(floats > 0 ? floats : 1) * sizeof(float);
        void *piece = std::aligned_alloc(64, bytes);
        if (!piece) throw std::bad_alloc();
        pieces.push_back(piece);
        return (float *)memset(piece, 0, bytes);
    }
    ~Memory() {
        for (void *piece : pieces) free(piece);
    }
};

template <class V>
struct Gates {             // activations of a vector of units
    V i, f, g, o, tanh_c;  // LSTM; a GRU's r, z, n are i, f, g, and where it resets after, o is the hidden share of n
    V h, c;
};

// From the shares of input and state; zn is the state's share of a GRU's n.
template <int KIND, class V>
INLINE Gates<V> candidate(const float *zx, const float *zh, const float *zn, int64_t HP, int64_t u, V h, V c) {
    Gates<V> s;
    s.i = sigmoid(load<V>(zx + u) + load<V>(zh + u));
    s.f = sigmoid(load<V>(zx + HP + u) + load<V>(zh + HP + u));
    if (KIND) {
        s.o = load<V>(zn + u);
        s.g = hyperbolic(load<V>(zx + 2 * HP + u) + (KIND == 1 ? s.i * s.o : s.o));
        s.h = (1.0f - s.f) * s.g + s.f * h;
        s.c = s.h;
    } else {
        s.g = hyperbolic(load<V>(zx + 2 * HP + u) + load<V>(zh + 2 * HP + u));
        s.o = sigmoid(load<V>(zx + 3 * HP + u) + load<V>(zh + 3 * HP + u));
        s.c = s.f * c + s.i * s.g;
        s.tanh_c = hyperbolic(s.c);
        s.h = s.o * s.tanh_c;
    }
    return s;
}

template <class V>
struct Skipped {  // a vector of units of a candidate that was not taken
    V h, c;
};

// The input's share of a step's gates: computed already, or from its features where those are few.
template <int D>
struct Share {
    const float *z;               // (GP,), where D is 0
    const float *x, *w, *bias;    // (D,), packed [GP/16][D][16], (GP,)
};
template <class V, int D>
INLINE V share_of(const Share<D> &s, int64_t at) {
    V z = load<V>((D ? s.bias : s.z) + at);
    const float *w = s.w + at * D - at % 16 * (D - 1);  // of a panel's lane at % 16
#pragma GCC unroll 2
    for (int d = 0; d < D; d++) z += s.x[d] * load<V>(w + 16 * d);
    return z;
}

// The same with fewer divisions, good to 2e-7 of 1: skipped steps are many, and only sums over units leave them.
template <int KIND, int D, class V>
INLINE Skipped<V> skipped_candidate(const Share<D> &x, const float *zh, const float *zn, int64_t HP, int64_t u, V h, V c) {
    V f = exponential(-clamped(share_of<V>(x, HP + u) + load<V>(zh + HP + u), 25.0f));
    if (KIND) {
        V n = load<V>(zn + u);
        if (KIND == 1) n /= 1.0f + exponential(-clamped(share_of<V>(x, u) + load<V>(zh + u), 25.0f));
        n = exponential(2.0f * clamped(share_of<V>(x, 2 * HP + u) + n, 10.0f));
        V taken = (f * (n - 1.0f) + h * (n + 1.0f)) / ((1.0f + f) * (n + 1.0f));
        return {taken, taken};
    }
    V i = exponential(-clamped(share_of<V>(x, u) + load<V>(zh + u), 25.0f));
    V g = exponential(2.0f * clamped(share_of<V>(x, 2 * HP + u) + load<V>(zh + 2 * HP + u), 10.0f));
    V o = exponential(-clamped(share_of<V>(x, 3 * HP + u) + load<V>(zh + 3 * HP + u), 25.0f));
    V ig = (1.0f + i) * (1.0f + g);
    f += 1.0f;
    c = (c * ig + (g - 1.0f) * f) / (f * ig);
    g = exponential(2.0f * clamped(c, 10.0f));
    return {(g - 1.0f) / ((1.0f + o) * (1.0f + g)), c};
}

// What a GRU that resets before multiplies by its last weights: reset[HP] = r⊙h.
template <class V, int D>
INLINE void reset_states(const Share<D> &x, const float *zh, const float *h, int64_t HP, float *reset) {
    for (int64_t u = 0; u < HP; u += lanes<V>)
        store(reset + u, sigmoid(share_of<V>(x, u) + load<V>(zh + u)) * load<V>(h + u));
}

// The sizes of a stack, padded.
struct Sizes {
    int64_t L, H, HP, GP, ZP, KP;  // ZP: of GP, the columns of the product with h; KP: what the tape keeps of gates
    int64_t form, n_gate;          // n_gate: where the weights of a reset state begin in w_h
    INLINE int64_t gates(int64_t kind) { return kind ? 3 : 4; }
    explicit Sizes(const Stack &q)
        : L(q.layers), H(q.H), HP(padded(H)), GP(gates(q.kind) * HP), ZP(q.kind == 2 ? 2 * HP : GP),
          KP(q.kind == 2 ? 3 * HP : 4 * HP), form(q.form), n_gate(ZP * (form == PAIRS ? (H + 1) / 2 : H)) {}
};

INLINE const float *sample(const Problem &q, int64_t t, int64_t b) {
    return q.x + (q.numbers ? q.numbers[t * q.B + b] * q.x_t : t * q.x_t + b * q.x_b);
}

// Numbers of a sample.
INLINE int64_t width(const Stack &q) { return q.layer[0].D ? q.layer[0].D : Sizes(q).gates(q.kind) * q.H; }

// A layer's input's share of the gates of n steps, (n, GP), from its inputs or from their products.
template <class Set>
INLINE void input_shares(const Stack &q, const Layer &w, const float *below, int64_t apart, int64_t n, float *zx) {
    const Sizes s(q);
    if (w.D) return Set::product(w.form, below, apart, n, w.D, w.w_x, s.GP, zx, s.GP, w.bias_x);
    for (int64_t r = 0; r < n; r++, below += apart, zx += s.GP) {
        memcpy(zx, w.bias_x, s.GP * sizeof(float));
        for (int64_t gate = 0; gate < s.GP / s.HP; gate++)
            for (int64_t u = 0; u < s.H; u++) zx[gate * s.HP + u] += below[gate * s.H + u];
    }
}

// Whether an update of layer l that comes after skipped steps keeps, in the place of its gates, the state's share of them,
// which (but for that of a reset state) it has in common with those steps: where samples are narrow, or their products are
// given, the gates are computed again for less than that.
INLINE bool keeps_share(const Stack &q, int64_t l) { return l == 0 && 4 * q.layer[0].D <= q.H; }

// Whether steps were skipped right before update k of sequence b.
INLINE bool after_skips(const Problem &q, int64_t b, int64_t k) {
    const int32_t *t = q.tape_t + b * (q.T + 1) + k;
    return *t > (k > 1 ? t[-1] : -1) + 1;
}

INLINE float bounded(float x, float bound) { return x > bound ? bound : x < -bound ? -bound : x; }

INLINE float probability(const Stack &q, float dot) {
    return q.low + (q.high - q.low) * sigmoid(v4{dot + q.b_p})[0];
}

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

// The same where sums are compared with draws, which are so far apart.
INLINE int64_t next_drawn(float p, float &acc, int64_t t, int64_t end, const float *draws, int64_t apart) {
    for (t++; t < end; t++) {
        const float room = 1 - acc;
        acc += p <= room ? p : room;
        if (acc > draws[t * apart]) return t;
    }
    return end;
}

// Whether the sum at the n-th step after an update, or after the beginning with acc, was cut at 1.
INLINE bool is_full(float p, float acc, int64_t n) {
    while (--n > 0) acc += p;
    return !(p <= 1 - acc);
}

// One update of n sequences: h and c hold a layer's states of all rows, (n, HP), every `apart` floats; p[n] becomes their
// update probabilities. Gates go to rows of the tape, a layer's every `tape_apart` floats, if there is one; of the first
// layer, where `shares` says so, the state's share of them. Scratch: zx and zh, (n, GP), reset, (n, HP).
template <class Set, int KIND>
INLINE void update(const Stack &q, const float *x, int64_t n, float *h, float *c, int64_t apart, float *p, float *zx,
                   float *zh, float *reset, float *tape, const int64_t *rows, int64_t tape_apart, const bool *shares) {
    typedef typename Set::vector V;
    const Sizes s(q);
    const float *below = x;
    int64_t below_apart = width(q);
    for (int64_t l = 0; l < s.L; l++, h += apart, c += apart) {
        const Layer &w = q.layer[l];
        if (below) input_shares<Set>(q, w, below, below_apart, n, zx);  // or they are there
        Set::product(s.form, h, s.HP, n, s.H, w.w_h, s.ZP, zh, s.GP, w.bias_h);
        if (KIND == 2) {
            for (int64_t r = 0; r < n; r++)
                reset_states<V>(Share<0>{zx + r * s.GP}, zh + r * s.GP, h + r * s.HP, s.HP, reset + r * s.HP);
            Set::product(s.form, reset, s.HP, n, s.H, w.w_h + s.n_gate, s.HP, zh + s.ZP, s.GP, w.bias_h + s.ZP);
        }
        for (int64_t r = 0; r < n; r++) {
            float *hr = h + r * s.HP, *cr = c + r * s.HP, *tape_row = tape ? tape + l * tape_apart + rows[r] * s.KP : nullptr;
            const float *z = zh + r * s.GP;
            const bool share = tape && l == 0 && shares[r];
            if (share) memcpy(tape_row, z, s.GP * sizeof(float));
            V dot{};
            for (int64_t u = 0; u < s.HP; u += lanes<V>) {
                const V before = KIND ? V{} : load<V>(cr + u);
                Gates<V> g = candidate<KIND>(zx + r * s.GP, z, z + 2 * s.HP, s.HP, u, load<V>(hr + u), before);
                if (u + lanes<V> > s.H)  // were inputs infinite
                    g.h = first_lanes(g.h, s.H - u), g.c = first_lanes(g.c, s.H - u);
                store(hr + u, g.h);
                if (!KIND) store(cr + u, g.c);
                dot += g.c * load<V>(q.w_p + u);
                if (!tape || share) continue;
                float *kept = tape_row + u;
                store(kept, g.i), store(kept + s.HP, g.f), store(kept + 2 * s.HP, g.g);
                if (KIND < 2) store(kept + 3 * s.HP, g.o);
            }
            if (l == s.L - 1) p[r] = probability(q, total(dot));
        }
        below = h;
        below_apart = s.HP;
    }
}

// What a worker needs for blocks of so many rows.
struct Ahead {
    int64_t apart;         // a layer's states
    float *xs, *hs, *cs;   // (rows, D), (layers, rows, HP)
    float *zx, *zh, *reset;
    float *shares;         // of the worker
    uint8_t *known;
};

INLINE Ahead prepared(const Stack &q, int64_t rows, Memory &memory) {
    const Sizes s(q);
    const int64_t apart = rows * s.HP;
    return {apart, memory.take(rows * width(q)), memory.take(s.L * apart), memory.take(s.L * apart),
            memory.take(rows * s.GP), memory.take(rows * s.GP), memory.take(rows * s.HP), nullptr, nullptr};
}

// Samples t of n sequences' shares of the first layer's gates, those of a row computed where it is first used.
template <class Set>
INLINE void row_shares(const Problem &q, const int64_t *sequences, const int64_t *t, int64_t n, const Ahead &w) {
    const Layer &layer = q.stack->layer[0];
    const int64_t D = layer.D, GP = Sizes(*q.stack).GP;
    int64_t rows[ROWS], made[ROWS], m = 0;
    for (int64_t r = 0; r < n; r++) {
        const int64_t row = rows[r] = q.numbers[t[r] * q.B + sequences[r]];
        if (w.known[row]) continue;
        w.known[row] = 1;
        memcpy(w.xs + m * D, q.x + row * q.x_t, D * sizeof(float));
        made[m++] = row;
    }
    if (m) Set::product(layer.form, w.xs, D, m, D, layer.w_x, GP, w.zx, GP, layer.bias_x);
    for (int64_t i = 0; i < m; i++) memcpy(w.shares + made[i] * GP, w.zx + i * GP, GP * sizeof(float));
    for (int64_t r = 0; r < n; r++) memcpy(w.zx + r * GP, w.shares + rows[r] * GP, GP * sizeof(float));
}

template <class Set, int KIND>
INLINE void forward_block(const Problem &q, const int64_t *block, int64_t n, const Ahead &w) {
    const Stack &stack = *q.stack;
    const Sizes s(stack);
    const int64_t H = s.H, HP = s.HP, D = width(stack), S = q.T + 1, apart = w.apart;
    float *xs = w.xs, *hs = w.hs, *cs = w.cs;
    int64_t of[ROWS], t[ROWS], shown[ROWS], count[ROWS], at[ROWS];  // of the rows still running, the first n
    float p[ROWS];
    bool shares[ROWS];
    for (int64_t r = 0; r < n; r++) {
        const int64_t b = block[r];
        of[r] = b, shown[r] = count[r] = 0;
        for (int64_t l = 0; l < s.L; l++) {
            memcpy(hs + l * apart + r * HP, q.h + (l * q.B + b) * H, H * sizeof(float));
            memset(hs + l * apart + r * HP + H, 0, (HP - H) * sizeof(float));
            if (KIND) continue;
            memcpy(cs + l * apart + r * HP, q.c + (l * q.B + b) * H, H * sizeof(float));
            memset(cs + l * apart + r * HP + H, 0, (HP - H) * sizeof(float));
        }
        if (q.tape_h) q.tape_p[b * S] = q.p[b], q.tape_a[b * S] = q.acc[b];
        t[r] = q.draws ? next_drawn(q.p[b], q.acc[b], -1, q.lengths[b], q.draws + b, q.B)
                       : next_update(q.p[b], q.acc[b], -1, q.lengths[b]);
    }
    for (;;) {
        int64_t running = 0;
        for (int64_t r = 0; r < n; r++) {
            const int64_t b = of[r];
            const bool ends = t[r] >= q.lengths[b];
            const float *top = hs + (s.L - 1) * apart + r * HP;
            for (const int64_t until = ends ? q.T : t[r]; q.output && shown[r] < until; shown[r]++)
                memcpy(q.output + (shown[r] * q.B + b) * H, top, H * sizeof(float));
            for (int64_t l = 0; l < s.L; l++) {
                float *h = hs + l * apart, *c = cs + l * apart;
                const int64_t row = (l * q.B + b) * S + count[r];
                if (q.tape_h) memcpy(q.tape_h + row * HP, h + r * HP, HP * sizeof(float));
                if (q.tape_h && !KIND) memcpy(q.tape_c + row * HP, c + r * HP, HP * sizeof(float));
                if (ends) {
                    memcpy(q.h + (l * q.B + b) * H, h + r * HP, H * sizeof(float));
                    if (!KIND) memcpy(q.c + (l * q.B + b) * H, c + r * HP, H * sizeof(float));
                } else if (running < r) {
                    memcpy(h + running * HP, h + r * HP, HP * sizeof(float));
                    if (!KIND) memcpy(c + running * HP, c + r * HP, HP * sizeof(float));
                }
            }
            if (q.tape_h) q.counts[b] = (int32_t)count[r];
            if (ends) continue;
            of[running] = b, t[running] = t[r], shown[running] = shown[r], count[running] = count[r] + 1;
            at[running] = b * S + count[running];  // of the tape
            if (q.tape_h) {
                q.tape_t[at[running]] = (int32_t)t[r];
                shares[running] = keeps_share(stack, 0) && after_skips(q, b, count[running]);
            }
            if (!w.shares) memcpy(xs + running * D, sample(q, t[r], b), D * sizeof(float));
            running++;
        }
        if ((n = running) == 0) break;
        if (w.shares) row_shares<Set>(q, of, t, n, w);
        update<Set, KIND>(stack, w.shares ? nullptr : xs, n, hs, cs, apart, p, w.zx, w.zh, w.reset, q.tape_g, at,
                          q.B * S * s.KP, shares);
        for (int64_t r = 0; r < n; r++) {
            const int64_t b = of[r], k = at[r];
            if (q.tape_h) q.tape_a[k] = q.acc[b], q.tape_p[k] = p[r];
            q.p[b] = p[r];
            q.acc[b] = 0;
            q.update_gate[t[r] * q.B + b] = 1;
            t[r] = q.draws ? next_drawn(p[r], q.acc[b], t[r], q.lengths[b], q.draws + b, q.B)
                           : next_update(p[r], q.acc[b], t[r], q.lengths[b]);
        }
    }
}

// What a worker keeps of a layer on its way back.
struct LayerBack {
    int64_t D, DP, form;
    float *Gh, *Gc, *zh;                        // (ROWS, HP), (ROWS, HP), (ROWS, GP): of each sequence of the block
    float *x, *h, *reset, *dz, *dzh;            // (PENDING + ROWS, ...): updates whose weights' gradients are not summed yet
    float *w_x, *w_h, *bias_x, *bias_h;         // the sums: (GP, DP), (GP, HP), (GP,), (GP,)
};
struct Back {
    LayerBack *layer;
    float *w_p, *b_p, *grad_x;                  // sums
    int64_t pending;
    float *xs, *zx, *zn, *reset, *below;        // of skipped steps: (SKIPS, D or GP or HP)
    float *back, *z, *up, *zeros;               // (ROWS, HP), (ROWS, GP), (ROWS, the widest DP), (the widest DP,)
};

INLINE int64_t sums_floats(const Stack &q) {  // of a worker's gradients
    const Sizes s(q);
    int64_t floats = s.HP + 16;
    for (int64_t l = 0; l < s.L; l++) floats += s.GP * (padded(q.layer[l].D) + s.HP + 2);
    return floats;
}

template <int KIND>
INLINE Back prepared_back(const Stack &q, float *sums, Memory &memory) {
    const Sizes s(q);
    const int64_t many = PENDING + ROWS;
    int64_t widest = s.HP;
    Back w;
    w.layer = (LayerBack *)memory.take(s.L * sizeof(LayerBack) / sizeof(float));
    for (int64_t l = 0; l < s.L; l++) {
        LayerBack &a = w.layer[l];
        a.D = q.layer[l].D, a.DP = padded(a.D), a.form = q.layer[l].form;
        widest = a.DP > widest ? a.DP : widest;
        a.Gh = memory.take(ROWS * s.HP), a.Gc = memory.take(ROWS * s.HP);
        a.zh = memory.take(ROWS * s.GP);
        a.x = memory.take(many * a.DP), a.h = memory.take(many * s.HP);
        a.reset = KIND == 2 ? memory.take(many * s.HP) : nullptr;
        a.dz = memory.take(many * s.GP), a.dzh = KIND == 1 ? memory.take(many * s.GP) : a.dz;
        a.w_x = sums, a.w_h = a.w_x + s.GP * a.DP, a.bias_x = a.w_h + s.GP * s.HP, a.bias_h = a.bias_x + s.GP;
        sums = a.bias_h + s.GP;
    }
    w.w_p = sums, w.b_p = sums + s.HP;
    w.pending = 0;
    w.xs = memory.take(SKIPS * width(q)), w.zx = memory.take(SKIPS * s.GP), w.zn = memory.take(SKIPS * s.HP);
    w.reset = memory.take(SKIPS * s.HP), w.below = memory.take(SKIPS * s.HP);
    w.back = memory.take(ROWS * s.HP), w.z = memory.take(ROWS * s.GP);
    w.up = memory.take(ROWS * widest), w.zeros = memory.take(widest);
    return w;
}

// Adds the gradients of the updates that are pending to those of the weights.
template <class Set, int KIND>
INLINE void flush(const Sizes &s, Back &w) {
    typedef typename Set::vector V;
    for (int64_t l = 0; l < s.L; l++) {
        const LayerBack &a = w.layer[l];
        Set::outer_product(a.form, a.dz, s.GP, s.GP, a.x, a.DP, w.pending, a.w_x);
        Set::outer_product(s.form, a.dzh, s.GP, s.ZP, a.h, s.HP, w.pending, a.w_h);
        if (KIND == 2) Set::outer_product(s.form, a.dz + s.ZP, s.GP, s.HP, a.reset, s.HP, w.pending, a.w_h + s.ZP * s.HP);
        for (int64_t r = 0; r < w.pending; r++)
            for (int64_t u = 0; u < s.GP; u += lanes<V>) {
                store(a.bias_x + u, load<V>(a.bias_x + u) + load<V>(a.dz + r * s.GP + u));
                store(a.bias_h + u, load<V>(a.bias_h + u) + load<V>(a.dzh + r * s.GP + u));
            }
    }
    w.pending = 0;
}

INLINE void add(const float *from, int64_t n, float *to) {
    for (int64_t i = 0; i < n; i++) to[i] += from[i];
}

INLINE void add_output(const Problem &q, int64_t H, int64_t t, int64_t b, float *G) {
    if (q.grad_output)
        for (int64_t u = 0; u < H; u++) G[u] += q.grad_output[t * q.go_t + b * q.go_b + u];
}

// Skipped steps that go through one product: step at[i] of row of[i] of a block, after update k of each.
struct Skips {
    int64_t k, n, at[SKIPS], of[SKIPS];
    float gains[SKIPS];  // <dL/ds, s̃ - s> of the layers so far
};

// Back over skipped steps of layer l, which reads D features, or any number where D is 0.
template <class Set, int KIND, int D>
INLINE void back_over_skips_of(int64_t l, const Problem &q, const int64_t *block, Skips &k, Back &w) {
    typedef typename Set::vector V;
    const Stack &stack = *q.stack;
    const Sizes s(stack);
    const int64_t H = s.H, HP = s.HP, S = q.T + 1;
    const Layer &layer = stack.layer[l];
    const LayerBack &a = w.layer[l];
    const bool top = l == s.L - 1;
    if (D == 0) input_shares<Set>(stack, layer, l ? w.below : w.xs, l ? HP : width(stack), k.n, w.zx);
    const auto share = [&](int64_t i) {
        return Share<D>{w.zx + i * s.GP, w.xs + i * D, layer.w_x, layer.bias_x};
    };
    if (KIND == 2) {
        for (int64_t i = 0; i < k.n; i++)
            reset_states<V>(share(i), a.zh + k.of[i] * s.GP, q.tape_h + ((l * q.B + block[k.of[i]]) * S + k.k) * HP, HP,
                         w.reset + i * HP);
        Set::product(s.form, w.reset, HP, k.n, H, layer.w_h + s.n_gate, HP, w.zn, HP, layer.bias_h + s.ZP);
    }
    for (int64_t i = 0; i < k.n; i++) {
        const int64_t r = k.of[i], b = block[r], t = k.at[i], row = (l * q.B + b) * S + k.k;
        const float *zh = a.zh + r * s.GP, *zn = KIND == 2 ? w.zn + i * HP : zh + 2 * HP;
        float *Gh = a.Gh + r * HP, *Gc = a.Gc + r * HP;
        if (top) add_output(q, H, t, b, Gh);
        const Share<D> x = share(i);
        V gain{}, dot{};
        for (int64_t u = 0; u < HP; u += lanes<V>) {
            V h = load<V>(q.tape_h + row * HP + u), c = KIND ? V{} : load<V>(q.tape_c + row * HP + u);
            Skipped<V> taken = skipped_candidate<KIND>(x, zh, zn, HP, u, h, c);
            gain += (taken.h - h) * load<V>(Gh + u);
            if (!KIND) gain += (taken.c - c) * load<V>(Gc + u);
            if (top)
                dot += taken.c * load<V>(stack.w_p + u);
            else
                store(w.below + i * HP + u, taken.h);
        }
        k.gains[i] = (l ? k.gains[i] : 0) + total(gain);
        if (!top) continue;
        const int64_t begin = k.k ? q.tape_t[b * S + k.k] : -1;
        const float p = q.tape_p[b * S + k.k], acc = k.k ? 0 : q.tape_a[b * S];
        const float p_skipped = probability(stack, total(dot));
        float gu = k.gains[i] + q.grad_p[b] * (p_skipped - p) - q.grad_acc[b] * (acc + (t - begin) * p);
        if (q.grad_gate) gu += q.grad_gate[t * q.gg_t + b * q.gg_b];
        q.grad_acc[b] += bounded(gu, q.gate_grad_clip);
        q.grad_p[b] += q.grad_acc[b];
    }
}

template <class Set, int KIND>
INLINE void back_over_skips(const Problem &q, const int64_t *block, Skips &k, Back &w) {
    const int64_t D = q.stack->layer[0].D;
    if (D == 1)
        back_over_skips_of<Set, KIND, 1>(0, q, block, k, w);
    else if (D == 2)
        back_over_skips_of<Set, KIND, 2>(0, q, block, k, w);
    else
        back_over_skips_of<Set, KIND, 0>(0, q, block, k, w);
    for (int64_t l = 1; l < q.stack->layers; l++) back_over_skips_of<Set, KIND, 0>(l, q, block, k, w);
}

// Back over update k of n rows of a block.
template <class Set, int KIND>
INLINE void back_over_update(const Problem &q, const int64_t *block, int64_t k, int64_t n, const int64_t *active, Back &w) {
    typedef typename Set::vector V;
    const Stack &stack = *q.stack;
    const Sizes s(stack);
    const int64_t H = s.H, HP = s.HP, GP = s.GP, S = q.T + 1;
    const float spread = stack.high - stack.low;
    float gains[ROWS] = {};
    for (int64_t l = 0; l < s.L; l++) {
        const LayerBack &a = w.layer[l];
        float *x = a.x + w.pending * a.DP, *h = a.h + w.pending * HP;
        for (int64_t i = 0; i < n; i++) {
            const int64_t b = block[active[i]];
            const float *below = l ? q.tape_h + (((l - 1) * q.B + b) * S + k) * HP : sample(q, q.tape_t[b * S + k], b);
            memcpy(x + i * a.DP, below, a.D * sizeof(float));
            memcpy(h + i * HP, q.tape_h + ((l * q.B + b) * S + k - 1) * HP, HP * sizeof(float));
        }
    }
    for (int64_t l = s.L - 1; l >= 0; l--) {
        const Layer &layer = stack.layer[l];
        const LayerBack &a = w.layer[l];
        const bool top = l == s.L - 1;
        float *h_before = a.h + w.pending * HP, *zx = a.dz + w.pending * GP, *zxh = a.dzh + w.pending * GP;
        for (int64_t i = 0; i < n; i++) {
            const int64_t r = active[i], b = block[r], row = b * S + k;
            float *dz = zx + i * GP, *dzh = zxh + i * GP, *Gh = a.Gh + r * HP, *Gc = a.Gc + r * HP;
            const int64_t after = (l * q.B + b) * S + k;
            if (top) add_output(q, H, q.tape_t[row], b, Gh);
            const float *kept = q.tape_g + after * s.KP;
            const bool share = keeps_share(stack, l) && after_skips(q, b, k);
            if (share) input_shares<Set>(stack, layer, sample(q, q.tape_t[row], b), 0, 1, w.zx);
            const float p = q.tape_p[row], grad_logit = top ? q.grad_p[b] * (p - stack.low) * (stack.high - p) / spread : 0;
            V gain{};
            for (int64_t u = 0; u < HP; u += lanes<V>) {
                V h0 = load<V>(h_before + i * HP + u), c0 = KIND ? V{} : load<V>(q.tape_c + (after - 1) * HP + u);
                Gates<V> g;
                if (share)
                    g = candidate<KIND>(w.zx, kept, kept + 2 * HP, HP, u, h0, c0);
                else
                    g = {load<V>(kept + u), load<V>(kept + HP + u), load<V>(kept + 2 * HP + u),
                         KIND < 2 ? load<V>(kept + 3 * HP + u) : V{}, V{}, V{}, V{}};
                g.h = load<V>(q.tape_h + after * HP + u);
                g.c = KIND ? g.h : load<V>(q.tape_c + after * HP + u);
                if (!KIND) g.tanh_c = hyperbolic(g.c);
                V gh = load<V>(Gh + u), via_gate{};
                gain += (g.h - h0) * gh;
                if (top) {
                    store(w.w_p + u, load<V>(w.w_p + u) + grad_logit * g.c);
                    via_gate = grad_logit * load<V>(stack.w_p + u);
                } else
                    gh += load<V>(w.up + i * HP + u);
                if (KIND) {
                    gh += via_gate;
                    V dn = gh * (1.0f - g.f) * (1.0f - g.g * g.g), dzz = gh * (h0 - g.g) * g.f * (1.0f - g.f);
                    store(dz + HP + u, dzz), store(dz + 2 * HP + u, dn);
                    store(w.back + i * HP + u, gh * g.f);
                    if (KIND == 2) {
                        store(dz + u, g.i);  // for the time being
                        store(a.reset + (w.pending + i) * HP + u, g.i * h0);
                    } else {
                        V dr = dn * g.o * g.i * (1.0f - g.i);
                        store(dz + u, dr);
                        store(dzh + u, dr), store(dzh + HP + u, dzz), store(dzh + 2 * HP + u, dn * g.i);
                    }
                } else {
                    V gc = load<V>(Gc + u);
                    gain += (g.c - c0) * gc;
                    gc += via_gate + gh * g.o * (1.0f - g.tanh_c * g.tanh_c);
                    store(dz + u, gc * g.g * g.i * (1.0f - g.i));
                    store(dz + HP + u, gc * c0 * g.f * (1.0f - g.f));
                    store(dz + 2 * HP + u, gc * g.i * (1.0f - g.g * g.g));
                    store(dz + 3 * HP + u, gh * g.tanh_c * g.o * (1.0f - g.o));
                    store(Gc + u, gc * g.f);
                    store(w.back + i * HP + u, V{});
                }
            }
            if (top) w.b_p[0] += grad_logit;
            gains[i] += total(gain);
        }
        if (KIND == 2) {
            Set::product(s.form, zx + s.ZP, GP, n, HP, layer.w_h_back + s.ZP * HP, HP, w.reset, HP, w.zeros);  // by r⊙h
            for (int64_t i = 0; i < n; i++)
                for (int64_t u = 0; u < HP; u += lanes<V>) {
                    V by_reset = load<V>(w.reset + i * HP + u), r = load<V>(zx + i * GP + u);
                    store(w.back + i * HP + u, load<V>(w.back + i * HP + u) + by_reset * r);
                    store(zx + i * GP + u, by_reset * load<V>(h_before + i * HP + u) * r * (1.0f - r));
                }
        }
        Set::product(s.form, zxh, GP, n, s.ZP, layer.w_h_back, HP, w.back, HP, nullptr);
        for (int64_t i = 0; i < n; i++) memcpy(a.Gh + active[i] * HP, w.back + i * HP, HP * sizeof(float));
        if (l || q.grad_x) Set::product(layer.form, zx, GP, n, GP, layer.w_x_back, a.DP, w.up, a.DP, w.zeros);
        for (int64_t i = 0; !l && q.grad_x && i < n; i++) {
            const int64_t b = block[active[i]], t = q.tape_t[b * S + k];
            float *by_x = w.grad_x + (q.numbers ? q.numbers[t * q.B + b] : t * q.B + b) * width(stack);
            if (a.D)
                add(w.up + i * a.DP, a.D, by_x);
            else
                for (int64_t gate = 0; gate < GP / HP; gate++) add(zx + i * GP + gate * HP, H, by_x + gate * H);
        }
    }
    for (int64_t i = 0; i < n; i++) {
        const int64_t b = block[active[i]], row = b * S + k, t = q.tape_t[row];
        float gu = gains[i] + q.grad_p[b] * (q.tape_p[row] - q.tape_p[row - 1]) - q.grad_acc[b] * q.tape_a[row];
        if (q.grad_gate) gu += q.grad_gate[t * q.gg_t + b * q.gg_b];
        q.grad_p[b] = q.grad_acc[b] = bounded(gu, q.gate_grad_clip);
        if (q.draws && q.tape_a[row] == 1) {
            const int64_t n = t - (k > 1 ? q.tape_t[row - 1] : -1);
            if (is_full(q.tape_p[row - 1], k > 1 ? 0 : q.tape_a[row - 1], n)) q.grad_p[b] = q.grad_acc[b] = 0;
        }
    }
    w.pending += n;
}

template <class Set, int KIND>
INLINE void backward_block(const Problem &q, const int64_t *block, int64_t rows, Back &w) {
    const Stack &stack = *q.stack;
    const Sizes s(stack);
    const int64_t D = width(stack), H = s.H, HP = s.HP, GP = s.GP, S = q.T + 1;
    int64_t active[ROWS], most = 0;
    for (int64_t r = 0; r < rows; r++) {
        const int64_t b = block[r];
        for (int64_t l = 0; l < s.L; l++) {
            const LayerBack &a = w.layer[l];
            memcpy(a.Gh + r * HP, q.grad_h + (l * q.B + b) * H, H * sizeof(float));
            memset(a.Gh + r * HP + H, 0, (HP - H) * sizeof(float));
            if (KIND) continue;
            memcpy(a.Gc + r * HP, q.grad_c + (l * q.B + b) * H, H * sizeof(float));
            memset(a.Gc + r * HP + H, 0, (HP - H) * sizeof(float));
        }
        for (int64_t t = q.lengths[b]; t < q.T; t++)  // past its end a sequence's output repeats its last state
            add_output(q, H, t, b, w.layer[s.L - 1].Gh + r * HP);
        if (q.counts[b] > most) most = q.counts[b];
    }
    for (int64_t k = most; k >= 0; k--) {
        // the state's share of the gates, where steps are skipped after update k: kept by the update after them, or not
        int64_t n = 0;
        for (int64_t r = 0; r < rows; r++) {
            const int64_t b = block[r], row = b * S + k, begin = k ? q.tape_t[row] : -1;
            if (q.counts[b] >= k && (k < q.counts[b] ? q.tape_t[row + 1] : q.lengths[b]) > begin + 1) active[n++] = r;
        }
        for (int64_t l = 0; n && l < s.L; l++) {
            const LayerBack &a = w.layer[l];
            const Layer &layer = stack.layer[l];
            int64_t asked[ROWS], m = 0;
            for (int64_t i = 0; i < n; i++) {
                const int64_t r = active[i], b = block[r], row = (l * q.B + b) * S + k;
                if (keeps_share(stack, l) && k < q.counts[b]) {
                    memcpy(a.zh + r * GP, q.tape_g + (row + 1) * s.KP, s.ZP * sizeof(float));
                } else {
                    memcpy(w.back + m * HP, q.tape_h + row * HP, HP * sizeof(float));
                    asked[m++] = r;
                }
            }
            if (m) Set::product(s.form, w.back, HP, m, H, layer.w_h, s.ZP, w.z, GP, layer.bias_h);
            for (int64_t i = 0; i < m; i++) memcpy(a.zh + asked[i] * GP, w.z + i * GP, s.ZP * sizeof(float));
        }

        // the steps skipped after update k, of one sequence after the other, several a product
        Skips skips;
        skips.k = k;
        int64_t r = 0, t = 0;
        for (bool entered = false;;) {
            int64_t &m = skips.n;
            for (m = 0; m < SKIPS && r < rows;) {
                const int64_t b = block[r], row = b * S + k, begin = k ? q.tape_t[row] : -1;
                if (q.counts[b] >= k && !entered) {
                    t = (k < q.counts[b] ? q.tape_t[row + 1] : q.lengths[b]) - 1;
                    entered = true;
                }
                if (q.counts[b] < k || t <= begin) {
                    r++;
                    entered = false;
                    continue;
                }
                memcpy(w.xs + m * D, sample(q, t, b), D * sizeof(float));
                skips.of[m] = r;
                skips.at[m++] = t--;
            }
            if (m == 0) break;
            back_over_skips<Set, KIND>(q, block, skips, w);
        }
        if (k == 0) break;

        n = 0;
        for (int64_t r = 0; r < rows; r++)
            if (q.counts[block[r]] >= k) active[n++] = r;
        back_over_update<Set, KIND>(q, block, k, n, active, w);
        if (w.pending >= PENDING) flush<Set, KIND>(s, w);
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t l = 0; l < s.L; l++) {
            const int64_t row = l * q.B + block[r];
            memcpy(q.grad_h + row * H, w.layer[l].Gh + r * HP, H * sizeof(float));
            if (!KIND) memcpy(q.grad_c + row * H, w.layer[l].Gc + r * HP, H * sizeof(float));
        }
}

// Sequences in the order in which they are run, blocks of them, from one start to the next, and who runs each on the
// way back.
struct Plan {
    std::vector<int64_t> order, start{0}, owner;
    int64_t most = 0;  // rows of a block
    int64_t next = 0;  // block, forward
};

// A block ends where it is full, or holds its share of the work and as many rows as a product wants; each goes to the
// worker who has the least. Those that have most to do are together, and first. Backward knows how many updates a sequence
// has, of which each costs some eight skipped steps.
Plan planned(const Problem &q, int64_t workers, bool backward) {
    Plan plan;
    const auto updates = [&](int64_t b) { return backward ? q.counts[b] : q.lengths[b]; };
    const auto cost = [&](int64_t b) { return updates(b) + (q.lengths[b] - updates(b)) / 8.0; };
    double all = 0, here = 0;
    for (int64_t b = 0; b < q.B; b++) plan.order.push_back(b), all += cost(b);
    std::stable_sort(plan.order.begin(), plan.order.end(), [&](int64_t a, int64_t b) { return updates(a) > updates(b); });
    const int64_t each = (q.B + workers - 1) / workers, least = each < 8 ? each : 8;
    std::vector<double> load(workers);
    for (int64_t i = 0; i < q.B; i++) {
        here += cost(plan.order[i]);
        const int64_t rows = i + 1 - plan.start.back();
        if (rows < ROWS && i + 1 < q.B && (rows % least || here < all / workers / 4)) continue;
        int64_t owner = 0;
        for (int64_t w = 1; w < workers; w++)
            if (load[w] < load[owner]) owner = w;
        load[owner] += here;
        plan.owner.push_back(owner), plan.start.push_back(i + 1);
        if (rows > plan.most) plan.most = rows;
        here = 0;
    }
    return plan;
}

// Runs the blocks that nobody has begun.
template <class Set, int KIND>
INLINE void forward(const Problem &q, Plan &plan, int64_t worker) {
    Memory memory;
    Ahead w = prepared(*q.stack, plan.most, memory);
    if (q.shares) w.shares = q.shares + worker * q.N * Sizes(*q.stack).GP, w.known = q.known + worker * q.N;
    const int64_t *order = plan.order.data(), *start = plan.start.data(), blocks = plan.owner.size();
    for (int64_t i; (i = __atomic_fetch_add(&plan.next, 1, __ATOMIC_RELAXED)) < blocks;)
        forward_block<Set, KIND>(q, order + start[i], start[i + 1] - start[i], w);
}

// Runs a worker's own blocks, so that sums are always the same.
template <class Set, int KIND>
INLINE void backward(const Problem &q, const Plan &plan, int64_t worker) {
    Memory memory;
    Back w = prepared_back<KIND>(*q.stack, q.sums + worker * sums_floats(*q.stack), memory);
    w.grad_x = q.grad_x ? q.grad_x + worker * q.N * width(*q.stack) : nullptr;
    const int64_t *order = plan.order.data(), *start = plan.start.data(), *owner = plan.owner.data();
    const int64_t blocks = plan.owner.size();
    for (int64_t i = 0; i < blocks; i++)
        if (owner[i] == worker) backward_block<Set, KIND>(q, order + start[i], start[i + 1] - start[i], w);
    flush<Set, KIND>(Sizes(*q.stack), w);
}

// Takes T samples, of which one at least is used.
template <class Set, int KIND>
INLINE void follow(Follower &q, const float *x, int64_t x_t, int64_t T) {
    const Sizes s(*q.stack);
    Memory memory;
    float *zx = memory.take(s.GP), *zh = memory.take(s.GP), *reset = memory.take(s.HP);
    int64_t t = q.skips;
    for (q.used = 0; t < T; q.used++) {
        float acc = 0;
        update<Set, KIND>(*q.stack, x + t * x_t, 1, q.h, q.c, s.HP, q.p, zx, zh, reset, nullptr, nullptr, 0, nullptr);
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
                for (int i = 0; i < 16; i++) a[i] = load<v16>(w + (u + i) * K + k);
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

// out, (KP / 16, gates * HP, 16) = w, (gates * H, K), for products with gradients of the gates
INLINE void pack_back(const float *w, int64_t gates, int64_t H, int64_t K, float *out) {
    for (int64_t k = 0; k < K; k += 16)
        for (int64_t g = 0; g < gates; g++)
            for (int64_t u = 0; u < padded(H); u++, out += 16)
                for (int64_t i = 0; i < 16; i++) out[i] = u < H && k + i < K ? w[(g * H + u) * K + k + i] : 0;
}

// Packed weights, [panels][K][16], in another form, which as pairs is [panels][(K + 1) / 2][16].
template <class V>
INLINE void form_weights(Form form, float *w, int64_t panels, int64_t K) {
    if (form == FLOATS) return;
    float *out = w;
    for (int64_t p = 0; p < panels; p++, w += 16 * K, out += 16 * (form == PAIRS ? (K + 1) / 2 : K))
        form_columns<V>(form, w, 16, K, 16, out);  // which reads before it writes
}

// The same for every instruction set.
#define FOR_KIND(name, kind, ...)                                                                             \
    (kind == 0 ? name<Set, 0>(__VA_ARGS__) : kind == 1 ? name<Set, 1>(__VA_ARGS__) : name<Set, 2>(__VA_ARGS__))
#define ENTRIES(attribute, Instructions)                                                                      \
    attribute void forward(const Problem &q, Plan &plan, int64_t worker, Instructions) {                      \
        typedef Instructions Set;                                                                             \
        FOR_KIND(forward, q.stack->kind, q, plan, worker);                                                    \
    }                                                                                                         \
    attribute void backward(const Problem &q, const Plan &plan, int64_t worker, Instructions) {               \
        typedef Instructions Set;                                                                             \
        FOR_KIND(backward, q.stack->kind, q, plan, worker);                                                   \
    }                                                                                                         \
    attribute void follow(Follower &q, const float *x, int64_t x_t, int64_t T, Instructions) {                \
        typedef Instructions Set;                                                                             \
        FOR_KIND(follow, q.stack->kind, q, x, x_t, T);                                                        \
    }                                                                                                         \
    attribute void pack(const float *w, int64_t gates, int64_t H, int64_t K, Form form, float *out,           \
                        Instructions) {                                                                       \
        pack(w, gates, H, K, out);                                                                            \
        form_weights<Instructions::vector>(form, out, gates * padded(H) / 16, K);                             \
    }                                                                                                         \
    attribute void pack_back(const float *w, int64_t gates, int64_t H, int64_t K, Form form, float *out,      \
                             Instructions) {                                                                  \
        pack_back(w, gates, H, K, out);                                                                       \
        form_weights<Instructions::vector>(form, out, padded(K) / 16, gates * padded(H));                     \
    }
#ifdef AVX512
ENTRIES(AVX512, Avx512)
ENTRIES(AVX2, Avx2)
bool supports_avx512() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
bool supports_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
const bool has_avx512 = supports_avx512(), has_avx2 = supports_avx2();
#else
typedef Any Avx512, Avx2;
const bool has_avx512 = false, has_avx2 = false;
#endif
ENTRIES(, Any)

// The machine's best, or the best up to the one named.
const char *best(const char *most) {
    const bool plain = most && !strcmp(most, "any"), narrow = plain || (most && !strcmp(most, "avx2"));
    return has_avx512 && !narrow ? "avx512" : has_avx2 && !plain ? "avx2" : "any";
}
const char *instructions = best(getenv("SKIPRNN_INSTRUCTIONS"));
bool multiplies_pairs() { return has_pairs && !strcmp(instructions, "avx512"); }
#define CALL(name, ...)                                                \
    (!strcmp(instructions, "avx512") ? name(__VA_ARGS__, Avx512())     \
     : !strcmp(instructions, "avx2") ? name(__VA_ARGS__, Avx2())       \
                                     : name(__VA_ARGS__, Any()))

}  // namespace

extern "C" {

// OpenMP, because its threads are torch's own: others would share the cores with those, which spin between uses.
void skiprnn_forward(const Problem *q, int64_t workers) {
    Plan plan = planned(*q, workers, false);
#pragma omp parallel for schedule(static, 1) num_threads(workers)
    for (int64_t worker = 0; worker < workers; worker++) CALL(forward, *q, plan, worker);
}

void skiprnn_backward(const Problem *q, int64_t workers) {
    const Plan plan = planned(*q, workers, true);
#pragma omp parallel for schedule(static, 1) num_threads(workers)
    for (int64_t worker = 0; worker < workers; worker++) CALL(backward, *q, plan, worker);
}

// Floats of a worker's gradients: of each layer w_x (GP, DP), w_h (GP, HP), bias_x and bias_h; then w_p and b_p (16).
int64_t skiprnn_sums(const Stack *q) { return sums_floats(*q); }

void skiprnn_follow(Follower *q, const float *x, int64_t x_t, int64_t T) { CALL(follow, *q, x, x_t, T); }

// How many of the next limit steps do not open the gate; acc becomes the sum that then does, or that after them.
void skiprnn_count(const float *p, float *acc, const int64_t *limit, int64_t B, int64_t *steps) {
    for (int64_t b = 0; b < B; b++) steps[b] = next_update(p[b], acc[b], -1, limit[b]);
}

// Copies a stack's weights, shaped as torch has them, into `memory`, as Stack describes them.
void skiprnn_pack_stack(const Stack *raw, Stack *packed, float *memory, int64_t training) {
    const int64_t H = raw->H, HP = padded(H), gates = raw->kind ? 3 : 4;
    const Form form = raw->form == FLOATS ? FLOATS : multiplies_pairs() ? PAIRS : ROUNDED;
    Layer *layer = const_cast<Layer *>(packed->layer);
    const auto copy = [&memory, H, HP](const float *w, int64_t gates, int64_t K, Form form) {
        float *const out = memory;
        CALL(pack, w, gates, H, K, form, out);
        memory += gates * HP * K;
        return out;
    };
    const auto copy_back = [&memory, H, HP](const float *w, int64_t gates, int64_t K, Form form) {
        float *const out = memory;
        CALL(pack_back, w, gates, H, K, form, out);
        memory += gates * HP * padded(K);
        return out;
    };
    for (int64_t l = 0; l < raw->layers; l++) {
        const Layer &w = raw->layer[l];
        const Form form_x = l == 0 && w.D <= 2 ? FLOATS : form;  // which goes into gates without a product
        layer[l] = {w.D, form_x, copy(w.w_x, gates, w.D, form_x), copy(w.w_h, gates, H, form),
                    copy(w.bias_x, gates, 1, FLOATS), copy(w.bias_h, gates, 1, FLOATS), nullptr, nullptr};
        if (!training) continue;
        layer[l].w_x_back = copy_back(w.w_x, gates, w.D, form_x);
        if (raw->kind < 2)
            layer[l].w_h_back = copy_back(w.w_h, gates, H, form);
        else  // the products of r and z with h, then that of n with r⊙h
            layer[l].w_h_back = copy_back(w.w_h, 2, H, form), copy_back(w.w_h + 2 * H * H, 1, H, form);
    }
    *packed = {raw->kind, raw->layers, H, form, layer, copy(raw->w_p, 1, 1, FLOATS), raw->b_p, raw->low, raw->high};
}

const char *skiprnn_instructions(const char *most) { return instructions = most ? best(most) : instructions; }
int64_t skiprnn_pairs() { return multiplies_pairs(); }
const char *skiprnn_source() { return SOURCE; }
const char *skiprnn_structure(int64_t number) {
    const char *const texts[] = {Layer_text, Stack_text, Problem_text, Follower_text};
    return number < 4 ? texts[number] : nullptr;
}
int64_t skiprnn_size(int64_t number) {
    const int64_t sizes[] = {sizeof(Layer), sizeof(Stack), sizeof(Problem), sizeof(Follower)};
    return sizes[number];
}
}
