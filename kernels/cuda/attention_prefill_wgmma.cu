#include <cuda.h>

#include <algorithm>

#include "attention_tile.cuh"
#include "hopper.cuh"

namespace layerweave {
namespace {

// A warpgroup fetches, two multiply 64 rows each.
constexpr int kThreads = 384;
constexpr int kRows = 128;
constexpr int kPositions = 128;
static_assert(kPositions == kValuesCleared);
constexpr int kStages = 2;
// A tile is kDim / 64 boxes of 128 rows of 64 elements, swizzled.
constexpr int kBoxBytes = 128 * 64 * 2;
template <int kDim>
constexpr int kTileBytes = kDim / 64 * kBoxBytes;
template <int kDim>
constexpr int kSharedBytes = (1 + 2 * kStages) * kTileBytes<kDim> + 1024;

struct Maps {
  CUtensorMap keys, values;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/// Byte of an element of a tile, the first of at most 8.
__device__ __forceinline__ int tile_byte(int row, int column) {
  return column / 64 * kBoxBytes + row * 128 + (column % 64 / 8 ^ row % 8) * 16 + column % 8 * 2;
}
#endif

/// FlashAttention-3 (Shah et al. 2024): the two multiplying warpgroups take turns
/// on the tensor cores, one's softmax running beside the other's products, and
/// within each the scores of the next tile are computed beside the softmax of
/// this one. Blocks of one KV head walk the same positions at about the same time.
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_kernel(const __grid_constant__ AttentionParams params, const __grid_constant__ Maps maps, int row_blocks) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using namespace hopper;
  extern __shared__ unsigned char raw_shared[];
  __shared__ uint64_t full_keys[kStages], full_values[kStages], empty_keys[kStages], empty_values[kStages];
  unsigned char* const queries = raw_shared + (1024 - address(raw_shared) % 1024) % 1024;
  unsigned char* const keys = queries + kTileBytes<kDim>;
  unsigned char* const values = keys + kStages * kTileBytes<kDim>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int group = static_cast<int>(params.heads / params.kv_heads), all_rows = group * static_cast<int>(params.tokens);
  // The longest first, so that the last to start are short.
  const int first_row = (row_blocks - 1 - static_cast<int>(blockIdx.x % row_blocks)) * kRows, rows = min(all_rows - first_row, kRows);
  const int head = static_cast<int>(blockIdx.x / row_blocks);
  const int64_t batch = head / params.kv_heads, kv_head = head % params.kv_heads;
  const int past = past_of(params, batch);
  const int least = past + first_row / group, most = past + (first_row + rows - 1) / group;  // positions of the first and the last row
  const int window = params.window == 0 ? 0x7fffffff : static_cast<int>(min(params.window, int64_t{0x7fffffff}));
  const int begin_tile = max(least - window + 1, 0) / kPositions, tiles = most / kPositions + 1 - begin_tile;
  // Tiles go from the last, where rows differ in what they see, to the first.
  const auto position_of = [&](int tile) { return (begin_tile + tiles - 1 - tile) * kPositions; };

  const auto fetch = [&](int tile, const CUtensorMap& map, unsigned char* to, uint64_t* full) {
    const int stage = tile % kStages;
    barrier_expect(&full[stage], kTileBytes<kDim>);
#pragma unroll
    for (int box = 0; box < kDim / 64; ++box)
      copy_box(to + stage * kTileBytes<kDim> + box * kBoxBytes, &map, box * 64, position_of(tile), head, &full[stage]);
  };
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(&full_keys[s], 1);
      barrier_init(&full_values[s], 1);
      barrier_init(&empty_keys[s], 8);
      barrier_init(&empty_values[s], 8);
    }
    fence_async();
    for (int tile = 0; tile < min(kStages, tiles); ++tile) {
      fetch(tile, maps.keys, keys, full_keys);
      fetch(tile, maps.values, values, full_values);
    }
  }
  constexpr int kQuads = kDim / 8;
#pragma unroll
  for (int i = threadIdx.x; i < kRows * kQuads; i += kThreads) {
    const int row = i / kQuads, quad = i % kQuads, token = (first_row + row) / group, in_group = (first_row + row) % group;
    if (row >= rows) continue;
    const int64_t at = batch * params.tokens + token;
    const T* const q = static_cast<const T*>(params.qkv) + at * params.qkv_row_stride + (kv_head * group + in_group) * kDim + quad * 4;
    uint2 low = *reinterpret_cast<const uint2*>(q), high = *reinterpret_cast<const uint2*>(q + kDim / 2);
    if (params.inverse_frequencies != nullptr) Rotation(static_cast<const float4*>(params.workspace) + (at * kQuads + quad) * 2).apply(low, high, T{});
    *reinterpret_cast<uint2*>(queries + tile_byte(row, quad * 4)) = low;
    *reinterpret_cast<uint2*>(queries + tile_byte(row, quad * 4 + kDim / 2)) = high;
  }
  fence_async();
  __syncthreads();

  if (warp < 4) {
    leave_registers<24>();
    if (threadIdx.x == 0)
      for (int tile = kStages; tile < tiles; ++tile) {
        barrier_wait(&empty_keys[tile % kStages], (tile / kStages - 1) % 2);
        fetch(tile, maps.keys, keys, full_keys);
        barrier_wait(&empty_values[tile % kStages], (tile / kStages - 1) % 2);
        fetch(tile, maps.values, values, full_values);
      }
  } else {
    take_registers<240>();
    const int team = warp / 4 - 1, warp_row = team * 64 + warp % 4 * 16;
    Span span;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row + lane / 4 + half * 8, position = past + (first_row + row) / group;
      span.first[half] = max(position - window + 1, 0);
      span.end[half] = row < rows ? position + 1 : 0;
    }
    const float scale = kLog2E * rsqrtf(static_cast<float>(kDim));
    const uint64_t query_rows = rows_descriptor(queries + team * 64 * 128), key_rows = rows_descriptor(keys);
    const uint64_t value_rows = transposed_descriptor(values, kBoxBytes);

    float sums[kDim / 2], scores[kPositions / 2];
    unsigned weights[kPositions / 16][4];
    float largest[2] = {-INFINITY, -INFINITY}, total[2] = {};
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) sums[i] = 0;

    const auto multiply_keys = [&](int tile) {
      barrier_wait(&full_keys[tile % kStages], tile / kStages % 2);
      products_begin();
#pragma unroll
      for (int step = 0; step < kDim / 16; ++step) {
        const int at = (step / 4 * kBoxBytes + step % 4 * 32) >> 4;
        product(scores, query_rows + at, key_rows + at + (tile % kStages * kTileBytes<kDim> >> 4), step == 0, T{});
      }
      products_commit();
    };
    const auto multiply_values = [&](int tile) {
      barrier_wait(&full_values[tile % kStages], tile / kStages % 2);
      products_begin();
#pragma unroll
      for (int step = 0; step < kPositions / 16; ++step)
        add_product(sums, weights[step], value_rows + ((tile % kStages * kTileBytes<kDim> + step * 16 * 128) >> 4), T{});
      products_commit();
    };
    const auto release = [&](uint64_t* empty, int tile) {
      if (lane == 0) barrier_arrive(&empty[tile % kStages]);
    };
    float correction[2];
    const auto soften = [&](int tile) {
      const int position = position_of(tile);
      if (position + kPositions - 1 > least || position <= most - window) {
#pragma unroll
        for (int i = 0; i < kPositions / 2; ++i) {
          const int at = position + i / 4 * 8 + lane % 4 * 2 + i % 2, half = i / 2 % 2;
          if (at < span.first[half] || at >= span.end[half]) scores[i] = -INFINITY;
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float most_here = largest[half];
#pragma unroll
        for (int i = 0; i < kPositions / 2; i += 4) most_here = fmaxf(most_here, fmaxf(scores[i + half * 2], scores[i + half * 2 + 1]));
        most_here = fmaxf(most_here, __shfl_xor_sync(~0u, most_here, 1));
        most_here = fmaxf(most_here, __shfl_xor_sync(~0u, most_here, 2));
        const float base = most_here == -INFINITY ? 0.f : most_here * scale;
        correction[half] = exp2_fast(fmaf(largest[half], scale, -base));
        largest[half] = most_here;
        float sum = 0;
#pragma unroll
        for (int i = 0; i < kPositions / 2; i += 4)
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            float& score = scores[i + half * 2 + k];
            score = exp2_fast(fmaf(score, scale, -base));
            sum += score;
          }
        total[half] = fmaf(total[half], correction[half], sum);
      }
    };
    const auto narrow = [&] {
#pragma unroll
      for (int step = 0; step < kPositions / 16; ++step)
#pragma unroll
        for (int k = 0; k < 4; ++k) weights[step][k] = pack(scores[step * 8 + 2 * k], scores[step * 8 + 2 * k + 1], T{});
    };

    if (team == 1 && tiles > 1) named_arrive(1, 256);
    multiply_keys(0);
    products_wait<0>();
    hold(scores);
    release(empty_keys, 0);
    soften(0);
    narrow();
    for (int tile = 1; tile < tiles; ++tile) {
      named_sync(1 + team, 256);
      multiply_keys(tile);
      multiply_values(tile - 1);
      if (team == 0 || tile + 1 < tiles) named_arrive(2 - team, 256);
      products_wait<1>();
      hold(scores);
      release(empty_keys, tile);
      soften(tile);
      products_wait<0>();
      hold(sums);
      hold(weights);
      release(empty_values, tile - 1);
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) sums[i] *= correction[i / 2 % 2];
      narrow();
    }
    multiply_values(tiles - 1);
    products_wait<0>();
    hold(sums);

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      total[half] += __shfl_xor_sync(~0u, total[half], 1);
      total[half] += __shfl_xor_sync(~0u, total[half], 2);
      total[half] = 1.f / total[half];
    }
    // Through the queries' memory, which the warpgroup is done with, to whole rows.
    named_sync(3 + team, 128);
#pragma unroll
    for (int i = 0; i < kDim / 2; i += 2)
      *reinterpret_cast<unsigned*>(queries + tile_byte(warp_row + lane / 4 + i / 2 % 2 * 8, i / 4 * 8) + lane % 4 * 4) =
          pack(sums[i] * total[i / 2 % 2], sums[i + 1] * total[i / 2 % 2], T{});
    __syncwarp();
    T* const y = static_cast<T*>(params.y) + batch * params.tokens * params.heads * kDim;
#pragma unroll
    for (int i = lane; i < 16 * kDim / 8; i += 32) {
      const int row = warp_row + i / (kDim / 8), column = i % (kDim / 8) * 8;
      if (row >= rows) continue;
      const int64_t token = (first_row + row) / group, query_head = kv_head * group + (first_row + row) % group;
      *reinterpret_cast<uint4*>(y + (token * params.heads + query_head) * kDim + column) = *reinterpret_cast<const uint4*>(queries + tile_byte(row, column));
    }
  }
#else
  // attention() sends other cards elsewhere; this is a 9.0 card without sm_90a code in the build.
  __trap();
#endif
}

struct EntryPoint {
  void* function = nullptr;
  cudaError_t status = cudaSuccess;
};

EntryPoint find_entry_point() {
  EntryPoint found;
  cudaDriverEntryPointQueryResult result;
  found.status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found.function, 12000, cudaEnableDefault, &result);
  if (found.status == cudaSuccess && result != cudaDriverEntryPointSuccess) found.status = cudaErrorNotSupported;
  return found;
}

/// Boxes of 64 elements of 128 positions of a cache tensor; those beyond its end read as 0.
cudaError_t make_map(CUtensorMap& map, const AttentionParams& p, void* tensor, DType dtype) {
  // The driver's function, without linking against the driver.
  static const EntryPoint entry = find_entry_point();
  if (entry.status != cudaSuccess) return entry.status;
  const cuuint64_t extents[3] = {static_cast<cuuint64_t>(p.head_dim), static_cast<cuuint64_t>(p.capacity), static_cast<cuuint64_t>(p.batch * p.kv_heads)};
  const cuuint64_t strides[2] = {extents[0] * 2, extents[0] * extents[1] * 2};
  const cuuint32_t box[3] = {64, kPositions, 1}, steps[3] = {1, 1, 1};
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry.function)(
      &map, dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3, tensor, extents, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <typename T, int kDim>
cudaError_t launch(const AttentionParams& params, const Maps& maps, cudaStream_t stream) {
  const cudaError_t status = cudaFuncSetAttribute(prefill_kernel<T, kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes<kDim>);
  if (status != cudaSuccess) return status;
  const int64_t row_blocks = (rows_per_kv_head(params) + kRows - 1) / kRows;
  prefill_kernel<T, kDim><<<static_cast<unsigned>(row_blocks * params.batch * params.kv_heads), kThreads, kSharedBytes<kDim>, stream>>>(
      params, maps, static_cast<int>(row_blocks));
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch(const AttentionParams& params, const Maps& maps, cudaStream_t stream) {
  return params.head_dim == 64 ? launch<T, 64>(params, maps, stream) : launch<T, 128>(params, maps, stream);
}

}  // namespace

cudaError_t attention_prefill_wgmma(const AttentionParams& params, DType dtype, cudaStream_t stream) {
  Maps maps;
  cudaError_t status = make_map(maps.keys, params, params.key_out, dtype);
  if (status == cudaSuccess) status = make_map(maps.values, params, params.value_out, dtype);
  if (status != cudaSuccess) return status;
  return dtype == DType::kBFloat16 ? launch<__nv_bfloat16>(params, maps, stream) : launch<__half>(params, maps, stream);
}

}  // namespace layerweave
