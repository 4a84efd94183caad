#pragma once

// What each instruction set implements: the serial pieces that the drivers cut work into. All pointers are as the public
// headers say; shapes give the tensors of one call.

#include <algorithm>
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

/// Bytes of weights that a task of few rows' products takes: a matrix falls into some eighths, since threads that take turns at
/// small pieces of one stream get half of what memory gives to threads with streams of their own.
constexpr int64_t few_rows_task_bytes(int64_t all) { return std::clamp<int64_t>(all / 8, 1 << 16, 1 << 19); }

/// Inputs of a row that share a scale when activations are rounded to 16 bits for int8 weights.
inline constexpr int64_t kRoundedDepth = 256;
/// Inputs of a rounded row with the zeros behind them, whole vectors of every instruction set.
constexpr int64_t rounded_depth(int64_t depth) { return (depth + 63) / 64 * 64; }
constexpr int64_t rounded_blocks(int64_t depth) { return (depth + kRoundedDepth - 1) / kRoundedDepth; }

/// Rounded activations: values [rows][rounded_depth] and scales [rows][rounded_blocks] of rows as they lie, or values
/// [panels][rounded_depth / 2][panel][2] and scales [panels][rounded_blocks][panel].
struct RoundedRows {
  int16_t* values;
  float* scales;

  /// From this row on, the first of a panel where there are panels.
  RoundedRows from(int64_t row, int64_t depth) const { return {values + row * rounded_depth(depth), scales + row * rounded_blocks(depth)}; }
};

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

  /// Products with float32 or bfloat16 weights: out[r,n] = sum_k x[r][k] * w[n,k] for n in [begin, end), rows <= kFewRows; element [r,n] lies at r * out_row + n.
  void (*dot_rows)(const WeightMatrix&, int64_t depth, int64_t begin, int64_t end, const float* const* x, int64_t rows, float* out, int64_t out_row);
  /// The same from panels [ceil(rows / panel)][depth][panel] into out [ceil(rows / panel)][.][panel], element [p,n,i] at
  /// p * out_panel + (n - begin) * panel + i. where element [p,k,i] of the panels is row p * panel + i of x.
  void (*multiply_panels)(const WeightMatrix&, int64_t depth, int64_t begin, int64_t end, const float* panels, int64_t rows, float* out, int64_t out_panel);
  /// Columns [k0, k1) of `panel` rows of float32 as [k1 - k0][panel]; 0 for rows that are null.
  void (*pack_panel)(const float* const* rows, int64_t k0, int64_t k1, float* packed);
  /// The way back for `count` columns: y[r * y_row + n] = packed[n,r] + bias[n], bias 0 where null; y[r][n] += factors[r] * packed[n,r].
  void (*unpack_panel)(const float* packed, int64_t count, int64_t rows, const float* bias, float* y, int64_t y_row);
  void (*add_panel)(const float* packed, int64_t count, int64_t rows, const float* factors, float* const* y);

  /// Rounds a row [depth] to what lies at x, and columns [k0, k0 + count) of a panel, all of one kRoundedDepth block.
  void (*round_row)(const float* row, int64_t depth, const RoundedRows& x);
  void (*round_panel)(const float* packed, int64_t k0, int64_t count, const RoundedRows& x);
  /// As dot_rows and multiply_panels, with int8 weights.
  void (*dot_rounded)(const WeightMatrix&, int64_t depth, int64_t begin, int64_t end, const RoundedRows& x, int64_t rows, float* out, int64_t out_row);
  void (*multiply_rounded)(const WeightMatrix&, int64_t depth, int64_t begin, int64_t end, const RoundedRows& panels, int64_t rows, float* out, int64_t out_panel);
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

/// A panel of rows [depth], null ones as zeros, packed and rounded to what lies at x.
inline void pack_rounded(const KernelTable& kernels, const float* const* rows, int64_t depth, const RoundedRows& x) {
  alignas(64) float block[kRoundedDepth * kMaxPanel];
  for (int64_t k0 = 0; k0 < depth; k0 += kRoundedDepth) {
    const int64_t count = depth - k0 < kRoundedDepth ? depth - k0 : kRoundedDepth;
    kernels.pack_panel(rows, k0, k0 + count, block);
    kernels.round_panel(block, k0, count, x);
  }
}

}  // namespace layerweave::cpu
