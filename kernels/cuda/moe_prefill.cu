#include "moe.cuh"
#include "packed_panel.cuh"

namespace layerweave {
namespace {

// The product is weights x tokens: the weights are the A operand, widened in
// registers, and tokens the B operand, in shared memory. A block has two
// warpgroups of four panels each, 256 packed rows, and up to 128 tokens.
constexpr int kBlockThreads = 256;
constexpr int kBlockPanels = 8;
constexpr int kTileTokensWide = 128;
// Columns of a stage: rows of 128 bytes, which the 128-byte swizzle wants.
constexpr int kStageColumns = 64;
constexpr int kStages = 8;
constexpr int kStageBytes = kTileTokensWide * kStageColumns * 2;
// The down product's output tile passes through shared memory in rows of tokens.
constexpr int kOutputStride = kBlockPanels * kPanelRows + 8;
constexpr int kSharedBytes = kStages * kStageBytes + 1024;
static_assert(kTileTokensWide * kOutputStride * 2 <= kStages * kStageBytes);

// Grouped activations are [block of 64 columns][grouped row][64], each expert's
// rows beginning at a multiple of 8: what a stage reads is one contiguous piece,
// already in shared memory's order. In a row the columns of a chunk stand in the
// order in which the packed weights' lanes hold them, and its 16-byte units are
// exchanged by the swizzle.
__host__ __device__ constexpr int64_t grouped_rows(int64_t choices, int64_t experts) { return (choices + 7 * experts + 7) / 8 * 8; }

/// Byte offset, in its row, of an even column and the next.
__device__ __forceinline__ int grouped_byte(int row, int column) {
  const int lane = column % 32 / 8, i = column % 8;
  const int slot = column / 32 * 32 + i / 4 * 16 + 2 * lane + i % 4 / 2 * 8 + i % 2;
  return (slot / 8 ^ row % 8) * 16 + slot % 8 * 2;
}

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
          base + kTableBytes + grouped_rows(p.tokens * p.top_k, p.experts) * p.d_model * 2};
}

__global__ void table_kernel(const int32_t* offsets, int experts, Workspace workspace) {
  int row = 0, tile = 0;
  for (int e = 0; e < experts; ++e) {
    workspace.row_begin[e] = row;
    workspace.tile_begin[e] = tile;
    const int count = offsets[e + 1] - offsets[e];
    row += (count + 7) / 8 * 8;
    tile += (count + kTileTokensWide - 1) / kTileTokensWide;
  }
  workspace.row_begin[experts] = row;
  workspace.tile_begin[experts] = tile;
}

/// A thread moves 8 columns of one choice's token.
template <typename T>
__global__ void __launch_bounds__(256) gather_kernel(const __grid_constant__ MoeParams params, Workspace workspace, int64_t rows) {
  const int64_t units = params.d_model / 8, i = int64_t{blockIdx.x} * 256 + threadIdx.x;
  const int64_t choice = i / units, column = i % units * 8;
  if (choice >= params.tokens * params.top_k) return;
  const int expert = params.routing.experts[choice];
  const int row = workspace.row_begin[expert] + params.routing.positions[choice] - params.routing.offsets[expert];
  const uint4 v = *reinterpret_cast<const uint4*>(static_cast<const T*>(params.x) + choice / params.top_k * params.d_model + column);
  char* to = static_cast<char*>(workspace.grouped) + (column / kStageColumns * rows + row) * kStageColumns * 2;
  const unsigned pair[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int k = 0; k < 4; ++k)
    *reinterpret_cast<unsigned*>(to + grouped_byte(row, static_cast<int>(column % kStageColumns) + 2 * k)) = pair[k];
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
    const float weight = params.routing.weights[choice];
#pragma unroll
    for (int k = 0; k < 8; ++k) sum[k] = fmaf(weight, value[k], sum[k]);
  }
  packed.pack(sum);
  packed.store(static_cast<T*>(params.y) + at);
}

// wgmma and its kin exist in machine code for sm_90a alone.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// The last tokens of an expert, if they are as few.
constexpr int kTileTokensNarrow = 64;
// Chunks of weights a thread has loads in flight for.
constexpr int kRing = 4;

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

/// One warpgroup's 2 x 64 rows (a warp's panel, half 0 and half 1) times the
/// tokens of the stages. `tokens` is where stage 0 lies, `stride` bytes before
/// the next.
template <typename T, int kTokens>
__device__ __forceinline__ void multiply_tile(const uint4* panel, int chunks, const char* tokens, int64_t stride, unsigned bytes,
                                              const Stages& stages, float (&sums)[2][kTokens / 2]) {
  const int lane = threadIdx.x % 32, count = chunks / 2;
  const auto fill = [&](int stage) {
    copy_bulk(stages.data + stage % kStages * kStageBytes, tokens + stage * stride, bytes, &stages.full[stage % kStages]);
  };
  if (threadIdx.x == 0)
    for (int stage = 0; stage < min(kStages, count); ++stage) fill(stage);
  uint4 codes[kRing][2];
  const auto load = [&](int chunk, uint4(&to)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      to[half] = chunk < chunks ? load_weights(panel + (int64_t{chunk} * 2 + half) * 32 + lane) : uint4{};
  };
  unsigned a[2][2][2][4];  // [buffer][half][step]
  const auto widen_chunk = [&](const uint4(&from)[2], unsigned(&to)[2][2][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      widen(from[half].x, to[half][0][0], to[half][0][2], T{});
      widen(from[half].z, to[half][0][1], to[half][0][3], T{});
      widen(from[half].y, to[half][1][0], to[half][1][2], T{});
      widen(from[half].w, to[half][1][1], to[half][1][3], T{});
    }
  };
#pragma unroll
  for (int c = 0; c < kRing; ++c) load(c, codes[c]);
  widen_chunk(codes[0], a[0]);
  load(kRing, codes[0]);
  // K-major, rows of 128 bytes in groups of 8 that lie 1024 bytes apart, 128-byte swizzle.
  const uint64_t descriptor = (uint64_t{1} << 62) | (uint64_t{1024 >> 4} << 32) | (uint64_t{1} << 16) | (shared_address(stages.data) >> 4);
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) sums[half][i] = 0;

  for (int first = 0; first < chunks; first += kRing) {
#pragma unroll
    for (int q = 0; q < kRing; ++q) {
      const int stage = first / 2 + q / 2;
      if (q % 2 == 0) barrier_wait(&stages.full[stage % kStages], stage / kStages % 2);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < 2; ++step)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          wgmma(sums[half], a[q % 2][half][step], descriptor + ((stage % kStages * kStageBytes + q % 2 * 64 + step * 32) >> 4), T{});
      wgmma_commit();
      wgmma_wait<1>();  // the chunk before is done: its operands and its stage are free
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int step = 0; step < 2; ++step)
#pragma unroll
          for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(a[(q + 1) % 2][half][step][i])::"memory");
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
      widen_chunk(codes[(q + 1) % kRing], a[(q + 1) % 2]);
      load(first + q + 1 + kRing, codes[(q + 1) % kRing]);
    }
  }
  wgmma_wait<0>();
}

#endif

/// Block: a tile of an expert's tokens times 256 packed rows. kDown: the down
/// product, else the gated pair. Tiles of an expert and a row block are
/// neighbours, so that its weights come from L2 for all but the first.
template <typename T, bool kDown>
__global__ void __launch_bounds__(kBlockThreads, 1)
    expert_kernel(const __grid_constant__ MoeParams params, Workspace workspace, int64_t rows, int row_blocks) {
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
  const int tiles = workspace.tile_begin[expert + 1] - workspace.tile_begin[expert];
  const int local = block - workspace.tile_begin[expert] * row_blocks;
  const int row_block = local / tiles, first_token = local % tiles * kTileTokensWide;
  const int begin = params.routing.offsets[expert], live = min(params.routing.offsets[expert + 1] - begin - first_token, kTileTokensWide);
  const int grouped = (live + 7) / 8 * 8;
  const int64_t first_row = workspace.row_begin[expert] + first_token;

  const Stages stages{raw_shared + (1024 - shared_address(raw_shared) % 1024) % 1024, full, empty};
  if (threadIdx.x == 0)
    for (int s = 0; s < kStages; ++s) barrier_init(&full[s], 1), barrier_init(&empty[s], kBlockThreads / 32);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();

  const int64_t columns = kDown ? params.d_ff : params.d_model;
  const int chunks = static_cast<int>(columns / kChunkColumns);
  const int64_t panel = (int64_t{expert} * row_blocks + row_block) * kBlockPanels + warp;
  const uint4* weights = static_cast<const uint4*>(kDown ? params.down : params.gate_up) + panel * chunks * 64;
  const char* tokens = static_cast<const char*>(kDown ? workspace.hidden : workspace.grouped) + first_row * kStageColumns * 2;
  const float* scale = (kDown ? params.down_scale : params.gate_up_scale) + panel * kPanelRows;

  const auto run = [&](auto width) {
    constexpr int kTokens = decltype(width)::value;
    float sums[2][kTokens / 2];
    multiply_tile<T, kTokens>(weights, chunks, tokens, rows * kStageColumns * 2, static_cast<unsigned>(grouped * kStageColumns * 2), stages, sums);
    __syncthreads();  // the stages' memory is free from here
    float scales[2][2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) scales[half][lower] = scale[half * 16 + lower * 8 + lane / 4];
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) {
      const int token = i / 4 * 8 + lane % 4 * 2 + i % 2, lower = i / 2 % 2, row = lower * 8 + lane / 4;
      const float first = sums[0][i] * scales[0][lower], second = sums[1][i] * scales[1][lower];
      if constexpr (kDown) {
        T* to = reinterpret_cast<T*>(stages.data) + token * kOutputStride + warp * kPanelRows + row;
        to[0] = from_float<T>(first);
        to[16] = from_float<T>(second);
      } else {
        // A warpgroup's 64 features are one block of columns of the down product.
        unsigned char* to = stages.data + warp / 4 * kStageBytes + token * kStageColumns * 2;
        *reinterpret_cast<T*>(to + grouped_byte(token, warp % 4 * 16 + row)) = from_float<T>(silu(first) * second);
      }
    }
  };
  if (live <= kTileTokensNarrow)
    run(std::integral_constant<int, kTileTokensNarrow>{});
  else
    run(std::integral_constant<int, kTileTokensWide>{});
  __syncthreads();
  if constexpr (kDown) {
    constexpr int kUnits = kBlockPanels * kPanelRows / 8;
    T* outputs = static_cast<T*>(workspace.grouped);
    for (int i = threadIdx.x; i < live * kUnits; i += kBlockThreads) {
      const int token = i / kUnits, unit = i % kUnits;
      const int64_t choice = params.routing.permutation[begin + first_token + token];
      *reinterpret_cast<uint4*>(outputs + choice * params.d_model + row_block * kBlockPanels * kPanelRows + unit * 8) =
          *reinterpret_cast<const uint4*>(reinterpret_cast<const T*>(stages.data) + token * kOutputStride + unit * 8);
    }
  } else {
    char* hidden = static_cast<char*>(workspace.hidden);
    for (int i = threadIdx.x; i < 2 * grouped * 8; i += kBlockThreads) {
      const int part = i / (grouped * 8), unit = i % (grouped * 8);
      reinterpret_cast<uint4*>(hidden + ((row_block * 2 + part) * rows + first_row) * kStageColumns * 2)[unit] =
          reinterpret_cast<const uint4*>(stages.data + part * kStageBytes)[unit];
    }
  }
#else
  // moe_prefill refuses other cards; this is a 9.0 card without sm_90a code in the build.
  __trap();
#endif
}

template <typename T>
cudaError_t launch(const MoeParams& params, cudaStream_t stream) {
  const Workspace workspace = make_workspace(params);
  const int64_t choices = params.tokens * params.top_k, rows = grouped_rows(choices, params.experts);
  const int64_t most_tiles = choices / kTileTokensWide + std::min(params.experts, choices);
  cudaError_t status = cudaFuncSetAttribute(expert_kernel<T, false>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (status == cudaSuccess)
    status = cudaFuncSetAttribute(expert_kernel<T, true>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (status != cudaSuccess) return status;
  const auto blocks = [](int64_t threads) { return static_cast<unsigned>((threads + 255) / 256); };
  table_kernel<<<1, 1, 0, stream>>>(params.routing.offsets, static_cast<int>(params.experts), workspace);
  gather_kernel<T><<<blocks(choices * params.d_model / 8), 256, 0, stream>>>(params, workspace, rows);
  const int pair_blocks = static_cast<int>(params.d_ff / (16 * kBlockPanels)), down_blocks = static_cast<int>(params.d_model / (32 * kBlockPanels));
  expert_kernel<T, false><<<static_cast<unsigned>(most_tiles * pair_blocks), kBlockThreads, kSharedBytes, stream>>>(params, workspace, rows, pair_blocks);
  expert_kernel<T, true><<<static_cast<unsigned>(most_tiles * down_blocks), kBlockThreads, kSharedBytes, stream>>>(params, workspace, rows, down_blocks);
  combine_kernel<T><<<blocks(params.tokens * params.d_model / 8), 256, 0, stream>>>(params, static_cast<const T*>(workspace.grouped));
  return cudaGetLastError();
}

}  // namespace

int64_t moe_prefill_workspace(const MoeParams& params) {
  return kTableBytes + grouped_rows(params.tokens * params.top_k, params.experts) * (params.d_model + params.d_ff) * 2;
}

cudaError_t moe_prefill(const MoeParams& params, DType dtype, cudaStream_t stream) {
  const MoeParams& p = params;
  if (p.tokens < 1 || p.tokens > int64_t{1} << 26 || p.d_model < 256 || p.d_model % 256 != 0 || p.d_ff < 128 || p.d_ff % 128 != 0 ||
      p.d_model > 1 << 20 || p.d_ff > 1 << 20 || p.experts < 1 || p.experts > kMoeMaxExperts || p.top_k < 1 ||
      p.top_k > std::min(p.experts, kMoeMaxTopK) || p.weights != PackedType::kInt8 || dtype == DType::kFloat32)
    return cudaErrorInvalidValue;
  for (const void* tensor : {p.gate_up, p.down, p.x, static_cast<const void*>(p.y), static_cast<const void*>(p.workspace)})
    if (tensor == nullptr || !aligned16(tensor)) return cudaErrorInvalidValue;
  const Routing& r = p.routing;
  if (p.gate_up_scale == nullptr || p.down_scale == nullptr || !aligned16(p.residual) || r.experts == nullptr || r.weights == nullptr ||
      r.offsets == nullptr || r.permutation == nullptr || r.positions == nullptr)
    return cudaErrorInvalidValue;
  int device = 0, major = 0, minor = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (status != cudaSuccess) return status;
  if (major != 9 || minor != 0) return cudaErrorNotSupported;
  return dtype == DType::kBFloat16 ? launch<__nv_bfloat16>(params, stream) : launch<__half>(params, stream);
}

}  // namespace layerweave
