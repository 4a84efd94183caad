#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"
#include "packed_weights.h"

namespace layerweave {

inline constexpr int64_t kLinearMaxTokens = 16;

/// y = (x * codes^T) * scale + bias, of a few tokens, the weights read once.
/// Sums are float32 in a fixed order, so results repeat bit for bit.
struct LinearInt8Params {
  int64_t tokens;   // M, 1..kLinearMaxTokens
  int64_t rows;     // N, outputs
  int64_t columns;  // K, inputs, a multiple of 8

  const void* weight;  // packed int8 [N,K], 16-byte aligned
  const float* scale;  // [32 * packed_panels(N)]
  const void* bias;    // [N], or null
  const void* x;       // [M,K], 16-byte aligned
  void* y;             // [M,N], not overlapping x

  float* partial;      // linear_int8_workspace bytes
  uint32_t* arrivals;  // [packed_panels(N)], zero before the first call; every call leaves them zero
};

/// Bytes of `partial`, of the size fields alone.
int64_t linear_int8_workspace(const LinearInt8Params& params);

/// Enqueues one launch on `stream`; x, y and bias are bfloat16 or float16.
/// Returns cudaErrorInvalidValue for anything other than the above or a missing
/// tensor, otherwise the launch's error.
cudaError_t linear_int8(const LinearInt8Params& params, DType dtype, cudaStream_t stream);

}  // namespace layerweave
