// Causal convolution against a float64 reference over hostile shapes.
// causal_conv_test [--quick]   (--quick: small shapes, for compute-sanitizer)

#include "causal_conv.cuh"

#include "check.h"

using namespace layerweave;

namespace {

struct Case {
  DType dtype;
  int64_t batch, tokens, channels, kernel;
  bool bias = true;
  bool ragged = false;
  bool in_place = false;
  // x as the first half of [B,T,2D], y with a gap between its rows.
  bool packed = false;

  std::string name() const {
    char text[200];
    std::snprintf(text, sizeof text, "%s B%lld T%lld D%lld K%lld%s%s%s%s", name_of(dtype),
                  static_cast<long long>(batch), static_cast<long long>(tokens), static_cast<long long>(channels),
                  static_cast<long long>(kernel), bias ? " bias" : "", ragged ? " lengths" : "",
                  in_place ? " in-place" : "", packed ? " packed" : "");
    return text;
  }
};

struct Inputs {
  std::vector<float> x, weight, bias, state;
  int64_t x_stride;
  std::vector<int64_t> lengths;
};

struct Outputs {
  std::vector<float> y, state;
  bool gaps_untouched = true;
};

constexpr int64_t kYGap = 8;

Inputs make_inputs(const Case& test, std::mt19937_64& random) {
  Inputs in;
  in.x_stride = test.packed ? 2 * test.channels : test.channels;
  in.x = random_values(random, test.batch * test.tokens * in.x_stride, test.dtype, 0.f, 2.f);
  in.weight = random_values(random, test.channels * test.kernel, test.dtype, 0.f, 1.f);
  in.bias = random_values(random, test.channels, test.dtype, 0.f, 1.f);
  in.state = random_values(random, test.batch * test.channels * (test.kernel - 1), test.dtype, 0.f, 2.f);
  for (int64_t b = 0; b < test.batch; ++b)
    in.lengths.push_back(!test.ragged ? test.tokens
                         : b == 1    ? 0
                                     : std::uniform_int_distribution<int64_t>(0, test.tokens)(random));
  return in;
}

Outputs run(const Case& test, const Inputs& in, const std::vector<float>& state, int64_t first, int64_t tokens) {
  std::vector<float> part;
  for (int64_t b = 0; b < test.batch; ++b) {
    const auto from = in.x.begin() + (b * test.tokens + first) * in.x_stride;
    part.insert(part.end(), from, from + tokens * in.x_stride);
  }
  const size_t size = size_of(test.dtype);
  const DeviceBuffer x = upload(encode(part, test.dtype)), weight = upload(encode(in.weight, test.dtype));
  const DeviceBuffer bias = upload(encode(in.bias, test.dtype)), state_in = upload(encode(state, test.dtype));
  std::vector<int64_t> part_lengths;
  for (int64_t length : in.lengths) part_lengths.push_back(length - first);
  const DeviceBuffer lengths = upload_values(part_lengths);
  DeviceBuffer state_out(state.size() * size);
  state_out.fill(0xff);
  const int64_t y_stride = test.channels + (test.packed ? kYGap : 0);
  DeviceBuffer y(test.batch * tokens * y_stride * size);
  y.fill(0xff);

  CausalConvParams params{};
  params.batch = test.batch;
  params.tokens = tokens;
  params.channels = test.channels;
  params.kernel = test.kernel;
  params.x = x.data();
  params.x_row_stride = in.x_stride;
  params.y = y.data();
  params.y_row_stride = y_stride;
  params.weight = weight.data();
  params.bias = test.bias ? bias.data() : nullptr;
  params.lengths = test.ragged ? static_cast<const int64_t*>(lengths.data()) : nullptr;
  params.state_in = state_in.data();
  params.state_out = test.in_place ? state_in.data() : state_out.data();
  CUDA_CHECK(causal_conv(params, test.dtype, nullptr));
  CUDA_CHECK(cudaDeviceSynchronize());

  Outputs out;
  out.state = decode(download(test.in_place ? state_in : state_out), test.dtype);
  const std::vector<unsigned char> raw = download(y);
  const std::vector<float> rows = decode(raw, test.dtype);
  for (int64_t row = 0; row < test.batch * tokens; ++row) {
    out.y.insert(out.y.end(), rows.begin() + row * y_stride, rows.begin() + row * y_stride + test.channels);
    for (size_t i = (row * y_stride + test.channels) * size; i < (row + 1) * y_stride * size; ++i)
      if (raw[i] != 0xff) out.gaps_untouched = false;
  }
  return out;
}

// Input of token t, which for t < 0 is the state.
double input(const Case& test, const Inputs& in, int64_t b, int64_t t, int64_t d) {
  if (t >= 0) return in.x[(b * test.tokens + t) * in.x_stride + d];
  return in.state[(b * test.channels + d) * (test.kernel - 1) + t + test.kernel - 1];
}

std::string compare(const Case& test, const Inputs& in, const Outputs& got) {
  WorstError y, state;
  for (int64_t b = 0; b < test.batch; ++b)
    for (int64_t d = 0; d < test.channels; ++d) {
      for (int64_t t = 0; t < test.tokens; ++t) {
        double sum = test.bias ? in.bias[d] : 0.0, size = std::abs(sum);
        for (int64_t k = 0; k < test.kernel; ++k) {
          const double term = in.weight[d * test.kernel + k] * input(test, in, b, t - test.kernel + 1 + k, d);
          sum += term;
          size += std::abs(term);
        }
        const double want = sum / (1 + std::exp(-sum));
        // float32 sums of K + 1 terms and a gate known to a few 2^-23; silu's
        // slope is at most 1.1, and exp(-sum) carries sum's absolute error.
        const double bound = output_rounding(test.dtype) * std::abs(want) + 1e-6 * size * (1 + std::abs(want)) +
                             output_floor(test.dtype);
        const int64_t at = (b * test.tokens + t) * test.channels + d;
        y.add(at, got.y[at], want, bound);
      }
      // A copy: nothing rounds.
      for (int64_t k = 0; k < test.kernel - 1; ++k) {
        const int64_t at = (b * test.channels + d) * (test.kernel - 1) + k;
        state.add(at, got.state[at], input(test, in, b, in.lengths[b] - test.kernel + 1 + k, d), 1e-37);
      }
    }
  return y.failure("y") + state.failure("state") + (got.gaps_untouched ? "" : "wrote between y's rows");
}

void check(Tally& tally, const Case& test, std::mt19937_64& random) {
  const Inputs in = make_inputs(test, random);
  tally.record(test.name(), compare(test, in, run(test, in, in.state, 0, test.tokens)));
}

void check_chunks(Tally& tally, const Case& test, const std::vector<int64_t>& chunks, std::mt19937_64& random) {
  const Inputs in = make_inputs(test, random);
  Outputs joined;
  joined.y.resize(test.batch * test.tokens * test.channels);
  joined.state = in.state;
  int64_t first = 0;
  for (int64_t chunk : chunks) {
    const Outputs part = run(test, in, joined.state, first, chunk);
    for (int64_t b = 0; b < test.batch; ++b)
      std::copy_n(part.y.begin() + b * chunk * test.channels, chunk * test.channels,
                  joined.y.begin() + (b * test.tokens + first) * test.channels);
    joined.state = part.state;
    first += chunk;
  }
  const Outputs whole = run(test, in, in.state, 0, test.tokens);
  tally.record("chunked equals whole " + test.name(),
               whole.y == joined.y && whole.state == joined.state ? "" : "bits differ");
}

void check_refusals(Tally& tally) {
  const DeviceBuffer memory(1024);
  void* const any = memory.data();
  const CausalConvParams good{1, 1, 1, 4, any, any, 1, 1, any, nullptr, nullptr, any, any};
  const auto refuse = [&](const char* name, auto change) {
    CausalConvParams params = good;
    change(params);
    const cudaError_t status = causal_conv(params, DType::kFloat32, nullptr);
    tally.record(name, status == cudaErrorInvalidValue ? "" : cudaGetErrorName(status));
  };
  refuse("kernel of 1", [](auto& p) { p.kernel = 1; });
  refuse("kernel of 5", [](auto& p) { p.kernel = 5; });
  refuse("no tokens", [](auto& p) { p.tokens = 0; });
  refuse("no batch", [](auto& p) { p.batch = 0; });
  refuse("no channels", [](auto& p) { p.channels = 0; });
  refuse("no x", [](auto& p) { p.x = nullptr; });
  refuse("no state_in", [](auto& p) { p.state_in = nullptr; });
}

}  // namespace

int main(int argc, char** argv) {
  require_device("causal_conv_test");
  const bool quick = argc > 1 && std::string(argv[1]) == "--quick";
  const uint64_t seed = std::random_device{}();
  std::printf("causal_conv_test seed %llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  const auto coin = [&] { return random() % 2 == 0; };
  Tally tally;

  const std::vector<DType> dtypes{DType::kBFloat16, DType::kFloat16, DType::kFloat32};
  const std::vector<int64_t> token_counts =
      quick ? std::vector<int64_t>{1, 2, 40} : std::vector<int64_t>{1, 2, 3, 8, 129, 1134};
  const std::vector<int64_t> channel_counts = quick ? std::vector<int64_t>{7, 96} : std::vector<int64_t>{1, 7, 96, 8192};
  for (DType dtype : dtypes)
    for (int64_t tokens : token_counts)
      for (int64_t channels : channel_counts) {
        // Enough of the largest shape; the reference walks it on one core.
        if (channels == 8192 && tokens > 129 && dtype != DType::kBFloat16) continue;
        for (int64_t batch : {1, 3})
          for (int64_t kernel : {2, 3, 4}) {
            if (channels == 8192 && tokens > 129 && (kernel != 4 || batch != 1)) continue;
            Case test{dtype, batch, tokens, channels, kernel};
            test.bias = coin();
            test.ragged = coin();
            test.in_place = coin();
            test.packed = coin();
            check(tally, test, random);
          }
      }
  for (int options = 0; options < 16; ++options)
    for (DType dtype : dtypes)
      for (int64_t tokens : {2, 70}) {
        Case test{dtype, 3, tokens, 72, 4};
        test.bias = options & 1;
        test.ragged = options & 2;
        test.in_place = options & 4;
        test.packed = options & 8;
        check(tally, test, random);
      }
  for (DType dtype : dtypes)
    for (int64_t kernel : {2, 3, 4}) check_chunks(tally, Case{dtype, 2, 80, 72, kernel}, {1, 2, 44, 33}, random);
  check_refusals(tally);
  return tally.finish();
}
