#include <cfloat>
#include <cmath>

#include "moe_routing.cuh"
#include "packed_panel.cuh"

namespace layerweave {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kLogitsPerLane = kMoeMaxExperts / 32;
// Tokens and experts a warp of the prefill kernel holds sums of.
constexpr int kTokenTile = 8;
constexpr int kExpertTile = 2;
constexpr int kGroupThreads = 1024;

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

template <typename T>
__device__ __forceinline__ void load8(const T* from, float (&to)[8]) {
  Vec8<T> packed;
#pragma unroll
  for (int i = 0; i < Vec8<T>::kUnits; ++i) packed.unit[i] = reinterpret_cast<const uint4*>(from)[i];
  packed.unpack(to);
}

/// One warp chooses one token's experts. logits may be shared or global memory.
__device__ void choose(const MoeRouteParams& params, const float* logits, int64_t token) {
  const int lane = threadIdx.x % 32;
  const int experts = static_cast<int>(params.experts), top_k = static_cast<int>(params.top_k);
  float value[kLogitsPerLane];
  bool open[kLogitsPerLane];
#pragma unroll
  for (int i = 0; i < kLogitsPerLane; ++i) {
    const int e = lane + 32 * i;
    open[i] = e < experts;
    value[i] = open[i] ? logits[e] : -INFINITY;
    if (isnan(value[i])) value[i] = -INFINITY;
  }
  float largest = 0, chosen_total = 0, mine = 0;
  int my_expert = 0;
  for (int k = 0; k < top_k; ++k) {
    float best = -INFINITY;
    int at = kMoeMaxExperts;
#pragma unroll
    for (int i = 0; i < kLogitsPerLane; ++i)
      if (open[i] && (at == kMoeMaxExperts || value[i] > best)) best = value[i], at = lane + 32 * i;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(~0u, best, step);
      const int other_at = __shfl_xor_sync(~0u, at, step);
      if (other > best || (other == best && other_at < at)) best = other, at = other_at;
    }
#pragma unroll
    for (int i = 0; i < kLogitsPerLane; ++i)
      if (at == lane + 32 * i) open[i] = false;
    if (k == 0) largest = best;
    const float weight = expf(best - largest);
    chosen_total += weight;
    if (lane == k) mine = weight, my_expert = at;
  }
  float total = chosen_total;
  if (params.order == RouterOrder::kSoftmaxThenTopK && !params.renormalise) {
    total = 0;
#pragma unroll
    for (int i = 0; i < kLogitsPerLane; ++i) total += expf(value[i] - largest);
    total = warp_sum(total);
  }
  if (lane < top_k) {
    params.routing.experts[token * top_k + lane] = my_expert;
    params.routing.weights[token * top_k + lane] = mine / total;
  }
}

/// Block (expert, token) makes one logit; the last one chooses and groups.
template <typename T>
__global__ void __launch_bounds__(kThreads) decode_kernel(const __grid_constant__ MoeRouteParams params) {
  let_next_kernel_start();
  __shared__ float warp_sums[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t expert = blockIdx.x, token = blockIdx.y;
  const T* x = static_cast<const T*>(params.x) + token * params.d_model;
  const float* router = params.router + expert * params.d_model;
  if constexpr (kEarlyLaunch) prefetch(router, params.d_model * 4, threadIdx.x, kThreads);
  wait_for_kernels_before();
  float sum = 0;
#pragma unroll 2
  for (int64_t d = threadIdx.x * 8; d < params.d_model; d += kThreads * 8) {
    float a[8], b[8];
    load8(x + d, a);
    load8(router + d, b);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(a[i], b[i], sum);
  }
  sum = warp_sum(sum);
  if (lane == 0) warp_sums[warp] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0;
    for (float s : warp_sums) total += s;
    params.logits[token * params.experts + expert] = total;
  }
  if (!last_to_arrive(params.arrivals, gridDim.x * gridDim.y)) return;
  const int tokens = static_cast<int>(params.tokens), choices = tokens * static_cast<int>(params.top_k);
  for (int m = warp; m < tokens; m += kWarps) choose(params, params.logits + m * params.experts, m);
  __shared__ int chosen[kMoeMaxDecodeTokens * kMoeMaxTopK];
  __syncthreads();
  const Routing& routing = params.routing;
  group_choices(routing.experts, choices, static_cast<int>(params.experts), chosen, routing.offsets, routing.permutation, routing.positions);
}

/// A block routes kTokenTile tokens, a warp kExpertTile experts at a time.
template <typename T>
__global__ void __launch_bounds__(kThreads) prefill_kernel(const __grid_constant__ MoeRouteParams params) {
  __shared__ float logits[kTokenTile][kMoeMaxExperts];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t first = int64_t{blockIdx.x} * kTokenTile;
  const int tokens = static_cast<int>(min(int64_t{kTokenTile}, params.tokens - first));
  const T* x = static_cast<const T*>(params.x) + first * params.d_model;
  for (int64_t e0 = warp * kExpertTile; e0 < params.experts; e0 += kWarps * kExpertTile) {
    float sum[kTokenTile][kExpertTile] = {};
    for (int64_t d = lane * 8; d < params.d_model; d += 256) {
      float w[kExpertTile][8];
#pragma unroll
      for (int e = 0; e < kExpertTile; ++e)
        load8(params.router + min(e0 + e, params.experts - 1) * params.d_model + d, w[e]);
#pragma unroll
      for (int m = 0; m < kTokenTile; ++m) {
        float a[8];
        load8(x + min(m, tokens - 1) * params.d_model + d, a);
#pragma unroll
        for (int e = 0; e < kExpertTile; ++e)
#pragma unroll
          for (int i = 0; i < 8; ++i) sum[m][e] = fmaf(a[i], w[e][i], sum[m][e]);
      }
    }
#pragma unroll
    for (int m = 0; m < kTokenTile; ++m)
#pragma unroll
      for (int e = 0; e < kExpertTile; ++e) {
        const float total = warp_sum(sum[m][e]);
        if (lane == 0 && e0 + e < params.experts && m < tokens) {
          logits[m][e0 + e] = total;
          params.logits[(first + m) * params.experts + e0 + e] = total;
        }
      }
  }
  __syncthreads();
  for (int m = warp; m < tokens; m += kWarps) choose(params, logits[m], first + m);
}

/// Block e places the choices of expert e, in order.
__global__ void __launch_bounds__(kGroupThreads) group_kernel(Routing routing, int choices) {
  constexpr int kGroupWarps = kGroupThreads / 32;
  __shared__ int below_of[kGroupWarps], own_of[kGroupWarps];
  const int expert = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int below = 0, own = 0;
  for (int i = threadIdx.x; i < choices; i += kGroupThreads) {
    below += routing.experts[i] < expert;
    own += routing.experts[i] == expert;
  }
  below = __reduce_add_sync(~0u, below);
  own = __reduce_add_sync(~0u, own);
  if (lane == 0) below_of[warp] = below, own_of[warp] = own;
  __syncthreads();
  int at = __reduce_add_sync(~0u, below_of[lane]);
  const int count = __reduce_add_sync(~0u, own_of[lane]);
  if (threadIdx.x == 0) {
    if (expert == 0) routing.offsets[0] = 0;
    routing.offsets[expert + 1] = at + count;
  }
  for (int first = 0; first < choices; first += kGroupThreads) {
    const int i = first + static_cast<int>(threadIdx.x);
    const bool is_own = i < choices && routing.experts[i] == expert;
    const unsigned mask = __ballot_sync(~0u, is_own);
    __syncthreads();
    if (lane == 0) own_of[warp] = __popc(mask);
    __syncthreads();
    const int before = __reduce_add_sync(~0u, lane < warp ? own_of[lane] : 0);
    if (is_own) {
      const int position = at + before + __popc(mask & ((1u << lane) - 1));
      routing.permutation[position] = i;
      routing.positions[i] = position;
    }
    at += __reduce_add_sync(~0u, own_of[lane]);
  }
}

template <typename T>
cudaError_t launch(const MoeRouteParams& params, cudaStream_t stream) {
  if (params.tokens <= kMoeMaxDecodeTokens) {
    const dim3 grid(static_cast<unsigned>(params.experts), static_cast<unsigned>(params.tokens));
    return launch_early(decode_kernel<T>, grid, kThreads, 0, stream, params);
  }
  prefill_kernel<T><<<static_cast<unsigned>((params.tokens + kTokenTile - 1) / kTokenTile), kThreads, 0, stream>>>(params);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) return status;
  group_kernel<<<static_cast<unsigned>(params.experts), kGroupThreads, 0, stream>>>(
      params.routing, static_cast<int>(params.tokens * params.top_k));
  return cudaGetLastError();
}

}  // namespace

cudaError_t moe_route(const MoeRouteParams& params, DType dtype, cudaStream_t stream) {
  const MoeRouteParams& p = params;
  if (p.tokens < 1 || p.tokens > int64_t{1} << 26 || p.d_model < 8 || p.d_model % 8 != 0 || p.experts < 1 ||
      p.experts > kMoeMaxExperts || p.top_k < 1 || p.top_k > std::min(p.experts, kMoeMaxTopK))
    return cudaErrorInvalidValue;
  if (p.x == nullptr || p.router == nullptr || p.logits == nullptr || p.arrivals == nullptr || !aligned16(p.x) || !aligned16(p.router))
    return cudaErrorInvalidValue;
  const Routing& r = p.routing;
  if (r.experts == nullptr || r.weights == nullptr || r.offsets == nullptr || r.permutation == nullptr || r.positions == nullptr)
    return cudaErrorInvalidValue;
  switch (dtype) {
    case DType::kFloat32:
      return launch<float>(params, stream);
    case DType::kFloat16:
      return launch<__half>(params, stream);
    case DType::kBFloat16:
      return launch<__nv_bfloat16>(params, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace layerweave
