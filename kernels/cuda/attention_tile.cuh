#pragma once

#include <cmath>

#include "attention.cuh"
#include "device_math.cuh"
#include "packed_panel.cuh"

namespace layerweave {

// Query rows of one KV head are numbered token * (H/G) + head within the group,
// so that a tile of the matrix instructions is full of them however few tokens
// there are.

/// Each part of attention, for the sizes it takes.
cudaError_t attention_decode(const AttentionParams& params, DType dtype, int multiprocessors, cudaStream_t stream);
cudaError_t attention_append(const AttentionParams& params, DType dtype, cudaStream_t stream);
cudaError_t attention_prefill(const AttentionParams& params, DType dtype, cudaStream_t stream);
cudaError_t attention_prefill_wgmma(const AttentionParams& params, DType dtype, cudaStream_t stream);

inline constexpr int kRowTile = 16;

// What the append kernel clears to: the longest tile of positions that is read whole.
inline constexpr int kValuesCleared = 128;

// New tokens that the decode kernel holds beside the cache.
inline constexpr int64_t kDecodeMaxTokens = 16;
// Rows beyond which reading the cache once for each 16 of them costs more than
// the prefill kernel's fewer blocks.
inline constexpr int64_t kDecodeMaxRows = 64;

inline int64_t rows_per_kv_head(const AttentionParams& p) { return p.tokens * (p.heads / p.kv_heads); }
inline bool decodes(const AttentionParams& p) {
  return p.tokens == 1 || (p.tokens <= kDecodeMaxTokens && rows_per_kv_head(p) <= kDecodeMaxRows);
}
inline int64_t row_tiles(const AttentionParams& p) { return (rows_per_kv_head(p) + kRowTile - 1) / kRowTile; }

__device__ __forceinline__ int past_of(const AttentionParams& p, int64_t batch) {
  return static_cast<int>(min(max(p.past_lengths[batch], int64_t{0}), p.capacity - p.tokens));
}

__device__ __forceinline__ unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

/// Copies 16 bytes, or clears them.
__device__ __forceinline__ void copy_async(unsigned to, const void* from, bool live) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(live ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void load_matrices(unsigned (&to)[4], unsigned from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from) : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(unsigned (&to)[4], unsigned from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

__device__ __forceinline__ unsigned pack(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const unsigned&>(pair);
}
__device__ __forceinline__ unsigned pack(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const unsigned&>(pair);
}

/// Byte of a 16-byte unit in a tile of rows of kDim elements. Units are
/// exchanged so that those of one column in 8 neighbouring rows lie in different banks.
template <int kDim>
__device__ __forceinline__ int unit_byte(int row, int unit) {
  return row * kDim * 2 + (unit ^ (row % 8)) * 16;
}

/// The angles of four neighbouring pairs at one position.
struct Rotation {
  float cos[4], sin[4];

  __device__ __forceinline__ Rotation(const AttentionParams& p, int quad, int position) {
    if (p.inverse_frequencies == nullptr) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float angle = static_cast<float>(position) * p.inverse_frequencies[quad * 4 + i];
      // Whole turns go in float64: the angle of a long context has few bits left for its fraction.
      const double turns = static_cast<double>(angle) * 0.15915494309189535;
      sincospif(2.f * static_cast<float>(turns - rint(turns)), &sin[i], &cos[i]);
      sin[i] *= p.rope_scale;
      cos[i] *= p.rope_scale;
    }
  }

  /// Angles that another thread stored.
  __device__ __forceinline__ explicit Rotation(const float4* from) {
    const float4 both[2] = {from[0], from[1]};
    __builtin_memcpy(this, both, sizeof both);
  }
  __device__ __forceinline__ void store(float4* to) const {
    to[0] = make_float4(cos[0], cos[1], cos[2], cos[3]);
    to[1] = make_float4(sin[0], sin[1], sin[2], sin[3]);
  }

  template <typename T>
  __device__ __forceinline__ void apply(uint2& low, uint2& high, T) const {
    T x[4], y[4];
    __builtin_memcpy(x, &low, 8);
    __builtin_memcpy(y, &high, 8);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float a = to_float(x[i]), b = to_float(y[i]);
      x[i] = from_float<T>(a * cos[i] - b * sin[i]);
      y[i] = from_float<T>(b * cos[i] + a * sin[i]);
    }
    __builtin_memcpy(&low, x, 8);
    __builtin_memcpy(&high, y, 8);
  }
};

/// Hands rotated queries of rows [first_row, first_row + rows) to
/// store(row - first_row, column, four elements).
template <typename T, typename Store>
__device__ __forceinline__ void load_queries(const AttentionParams& p, int64_t batch, int64_t kv_head, int64_t first_row, int rows, int past,
                                             int thread, int threads, const Store& store) {
  const int group = static_cast<int>(p.heads / p.kv_heads), quads = static_cast<int>(p.head_dim / 8), half = static_cast<int>(p.head_dim / 2);
  const int first_token = static_cast<int>(first_row / group), tokens = static_cast<int>((first_row + rows - 1) / group) - first_token + 1;
  for (int i = thread; i < tokens * quads; i += threads) {
    const int token = first_token + i / quads, quad = i % quads;
    const Rotation rotation(p, quad, past + token);
    const int64_t row = int64_t{token} * group - first_row;
    const int begin = static_cast<int>(max(-row, int64_t{0})), end = static_cast<int>(min(int64_t{group}, rows - row));
    const T* q = static_cast<const T*>(p.qkv) + (batch * p.tokens + token) * p.qkv_row_stride + kv_head * group * p.head_dim + quad * 4;
#pragma unroll 4
    for (int head = begin; head < end; ++head) {
      uint2 low = *reinterpret_cast<const uint2*>(q + head * p.head_dim), high = *reinterpret_cast<const uint2*>(q + head * p.head_dim + half);
      if (p.inverse_frequencies != nullptr) rotation.apply(low, high, T{});
      store(static_cast<int>(row) + head, quad * 4, low);
      store(static_cast<int>(row) + head, quad * 4 + half, high);
    }
  }
}

/// What a warp knows of its 16 rows; a thread holds lane/4 and lane/4 + 8.
/// Sums over a row are the thread's own part until reduce().
template <int kDim>
struct RowState {
  float values[kDim / 8][4] = {};
  float largest[2] = {-INFINITY, -INFINITY};
  float total[2] = {};

  __device__ __forceinline__ void reduce() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      total[half] += __shfl_xor_sync(~0u, total[half], 1);
      total[half] += __shfl_xor_sync(~0u, total[half], 2);
    }
  }
};

/// The positions [first, end) that each of a thread's two rows sees.
struct Span {
  int first[2], end[2];
};

/// A warp's 16 rows, in shared memory at `queries`, over kPositions positions
/// from `position` on, at `keys` and `values`. `scale` is 1/sqrt(P) in units of
/// log2, so that largest and total are of base 2.
template <typename T, int kDim, int kPositions>
__device__ __forceinline__ void attend(RowState<kDim>& rows, unsigned queries, unsigned keys, unsigned values, int position, const Span& span,
                                       float scale) {
  const int lane = threadIdx.x % 32;
  float scores[kPositions / 8][4] = {};
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    unsigned a[4];
    load_matrices(a, queries + unit_byte<kDim>(lane % 16, step * 2 + lane / 16));
#pragma unroll
    for (int n = 0; n < kPositions / 16; ++n) {
      unsigned b[4];
      load_matrices(b, keys + unit_byte<kDim>(n * 16 + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
      mma(scores[2 * n], a, b[0], b[1], T{});
      mma(scores[2 * n + 1], a, b[2], b[3], T{});
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = rows.largest[half];
#pragma unroll
    for (int n = 0; n < kPositions / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = position + n * 8 + lane % 4 * 2 + i;
        float& score = scores[n][half * 2 + i];
        score = at >= span.first[half] && at < span.end[half] ? score * scale : -INFINITY;
        largest = fmaxf(largest, score);
      }
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
    const float base = largest == -INFINITY ? 0.f : largest, correction = exp2_fast(rows.largest[half] - base);
    rows.largest[half] = largest;
    rows.total[half] *= correction;
#pragma unroll
    for (int n = 0; n < kPositions / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = scores[n][half * 2 + i];
        score = exp2_fast(score - base);
        rows.total[half] += score;
      }
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d)
#pragma unroll
      for (int i = 0; i < 2; ++i) rows.values[d][half * 2 + i] *= correction;
  }
#pragma unroll
  for (int n = 0; n < kPositions / 16; ++n) {
    const unsigned a[4] = {pack(scores[2 * n][0], scores[2 * n][1], T{}), pack(scores[2 * n][2], scores[2 * n][3], T{}),
                           pack(scores[2 * n + 1][0], scores[2 * n + 1][1], T{}), pack(scores[2 * n + 1][2], scores[2 * n + 1][3], T{})};
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
      unsigned b[4];
      load_matrices_transposed(b, values + unit_byte<kDim>(n * 16 + lane % 16, d * 2 + lane / 16));
      mma(rows.values[2 * d], a, b[0], b[1], T{});
      mma(rows.values[2 * d + 1], a, b[2], b[3], T{});
    }
  }
}

}  // namespace layerweave
