#include "cpu/cached_attention.h"

#include <algorithm>
#include <cstring>

#include "kernels.h"

namespace layerweave::cpu {

namespace {

/// Positions of one split: long enough for the reading of the cache to hide the start of a task, and never more than
/// kMostSplits of them, which bounds the scratch memory.
constexpr int64_t kLeastSplit = 256;
constexpr int64_t kMostSplits = 64;

/// What is wrong with the parameters, or null.
const char* fault(const CachedAttentionParams& p) {
  if (p.head_dim < 1 || p.head_dim > kCachedAttentionMaxHeadDim) return "headDim must be 1 to 256";
  if (p.kv_heads < 1 || p.heads < 1 || p.heads % p.kv_heads) return "nHeads must be a multiple of nKvHeads";
  if (p.window < 0) return "window must not be negative";
  for (int64_t row = 0; row < p.batch; ++row)
    if (p.past_lengths[row] < 0 || p.past_lengths[row] > p.capacity - p.tokens) return "past_lengths must be 0 to S - T";
  return nullptr;
}

int64_t rows_per_kv_head(const CachedAttentionParams& p) { return p.tokens * (p.heads / p.kv_heads); }
bool few_rows(const CachedAttentionParams& p) { return rows_per_kv_head(p) <= kFewRows; }
int64_t partial_floats(const CachedAttentionParams& p) { return rows_per_kv_head(p) * (p.head_dim + 2); }

int64_t first_position(const CachedAttentionParams& p, int64_t row) {
  return p.window ? std::max<int64_t>(0, p.past_lengths[row] - p.window + 1) : 0;
}

/// The longest span of positions that a row of the batch reads, in splits of `length` positions.
struct Splits {
  int64_t length, count;
};

Splits plan_splits(const CachedAttentionParams& p) {
  int64_t longest = 1;
  for (int64_t row = 0; row < p.batch; ++row) longest = std::max(longest, p.past_lengths[row] + p.tokens - first_position(p, row));
  const int64_t length = std::max(kLeastSplit, (longest + kMostSplits - 1) / kMostSplits);
  return {length, (longest + length - 1) / length};
}

void write_cache(const CachedAttentionParams& p, const float* past, float* present, const float* added, int64_t row, int64_t kv_head) {
  const int64_t at = (row * p.kv_heads + kv_head) * p.capacity * p.head_dim;
  if (past != present) std::memcpy(present + at, past + at, sizeof(float) * static_cast<size_t>(p.capacity * p.head_dim));
  for (int64_t t = 0; t < p.tokens; ++t)
    std::memcpy(present + at + (p.past_lengths[row] + t) * p.head_dim, added + ((row * p.tokens + t) * p.kv_heads + kv_head) * p.head_dim,
                sizeof(float) * static_cast<size_t>(p.head_dim));
}

void attend_split_wise(const CachedAttentionParams& p, const Parallel& parallel, const KernelTable& kernels) {
  const Splits splits = plan_splits(p);
  const int64_t rows = rows_per_kv_head(p), stride = partial_floats(p);
  const auto partial = [&](int64_t head, int64_t split) {
    float* at = static_cast<float*>(p.scratch) + (head * splits.count + split) * stride;
    return AttentionPartial{at, at + rows, at + 2 * rows};
  };
  parallel_for(parallel, p.batch * p.kv_heads * splits.count, [&](int64_t task) {
    const int64_t head = task / splits.count, split = task % splits.count, row = head / p.kv_heads;
    const int64_t from = first_position(p, row) + split * splits.length;
    const int64_t to = std::min(from + splits.length, p.past_lengths[row] + p.tokens);
    kernels.attend_split(p, row, head % p.kv_heads, from, to, partial(head, split));
  });
  parallel_for(parallel, p.batch * p.kv_heads, [&](int64_t head) { kernels.merge_splits(p, head / p.kv_heads, head % p.kv_heads, splits.count, partial(head, 0), stride); });
}

void attend_panel_wise(const CachedAttentionParams& p, const Parallel& parallel, const KernelTable& kernels) {
  const int64_t rows = rows_per_kv_head(p), panels = (rows + kernels.panel - 1) / kernels.panel;
  parallel_for(parallel, p.batch * p.kv_heads * panels, [&](int64_t task) {
    const int64_t head = task / panels;
    // The last panels see the most positions: started first, they don't leave one thread working alone at the end.
    const int64_t begin = (panels - 1 - task % panels) * kernels.panel;
    kernels.attend_panel(p, head / p.kv_heads, head % p.kv_heads, begin, std::min(rows, begin + kernels.panel));
  });
}

}  // namespace

size_t cached_attention_scratch(const CachedAttentionParams& p) {
  if (fault(p) || !few_rows(p)) return 0;
  return sizeof(float) * static_cast<size_t>(p.batch * p.kv_heads * plan_splits(p).count * partial_floats(p));
}

const char* cached_attention(const CachedAttentionParams& p, const Parallel& parallel, Isa isa) {
  if (const char* wrong = fault(p)) return wrong;
  if (p.tokens == 0) return nullptr;
  const KernelTable& kernels = kernel_table(isa);
  parallel_for(parallel, p.batch * p.kv_heads * 2, [&](int64_t task) {
    const int64_t row = task / 2 / p.kv_heads, kv_head = task / 2 % p.kv_heads;
    if (task % 2)
      write_cache(p, p.past_value, p.present_value, p.value, row, kv_head);
    else
      write_cache(p, p.past_key, p.present_key, p.key, row, kv_head);
  });
  if (few_rows(p))
    attend_split_wise(p, parallel, kernels);
  else
    attend_panel_wise(p, parallel, kernels);
  return nullptr;
}

}  // namespace layerweave::cpu
