// linear_int8 against a float64 reference. --quick for the sanitizer.

#include "linear_int8.cuh"

#include "check.h"

using namespace layerweave;

namespace {

struct Case {
  DType dtype;
  int64_t tokens, rows, columns;
  bool bias = false;

  std::string name() const {
    return std::string(name_of(dtype)) + " M=" + std::to_string(tokens) + " N=" + std::to_string(rows) +
           " K=" + std::to_string(columns) + (bias ? " bias" : "");
  }
};

void check(Tally& tally, const Case& test, std::mt19937_64& random) {
  const std::vector<float> x = random_values(random, test.tokens * test.columns, test.dtype, 0.f, 1.f);
  const std::vector<float> bias = random_values(random, test.rows, test.dtype, 0.f, 1.f);
  const uint64_t seed = random();
  std::vector<int8_t> codes(test.rows * test.columns);
  std::vector<float> scale(packed_panels(test.rows) * kPanelRows, NAN);
  parallel_for(test.rows, [&](int64_t r) {
    std::mt19937_64 local(seed + static_cast<uint64_t>(r));
    for (int64_t c = 0; c < test.columns; ++c) codes[r * test.columns + c] = static_cast<int8_t>(static_cast<int>(local() % 255) - 127);
    scale[r] = std::exp(static_cast<float>(local() % 1000) * 0.004f - 8.f);
  });
  std::vector<int8_t> packed(packed_elements(test.rows, test.columns));
  pack_rows(PackedType::kInt8, codes.data(), test.rows, test.columns, [](int64_t r) { return r; }, packed.data());

  const DeviceBuffer dx = upload(encode(x, test.dtype)), dbias = upload(encode(bias, test.dtype));
  const DeviceBuffer dweight = upload_values(packed), dscale = upload_values(scale);
  DeviceBuffer y(test.tokens * test.rows * size_of(test.dtype)), arrivals(packed_panels(test.rows) * 4);
  arrivals.fill(0);
  LinearInt8Params params{};
  params.tokens = test.tokens;
  params.rows = test.rows;
  params.columns = test.columns;
  DeviceBuffer partial(linear_int8_workspace(params));
  params.weight = dweight.data();
  params.scale = static_cast<const float*>(dscale.data());
  params.bias = test.bias ? dbias.data() : nullptr;
  params.x = dx.data();
  params.y = y.data();
  params.partial = static_cast<float*>(partial.data());
  params.arrivals = static_cast<uint32_t*>(arrivals.data());
  std::vector<unsigned char> first;
  for (int run = 0; run < 2; ++run) {
    y.fill(0xff);
    partial.fill(0xff);
    CUDA_CHECK(linear_int8(params, test.dtype, nullptr));
    CUDA_CHECK(cudaDeviceSynchronize());
    if (run == 0) first = download(y);
  }
  const std::vector<float> got = decode(first, test.dtype);
  std::vector<double> want(got.size()), bound(got.size());
  parallel_for(test.rows, [&](int64_t r) {
    for (int64_t m = 0; m < test.tokens; ++m) {
      double sum = 0, size = 0;
      for (int64_t c = 0; c < test.columns; ++c) {
        const double term = static_cast<double>(codes[r * test.columns + c]) * x[m * test.columns + c];
        sum += term;
        size += std::abs(term);
      }
      const double scaled = sum * scale[r] + (test.bias ? bias[r] : 0.f);
      want[m * test.rows + r] = scaled;
      bound[m * test.rows + r] = output_rounding(test.dtype) * std::abs(scaled) + 1e-6 * size * scale[r] +
                                 2e-7 * std::abs(scaled) + output_floor(test.dtype);
    }
  });
  WorstError worst;
  for (size_t i = 0; i < got.size(); ++i) worst.add(static_cast<int64_t>(i), got[i], want[i], bound[i]);
  tally.record(test.name(), worst.failure("y"));
  tally.record("repeats " + test.name(), first == download(y) ? "" : "bits differ");
}

void check_refusals(Tally& tally) {
  const DeviceBuffer memory(1024);
  void* const any = memory.data();
  const LinearInt8Params good{1, 1, 8, any, static_cast<float*>(any), nullptr, any, any, static_cast<float*>(any), static_cast<uint32_t*>(any)};
  const auto refuse = [&](const char* name, DType dtype, auto change) {
    LinearInt8Params params = good;
    change(params);
    const cudaError_t status = linear_int8(params, dtype, nullptr);
    tally.record(name, status == cudaErrorInvalidValue ? "" : cudaGetErrorName(status));
  };
  const DType bf16 = DType::kBFloat16;
  refuse("float32", DType::kFloat32, [](auto&) {});
  refuse("no tokens", bf16, [](auto& p) { p.tokens = 0; });
  refuse("17 tokens", bf16, [](auto& p) { p.tokens = 17; });
  refuse("no rows", bf16, [](auto& p) { p.rows = 0; });
  refuse("9 columns", bf16, [](auto& p) { p.columns = 9; });
  refuse("no x", bf16, [](auto& p) { p.x = nullptr; });
  refuse("misaligned x", bf16, [](auto& p) { p.x = static_cast<const char*>(p.x) + 2; });
  refuse("no scale", bf16, [](auto& p) { p.scale = nullptr; });
  refuse("no arrivals", bf16, [](auto& p) { p.arrivals = nullptr; });
}

}  // namespace

int main(int argc, char** argv) {
  require_device("linear_int8_test");
  const bool quick = argc > 1 && std::string(argv[1]) == "--quick";
  const uint64_t seed = std::random_device{}();
  std::printf("linear_int8_test seed %llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  Tally tally;
  const std::vector<std::pair<int64_t, int64_t>> shapes =
      quick ? std::vector<std::pair<int64_t, int64_t>>{{33, 72}, {64, 1544}}
            : std::vector<std::pair<int64_t, int64_t>>{{1, 8}, {7, 24}, {33, 72}, {100, 520}, {64, 1544}, {4096, 1024}, {544, 16384}};
  for (DType dtype : {DType::kBFloat16, DType::kFloat16})
    for (const auto& [rows, columns] : shapes)
      for (int64_t tokens : {1, 2, 5, 8, 9, 16}) check(tally, Case{dtype, tokens, rows, columns, random() % 2 == 0}, random);
  check_refusals(tally);
  return tally.finish();
}
