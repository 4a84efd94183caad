#include "moe_routing.cuh"
#include "packed_panel.cuh"

namespace layerweave {
namespace {

struct Plan {
  ColumnSplit whole;   // of gate_up, whose columns are not split: silu needs whole sums
  ColumnSplit split;   // of down
  int64_t choices;     // M * K
  int64_t hidden_bytes;
};

Plan make_plan(const MoeParams& p) {
  const int64_t choices = p.tokens * p.top_k;
  const int chunks = static_cast<int>(packed_chunks(p.d_model));
  // Routed experts are known too late to ask for their weights.
  const int ahead = p.routing.offsets == nullptr ? chunks_ahead(p.weights) : 0;
  return {{chunks, chunks, 1, ahead}, split_columns(packed_panels(p.d_model), p.d_ff, p.weights), choices,
          choices * p.d_ff * 2};
}

/// The slot-th expert that has tokens, -1 past the last of `active`.
struct ActiveExpert {
  int expert, active;
  int begin, count;  // its grouped positions
};

/// Read past the L1: down_kernel asks before it waits.
__device__ __forceinline__ ActiveExpert active_expert(const MoeParams& params, int slot) {
  const int32_t* const offsets = params.routing.offsets;
  if (offsets == nullptr) return {0, 1, 0, static_cast<int>(params.tokens)};
  const int experts = static_cast<int>(params.experts);
  const int lane = threadIdx.x % 32;
  uint64_t used = 0;
#pragma unroll
  for (int group = 0; group < kMoeMaxExperts / 32; ++group) {
    const int e = group * 32 + lane;
    used |= uint64_t{__ballot_sync(~0u, e < experts && __ldcg(offsets + e + 1) > __ldcg(offsets + e))} << (32 * group);
  }
  const int active = __popcll(used);
  if (slot >= active) return {-1, active, 0, 0};
  for (int i = 0; i < slot; ++i) used &= used - 1;
  const int expert = __ffsll(static_cast<long long>(used)) - 1, begin = __ldcg(offsets + expert);
  return {expert, active, begin, __ldcg(offsets + expert + 1) - begin};
}

/// Block (panel, slot): 16 features of the slot's expert.
template <typename T, PackedType kType>
__global__ void __launch_bounds__(kPanelThreads, kPanelBlocksPerProcessor)
    gate_up_kernel(const __grid_constant__ MoeParams params, Plan plan) {
  __shared__ PanelShared shared;
  // Without routing the weights are known at once. With it down_kernel, which reads
  // it before it waits, may start only when it is there.
  if (params.routing.offsets != nullptr) wait_for_kernels_before();
  let_next_kernel_start();
  const ActiveExpert group = active_expert(params, blockIdx.y);
  if (group.expert < 0) return;
  const int64_t panel = group.expert * int64_t{gridDim.x} + blockIdx.x;
  const uint4* weights = static_cast<const uint4*>(params.gate_up) + panel * plan.whole.chunks * kLoadsPerChunk<kType> * 32;
  const T* x = static_cast<const T*>(params.x);
  block_multiply<T, kType>(
      weights, 0, plan.whole.chunks, plan.whole.ahead, params.d_model, group.count,
      [&](int n) { return x + choice_at(params.routing, group.begin + n) / params.top_k * params.d_model; }, shared,
      [] { wait_for_kernels_before(); });
  T* hidden = static_cast<T*>(params.workspace);
  for (int i = threadIdx.x; i < group.count * 16; i += kPanelThreads) {
    const int n = i / 16, r = i % 16;
    const int64_t feature = int64_t{blockIdx.x} * 16 + r;
    if (feature >= params.d_ff) continue;
    float gate = shared.total(0, r, n), up = shared.total(1, r, n);
    if constexpr (kType == PackedType::kInt8) {
      gate *= params.gate_up_scale[panel * kPanelRows + r];
      up *= params.gate_up_scale[panel * kPanelRows + 16 + r];
    }
    hidden[(group.begin + n) * params.d_ff + feature] = from_float<T>(silu(gate) * up);
  }
}

/// Block (panel, part, slot): 32 outputs of the slot's expert over a part of its
/// features. The last block of a panel sums parts and experts.
template <typename T, PackedType kType>
__global__ void __launch_bounds__(kPanelThreads, kPanelBlocksPerProcessor)
    down_kernel(const __grid_constant__ MoeParams params, Plan plan) {
  __shared__ PanelShared shared;
  let_next_kernel_start();
  const ActiveExpert group = active_expert(params, blockIdx.z);
  if (group.expert < 0) {
    wait_for_kernels_before();
    return;
  }
  const int64_t panel = group.expert * int64_t{gridDim.x} + blockIdx.x;
  const int64_t part = blockIdx.y, first_row = int64_t{blockIdx.x} * kPanelRows;
  const int first = static_cast<int>(part) * plan.split.slice, end = min(first + plan.split.slice, plan.split.chunks);
  const uint4* weights = static_cast<const uint4*>(params.down) + panel * plan.split.chunks * kLoadsPerChunk<kType> * 32;
  const T* hidden = static_cast<const T*>(params.workspace);
  float* partial = reinterpret_cast<float*>(static_cast<char*>(params.workspace) + plan.hidden_bytes);
  block_multiply<T, kType>(weights, first, end, plan.split.ahead, params.d_ff, group.count,
                           [&](int n) { return hidden + (group.begin + n) * params.d_ff; }, shared,
                           [] { wait_for_kernels_before(); });
  for (int i = threadIdx.x; i < group.count * kPanelRows; i += kPanelThreads) {
    const int n = i / kPanelRows, r = i % kPanelRows;
    if (first_row + r >= params.d_model) continue;
    float sum = shared.total(r / 16, r % 16, n);
    if constexpr (kType == PackedType::kInt8) sum *= params.down_scale[panel * kPanelRows + r];
    partial[(part * plan.choices + group.begin + n) * params.d_model + first_row + r] = sum;
  }
  if (!last_to_arrive(params.arrivals + blockIdx.x, static_cast<unsigned>(plan.split.count * group.active))) return;
  for (int i = threadIdx.x; i < params.tokens * kPanelRows; i += kPanelThreads) {
    const int64_t token = i / kPanelRows, row = first_row + i % kPanelRows;
    if (row >= params.d_model) continue;
    float total = params.residual == nullptr ? 0.f : to_float(static_cast<const T*>(params.residual)[token * params.d_model + row]);
    for (int64_t choice = token * params.top_k; choice < (token + 1) * params.top_k; ++choice) {
      const float* at = partial + position_of(params.routing, choice) * params.d_model + row;
      float sum = 0;
      for (int p = 0; p < plan.split.count; ++p) sum += __ldcg(at + p * plan.choices * params.d_model);
      total = fmaf(weight_of(params.routing, choice), sum, total);
    }
    static_cast<T*>(params.y)[token * params.d_model + row] = from_float<T>(total);
  }
}

template <typename T, PackedType kType>
cudaError_t launch(const MoeParams& params, cudaStream_t stream) {
  const Plan plan = make_plan(params);
  const unsigned slots = static_cast<unsigned>(std::min(params.experts, plan.choices));
  const unsigned pair_panels = static_cast<unsigned>(packed_panels(packed_pair_rows(params.d_ff)));
  const cudaError_t status = launch_early(gate_up_kernel<T, kType>, dim3(pair_panels, slots), kPanelThreads, 0, stream, params, plan);
  if (status != cudaSuccess) return status;
  const unsigned panels = static_cast<unsigned>(packed_panels(params.d_model));
  return launch_early(down_kernel<T, kType>, dim3(panels, static_cast<unsigned>(plan.split.count), slots), kPanelThreads, 0, stream, params, plan);
}

}  // namespace

int64_t moe_decode_workspace(const MoeParams& params) {
  const Plan plan = make_plan(params);
  return plan.hidden_bytes + plan.split.count * plan.choices * params.d_model * static_cast<int64_t>(sizeof(float));
}

int64_t moe_arrivals(const MoeParams& params) { return packed_panels(params.d_model); }

bool moe_params_allowed(const MoeParams& p, int64_t most_tokens, DType dtype) {
  if (p.tokens < 1 || p.tokens > most_tokens || p.d_model < 8 || p.d_model % 8 != 0 || p.d_ff < 8 || p.d_ff % 8 != 0 ||
      p.d_model > 1 << 20 || p.d_ff > 1 << 20 || p.experts < 1 || p.experts > kMoeMaxExperts || p.top_k < 1 ||
      p.top_k > std::min(p.experts, kMoeMaxTopK) || dtype == DType::kFloat32)
    return false;
  if (p.weights == PackedType::kInt8 && (p.gate_up_scale == nullptr || p.down_scale == nullptr)) return false;
  for (const void* tensor : {p.gate_up, p.down, p.x, static_cast<const void*>(p.y), static_cast<const void*>(p.workspace)})
    if (tensor == nullptr || !aligned16(tensor)) return false;
  const Routing& r = p.routing;
  const int given = (r.experts != nullptr) + (r.weights != nullptr) + (r.offsets != nullptr) + (r.permutation != nullptr) + (r.positions != nullptr);
  return aligned16(p.residual) && p.arrivals != nullptr && (given == 5 || (given == 0 && p.experts == 1));
}

cudaError_t moe_decode(const MoeParams& params, DType dtype, cudaStream_t stream) {
  if (!moe_params_allowed(params, kMoeMaxDecodeTokens, dtype)) return cudaErrorInvalidValue;
  const bool int8 = params.weights == PackedType::kInt8;
  if (dtype == DType::kBFloat16)
    return int8 ? launch<__nv_bfloat16, PackedType::kInt8>(params, stream) : launch<__nv_bfloat16, PackedType::k16Bit>(params, stream);
  return int8 ? launch<__half, PackedType::kInt8>(params, stream) : launch<__half, PackedType::k16Bit>(params, stream);
}

}  // namespace layerweave
