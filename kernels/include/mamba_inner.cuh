#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"
#include "packed_weights.h"

namespace layerweave {

/// What a Mamba-1 mixer (Gu & Dao 2023) does between its input and its output
/// projection, with carried state; norms as in Jamba (Lieber et al. 2024):
///
///   u         = silu(conv(x))                             causal_conv.cuh
///   dt, b, c  = x_proj u, split at R and R + N
///   dt, b, c  = rmsnorm(dt), rmsnorm(b), rmsnorm(c)       where there are norms
///   y         = scan(u, dt_proj dt, b, c, gate)           selective_scan.cuh
///
/// Rows are token-major, b * tokens + t. Positions t >= lengths[b] leave both
/// states as they are; y holds some finite value there if x does.
struct MambaInnerParams {
  int64_t batch;     // B, 1..65535
  int64_t tokens;    // T >= 1, B * T <= 2^26
  int64_t channels;  // I, a multiple of 8
  int64_t states;    // N, 1..kSelectiveScanMaxStates
  int64_t dt_rank;   // R, 1..2^20
  int64_t kernel;    // K, 2..4
  PackedType weights;  // of x_proj and dt_proj

  const void* xz;           // [B*T,2I]: x, then the gate
  const void* conv_weight;  // [I,K]
  const void* conv_bias;    // [I], or null
  const void* x_proj;       // packed [R+2N,I]
  const float* x_proj_scale;  // int8: [32 * packed_panels(R+2N)]
  const void* dt_norm;      // [R]; all three norms or, for none, all null
  const void* b_norm;       // [N]
  const void* c_norm;       // [N]
  float dt_eps, b_eps, c_eps;
  const void* dt_proj;      // packed [I,R]
  const float* dt_proj_scale;  // int8: [32 * packed_panels(I)]
  const float* dt_bias;     // [I], or null
  const float* a_log;       // [I,N]
  const float* d_skip;      // [I]
  const int64_t* lengths;   // [B] on the device, or null for all = tokens

  const void* conv_state_in;   // [B,I,K-1]
  void* conv_state_out;        // may be conv_state_in
  const float* ssm_state_in;   // [B,I,N]
  float* ssm_state_out;        // may be ssm_state_in
  void* y;                     // [B*T,I], not overlapping xz

  void* workspace;     // mamba_inner_workspace bytes
  uint32_t* arrivals;  // [mamba_inner_arrivals], zero before the first call; every call leaves them zero
};

/// Bytes of workspace, of the size fields and `weights` alone.
int64_t mamba_inner_workspace(const MambaInnerParams& params);
/// Counters, of the size fields alone.
int64_t mamba_inner_arrivals(const MambaInnerParams& params);

/// Enqueues the layer's inside on `stream`; tensors that are not float32 or
/// packed int8 have the given dtype, bfloat16 or float16, and all are 16-byte
/// aligned. One token of up to 16 sequences takes two launches where their rows of
/// R + 2N fit in 30 KB of shared memory (16 sequences: R + 2N up to about 300),
/// anything else the convolution, both projections and the scan one after another.
/// Returns
/// cudaErrorInvalidValue for anything other than the above or a missing tensor,
/// otherwise the launch's error.
cudaError_t mamba_inner(const MambaInnerParams& params, DType dtype, cudaStream_t stream);

}  // namespace layerweave
