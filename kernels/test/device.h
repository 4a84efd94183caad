#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "dtype.h"

#define CUDA_CHECK(call)                                                                                    \
  do {                                                                                                      \
    const cudaError_t cuda_check_status = (call);                                                           \
    if (cuda_check_status != cudaSuccess) {                                                                 \
      std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(cuda_check_status)); \
      std::exit(1);                                                                                         \
    }                                                                                                       \
  } while (0)

namespace layerweave {

// What CTest takes as "skipped".
inline constexpr int kExitSkipped = 77;

/// Ends the program with kExitSkipped, saying why, where no device can be used.
inline void require_device(const char* program) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return;
  std::printf("%s: skipped, no CUDA device: %s\n", program,
              status == cudaSuccess ? "none is installed" : cudaGetErrorString(status));
  std::exit(kExitSkipped);
}

class DeviceBuffer {
 public:
  explicit DeviceBuffer(size_t bytes) : bytes_(bytes) { CUDA_CHECK(cudaMalloc(&data_, bytes == 0 ? 1 : bytes)); }
  ~DeviceBuffer() {
    if (data_ != nullptr) CUDA_CHECK(cudaFree(data_));
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept : data_(other.data_), bytes_(other.bytes_) { other.data_ = nullptr; }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(DeviceBuffer&&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  void fill(int byte) { CUDA_CHECK(cudaMemset(data_, byte, bytes_)); }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

inline size_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

inline const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
  }
  return "?";
}

/// Host values rounded to `dtype` and laid out as the device reads them.
inline std::vector<unsigned char> encode(const std::vector<float>& values, DType dtype) {
  std::vector<unsigned char> bytes(values.size() * size_of(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    unsigned char* to = bytes.data() + i * size_of(dtype);
    if (dtype == DType::kFloat32) {
      std::memcpy(to, &values[i], 4);
    } else if (dtype == DType::kFloat16) {
      const __half half = __float2half_rn(values[i]);
      std::memcpy(to, &half, 2);
    } else {
      const __nv_bfloat16 bfloat = __float2bfloat16_rn(values[i]);
      std::memcpy(to, &bfloat, 2);
    }
  }
  return bytes;
}

inline std::vector<float> decode(const std::vector<unsigned char>& bytes, DType dtype) {
  std::vector<float> values(bytes.size() / size_of(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    const unsigned char* from = bytes.data() + i * size_of(dtype);
    if (dtype == DType::kFloat32) {
      std::memcpy(&values[i], from, 4);
    } else if (dtype == DType::kFloat16) {
      __half half;
      std::memcpy(&half, from, 2);
      values[i] = __half2float(half);
    } else {
      __nv_bfloat16 bfloat;
      std::memcpy(&bfloat, from, 2);
      values[i] = __bfloat162float(bfloat);
    }
  }
  return values;
}

inline DeviceBuffer upload(const std::vector<unsigned char>& bytes) {
  DeviceBuffer buffer(bytes.size());
  CUDA_CHECK(cudaMemcpy(buffer.data(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
  return buffer;
}

template <typename T>
DeviceBuffer upload_values(const std::vector<T>& values) {
  DeviceBuffer buffer(values.size() * sizeof(T));
  CUDA_CHECK(cudaMemcpy(buffer.data(), values.data(), buffer.bytes(), cudaMemcpyHostToDevice));
  return buffer;
}

inline std::vector<unsigned char> download(const DeviceBuffer& buffer) {
  std::vector<unsigned char> bytes(buffer.bytes());
  CUDA_CHECK(cudaMemcpy(bytes.data(), buffer.data(), bytes.size(), cudaMemcpyDeviceToHost));
  return bytes;
}

}  // namespace layerweave
