// Prints the tokens that a DeviceSampler chooses with a library of kernels: test/native/cuda.test.ts builds and runs this.
//   sampler_probe <ONNX Runtime's core library> <library of kernels>
#include <cstdio>

#include "device_sampler.h"

using namespace layerweave;

int main(int count, char** arguments) {
  if (count != 3) return 2;
  try {
    const OrtLibrary& ort = OrtLibrary::open(arguments[1]);
    CudaDevice device(ort, CudaLibrary::open(ort.folder()), 0);
    const SamplerLibrary library(arguments[2]);
    constexpr size_t kRows = 4, kVocabulary = 5;
    // The best token of row b is b.
    std::vector<float> logits(kRows * kVocabulary);
    for (size_t b = 0; b < kRows; b++) logits[b * kVocabulary + b] = 1;
    const auto choose = [&](DeviceSampler& sampler, const std::vector<bool>& chosen) {
      sampler.choose(logits.data(), chosen);
      const std::vector<int64_t> tokens = sampler.receive();
      for (size_t b = 0; b < kRows; b++) std::printf("%lld%c", chosen[b] ? static_cast<long long>(tokens[b]) : -9, b + 1 < kRows ? ' ' : '\n');
    };
    const uint64_t wide = (uint64_t{1} << 52) + 40;
    DeviceSampler drawing(library, device, {{0, 1, 0, 0, 10}, {0.8, 0.9, 0.05, 40, 20}, {1, 1, 0, 0, 30}, {0.5, 1, 0, 0, wide}}, kVocabulary);
    choose(drawing, {true, true, true, true});
    choose(drawing, {false, true, false, true});
    choose(drawing, {true, false, true, true});
    choose(drawing, {true, true, true, true});
    DeviceSampler greedy(library, device, {4, {0, 1, 0, 0, 0}}, kVocabulary);
    choose(greedy, {false, false, true, true});
    std::printf("%zu %zu\n", drawing.bytes() - greedy.bytes(), greedy.bytes());
    DeviceSampler refused(library, device, {4, {-1, 1, 0, 0, 0}}, kVocabulary);
    choose(refused, {true, true, true, true});
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
  }
}
