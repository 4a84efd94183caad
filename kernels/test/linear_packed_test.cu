// linear_packed and linear_packed_slices against a float64 reference. --quick for the sanitizer.

#include "linear_packed.cuh"

#include "check.h"

using namespace layerweave;

namespace {

struct Case {
  DType dtype;
  PackedType weights;
  int64_t tokens, rows, columns;
  bool bias = false;
  // x and y as slices of wider rows.
  int64_t x_gap = 0, y_gap = 0;
  bool slices = false;

  std::string name() const {
    return std::string(name_of(dtype)) + (weights == PackedType::kInt8 ? " int8" : " 16-bit") + " M=" + std::to_string(tokens) +
           " N=" + std::to_string(rows) + " K=" + std::to_string(columns) + (bias ? " bias" : "") + " gaps " + std::to_string(x_gap) + " " +
           std::to_string(y_gap) + (slices ? " slices" : "");
  }
};

void check(Tally& tally, const Case& test, std::mt19937_64& random) {
  const bool int8 = test.weights == PackedType::kInt8;
  const int64_t x_stride = test.columns + test.x_gap, y_stride = test.rows + test.y_gap;
  // NaN between the rows: nothing may read it.
  std::vector<float> x = random_values(random, test.tokens * x_stride, test.dtype, 0.f, 1.f);
  for (int64_t m = 0; m < test.tokens; ++m) std::fill_n(x.begin() + m * x_stride + test.columns, test.x_gap, NAN);
  const std::vector<float> bias = random_values(random, test.rows, test.dtype, 0.f, 1.f);
  std::vector<float> weights = random_values(random, test.rows * test.columns, test.dtype, 0.f, int8 ? 45.f : 1.f / std::sqrt(static_cast<float>(test.columns)));
  std::vector<float> scale(packed_panels(test.rows) * kPanelRows, NAN);
  for (int64_t r = 0; r < test.rows; ++r) scale[r] = int8 ? std::exp(static_cast<float>(random() % 1000) * 0.004f - 8.f) : 1.f;
  std::vector<unsigned char> packed(packed_elements(test.rows, test.columns) * (int8 ? 1 : 2));
  if (int8) {
    for (float& w : weights) w = std::clamp(std::nearbyint(w), -127.f, 127.f);
    const std::vector<int8_t> codes(weights.begin(), weights.end());
    pack_rows(test.weights, codes.data(), test.rows, test.columns, [](int64_t r) { return r; }, reinterpret_cast<int8_t*>(packed.data()));
  } else {
    const std::vector<unsigned char> bytes = encode(weights, test.dtype);
    pack_rows(test.weights, reinterpret_cast<const uint16_t*>(bytes.data()), test.rows, test.columns, [](int64_t r) { return r; },
              reinterpret_cast<uint16_t*>(packed.data()));
  }

  const DeviceBuffer dx = upload(encode(x, test.dtype)), dbias = upload(encode(bias, test.dtype));
  const DeviceBuffer dweight = upload(packed), dscale = upload_values(scale);
  LinearPackedParams params{};
  params.tokens = test.tokens;
  params.rows = test.rows;
  params.columns = test.columns;
  params.weights = test.weights;
  DeviceBuffer y(test.tokens * y_stride * 2), arrivals(linear_packed_arrivals(params) * 4), workspace(linear_packed_workspace(params));
  arrivals.fill(0);
  params.weight = dweight.data();
  params.scale = int8 ? static_cast<const float*>(dscale.data()) : nullptr;
  params.bias = test.bias ? dbias.data() : nullptr;
  params.x = dx.data();
  params.x_row_stride = x_stride;
  params.y = y.data();
  params.y_row_stride = y_stride;
  params.workspace = workspace.data();
  params.arrivals = static_cast<uint32_t*>(arrivals.data());
  std::vector<unsigned char> first;
  for (int run = 0; run < 2; ++run) {
    y.fill(0xff);
    workspace.fill(0xff);
    CUDA_CHECK((test.slices ? linear_packed_slices : linear_packed)(params, test.dtype, nullptr));
    CUDA_CHECK(cudaDeviceSynchronize());
    if (run == 0) first = download(y);
  }
  const std::vector<float> got = decode(first, test.dtype);
  std::vector<double> want(got.size()), bound(got.size());
  parallel_for(test.rows, [&](int64_t r) {
    for (int64_t m = 0; m < test.tokens; ++m) {
      double sum = 0, size = 0;
      for (int64_t c = 0; c < test.columns; ++c) {
        const double term = static_cast<double>(weights[r * test.columns + c]) * x[m * x_stride + c];
        sum += term;
        size += std::abs(term);
      }
      const double scaled = sum * scale[r] + (test.bias ? bias[r] : 0.f);
      want[m * y_stride + r] = scaled;
      bound[m * y_stride + r] = output_rounding(test.dtype) * std::abs(scaled) + 1e-6 * size * scale[r] + 2e-7 * std::abs(scaled) + output_floor(test.dtype);
    }
  });
  WorstError worst;
  std::string gap;
  for (int64_t i = 0; i < test.tokens * y_stride; ++i) {
    if (i % y_stride < test.rows)
      worst.add(i, got[i], want[i], bound[i]);
    else if (first[2 * i] != 0xff || first[2 * i + 1] != 0xff)
      gap = "wrote between rows of y";
  }
  tally.record(test.name(), worst.failure("y") + gap);
  tally.record("repeats " + test.name(), first == download(y) ? "" : "bits differ");
  const std::vector<unsigned char> counters = download(arrivals);
  tally.record("counters " + test.name(), std::all_of(counters.begin(), counters.end(), [](int c) { return c == 0; }) ? "" : "not reset");
}

void check_refusals(Tally& tally) {
  const DeviceBuffer memory(1024);
  void* const any = memory.data();
  const LinearPackedParams good{1, 1, 8, PackedType::kInt8, any, static_cast<float*>(any), nullptr, any, any, 8, 1, any, static_cast<uint32_t*>(any)};
  const auto refuse = [&](const char* name, DType dtype, auto change) {
    LinearPackedParams params = good;
    change(params);
    const cudaError_t status = linear_packed(params, dtype, nullptr);
    tally.record(name, status == cudaErrorInvalidValue ? "" : cudaGetErrorName(status));
  };
  const DType bf16 = DType::kBFloat16;
  refuse("float32", DType::kFloat32, [](auto&) {});
  refuse("no tokens", bf16, [](auto& p) { p.tokens = 0; });
  refuse("rows of x that overlap", bf16, [](auto& p) { p.columns = 16; });
  refuse("rows of x 12 apart", bf16, [](auto& p) { p.x_row_stride = 12; });
  refuse("no rows", bf16, [](auto& p) { p.rows = 0; });
  refuse("9 columns", bf16, [](auto& p) { p.columns = 9; });
  refuse("no x", bf16, [](auto& p) { p.x = nullptr; });
  refuse("misaligned x", bf16, [](auto& p) { p.x = static_cast<const char*>(p.x) + 2; });
  refuse("no scale", bf16, [](auto& p) { p.scale = nullptr; });
  refuse("no arrivals", bf16, [](auto& p) { p.arrivals = nullptr; });
}

}  // namespace

int main(int argc, char** argv) {
  require_device("linear_packed_test");
  const bool quick = argc > 1 && std::string(argv[1]) == "--quick";
  const uint64_t seed = std::random_device{}();
  std::printf("linear_packed_test seed %llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  Tally tally;
  using Sizes = std::vector<std::pair<int64_t, int64_t>>;
  const Sizes shapes = quick ? Sizes{{33, 72}, {64, 1544}} : Sizes{{1, 8}, {7, 24}, {33, 72}, {100, 520}, {288, 1544}, {544, 136}, {4096, 1024}, {544, 16384}};
  const std::vector<int64_t> token_counts = quick ? std::vector<int64_t>{1, 9, 17, 70} : std::vector<int64_t>{1, 2, 5, 8, 9, 16, 17, 32, 33, 64, 65, 129, 300};
  for (DType dtype : {DType::kBFloat16, DType::kFloat16})
    for (PackedType weights : {PackedType::kInt8, PackedType::k16Bit})
      for (const auto& [rows, columns] : shapes)
        for (int64_t tokens : token_counts) {
          if (tokens * rows * columns > int64_t{1} << 28) continue;
          Case test{dtype, weights, tokens, rows, columns, random() % 2 == 0};
          test.x_gap = static_cast<int64_t>(random() % 3) * 8;
          test.y_gap = static_cast<int64_t>(random() % 3) * (random() % 2 == 0 ? 8 : 3);
          check(tally, test, random);
          test.slices = true;
          if (tokens > 16 && tokens < 100) check(tally, test, random);
        }
  // More than 16 tiles of tokens, wide and narrow.
  if (!quick) check(tally, Case{DType::kBFloat16, PackedType::kInt8, 2500, 544, 264, true}, random);
  if (!quick) check(tally, Case{DType::kBFloat16, PackedType::k16Bit, 17000, 264, 64, true}, random);
  check_refusals(tally);
  return tally.finish();
}
