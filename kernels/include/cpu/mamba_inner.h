#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"
#include "parallel.h"

namespace layerweave::cpu {

/// All of a Mamba-1 mixer between in_proj and out_proj, with int8 projections:
///
///   x, z = xz;  u = causal_conv(x);  dt, B, C = x_proj(u), each normalised where its norm is given;
///   y = selective_scan(u, dt_proj(dt), B, C, z)
///
/// by the kernels of causal_conv.h, linear.h and selective_scan.h, whose words on padding, state and rounding hold here.
struct MambaInnerParams {
  int64_t batch;     // B
  int64_t tokens;    // T
  int64_t channels;  // I, at least 1
  int64_t states;    // N, 1..kSelectiveScanMaxStates
  int64_t dt_rank;   // R, at least 1
  int64_t kernel;    // K, 1..kCausalConvMaxKernel

  const float* xz;             // [B,T,2I]
  const float* conv_weight;    // [I,K]
  const float* conv_bias;      // [I], or null
  const int8_t* x_proj;        // [R + 2N,I]
  const float* x_proj_scales;  // [R + 2N]
  const float* dt_norm;        // [R], or null for no norm
  const float* b_norm;         // [N], or null
  const float* c_norm;         // [N], or null
  float dt_eps, b_eps, c_eps;
  const int8_t* dt_proj;        // [I,R]
  const float* dt_proj_scales;  // [I]
  const float* dt_bias;         // [I]
  const float* a_log;           // [I,N]
  const float* d_skip;          // [I]
  const int64_t* lengths;       // [B], 0..T

  const float* conv_state_in;  // [B,I,K-1]
  float* conv_state_out;       // may be conv_state_in
  const float* ssm_state_in;   // [B,I,N]
  float* ssm_state_out;        // may be ssm_state_in
  float* y;                    // [B,T,I], not overlapping xz

  void* scratch;  // mamba_inner_scratch bytes, aligned to 64
};

size_t mamba_inner_scratch(const MambaInnerParams& params);

/// Returns null, or what is wrong with the parameters; then nothing was written.
const char* mamba_inner(const MambaInnerParams& params, const Parallel& parallel, Isa isa);

}  // namespace layerweave::cpu
