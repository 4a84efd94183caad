#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"
#include "parallel.h"

namespace layerweave::cpu {

enum class WeightType {
  kFloat32,
  kBFloat16,  // the upper half of a float32
  kInt8,      // times a float32 per row
};

/// A linear layer's weights [out, in], row-major.
struct WeightMatrix {
  WeightType type;
  const void* data;
  const float* scales;  // [out] for kInt8, otherwise null
};

/// One gated MLP: down(silu(gate(x)) * up(x)).
struct ExpertWeights {
  WeightMatrix gate;  // [F,D]
  WeightMatrix up;    // [F,D]
  WeightMatrix down;  // [D,F]
};

enum class RouterOrder {
  kSoftmaxThenTopK,  // softmax over all experts; the largest K are the weights
  kTopKThenSoftmax,  // softmax over the K largest logits
};

/// Mixture of gated MLPs: y = sum_e weight_e * down_e(silu(gate_e(x)) * up_e(x)) over the top_k experts of each token. Of equal
/// logits the lower expert wins. Only chosen experts are computed, each for the tokens that chose it, so that its weights are
/// read once for up to kMoeSegmentRows of them. For int8 weights, activations and the hidden products are rounded to 16 bits as by
/// `linear` (linear.h).
struct MoeParams {
  int64_t tokens;   // M
  int64_t d_model;  // D
  int64_t d_ff;     // F
  int64_t experts;  // E
  int64_t top_k;    // K, 1..E
  RouterOrder order;
  bool renormalise;  // divide a token's weights by their sum; changes nothing for kTopKThenSoftmax

  const float* x;                 // [M,D]
  const float* router;            // [E,D]
  const ExpertWeights* weights;   // [E], all of one type
  float* y;                       // [M,D], not overlapping x

  void* scratch;  // moe_scratch bytes, aligned to 64
};

inline constexpr int64_t kMoeSegmentRows = 256;

size_t moe_scratch(const MoeParams& params);

/// A gated MLP is one expert that every token chooses with weight 1: y = down(silu(gate(x)) * up(x)), computed and rounded as there.
struct GatedMlpParams {
  int64_t tokens;   // M
  int64_t d_model;  // D
  int64_t d_ff;     // F

  const float* x;         // [M,D]
  ExpertWeights weights;  // of one type
  float* y;               // [M,D], not overlapping x

  void* scratch;  // gated_mlp_scratch bytes, aligned to 64
};

size_t gated_mlp_scratch(const GatedMlpParams& params);
/// Returns null, or what is wrong with the parameters; then nothing was written.
const char* gated_mlp(const GatedMlpParams& params, const Parallel& parallel, Isa isa);

/// Returns null, or what is wrong with the parameters; then nothing was written.
const char* moe(const MoeParams& params, const Parallel& parallel, Isa isa);

}  // namespace layerweave::cpu
