// Attention over the cache; see cpu/cached_attention.h. Scores are in base 2: queries are scaled by log2(e) / sqrt(P).
#include "linear_kernel.h"

namespace layerweave::cpu::LAYERWEAVE_ISA {

/// Below every score: stands for the maximum of no positions and for a hidden position, whose weight is set to 0 besides.
inline constexpr float kHidden = -1e30f;

struct AttentionHead {
  const CachedAttentionParams& p;
  int64_t row, kv_head;

  int64_t group() const { return p.heads / p.kv_heads; }
  int64_t position(int64_t r) const { return p.past_lengths[row] + r / group(); }
  /// The first position that query row r sees.
  int64_t first(int64_t r) const { return p.window ? larger(0, position(r) - p.window + 1) : 0; }
  const float* keys() const { return p.present_key + (row * p.kv_heads + kv_head) * p.capacity * p.head_dim; }
  const float* values() const { return p.present_value + (row * p.kv_heads + kv_head) * p.capacity * p.head_dim; }
  /// Where query row r lies in query and y.
  int64_t at(int64_t r) const { return ((row * p.tokens + r / group()) * p.heads + kv_head * group() + r % group()) * p.head_dim; }
  float scale() const { return kLog2E / __builtin_sqrtf(static_cast<float>(p.head_dim)); }
};

/// A multiple of every tile's rows, few enough for scores, queries and sums to share the caches with a block of keys.
inline constexpr int64_t kPositionBlock = 48;
/// Divides the usual head dimensions, unlike kTileRows.
inline constexpr int64_t kValueRows = LAYERWEAVE_LANES == 16 ? 8 : 4;

/// One vector of query rows over one block of positions: scores become weights relative to the new maximum.
/// → what earlier sums have to be multiplied by
template <bool kMasked>
LAYERWEAVE_INLINE Floats weigh(float* scores, int64_t count, Ints first, Ints last, Floats& maximum, Floats& total) {
  Floats largest = maximum;
  for (int64_t s = 0; s < count; ++s) {
    Floats score = load(scores + s * kPanel);
    if constexpr (kMasked) {
      const Ints position = Ints{} + static_cast<int32_t>(s);
      score = ((position >= first) & (position <= last)) ? score : broadcast(kHidden);
    }
    largest = max(score, largest);
  }
  const Floats correction = exp2_of_small(maximum - largest);
  Floats sum = total * correction;
  for (int64_t s = 0; s < count; ++s) {
    Floats weight = exp2_of_small(load(scores + s * kPanel) - largest);
    if constexpr (kMasked) {
      const Ints position = Ints{} + static_cast<int32_t>(s);
      weight = ((position >= first) & (position <= last)) ? weight : Floats{};
    }
    store(scores + s * kPanel, weight);
    sum += weight;
  }
  maximum = largest;
  total = sum;
  return correction;
}

template <int64_t kVectors>
void attend_panel_of(const AttentionHead& head, int64_t begin, int64_t end) {
  const CachedAttentionParams& p = head.p;
  const int64_t rows = end - begin, width = p.head_dim;
  alignas(64) float queries[kCachedAttentionMaxHeadDim * kPanel], sums[kCachedAttentionMaxHeadDim * kPanel], scores[kPositionBlock * kPanel];
  for (int64_t i = 0; i < width * kPanel; ++i) queries[i] = sums[i] = 0;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t d = 0; d < width; ++d) queries[d * kPanel + i] = p.query[head.at(begin + i) + d] * head.scale();

  Floats maximum[kVectors], total[kVectors] = {};
  for (Floats& m : maximum) m = broadcast(kHidden);
  const int64_t stop = head.position(end - 1) + 1;
  for (int64_t s0 = head.first(begin); s0 < stop; s0 += kPositionBlock) {
    const int64_t count = smaller(kPositionBlock, stop - s0);
    multiply_panels_of(head.keys(), width, s0, s0 + count, queries, rows, scores, 0);
    const bool masked = s0 + count - 1 > head.position(begin) || s0 < head.first(end - 1);
    Floats correction[kVectors];
    for (int64_t v = 0; v < kVectors; ++v) {
      if (!masked) {
        correction[v] = weigh<false>(scores + v * kLanes, count, Ints{}, Ints{}, maximum[v], total[v]);
        continue;
      }
      Ints first, last;
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t r = smaller(end - 1, begin + v * kLanes + i);
        // Relative to s0, and no further from it than the block is long: positions may exceed 32 bits, these don't.
        first[i] = static_cast<int32_t>(larger(0, smaller(kPositionBlock, head.first(r) - s0)));
        last[i] = static_cast<int32_t>(larger(-1, smaller(kPositionBlock, head.position(r) - s0)));
      }
      correction[v] = weigh<true>(scores + v * kLanes, count, first, last, maximum[v], total[v]);
    }
    for (int64_t d = 0; d < width; ++d)
      for (int64_t v = 0; v < kVectors; ++v) {
        float* at = sums + d * kPanel + v * kLanes;
        store(at, load(at) * correction[v]);
      }
    const float* values = head.values() + s0 * width;
    int64_t d = 0;
    for (; d + kValueRows <= width; d += kValueRows) multiply_tile<kValueRows, kVectors, 1>(values + d, width, scores, count, sums + d * kPanel, kValueRows, true);
    for (; d < width; ++d) multiply_tile<1, kVectors, 1>(values + d, width, scores, count, sums + d * kPanel, 1, true);
  }

  for (int64_t i = 0; i < rows; ++i) {
    const float denominator = total[i / kLanes][i % kLanes];
    for (int64_t d = 0; d < width; ++d) p.y[head.at(begin + i) + d] = sums[d * kPanel + i] / denominator;
  }
}

inline void attend_panel(const CachedAttentionParams& p, int64_t row, int64_t kv_head, int64_t begin, int64_t end) {
  const AttentionHead head = {p, row, kv_head};
  if (end - begin > kLanes)
    attend_panel_of<2>(head, begin, end);
  else
    attend_panel_of<1>(head, begin, end);
}

inline constexpr int64_t kSplitBlock = 64;

/// sums[r,d] += sum_s weights[r,s] * values[s,d] for kRows rows and kVectors vectors of d. Asks for the next block's keys and
/// values, which the memory fetches meanwhile.
template <int64_t kRows, int64_t kVectors>
LAYERWEAVE_INLINE void add_values(const float* weights, const float* keys, const float* values, int64_t count, int64_t width, int64_t lanes, float* sums) {
  Floats acc[kRows][kVectors];
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t v = 0; v < kVectors; ++v) acc[r][v] = load(sums + r * width + v * kLanes, lanes);
  for (int64_t s = 0; s < count; ++s)
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) {
      will_read(keys, (s + kSplitBlock) * width + v * kLanes);
      will_read(values, (s + kSplitBlock) * width + v * kLanes);
      const Floats value = load(values + s * width + v * kLanes, lanes);
#pragma GCC unroll 4
      for (int64_t r = 0; r < kRows; ++r) acc[r][v] += value * weights[r * kSplitBlock + s];
    }
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t v = 0; v < kVectors; ++v) store(sums + r * width + v * kLanes, acc[r][v], lanes);
}

template <int64_t kRows>
LAYERWEAVE_INLINE void add_all_values(const float* weights, const float* keys, const float* values, int64_t count, int64_t width, float* sums) {
  constexpr int64_t kVectors = kRows == 1 ? 4 : 2;
  int64_t d = 0;
  for (; d + kVectors * kLanes <= width; d += kVectors * kLanes) add_values<kRows, kVectors>(weights, keys + d, values + d, count, width, kLanes, sums + d);
  for (; d < width; d += kLanes) add_values<kRows, 1>(weights, keys + d, values + d, count, width, smaller(kLanes, width - d), sums + d);
}

inline void attend_split(const CachedAttentionParams& p, int64_t row, int64_t kv_head, int64_t from, int64_t to, const AttentionPartial& partial) {
  const AttentionHead head = {p, row, kv_head};
  const int64_t rows = p.tokens * head.group(), width = p.head_dim;
  float scaled[kFewRows][kCachedAttentionMaxHeadDim], scores[kFewRows * kSplitBlock];
  const float* queries[kFewRows];
  for (int64_t r = 0; r < rows; ++r) {
    queries[r] = scaled[r];
    for (int64_t d = 0; d < width; ++d) scaled[r][d] = p.query[head.at(r) + d] * head.scale();
    partial.max[r] = kHidden;
    partial.sum[r] = 0;
    for (int64_t d = 0; d < width; ++d) partial.weighted[r * width + d] = 0;
  }

  for (int64_t s0 = from; s0 < to; s0 += kSplitBlock) {
    const int64_t count = smaller(kSplitBlock, to - s0);
    dot_block(head.keys() + s0 * width, width, count, queries, rows, scores, kSplitBlock);
    for (int64_t r = 0; r < rows; ++r) {
      // The positions of the block that the row sees.
      const int64_t first = smaller(count, larger(0, head.first(r) - s0)), last = larger(first, smaller(count, head.position(r) + 1 - s0));
      float* line = scores + r * kSplitBlock;
      float largest = partial.max[r];
      for (int64_t s = first; s < last; ++s) largest = line[s] > largest ? line[s] : largest;
      const float correction = exp2_of_small(broadcast(partial.max[r] - largest))[0];
      Floats total = {};
      for (int64_t s = first; s < last; s += kLanes) {
        const int64_t lanes = smaller(kLanes, last - s);
        store(line + s, exp2_of_small(load(line + s, lanes) - largest), lanes);
        total += load(line + s, lanes);
      }
      for (int64_t s = 0; s < first; ++s) line[s] = 0;
      for (int64_t s = last; s < count; ++s) line[s] = 0;
      partial.max[r] = largest;
      partial.sum[r] = partial.sum[r] * correction + sum(total);
      for (int64_t d = 0; d < width; ++d) partial.weighted[r * width + d] *= correction;
    }
    const float *keys = head.keys() + s0 * width, *values = head.values() + s0 * width;
    for (int64_t r = 0; r < rows; r += 4) {
      const float* weights = scores + r * kSplitBlock;
      float* sums = partial.weighted + r * width;
      switch (smaller(4, rows - r)) {
        case 1: add_all_values<1>(weights, keys, values, count, width, sums); break;
        case 2: add_all_values<2>(weights, keys, values, count, width, sums); break;
        case 3: add_all_values<3>(weights, keys, values, count, width, sums); break;
        default: add_all_values<4>(weights, keys, values, count, width, sums);
      }
    }
  }
}

inline void merge_splits(const CachedAttentionParams& p, int64_t row, int64_t kv_head, int64_t splits, const AttentionPartial& partials, int64_t stride) {
  const AttentionHead head = {p, row, kv_head};
  for (int64_t r = 0; r < p.tokens * head.group(); ++r) {
    float largest = kHidden, total = 0;
    for (int64_t i = 0; i < splits; ++i) {
      const float m = partials.max[i * stride + r];
      largest = m > largest ? m : largest;
    }
    float* y = p.y + head.at(r);
    for (int64_t d = 0; d < p.head_dim; ++d) y[d] = 0;
    for (int64_t i = 0; i < splits; ++i) {
      const float share = exp2_of_small(broadcast(partials.max[i * stride + r] - largest))[0];
      total += share * partials.sum[i * stride + r];
      for (int64_t d = 0; d < p.head_dim; ++d) y[d] += share * partials.weighted[i * stride + r * p.head_dim + d];
    }
    for (int64_t d = 0; d < p.head_dim; ++d) y[d] /= total;
  }
}

}  // namespace layerweave::cpu::LAYERWEAVE_ISA
