#include "causal_conv.cuh"

#include <algorithm>
#include <type_traits>

#include "device_math.cuh"

namespace layerweave {
namespace {

constexpr int kThreads = 128;
// Rows a thread loads before it uses the first: enough bytes in flight to cover
// the memory latency.
constexpr int kRowsInFlight = 8;
// Tokens one thread walks. It reads K-1 rows of its predecessor again, mostly
// from L2; longer walks leave too few blocks to fill the last wave.
constexpr int kTokensPerThread = 16;
// Channels of a thread. Eight would move 16 bytes at once but hold twice the
// registers, and fewer rows would be in flight on the whole.
constexpr int kWideWidth = 4;

// kWidth neighbouring elements, moved as words of at most 16 bytes.
template <typename T, int kWidth>
struct Elements {
  static constexpr int kWordBytes = std::min<int>(16, kWidth * sizeof(T));
  using Word = std::conditional_t<kWordBytes == 16, uint4, std::conditional_t<kWordBytes == 8, uint2, T>>;
  static constexpr int kWords = kWidth * sizeof(T) / sizeof(Word);
  Word word[kWords];

  __device__ __forceinline__ void load(const T* from) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) word[i] = reinterpret_cast<const Word*>(from)[i];
  }
  __device__ __forceinline__ void store(T* to) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) reinterpret_cast<Word*>(to)[i] = word[i];
  }
  __device__ __forceinline__ void unpack(float (&out)[kWidth]) const {
    T element[kWidth];
    __builtin_memcpy(element, word, sizeof element);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) out[i] = to_float(element[i]);
  }
  __device__ __forceinline__ void pack(const float (&in)[kWidth]) {
    T element[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) element[i] = from_float<T>(in[i]);
    __builtin_memcpy(word, element, sizeof element);
  }
};

/// A thread walks kTokensPerThread tokens of kWidth neighbouring channels with
/// the last K inputs in registers. The threads of the first tokens also write
/// the new state: they alone read the old one, so the two may share memory.
template <typename T, int kKernel, int kWidth>
__global__ void __launch_bounds__(kThreads)
    conv_kernel(const __grid_constant__ CausalConvParams params, unsigned channel_blocks) {
  constexpr int kPast = kKernel - 1;
  const int64_t channel = (int64_t{blockIdx.x % channel_blocks} * kThreads + threadIdx.x) * kWidth;
  if (channel >= params.channels) return;
  const int64_t batch = blockIdx.y;
  const int64_t first = int64_t{blockIdx.x / channel_blocks} * kTokensPerThread;
  const int64_t end = min(first + kTokensPerThread, params.tokens);
  const T* x = static_cast<const T*>(params.x) + batch * params.tokens * params.x_row_stride + channel;
  T* y = static_cast<T*>(params.y) + batch * params.tokens * params.y_row_stride + channel;
  const int64_t state_offset = (batch * params.channels + channel) * kPast;

  float weight[kWidth][kKernel], bias[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
#pragma unroll
    for (int k = 0; k < kKernel; ++k)
      weight[i][k] = to_float(static_cast<const T*>(params.weight)[(channel + i) * kKernel + k]);
    bias[i] = params.bias == nullptr ? 0.f : to_float(static_cast<const T*>(params.bias)[channel + i]);
  }

  // window[k] holds the input of token t - (K-1) + k.
  float window[kKernel][kWidth];
  if (first == 0) {
    const T* state_in = static_cast<const T*>(params.state_in) + state_offset;
    T past[kPast][kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i)
#pragma unroll
      for (int k = 0; k < kPast; ++k) {
        past[k][i] = state_in[i * kPast + k];
        window[k + 1][i] = to_float(past[k][i]);
      }
    const int64_t live_tokens =
        params.lengths == nullptr ? params.tokens : min(max(params.lengths[batch], int64_t{0}), params.tokens);
    T* state_out = static_cast<T*>(params.state_out) + state_offset;
#pragma unroll
    for (int k = 0; k < kPast; ++k) {
      const int64_t t = live_tokens - kPast + k;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        T value = t >= 0 ? x[t * params.x_row_stride + i] : from_float<T>(0.f);
        // The old state's element for this position, by a constant index.
#pragma unroll
        for (int p = 0; p < kPast; ++p)
          if (t == p - kPast) value = past[p][i];
        state_out[i * kPast + k] = value;
      }
    }
  } else {
#pragma unroll
    for (int k = 0; k < kPast; ++k) {
      Elements<T, kWidth> row;
      row.load(x + (first - kPast + k) * params.x_row_stride);
      row.unpack(window[k + 1]);
    }
  }

  for (int64_t t0 = first; t0 < end; t0 += kRowsInFlight) {
    Elements<T, kWidth> rows[kRowsInFlight];
#pragma unroll
    for (int r = 0; r < kRowsInFlight; ++r)
      if (t0 + r < end) rows[r].load(x + (t0 + r) * params.x_row_stride);
#pragma unroll
    for (int r = 0; r < kRowsInFlight; ++r) {
      if (t0 + r >= end) break;
#pragma unroll
      for (int k = 0; k < kPast; ++k)
#pragma unroll
        for (int i = 0; i < kWidth; ++i) window[k][i] = window[k + 1][i];
      rows[r].unpack(window[kPast]);
      float result[kWidth];
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        float sum = bias[i];
#pragma unroll
        for (int k = 0; k < kKernel; ++k) sum = fmaf(weight[i][k], window[k][i], sum);
        result[i] = silu(sum);
      }
      Elements<T, kWidth> packed;
      packed.pack(result);
      packed.store(y + (t0 + r) * params.y_row_stride);
    }
  }
}

template <typename T, int kKernel, int kWidth>
cudaError_t launch(const CausalConvParams& params, cudaStream_t stream) {
  const int64_t channel_blocks = (params.channels + kThreads * kWidth - 1) / (kThreads * kWidth);
  const int64_t spans = (params.tokens + kTokensPerThread - 1) / kTokensPerThread;
  const dim3 grid(static_cast<unsigned>(channel_blocks * spans), static_cast<unsigned>(params.batch));
  conv_kernel<T, kKernel, kWidth><<<grid, kThreads, 0, stream>>>(params, static_cast<unsigned>(channel_blocks));
  return cudaGetLastError();
}

template <typename T, int kKernel>
cudaError_t dispatch_width(const CausalConvParams& params, cudaStream_t stream) {
  const auto aligned = [](const void* pointer, int64_t row_stride) {
    return reinterpret_cast<uintptr_t>(pointer) % (kWideWidth * sizeof(T)) == 0 && row_stride % kWideWidth == 0;
  };
  // With few tokens there are too few such threads to fill a GPU.
  const bool wide = params.tokens >= kRowsInFlight && params.channels % kWideWidth == 0 &&
                    aligned(params.x, params.x_row_stride) && aligned(params.y, params.y_row_stride);
  return wide ? launch<T, kKernel, kWideWidth>(params, stream) : launch<T, kKernel, 1>(params, stream);
}

template <typename T>
cudaError_t dispatch(const CausalConvParams& params, cudaStream_t stream) {
  switch (params.kernel) {
    case 2:
      return dispatch_width<T, 2>(params, stream);
    case 3:
      return dispatch_width<T, 3>(params, stream);
    case 4:
      return dispatch_width<T, 4>(params, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace

cudaError_t causal_conv(const CausalConvParams& params, DType dtype, cudaStream_t stream) {
  const bool sizes = params.batch >= 1 && params.batch <= 65535 && params.tokens >= 1 && params.channels >= 1;
  const bool tensors = params.x != nullptr && params.y != nullptr && params.weight != nullptr &&
                       params.state_in != nullptr && params.state_out != nullptr;
  if (!sizes || !tensors) return cudaErrorInvalidValue;
  switch (dtype) {
    case DType::kFloat32:
      return dispatch<float>(params, stream);
    case DType::kFloat16:
      return dispatch<__half>(params, stream);
    case DType::kBFloat16:
      return dispatch<__nv_bfloat16>(params, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace layerweave
