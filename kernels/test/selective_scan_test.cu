// Selective scan against a float64 reference over hostile shapes.
// selective_scan_test [--quick]   (--quick: small shapes, for compute-sanitizer)

#include "selective_scan.cuh"

#include "check.h"

using namespace layerweave;

namespace {

enum class Lengths { kNone, kRagged, kZero };

struct Case {
  DType dtype;
  int64_t batch, tokens, channels, states;
  bool gate = true;
  bool bias = true;
  Lengths lengths = Lengths::kNone;
  // State written over the one read.
  bool in_place = false;
  // u and z as halves of one [B,T,2D], B and C as slices of one [B,T,3+2N];
  // otherwise each its own tensor.
  bool packed = false;
  // NaN in every input at t >= lengths[b].
  bool poison_padding = false;

  std::string name() const {
    char text[200];
    std::snprintf(text, sizeof text, "%s B%lld T%lld D%lld N%lld%s%s%s%s%s%s", name_of(dtype),
                  static_cast<long long>(batch), static_cast<long long>(tokens), static_cast<long long>(channels),
                  static_cast<long long>(states), gate ? " gate" : "", bias ? " bias" : "",
                  lengths == Lengths::kNone ? "" : (lengths == Lengths::kZero ? " lengths=0" : " lengths"),
                  in_place ? " in-place" : "", packed ? " packed" : "", poison_padding ? " poisoned padding" : "");
    return text;
  }
};

// A row-major [B,T,columns] within rows of `stride` elements.
struct Rows {
  std::vector<float> values;
  int64_t stride, offset;
  float at(int64_t row, int64_t column) const { return values[row * stride + offset + column]; }
};

struct Inputs {
  Rows u, delta, b, c, z;
  std::vector<float> a_log, d_skip, delta_bias, state;
  std::vector<int64_t> lengths;
};

struct Outputs {
  std::vector<float> y;
  std::vector<float> state;
  bool gaps_untouched = true;
};

constexpr int64_t kYGap = 8;
constexpr int64_t kDtRank = 3;

Inputs make_inputs(const Case& test, std::mt19937_64& random) {
  const int64_t rows = test.batch * test.tokens, d = test.channels, n = test.states;
  Inputs in;
  if (test.packed) {
    const std::vector<float> uz = random_values(random, rows * 2 * d, test.dtype, 0.f, 1.f);
    const std::vector<float> bc = random_values(random, rows * (kDtRank + 2 * n), test.dtype, 0.f, 1.f);
    in.u = {uz, 2 * d, 0};
    in.z = {uz, 2 * d, d};
    in.b = {bc, kDtRank + 2 * n, kDtRank};
    in.c = {bc, kDtRank + 2 * n, kDtRank + n};
  } else {
    in.u = {random_values(random, rows * d, test.dtype, 0.f, 1.f), d, 0};
    in.z = {random_values(random, rows * d, test.dtype, 0.f, 2.f), d, 0};
    in.b = {random_values(random, rows * n, test.dtype, 0.f, 1.f), n, 0};
    in.c = {random_values(random, rows * n, test.dtype, 0.f, 1.f), n, 0};
  }
  // With the bias' mean of -3: steps from 1e-3 to 1, and now and then one in
  // softplus' linear range or so small that the state stands still.
  in.delta = {random_values(random, rows * d, test.dtype, 0.f, 2.f), d, 0};
  for (size_t i = 0; i < in.delta.values.size(); i += 97) in.delta.values[i] = i % 2 == 0 ? 30.f : -30.f;
  in.delta_bias = random_values(random, d, DType::kFloat32, -3.f, 1.f);
  in.d_skip = random_values(random, d, DType::kFloat32, 0.f, 1.f);
  // Around Mamba's initialisation log(1..N), but not on it.
  in.a_log = random_values(random, d * n, DType::kFloat32, 0.f, 0.3f);
  for (int64_t i = 0; i < d * n; ++i) in.a_log[i] += std::log(static_cast<float>(i % n + 1));
  in.state = random_values(random, test.batch * d * n, DType::kFloat32, 0.f, 1.f);
  for (int64_t b = 0; b < test.batch; ++b) {
    int64_t length = test.tokens;
    if (test.lengths == Lengths::kZero) length = 0;
    if (test.lengths == Lengths::kRagged)
      length = b == 1 ? 0 : std::uniform_int_distribution<int64_t>(0, test.tokens)(random);
    in.lengths.push_back(length);
    if (test.poison_padding)
      for (int64_t row = b * test.tokens + length; row < (b + 1) * test.tokens; ++row)
        for (Rows* rows_of : {&in.u, &in.delta, &in.b, &in.c, &in.z})
          std::fill_n(rows_of->values.begin() + row * rows_of->stride, rows_of->stride, NAN);
  }
  return in;
}

/// Runs tokens [first, first + tokens) of the case's inputs from `state`.
Outputs run(const Case& test, const Inputs& in, const std::vector<float>& state, int64_t first, int64_t tokens) {
  const auto slice = [&](const Rows& rows) {
    std::vector<float> part;
    for (int64_t b = 0; b < test.batch; ++b) {
      const auto from = rows.values.begin() + (b * test.tokens + first) * rows.stride;
      part.insert(part.end(), from, from + tokens * rows.stride);
    }
    return upload(encode(part, test.dtype));
  };
  const size_t size = size_of(test.dtype);
  const DeviceBuffer u = slice(in.u), delta = slice(in.delta), b = slice(in.b), c = slice(in.c), z = slice(in.z);
  const DeviceBuffer a_log = upload_values(in.a_log), d_skip = upload_values(in.d_skip);
  const DeviceBuffer delta_bias = upload_values(in.delta_bias);
  std::vector<int64_t> part_lengths;
  for (int64_t length : in.lengths) part_lengths.push_back(length - first);
  const DeviceBuffer lengths = upload_values(part_lengths);
  const DeviceBuffer state_in = upload_values(state);
  DeviceBuffer state_out(state.size() * sizeof(float));
  state_out.fill(0xff);
  const int64_t y_stride = test.channels + (test.packed ? kYGap : 0);
  DeviceBuffer y(test.batch * tokens * y_stride * size);
  y.fill(0xff);
  const auto at = [&](const DeviceBuffer& buffer, const Rows& rows) {
    return static_cast<const char*>(buffer.data()) + rows.offset * size;
  };

  SelectiveScanParams params{};
  params.batch = test.batch;
  params.tokens = tokens;
  params.channels = test.channels;
  params.states = test.states;
  params.u = at(u, in.u);
  params.u_row_stride = in.u.stride;
  params.delta = at(delta, in.delta);
  params.delta_row_stride = in.delta.stride;
  params.b = at(b, in.b);
  params.b_row_stride = in.b.stride;
  params.c = at(c, in.c);
  params.c_row_stride = in.c.stride;
  params.z = test.gate ? at(z, in.z) : nullptr;
  params.z_row_stride = in.z.stride;
  params.y = y.data();
  params.y_row_stride = y_stride;
  params.a_log = static_cast<const float*>(a_log.data());
  params.d_skip = static_cast<const float*>(d_skip.data());
  params.delta_bias = test.bias ? static_cast<const float*>(delta_bias.data()) : nullptr;
  params.lengths = test.lengths == Lengths::kNone ? nullptr : static_cast<const int64_t*>(lengths.data());
  params.state_in = static_cast<const float*>(state_in.data());
  params.state_out = static_cast<float*>(test.in_place ? state_in.data() : state_out.data());
  CUDA_CHECK(selective_scan(params, test.dtype, nullptr));
  CUDA_CHECK(cudaDeviceSynchronize());

  Outputs out;
  out.state = decode(download(test.in_place ? state_in : state_out), DType::kFloat32);
  const std::vector<unsigned char> raw = download(y);
  const std::vector<float> rows = decode(raw, test.dtype);
  for (int64_t row = 0; row < test.batch * tokens; ++row) {
    out.y.insert(out.y.end(), rows.begin() + row * y_stride, rows.begin() + row * y_stride + test.channels);
    for (size_t i = (row * y_stride + test.channels) * size; i < (row + 1) * y_stride * size; ++i)
      if (raw[i] != 0xff) out.gaps_untouched = false;
  }
  return out;
}

// float32 arithmetic relative to the sum of the terms' magnitudes: a decay is
// known to 2^-22, and a state that remembers k tokens multiplies k of them, with
// k ~ 1 / (delta |A|) of at most some hundred here.
constexpr double kArithmetic = 3e-5;

struct Expected {
  std::vector<double> y, y_bound;          // [B,T,D]
  std::vector<double> state, state_bound;  // [B,D,N]
};

Expected reference(const Case& test, const Inputs& in) {
  Expected want;
  want.y.resize(test.batch * test.tokens * test.channels);
  want.y_bound.resize(want.y.size());
  want.state.resize(test.batch * test.channels * test.states);
  want.state_bound.resize(want.state.size());
  parallel_for(test.batch * test.channels, [&](int64_t index) {
    const int64_t b = index / test.channels, d = index % test.channels;
    std::vector<double> a(test.states), h(test.states), magnitude(test.states);
    for (int64_t n = 0; n < test.states; ++n) {
      a[n] = -std::exp(static_cast<double>(in.a_log[d * test.states + n]));
      h[n] = in.state[index * test.states + n];
      magnitude[n] = std::abs(h[n]);
    }
    for (int64_t t = 0; t < test.tokens; ++t) {
      const int64_t row = b * test.tokens + t;
      const double u = in.u.at(row, d);
      const double raw = in.delta.at(row, d) + (test.bias ? static_cast<double>(in.delta_bias[d]) : 0.0);
      const double delta = raw > 30 ? raw : std::log1p(std::exp(raw));
      double y = in.d_skip[d] * u, size = std::abs(y);
      for (int64_t n = 0; n < test.states; ++n) {
        if (t < in.lengths[b]) {
          const double decay = std::exp(delta * a[n]), input = delta * in.b.at(row, n) * u;
          h[n] = decay * h[n] + input;
          magnitude[n] = decay * magnitude[n] + std::abs(input);
        }
        y += in.c.at(row, n) * h[n];
        size += std::abs(in.c.at(row, n)) * magnitude[n];
      }
      if (test.gate) {
        const double z = in.z.at(row, d), gate = z / (1 + std::exp(-z));
        y *= gate;
        size *= std::abs(gate);
      }
      const int64_t at = row * test.channels + d;
      want.y[at] = y;
      want.y_bound[at] =
          output_rounding(test.dtype) * std::abs(y) + kArithmetic * size + output_floor(test.dtype);
    }
    for (int64_t n = 0; n < test.states; ++n) {
      want.state[index * test.states + n] = h[n];
      want.state_bound[index * test.states + n] = kArithmetic * magnitude[n] + 1e-37;
    }
  });
  return want;
}

std::string compare(const Case& test, const Inputs& in, const Expected& want, const Outputs& got) {
  WorstError y, state;
  for (size_t i = 0; i < want.y.size(); ++i) {
    const int64_t row = static_cast<int64_t>(i) / test.channels;
    const bool padding = row % test.tokens >= in.lengths[row / test.tokens];
    if (!(padding && test.poison_padding)) y.add(static_cast<int64_t>(i), got.y[i], want.y[i], want.y_bound[i]);
  }
  for (size_t i = 0; i < want.state.size(); ++i)
    state.add(static_cast<int64_t>(i), got.state[i], want.state[i], want.state_bound[i]);
  return y.failure("y") + state.failure("state") + (got.gaps_untouched ? "" : "wrote between y's rows");
}

void check(Tally& tally, const Case& test, std::mt19937_64& random) {
  const Inputs in = make_inputs(test, random);
  tally.record(test.name(), compare(test, in, reference(test, in), run(test, in, in.state, 0, test.tokens)));
}

/// The same tokens in several runs, each from the state the last one left.
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
    joined.gaps_untouched = joined.gaps_untouched && part.gaps_untouched;
    first += chunk;
  }
  tally.record("chunked " + test.name(), compare(test, in, reference(test, in), joined));
  // Both runs evaluate each token alike, so the state does not even differ in rounding.
  const Outputs whole = run(test, in, in.state, 0, test.tokens);
  tally.record("chunked state equals whole " + test.name(), whole.state == joined.state ? "" : "bits differ");
}

void check_refusals(Tally& tally) {
  const DeviceBuffer memory(1024);
  float* const any = static_cast<float*>(memory.data());
  const SelectiveScanParams good{1, 1, 1, 1, any, any, any, any, any, any, 1, 1, 1, 1, 1, 1, any, any, any, nullptr, any, any};
  const auto refuse = [&](const char* name, SelectiveScanParams params) {
    const cudaError_t status = selective_scan(params, DType::kFloat32, nullptr);
    tally.record(name, status == cudaErrorInvalidValue ? "" : cudaGetErrorName(status));
  };
  const auto with = [&](auto change) {
    SelectiveScanParams params = good;
    change(params);
    return params;
  };
  refuse("no tokens", with([](auto& p) { p.tokens = 0; }));
  refuse("no batch", with([](auto& p) { p.batch = 0; }));
  refuse("too many batches", with([](auto& p) { p.batch = 65536; }));
  refuse("no channels", with([](auto& p) { p.channels = 0; }));
  refuse("no states", with([](auto& p) { p.states = 0; }));
  refuse("too many states", with([](auto& p) { p.states = kSelectiveScanMaxStates + 1; }));
  refuse("no u", with([](auto& p) { p.u = nullptr; }));
  refuse("no state_out", with([](auto& p) { p.state_out = nullptr; }));
}

}  // namespace

int main(int argc, char** argv) {
  require_device("selective_scan_test");
  const bool quick = argc > 1 && std::string(argv[1]) == "--quick";
  const uint64_t seed = std::random_device{}();
  std::printf("selective_scan_test seed %llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  const auto coin = [&] { return random() % 2 == 0; };
  Tally tally;

  const std::vector<DType> dtypes{DType::kBFloat16, DType::kFloat16, DType::kFloat32};
  const std::vector<int64_t> token_counts = quick ? std::vector<int64_t>{1, 9, 70} : std::vector<int64_t>{1, 2, 129, 1134};
  const std::vector<int64_t> channel_counts = quick ? std::vector<int64_t>{7, 96} : std::vector<int64_t>{1, 7, 96, 8192};
  for (DType dtype : dtypes)
    for (int64_t tokens : token_counts)
      for (int64_t channels : channel_counts)
        for (int64_t batch : {1, 3})
          for (int64_t states : {8, 16, 64}) {
            Case test{dtype, batch, tokens, channels, states};
            test.gate = coin();
            test.bias = coin();
            test.lengths = coin() ? Lengths::kNone : Lengths::kRagged;
            test.in_place = coin();
            test.packed = coin();
            test.poison_padding = test.lengths != Lengths::kNone && coin();
            check(tally, test, random);
          }
  // Each width of thread block on a card of about a hundred multiprocessors.
  for (DType dtype : dtypes)
    for (int64_t channels : {1000, 3000, 8200}) check(tally, Case{dtype, 1, 75, channels, 16}, random);
  // Every combination of options, on either kernel.
  for (int options = 0; options < 64; ++options)
    for (int64_t tokens : {2, 75}) {
      Case test{dtypes[options % 3], 2, tokens, 72, 16};
      test.gate = options & 1;
      test.bias = options & 2;
      test.in_place = options & 4;
      test.packed = options & 8;
      test.lengths = options & 16 ? Lengths::kRagged : Lengths::kNone;
      test.poison_padding = test.lengths == Lengths::kRagged && (options & 32) != 0;
      check(tally, test, random);
    }
  for (DType dtype : dtypes)
    for (int64_t states : {1, 5, 12, 24, 32, 100, 128})
      for (int64_t tokens : {2, 50}) check(tally, Case{dtype, 2, tokens, 40, states}, random);
  for (DType dtype : dtypes)
    for (int64_t tokens : {2, 60}) {
      Case test{dtype, 2, tokens, 96, 16};
      test.lengths = Lengths::kZero;
      test.poison_padding = true;
      check(tally, test, random);
    }
  for (DType dtype : dtypes) {
    const int64_t channels = quick ? 72 : 520;
    check_chunks(tally, Case{dtype, 2, 80, channels, 16}, {1, 9, 2, 33, 35}, random);
    if (!quick) check_chunks(tally, Case{dtype, 1, 1134, channels, 16}, {500, 1, 1, 8, 624}, random);
    check_chunks(tally, Case{dtype, 2, 80, channels, 64}, {16, 1, 63}, random);
  }
  check_refusals(tally);
  return tally.finish();
}
