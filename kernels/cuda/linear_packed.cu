#include "linear_packed.cuh"

#include "packed_gemm.cuh"

namespace layerweave {
namespace {

// What the streaming kernel takes at a time.
constexpr int64_t kSliceTokens = 16;
// Blocks of tiles below which they are made narrow, and then split along the
// columns; a constant, so that sums have the same order on every card.
constexpr int64_t kWantedTileBlocks = 128;
// Chunks that a part of the columns has at least.
constexpr int64_t kLeastPartChunks = 16;

template <typename T, PackedType kType>
__device__ __forceinline__ float finished(const LinearPackedParams& params, int64_t row, float sum) {
  if constexpr (kType == PackedType::kInt8) sum *= params.scale[row];
  if (params.bias != nullptr) sum += to_float(static_cast<const T*>(params.bias)[row]);
  return sum;
}

template <typename T, PackedType kType>
__global__ void __launch_bounds__(kPanelThreads, kPanelBlocksPerProcessor)
    stream_kernel(const __grid_constant__ LinearPackedParams params, ColumnSplit split) {
  let_next_kernel_start();
  __shared__ PanelShared shared;
  const int64_t panel = blockIdx.x, part = blockIdx.y;
  const int first = static_cast<int>(part) * split.slice, end = min(first + split.slice, split.chunks);
  const T* x = static_cast<const T*>(params.x);
  float* partial = static_cast<float*>(params.workspace);
  const uint4* weights = static_cast<const uint4*>(params.weight) + panel * split.chunks * kLoadsPerChunk<kType> * 32;
  const int tokens = static_cast<int>(params.tokens);
  block_multiply<T, kType>(weights, first, end, split.ahead, params.columns, tokens, [&](int n) { return x + n * params.x_row_stride; }, shared,
                           [] { wait_for_kernels_before(); });
  const auto store = [&](int64_t row, int n, float sum) {
    static_cast<T*>(params.y)[n * params.y_row_stride + row] = from_float<T>(finished<T, kType>(params, row, sum));
  };
  for (int i = threadIdx.x; i < tokens * kPanelRows; i += kPanelThreads) {
    const int n = i / kPanelRows, r = i % kPanelRows;
    const int64_t row = panel * kPanelRows + r;
    if (row >= params.rows) continue;
    const float sum = shared.total(r / 16, r % 16, n);
    if (split.count == 1)
      store(row, n, sum);
    else
      partial[(part * tokens + n) * params.rows + row] = sum;
  }
  if (split.count == 1 || !last_to_arrive(params.arrivals + panel, split.count)) return;
  for (int i = threadIdx.x; i < tokens * kPanelRows; i += kPanelThreads) {
    const int n = i / kPanelRows;
    const int64_t row = panel * kPanelRows + i % kPanelRows;
    if (row >= params.rows) continue;
    float sum = 0;
    for (int p = 0; p < split.count; ++p) sum += __ldcg(&partial[(int64_t{p} * tokens + n) * params.rows + row]);
    store(row, n, sum);
  }
}

/// A thread moves 8 columns of a token to where the tiles read them.
template <typename T>
__global__ void __launch_bounds__(256) gather_kernel(const __grid_constant__ LinearPackedParams params, int64_t rows) {
  const int64_t units = grouped_columns(params.columns) / 8, i = int64_t{blockIdx.x} * 256 + threadIdx.x;
  const int64_t token = i / units, column = i % units * 8;
  if (token >= params.tokens) return;
  const T* x = static_cast<const T*>(params.x) + token * params.x_row_stride;
  put_grouped(params.workspace, rows, token, column, column < params.columns ? *reinterpret_cast<const uint4*>(x + column) : uint4{});
}

/// How a product is shared among blocks: tiles of `width` tokens times blocks of
/// 256 rows, times `parts` of `slice` chunks of columns.
struct TilePlan {
  int width, tiles, panels, row_blocks, slice, parts;
  int64_t rows;  // grouped
  int64_t grouped_bytes, partial_bytes;
};

TilePlan tile_plan(const LinearPackedParams& p) {
  TilePlan plan{};
  plan.panels = static_cast<int>(packed_panels(p.rows));
  plan.row_blocks = (plan.panels + kBlockPanels - 1) / kBlockPanels;
  const auto tiles_of = [&](int width) { return (p.tokens + width - 1) / width; };
  // Narrow tiles use the tensor cores as well, but read the weights twice as often.
  plan.width = tiles_of(kTileTokensWide) * plan.row_blocks < kWantedTileBlocks ? kTileTokensNarrow : kTileTokensWide;
  plan.tiles = static_cast<int>(tiles_of(plan.width));
  const int64_t blocks = int64_t{plan.tiles} * plan.row_blocks, chunks = grouped_columns(p.columns) / kChunkColumns;
  const int64_t wanted = std::max<int64_t>(1, std::min(kWantedTileBlocks / blocks, chunks / kLeastPartChunks));
  plan.slice = static_cast<int>(((chunks + wanted - 1) / wanted + kRing - 1) / kRing * kRing);
  plan.parts = static_cast<int>((chunks + plan.slice - 1) / plan.slice);
  plan.rows = grouped_rows(p.tokens, 1);
  plan.grouped_bytes = plan.rows * grouped_columns(p.columns) * 2;
  plan.partial_bytes = plan.parts == 1 ? 0 : plan.parts * blocks * kBlockRows * plan.width * static_cast<int64_t>(sizeof(float));
  return plan;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/// Puts a block's sums beside those of the other parts; true in the last of them
/// to come here, with the total of all in `sums`.
template <int kTokens>
__device__ __forceinline__ bool add_parts(float (&sums)[2][kTokens / 2], float4* partial, int parts, uint32_t* counter) {
  constexpr int kVectors = kTokens / 4;
  const auto at = [&](int part, int i) { return partial + ((int64_t{part} * gridDim.x + blockIdx.x) * kVectors + i) * kBlockThreads + threadIdx.x; };
  float* const flat = &sums[0][0];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) *at(static_cast<int>(blockIdx.y), i) = make_float4(flat[4 * i], flat[4 * i + 1], flat[4 * i + 2], flat[4 * i + 3]);
  if (!last_to_arrive(counter, static_cast<unsigned>(parts))) return false;
#pragma unroll
  for (int i = 0; i < kTokens; ++i) flat[i] = 0;
  for (int part = 0; part < parts; ++part)
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const float4 v = __ldcg(at(part, i));
      flat[4 * i] += v.x, flat[4 * i + 1] += v.y, flat[4 * i + 2] += v.z, flat[4 * i + 3] += v.w;
    }
  return true;
}
#endif

/// Block (tile and row block, part).
template <typename T, PackedType kType>
__global__ void __launch_bounds__(kBlockThreads, 1) tile_kernel(const __grid_constant__ LinearPackedParams params, TilePlan plan) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ unsigned char raw_shared[];
  __shared__ uint64_t full[kStages], empty[kStages];
  const TilePlace place = tile_place(blockIdx.x, plan.tiles, plan.row_blocks);
  const int64_t first_token = int64_t{place.tile} * plan.width;
  const int live = static_cast<int>(min(params.tokens - first_token, int64_t{plan.width}));
  const Stages stages = make_stages(raw_shared, full, empty);
  // Warps past the last panel repeat it; their rows are not stored.
  const int panel = min(place.row_block * kBlockPanels + static_cast<int>(threadIdx.x) / 32, plan.panels - 1);
  const int chunks = static_cast<int>((params.columns + kChunkColumns - 1) / kChunkColumns), first_chunk = static_cast<int>(blockIdx.y) * plan.slice;
  const int padded = min(plan.slice, static_cast<int>(grouped_columns(params.columns) / kChunkColumns) - first_chunk);
  const uint4* weights = static_cast<const uint4*>(params.weight) + (int64_t{panel} * chunks + first_chunk) * kLoadsPerChunk<kType> * 32;
  const int64_t stage_stride = plan.rows * kStageColumns * 2;
  const char* tokens = static_cast<const char*>(params.workspace) + first_chunk / 2 * stage_stride + first_token * kStageColumns * 2;
  T* const tile = reinterpret_cast<T*>(stages.data);
  const auto run = [&](auto width) {
    constexpr int kTokens = decltype(width)::value;
    float sums[2][kTokens / 2], scales[2][2], bias[2][2];
    multiply_tile<T, kType, kTokens>(weights, chunks - first_chunk, padded, tokens, stage_stride,
                                     static_cast<unsigned>((live + 7) / 8 * 8 * kStageColumns * 2), stages, sums);
    if (plan.parts > 1) {
      float4* const partial = reinterpret_cast<float4*>(static_cast<char*>(params.workspace) + plan.grouped_bytes);
      if (!add_parts<kTokens>(sums, partial, plan.parts, params.arrivals + blockIdx.x)) return false;
    }
    __syncthreads();  // the stages' memory is free from here
    load_scales<kType>(params.scale, panel, scales);
    load_bias(static_cast<const T*>(params.bias), panel, params.rows, bias);
    put_output<T, kTokens>(sums, scales, bias, tile);
    return true;
  };
  if (!(plan.width == kTileTokensNarrow ? run(std::integral_constant<int, kTileTokensNarrow>{}) : run(std::integral_constant<int, kTileTokensWide>{})))
    return;
  __syncthreads();
  constexpr int kUnits = kBlockRows / 8;
  T* const y = static_cast<T*>(params.y) + first_token * params.y_row_stride;
  const bool vector = reinterpret_cast<uintptr_t>(params.y) % 16 == 0 && params.y_row_stride % 8 == 0;
  for (int i = threadIdx.x; i < live * kUnits; i += kBlockThreads) {
    const int token = i / kUnits, unit = i % kUnits;
    const int64_t row = int64_t{place.row_block} * kBlockRows + unit * 8;
    Vec8<T> out;
    out.unit[0] = *reinterpret_cast<const uint4*>(tile + token * kOutputStride + unit * 8);
    T* const to = y + token * params.y_row_stride + row;
    if (vector && row + 8 <= params.rows)
      out.store(to);
    else if (row < params.rows)
      out.store_partial(to, params.rows - row);
  }
#else
  // linear_packed takes another way on other cards; this is a 9.0 card without sm_90a code in the build.
  __trap();
#endif
}

template <typename T, PackedType kType>
cudaError_t launch_stream(const LinearPackedParams& params, cudaStream_t stream) {
  const int64_t panels = packed_panels(params.rows);
  const ColumnSplit split = split_columns(panels, params.columns, kType);
  const dim3 grid(static_cast<unsigned>(panels), static_cast<unsigned>(split.count));
  for (int64_t first = 0; first < params.tokens; first += kSliceTokens) {
    LinearPackedParams slice = params;
    slice.tokens = std::min(kSliceTokens, params.tokens - first);
    slice.x = static_cast<const T*>(params.x) + first * params.x_row_stride;
    slice.y = static_cast<T*>(params.y) + first * params.y_row_stride;
    const cudaError_t status = launch_early(stream_kernel<T, kType>, grid, kPanelThreads, 0, stream, slice, split);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

template <typename T, PackedType kType>
cudaError_t launch_tiles(const LinearPackedParams& params, cudaStream_t stream) {
  const cudaError_t status = cudaFuncSetAttribute(tile_kernel<T, kType>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (status != cudaSuccess) return status;
  const TilePlan plan = tile_plan(params);
  const int64_t units = params.tokens * grouped_columns(params.columns) / 8;
  gather_kernel<T><<<static_cast<unsigned>((units + 255) / 256), 256, 0, stream>>>(params, plan.rows);
  const dim3 grid(static_cast<unsigned>(plan.tiles * plan.row_blocks), static_cast<unsigned>(plan.parts));
  tile_kernel<T, kType><<<grid, kBlockThreads, kSharedBytes, stream>>>(params, plan);
  return cudaGetLastError();
}

bool params_allowed(const LinearPackedParams& p, DType dtype) {
  if (p.tokens < 1 || p.tokens > int64_t{1} << 26 || p.rows < 1 || p.rows > 1 << 24 || p.columns < 8 || p.columns % 8 != 0 ||
      p.columns > 1 << 24 || p.x_row_stride < p.columns || p.x_row_stride % 8 != 0 || p.y_row_stride < p.rows || dtype == DType::kFloat32)
    return false;
  return p.weight != nullptr && (p.weights != PackedType::kInt8 || p.scale != nullptr) && p.x != nullptr && p.y != nullptr && p.arrivals != nullptr &&
         (p.workspace != nullptr || linear_packed_workspace(p) == 0) && aligned16(p.weight) && aligned16(p.x) && aligned16(p.workspace);
}

/// Calls launch with a value of the activations' type and one that names the weights'.
template <typename Launch>
cudaError_t for_types(const LinearPackedParams& params, DType dtype, Launch launch) {
  const auto with = [&](auto element) {
    return params.weights == PackedType::kInt8 ? launch(element, std::integral_constant<PackedType, PackedType::kInt8>{})
                                               : launch(element, std::integral_constant<PackedType, PackedType::k16Bit>{});
  };
  return dtype == DType::kBFloat16 ? with(__nv_bfloat16{}) : with(__half{});
}

}  // namespace

int64_t linear_packed_workspace(const LinearPackedParams& params) {
  const ColumnSplit split = split_columns(packed_panels(params.rows), params.columns, params.weights);
  const int64_t partial =
      split.count == 1 ? 0 : int64_t{split.count} * std::min(params.tokens, kSliceTokens) * params.rows * static_cast<int64_t>(sizeof(float));
  if (params.tokens <= kSliceTokens) return partial;
  const TilePlan plan = tile_plan(params);
  return std::max(partial, plan.grouped_bytes + plan.partial_bytes);
}

int64_t linear_packed_arrivals(const LinearPackedParams& params) { return std::max(packed_panels(params.rows), kWantedTileBlocks); }

cudaError_t linear_packed_slices(const LinearPackedParams& params, DType dtype, cudaStream_t stream) {
  if (!params_allowed(params, dtype)) return cudaErrorInvalidValue;
  return for_types(params, dtype, [&](auto element, auto type) { return launch_stream<decltype(element), decltype(type)::value>(params, stream); });
}

cudaError_t linear_packed(const LinearPackedParams& params, DType dtype, cudaStream_t stream) {
  if (!params_allowed(params, dtype)) return cudaErrorInvalidValue;
  bool tiles = false;
  const cudaError_t status = has_tile_products(tiles);
  if (status != cudaSuccess) return status;
  if (!tiles || params.tokens <= kSliceTokens) return linear_packed_slices(params, dtype, stream);
  return for_types(params, dtype, [&](auto element, auto type) { return launch_tiles<decltype(element), decltype(type)::value>(params, stream); });
}

}  // namespace layerweave
