#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"
#include "parallel.h"

namespace layerweave::cpu {

/// Causal attention of T new tokens over a KV cache of capacity S, of which the first past_lengths[b] positions count.
///
/// Token t of row b stands at position past_lengths[b] + t. Its key and value are written there, and it sees the positions up
/// to its own, or only the last `window` of them:
///
///   y[t,h] = sum_s softmax_s(q[t,h] . k[s,g] / sqrt(P)) v[s,g],  g = h / (H / G)
///
/// The scores are never stored: blocks of positions pass through an online softmax (Dao et al. 2022, arXiv 2205.14135,
/// algorithm 1), and a few queries over many positions are cut along the positions, so that every thread reads the cache.
struct CachedAttentionParams {
  int64_t batch;     // B
  int64_t tokens;    // T
  int64_t heads;     // H, a multiple of G
  int64_t kv_heads;  // G
  int64_t head_dim;  // P, 1..kCachedAttentionMaxHeadDim
  int64_t capacity;  // S
  int64_t window;    // 0 for none

  const float* query;           // [B,T,H*P]
  const float* key;             // [B,T,G*P]
  const float* value;           // [B,T,G*P]
  const int64_t* past_lengths;  // [B], 0..S-T
  float* y;                     // [B,T,H*P]

  const float* past_key;    // [B,G,S,P]
  const float* past_value;  // [B,G,S,P]
  float* present_key;       // [B,G,S,P]; where it is past_key only the new positions are written, otherwise all is copied
  float* present_value;     // [B,G,S,P], likewise

  void* scratch;  // cached_attention_scratch bytes, aligned to 64; null where that is 0
};

inline constexpr int64_t kCachedAttentionMaxHeadDim = 256;

size_t cached_attention_scratch(const CachedAttentionParams& params);

/// Returns null, or what is wrong with the parameters; then nothing was written.
const char* cached_attention(const CachedAttentionParams& params, const Parallel& parallel, Isa isa);

}  // namespace layerweave::cpu
