#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace layerweave {

inline constexpr float kLog2E = 1.4426950408889634f;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

/// Eight neighbouring elements, moved in units of 16 bytes.
template <typename T>
struct alignas(16) Vec8 {
  static constexpr int kUnits = 8 * sizeof(T) / 16;
  uint4 unit[kUnits];

  __device__ __forceinline__ void unpack(float (&out)[8]) const {
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      // A bfloat16 is the upper half of its float: one instruction each, where
      // the compiler's way through 16-bit registers takes two for the upper.
      const unsigned word[4] = {unit[0].x, unit[0].y, unit[0].z, unit[0].w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        out[2 * i] = __uint_as_float(word[i] << 16);
        out[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
      }
    } else {
      T element[8];
      __builtin_memcpy(element, unit, sizeof element);
#pragma unroll
      for (int i = 0; i < 8; ++i) out[i] = to_float(element[i]);
    }
  }
  __device__ __forceinline__ void pack(const float (&in)[8]) {
    T element[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) element[i] = from_float<T>(in[i]);
    __builtin_memcpy(unit, element, sizeof element);
  }
  __device__ __forceinline__ void store(T* to) const {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) reinterpret_cast<uint4*>(to)[i] = unit[i];
  }
  /// For rows that are not 16-byte aligned or end within the vector.
  __device__ __forceinline__ void load_partial(const T* from, int64_t count) {
    T element[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) element[i] = i < count ? from[i] : from_float<T>(0.f);
    __builtin_memcpy(unit, element, sizeof element);
  }
  __device__ __forceinline__ void store_partial(T* to, int64_t count) const {
    T element[8];
    __builtin_memcpy(element, unit, sizeof element);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i < count) to[i] = element[i];
  }
};

/// 2^x on the special-function unit; relative error 2^-22, denormals flushed.
__device__ __forceinline__ float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

__device__ __forceinline__ float reciprocal_fast(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

__device__ __forceinline__ float silu(float x) {
  return x * reciprocal_fast(1.f + exp2_fast(-x * kLog2E));
}

/// log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)). log1p(e)/e is a minimax
/// polynomial on [0, 1]: its relative error of 3e-7 also holds for the small
/// steps (delta ~ 1e-3) where log(1 + e) would lose digits, and it spares the
/// special-function unit, which the scan needs for its decays.
__device__ __forceinline__ float softplus(float x) {
  const float e = exp2_fast(-fabsf(x) * kLog2E);
  float p = -0.008539214730262756f;
  p = fmaf(p, e, 0.0440896600484848f);
  p = fmaf(p, e, -0.1076817661523819f);
  p = fmaf(p, e, 0.1774524599313736f);
  p = fmaf(p, e, -0.2449546456336975f);
  p = fmaf(p, e, 0.33275479078292847f);
  p = fmaf(p, e, -0.4999740421772003f);
  p = fmaf(p, e, 0.9999998211860657f);
  return fmaf(e, p, fmaxf(x, 0.f));
}

}  // namespace layerweave
