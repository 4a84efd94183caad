// Times one model on the function bodies and on the registered kernels, in turns, or the limits of the machine.
//
//   op_bench limits <threads>
//   op_bench <libonnxruntime> <liblayerweave_ops> <model.onnx> <threads> <seconds> [input=value …]
//
// Float inputs are random, integer ones hold the given value. An output present_x shares the buffer of input past_x on the
// kernels. Prints the median milliseconds of each as JSON, by the clock and of
// computing.
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <ctime>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "onnxruntime_c_api.h"

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Seconds that this process has computed: on a machine that others use too, one thread's time by this clock is what counts.
double cpu_seconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

const OrtApi* api;

void check(OrtStatus* status) {
  if (!status) return;
  std::fprintf(stderr, "%s\n", api->GetErrorMessage(status));
  std::exit(1);
}

struct Tensor {
  std::vector<float> floats;
  std::vector<int64_t> integers;
  OrtValue* value = nullptr;
};

class Bound {
 public:
  Bound(OrtEnv* env, const char* path, const char* ops, int threads, const std::map<std::string, int64_t>& integers) {
    OrtSessionOptions* options;
    check(api->CreateSessionOptions(&options));
    check(api->SetIntraOpNumThreads(options, threads));
    check(api->SetSessionLogSeverityLevel(options, 3));
    // The threads of one session must not spin while the other is timed.
    check(api->AddSessionConfigEntry(options, "session.intra_op.allow_spinning", "0"));
    if (ops) check(api->RegisterCustomOpsLibrary_V2(options, ops));
    check(api->CreateSession(env, path, options, &session_));
    api->ReleaseSessionOptions(options);
    size_t inputs, outputs;
    check(api->SessionGetInputCount(session_, &inputs));
    check(api->SessionGetOutputCount(session_, &outputs));
    tensors_.reserve(inputs + outputs);
    for (size_t i = 0; i < inputs; ++i) in_.push_back(bind(i, true, integers));
    for (size_t i = 0; i < outputs; ++i) {
      const std::string name = names_of(i, false);
      const auto past = name.rfind("present_", 0) == 0 ? std::find(in_names_.begin(), in_names_.end(), "past_" + name.substr(8)) : in_names_.end();
      if (ops && past != in_names_.end()) {
        out_names_.push_back(name);
        out_.push_back(in_[static_cast<size_t>(past - in_names_.begin())]);
      } else {
        out_.push_back(bind(i, false, integers));
      }
    }
    for (const std::string& name : in_names_) in_pointers_.push_back(name.c_str());
    for (const std::string& name : out_names_) out_pointers_.push_back(name.c_str());
  }

  struct Time {
    double wall, cpu;
  };

  Time run() {
    const auto start = Clock::now();
    const double cpu = cpu_seconds();
    check(api->Run(session_, nullptr, in_pointers_.data(), in_.data(), in_.size(), out_pointers_.data(), out_.size(), out_.data()));
    return {seconds_since(start), cpu_seconds() - cpu};
  }

 private:
  std::string names_of(size_t i, bool input) {
    OrtAllocator* allocator;
    check(api->GetAllocatorWithDefaultOptions(&allocator));
    char* name;
    check(input ? api->SessionGetInputName(session_, i, allocator, &name) : api->SessionGetOutputName(session_, i, allocator, &name));
    const std::string copy = name;
    check(api->AllocatorFree(allocator, name));
    return copy;
  }

  OrtValue* bind(size_t i, bool input, const std::map<std::string, int64_t>& integers) {
    const std::string name = names_of(i, input);
    OrtTypeInfo* type;
    check(input ? api->SessionGetInputTypeInfo(session_, i, &type) : api->SessionGetOutputTypeInfo(session_, i, &type));
    const OrtTensorTypeAndShapeInfo* info;
    check(api->CastTypeInfoToTensorInfo(type, &info));
    size_t rank;
    ONNXTensorElementDataType element;
    check(api->GetDimensionsCount(info, &rank));
    check(api->GetTensorElementType(info, &element));
    std::vector<int64_t> shape(rank);
    check(api->GetDimensions(info, shape.data(), rank));
    api->ReleaseTypeInfo(type);
    size_t count = 1;
    for (int64_t extent : shape) count *= static_cast<size_t>(extent);
    tensors_.emplace_back();
    Tensor& tensor = tensors_.back();
    void* data;
    size_t bytes;
    if (element == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) {
      const auto given = integers.find(name);
      tensor.integers.assign(count, given == integers.end() ? 0 : given->second);
      data = tensor.integers.data();
      bytes = count * sizeof(int64_t);
    } else {
      std::mt19937 random(7);
      tensor.floats.resize(count);
      for (float& value : tensor.floats) value = (static_cast<float>(random() >> 8) / (1 << 23) - 1.0f) * 0.7f;
      data = tensor.floats.data();
      bytes = count * sizeof(float);
    }
    OrtMemoryInfo* memory;
    check(api->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
    check(api->CreateTensorWithDataAsOrtValue(memory, data, bytes, shape.data(), rank, element, &tensor.value));
    api->ReleaseMemoryInfo(memory);
    (input ? in_names_ : out_names_).push_back(name);
    return tensor.value;
  }

  OrtSession* session_ = nullptr;
  std::vector<Tensor> tensors_;
  std::vector<std::string> in_names_, out_names_;
  std::vector<const char*> in_pointers_, out_pointers_;
  std::vector<OrtValue*> in_, out_;
};

/// Runs `work(thread)` on each thread at once → seconds, of computing for one thread.
template <class F>
double together(int threads, F work) {
  if (threads == 1) {
    const double cpu = cpu_seconds();
    work(0);
    return cpu_seconds() - cpu;
  }
  const auto start = Clock::now();
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(work, i);
  work(0);
  for (std::thread& thread : others) thread.join();
  return seconds_since(start);
}

constexpr int64_t kProducts = 1 << 22;

#ifdef __x86_64__
// Independent chains of multiply-adds, enough to fill two units of latency 4.
__attribute__((target("avx512f"))) float products_avx512() {
  __m512 sums[12], factor = _mm512_set1_ps(0.999f), term = _mm512_set1_ps(1e-3f);
  for (__m512& sum : sums) sum = term;
  for (int64_t i = 0; i < kProducts; ++i) {
#pragma GCC unroll 12
    for (__m512& sum : sums) sum = _mm512_fmadd_ps(sum, factor, term);
  }
  __m512 total = sums[0];
  for (int i = 1; i < 12; ++i) total = _mm512_add_ps(total, sums[i]);
  return total[0];
}

__attribute__((target("avx2,fma"))) float products_avx2() {
  __m256 sums[12], factor = _mm256_set1_ps(0.999f), term = _mm256_set1_ps(1e-3f);
  for (__m256& sum : sums) sum = term;
  for (int64_t i = 0; i < kProducts; ++i) {
#pragma GCC unroll 12
    for (__m256& sum : sums) sum = _mm256_fmadd_ps(sum, factor, term);
  }
  __m256 total = sums[0];
  for (int i = 1; i < 12; ++i) total = _mm256_add_ps(total, sums[i]);
  return total[0];
}
#endif

int limits(int threads) {
  constexpr size_t kFloats = size_t{48} << 20;  // per thread, far beyond any cache
  std::vector<std::vector<float>> from(static_cast<size_t>(threads), std::vector<float>(kFloats, 1.0f)), to = from;
  std::vector<double> copies, reads, products;
  std::atomic<uint64_t> sink{0};
  double lanes = 0;
  for (int round = 0; round < 7; ++round) {
    copies.push_back(together(threads, [&](int i) { std::memcpy(to[static_cast<size_t>(i)].data(), from[static_cast<size_t>(i)].data(), kFloats * sizeof(float)); }));
    reads.push_back(together(threads, [&](int i) {
      const auto* words = reinterpret_cast<const uint64_t*>(from[static_cast<size_t>(i)].data());
      uint64_t sums[8] = {};
      // Two distant streams at once: the hardware reads ahead in each, and gets more than from one.
      for (size_t at = 0; at < kFloats / 4; at += 8)
        for (size_t lane = 0; lane < 8; ++lane) sums[lane] += words[at + lane] + words[kFloats / 4 + at + lane];
      for (uint64_t sum : sums) sink += sum;
    }));
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f")) {
      lanes = 16;
      products.push_back(together(threads, [&](int) { sink += products_avx512() > 0; }));
    } else if (__builtin_cpu_supports("fma")) {
      lanes = 8;
      products.push_back(together(threads, [&](int) { sink += products_avx2() > 0; }));
    }
#endif
  }
  const auto best = [](const std::vector<double>& values) { return values.empty() ? 1.0 : *std::min_element(values.begin(), values.end()); };
  const double bytes = static_cast<double>(kFloats) * sizeof(float) * threads;
  std::printf("{\"copyBytesPerSecond\":%.4g,\"readBytesPerSecond\":%.4g,\"multiplyAddsPerSecond\":%.4g}\n", 2 * bytes / best(copies), bytes / best(reads),
              12.0 * kProducts * lanes * threads / best(products));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && !std::strcmp(argv[1], "limits")) return limits(std::atoi(argv[2]));
  if (argc < 6) {
    std::fprintf(stderr, "op_bench limits <threads>\nop_bench <libonnxruntime> <liblayerweave_ops> <model.onnx> <threads> <seconds> [input=value ...]\n");
    return 2;
  }
  void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  api = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"))()->GetApi(ORT_API_VERSION);
  const int threads = std::atoi(argv[4]);
  const double budget = std::atof(argv[5]);
  std::map<std::string, int64_t> integers;
  for (int i = 6; i < argc; ++i) {
    const char* equals = std::strchr(argv[i], '=');
    if (equals) integers[std::string(argv[i], static_cast<size_t>(equals - argv[i]))] = std::atoll(equals + 1);
  }
  OrtEnv* env;
  check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "op_bench", &env));
  Bound bodies(env, argv[3], nullptr, threads, integers), kernels(env, argv[3], argv[2], threads, integers);
  // In turns, so that what else the machine does falls on both; each at least three times.
  std::vector<Bound::Time> body_times, kernel_times;
  bodies.run();
  kernels.run();
  const auto start = Clock::now();
  while (body_times.size() < 3 || (seconds_since(start) < budget && body_times.size() < 1000)) {
    body_times.push_back(bodies.run());
    const auto turn = Clock::now();
    do kernel_times.push_back(kernels.run());
    while (seconds_since(turn) < body_times.back().wall / 4);
  }
  const auto middle = [](const std::vector<Bound::Time>& times, double Bound::Time::*clock) {
    std::vector<double> values;
    for (const Bound::Time& time : times) values.push_back(time.*clock);
    return 1e3 * median(values);
  };
  std::printf("{\"bodyMs\":%.4f,\"kernelMs\":%.4f,\"bodyCpuMs\":%.4f,\"kernelCpuMs\":%.4f,\"runs\":[%zu,%zu]}\n", middle(body_times, &Bound::Time::wall), middle(kernel_times, &Bound::Time::wall),
              middle(body_times, &Bound::Time::cpu), middle(kernel_times, &Bound::Time::cpu), body_times.size(), kernel_times.size());
  return 0;
}
