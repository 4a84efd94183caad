#include "residual_norm.cuh"

#include <algorithm>

#include "device_math.cuh"
#include "early_launch.cuh"

namespace layerweave {
namespace {

constexpr int kMostThreads = 1024;

/// A block has a token. A thread keeps its first 8 elements, which are all up to
/// a width of 8192, and works the others out twice.
template <typename T>
__global__ void __launch_bounds__(kMostThreads) norm_kernel(const __grid_constant__ ResidualNormParams params) {
  let_next_kernel_start();
  __shared__ float squares_of[kMostThreads / 32];
  const int units = static_cast<int>(params.width / 8), threads = static_cast<int>(blockDim.x), own = static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.x * params.width;
  const auto unit_of = [](const void* tensor, int64_t at) { return *reinterpret_cast<const uint4*>(static_cast<const T*>(tensor) + at); };
  const auto scale_of = [&](int unit) {
    Vec8<T> scale;
    scale.unit[0] = unit < units ? unit_of(params.scale, unit * 8) : uint4{};
    return scale;
  };
  const auto sum_of = [&](int unit) {
    Vec8<T> x, residual;
    x.unit[0] = unit_of(params.x, row + unit * 8);
    residual.unit[0] = unit_of(params.residual, row + unit * 8);
    float a[8], b[8];
    x.unpack(a);
    residual.unpack(b);
#pragma unroll
    for (int i = 0; i < 8; ++i) a[i] += b[i];
    x.pack(a);
    return x;
  };
  const Vec8<T> own_scale = scale_of(own);
  wait_for_kernels_before();
  float squares = 0;
  const auto add = [&](int unit, const Vec8<T>& sum) {
    sum.store(static_cast<T*>(params.sum) + row + unit * 8);
    float value[8];
    sum.unpack(value);
#pragma unroll
    for (int i = 0; i < 8; ++i) squares = fmaf(value[i], value[i], squares);
  };
  Vec8<T> own_sum{};
  if (own < units) add(own, own_sum = sum_of(own));
  for (int unit = own + threads; unit < units; unit += threads) add(unit, sum_of(unit));
#pragma unroll
  for (int step = 16; step > 0; step /= 2) squares += __shfl_xor_sync(~0u, squares, step);
  if (own % 32 == 0) squares_of[own / 32] = squares;
  __syncthreads();
  // Every warp adds up all of them.
  squares = own % 32 < threads / 32 ? squares_of[own % 32] : 0.f;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) squares += __shfl_xor_sync(~0u, squares, step);
  const float factor = rsqrtf(squares / static_cast<float>(params.width) + params.epsilon);
  const auto put = [&](int unit, const Vec8<T>& sum, const Vec8<T>& scale) {
    float value[8], by[8];
    sum.unpack(value);
    scale.unpack(by);
#pragma unroll
    for (int i = 0; i < 8; ++i) value[i] = value[i] * factor * by[i];
    Vec8<T> y;
    y.pack(value);
    y.store(static_cast<T*>(params.y) + row + unit * 8);
  };
  if (own < units) put(own, own_sum, own_scale);
  for (int unit = own + threads; unit < units; unit += threads) put(unit, sum_of(unit), scale_of(unit));
}

template <typename T>
cudaError_t launch(const ResidualNormParams& params, cudaStream_t stream) {
  const unsigned threads = static_cast<unsigned>(std::min<int64_t>((params.width / 8 + 31) / 32 * 32, kMostThreads));
  return launch_early(norm_kernel<T>, dim3(static_cast<unsigned>(params.tokens)), threads, 0, stream, params);
}

}  // namespace

cudaError_t residual_norm(const ResidualNormParams& params, DType dtype, cudaStream_t stream) {
  const ResidualNormParams& p = params;
  if (p.tokens < 1 || p.tokens > int64_t{1} << 26 || p.width < 8 || p.width % 8 != 0 || p.width > 1 << 20 || dtype == DType::kFloat32) return cudaErrorInvalidValue;
  for (const void* tensor : {p.x, p.residual, p.scale, static_cast<const void*>(p.y), static_cast<const void*>(p.sum)})
    if (tensor == nullptr || reinterpret_cast<uintptr_t>(tensor) % 16 != 0) return cudaErrorInvalidValue;
  return dtype == DType::kBFloat16 ? launch<__nv_bfloat16>(params, stream) : launch<__half>(params, stream);
}

}  // namespace layerweave
