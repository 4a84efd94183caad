#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"
#include "packed_weights.h"

namespace layerweave {

/// y = x * w^T + bias with packed weights:
///
///   y[m,n] = scale[n] * sum_k weight[n,k] * x[m,k] + bias[n]
///
/// Sums are float32 in a fixed order, so results repeat bit for bit.
struct LinearPackedParams {
  int64_t tokens;   // M, 1..2^26
  int64_t rows;     // N >= 1, outputs
  int64_t columns;  // K, inputs, a multiple of 8
  PackedType weights;

  const void* weight;  // packed [N,K], 16-byte aligned
  const float* scale;  // int8: [32 * packed_panels(N)]
  const void* bias;    // [N], or null
  const void* x;       // [M,K], 16-byte aligned; row m at m * x_row_stride
  void* y;             // [M,N], not overlapping x; row m at m * y_row_stride
  int64_t x_row_stride;  // elements, a multiple of 8
  int64_t y_row_stride;  // elements

  void* workspace;     // linear_packed_workspace bytes, 16-byte aligned
  uint32_t* arrivals;  // [linear_packed_arrivals], zero before the first call; every call leaves them zero
};

/// Bytes of workspace, of the size fields and `weights` alone.
int64_t linear_packed_workspace(const LinearPackedParams& params);
/// Counters, of the size fields alone.
int64_t linear_packed_arrivals(const LinearPackedParams& params);

/// Enqueues the product on `stream`; x, y, bias and 16-bit weights have the given
/// dtype, bfloat16 or float16. Up to 16 tokens read the weights once, in one
/// launch; many run on the tensor cores of a card of compute capability 9.0 (two
/// launches), on others by linear_packed_slices. Returns cudaErrorInvalidValue for
/// anything other than the above or a missing tensor, otherwise the launch's
/// error.
cudaError_t linear_packed(const LinearPackedParams& params, DType dtype, cudaStream_t stream);

/// What linear_packed does without such tensor cores: 16 tokens a launch.
cudaError_t linear_packed_slices(const LinearPackedParams& params, DType dtype, cudaStream_t stream);

}  // namespace layerweave
