#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "device.h"

namespace layerweave {

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

/// Runs body(i) for i in [0, count) on every core: the references are float64
/// and sequential in time, but independent across channels.
inline void parallel_for(int64_t count, const std::function<void(int64_t)>& body) {
  std::atomic<int64_t> next{0};
  const int64_t workers = std::min<int64_t>(count, std::max(1u, std::thread::hardware_concurrency()));
  std::vector<std::thread> threads;
  for (int64_t w = 0; w < workers; ++w)
    threads.emplace_back([&] {
      for (int64_t i = next++; i < count; i = next++) body(i);
    });
  for (std::thread& thread : threads) thread.join();
}

/// Normal values rounded to `dtype`, so that the reference sees what the kernel sees.
inline std::vector<float> random_values(std::mt19937_64& random, int64_t count, DType dtype, float mean, float deviation) {
  constexpr int64_t kBlock = 1 << 16;
  std::vector<float> values(count);
  std::vector<uint64_t> seeds((count + kBlock - 1) / kBlock);
  for (uint64_t& seed : seeds) seed = random();
  parallel_for(static_cast<int64_t>(seeds.size()), [&](int64_t block) {
    std::mt19937_64 local(seeds[block]);
    std::normal_distribution<float> normal(mean, deviation);
    std::vector<float> drawn(std::min(count - block * kBlock, kBlock));
    for (float& value : drawn) value = normal(local);
    drawn = decode(encode(drawn, dtype), dtype);
    std::copy(drawn.begin(), drawn.end(), values.begin() + block * kBlock);
  });
  return values;
}

/// Largest relative error of rounding a result to its type: half a unit in the
/// last place of the smallest significand.
inline double output_rounding(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return 0x1p-24;
    case DType::kFloat16:
      return 0x1p-11;
    case DType::kBFloat16:
      return 0x1p-8;
  }
  return 0;
}

/// Half the spacing of a type's subnormals, below which relative rounding ends.
inline double output_floor(DType dtype) { return dtype == DType::kFloat16 ? 0x1p-25 : 1e-37; }

/// The largest error over its bound, and where.
struct WorstError {
  double ratio = 0;
  int64_t index = -1;
  double actual = 0, expected = 0;

  void add(int64_t at, double got, double want, double bound) {
    const double r = std::abs(got - want) / bound;
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

}  // namespace layerweave
