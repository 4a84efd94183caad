// residual_norm against float64: the sum to the bit, the norm within its rounding. --quick leaves out the large shapes.

#include "residual_norm.cuh"

#include "check.h"

using namespace layerweave;

namespace {

void check(Tally& tally, int64_t tokens, int64_t width, DType dtype, std::mt19937_64& random) {
  const std::string name = std::string(name_of(dtype)) + " M=" + std::to_string(tokens) + " D=" + std::to_string(width);
  constexpr float kEpsilon = 1e-6f;
  const std::vector<float> x = random_values(random, tokens * width, dtype, 0.3f, 1.f), residual = random_values(random, tokens * width, dtype, 0.f, 2.f);
  const std::vector<float> scale = random_values(random, width, dtype, 1.f, 0.2f);
  const DeviceBuffer dx = upload(encode(x, dtype)), dresidual = upload(encode(residual, dtype)), dscale = upload(encode(scale, dtype));
  constexpr int64_t kGuard = 64;
  const size_t bytes = tokens * width * 2;
  DeviceBuffer y(bytes + kGuard), sum(bytes + kGuard);
  y.fill(0xee), sum.fill(0xee);
  ResidualNormParams params{tokens, width, kEpsilon, dx.data(), dresidual.data(), dscale.data(), y.data(), sum.data()};
  CUDA_CHECK(residual_norm(params, dtype, nullptr));
  CUDA_CHECK(cudaDeviceSynchronize());
  const auto without_guard = [&](const DeviceBuffer& buffer) {
    std::vector<unsigned char> all = download(buffer);
    for (size_t i = bytes; i < all.size(); ++i)
      if (all[i] != 0xee) tally.record(name, "wrote behind the end");
    all.resize(bytes);
    return all;
  };
  std::vector<float> sums(tokens * width);
  for (size_t i = 0; i < sums.size(); ++i) sums[i] = x[i] + residual[i];
  const std::vector<unsigned char> want_sum = encode(sums, dtype);
  tally.record(name + " sum", without_guard(sum) == want_sum ? "" : "differs");
  sums = decode(want_sum, dtype);
  const std::vector<float> got = decode(without_guard(y), dtype);
  WorstError worst;
  for (int64_t m = 0; m < tokens; ++m) {
    double squares = 0;
    for (int64_t d = 0; d < width; ++d) squares += double{sums[m * width + d]} * sums[m * width + d];
    const double factor = 1 / std::sqrt(squares / static_cast<double>(width) + kEpsilon);
    for (int64_t d = 0; d < width; ++d) {
      const double want = sums[m * width + d] * factor * scale[d];
      worst.add(m * width + d, got[m * width + d], want, std::abs(want) * (1.01 * output_rounding(dtype) + 1e-5) + output_floor(dtype));
    }
  }
  tally.record(name, worst.failure("y"));
  params.y = nullptr;
  tally.record(name + " without y", residual_norm(params, dtype, nullptr) == cudaErrorInvalidValue ? "" : "was accepted");
}

}  // namespace

int main(int argc, char** argv) {
  require_device("residual_norm_test");
  const bool quick = argc > 1 && std::string(argv[1]) == "--quick";
  std::mt19937_64 random(7);
  Tally tally;
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const auto& [tokens, width] : {std::pair<int64_t, int64_t>{1, 8}, {3, 24}, {1, 4096}, {2, 264}, {16, 4096}, {5, 8192}, {2, 8200}, {1, 20000}}) check(tally, tokens, width, dtype, random);
    if (!quick) check(tally, 2048, 4096, dtype, random);
  }
  return tally.finish();
}
