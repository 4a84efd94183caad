#include "cuda_rates.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace layerweave {

namespace {

constexpr size_t kCopied = size_t{512} << 20;
constexpr int kExtent = 8192;
constexpr int kPasses = 5;
/** Per pass, so that what starting and waiting take does not count. */
constexpr int kRepetitions = 20;

/** Seconds of one of `work`'s repetitions in the fastest pass; the first pass warms up. */
template <typename Work>
double fastest(CudaDevice& device, Work work) {
  double best = 0;
  for (int pass = 0; pass <= kPasses; pass++) {
    device.wait();
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kRepetitions; i++) work();
    device.wait();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / kRepetitions;
    if (pass == 1 || (pass > 1 && seconds < best)) best = seconds;
  }
  return best;
}

double copy_rate(CudaDevice& device) {
  const DeviceMemory from(device, kCopied), to(device, kCopied);
  return 2.0 * static_cast<double>(kCopied) / fastest(device, [&] { device.copy(to.data(), from.data(), kCopied); });
}

/** Fills a matrix with numbers that repeat nothing: products of zeros draw less power, and run faster. */
void fill(CudaDevice& device, const DeviceMemory& matrix, ElementType type, size_t bytes) {
  constexpr size_t kDistinct = size_t{1} << 20;
  std::vector<float> numbers(kDistinct);
  uint32_t drawn = 1;
  for (float& number : numbers) {
    drawn = drawn * 1664525u + 1013904223u;
    number = static_cast<float>(static_cast<int32_t>(drawn)) / 2147483648.0f;
  }
  const size_t block = kDistinct * element_bytes(type);
  std::vector<std::byte> stored(block);
  from_float32(type, numbers.data(), stored.data(), kDistinct);
  for (size_t done = 0; done < bytes; done += block) device.copy(matrix.data() + done, stored.data(), std::min(block, bytes - done));
  device.wait();
}

/** cuBLAS, as ONNX Runtime's provider uses it. */
class Blas {
 public:
  explicit Blas(CudaDevice& device) : device_(device) {
    const CudaLibrary& cuda = device.cuda();
    const std::shared_lock<std::shared_mutex> lock(cuda.calls());
    destroy_ = reinterpret_cast<int (*)(void*)>(cuda.symbol("cublasDestroy_v2"));
    product_ = reinterpret_cast<Product>(cuda.symbol("cublasGemmEx"));
    check(reinterpret_cast<int (*)(void**)>(cuda.symbol("cublasCreate_v2"))(&handle_), "cublasCreate");
    const int status = reinterpret_cast<int (*)(void*, void*)>(cuda.symbol("cublasSetStream_v2"))(handle_, device.stream());
    if (status != 0) destroy_(handle_);
    check(status, "cublasSetStream");
  }
  ~Blas() {
    const std::shared_lock<std::shared_mutex> lock(device_.cuda().calls());
    destroy_(handle_);
  }
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;

  /** c = aᵀ · b, all square. */
  void multiply(const DeviceMemory& a, const DeviceMemory& b, const DeviceMemory& c, ElementType type) const {
    // CUBLAS_OP_T and _N, CUDA_R_16BF and _16F, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT
    const int real = type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 ? 14 : 2;
    const float one = 1, zero = 0;
    const std::shared_lock<std::shared_mutex> lock(device_.cuda().calls());
    check(product_(handle_, 1, 0, kExtent, kExtent, kExtent, &one, a.data(), real, kExtent, b.data(), real, kExtent, &zero, c.data(), real, kExtent, 68, -1), "cublasGemmEx");
  }

 private:
  using Product = int (*)(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int, const void*, void*, int, int, int, int);

  static void check(int status, const char* call) {
    if (status != 0) throw std::runtime_error(std::string(call) + " says " + std::to_string(status));
  }

  CudaDevice& device_;
  void* handle_ = nullptr;
  int (*destroy_)(void*);
  Product product_;
};

double gemm_rate(CudaDevice& device, ElementType type) {
  const size_t bytes = size_t{kExtent} * kExtent * element_bytes(type);
  const DeviceMemory a(device, bytes), b(device, bytes), c(device, bytes);
  fill(device, a, type, bytes);
  fill(device, b, type, bytes);
  const Blas blas(device);
  return 2.0 * kExtent * kExtent * kExtent / fastest(device, [&] { blas.multiply(a, b, c, type); });
}

}  // namespace

CardRates measure_card(CudaDevice& device, ElementType type) { return {copy_rate(device), gemm_rate(device, type)}; }

}  // namespace layerweave
