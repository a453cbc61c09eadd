// The event loop of one layer, forward and backward: one block of threads owns ROWS sequences from start to end.
//
// Nothing is exchanged between blocks. A block does the next update of all its sequences at once, each at its own step,
// so that time follows the updates. Every warp knows where each sequence stands, so that threads agree on when to stop
// without asking. The recurrent weights stay on the multiprocessor: HELD_* of a thread's in registers, the rest in
// shared memory, where the states lie too.
//
// Compiled for each problem, with these defined: UNITS, FEATURES (0: x is the inputs' share of the gates), GRU,
// RESET_BEFORE (the GRU resets before the product), DRAWS (of the gate) and BOUNDED (its probability), ROWS (1, 2 or
// 4), NARROW (x is bfloat16), BLOCK (threads), SLICE_* (what a thread multiplies of the states, or of the gates'
// gradients), HELD_*, STEPS and TAKERS (of a sequence, and threads, a block of the kernels around the loops), TILE and
// PRODUCERS (rows and columns, and threads, a block of the products). Gates come in torch's order. Numbers of a kernel
// are passed as 64 bits each.

#ifndef ON_CPU
#define DYNAMIC(name) extern __shared__ float4 name[]
#endif

constexpr unsigned ALL = 0xffffffffu;
constexpr int GATES = GRU ? 3 : 4;
constexpr int HIDDEN = RESET_BEFORE ? 2 : GATES;     // of which the state's share is the same at all steps of a segment
constexpr int GRADIENTS = RESET_BEFORE ? 3 : 4;      // with respect to the shares of the gates; of a GRU n's are two
constexpr int WARPS = BLOCK / 32;
constexpr int WINDOW = 16;  // skipped steps that backward takes at a time
constexpr int DEPTH = 32;   // of a product over rows, how many summands are at hand

// Apart by an odd number of float4, lest slices lie in the same banks.
__host__ __device__ constexpr int apart(int slice) { return slice / 4 % 2 ? slice : slice + 4; }
constexpr int STRIDE_F = apart(SLICE_F);
constexpr int STRIDE_B = apart(SLICE_B);

#if NARROW
typedef unsigned short Input;
__device__ inline float wide(Input x) { return __uint_as_float((unsigned)x << 16); }
#else
typedef float Input;
__device__ inline float wide(Input x) { return x; }
#endif

typedef long long Long;

__device__ inline float sigmoid(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }

__device__ inline float tanh_of(float x) { return 2.f * sigmoid(2.f * x) - 1.f; }

__device__ inline float bounded(float x, float bound) { return x > bound ? bound : x < -bound ? -bound : x; }

// Sums over LANES neighbouring threads of COUNT values, of which each is left with its own: that of its lane % COUNT.
template <int LANES, int COUNT, int WIDTH>
__device__ inline void gather(float (&values)[COUNT][WIDTH], int lane) {
  int count = COUNT;
#pragma unroll
  for (int bit = 1; bit < LANES; bit *= 2) {
    if (count > 1) {
      count /= 2;
#pragma unroll
      for (int i = 0; i < COUNT / 2; ++i) {
        if (i < count) {
#pragma unroll
          for (int w = 0; w < WIDTH; ++w) {
            const float even = values[2 * i][w], odd = values[2 * i + 1][w];
            values[i][w] = (lane & bit ? odd : even) + __shfl_xor_sync(ALL, lane & bit ? even : odd, bit);
          }
        }
      }
    } else {
#pragma unroll
      for (int w = 0; w < WIDTH; ++w) values[0][w] += __shfl_xor_sync(ALL, values[0][w], bit);
    }
  }
}

__device__ inline void unpack(float (&to)[4], float4 from) {
  to[0] = from.x, to[1] = from.y, to[2] = from.z, to[3] = from.w;
}

// Add the products of some gates' weights with the states of each row, or with what takes their place.
template <int FROM, int TO>
__device__ __forceinline__ void multiply_states(
    float (&sums)[ROWS][TO - FROM], const float (&held)[HELD_F * GATES + 1], const float4* rest,
    const float4 (&rows)[ROWS][STRIDE_F], int slice) {
  auto four = [&](const float (&weight)[4][4], int k) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      float value[4];
      unpack(value, rows[r][(slice * STRIDE_F + k) / 4]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int n = FROM; n < TO; ++n) sums[r][n - FROM] += weight[i][n] * value[i];
    }
  };
#pragma unroll
  for (int k = 0; k < HELD_F; k += 4) {
    float weight[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int n = FROM; n < TO; ++n) weight[i][n] = held[(k + i) * GATES + n];
    four(weight, k);
  }
#pragma unroll 1
  for (int k = HELD_F; k < SLICE_F; k += 4) {
    float weight[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) unpack(weight[i], rest[(k + i - HELD_F) * BLOCK + threadIdx.x]);
    four(weight, k);
  }
}

// Add the products of the weights of two units with some gradients of the gates, of each row; those of one unit first.
template <int FROM, int TO>
__device__ __forceinline__ void multiply_gradients(
    float (&sums)[2 * ROWS][1], const float (&held)[HELD_B * 2 + 1], const float4* rest,
    const float4 (&rows)[ROWS][2 * STRIDE_B], int slice) {
  auto four = [&](const float (&weight)[4][2], int k) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      float value[4];
      unpack(value, rows[r][(slice * STRIDE_B + k) / 4]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e) sums[e * ROWS + r][0] += weight[i][e] * value[i];
    }
  };
#pragma unroll
  for (int k = FROM; k < (TO < HELD_B ? TO : HELD_B); k += 4) {
    float weight[4][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) weight[i][0] = held[(k + i) * 2], weight[i][1] = held[(k + i) * 2 + 1];
    four(weight, k);
  }
#pragma unroll 1
  for (int k = FROM > HELD_B ? FROM : HELD_B; k < TO; k += 4) {
    float two[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) unpack(two[i], rest[((k - HELD_B) / 2 + i) * BLOCK + threadIdx.x]);
    const float weight[4][2] = {
        {two[0][0], two[0][1]}, {two[0][2], two[0][3]}, {two[1][0], two[1][1]}, {two[1][2], two[1][3]}};
    four(weight, k);
  }
}

// The input's weights of a unit's gates, and its biases, as float4: FEATURES of them, then the input's, then the state's.
__device__ inline void load_inputs(float4* to, const float* w_x, const float* b_x, const float* b_h) {
  for (int i = threadIdx.x; i < (FEATURES + 2) * UNITS; i += BLOCK) {
    const int d = i / UNITS, unit = i % UNITS;
    float value[4] = {0.f, 0.f, 0.f, 0.f};
    for (int n = 0; n < GATES; ++n) {
      if (d < FEATURES) value[n] = w_x[((Long)n * UNITS + unit) * FEATURES + d];
      else if (d == FEATURES && FEATURES) value[n] = b_x[n * UNITS + unit];
      else if (d == FEATURES + 1 && b_h) value[n] = b_h[n * UNITS + unit];
    }
    to[i] = make_float4(value[0], value[1], value[2], value[3]);
  }
}

// What a step's input is to a unit: the sample, or its share of the gates.
struct Sample {
  float value[FEATURES ? FEATURES : GATES];
  float reset;  // the state's share of n, going back, if RESET_BEFORE

  __device__ inline void load(const Input* x, Long place, int unit, bool wanted) {
#pragma unroll
    for (int d = 0; d < (FEATURES ? FEATURES : GATES); ++d)
      value[d] = wanted ? wide(x[place + (FEATURES ? d : d * UNITS + unit)]) : 0.f;
  }

  __device__ inline void gates(float (&shares)[4], const float4* inputs, int unit) const {
    if (FEATURES == 0) {
#pragma unroll
      for (int n = 0; n < GATES; ++n) shares[n] = value[n];
      return;
    }
    const float4 bias = inputs[FEATURES * UNITS + unit];
    shares[0] = bias.x, shares[1] = bias.y, shares[2] = bias.z, shares[3] = bias.w;
#pragma unroll
    for (int d = 0; d < FEATURES; ++d) {
      const float4 weight = inputs[d * UNITS + unit];
      const float sample = value[d];
      shares[0] += weight.x * sample, shares[1] += weight.y * sample;
      shares[2] += weight.z * sample, shares[3] += weight.w * sample;
    }
  }
};

struct Forward {
  const Input* x;  // steps and sequences x_t and x_b apart
  const float *w_x, *b_x, *w_h, *b_h, *w_p, *b_p;
  const float *h, *c, *p, *acc;         // before the first step
  float *h_end, *c_end, *p_end, *acc_end;  // after the last
  const Long* ends;                     // (B,), lengths, or null: T
  float *output, *update_gate;          // (T, B, H), written at updates if not null; (T, B) zeros
  int* until;  // (T + 1, B), if not null: the step up to which the state after an update, or in row 0 the first, is kept
  float *c_at, *gates_at;  // if saves: (T, B, H), (2, T, B), at updates; p, and the sum that opened, or CUT
  int* steps;  // if saves: (T + 1, B), how many updates there were, and from there their steps
  const float* draws;  // (T, B), if DRAWS: what sums are compared with instead of 0.5
  double low, high;    // if BOUNDED, of the update probability
  Long saves, T, B, x_t, x_b, h_b, c_b;
};

constexpr float CUT = 2.f;  // a sum that opened the gate, and was cut at 1

// From step t on, the first at which the gate opens, with the sum at it; or end, with the last step's sum.
__device__ inline void next_update(float p, float& total, int& t, int end, const float* draws, Long B) {
  for (++t; t < end; ++t) {
    const float left = 1.f - total;
    const bool fits = p <= left;
    total += fits ? p : left;
    if (total > (DRAWS ? draws[t * B] : 0.5f)) {
      if (DRAWS && !fits) total = CUT;
      return;
    }
  }
}

extern "C" __global__ void __launch_bounds__(BLOCK, 1) forward(const Forward a) {
  DYNAMIC(dynamic);
  __shared__ float4 states[2][ROWS][STRIDE_F];
  __shared__ float parts[2][ROWS][WARPS];
#if RESET_BEFORE
  __shared__ float4 reset[ROWS][STRIDE_F];  // r * h
#endif
  float4* const rest = dynamic;
  float4* const inputs = dynamic + (SLICE_F - HELD_F) * BLOCK;
  const int tid = threadIdx.x, slice = tid % 4, unit = tid / 4, row = slice % ROWS;
  const Long b = (Long)blockIdx.x * ROWS + row;
  const float* const draws = DRAWS ? a.draws + b : nullptr;
  const float low = BOUNDED ? (float)a.low : 0.f, span = BOUNDED ? (float)(a.high - a.low) : 1.f;
  const bool exists = b < a.B, is_unit = unit < UNITS, there = exists && is_unit;
  const bool writes = there && slice < ROWS, leads = exists && tid < ROWS;  // of threads that know the same, one
  const int place_of_unit = unit / SLICE_F * STRIDE_F + unit % SLICE_F;

  float held[HELD_F * GATES + 1];
#pragma unroll
  for (int k = 0; k < SLICE_F; ++k) {
    const int from = slice * SLICE_F + k;
    float weight[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
    for (int n = 0; n < GATES; ++n) {
      if (is_unit && from < UNITS) weight[n] = a.w_h[((Long)n * UNITS + unit) * UNITS + from];
      if (k < HELD_F) held[k * GATES + n] = weight[n];
    }
    if (k >= HELD_F) rest[(k - HELD_F) * BLOCK + tid] = make_float4(weight[0], weight[1], weight[2], weight[3]);
  }
  load_inputs(inputs, a.w_x, a.b_x, a.b_h);
  for (int i = tid; i < 2 * ROWS * STRIDE_F; i += BLOCK) (&states[0][0][0])[i] = make_float4(0.f, 0.f, 0.f, 0.f);
#if RESET_BEFORE
  for (int i = tid; i < ROWS * STRIDE_F; i += BLOCK) (&reset[0][0])[i] = make_float4(0.f, 0.f, 0.f, 0.f);
#endif
  __syncthreads();

  const float w_p = is_unit ? a.w_p[unit] : 0.f, b_p = a.b_p[0];
  float h = there ? a.h[b * a.h_b + unit] : 0.f;
  float c = GRU ? h : there ? a.c[b * a.c_b + unit] : 0.f;
  float p = exists ? a.p[b] : 0.f, total = exists ? a.acc[b] : 0.f;
  const int end = !exists ? 0 : a.ends ? (int)a.ends[b] : (int)a.T;
  int t = -1, done = 0, now = 0;
  if (is_unit && slice < ROWS) ((float*)states[0][row])[place_of_unit] = h;
  next_update(p, total, t, end, draws, a.B);
  if (a.until && leads) a.until[b] = t < end ? t : (int)a.T;
  __syncthreads();

  while (__any_sync(ALL, t < end)) {
    const bool on = t < end;
    Sample sample;
    sample.load(a.x, t * a.x_t + b * a.x_b, unit, on && is_unit);

    float sums[ROWS][HIDDEN] = {};
    multiply_states<0, HIDDEN>(sums, held, rest, states[now], slice);
    gather<4>(sums, slice);

    float xs[4], hs[4], h_new, c_new;
    const int mine = is_unit ? unit : 0;
    sample.gates(xs, inputs, mine);
    unpack(hs, inputs[(FEATURES + 1) * UNITS + mine]);
#pragma unroll
    for (int n = 0; n < HIDDEN; ++n) hs[n] += sums[0][n];
    if (GRU) {
      const float r = sigmoid(xs[0] + hs[0]), z = sigmoid(xs[1] + hs[1]);
#if RESET_BEFORE
      if (is_unit && slice < ROWS) ((float*)reset[row])[place_of_unit] = r * h;
      __syncthreads();
      float of_reset[ROWS][1] = {};
      multiply_states<2, 3>(of_reset, held, rest, reset, slice);
      gather<4>(of_reset, slice);
      const float n = tanh_of(xs[2] + hs[2] + of_reset[0][0]);
#else
      const float n = tanh_of(xs[2] + r * hs[2]);
#endif
      c_new = h_new = (1.f - z) * n + z * h;
    } else {
      c_new = sigmoid(xs[1] + hs[1]) * c + sigmoid(xs[0] + hs[0]) * tanh_of(xs[2] + hs[2]);
      h_new = sigmoid(xs[3] + hs[3]) * tanh_of(c_new);
    }
    if (on && is_unit) h = h_new, c = c_new;

    // What others need of it: the state, and its share of the update probability.
    if (is_unit && slice < ROWS) ((float*)states[1 - now][row])[place_of_unit] = h;
    float part[1][1] = {{c * w_p}};
#pragma unroll
    for (int bit = 4; bit < 32; bit *= 2) part[0][0] += __shfl_xor_sync(ALL, part[0][0], bit);
    if (tid % 32 < ROWS) parts[now][row][tid / 32] = part[0][0];
    const Long place = (Long)t * a.B + b;
    if (on && writes) {
      if (a.output) a.output[place * UNITS + unit] = h;
      if (a.saves && !GRU) a.c_at[place * UNITS + unit] = c;
    }
    __syncthreads();

    if (on) {
      float logit = b_p;
#pragma unroll
      for (int w = 0; w < WARPS; ++w) logit += parts[now][row][w];
      p = low + span * sigmoid(logit);
      if (leads) {
        a.update_gate[place] = 1.f;
        if (a.saves) {
          a.gates_at[place] = p;
          a.gates_at[a.T * a.B + place] = total;
          a.steps[(Long)(done + 1) * a.B + b] = t;
        }
      }
      ++done;
      total = 0.f;
      next_update(p, total, t, end, draws, a.B);
      if (a.until && leads) a.until[place + a.B] = t < end ? t : (int)a.T;
    }
    now = 1 - now;
  }

  if (writes) {
    a.h_end[b * UNITS + unit] = h;
    if (!GRU) a.c_end[b * UNITS + unit] = c;
  }
  if (leads) {
    a.p_end[b] = p;
    a.acc_end[b] = total;
    if (a.saves) a.steps[b] = done;
  }
}

// Which of the GATES * UNITS gradients is a thread's k-th; -1 if none. RESET_BEFORE each takes some of every gate, since
// n's are multiplied before r's are known.
constexpr int PART = SLICE_B / 3;  // of a gate, if RESET_BEFORE
__device__ inline int gradient_of(int slice, int k) {
  if (RESET_BEFORE) return slice * PART + k % PART < UNITS ? k / PART * UNITS + slice * PART + k % PART : -1;
  return slice * SLICE_B + k < GATES * UNITS ? slice * SLICE_B + k : -1;
}

// And where it lies in shared memory.
__device__ inline int place_of_gradient(int gate, int unit) {
  if (RESET_BEFORE) return unit / PART * STRIDE_B + gate * PART + unit % PART;
  const int column = gate * UNITS + unit;
  return column / SLICE_B * STRIDE_B + column % SLICE_B;
}

struct Backward {
  const Input* x;
  const float *w_x, *b_x, *w_h, *w_p, *b_p;
  // One row for each sequence's first state and one for the state after each of its updates:
  const float *hidden;  // (R, HIDDEN * H), the state's share of the gates
  const float *reset;   // (T, B, H), if RESET_BEFORE: the state's share of n at each step
  const float *h_rows, *c_rows, *p_rows, *a_rows;
  const int* t_rows;       // the update's step, -1 for the first state
  const Long* first;       // (B,), number of a sequence's first row
  const int* count;        // (B,), and of its updates
  const Long* ends;  // (B,), lengths, or null: T
  const float *grad_output, *grad_gate;  // or null
  const float *grad_h, *grad_c, *grad_p, *grad_acc;  // after the last step, or null
  float *first_h, *first_c, *first_p, *first_acc;    // the same before the first
  float* grad_gates;  // (R, GRADIENTS * H), of the update that led to the row; GRU: r, z, the state's share of n, and n
  float* grad_logit;  // (R,)
  double low, high;   // if BOUNDED, of the update probability
  double bound;       // of the gate's gradient
  Long T, B, x_t, x_b, go_t, go_b, gg_t, gg_b;
};

// What is kept of an update.
struct Row {
  int t;
  float p, a, h, c, hidden[4];

  __device__ inline void load(const Backward& a_, Long at, int unit, bool exists, bool is_unit) {
    t = exists ? a_.t_rows[at] : 0;
    p = exists ? a_.p_rows[at] : 0.f;
    a = exists ? a_.a_rows[at] : 0.f;
    const bool wanted = exists && is_unit;
    h = wanted ? a_.h_rows[at * UNITS + unit] : 0.f;
    c = GRU ? h : wanted ? a_.c_rows[at * UNITS + unit] : 0.f;
#pragma unroll
    for (int n = 0; n < HIDDEN; ++n) hidden[n] = wanted ? a_.hidden[(at * HIDDEN + n) * UNITS + unit] : 0.f;
  }
};

extern "C" __global__ void __launch_bounds__(BLOCK, 1) backward(const Backward a) {
  DYNAMIC(dynamic);
  constexpr int COPIES = 4 / ROWS;  // threads that know the same
  __shared__ float4 grads[2][ROWS][2 * STRIDE_B];
  __shared__ float parts[2][ROWS][WARPS];
  __shared__ float2 parts_skipped[WINDOW][ROWS][WARPS + 1];
  __shared__ float2 skipped_at[WINDOW][ROWS];
  float4* const rest = dynamic;
  float4* const inputs = dynamic + (SLICE_B - HELD_B) / 2 * BLOCK;
  const int tid = threadIdx.x, slice = tid % 8, pair = tid / 8, row = slice % ROWS, copy = slice / (2 * ROWS);
  const int unit = 2 * pair + slice / ROWS % 2, warp = tid / 32;
  const Long b = (Long)blockIdx.x * ROWS + row;
  const bool exists = b < a.B, is_unit = unit < UNITS, there = exists && is_unit;
  const bool writes = there && copy == 0, leads = exists && tid < ROWS;
  const int mine = is_unit ? unit : 0;
  const float bound = (float)a.bound;
  const float low = BOUNDED ? (float)a.low : 0.f, high = BOUNDED ? (float)a.high : 1.f;
  const float span = BOUNDED ? (float)(a.high - a.low) : 1.f;

  float held[HELD_B * 2 + 1];
#pragma unroll
  for (int k = 0; k < SLICE_B; k += 2) {
    float weight[2][2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int from = gradient_of(slice, k + i);
        if (2 * pair + e < UNITS && from >= 0) weight[i][e] = a.w_h[(Long)from * UNITS + 2 * pair + e];
        if (k < HELD_B) held[(k + i) * 2 + e] = weight[i][e];
      }
    if (k >= HELD_B)
      rest[(k - HELD_B) / 2 * BLOCK + tid] = make_float4(weight[0][0], weight[0][1], weight[1][0], weight[1][1]);
  }
  load_inputs(inputs, a.w_x, a.b_x, nullptr);
  for (int i = tid; i < 4 * ROWS * STRIDE_B; i += BLOCK) (&grads[0][0][0])[i] = make_float4(0.f, 0.f, 0.f, 0.f);
  int place_of_gate[GATES];
#pragma unroll
  for (int n = 0; n < GATES; ++n) place_of_gate[n] = place_of_gradient(n, mine);
  __syncthreads();

  const float w_p = is_unit ? a.w_p[unit] : 0.f, b_p = a.b_p[0];
  float G_h = there && a.grad_h ? a.grad_h[b * UNITS + unit] : 0.f;
  float G_c = !GRU && there && a.grad_c ? a.grad_c[b * UNITS + unit] : 0.f;
  float gp = exists && a.grad_p ? a.grad_p[b] : 0.f, ga = exists && a.grad_acc ? a.grad_acc[b] : 0.f;
  const int end = !exists ? 0 : a.ends ? (int)a.ends[b] : (int)a.T;
  int last = end;  // the step after the segment
  int j = exists ? a.count[b] : -1;  // the update that began the segment; 0 is none
  Long at = (exists ? a.first[b] : 0) + j;
  Row row_now, row_before;
  Sample sample;
  Sample next;          // of the skipped steps, the next
  float arrived = 0.f;  // gradient of the update's output
  row_now.load(a, at, unit, j >= 0, is_unit);
  row_before.load(a, at - 1, unit, j > 0, is_unit);
  const auto load = [&](Sample& of, Long step, bool wanted) {
    of.load(a.x, step * a.x_t + b * a.x_b, unit, wanted);
    if (RESET_BEFORE) of.reset = wanted ? a.reset[(step * a.B + b) * UNITS + unit] : 0.f;
  };
  load(sample, row_now.t, j > 0 && is_unit);
  load(next, last - 1 - copy, j >= 0 && last - 1 - copy > row_now.t && is_unit);
  if (a.grad_output) arrived = j > 0 && is_unit ? a.grad_output[row_now.t * a.go_t + b * a.go_b + unit] : 0.f;
  int now = 0;

  while (__any_sync(ALL, j >= 0)) {
    // The skipped steps of the segment, WINDOW of them at a time, falling.
    const int t = row_now.t;
    const float acc_now = j == 0 ? row_now.a : 0.f;
    int behind = j >= 0 ? last - 1 : t;
    while (__any_sync(ALL, behind > t)) {
#pragma unroll 1
      for (int k = copy; __any_sync(ALL, k - copy < WINDOW && behind - (k - copy) > t); k += COPIES) {
        const bool skipped = behind - k > t && is_unit;
        const Sample here = next;
        const int after = behind - k - COPIES;
        load(next, after, after > t && is_unit);
        float G = G_h;
        if (a.grad_output) {  // the gradient of the state grows by each step's, going back
#pragma unroll
          for (int other = 0; other < COPIES; ++other) {
            const int step = behind - (k - copy + other);
            const float arriving = step > t && is_unit ? a.grad_output[(Long)step * a.go_t + b * a.go_b + unit] : 0.f;
            G_h += arriving;
            if (other <= copy) G += arriving;
          }
        }
        float xs[4], gain, logit;
        here.gates(xs, inputs, mine);
        if (GRU) {
          const float z = sigmoid(xs[1] + row_now.hidden[1]);
          const float share =
              RESET_BEFORE ? here.reset : sigmoid(xs[0] + row_now.hidden[0]) * row_now.hidden[2];
          const float moved = (1.f - z) * (tanh_of(xs[2] + share) - row_now.h);
          gain = moved * G;
          logit = (row_now.h + moved) * w_p;
        } else {
          const float c_new = sigmoid(xs[1] + row_now.hidden[1]) * row_now.c +
                              sigmoid(xs[0] + row_now.hidden[0]) * tanh_of(xs[2] + row_now.hidden[2]);
          const float h_new = sigmoid(xs[3] + row_now.hidden[3]) * tanh_of(c_new);
          gain = (h_new - row_now.h) * G + (c_new - row_now.c) * G_c;
          logit = c_new * w_p;
        }
        if (!skipped) gain = logit = 0.f;
        gain += __shfl_xor_sync(ALL, gain, ROWS), logit += __shfl_xor_sync(ALL, logit, ROWS);
        gain += __shfl_xor_sync(ALL, gain, 8), logit += __shfl_xor_sync(ALL, logit, 8);
        gain += __shfl_xor_sync(ALL, gain, 16), logit += __shfl_xor_sync(ALL, logit, 16);
        if (tid % 32 < 8 && slice / ROWS % 2 == 0) parts_skipped[k][row][warp] = make_float2(gain, logit);
      }
      __syncthreads();
      for (int k = tid / ROWS; k < WINDOW; k += BLOCK / ROWS) {
        const int step = behind - k;
        if (step <= t) continue;
        float gain = 0.f, logit = b_p;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
          const float2 two = parts_skipped[k][row][w];
          gain += two.x, logit += two.y;
        }
        if (a.grad_gate) gain += a.grad_gate[(Long)step * a.gg_t + b * a.gg_b];
        skipped_at[k][row] = make_float2(gain, low + span * sigmoid(logit) - row_now.p);
      }
      __syncthreads();
      for (int some = 0; some < WINDOW && behind - some > t; some += 4) {
#pragma unroll
        for (int k = some; k < some + 4; ++k) {
          const float2 two = skipped_at[k][row];
          const float total = acc_now + (float)(behind - k - t) * row_now.p;
          const float less = ga + bounded(two.x + two.y * gp - total * ga, bound);
          if (behind - k > t) ga = less, gp += less;
        }
      }
      behind -= WINDOW;
    }

    // The update that began it.
    const bool on = j > 0;
    float xs[4], d[4], G_old, r = 0.f;
    const float h_old = row_before.h;
    sample.gates(xs, inputs, mine);
    const float(&hs)[4] = row_before.hidden;
    G_h += arrived;
    float gu_part = (row_now.h - row_before.h) * G_h;
    if (!GRU) gu_part += (row_now.c - row_before.c) * G_c;
    const float d_logit = on ? gp * (row_now.p - low) * (high - row_now.p) / span : 0.f;
    if (GRU) {
      const float grad_new = G_h + d_logit * w_p;
      const float z = sigmoid(xs[1] + hs[1]);
      r = sigmoid(xs[0] + hs[0]);
      const float n = tanh_of(xs[2] + (RESET_BEFORE ? sample.reset : r * hs[2]));
      d[3] = grad_new * (1.f - z) * (1.f - n * n);
      d[0] = RESET_BEFORE ? 0.f : d[3] * hs[2] * r * (1.f - r);  // or below
      d[1] = grad_new * (h_old - n) * z * (1.f - z);
      d[2] = RESET_BEFORE ? d[3] : d[3] * r;
      G_old = grad_new * z;
    } else {
      const float i = sigmoid(xs[0] + hs[0]), f = sigmoid(xs[1] + hs[1]), g = tanh_of(xs[2] + hs[2]);
      const float o = sigmoid(xs[3] + hs[3]), tanh_c = tanh_of(row_now.c);
      const float grad_new = G_c + d_logit * w_p + G_h * o * (1.f - tanh_c * tanh_c);
      d[0] = grad_new * g * i * (1.f - i);
      d[1] = grad_new * row_before.c * f * (1.f - f);
      d[2] = grad_new * i * (1.f - g * g);
      d[3] = G_h * tanh_c * o * (1.f - o);
      if (on) G_c = grad_new * f;
      G_old = 0.f;
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      if (!on || !is_unit) d[n] = 0.f;
      if (RESET_BEFORE && (n == 0 || n == 3)) continue;
      if (writes && j >= 0) a.grad_gates[(at * GRADIENTS + n) * UNITS + unit] = d[n];
      if (n < GATES && writes) ((float*)grads[now][row])[place_of_gate[n]] = d[n];
    }
    if (leads && j >= 0) a.grad_logit[at] = d_logit;
    if (!on || !is_unit) gu_part = 0.f;
    gu_part += __shfl_xor_sync(ALL, gu_part, ROWS);
    gu_part += __shfl_xor_sync(ALL, gu_part, 8);
    gu_part += __shfl_xor_sync(ALL, gu_part, 16);
    if (tid % 32 < ROWS) parts[now][row][warp] = gu_part;
    const bool was_cut = DRAWS && row_now.a == CUT;
    float gu = gp * (row_now.p - row_before.p) - ga * (was_cut ? 1.f : row_now.a);
    if (a.grad_gate && on) gu += a.grad_gate[(Long)t * a.gg_t + b * a.gg_b];

    // What the next update needs is on its way during the product.
    row_now = row_before;
    row_before.load(a, at - 2, unit, j > 1, is_unit);
    load(sample, row_now.t, j > 1 && is_unit);
    load(next, t - 1 - copy, on && t - 1 - copy > row_now.t && is_unit);
    if (a.grad_output) arrived = j > 1 && is_unit ? a.grad_output[row_now.t * a.go_t + b * a.go_b + unit] : 0.f;
    __syncthreads();

    float sums[2 * ROWS][1] = {};
#if RESET_BEFORE
    float of_reset[2 * ROWS][1] = {};
    multiply_gradients<2 * PART, 3 * PART>(of_reset, held, rest, grads[now], slice);
    gather<8>(of_reset, slice);
    const float grad_reset = of_reset[0][0], d_r = on && is_unit ? grad_reset * h_old * r * (1.f - r) : 0.f;
    G_old += grad_reset * r;
    if (writes && j >= 0) a.grad_gates[at * GRADIENTS * UNITS + unit] = d_r;
    if (writes) ((float*)grads[now][row])[place_of_gate[0]] = d_r;
    __syncthreads();
    multiply_gradients<0, 2 * PART>(sums, held, rest, grads[now], slice);
#else
    multiply_gradients<0, SLICE_B>(sums, held, rest, grads[now], slice);
#endif
    gather<8>(sums, slice);
    if (on) {
#pragma unroll
      for (int w = 0; w < WARPS; ++w) gu += parts[now][row][w];
      gp = ga = was_cut ? 0.f : bounded(gu, bound);
      G_h = is_unit ? G_old + sums[0][0] : 0.f;
      last = t;
    }
    now = 1 - now;
    --j;
    --at;
  }

  if (writes) {
    a.first_h[b * UNITS + unit] = G_h;
    if (!GRU) a.first_c[b * UNITS + unit] = G_c;
  }
  if (leads) {
    const Long start = a.first[b];
    const bool shut = a.p_rows[start] > 1.f - a.a_rows[start] && end > 0;  // only states made by hand are so
    a.first_p[b] = shut ? 0.f : gp;
    a.first_acc[b] = shut ? 0.f : ga;
  }
}

struct Fill {
  float* output;
  const float *h, *update_gate;
  const int* until;
  Long T, B, h_b;
};

// Write the state that is kept after each update, and before the first, as the output of the steps skipped.
extern "C" __global__ void fill(const Fill a) {
  const int unit = threadIdx.x;
  if (unit >= UNITS) return;
  const Long b = blockIdx.x, begin = (Long)blockIdx.y * STEPS;
  if (begin == 0) {
    const float state = a.h[b * a.h_b + unit];
    for (int t = 0; t < a.until[b]; ++t) a.output[(t * a.B + b) * UNITS + unit] = state;
  }
  for (Long t = begin; t < begin + STEPS && t < a.T; ++t) {
    const Long place = t * a.B + b;
    if (a.update_gate[place] == 0.f) continue;
    const float state = a.output[place * UNITS + unit];
    for (int later = (int)t + 1; later < a.until[place + a.B]; ++later)
      a.output[(later * a.B + b) * UNITS + unit] = state;
  }
}

struct Take {
  const float *p, *acc, *h, *c;  // before the first step
  const float *gates_at, *h_at, *c_at;
  const int* steps;  // as forward wrote them
  const float* x;    // (T, B, D), steps and sequences x_t and x_b apart
  Long* first;       // (B,), number of a sequence's first row
  int* t_rows;
  float *p_rows, *a_rows, *h_rows, *c_rows;  // as backward reads them
  float* x_rows;                             // (R, D + ones), with a one, or without
  Long T, B, D, ones, x_t, x_b, h_b, c_b;
};

// Bring what was stored at updates into rows, STEPS of a sequence a block of threads.
extern "C" __global__ void take(const Take a) {
  __shared__ int counted[TAKERS];
  const Long b = blockIdx.x;
  const int tid = threadIdx.x, begin = blockIdx.y * STEPS;
  const int updates = a.steps[b];
  if (begin > updates) return;
  int sum = 0;
  for (int other = tid; other < b; other += TAKERS) sum += a.steps[other];
  counted[tid] = sum;
  __syncthreads();
  Long start = b;
  for (int other = 0; other < TAKERS; ++other) start += counted[other];
  if (begin == 0 && tid == 0) a.first[b] = start;
  for (int j = begin; j < begin + STEPS && j <= updates; ++j) {
    const Long to = start + j, t = j ? a.steps[(Long)j * a.B + b] : -1, from = t * a.B + b;
    if (tid == 0) {
      a.t_rows[to] = (int)t;
      a.p_rows[to] = j ? a.gates_at[from] : a.p[b];
      a.a_rows[to] = j ? a.gates_at[a.T * a.B + from] : a.acc[b];
    }
    if (tid < UNITS) {
      a.h_rows[to * UNITS + tid] = j ? a.h_at[from * UNITS + tid] : a.h[b * a.h_b + tid];
      if (!GRU) a.c_rows[to * UNITS + tid] = j ? a.c_at[from * UNITS + tid] : a.c[b * a.c_b + tid];
    }
    for (Long d = tid; d < a.D + a.ones; d += TAKERS)
      a.x_rows[to * (a.D + a.ones) + d] = d == a.D ? 1.f : j ? a.x[t * a.x_t + b * a.x_b + d] : 0.f;
  }
}

struct Reset {
  const Input* x;
  const float *w_x, *b_x, *hidden, *h_rows;
  const int* t_rows;
  const Long* first;
  const int* count;
  const Long* ends;
  float *states;  // (T, B, H)
  float *used;    // (R, H), of the update that led to the row
  Long T, B, x_t, x_b;
};

// r * h at every step, whatever the gate does, from the rows of backward: STEPS rows of a sequence a block of threads.
extern "C" __global__ void reset(const Reset a) {
  const Long b = blockIdx.x;
  const int unit = threadIdx.x, begin = blockIdx.y * STEPS, count = a.count[b];
  if (unit >= UNITS || begin > count) return;
  const int end = a.ends ? (int)a.ends[b] : (int)a.T;
  const float bias = FEATURES ? a.b_x[unit] : 0.f;
  for (int j = begin; j < begin + STEPS && j <= count; ++j) {
    const Long at = a.first[b] + j;
    const float h = a.h_rows[at * UNITS + unit], hidden = a.hidden[at * HIDDEN * UNITS + unit];
    const int until = j < count ? a.t_rows[at + 1] : end - 1;
    if (j == 0) a.used[at * UNITS + unit] = 0.f;
    for (int t = a.t_rows[at] + 1; t <= until; ++t) {
      const Long from = t * a.x_t + b * a.x_b;
      float share = FEATURES ? bias : wide(a.x[from + unit]);
      for (int d = 0; d < FEATURES; ++d) share += a.w_x[unit * FEATURES + d] * wide(a.x[from + d]);
      const float kept = sigmoid(share + hidden) * h;
      a.states[(t * a.B + b) * UNITS + unit] = kept;
      if (j < count && t == until) a.used[(at + 1) * UNITS + unit] = kept;
    }
  }
}

// Of the two matrices of a product, what a block has at hand, DEPTH summands of TILE rows and TILE columns.
struct Tiles {
  float4 (*left)[TILE / 4 + 1], (*right)[TILE / 4 + 1];

  // Add to 4 x 4 of the products, of which each thread has its own.
  __device__ inline void multiply(float (&sums)[4][4]) const {
    const int across = threadIdx.x % (TILE / 4), down = threadIdx.x / (TILE / 4);
#pragma unroll 8
    for (int k = 0; k < DEPTH; ++k) {
      float l[4], r[4];
      unpack(l, left[k][down]), unpack(r, right[k][across]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] += l[i] * r[j];
    }
  }

  __device__ static inline void put(float4 (*tile)[TILE / 4 + 1], int k, int i, float value) { ((float*)tile[k])[i] = value; }
};

__device__ inline Long rows_of(const Long* first, const int* count, Long B) { return first[B - 1] + count[B - 1] + 1; }

struct Shares {
  const float *h_rows, *weight, *bias;  // (R, UNITS), (N, UNITS), (N,)
  float* out;                           // (R, N)
  const Long* first;
  const int* count;
  Long B, N, lanes;
};

// The states' share of the gates, of as many rows as there are: TILE of them, and of the columns, a block at a time.
extern "C" __global__ void __launch_bounds__(PRODUCERS, 3) shares(const Shares a) {
  __shared__ float4 left[DEPTH][TILE / 4 + 1], right[DEPTH][TILE / 4 + 1];
  const Tiles tiles{left, right};
  const int tid = threadIdx.x, column = blockIdx.x * TILE;
  const Long rows = rows_of(a.first, a.count, a.B);
  for (Long row = (Long)blockIdx.y * TILE; row < rows; row += a.lanes * TILE) {
    float sums[4][4] = {};
    for (int from = 0; from < UNITS; from += DEPTH) {
      __syncthreads();
      for (int i = tid; i < DEPTH * TILE; i += PRODUCERS) {
        const int k = i % 8 + i / 32 % (DEPTH / 8) * 8, at = i / 8 % 4 + i / (4 * DEPTH) * 4;  // of a warp, apart in banks
        const bool summand = from + k < UNITS;
        Tiles::put(left, k, at, summand && row + at < rows ? a.h_rows[(row + at) * UNITS + from + k] : 0.f);
        Tiles::put(right, k, at, summand && column + at < a.N ? a.weight[(Long)(column + at) * UNITS + from + k] : 0.f);
      }
      __syncthreads();
      tiles.multiply(sums);
    }
    const int across = column + tid % (TILE / 4) * 4;
    const Long down = row + tid / (TILE / 4) * 4;
    for (int i = 0; i < 4 && down + i < rows; ++i)
      for (int j = 0; j < 4 && across + j < a.N; ++j) a.out[(down + i) * a.N + across + j] = sums[i][j] + a.bias[across + j];
  }
}

struct Sums {
  const float *left, *right, *beside;  // (R, N), (R, K), (R, M), rows left_r, right_r and beside_r apart
  float* parts;                        // (lanes, N, K + M + 1)
  const Long* first;
  const int* count;
  Long B, N, K, M, earlier, left_r, right_r, beside_r, across, lanes;
};

// left' [right, beside, 1], over as many rows as there are, a part of them a lane; of right the row so many before.
extern "C" __global__ void __launch_bounds__(PRODUCERS, 3) sums(const Sums a) {
  __shared__ float4 left[DEPTH][TILE / 4 + 1], right[DEPTH][TILE / 4 + 1];
  const Tiles tiles{left, right};
  const int tid = threadIdx.x;
  const Long n = blockIdx.x / a.across * TILE, k = blockIdx.x % a.across * TILE;
  const Long rows = rows_of(a.first, a.count, a.B);
  float sums[4][4] = {};
  for (Long from = (Long)blockIdx.y * DEPTH; from < rows; from += a.lanes * DEPTH) {
    __syncthreads();
    for (int i = tid; i < DEPTH * TILE; i += PRODUCERS) {
      const int of = i / TILE, at = i % TILE;
      const Long row = from + of, column = n + at;
      const Long summand = k + at, before = row - a.earlier;
      float value = summand == a.K + a.M ? 1.f : 0.f;
      if (summand < a.K) value = row < rows && before >= 0 ? a.right[before * a.right_r + summand] : 0.f;
      else if (summand < a.K + a.M) value = row < rows ? a.beside[row * a.beside_r + summand - a.K] : 0.f;
      Tiles::put(left, of, at, row < rows && column < a.N ? a.left[row * a.left_r + column] : 0.f);
      Tiles::put(right, of, at, value);
    }
    __syncthreads();
    tiles.multiply(sums);
  }
  const Long across = k + tid % (TILE / 4) * 4, down = n + tid / (TILE / 4) * 4;
  for (int i = 0; i < 4 && down + i < a.N; ++i)
    for (int j = 0; j < 4 && across + j <= a.K + a.M; ++j)
      a.parts[((Long)blockIdx.y * a.N + down + i) * (a.K + a.M + 1) + across + j] = sums[i][j];
}
