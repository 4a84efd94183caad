#pragma once

#include "moe.cuh"

namespace layerweave {

/// Routing as the experts read it: without one, every token is a choice of
/// expert 0 at the position of its number, weighing 1.
__device__ __forceinline__ int expert_begin(const Routing& routing, int expert, int64_t tokens) {
  return routing.offsets != nullptr ? routing.offsets[expert] : expert == 0 ? 0 : static_cast<int>(tokens);
}
__device__ __forceinline__ int64_t choice_at(const Routing& routing, int64_t position) {
  return routing.permutation != nullptr ? routing.permutation[position] : position;
}
__device__ __forceinline__ int64_t position_of(const Routing& routing, int64_t choice) {
  return routing.positions != nullptr ? routing.positions[choice] : choice;
}
__device__ __forceinline__ int expert_of(const Routing& routing, int64_t choice) {
  return routing.experts != nullptr ? routing.experts[choice] : 0;
}
__device__ __forceinline__ float weight_of(const Routing& routing, int64_t choice) {
  return routing.weights != nullptr ? routing.weights[choice] : 1.f;
}

/// Groups the few choices of `experts` by expert, by one block of at least
/// `expert_count` threads. `chosen` has room for all of them in shared memory.
__device__ __forceinline__ void group_choices(const int32_t* experts, int choices, int expert_count, int* chosen, int32_t* offsets,
                                              int32_t* permutation, int32_t* positions) {
  for (int i = threadIdx.x; i < choices; i += blockDim.x) chosen[i] = experts[i];
  __syncthreads();
  const int expert = threadIdx.x;
  if (expert >= expert_count) return;
  int below = 0, upto = 0;
  for (int i = 0; i < choices; ++i) {
    below += chosen[i] < expert;
    upto += chosen[i] <= expert;
  }
  if (expert == 0) offsets[0] = 0;
  offsets[expert + 1] = upto;
  for (int i = 0, at = below; at < upto; ++i)
    if (chosen[i] == expert) {
      permutation[at] = i;
      positions[i] = at++;
    }
}

/// What moe_decode and moe_prefill both ask of their parameters.
bool moe_params_allowed(const MoeParams& params, int64_t most_tokens, DType dtype);

}  // namespace layerweave
