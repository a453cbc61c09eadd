// cuda_kernels.cu on the CPU, for tests: the threads of a block are fibers, which take turns where they wait for others.
// A warp runs as far as it can, so that a missing barrier or buffer tells. Memory of a block starts as NaN.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#define ON_CPU
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static __attribute__((section("of_block")))
#define __launch_bounds__(threads, blocks)
#define DYNAMIC(name) float4* const name = dynamic_memory
#pragma GCC diagnostic ignored "-Wunknown-pragmas"

struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct Place { unsigned x, y; };
static float2 make_float2(float x, float y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
#define __expf(x) std::exp((float)(x))  // glibc has one of its own
static float __fdividef(float x, float y) { return x / y; }
static float __uint_as_float(unsigned bits) { float x; std::memcpy(&x, &bits, 4); return x; }

static Place threadIdx, blockIdx;
static float4* dynamic_memory;

namespace fibers {
constexpr int MOST = 1024, STACK = 1 << 17;
static ucontext_t scheduler, contexts[MOST];
static std::vector<char> stacks[MOST];
static bool ended[MOST];
static int threads, current;
static long moved;
static void (*work)();

struct Barrier {  // of a warp or of the block
  int size, arrived = 0, passed = 0;
  void wait();
};
static Barrier block, warps[MOST / 32];

static void yield() {
  const int mine = current;
  swapcontext(&contexts[mine], &scheduler);
  current = mine;
  threadIdx.x = (unsigned)mine;
}

void Barrier::wait() {
  const int before = passed;
  ++moved;
  if (++arrived == size) {
    arrived = 0;
    ++passed;
  } else {
    while (passed == before) yield();
    ++moved;
  }
}

static void begin() {
  work();
  ended[current] = true;
  ++moved;
}

static void run(int count, void (*what)()) {
  threads = count, work = what;
  block = {count};
  for (int i = 0; i < count; ++i) {
    if (i % 32 == 0) warps[i / 32] = {std::min(32, count - i)};
    stacks[i].resize(STACK);
    ended[i] = false;
    getcontext(&contexts[i]);
    contexts[i].uc_stack.ss_sp = stacks[i].data();
    contexts[i].uc_stack.ss_size = STACK;
    contexts[i].uc_link = &scheduler;
    makecontext(&contexts[i], begin, 0);
  }
  static std::minstd_rand draw;
  const int all = (count + 31) / 32;
  for (bool going = true; going;) {
    going = false;
    const int offset = (int)(draw() % all);  // the warp that comes last to a barrier goes ahead of the others
    for (int k = 0; k < all; ++k) {
      const int first = (k + offset) % all * 32;
      for (long before = moved - 1; before != moved;) {
        before = moved;
        for (int i = first; i < std::min(first + 32, count); ++i) {
          if (ended[i]) continue;
          current = i, threadIdx.x = (unsigned)i;
          swapcontext(&scheduler, &contexts[i]);
          going = true;
        }
      }
    }
  }
}
}  // namespace fibers

static void __syncthreads() { fibers::block.wait(); }

static float shuffled[2][fibers::MOST];
static int turns[fibers::MOST];

// Two buffers in turn: whoever writes the one again has seen all others leave it.
static const float* exchanged(float value) {
  const int mine = fibers::current, turn = turns[mine]++ % 2;
  shuffled[turn][mine] = value;
  fibers::warps[mine / 32].wait();
  return shuffled[turn] + mine / 32 * 32;
}

static float __shfl_xor_sync(unsigned, float value, int mask) {
  const int lane = fibers::current % 32;
  return exchanged(value)[lane ^ mask];
}

static bool __any_sync(unsigned, bool said) {
  const float* all = exchanged(said ? 1.f : 0.f);
  for (int lane = 0; lane < 32; ++lane)
    if (all[lane] != 0.f) return true;
  return false;
}

extern "C" char __start_of_block[], __stop_of_block[];  // by the linker

#include SOURCE

#define LAUNCH(name, Arguments)                                                                          \
  static Arguments given_to_##name;                                                                      \
  static void work_of_##name() { name(given_to_##name); }                                                \
  extern "C" void launch_##name(const void* arguments, int64_t size, int across, int down, int threads, int bytes) { \
    if (size != (int64_t)sizeof(Arguments)) std::abort();                                                \
    std::memcpy(&given_to_##name, arguments, sizeof(Arguments));                                         \
    for (int y = 0; y < down; ++y)                                                                       \
      for (int x = 0; x < across; ++x) {                                                                 \
        blockIdx = {(unsigned)x, (unsigned)y};                                                           \
        std::vector<float4> memory(bytes / 16, float4{NAN, NAN, NAN, NAN});                              \
        dynamic_memory = memory.data();                                                                  \
        std::memset(__start_of_block, 0xff, __stop_of_block - __start_of_block);                           \
        std::memset(turns, 0, sizeof(turns));                                                            \
        fibers::run(threads, work_of_##name);                                                            \
      }                                                                                                  \
  }

LAUNCH(forward, Forward)
LAUNCH(backward, Backward)
LAUNCH(fill, Fill)
LAUNCH(take, Take)
LAUNCH(reset, Reset)
LAUNCH(shares, Shares)
LAUNCH(sums, Sums)
