#pragma once

// What each instruction set implements: the serial pieces that the drivers cut work into. All pointers are as the public
// headers say; shapes give the tensors of one call.

#include <cstdint>

#include "cpu/cached_attention.h"
#include "cpu/causal_conv.h"
#include "cpu/isa.h"
#include "cpu/moe.h"
#include "cpu/selective_scan.h"

namespace layerweave::cpu {

/// The most channels that a task of the scan or the convolution takes: a page of every token's row.
inline constexpr int64_t kMaxTaskChannels = 1024;
/// The most states (channels times N) that a task of the scan takes, which it keeps in the second-level cache.
inline constexpr int64_t kMaxTaskStates = 16384;

/// Query rows that are served by streaming the cache once with dot products; more of them go through packed panels.
inline constexpr int64_t kFewRows = 8;

/// The widest panel of any instruction set.
inline constexpr int64_t kMaxPanel = 32;

/// Rows of the weights a task of the packed product takes: a multiple of every instruction set's tile.
inline constexpr int64_t kBlockRows = 48;

/// One split of few query rows over the cache: for each row its largest scaled score (in base 2), the sum of weights relative
/// to that, and the sum of weighted values [P].
struct AttentionPartial {
  float* max;       // [rows]
  float* sum;       // [rows]
  float* weighted;  // [rows, P]
};

struct KernelTable {
  int64_t panel;  // tokens in one panel of packed activations

  /// Channels [begin, end) of a row of the batch, end - begin within the two bounds above.
  void (*scan_channels)(const SelectiveScanParams&, int64_t row, int64_t begin, int64_t end);
  void (*conv_channels)(const CausalConvParams&, int64_t row, int64_t begin, int64_t end);

  /// out[r,n] = sum_k x[r][k] * w[n,k] for n in [begin, end), rows <= kFewRows; element [r,n] lies at r * out_row + n.
  void (*dot_rows)(const WeightMatrix&, int64_t depth, int64_t begin, int64_t end, const float* const* x, int64_t rows, float* out, int64_t out_row);
  /// The same from panels [ceil(rows / panel)][depth][panel] into out [ceil(rows / panel)][.][panel], element [p,n,i] at
  /// p * out_panel + (n - begin) * panel + i. where element [p,k,i] of the panels is row p * panel + i of x.
  void (*multiply_panels)(const WeightMatrix&, int64_t depth, int64_t begin, int64_t end, const float* panels, int64_t rows, float* out, int64_t out_panel);
  /// gate[i] = silu(gate[i]) * up[i]
  void (*gate_in_place)(float* gate, const float* up, int64_t count);
  /// The top_k experts of one token, best first. logits [E] is overwritten.
  void (*route)(const MoeParams&, float* logits, float* weights, int32_t* experts);

  /// Query rows [begin, end) of the T * H/G rows that share a kv head, end - begin <= panel; row r is token r / (H/G).
  void (*attend_panel)(const CachedAttentionParams&, int64_t row, int64_t kv_head, int64_t begin, int64_t end);
  /// All T * H/G <= kFewRows rows that share a kv head, over positions [from, to).
  void (*attend_split)(const CachedAttentionParams&, int64_t row, int64_t kv_head, int64_t from, int64_t to, const AttentionPartial&);
  /// splits partials, element i of each at i * stride floats.
  void (*merge_splits)(const CachedAttentionParams&, int64_t row, int64_t kv_head, int64_t splits, const AttentionPartial& first, int64_t stride);

  /// out[i] = exp(x[i]), softplus(x[i]), silu(x[i]): the functions the kernels use, for the tests of their accuracy.
  void (*exp)(const float* x, float* out, int64_t count);
  void (*exp2)(const float* x, float* out, int64_t count);
  void (*softplus)(const float* x, float* out, int64_t count);
  void (*silu)(const float* x, float* out, int64_t count);
};

const KernelTable& kernel_table(Isa isa);

}  // namespace layerweave::cpu
