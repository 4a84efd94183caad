#include "linear_int8.cuh"

#include "packed_panel.cuh"

namespace layerweave {
namespace {

template <typename T>
__global__ void __launch_bounds__(kPanelThreads, kPanelBlocksPerProcessor)
    linear_kernel(const __grid_constant__ LinearInt8Params params, ColumnSplit split) {
  __shared__ PanelShared shared;
  const int64_t panel = blockIdx.x, part = blockIdx.y;
  const int first = static_cast<int>(part) * split.slice, end = min(first + split.slice, split.chunks);
  const T* x = static_cast<const T*>(params.x);
  const uint4* weights = static_cast<const uint4*>(params.weight) + panel * split.chunks * kLoadsPerChunk<PackedType::kInt8> * 32;
  const int tokens = static_cast<int>(params.tokens);
  block_multiply<T, PackedType::kInt8>(weights, first, end, params.columns, tokens,
                                       [&](int n) { return x + n * params.columns; }, shared);
  const auto finish = [&](int64_t row, int n, float sum) {
    sum *= params.scale[row];
    if (params.bias != nullptr) sum += to_float(static_cast<const T*>(params.bias)[row]);
    static_cast<T*>(params.y)[n * params.rows + row] = from_float<T>(sum);
  };
  for (int i = threadIdx.x; i < tokens * kPanelRows; i += kPanelThreads) {
    const int n = i / kPanelRows, r = i % kPanelRows;
    const int64_t row = panel * kPanelRows + r;
    if (row >= params.rows) continue;
    const float sum = shared.total(r / 16, r % 16, n);
    if (split.count == 1)
      finish(row, n, sum);
    else
      params.partial[(part * tokens + n) * params.rows + row] = sum;
  }
  if (split.count == 1 || !last_to_arrive(params.arrivals + panel, split.count)) return;
  for (int i = threadIdx.x; i < tokens * kPanelRows; i += kPanelThreads) {
    const int n = i / kPanelRows;
    const int64_t row = panel * kPanelRows + i % kPanelRows;
    if (row >= params.rows) continue;
    float sum = 0;
    for (int p = 0; p < split.count; ++p) sum += __ldcg(&params.partial[(int64_t{p} * tokens + n) * params.rows + row]);
    finish(row, n, sum);
  }
}

bool sizes_allowed(const LinearInt8Params& p) {
  return p.tokens >= 1 && p.tokens <= kLinearMaxTokens && p.rows >= 1 && p.rows < int64_t{1} << 31 && p.columns >= 8 &&
         p.columns % 8 == 0 && p.columns < int64_t{1} << 31;
}

}  // namespace

int64_t linear_int8_workspace(const LinearInt8Params& params) {
  const ColumnSplit split = split_columns(packed_panels(params.rows), params.columns, PackedType::kInt8);
  return split.count == 1 ? 0 : int64_t{split.count} * params.tokens * params.rows * static_cast<int64_t>(sizeof(float));
}

cudaError_t linear_int8(const LinearInt8Params& params, DType dtype, cudaStream_t stream) {
  if (!sizes_allowed(params) || dtype == DType::kFloat32) return cudaErrorInvalidValue;
  if (params.weight == nullptr || params.scale == nullptr || params.x == nullptr || params.y == nullptr || params.arrivals == nullptr ||
      (params.partial == nullptr && linear_int8_workspace(params) > 0) || !aligned16(params.weight) || !aligned16(params.x))
    return cudaErrorInvalidValue;
  const int64_t panels = packed_panels(params.rows);
  const ColumnSplit split = split_columns(panels, params.columns, PackedType::kInt8);
  const dim3 grid(static_cast<unsigned>(panels), static_cast<unsigned>(split.count));
  if (dtype == DType::kBFloat16)
    linear_kernel<__nv_bfloat16><<<grid, kPanelThreads, 0, stream>>>(params, split);
  else
    linear_kernel<__half><<<grid, kPanelThreads, 0, stream>>>(params, split);
  return cudaGetLastError();
}

}  // namespace layerweave
