#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace layerweave {

/// The rows of the tokens that a run asks about:
///
///   y[b * L + l] = x[b * T + indices[b,l]]
///
/// An index outside [0, T) is taken as the nearest within.
struct SelectTokensParams {
  int64_t batch;      // B >= 1
  int64_t tokens;     // T >= 1
  int64_t selected;   // L >= 1, B * L up to 2^31 - 1
  int64_t row_bytes;  // of x and y

  const void* x;           // [B*T, row_bytes]
  const int64_t* indices;  // [B,L] on the device
  void* y;                 // [B*L, row_bytes], not overlapping x
};

/// Enqueues one launch on `stream`. Returns cudaErrorInvalidValue for sizes
/// outside the ranges above or a missing tensor, otherwise the launch's error.
cudaError_t select_tokens(const SelectTokensParams& params, cudaStream_t stream);

}  // namespace layerweave
