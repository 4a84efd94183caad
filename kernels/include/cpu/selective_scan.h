#pragma once

#include <cstdint>

#include "isa.h"
#include "parallel.h"

namespace layerweave::cpu {

/// Mamba-1 selective scan (Gu & Dao 2023, arXiv 2312.00752, section 3.2, zero-order hold on A and Euler on B as in the
/// reference implementation), with carried state:
///
///   delta[t,d] = softplus(delta_raw[t,d] + delta_bias[d])
///   h[d,n]     = exp(delta[t,d] * A[d,n]) * h[d,n] + delta[t,d] * B[t,n] * u[t,d]
///   y[t,d]     = (sum_n C[t,n] * h[d,n] + D[d] * u[t,d]) * silu(z[t,d])
///
/// with A = -exp(A_log). Everything is float32 and token-major: element [b,t,i] of a tensor lies at
/// (b * tokens + t) * row_stride + i. Strides count elements.
///
/// At positions t >= lengths[b] delta is taken as 0: the state is unchanged whatever the other inputs hold there, and y is
/// the frozen state's output.
struct SelectiveScanParams {
  int64_t batch;     // B
  int64_t tokens;    // T
  int64_t channels;  // D
  int64_t states;    // N, 1..kSelectiveScanMaxStates

  const float* u;      // [B,T,D]
  const float* delta;  // [B,T,D], before bias and softplus
  const float* b;      // [B,T,N]
  const float* c;      // [B,T,N]
  const float* z;      // [B,T,D], or null for no gate
  float* y;            // [B,T,D], not overlapping an input
  int64_t u_row_stride;
  int64_t delta_row_stride;
  int64_t b_row_stride;
  int64_t c_row_stride;
  int64_t z_row_stride;
  int64_t y_row_stride;

  const float* a_log;       // [D,N]
  const float* d_skip;      // [D]
  const float* delta_bias;  // [D], or null for no bias
  const int64_t* lengths;   // [B], 0..T, or null for all = tokens

  const float* state_in;  // [B,D,N]
  float* state_out;       // [B,D,N], may be state_in
};

inline constexpr int64_t kSelectiveScanMaxStates = 128;

/// Returns null, or what is wrong with the parameters; then nothing was written.
const char* selective_scan(const SelectiveScanParams& params, const Parallel& parallel, Isa isa);

}  // namespace layerweave::cpu
