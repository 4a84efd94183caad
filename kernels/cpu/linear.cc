#include "cpu/linear.h"

#include <algorithm>

#include "kernels.h"

namespace layerweave::cpu {

namespace {

/// Multiply-adds below which a task is not worth starting.
constexpr int64_t kTaskWork = 1 << 16;

int64_t blocks(int64_t count, int64_t size) { return (count + size - 1) / size; }

void add_bias(const LinearParams& p, int64_t begin, int64_t end) {
  if (!p.bias) return;
  for (int64_t m = 0; m < p.rows; ++m)
    for (int64_t n = begin; n < end; ++n) p.y[m * p.width + n] += p.bias[n];
}

/// Every row of x is read as it lies.
void few_rows(const LinearParams& p, const Parallel& parallel, const KernelTable& kernels) {
  const int64_t count = blocks(p.width, kBlockRows), grain = std::max<int64_t>(1, kTaskWork / std::max<int64_t>(1, kBlockRows * p.depth));
  parallel_for(parallel, blocks(count, grain), [&](int64_t task) {
    const int64_t begin = task * grain * kBlockRows, end = std::min(p.width, (task + 1) * grain * kBlockRows);
    const float* x[kFewRows];
    for (int64_t r = 0; r < p.rows; ++r) x[r] = p.x + r * p.depth;
    kernels.dot_rows(p.weights, p.depth, begin, end, x, p.rows, p.y, p.width);
    add_bias(p, begin, end);
  });
}

/// At most kLinearSegmentRows rows, packed into panels first.
void many_rows(const LinearParams& p, const Parallel& parallel, const KernelTable& kernels) {
  const int64_t panel = kernels.panel;
  float* packed = static_cast<float*>(p.scratch);
  parallel_for(parallel, blocks(p.rows, panel), [&](int64_t i) {
    // A few columns of every row at a time: what is written so far stays in the first-level cache until its lines are full.
    constexpr int64_t kColumns = 64;
    float* columns = packed + i * p.depth * panel;
    for (int64_t k0 = 0; k0 < p.depth; k0 += kColumns)
      for (int64_t r = 0; r < panel; ++r) {
        const float* x = i * panel + r < p.rows ? p.x + (i * panel + r) * p.depth : nullptr;
        for (int64_t k = k0; k < std::min(p.depth, k0 + kColumns); ++k) columns[k * panel + r] = x ? x[k] : 0;
      }
  });
  parallel_for(parallel, blocks(p.width, kBlockRows), [&](int64_t block) {
    const int64_t begin = block * kBlockRows, end = std::min(p.width, begin + kBlockRows);
    alignas(64) float out[kLinearSegmentRows * kBlockRows];
    kernels.multiply_panels(p.weights, p.depth, begin, end, packed, p.rows, out, kBlockRows * panel);
    for (int64_t m = 0; m < p.rows; ++m) {
      const float* column = out + m / panel * kBlockRows * panel + m % panel;
      float* y = p.y + m * p.width + begin;
      for (int64_t n = 0; n < end - begin; ++n) y[n] = column[n * panel];
    }
    add_bias(p, begin, end);
  });
}

}  // namespace

size_t linear_scratch(const LinearParams& p) {
  if (p.rows <= kFewRows) return 0;
  return sizeof(float) * static_cast<size_t>(blocks(std::min(p.rows, kLinearSegmentRows), kMaxPanel) * kMaxPanel * p.depth);
}

void linear(const LinearParams& p, const Parallel& parallel, Isa isa) {
  const KernelTable& kernels = kernel_table(isa);
  // How a row is computed depends on how many there are in all, and not on which segment it falls into.
  if (p.rows <= kFewRows) return few_rows(p, parallel, kernels);
  for (int64_t first = 0; first < p.rows; first += kLinearSegmentRows) {
    LinearParams segment = p;
    segment.rows = std::min(kLinearSegmentRows, p.rows - first);
    segment.x += first * p.depth;
    segment.y += first * p.width;
    many_rows(segment, parallel, kernels);
  }
}

}  // namespace layerweave::cpu
