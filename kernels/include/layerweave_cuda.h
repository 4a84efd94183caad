#pragma once

#include <stdint.h>

// What liblayerweave_ops_cuda exports beside ops, for a program that opens it at run time and is built without CUDA. Pointers
// are to the current device unless said otherwise.

#ifdef __cplusplus
extern "C" {
#endif

/// SampleRow of sample.cuh, which says what the fields mean.
struct LayerweaveSampleRow {
  double temperature;
  double top_p;
  double min_p;
  int64_t top_k;
  uint32_t state[4];
};

/// Bytes of workspace that layerweave_sample needs, 8-byte aligned.
int64_t layerweave_sample_workspace(int64_t batch, int64_t vocabulary);

/// Writes the start of the random sequence of a seed below 2^53, in host memory, to be a row's `state`.
void layerweave_seed_sampler(uint64_t seed, uint32_t* state);

/// Enqueues on a cudaStream_t the choice of a token for each row: `sample` of sample.cuh. A token is -1 where the logits are
/// not all numbers. Returns null, or what CUDA says is wrong, in memory that stays.
const char* layerweave_sample(int64_t batch, int64_t vocabulary, const float* logits, int64_t logits_row_stride, struct LayerweaveSampleRow* rows, int64_t* tokens,
                              void* workspace, void* stream);

#ifdef __cplusplus
}
#endif
