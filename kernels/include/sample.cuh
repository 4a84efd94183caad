#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace layerweave {

/// How the next token of one row is chosen and what the choice needs to go on;
/// lies on the device, so that a captured graph holds while options change. The
/// rules, their order and the random sequence are those of the sampler on the
/// host: softmax(logits / temperature), of which the top_k best tokens stay with
/// those tied with the last of them, then the fewest tokens whose probabilities
/// reach top_p together (of equals the lowest ids), then tokens at least min_p
/// times as probable as the best; one draw over what is left, by ascending id.
struct SampleRow {
  double temperature;  // 0: the best token, the first of equals; nothing is drawn
  double top_p;        // above 0, at most 1: all
  double min_p;        // 0 to 1, 0: all
  int64_t top_k;       // 0: all
  uint32_t state[4];   // of xoshiro128**, from seed_sampler; two steps a draw
};

/// Weights are integers, 2^45 the best token's, so that sums don't depend on their
/// order: the host, which sums in float64, chooses another token only where its
/// random number lies within about 1e-11 of the border between two.
struct SampleParams {
  int64_t batch;       // B, 1..65535
  int64_t vocabulary;  // V, 1..kSampleMaxVocabulary

  const float* logits;  // [B,V]
  int64_t logits_row_stride;
  SampleRow* rows;  // [B] on the device
  int64_t* tokens;  // [B]; -1 where a logit is NaN, the best infinite or none above -infinity, and nothing is drawn

  void* workspace;  // sample_workspace bytes, 8-byte aligned
};

inline constexpr int64_t kSampleMaxVocabulary = int64_t{1} << 18;

/// Bytes of workspace, of the size fields alone.
int64_t sample_workspace(const SampleParams& params);

/// The start of the random sequence of a seed below 2^53.
void seed_sampler(uint64_t seed, uint32_t (&state)[4]);

/// Enqueues the choice of every row on `stream`, in one launch. Returns
/// cudaErrorInvalidValue for sizes outside the ranges above or a missing tensor,
/// otherwise the launch's error.
cudaError_t sample(const SampleParams& params, cudaStream_t stream);

}  // namespace layerweave
