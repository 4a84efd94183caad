#pragma once

#include <string>
#include <vector>

#include "cuda_library.h"
#include "ort_library.h"

namespace layerweave {

struct CudaFindings {
  std::vector<CudaCard> cards;
  /** The CUDA runtime that was loaded. */
  std::string runtime;
  /** Of the card that was asked about; 0 when there is no such card. */
  size_t free_bytes = 0;
};

/**
 * Whether models can run on a card, and what it offers.
 * @throws CudaUnavailable "no-driver", "no-libraries", "no-provider", "other-provider" (of another release than the core library)
 */
CudaFindings probe_cuda(const OrtLibrary& ort, int ordinal);

}  // namespace layerweave
