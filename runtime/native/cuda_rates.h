#pragma once

#include "cuda_device.h"
#include "element.h"

namespace layerweave {

/** What a card reaches, on a session's own stream. */
struct CardRates {
  /** Read and written, added up. */
  double copy_bytes_per_second;
  /** Of a product of two square matrices of 8192 rows, accumulated in float32. */
  double gemm_operations_per_second;
};

/** The best of a few passes each. Takes 1 GiB of the card at most, and waits. @throws std::runtime_error in CUDA's words */
CardRates measure_card(CudaDevice& device, ElementType type);

}  // namespace layerweave
