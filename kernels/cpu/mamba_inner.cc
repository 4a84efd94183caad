#include "cpu/mamba_inner.h"

#include <algorithm>
#include <cmath>

#include "carving.h"
#include "channel_tasks.h"
#include "cpu/causal_conv.h"
#include "cpu/linear.h"
#include "cpu/selective_scan.h"
#include "kernels.h"

namespace layerweave::cpu {

namespace {

int64_t rows_of(const MambaInnerParams& p) { return p.batch * p.tokens; }
/// Elements of a row of x_proj(u): dt, B and C.
int64_t projected_width(const MambaInnerParams& p) { return p.dt_rank + 2 * p.states; }

LinearParams x_proj(const MambaInnerParams& p, const float* u, float* projected, void* scratch) {
  return {rows_of(p), p.channels, projected_width(p), u, p.x_proj, p.x_proj_scales, nullptr, projected, scratch};
}
LinearParams dt_proj(const MambaInnerParams& p, const float* dt, float* delta, void* scratch) {
  return {rows_of(p), p.dt_rank, p.channels, dt, p.dt_proj, p.dt_proj_scales, nullptr, delta, scratch};
}

struct Scratch {
  float* u;          // [M,I]
  float* delta;      // [M,I]
  float* projected;  // [M,R + 2N]
  float* dt;         // [M,R], normalised
  char* product;     // of either projection, one after the other
  size_t bytes;
};

Scratch carve(const MambaInnerParams& p) {
  Scratch s{};
  Carving carving(p.scratch);
  // Rows of a call without tokens have addresses too.
  const int64_t rows = std::max<int64_t>(1, rows_of(p));
  carving.take(s.u, rows * p.channels);
  carving.take(s.delta, rows * p.channels);
  carving.take(s.projected, rows * projected_width(p));
  carving.take(s.dt, rows * p.dt_rank);
  carving.take(s.product, static_cast<int64_t>(std::max(linear_scratch(x_proj(p, nullptr, nullptr, nullptr)), linear_scratch(dt_proj(p, nullptr, nullptr, nullptr)))));
  s.bytes = carving.bytes();
  return s;
}

/// to = x, or its root mean square norm where there is one; `to` may be x.
void normalise(const float* x, const float* scale, float eps, int64_t count, float* to) {
  if (!scale) {
    if (to != x) std::copy_n(x, count, to);
    return;
  }
  float squares = 0;
  for (int64_t i = 0; i < count; ++i) squares += x[i] * x[i];
  const float factor = 1 / std::sqrt(squares / static_cast<float>(count) + eps);
  for (int64_t i = 0; i < count; ++i) to[i] = x[i] * factor * scale[i];
}

class Run {
 public:
  Run(const MambaInnerParams& params, const Parallel& parallel, Isa isa)
      : p_(params), parallel_(parallel), isa_(isa), kernels_(kernel_table(isa)), s_(carve(params)) {}

  void operator()() const {
    causal_conv({p_.batch, p_.tokens, p_.channels, p_.kernel, p_.xz, s_.u, 2 * p_.channels, p_.channels, p_.conv_weight, p_.conv_bias, p_.lengths, p_.conv_state_in, p_.conv_state_out},
                parallel_, isa_);
    linear(x_proj(p_, s_.u, s_.projected, s_.product), parallel_, isa_);
    constexpr int64_t kTaskRows = 64;
    const int64_t rows = rows_of(p_);
    parallel_for(parallel_, (rows + kTaskRows - 1) / kTaskRows, [&](int64_t task) {
      for (int64_t m = task * kTaskRows; m < std::min(rows, (task + 1) * kTaskRows); ++m) normalise_row(m);
    });
    if (rows <= kFewRows) return project_and_scan();
    linear(dt_proj(p_, s_.dt, s_.delta, s_.product), parallel_, isa_);
    selective_scan(scan(), parallel_, isa_);
  }

 private:
  SelectiveScanParams scan() const {
    const int64_t width = projected_width(p_);
    const float* b = s_.projected + p_.dt_rank;
    return {p_.batch, p_.tokens, p_.channels, p_.states, s_.u, s_.delta, b, b + p_.states, p_.xz + p_.channels, p_.y, p_.channels, p_.channels, width, width, 2 * p_.channels, p_.channels,
            p_.a_log, p_.d_skip, p_.dt_bias, p_.lengths, p_.ssm_state_in, p_.ssm_state_out};
  }

  void normalise_row(int64_t m) const {
    float* row = s_.projected + m * projected_width(p_);
    normalise(row, p_.dt_norm, p_.dt_eps, p_.dt_rank, s_.dt + m * p_.dt_rank);
    float* b = row + p_.dt_rank;
    normalise(b, p_.b_norm, p_.b_eps, p_.states, b);
    normalise(b + p_.states, p_.c_norm, p_.c_eps, p_.states, b + p_.states);
  }

  /// A channel's delta depends on no other channel's, so a task computes those it scans: to wait for all of them would take as
  /// long as few rows' products.
  void project_and_scan() const {
    const int64_t depth = p_.dt_rank, rows = rows_of(p_);
    int16_t* values = reinterpret_cast<int16_t*>(s_.product);
    const RoundedRows dt = {values, reinterpret_cast<float*>(values + rows * rounded_depth(depth))};
    for (int64_t m = 0; m < rows; ++m) kernels_.round_row(s_.dt + m * depth, depth, dt.from(m, depth));
    const WeightMatrix weights = {WeightType::kInt8, p_.dt_proj, p_.dt_proj_scales};
    const SelectiveScanParams scanned = scan();
    for_channels(parallel_, p_.batch, p_.channels, kMaxTaskStates / p_.states / 64 * 64, [&](int64_t row, int64_t begin, int64_t end) {
      const int64_t first = row * p_.tokens;
      kernels_.dot_rounded(weights, depth, begin, end, dt.from(first, depth), p_.tokens, s_.delta + first * p_.channels, p_.channels);
      kernels_.scan_channels(scanned, row, begin, end);
    });
  }

  const MambaInnerParams& p_;
  const Parallel& parallel_;
  const Isa isa_;
  const KernelTable& kernels_;
  const Scratch s_;
};

}  // namespace

size_t mamba_inner_scratch(const MambaInnerParams& p) {
  MambaInnerParams measured = p;
  measured.scratch = nullptr;
  return carve(measured).bytes;
}

const char* mamba_inner(const MambaInnerParams& p, const Parallel& parallel, Isa isa) {
  if (p.dt_rank < 1) return "dtRank must be at least 1";
  if (p.kernel < 1 || p.kernel > kCausalConvMaxKernel) return "dConv must be 1 to 16";
  if (p.states < 1 || p.states > kSelectiveScanMaxStates) return "dState must be 1 to 128";
  for (int64_t row = 0; row < p.batch; ++row)
    if (p.lengths[row] < 0 || p.lengths[row] > p.tokens) return "lengths must be 0 to T";
  Run(p, parallel, isa)();
  return nullptr;
}

}  // namespace layerweave::cpu
