#include <algorithm>

#include "attention_tile.cuh"

namespace layerweave {
namespace {

constexpr int kAppendThreads = 256;
// KV heads of a thread, which share the angles.
constexpr int kAppendHeads = 4;

/// A thread appends 8 elements of a key and of a value of each of its heads, and
/// one of those of a token leaves the angles for the queries. Behind
/// the new tokens values are cleared up to the next multiple of kValuesCleared
/// positions: the prefill kernels read whole tiles, and 0 times what a buffer
/// holds by chance may be NaN.
template <typename T>
__global__ void __launch_bounds__(kAppendThreads) append_kernel(const __grid_constant__ AttentionParams params) {
  const int quads = static_cast<int>(params.head_dim / 8);
  const int64_t slots = params.tokens + kValuesCleared, i = int64_t{blockIdx.x} * kAppendThreads + threadIdx.x;
  const int quad = static_cast<int>(i % quads);
  const int64_t parts = (params.kv_heads + kAppendHeads - 1) / kAppendHeads, first_head = i / quads % parts * kAppendHeads;
  const int64_t row = i / quads / parts, batch = row / slots, token = row % slots, half = params.head_dim / 2;
  if (batch >= params.batch) return;
  const int past = past_of(params, batch);
  const int64_t position = past + token, cache_head = params.capacity * params.head_dim;
  const int64_t at = ((batch * params.kv_heads + first_head) * params.capacity + position) * params.head_dim;
  T* const keys = static_cast<T*>(params.key_out) + at;
  T* const values = static_cast<T*>(params.value_out) + at;
  const int heads = static_cast<int>(min(int64_t{kAppendHeads}, params.kv_heads - first_head));
  if (token >= params.tokens) {
    const int64_t end = (past + params.tokens + kValuesCleared - 1) / kValuesCleared * kValuesCleared;
    if (position < min(end, params.capacity))
      for (int head = 0; head < heads; ++head) *reinterpret_cast<uint4*>(values + head * cache_head + quad * 8) = uint4{};
    return;
  }
  const T* const k = static_cast<const T*>(params.qkv) + (batch * params.tokens + token) * params.qkv_row_stride + (params.heads + first_head) * params.head_dim;
  uint2 low[kAppendHeads], high[kAppendHeads];
  uint4 value[kAppendHeads];
#pragma unroll
  for (int head = 0; head < kAppendHeads; ++head)
    if (head < heads) {
      const T* const from = k + head * params.head_dim;
      low[head] = *reinterpret_cast<const uint2*>(from + quad * 4);
      high[head] = *reinterpret_cast<const uint2*>(from + quad * 4 + half);
      value[head] = *reinterpret_cast<const uint4*>(from + params.kv_heads * params.head_dim + quad * 8);
    }
  const Rotation rotation(params, quad, static_cast<int>(position));
  if (first_head == 0 && params.inverse_frequencies != nullptr)
    rotation.store(static_cast<float4*>(params.workspace) + ((batch * params.tokens + token) * quads + quad) * 2);
#pragma unroll
  for (int head = 0; head < kAppendHeads; ++head)
    if (head < heads) {
      if (params.inverse_frequencies != nullptr) rotation.apply(low[head], high[head], T{});
      *reinterpret_cast<uint2*>(keys + head * cache_head + quad * 4) = low[head];
      *reinterpret_cast<uint2*>(keys + head * cache_head + quad * 4 + half) = high[head];
      *reinterpret_cast<uint4*>(values + head * cache_head + quad * 8) = value[head];
    }
}

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kRows = kRowTile * kWarps;
constexpr int kPositions = 64;

template <int kDim>
constexpr int kStageBytes = 2 * kPositions * kDim * 2;
template <int kDim>
constexpr int kSharedBytes = kRows * kDim * 2 + 2 * kStageBytes<kDim>;

/// FlashAttention-2 (Dao 2023): a block has 64 rows of one KV head, a warp 16 of
/// them, and walks the positions they see with one tile in flight.
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads) prefill_kernel(const __grid_constant__ AttentionParams params, int row_blocks) {
  extern __shared__ __align__(128) unsigned char shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int head_dim = static_cast<int>(params.head_dim), group = static_cast<int>(params.heads / params.kv_heads);
  const int all_rows = group * static_cast<int>(params.tokens);
  // The longest first, so that the last to start are short.
  const int first_row = (row_blocks - 1 - static_cast<int>(blockIdx.x % row_blocks)) * kRows, rows = min(all_rows - first_row, kRows);
  const int64_t head = blockIdx.x / row_blocks, batch = head / params.kv_heads, kv_head = head % params.kv_heads;
  const int past = past_of(params, batch);
  const int64_t cache = head * params.capacity * head_dim;
  const T* const keys = static_cast<const T*>(params.key_out) + cache;
  const T* const values = static_cast<const T*>(params.value_out) + cache;
  const int begin = params.window == 0 ? 0 : static_cast<int>(max(past + first_row / group - params.window + 1, int64_t{0}));
  const int end = past + (first_row + rows - 1) / group + 1;

  const unsigned queries = shared_address(shared), stages = queries + kRows * kDim * 2;
  const auto load = [&](int tile) {
    const unsigned stage = stages + tile % 2 * kStageBytes<kDim>;
    const int position = begin + tile * kPositions;
#pragma unroll 4
    for (int i = threadIdx.x; i < kPositions * kDim / 8; i += kThreads) {
      const int row = i / (kDim / 8), unit = i % (kDim / 8);
      const bool live = position + row < end && unit * 8 < head_dim;
      const int64_t from = live ? int64_t{position + row} * head_dim + unit * 8 : 0;
      copy_async(stage + unit_byte<kDim>(row, unit), keys + from, live);
      copy_async(stage + kPositions * kDim * 2 + unit_byte<kDim>(row, unit), values + from, live);
    }
    copy_commit();
  };
  load(0);
  for (int i = threadIdx.x; i < kRows * kDim / 8; i += kThreads) *reinterpret_cast<uint4*>(shared + i * 16) = uint4{};
  __syncthreads();
  load_queries<T>(params, batch, kv_head, first_row, rows, past, threadIdx.x, kThreads, [&](int row, int column, uint2 four) {
    *reinterpret_cast<uint2*>(shared + unit_byte<kDim>(row, column / 8) + column % 8 * 2) = four;
  });

  RowState<kDim> state;
  Span span;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp * kRowTile + lane / 4 + half * 8, position = past + (first_row + row) / group;
    span.first[half] = params.window == 0 ? 0 : static_cast<int>(max(position - params.window + 1, int64_t{0}));
    span.end[half] = row < rows ? position + 1 : 0;
  }
  const int tiles = (end - begin + kPositions - 1) / kPositions;
  const float scale = kLog2E * rsqrtf(static_cast<float>(head_dim));
  for (int tile = 0; tile < tiles; ++tile) {
    copy_wait<0>();
    __syncthreads();
    if (tile + 1 < tiles) load(tile + 1);
    const unsigned stage = stages + tile % 2 * kStageBytes<kDim>;
    attend<T, kDim, kPositions>(state, queries + warp * kRowTile * kDim * 2, stage, stage + kPositions * kDim * 2, begin + tile * kPositions, span, scale);
  }
  state.reduce();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp * kRowTile + lane / 4 + half * 8;
    if (row >= rows) continue;
    const int64_t token = (first_row + row) / group, query_head = kv_head * group + (first_row + row) % group;
    T* const y = static_cast<T*>(params.y) + ((batch * params.tokens + token) * params.heads + query_head) * head_dim;
    const float whole = 1.f / state.total[half];
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d)
      if (d * 8 < head_dim)
        *reinterpret_cast<unsigned*>(y + d * 8 + lane % 4 * 2) = pack(state.values[d][half * 2] * whole, state.values[d][half * 2 + 1] * whole, T{});
  }
}

template <typename T, int kDim>
cudaError_t launch(const AttentionParams& params, cudaStream_t stream) {
  const cudaError_t status = cudaFuncSetAttribute(prefill_kernel<T, kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes<kDim>);
  if (status != cudaSuccess) return status;
  const int64_t row_blocks = (rows_per_kv_head(params) + kRows - 1) / kRows;
  prefill_kernel<T, kDim><<<static_cast<unsigned>(row_blocks * params.batch * params.kv_heads), kThreads, kSharedBytes<kDim>, stream>>>(
      params, static_cast<int>(row_blocks));
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch(const AttentionParams& params, cudaStream_t stream) {
  if (params.head_dim <= 64) return launch<T, 64>(params, stream);
  if (params.head_dim <= 128) return launch<T, 128>(params, stream);
  return launch<T, 256>(params, stream);
}

}  // namespace

cudaError_t attention_append(const AttentionParams& p, DType dtype, cudaStream_t stream) {
  const int64_t parts = (p.kv_heads + kAppendHeads - 1) / kAppendHeads, threads = p.batch * (p.tokens + kValuesCleared) * parts * p.head_dim / 8;
  const unsigned blocks = static_cast<unsigned>((threads + kAppendThreads - 1) / kAppendThreads);
  if (dtype == DType::kBFloat16)
    append_kernel<__nv_bfloat16><<<blocks, kAppendThreads, 0, stream>>>(p);
  else
    append_kernel<__half><<<blocks, kAppendThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

cudaError_t attention_prefill(const AttentionParams& params, DType dtype, cudaStream_t stream) {
  return dtype == DType::kBFloat16 ? launch<__nv_bfloat16>(params, stream) : launch<__half>(params, stream);
}

}  // namespace layerweave
