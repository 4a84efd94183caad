#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace layerweave {

/// Causal attention of new tokens over a KV cache that they are appended to,
/// with grouped heads (Ainslie et al. 2023) and rotary positions (Su et al.
/// 2021, element i paired with i + P/2). Token t of row b is at position
/// p = past_lengths[b] + t, head h reads KV head h / (H/G), and
///
///   rotate(x, p)  = x * cos + (-x[P/2..], x[..P/2]) * sin,
///                   cos, sin = rope_scale * cos, sin(p * inverse_frequencies)
///   key[b,g,p]    = rotate(k[b,t,g], p)
///   value[b,g,p]  = v[b,t,g]
///   y[b,t,h]      = sum_j softmax_j(rotate(q[b,t,h], p) . key[b,g,j] / sqrt(P)) * value[b,g,j]
///
/// over positions j in [0, p], or the last `window` of them where it is not 0.
/// Rotation, scores and softmax are float32; rotated q and k and the
/// probabilities that meet the values are rounded to the launch's DType, which
/// is bfloat16 or float16. The order of every sum is fixed by the lengths, so
/// results repeat bit for bit.
///
/// A past length outside [0, S - T] is taken as the nearest within.
struct AttentionParams {
  int64_t batch;     // B, 1..65535
  int64_t tokens;    // T, 1..S
  int64_t heads;     // H
  int64_t kv_heads;  // G, a divisor of H
  int64_t head_dim;  // P, a multiple of 8, up to kAttentionMaxHeadDim
  int64_t capacity;  // S, up to 2^31 - 1
  int64_t window;    // 0: none
  float rope_scale;

  const void* qkv;         // [B*T, (H+2G)*P]: q heads, k heads, v heads; 16-byte aligned
  int64_t qkv_row_stride;  // in elements, a multiple of 8
  const float* inverse_frequencies;  // [P/2], or null for no rotation
  const int64_t* past_lengths;       // [B] on the device

  const void* key_in;    // [B,G,S,P], 16-byte aligned; positions below past_lengths[b] count
  const void* value_in;
  /// [B,G,S,P], 16-byte aligned, may be the inputs; otherwise the positions that
  /// count are copied. Positions from past_lengths[b] + T on may be overwritten.
  void* key_out;
  void* value_out;
  void* y;  // [B*T, H*P], 16-byte aligned

  void* workspace;     // attention_workspace bytes, 16-byte aligned
  uint32_t* arrivals;  // [attention_arrivals], zero before the first call; every call leaves them zero
};

inline constexpr int64_t kAttentionMaxHeadDim = 256;

/// Bytes of workspace and counters, of the size fields alone; without counters
/// `arrivals` may be null.
int64_t attention_workspace(const AttentionParams& params);
int64_t attention_arrivals(const AttentionParams& params);

/// Enqueues the above on `stream`. The launches depend on the size fields alone,
/// never on past_lengths, so a captured graph holds for every length: one launch
/// for few tokens in place, with the cache read once by blocks that divide its
/// positions evenly among themselves; otherwise up to four. Returns
/// cudaErrorInvalidValue for anything other than the above or a missing tensor,
/// otherwise the launch's error.
cudaError_t attention(const AttentionParams& params, DType dtype, cudaStream_t stream);

}  // namespace layerweave
