#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace layerweave::cpu {

/// Counts outcomes; a failure names its case and what went wrong.
class Tally {
 public:
  void record(const std::string& name, const std::string& failure) {
    if (failure.empty()) {
      ++passed_;
    } else {
      ++failed_;
      std::printf("FAILED %s: %s\n", name.c_str(), failure.c_str());
    }
  }
  int finish() const {
    std::printf("%d passed, %d failed\n", passed_, failed_);
    return failed_ == 0 && passed_ > 0 ? 0 : 1;
  }

 private:
  int passed_ = 0;
  int failed_ = 0;
};

/// The instruction sets this machine has, with a word on those it lacks.
inline std::vector<Isa> testable_isas() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vnni}) {
    if (isa_available(isa))
      isas.push_back(isa);
    else
      std::printf("not tested: %s is not available here\n", isa_name(isa));
  }
  return isas;
}

/// Every task on one of three threads, the last first: no kernel may count on an order.
inline Parallel threads() {
  const auto run = [](void*, Parallel::Body body, void* data, size_t count) {
    std::atomic<size_t> left{count};
    const auto work = [&] {
      for (size_t i = left.fetch_sub(1); i > 0 && i <= count; i = left.fetch_sub(1)) body(data, i - 1);
    };
    std::thread first(work), second(work);
    work();
    first.join();
    second.join();
  };
  return {run, nullptr};
}

inline Parallel serial() {
  return {[](void*, Parallel::Body body, void* data, size_t count) {
            for (size_t i = 0; i < count; ++i) body(data, i);
          },
          nullptr};
}

inline std::vector<float> random_values(std::mt19937_64& random, int64_t count, float mean, float deviation) {
  std::normal_distribution<float> normal(mean, deviation);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

/// Scratch memory of exactly the bytes that a kernel asked for, so that a sanitizer sees it overstep them.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : data_(bytes ? ::operator new(bytes, std::align_val_t{64}) : nullptr) {}
  ~Scratch() { ::operator delete(data_, std::align_val_t{64}); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
};

/// The largest error over its bound, and where.
struct WorstError {
  double ratio = 0;
  int64_t index = -1;
  double actual = 0, expected = 0;

  void add(int64_t at, double got, double want, double bound) {
    const double r = got == want ? 0 : std::abs(got - want) / bound;
    if (!(r <= ratio)) {  // also takes NaN
      if (std::isnan(ratio)) return;
      ratio = r;
      index = at;
      actual = got;
      expected = want;
    }
  }
  std::string failure(const char* what) const {
    if (ratio <= 1) return "";
    char text[200];
    std::snprintf(text, sizeof text, "%s[%lld] is %.9g, expected %.9g (%.3g times the bound). ", what,
                  static_cast<long long>(index), actual, expected, ratio);
    return text;
  }
};

/// What rounding to 16 bits adds to the sizes of a row's values, of which errors may be a millionth: half a step of the largest
/// value of each block of 256.
inline std::vector<double> rounding_sizes(const std::vector<double>& row) {
  std::vector<double> sizes(row.size());
  for (size_t begin = 0; begin < row.size(); begin += 256) {
    const size_t end = std::min(row.size(), begin + 256);
    double most = 0;
    for (size_t i = begin; i < end; ++i) most = std::max(most, std::abs(row[i]));
    for (size_t i = begin; i < end; ++i) sizes[i] = 1e6 / 65534 * most;
  }
  return sizes;
}

inline double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }
inline double silu(double x) { return x / (1 + std::exp(-x)); }

}  // namespace layerweave::cpu
