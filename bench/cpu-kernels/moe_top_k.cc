// Times the MoE kernel for several numbers of experts and of those chosen, in turns, one thread: moe_top_k <rounds>. Prints the
// median milliseconds of computing as JSON. Each round's tokens are others, so that other experts are chosen.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <random>
#include <vector>

#include "cpu/moe.h"

namespace {

using namespace layerweave::cpu;

constexpr int64_t kModel = 512, kFf = 1792, kMostExperts = 64, kMostTokens = 1024;

double cpu_seconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Case {
  bool quantized;
  int64_t tokens, experts, top_k;
  std::vector<double> times = {};
};

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc == 2 ? std::atoi(argv[1]) : 0;
  if (rounds < 1) {
    std::fprintf(stderr, "moe_top_k <rounds>\n");
    return 2;
  }
  std::mt19937 random(1);
  const auto number = [&] { return static_cast<float>(random() >> 8) / (1 << 23) - 1.0f; };
  constexpr size_t kMatrix = static_cast<size_t>(kModel * kFf), kExperts = static_cast<size_t>(kMostExperts);
  std::vector<float> floats(3 * kMatrix * kExperts), scales(static_cast<size_t>(kFf), 1e-3f), router(static_cast<size_t>(kMostExperts * kModel)), x(static_cast<size_t>(kMostTokens * kModel)), y(x.size());
  std::vector<int8_t> bytes(floats.size());
  for (float& value : floats) value = number() / 16;
  for (int8_t& value : bytes) value = static_cast<int8_t>(random());
  for (float& value : router) value = number();

  std::vector<Case> cases;
  for (const bool quantized : {false, true})
    for (const int64_t tokens : {int64_t{1}, kMostTokens}) {
      for (const int64_t experts : {8, 16, 32, 64}) cases.push_back({quantized, tokens, experts, 2});
      for (const int64_t top_k : {1, 4, 8}) cases.push_back({quantized, tokens, 64, top_k});
    }
  std::vector<std::byte> scratch;
  // Everything runs here.
  const Parallel here = {[](void*, Parallel::Body body, void* data, size_t count) { for (size_t i = 0; i < count; ++i) body(data, i); }, nullptr};
  for (int round = 0; round <= rounds; ++round)
    for (Case& one : cases) {
      // Of one token many, so that the weights come from memory and the clock is fine enough.
      const int64_t repeats = one.tokens == 1 ? 64 : 1;
      std::vector<ExpertWeights> weights;
      for (size_t e = 0; e < static_cast<size_t>(one.experts); ++e) {
        const auto matrix = [&](size_t i) -> WeightMatrix {
          const size_t at = (3 * e + i) * kMatrix;
          if (one.quantized) return {WeightType::kInt8, bytes.data() + at, scales.data()};
          return {WeightType::kFloat32, floats.data() + at, nullptr};
        };
        weights.push_back({matrix(0), matrix(1), matrix(2)});
      }
      for (float& value : x) value = number();
      MoeParams params = {one.tokens, kModel, kFf, one.experts, one.top_k, RouterOrder::kSoftmaxThenTopK, false, x.data(), router.data(), weights.data(), y.data(), nullptr};
      scratch.resize(std::max(scratch.size(), moe_scratch(params) + 64));
      params.scratch = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64);
      const double start = cpu_seconds();
      for (int64_t i = 0; i < repeats; ++i) {
        params.x = x.data() + i * kModel % static_cast<int64_t>(x.size());
        if (const char* problem = moe(params, here, best_isa())) {
          std::fprintf(stderr, "%s\n", problem);
          return 1;
        }
      }
      // The first round makes the memory's pages.
      if (round > 0) one.times.push_back(1e3 * (cpu_seconds() - start) / static_cast<double>(repeats));
    }
  std::printf("[");
  for (size_t i = 0; i < cases.size(); ++i) {
    Case& one = cases[i];
    std::sort(one.times.begin(), one.times.end());
    std::printf("%s{\"dtype\":\"%s\",\"tokens\":%ld,\"experts\":%ld,\"topK\":%ld,\"ms\":%.4f}", i ? "," : "", one.quantized ? "int8" : "float32", static_cast<long>(one.tokens), static_cast<long>(one.experts), static_cast<long>(one.top_k), one.times[one.times.size() / 2]);
  }
  std::printf("]\n");
  return 0;
}
