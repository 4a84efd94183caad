#include "cpu/linear.h"

#include <algorithm>

#include "kernels.h"

namespace layerweave::cpu {

namespace {

int64_t blocks(int64_t count, int64_t size) { return (count + size - 1) / size; }

/// Whole panels of any instruction set.
int64_t padded(int64_t rows) { return blocks(rows, kMaxPanel) * kMaxPanel; }

/// Scratch memory for so many rows.
RoundedRows rounded_rows(const LinearParams& p, int64_t rows) {
  int16_t* values = static_cast<int16_t*>(p.scratch);
  return {values, reinterpret_cast<float*>(values + rows * rounded_depth(p.depth))};
}

/// Every row of x is read as it lies.
void few_rows(const LinearParams& p, const WeightMatrix& weights, const Parallel& parallel, const KernelTable& kernels) {
  const RoundedRows x = rounded_rows(p, p.rows);
  for (int64_t m = 0; m < p.rows; ++m) kernels.round_row(p.x + m * p.depth, p.depth, x.from(m, p.depth));
  if (p.width == 0) return;
  // Tasks of about the same size.
  const int64_t bytes = p.width * p.depth, tasks = blocks(bytes, few_rows_task_bytes(bytes)), grain = blocks(p.width, tasks);
  parallel_for(parallel, blocks(p.width, grain), [&](int64_t task) {
    const int64_t begin = task * grain, end = std::min(p.width, begin + grain);
    kernels.dot_rounded(weights, p.depth, begin, end, x, p.rows, p.y, p.width);
    if (!p.bias) return;
    for (int64_t m = 0; m < p.rows; ++m)
      for (int64_t n = begin; n < end; ++n) p.y[m * p.width + n] += p.bias[n];
  });
}

/// At most kLinearSegmentRows rows, packed into panels first.
void many_rows(const LinearParams& p, const WeightMatrix& weights, const Parallel& parallel, const KernelTable& kernels) {
  const int64_t panel = kernels.panel, panels = blocks(p.rows, panel);
  const RoundedRows x = rounded_rows(p, padded(p.rows));
  parallel_for(parallel, panels, [&](int64_t i) {
    const float* rows[kMaxPanel];
    for (int64_t r = 0; r < panel; ++r) rows[r] = i * panel + r < p.rows ? p.x + (i * panel + r) * p.depth : nullptr;
    pack_rounded(kernels, rows, p.depth, x.from(i * panel, p.depth));
  });
  parallel_for(parallel, blocks(p.width, kBlockRows), [&](int64_t block) {
    const int64_t begin = block * kBlockRows, end = std::min(p.width, begin + kBlockRows);
    alignas(64) float out[kLinearSegmentRows * kBlockRows];
    kernels.multiply_rounded(weights, p.depth, begin, end, x, p.rows, out, kBlockRows * panel);
    for (int64_t i = 0; i < panels; ++i)
      kernels.unpack_panel(out + i * kBlockRows * panel, end - begin, std::min(panel, p.rows - i * panel), p.bias ? p.bias + begin : nullptr, p.y + i * panel * p.width + begin, p.width);
  });
}

}  // namespace

size_t linear_scratch(const LinearParams& p) {
  const int64_t rows = p.rows <= kFewRows ? p.rows : padded(std::min(p.rows, kLinearSegmentRows));
  return static_cast<size_t>(rows) * (sizeof(int16_t) * static_cast<size_t>(rounded_depth(p.depth)) + sizeof(float) * static_cast<size_t>(rounded_blocks(p.depth)));
}

void linear(const LinearParams& p, const Parallel& parallel, Isa isa) {
  const KernelTable& kernels = kernel_table(isa);
  const WeightMatrix weights = {WeightType::kInt8, p.weights, p.scales};
  // How a row is computed depends on how many there are in all, and not on which segment it falls into.
  if (p.rows <= kFewRows) return few_rows(p, weights, parallel, kernels);
  for (int64_t first = 0; first < p.rows; first += kLinearSegmentRows) {
    LinearParams segment = p;
    segment.rows = std::min(kLinearSegmentRows, p.rows - first);
    segment.x += first * p.depth;
    segment.y += first * p.width;
    many_rows(segment, weights, parallel, kernels);
  }
}

}  // namespace layerweave::cpu
