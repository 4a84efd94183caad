#include "select_tokens.cuh"

#include <limits>

namespace layerweave {
namespace {

constexpr int kThreads = 256;

// A block copies a row. `units` counts the row's `Unit`s.
template <typename Unit>
__global__ void __launch_bounds__(kThreads) select_kernel(SelectTokensParams params, int64_t units) {
  const int64_t row = blockIdx.x, index = params.indices[row];
  const int64_t token = index < 0 ? 0 : index < params.tokens ? index : params.tokens - 1;
  const Unit* from = static_cast<const Unit*>(params.x) + (row / params.selected * params.tokens + token) * units;
  Unit* to = static_cast<Unit*>(params.y) + row * units;
  for (int64_t i = threadIdx.x; i < units; i += kThreads) to[i] = from[i];
}

}  // namespace

cudaError_t select_tokens(const SelectTokensParams& params, cudaStream_t stream) {
  const bool sizes = params.batch >= 1 && params.tokens >= 1 && params.selected >= 1 && params.row_bytes >= 1 &&
                     params.selected <= std::numeric_limits<int32_t>::max() / params.batch;
  if (!sizes || params.x == nullptr || params.indices == nullptr || params.y == nullptr) return cudaErrorInvalidValue;
  const dim3 grid(static_cast<unsigned>(params.batch * params.selected));
  const auto aligned16 = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  if (params.row_bytes % 16 == 0 && aligned16(params.x) && aligned16(params.y))
    select_kernel<uint4><<<grid, kThreads, 0, stream>>>(params, params.row_bytes / 16);
  else
    select_kernel<unsigned char><<<grid, kThreads, 0, stream>>>(params, params.row_bytes);
  return cudaGetLastError();
}

}  // namespace layerweave
