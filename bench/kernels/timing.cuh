#pragma once

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "device.h"

namespace layerweave {

/// What a results file says of the run, and where it goes.
struct BenchOptions {
  std::string commit = "unknown", date = "unknown", driver = "unknown", json_path;

  /// The file, standard output where none is named, null where it can't be opened.
  std::FILE* open() const { return json_path.empty() ? stdout : std::fopen(json_path.c_str(), "w"); }
};

/// Ends the program with 2 and the usage on anything that isn't an option.
inline BenchOptions parse_options(const char* program, int argc, char** argv) {
  BenchOptions options;
  for (int i = 1; i < argc; i += 2) {
    const std::string option = argv[i];
    std::string* const value = option == "--commit"   ? &options.commit
                               : option == "--date"   ? &options.date
                               : option == "--driver" ? &options.driver
                               : option == "--json"   ? &options.json_path
                                                      : nullptr;
    if (value == nullptr || i + 1 == argc) {
      std::fprintf(stderr, "usage: %s [--commit HASH] [--date DATE] [--driver VERSION] [--json FILE]\n", program);
      std::exit(2);
    }
    *value = argv[i + 1];
  }
  return options;
}

inline constexpr int kSamples = 15;
// Inputs rotate through at least this much memory, several times any L2.
inline constexpr size_t kRotatingBytes = size_t{512} << 20;

class Events {
 public:
  Events() {
    CUDA_CHECK(cudaEventCreate(&start_));
    CUDA_CHECK(cudaEventCreate(&stop_));
  }
  ~Events() {
    CUDA_CHECK(cudaEventDestroy(start_));
    CUDA_CHECK(cudaEventDestroy(stop_));
  }
  Events(const Events&) = delete;
  Events& operator=(const Events&) = delete;

  /// Milliseconds of what `work` enqueues on the stream.
  float time(cudaStream_t stream, const std::function<void()>& work) {
    CUDA_CHECK(cudaEventRecord(start_, stream));
    work();
    CUDA_CHECK(cudaEventRecord(stop_, stream));
    CUDA_CHECK(cudaEventSynchronize(stop_));
    float ms = 0;
    CUDA_CHECK(cudaEventElapsedTime(&ms, start_, stop_));
    return ms;
  }

 private:
  cudaEvent_t start_, stop_;
};

inline double median(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  return samples[samples.size() / 2];
}

/// Median milliseconds of one launch, `launch(i)` being the i-th of a rotation.
/// Launches are replayed as a graph, so that gaps between them are the device's.
inline double median_ms(int launches, const std::function<void(int, cudaStream_t)>& launch) {
  cudaStream_t stream;
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  launch(0, stream);
  CUDA_CHECK(cudaStreamSynchronize(stream));
  cudaGraph_t graph;
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < launches; ++i) launch(i, stream);
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t replay;
  CUDA_CHECK(cudaGraphInstantiate(&replay, graph, 0));
  Events events;
  std::vector<double> samples;
  for (int i = 0; i < kSamples + 3; ++i) {
    const float ms = events.time(stream, [&] { CUDA_CHECK(cudaGraphLaunch(replay, stream)); });
    if (i >= 3) samples.push_back(ms / launches);
  }
  CUDA_CHECK(cudaGraphExecDestroy(replay));
  CUDA_CHECK(cudaGraphDestroy(graph));
  CUDA_CHECK(cudaStreamDestroy(stream));
  return median(samples);
}

__device__ inline uint32_t hash(uint64_t x) {
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdull;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ull;
  return static_cast<uint32_t>(x ^ (x >> 33));
}

template <typename T>
__global__ void fill_random(T* to, int64_t count, uint64_t seed, float scale, float shift) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    // A sum of four uniforms: near enough to normal for timing.
    float sum = -2.f;
    for (uint64_t k = 0; k < 4; ++k) sum += static_cast<float>(hash(seed + 4 * i + k) >> 8) * 0x1p-24f;
    to[i] = static_cast<T>(sum * 1.7f * scale + shift);
  }
}

inline DeviceBuffer random_buffer(int64_t count, DType dtype, float scale, float shift) {
  static uint64_t seed = 1;
  seed += uint64_t{1} << 40;
  DeviceBuffer buffer(count * size_of(dtype));
  if (dtype == DType::kFloat32) fill_random<<<1024, 256>>>(static_cast<float*>(buffer.data()), count, seed, scale, shift);
  if (dtype == DType::kFloat16) fill_random<<<1024, 256>>>(static_cast<__half*>(buffer.data()), count, seed, scale, shift);
  if (dtype == DType::kBFloat16)
    fill_random<<<1024, 256>>>(static_cast<__nv_bfloat16*>(buffer.data()), count, seed, scale, shift);
  CUDA_CHECK(cudaGetLastError());
  CUDA_CHECK(cudaDeviceSynchronize());
  return buffer;
}

__global__ void fill_codes(uint32_t* to, int64_t words, uint64_t seed) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < words; i += int64_t{gridDim.x} * blockDim.x)
    to[i] = hash(seed + static_cast<uint64_t>(i));
}

inline DeviceBuffer random_codes(int64_t bytes, uint64_t seed) {
  DeviceBuffer buffer(bytes);
  fill_codes<<<1024, 256>>>(static_cast<uint32_t*>(buffer.data()), bytes / 4, seed << 40);
  CUDA_CHECK(cudaGetLastError());
  CUDA_CHECK(cudaDeviceSynchronize());
  return buffer;
}

/// Bytes read and written per second by the device's own copy.
inline double copy_bandwidth() {
  constexpr size_t kBytes = size_t{2} << 30;
  DeviceBuffer from = random_buffer(kBytes / 4, DType::kFloat32, 1.f, 0.f);
  DeviceBuffer to(kBytes);
  cudaStream_t stream;
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  Events events;
  std::vector<double> samples;
  for (int i = 0; i < kSamples + 3; ++i) {
    const float ms = events.time(
        stream, [&] { CUDA_CHECK(cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice, stream)); });
    if (i >= 3) samples.push_back(ms);
  }
  CUDA_CHECK(cudaStreamDestroy(stream));
  return 2.0 * kBytes / (median(samples) * 1e-3);
}

}  // namespace layerweave
