#include <cstddef>

#include "layerweave_cuda.h"
#include "sample.cuh"

namespace {

using layerweave::SampleParams;
using layerweave::SampleRow;

static_assert(sizeof(LayerweaveSampleRow) == sizeof(SampleRow) && offsetof(LayerweaveSampleRow, temperature) == offsetof(SampleRow, temperature) &&
                  offsetof(LayerweaveSampleRow, top_p) == offsetof(SampleRow, top_p) && offsetof(LayerweaveSampleRow, min_p) == offsetof(SampleRow, min_p) &&
                  offsetof(LayerweaveSampleRow, top_k) == offsetof(SampleRow, top_k) && offsetof(LayerweaveSampleRow, state) == offsetof(SampleRow, state),
              "the C struct must be the kernel's");

SampleParams sizes(int64_t batch, int64_t vocabulary) {
  SampleParams params = {};
  params.batch = batch;
  params.vocabulary = vocabulary;
  return params;
}

}  // namespace

#define LAYERWEAVE_EXPORT extern "C" __attribute__((visibility("default")))

LAYERWEAVE_EXPORT int64_t layerweave_sample_workspace(int64_t batch, int64_t vocabulary) { return layerweave::sample_workspace(sizes(batch, vocabulary)); }

LAYERWEAVE_EXPORT void layerweave_seed_sampler(uint64_t seed, uint32_t* state) {
  uint32_t start[4];
  layerweave::seed_sampler(seed, start);
  for (int i = 0; i < 4; ++i) state[i] = start[i];
}

LAYERWEAVE_EXPORT const char* layerweave_sample(int64_t batch, int64_t vocabulary, const float* logits, int64_t logits_row_stride, LayerweaveSampleRow* rows, int64_t* tokens,
                                                void* workspace, void* stream) {
  SampleParams params = sizes(batch, vocabulary);
  params.logits = logits;
  params.logits_row_stride = logits_row_stride;
  params.rows = reinterpret_cast<SampleRow*>(rows);
  params.tokens = tokens;
  params.workspace = workspace;
  const cudaError_t status = layerweave::sample(params, static_cast<cudaStream_t>(stream));
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}
