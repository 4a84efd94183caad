#pragma once

#include "packed_panel.cuh"

namespace layerweave {

// Products of many tokens on the tensor cores of compute capability 9.0. The
// product is weights x tokens: the weights are the A operand, in registers (int8
// widened there), and tokens the B operand, in shared memory. A block has two
// warpgroups of four panels each, 256 packed rows, and up to 128 tokens.
inline constexpr int kBlockThreads = 256;
inline constexpr int kBlockPanels = 8;
inline constexpr int kBlockRows = kBlockPanels * kPanelRows;
inline constexpr int kTileTokensWide = 128;
inline constexpr int kTileTokensNarrow = 64;
// Columns of a stage: rows of 128 bytes, which the 128-byte swizzle wants.
inline constexpr int kStageColumns = 64;
inline constexpr int kStages = 8;
inline constexpr int kStageBytes = kTileTokensWide * kStageColumns * 2;
// Chunks of weights that a thread holds or has loads in flight for.
inline constexpr int kRing = 4;
// An output tile passes through shared memory in rows of tokens.
inline constexpr int kOutputStride = kBlockRows + 8;
inline constexpr int kSharedBytes = kStages * kStageBytes + 1024;
static_assert(kTileTokensWide * kOutputStride * 2 <= kStages * kStageBytes);
// Token tiles that a row block's weights serve before the next row block's: the
// blocks on the card at a time then share tokens and weights in its L2.
inline constexpr int kTilesPerGroup = 16;

// Grouped activations are [block of 64 columns][grouped row][64]: what a stage
// reads is one contiguous piece, already in shared memory's order. In a row the
// columns of a chunk stand in the order in which the packed weights' lanes hold
// them, and its 16-byte units are exchanged by the swizzle. Rows of an expert
// begin at a multiple of 8, and columns that pad the last ring are zero.
__host__ __device__ constexpr int64_t grouped_rows(int64_t choices, int64_t experts) { return (choices + 7 * experts + 7) / 8 * 8; }
__host__ __device__ constexpr int64_t grouped_columns(int64_t columns) {
  return (columns + kRing * kChunkColumns - 1) / (kRing * kChunkColumns) * (kRing * kChunkColumns);
}

/// Byte offset, in its row, of an even column and the next.
__device__ __forceinline__ int grouped_byte(int row, int column) {
  const int lane = column % 32 / 8, i = column % 8;
  const int slot = column / 32 * 32 + i / 4 * 16 + 2 * lane + i % 4 / 2 * 8 + i % 2;
  return (slot / 8 ^ row % 8) * 16 + slot % 8 * 2;
}

/// Places columns `column`..+7 of a row among `rows` grouped ones. Four
/// neighbouring lanes have the columns of a chunk and write 16 bytes each.
__device__ __forceinline__ void put_grouped(void* grouped, int64_t rows, int64_t row, int64_t column, uint4 v) {
  const int lane = threadIdx.x % 32, t = lane % 4;
  const unsigned group = 0xfu << (lane - t);
  unsigned pair[4] = {v.x, v.y, v.z, v.w};
  // Lane t's pair k becomes lane k's pair t.
  const auto exchange = [&](unsigned& low, unsigned& high, int bit) {
    const bool upper = (t & bit) != 0;
    const unsigned got = __shfl_xor_sync(group, upper ? low : high, bit);
    (upper ? low : high) = got;
  };
  exchange(pair[0], pair[1], 1);
  exchange(pair[2], pair[3], 1);
  exchange(pair[0], pair[2], 2);
  exchange(pair[1], pair[3], 2);
  const int unit = static_cast<int>(column % kStageColumns) / kChunkColumns * 4 + t;
  char* to = static_cast<char*>(grouped) + (column / kStageColumns * rows + row) * kStageColumns * 2;
  reinterpret_cast<uint4*>(to)[unit ^ static_cast<int>(row % 8)] = make_uint4(pair[0], pair[1], pair[2], pair[3]);
}

/// Which tile of tokens and which block of rows the local-th block has.
struct TilePlace {
  int tile, row_block;
};
__device__ __forceinline__ TilePlace tile_place(int local, int tiles, int row_blocks) {
  const int group = local / (kTilesPerGroup * row_blocks), rest = local - group * kTilesPerGroup * row_blocks;
  const int in_group = min(kTilesPerGroup, tiles - group * kTilesPerGroup);
  return {group * kTilesPerGroup + rest % in_group, rest / in_group};
}

/// Whether the current device has the tensor cores that this file is for.
inline cudaError_t has_tile_products(bool& has) {
  int device = 0, major = 0, minor = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  has = major == 9 && minor == 0;
  return status;
}

// wgmma and its kin exist in machine code for sm_90a alone.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL

__device__ __forceinline__ unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ void barrier_init(uint64_t* barrier, unsigned count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, unsigned parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}
/// Starts a copy of `bytes` to shared memory; `barrier` completes with it.
__device__ __forceinline__ void copy_bulk(void* to, const void* from, unsigned bytes, uint64_t* barrier) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

#define LAYERWEAVE_SUMS8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define LAYERWEAVE_SUMS32(d, i) LAYERWEAVE_SUMS8(d, i), LAYERWEAVE_SUMS8(d, i + 8), LAYERWEAVE_SUMS8(d, i + 16), LAYERWEAVE_SUMS8(d, i + 24)
#define LAYERWEAVE_WGMMA(type)                                                                                                  \
  __device__ __forceinline__ void wgmma(float(&d)[64], const unsigned(&a)[4], uint64_t b, type##_tag) {                          \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." #type "." #type                                                   \
                 " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28," \
                 "%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55," \
                 "%56,%57,%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68, 1, 1, 1, 0;"                                        \
                 : LAYERWEAVE_SUMS32(d, 0), LAYERWEAVE_SUMS32(d, 32)                                                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                         \
  }                                                                                                                             \
  __device__ __forceinline__ void wgmma(float(&d)[32], const unsigned(&a)[4], uint64_t b, type##_tag) {                          \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." #type "." #type                                                    \
                 " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28," \
                 "%29,%30,%31}, {%32,%33,%34,%35}, %36, 1, 1, 1, 0;"                                                            \
                 : LAYERWEAVE_SUMS32(d, 0)                                                                                      \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                         \
  }
using bf16_tag = __nv_bfloat16;
using f16_tag = __half;
LAYERWEAVE_WGMMA(bf16)
LAYERWEAVE_WGMMA(f16)
#undef LAYERWEAVE_WGMMA
#undef LAYERWEAVE_SUMS32
#undef LAYERWEAVE_SUMS8

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

struct Stages {
  unsigned char* data;  // 1024-byte aligned
  uint64_t* full;
  uint64_t* empty;
};

/// Shared memory of a block of kSharedBytes, its barriers ready for use.
__device__ __forceinline__ Stages make_stages(unsigned char* raw, uint64_t* full, uint64_t* empty) {
  if (threadIdx.x == 0)
    for (int s = 0; s < kStages; ++s) barrier_init(&full[s], 1), barrier_init(&empty[s], kBlockThreads / 32);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  return {raw + (1024 - shared_address(raw) % 1024) % 1024, full, empty};
}

/// One warpgroup's 2 x 64 rows (a warp's panel, half 0 and half 1) times the
/// tokens of the stages. The panel has `chunks` chunks; the tokens `padded` of
/// them, a multiple of kRing, and are zero where the panel ends before. `tokens`
/// is where stage 0 lies, `stride` bytes before the next.
template <typename T, PackedType kType, int kTokens>
__device__ __forceinline__ void multiply_tile(const uint4* panel, int chunks, int padded, const char* tokens, int64_t stride,
                                              unsigned bytes, const Stages& stages, float (&sums)[2][kTokens / 2]) {
  constexpr int kLoads = kLoadsPerChunk<kType>;
  const int lane = threadIdx.x % 32, count = padded / 2;
  const auto fill = [&](int stage) {
    copy_bulk(stages.data + stage % kStages * kStageBytes, tokens + stage * stride, bytes, &stages.full[stage % kStages]);
  };
  if (threadIdx.x == 0)
    for (int stage = 0; stage < min(kStages, count); ++stage) fill(stage);
  unsigned ring[kRing][kLoads][4];
  const auto load = [&](int chunk, unsigned(&to)[kLoads][4]) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const uint4 v = load_weights(panel + (int64_t{min(chunk, chunks - 1)} * kLoads + i) * 32 + lane);
      to[i][0] = v.x, to[i][1] = v.y, to[i][2] = v.z, to[i][3] = v.w;
    }
  };
  // int8 codes become operands in two buffers, one being made while the products
  // read the other. 16-bit weights are operands where they were loaded.
  constexpr bool kWidens = kType == PackedType::kInt8;
  unsigned a[2][2][2][4];  // [buffer][half][step]
  const auto take_operands = [&](const unsigned(&from)[kLoads][4], unsigned(&to)[2][2][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      widen(from[half][0], to[half][0][0], to[half][0][2], T{});
      widen(from[half][2], to[half][0][1], to[half][0][3], T{});
      widen(from[half][1], to[half][1][0], to[half][1][2], T{});
      widen(from[half][3], to[half][1][1], to[half][1][3], T{});
    }
  };
  // What products read stays the compiler's value until they have been waited for.
  const auto hold = [](unsigned(&operand)[4]) {
#pragma unroll
    for (unsigned& i : operand) asm volatile("" : "+r"(i)::"memory");
  };
#pragma unroll
  for (int c = 0; c < kRing; ++c) load(c, ring[c]);
  if constexpr (kWidens) {
    take_operands(ring[0], a[0]);
    load(kRing, ring[0]);
  }
  // K-major, rows of 128 bytes in groups of 8 that lie 1024 bytes apart, 128-byte swizzle.
  const uint64_t descriptor = (uint64_t{1} << 62) | (uint64_t{1024 >> 4} << 32) | (uint64_t{1} << 16) | (shared_address(stages.data) >> 4);
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) sums[half][i] = 0;

  for (int first = 0; first < padded; first += kRing) {
#pragma unroll
    for (int q = 0; q < kRing; ++q) {
      const int stage = first / 2 + q / 2;
      if (q % 2 == 0) barrier_wait(&stages.full[stage % kStages], stage / kStages % 2);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < 2; ++step)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint64_t b = descriptor + ((stage % kStages * kStageBytes + q % 2 * 64 + step * 32) >> 4);
          if constexpr (kWidens)
            wgmma(sums[half], a[q % 2][half][step], b, T{});
          else
            wgmma(sums[half], ring[q][2 * half + step], b, T{});
        }
      wgmma_commit();
      // int8: the chunk before is done, its operands and its stage are free. 16 bits:
      // this chunk is, as its operands are loaded anew. With one in flight and copied
      // operands registers spilled, and test runs on an H100 now and then met a wrong
      // sum (kernels/test/repeat_test.cu).
      wgmma_wait<kWidens ? 1 : 0>();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (kWidens)
          hold(a[(q + 1) % 2][i / 2][i % 2]);
        else
          hold(ring[q][i]);
      }
      if (q % 2 == 0 && stage >= 1) {
        if (lane == 0) barrier_arrive(&stages.empty[(stage - 1) % kStages]);
        // Refilled one stage late, when the other warpgroup is likely past it.
        const int old = stage - 2;
        if (threadIdx.x == 0 && old >= 0 && old + kStages < count) {
          barrier_wait(&stages.empty[old % kStages], old / kStages % 2);
          fill(old + kStages);
        }
        __syncwarp();
      }
      if constexpr (kWidens) {
        take_operands(ring[(q + 1) % kRing], a[(q + 1) % 2]);
        load(first + q + 1 + kRing, ring[(q + 1) % kRing]);
      } else {
        load(first + q + kRing, ring[q]);
      }
    }
  }
  wgmma_wait<0>();
  // The sums are the compiler's values since the last product was begun, and ready from here.
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) asm volatile("" : "+f"(sums[half][i])::"memory");
}

/// The scales of a lane's rows, [half][upper, lower]; 1 of 16-bit weights.
template <PackedType kType>
__device__ __forceinline__ void load_scales(const float* scale, int64_t panel, float (&scales)[2][2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      scales[half][lower] = 1;
      if constexpr (kType == PackedType::kInt8) scales[half][lower] = scale[panel * kPanelRows + half * 16 + lower * 8 + threadIdx.x % 32 / 4];
    }
}

/// Likewise what is added to each row; 0 without a bias.
template <typename T>
__device__ __forceinline__ void load_bias(const T* bias, int64_t panel, int64_t rows, float (&added)[2][2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const int64_t row = panel * kPanelRows + half * 16 + lower * 8 + threadIdx.x % 32 / 4;
      added[half][lower] = bias != nullptr && row < rows ? to_float(bias[row]) : 0.f;
    }
}

/// Lays a warp's scaled sums into the block's output tile, [token][kOutputStride].
template <typename T, int kTokens>
__device__ __forceinline__ void put_output(const float (&sums)[2][kTokens / 2], const float (&scales)[2][2], const float (&added)[2][2], T* tile) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    const int token = i / 4 * 8 + lane % 4 * 2 + i % 2, lower = i / 2 % 2;
    T* to = tile + token * kOutputStride + warp * kPanelRows + lower * 8 + lane / 4;
    to[0] = from_float<T>(fmaf(sums[0][i], scales[0][lower], added[0][lower]));
    to[16] = from_float<T>(fmaf(sums[1][i], scales[1][lower], added[1][lower]));
  }
}

#endif

}  // namespace layerweave
