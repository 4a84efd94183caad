#include "moe_routing.cuh"
#include "packed_gemm.cuh"

namespace layerweave {
namespace {

struct Workspace {
  int32_t* row_begin;   // [E+1] first grouped row of an expert
  int32_t* tile_begin;  // [E+1] token tiles before an expert
  void* grouped;        // x by grouped row; later the experts' outputs by choice
  void* hidden;
};

constexpr int64_t kTableBytes = 1024;
static_assert(2 * (kMoeMaxExperts + 1) * sizeof(int32_t) <= kTableBytes);

Workspace make_workspace(const MoeParams& p) {
  char* base = static_cast<char*>(p.workspace);
  int32_t* table = static_cast<int32_t*>(p.workspace);
  return {table, table + kMoeMaxExperts + 1, base + kTableBytes,
          base + kTableBytes + grouped_rows(p.tokens * p.top_k, p.experts) * grouped_columns(p.d_model) * 2};
}

__global__ void table_kernel(const __grid_constant__ MoeParams params, Workspace workspace) {
  const int experts = static_cast<int>(params.experts);
  int row = 0, tile = 0, begin = 0;
  for (int e = 0; e < experts; ++e) {
    workspace.row_begin[e] = row;
    workspace.tile_begin[e] = tile;
    const int end = expert_begin(params.routing, e + 1, params.tokens), count = end - begin;
    row += (count + 7) / 8 * 8;
    tile += (count + kTileTokensWide - 1) / kTileTokensWide;
    begin = end;
  }
  workspace.row_begin[experts] = row;
  workspace.tile_begin[experts] = tile;
}

/// A thread moves 8 columns of one choice's token.
template <typename T>
__global__ void __launch_bounds__(256) gather_kernel(const __grid_constant__ MoeParams params, Workspace workspace, int64_t rows) {
  const int64_t units = grouped_columns(params.d_model) / 8, i = int64_t{blockIdx.x} * 256 + threadIdx.x;
  const int64_t choice = i / units, column = i % units * 8;
  if (choice >= params.tokens * params.top_k) return;
  const int expert = expert_of(params.routing, choice);
  const int64_t row = workspace.row_begin[expert] + position_of(params.routing, choice) - expert_begin(params.routing, expert, params.tokens);
  const T* x = static_cast<const T*>(params.x) + choice / params.top_k * params.d_model;
  put_grouped(workspace.grouped, rows, row, column, column < params.d_model ? *reinterpret_cast<const uint4*>(x + column) : uint4{});
}

/// y from the experts' outputs by choice; a thread has 8 columns of a token.
template <typename T>
__global__ void __launch_bounds__(256) combine_kernel(const __grid_constant__ MoeParams params, const T* outputs) {
  const int64_t units = params.d_model / 8, i = int64_t{blockIdx.x} * 256 + threadIdx.x;
  const int64_t token = i / units, at = i * 8, column = i % units * 8;
  if (token >= params.tokens) return;
  float sum[8] = {};
  Vec8<T> packed;
  if (params.residual != nullptr) {
    packed.unit[0] = *reinterpret_cast<const uint4*>(static_cast<const T*>(params.residual) + at);
    packed.unpack(sum);
  }
  for (int64_t choice = token * params.top_k; choice < (token + 1) * params.top_k; ++choice) {
    float value[8];
    packed.unit[0] = *reinterpret_cast<const uint4*>(outputs + choice * params.d_model + column);
    packed.unpack(value);
    const float weight = weight_of(params.routing, choice);
#pragma unroll
    for (int k = 0; k < 8; ++k) sum[k] = fmaf(weight, value[k], sum[k]);
  }
  packed.pack(sum);
  packed.store(static_cast<T*>(params.y) + at);
}

/// Block: a tile of an expert's tokens times 256 packed rows. kDown: the down
/// product, else the gated pair. Blocks that are neighbours share what they can.
template <typename T, PackedType kType, bool kDown>
__global__ void __launch_bounds__(kBlockThreads, 1)
    expert_kernel(const __grid_constant__ MoeParams params, Workspace workspace, int64_t rows, int panels, int row_blocks) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ unsigned char raw_shared[];
  __shared__ uint64_t full[kStages], empty[kStages];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, experts = static_cast<int>(params.experts);
  const int block = blockIdx.x;
  int expert = 0;
#pragma unroll
  for (int group = 0; group < kMoeMaxExperts / 32; ++group) {
    const int e = group * 32 + lane;
    expert += __popc(__ballot_sync(~0u, e < experts && workspace.tile_begin[e + 1] * row_blocks <= block));
  }
  if (expert == experts) return;
  const int first_tile = workspace.tile_begin[expert];
  const TilePlace place = tile_place(block - first_tile * row_blocks, workspace.tile_begin[expert + 1] - first_tile, row_blocks);
  const int first_token = place.tile * kTileTokensWide, begin = expert_begin(params.routing, expert, params.tokens);
  const int live = min(expert_begin(params.routing, expert + 1, params.tokens) - begin - first_token, kTileTokensWide);
  const int grouped = (live + 7) / 8 * 8;
  const int64_t first_row = workspace.row_begin[expert] + first_token;
  const Stages stages = make_stages(raw_shared, full, empty);

  const int64_t columns = kDown ? params.d_ff : params.d_model;
  const int local_panel = place.row_block * kBlockPanels + warp;
  // Warps past the last panel repeat it; what they make is left out below.
  const int64_t panel = int64_t{expert} * panels + min(local_panel, panels - 1);
  const int chunks = static_cast<int>((columns + kChunkColumns - 1) / kChunkColumns);
  const uint4* weights = static_cast<const uint4*>(kDown ? params.down : params.gate_up) + panel * chunks * kLoadsPerChunk<kType> * 32;
  const char* tokens = static_cast<const char*>(kDown ? workspace.hidden : workspace.grouped) + first_row * kStageColumns * 2;

  const auto run = [&](auto width) {
    constexpr int kTokens = decltype(width)::value;
    float sums[2][kTokens / 2], scales[2][2];
    multiply_tile<T, kType, kTokens>(weights, chunks, static_cast<int>(grouped_columns(columns) / kChunkColumns), tokens,
                                     rows * kStageColumns * 2, static_cast<unsigned>(grouped * kStageColumns * 2), stages, sums);
    __syncthreads();  // the stages' memory is free from here
    load_scales<kType>(kDown ? params.down_scale : params.gate_up_scale, panel, scales);
    if constexpr (kDown) {
      constexpr float kNone[2][2] = {};
      put_output<T, kTokens>(sums, scales, kNone, reinterpret_cast<T*>(stages.data));
    } else {
      // Features that pad the next product's columns are zero, whatever stands
      // in for their scales.
#pragma unroll
      for (int lower = 0; lower < 2; ++lower)
        if (local_panel * 16 + lower * 8 + lane / 4 >= params.d_ff) scales[0][lower] = scales[1][lower] = 0;
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) {
        const int token = i / 4 * 8 + lane % 4 * 2 + i % 2, lower = i / 2 % 2, row = lower * 8 + lane / 4;
        // A warpgroup's 64 features are one block of columns of the down product.
        unsigned char* to = stages.data + warp / 4 * kStageBytes + token * kStageColumns * 2;
        *reinterpret_cast<T*>(to + grouped_byte(token, warp % 4 * 16 + row)) =
            from_float<T>(silu(sums[0][i] * scales[0][lower]) * (sums[1][i] * scales[1][lower]));
      }
    }
  };
  if (live <= kTileTokensNarrow)
    run(std::integral_constant<int, kTileTokensNarrow>{});
  else
    run(std::integral_constant<int, kTileTokensWide>{});
  __syncthreads();
  if constexpr (kDown) {
    constexpr int kUnits = kBlockRows / 8;
    T* outputs = static_cast<T*>(workspace.grouped);
    for (int i = threadIdx.x; i < live * kUnits; i += kBlockThreads) {
      const int token = i / kUnits, unit = i % kUnits;
      const int64_t row = int64_t{place.row_block} * kBlockRows + unit * 8;
      if (row < params.d_model)
        *reinterpret_cast<uint4*>(outputs + choice_at(params.routing, begin + first_token + token) * params.d_model + row) =
            *reinterpret_cast<const uint4*>(reinterpret_cast<const T*>(stages.data) + token * kOutputStride + unit * 8);
    }
  } else {
    char* hidden = static_cast<char*>(workspace.hidden);
    for (int i = threadIdx.x; i < 2 * grouped * 8; i += kBlockThreads) {
      const int part = i / (grouped * 8), unit = i % (grouped * 8);
      reinterpret_cast<uint4*>(hidden + ((int64_t{place.row_block} * 2 + part) * rows + first_row) * kStageColumns * 2)[unit] =
          reinterpret_cast<const uint4*>(stages.data + part * kStageBytes)[unit];
    }
  }
#else
  // moe_prefill takes another way on other cards; this is a 9.0 card without sm_90a code in the build.
  __trap();
#endif
}

template <typename T, PackedType kType>
cudaError_t launch(const MoeParams& params, cudaStream_t stream) {
  const Workspace workspace = make_workspace(params);
  const int64_t choices = params.tokens * params.top_k, rows = grouped_rows(choices, params.experts);
  const int64_t most_tiles = choices / kTileTokensWide + std::min(params.experts, choices);
  cudaError_t status = cudaFuncSetAttribute(expert_kernel<T, kType, false>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (status == cudaSuccess)
    status = cudaFuncSetAttribute(expert_kernel<T, kType, true>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (status != cudaSuccess) return status;
  const auto blocks = [](int64_t threads) { return static_cast<unsigned>((threads + 255) / 256); };
  const int pair_panels = static_cast<int>(packed_panels(packed_pair_rows(params.d_ff))), down_panels = static_cast<int>(packed_panels(params.d_model));
  const int pair_blocks = (pair_panels + kBlockPanels - 1) / kBlockPanels, down_blocks = (down_panels + kBlockPanels - 1) / kBlockPanels;
  table_kernel<<<1, 1, 0, stream>>>(params, workspace);
  gather_kernel<T><<<blocks(choices * grouped_columns(params.d_model) / 8), 256, 0, stream>>>(params, workspace, rows);
  expert_kernel<T, kType, false>
      <<<static_cast<unsigned>(most_tiles * pair_blocks), kBlockThreads, kSharedBytes, stream>>>(params, workspace, rows, pair_panels, pair_blocks);
  expert_kernel<T, kType, true>
      <<<static_cast<unsigned>(most_tiles * down_blocks), kBlockThreads, kSharedBytes, stream>>>(params, workspace, rows, down_panels, down_blocks);
  combine_kernel<T><<<blocks(params.tokens * params.d_model / 8), 256, 0, stream>>>(params, static_cast<const T*>(workspace.grouped));
  return cudaGetLastError();
}

constexpr int64_t kMostTokens = int64_t{1} << 26;
constexpr int64_t kSliceChoices = kMoeMaxDecodeTokens * kMoeMaxTopK;

/// Grouping of a slice's choices: offsets, permutation, positions.
struct SliceTables {
  int32_t offsets[kMoeMaxExperts + 1], permutation[kSliceChoices], positions[kSliceChoices];
};
constexpr int64_t kSliceTableBytes = (sizeof(SliceTables) + 15) / 16 * 16;

__global__ void slice_kernel(const int32_t* experts, int choices, int expert_count, SliceTables* tables) {
  __shared__ int chosen[kSliceChoices];
  group_choices(experts, choices, expert_count, chosen, tables->offsets, tables->permutation, tables->positions);
}

}  // namespace

int64_t moe_prefill_workspace(const MoeParams& params) {
  MoeParams slice = params;
  slice.tokens = std::min(params.tokens, kMoeMaxDecodeTokens);
  const int64_t tiles = kTableBytes + grouped_rows(params.tokens * params.top_k, params.experts) *
                                          (grouped_columns(params.d_model) + grouped_columns(params.d_ff)) * 2;
  return std::max(tiles, kSliceTableBytes + moe_decode_workspace(slice));
}

cudaError_t moe_prefill_slices(const MoeParams& params, DType dtype, cudaStream_t stream) {
  if (!moe_params_allowed(params, kMostTokens, dtype)) return cudaErrorInvalidValue;
  SliceTables* const tables = static_cast<SliceTables*>(params.workspace);
  const auto at = [&](const void* tensor, int64_t token) {
    return tensor == nullptr ? nullptr : static_cast<const char*>(tensor) + token * params.d_model * 2;
  };
  for (int64_t first = 0; first < params.tokens; first += kMoeMaxDecodeTokens) {
    MoeParams slice = params;
    slice.tokens = std::min(kMoeMaxDecodeTokens, params.tokens - first);
    slice.x = at(params.x, first);
    slice.residual = at(params.residual, first);
    slice.y = static_cast<char*>(params.y) + first * params.d_model * 2;
    slice.workspace = static_cast<char*>(params.workspace) + kSliceTableBytes;
    if (params.routing.experts != nullptr) {
      int32_t* const experts = params.routing.experts + first * params.top_k;
      slice.routing = {experts, params.routing.weights + first * params.top_k, tables->offsets, tables->permutation, tables->positions};
      slice_kernel<<<1, 256, 0, stream>>>(experts, static_cast<int>(slice.tokens * params.top_k), static_cast<int>(params.experts), tables);
    }
    const cudaError_t status = moe_decode(slice, dtype, stream);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

cudaError_t moe_prefill(const MoeParams& params, DType dtype, cudaStream_t stream) {
  if (!moe_params_allowed(params, kMostTokens, dtype)) return cudaErrorInvalidValue;
  bool tiles = false;
  const cudaError_t status = has_tile_products(tiles);
  if (status != cudaSuccess) return status;
  if (!tiles) return moe_prefill_slices(params, dtype, stream);
  const bool int8 = params.weights == PackedType::kInt8;
  if (dtype == DType::kBFloat16)
    return int8 ? launch<__nv_bfloat16, PackedType::kInt8>(params, stream) : launch<__nv_bfloat16, PackedType::k16Bit>(params, stream);
  return int8 ? launch<__half, PackedType::kInt8>(params, stream) : launch<__half, PackedType::k16Bit>(params, stream);
}

}  // namespace layerweave
