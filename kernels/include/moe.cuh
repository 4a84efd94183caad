#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"
#include "packed_weights.h"

namespace layerweave {

enum class RouterOrder {
  kSoftmaxThenTopK,  // weights are probabilities over all experts
  kTopKThenSoftmax,  // softmax over the chosen logits
};

inline constexpr int64_t kMoeMaxExperts = 64;
inline constexpr int64_t kMoeMaxTopK = 8;
inline constexpr int64_t kMoeMaxDecodeTokens = 16;

/// Where the router sends each token, and the same grouped by expert. A choice
/// is one of a token's K experts, number token * K + k.
struct Routing {
  int32_t* experts;      // [M,K], descending by logit; of equals the lower first
  float* weights;        // [M,K]
  int32_t* offsets;      // [E+1]: expert e has grouped positions offsets[e] to offsets[e+1]-1
  int32_t* permutation;  // [M*K]: the choice at a grouped position, ascending within an expert
  int32_t* positions;    // [M*K]: the grouped position of a choice
};

/// Router logits = x * router^T in float32, then top-k and softmax in either
/// order (Shazeer et al. 2017; without renormalisation as in Jamba, with it as
/// in Mixtral). A NaN logit counts as -infinity.
struct MoeRouteParams {
  int64_t tokens;   // M, 1..2^26
  int64_t d_model;  // D, a multiple of 8
  int64_t experts;  // E, 1..kMoeMaxExperts
  int64_t top_k;    // K, 1..min(E, kMoeMaxTopK)
  RouterOrder order;
  bool renormalise;  // kSoftmaxThenTopK alone: divide by the sum over the chosen

  const void* x;        // [M,D], 16-byte aligned
  const float* router;  // [E,D], 16-byte aligned
  float* logits;        // [M,E]
  Routing routing;
  uint32_t* arrivals;  // [1], zero before the first call; every call leaves it zero
};

/// Enqueues routing on `stream`, x having the given dtype. One launch up to
/// kMoeMaxDecodeTokens tokens, else two. Returns cudaErrorInvalidValue for sizes
/// or alignments other than the above or a missing tensor, otherwise the launch's
/// error.
cudaError_t moe_route(const MoeRouteParams& params, DType dtype, cudaStream_t stream);

/// The chosen experts' outputs:
///
///   h[p]  = silu(gate_e x[m]) * (up_e x[m])               p a choice of token m, e its expert
///   y[m]  = residual[m] + sum_k weights[m,k] * down_e h[m,k]
///
/// Sums are float32, h is rounded to the activations' dtype. The order of every
/// sum is fixed, so results repeat bit for bit.
struct MoeParams {
  int64_t tokens;   // M
  int64_t d_model;  // D, a multiple of 8
  int64_t d_ff;     // F, a multiple of 8
  int64_t experts;  // E
  int64_t top_k;    // K
  PackedType weights;

  const void* gate_up;         // packed [E][packed_pair_rows(F), D], 16-byte aligned
  const void* down;            // packed [E][D, F], 16-byte aligned
  const float* gate_up_scale;  // int8: [E][packed_pair_rows(F)]
  const float* down_scale;     // int8: [E][32 * packed_panels(D)]

  const void* x;         // [M,D], 16-byte aligned
  const void* residual;  // [M,D], 16-byte aligned, or null; may be y
  void* y;               // [M,D], 16-byte aligned, not overlapping x
  /// Of moe_route, for the same tokens. All null with one expert: a gated MLP,
  /// every token weighing 1.
  Routing routing;

  void* workspace;     // moe_decode_workspace or moe_prefill_workspace bytes, 16-byte aligned
  uint32_t* arrivals;  // [moe_arrivals], zero before the first call; every call leaves them zero
};

/// Bytes of workspace, of the size fields and `weights` alone.
int64_t moe_decode_workspace(const MoeParams& params);
int64_t moe_prefill_workspace(const MoeParams& params);
/// Counters of either, of the size fields alone.
int64_t moe_arrivals(const MoeParams& params);

/// Up to kMoeMaxDecodeTokens tokens, each distinct expert's weights read once:
/// enqueues two launches on `stream`. The dtype of the activations and of 16-bit
/// weights is bfloat16 or float16. Returns cudaErrorInvalidValue for anything
/// other than the above or a missing tensor, otherwise the launch's error.
cudaError_t moe_decode(const MoeParams& params, DType dtype, cudaStream_t stream);

/// Any number of tokens up to 2^26. On the tensor cores of a card of compute
/// capability 9.0 in five launches, each expert's output rounded to the
/// activations' dtype before the sum over k; on others by moe_prefill_slices.
/// Otherwise as moe_decode.
cudaError_t moe_prefill(const MoeParams& params, DType dtype, cudaStream_t stream);

/// What moe_prefill does without such tensor cores: kMoeMaxDecodeTokens tokens
/// at a time, three launches each. Its workspace is moe_prefill_workspace too.
cudaError_t moe_prefill_slices(const MoeParams& params, DType dtype, cudaStream_t stream);

}  // namespace layerweave
