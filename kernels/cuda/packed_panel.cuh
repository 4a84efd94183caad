#pragma once

#include <algorithm>
#include <cstdint>

#include "device_math.cuh"
#include "early_launch.cuh"
#include "packed_weights.h"

namespace layerweave {

// A block multiplies one panel of 32 rows, its warps sharing the chunks of
// columns. Small blocks, several a multiprocessor: while one reduces or starts,
// the others keep the memory busy.
inline constexpr int kPanelWarps = 4;
inline constexpr int kPanelThreads = 32 * kPanelWarps;
inline constexpr int kPanelBlocksPerProcessor = 4;
inline constexpr int kTileTokens = 8;
// Bytes a lane loads at a time, twice that being in flight.
inline constexpr int kLoadsInFlight = 8;
// Blocks that a matrix is split into along its columns to fill a large GPU; a
// constant, so that sums have the same order on every card.
inline constexpr int64_t kWantedBlocks = 1024;

template <PackedType kType>
inline constexpr int kLoadsPerChunk = kType == PackedType::kInt8 ? 2 : 4;
template <PackedType kType>
inline constexpr int kChunksPerBatch = kLoadsInFlight / kLoadsPerChunk<kType>;

/// How the chunks of a matrix are shared among blocks, and how many of its own a
/// block asks for into the L2 before it waits, behind those its registers wait for.
struct ColumnSplit {
  int chunks, slice, count, ahead;
};

// As many as the registers wait for: a card's first blocks, 528 on an H100, then
// have 17 MB of weights on the way when the kernel before ends. Twice as many slow
// that kernel down by more than they gain (docs/performance.md).
inline constexpr int64_t kPrefetchBytes = 16 << 10;

constexpr int chunks_ahead(PackedType type) {
  return static_cast<int>(kPrefetchBytes / (kPanelRows * kChunkColumns * (type == PackedType::kInt8 ? 1 : 2)));
}

inline ColumnSplit split_columns(int64_t panels, int64_t columns, PackedType type) {
  const int64_t step =
      kPanelWarps * (type == PackedType::kInt8 ? kChunksPerBatch<PackedType::kInt8> : kChunksPerBatch<PackedType::k16Bit>);
  const int64_t chunks = packed_chunks(columns);
  const int64_t wanted = std::max<int64_t>(1, std::min((kWantedBlocks + panels - 1) / panels, (chunks + step - 1) / step));
  const int64_t slice = ((chunks + wanted - 1) / wanted + step - 1) / step * step;
  return {static_cast<int>(chunks), static_cast<int>(slice), static_cast<int>((chunks + slice - 1) / slice), chunks_ahead(type)};
}

/// Past the L1, which the activations need; weights are read once.
__device__ __forceinline__ uint4 load_weights(const uint4* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

__device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, __nv_bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, __half) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Bytes 0 and 2 of `codes`, then 1 and 3, as two exact 16-bit floats each.
__device__ __forceinline__ void widen(unsigned codes, unsigned& even, unsigned& odd, __nv_bfloat16) {
  // A code is (128 + its low 7 bits) - (256 if negative, else 128); in bfloat16
  // those are 0x4300 with the low bits, and 0x4300 with the sign in bit 7.
  const auto pair = [](unsigned w) {
    const unsigned low = (w & 0x007f007fu) | 0x43004300u, sign = (w & 0x00800080u) | 0x43004300u;
    const __nv_bfloat162 difference =
        __hsub2(reinterpret_cast<const __nv_bfloat162&>(low), reinterpret_cast<const __nv_bfloat162&>(sign));
    return reinterpret_cast<const unsigned&>(difference);
  };
  even = pair(codes);
  odd = pair(codes >> 8);
}
__device__ __forceinline__ void widen(unsigned codes, unsigned& even, unsigned& odd, __half) {
  // 0x6400 with a byte b below is 1024 + b, and b is the code + 128.
  const auto pair = [](unsigned w) {
    const unsigned bias = 0x64806480u;
    const __half2 difference = __hsub2(reinterpret_cast<const __half2&>(w), reinterpret_cast<const __half2&>(bias));
    return reinterpret_cast<const unsigned&>(difference);
  };
  const unsigned biased = codes ^ 0x80808080u;
  even = pair(__byte_perm(biased, 0x64646464u, 0x4240));
  odd = pair(__byte_perm(biased, 0x64646464u, 0x4341));
}

/// A lane's sums: accumulator [half][tile][i] of lane 4g + t is row
/// g + 8 * (i / 2) of the half and token 2t + i % 2 of the tile.
template <int kTiles>
struct PanelSums {
  float value[2][kTiles][4] = {};
};

/// Adds columns [first, end) chunks of a panel times the tokens' rows. `rows[j]`
/// is this lane's token lane / 4 of tile j, null if there is none. The rows are
/// read behind ready(); before it the first weights are, and `ahead` chunks of the
/// next ones asked for.
template <typename T, PackedType kType, int kTiles, typename Ready>
__device__ __forceinline__ void multiply_panel(const uint4* panel, int first, int end, int ahead, int64_t columns,
                                               const T* const (&rows)[kTiles], PanelSums<kTiles>& sums, Ready ready) {
  constexpr int kLoads = kLoadsPerChunk<kType>, kChunks = kChunksPerBatch<kType>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto load = [&](uint4 (&to)[kChunks][kLoads], int chunk) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
#pragma unroll
      for (int i = 0; i < kLoads; ++i)
        to[c][i] = chunk + c < end ? load_weights(panel + (int64_t{chunk + c} * kLoads + i) * 32 + lane) : uint4{};
  };
  uint4 now[kChunks][kLoads], next[kChunks][kLoads];
  int chunk = first + warp * kChunks;
  load(now, chunk);
  if constexpr (kEarlyLaunch) {
    const int second = first + kPanelWarps * kChunks, count = min(ahead, end - second);
    if (threadIdx.x == 0 && count > 0) prefetch_bulk(panel + int64_t{second} * kLoads * 32, static_cast<unsigned>(count * kLoads * 512));
  }
  ready();
  for (; chunk < end; chunk += kPanelWarps * kChunks) {
    load(next, chunk + kPanelWarps * kChunks);
    uint4 x[kChunks][kTiles];
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int64_t column = int64_t{chunk + c} * kChunkColumns + lane % 4 * 8;
#pragma unroll
      for (int j = 0; j < kTiles; ++j)
        x[c][j] = rows[j] != nullptr && column < columns ? *reinterpret_cast<const uint4*>(rows[j] + column) : uint4{};
    }
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        unsigned a[2][4];
        if constexpr (kType == PackedType::kInt8) {
          const uint4 codes = now[c][half];
          widen(codes.x, a[0][0], a[0][2], T{});
          widen(codes.z, a[0][1], a[0][3], T{});
          widen(codes.y, a[1][0], a[1][2], T{});
          widen(codes.w, a[1][1], a[1][3], T{});
        } else {
#pragma unroll
          for (int step = 0; step < 2; ++step) {
            const uint4 values = now[c][2 * half + step];
            a[step][0] = values.x, a[step][1] = values.y, a[step][2] = values.z, a[step][3] = values.w;
          }
        }
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          mma(sums.value[half][j], a[0], x[c][j].x, x[c][j].y, T{});
          mma(sums.value[half][j], a[1], x[c][j].z, x[c][j].w, T{});
        }
      }
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
#pragma unroll
      for (int i = 0; i < kLoads; ++i) now[c][i] = next[c][i];
  }
}

/// The sums of a block's warps, side by side in shared memory.
struct PanelShared {
  float4 value[kPanelWarps][2][2][32];

  template <int kTiles>
  __device__ __forceinline__ void put(const PanelSums<kTiles>& sums) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const float(&v)[4] = sums.value[half][j];
        value[threadIdx.x / 32][half][j][threadIdx.x % 32] = float4{v[0], v[1], v[2], v[3]};
      }
  }
  /// Row `row` of a half times token `token`.
  __device__ __forceinline__ float total(int half, int row, int token) const {
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < kPanelWarps; ++warp)
      sum += reinterpret_cast<const float*>(
          &value[warp][half][token / kTileTokens][row % 8 * 4 + token % kTileTokens / 2])[row / 8 * 2 + token % 2];
    return sum;
  }
};

/// Multiplies a panel by `count` tokens, token n being row(n), into `shared`. Each
/// thread calls ready() before it reads what row(n) points to.
template <typename T, PackedType kType, typename Row, typename Ready>
__device__ __forceinline__ void block_multiply(const uint4* panel, int first, int end, int ahead, int64_t columns, int count, Row row,
                                               PanelShared& shared, Ready ready) {
  const int token = threadIdx.x % 32 / 4;
  const auto run = [&](auto& sums, const auto& rows) {
    multiply_panel<T, kType>(panel, first, end, ahead, columns, rows, sums, ready);
    shared.put(sums);
  };
  if (count <= kTileTokens) {
    PanelSums<1> sums;
    const T* const rows[1] = {token < count ? row(token) : nullptr};
    run(sums, rows);
  } else {
    PanelSums<2> sums;
    const T* const rows[2] = {row(token), token + kTileTokens < count ? row(token + kTileTokens) : nullptr};
    run(sums, rows);
  }
  __syncthreads();
}

/// True in the last of `expected` blocks to come here, which then sees what the
/// others wrote before; it resets the counter.
__device__ __forceinline__ bool last_to_arrive(uint32_t* counter, unsigned expected) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1u) == expected - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}

inline bool aligned16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace layerweave
