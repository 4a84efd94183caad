// mamba_inner against a float64 reference. --quick for the sanitizer.

#include "mamba_inner.cuh"

#include "check.h"

using namespace layerweave;

namespace {

struct Case {
  DType dtype;
  PackedType weights;
  int64_t batch, tokens, channels, states, dt_rank, kernel;
  bool norms = true, conv_bias = true, dt_bias = true;
  bool lengths = false;   // ragged, some 0; NaN in xz behind them
  bool in_place = false;

  // The kernels' two ways round in different places; many sequences of a large R
  // find no room in the first one's shared memory.
  bool decodes() const {
    const int64_t dt = (dt_rank + 7) / 8 * 8, row = (dt_rank + 2 * states + 31) / 32 * 32;
    return tokens == 1 && batch <= 16 && batch * ((dt + 8) * 2 + (row + 8) * 4) <= 30 << 10;
  }
  std::string name() const {
    char text[240];
    std::snprintf(text, sizeof text, "%s %s B%lld T%lld I%lld N%lld R%lld K%lld%s%s%s%s%s", name_of(dtype), weights == PackedType::kInt8 ? "int8" : "16-bit",
                  static_cast<long long>(batch), static_cast<long long>(tokens), static_cast<long long>(channels), static_cast<long long>(states),
                  static_cast<long long>(dt_rank), static_cast<long long>(kernel), norms ? " norms" : "", conv_bias ? " conv-bias" : "",
                  dt_bias ? " dt-bias" : "", lengths ? " lengths" : "", in_place ? " in-place" : "");
    return text;
  }
};

double rounded(double x, DType dtype) {
  const float value = static_cast<float>(x);
  if (dtype == DType::kFloat16) return __half2float(__float2half_rn(value));
  return __bfloat162float(__float2bfloat16_rn(value));
}

struct Weights {
  std::vector<float> values, scale;  // scaled values; scale of the packed rows
  std::vector<unsigned char> packed;
};

Weights random_weights(const Case& test, int64_t rows, int64_t columns, float deviation, std::mt19937_64& random) {
  const bool int8 = test.weights == PackedType::kInt8;
  Weights w{random_values(random, rows * columns, test.dtype, 0.f, int8 ? 45.f : deviation), {}, {}};
  w.scale.assign(packed_panels(rows) * kPanelRows, NAN);
  w.packed.resize(packed_elements(rows, columns) * (int8 ? 1 : 2));
  const auto row_at = [](int64_t r) { return r; };
  if (int8) {
    std::vector<int8_t> codes(w.values.size());
    for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<int8_t>(std::clamp(std::nearbyint(w.values[i]), -127.f, 127.f));
    pack_rows(test.weights, codes.data(), rows, columns, row_at, reinterpret_cast<int8_t*>(w.packed.data()));
    for (int64_t r = 0; r < rows; ++r) {
      w.scale[r] = deviation / 45.f * (0.5f + static_cast<float>(random() % 1000) * 0.001f);
      for (int64_t c = 0; c < columns; ++c) w.values[r * columns + c] = w.scale[r] * codes[r * columns + c];
    }
  } else {
    const std::vector<unsigned char> bytes = encode(w.values, test.dtype);
    pack_rows(test.weights, reinterpret_cast<const uint16_t*>(bytes.data()), rows, columns, row_at, reinterpret_cast<uint16_t*>(w.packed.data()));
  }
  return w;
}

struct Inputs {
  std::vector<float> xz, conv_weight, conv_bias, dt_norm, b_norm, c_norm, dt_bias, a_log, d_skip, conv_state, ssm_state;
  Weights x_proj, dt_proj;
  std::vector<int64_t> lengths;
};

constexpr float kEps[3] = {1e-6f, 1e-5f, 1e-3f};

Inputs make_inputs(const Case& test, std::mt19937_64& random) {
  const int64_t i = test.channels, n = test.states, r = test.dt_rank, rows = test.batch * test.tokens;
  const DType dtype = test.dtype, f32 = DType::kFloat32;
  Inputs in;
  in.xz = random_values(random, rows * 2 * i, dtype, 0.f, 1.f);
  in.conv_weight = random_values(random, i * test.kernel, dtype, 0.f, 0.6f);
  in.conv_bias = random_values(random, i, dtype, 0.f, 0.5f);
  in.dt_norm = random_values(random, r, dtype, 1.f, 0.3f);
  in.b_norm = random_values(random, n, dtype, 1.f, 0.3f);
  in.c_norm = random_values(random, n, dtype, 1.f, 0.3f);
  in.dt_bias = random_values(random, i, f32, -3.f, 1.f);
  in.a_log = random_values(random, i * n, f32, 0.5f, 0.7f);
  in.d_skip = random_values(random, i, f32, 1.f, 0.5f);
  in.conv_state = random_values(random, test.batch * i * (test.kernel - 1), dtype, 0.f, 1.f);
  in.ssm_state = random_values(random, test.batch * i * n, f32, 0.f, 0.5f);
  in.x_proj = random_weights(test, r + 2 * n, i, 2.f / std::sqrt(static_cast<float>(i)), random);
  in.dt_proj = random_weights(test, i, r, 0.7f / std::sqrt(static_cast<float>(r)), random);
  if (test.lengths)
    for (int64_t b = 0; b < test.batch; ++b) {
      in.lengths.push_back(b % 3 == 1 ? 0 : static_cast<int64_t>(random() % static_cast<uint64_t>(test.tokens + 1)));
      for (int64_t t = in.lengths[b]; t < test.tokens; ++t)
        std::fill_n(in.xz.begin() + (b * test.tokens + t) * 2 * i, 2 * i, NAN);
    }
  return in;
}

/// What the layer makes of the inputs, in float64 but rounded where a tensor of
/// the activations' type lies between two steps, and how large the terms of each
/// result are.
struct Reference {
  std::vector<double> y, y_size, ssm_state, ssm_size;
  std::vector<float> conv_state;
};

Reference reference(const Case& test, const Inputs& in) {
  const int64_t channels = test.channels, n = test.states, r = test.dt_rank, k = test.kernel, rows = test.batch * test.tokens, width = r + 2 * n;
  const auto between = [&](double x) { return test.decodes() ? x : rounded(x, test.dtype); };
  std::vector<double> u(rows * channels), mixed(rows * width), raw(rows * channels);
  // What the terms of these sums amount to, as random errors add up.
  std::vector<double> mixed_spread(rows * width), raw_spread(rows * channels);
  Reference out;
  out.conv_state.resize(in.conv_state.size());
  const auto live = [&](int64_t b) { return test.lengths ? in.lengths[b] : test.tokens; };
  parallel_for(test.batch * channels, [&](int64_t at) {
    const int64_t b = at / channels, c = at % channels;
    const auto input = [&](int64_t t) {
      return t < 0 ? in.conv_state[at * (k - 1) + t + k - 1] : in.xz[(b * test.tokens + t) * 2 * channels + c];
    };
    for (int64_t t = 0; t < live(b); ++t) {
      double sum = test.conv_bias ? in.conv_bias[c] : 0.f;
      for (int64_t j = 0; j < k; ++j) sum += static_cast<double>(in.conv_weight[c * k + j]) * input(t - k + 1 + j);
      u[(b * test.tokens + t) * channels + c] = rounded(sum / (1 + std::exp(-sum)), test.dtype);
    }
    for (int64_t j = 0; j < k - 1; ++j) out.conv_state[at * (k - 1) + j] = input(live(b) - k + 1 + j);
  });
  parallel_for(rows, [&](int64_t row) {
    if (row % test.tokens >= live(row / test.tokens)) return;
    double* to = &mixed[row * width];
    double* spread = &mixed_spread[row * width];
    for (int64_t p = 0; p < width; ++p) {
      double sum = 0, squares = 0;
      for (int64_t c = 0; c < channels; ++c) {
        const double term = in.x_proj.values[p * channels + c] * u[row * channels + c];
        sum += term;
        squares += term * term;
      }
      to[p] = between(sum);
      spread[p] = std::sqrt(squares);
    }
    const auto norm = [&](int64_t first, int64_t count, const std::vector<float>& weight, double eps) {
      double squares = 0;
      for (int64_t p = first; p < first + count; ++p) squares += to[p] * to[p];
      for (int64_t p = first; p < first + count; ++p) {
        const double factor = weight[p - first] / std::sqrt(squares / static_cast<double>(count) + eps);
        to[p] *= factor;
        spread[p] *= std::abs(factor);
      }
    };
    if (test.norms) norm(0, r, in.dt_norm, kEps[0]), norm(r, n, in.b_norm, kEps[1]), norm(r + n, n, in.c_norm, kEps[2]);
    for (int64_t p = 0; p < width; ++p) to[p] = p < r ? rounded(to[p], test.dtype) : between(to[p]);
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0, squares = 0;
      for (int64_t p = 0; p < r; ++p) {
        const double weight = in.dt_proj.values[c * r + p];
        sum += weight * to[p];
        squares += weight * weight * (to[p] * to[p] + spread[p] * spread[p]);
      }
      raw[row * channels + c] = between(sum);
      raw_spread[row * channels + c] = std::sqrt(squares) + std::abs(sum);
    }
  });
  out.y.resize(rows * channels);
  out.y_size.resize(rows * channels);
  out.ssm_state.assign(in.ssm_state.begin(), in.ssm_state.end());
  out.ssm_size.resize(in.ssm_state.size());
  parallel_for(test.batch * channels, [&](int64_t at) {
    const int64_t b = at / channels, c = at % channels;
    double* h = &out.ssm_state[at * n];
    double* size = &out.ssm_size[at * n];
    for (int64_t s = 0; s < n; ++s) size[s] = std::abs(h[s]);
    for (int64_t t = 0; t < live(b); ++t) {
      const int64_t row = b * test.tokens + t;
      const double x = raw[row * channels + c] + (test.dt_bias ? in.dt_bias[c] : 0.f), delta = x > 30 ? x : std::log1p(std::exp(x));
      const double input = u[row * channels + c], z = in.xz[row * 2 * channels + channels + c], gate = z / (1 + std::exp(-z));
      const double delta_spread = raw_spread[row * channels + c] / (1 + std::exp(-x));
      double sum = in.d_skip[c] * input, terms = std::abs(sum);
      for (int64_t s = 0; s < n; ++s) {
        const double a = -std::exp(static_cast<double>(in.a_log[c * n + s])), decay = std::exp(delta * a);
        const int64_t b_at = row * width + r + s, c_at = b_at + n;
        size[s] = decay * size[s] - decay * a * (delta + delta_spread) * std::abs(h[s]) +
                  (delta * (std::abs(mixed[b_at]) + mixed_spread[b_at]) + delta_spread * std::abs(mixed[b_at])) * std::abs(input);
        h[s] = decay * h[s] + delta * mixed[b_at] * input;
        sum += mixed[c_at] * h[s];
        terms += std::abs(mixed[c_at]) * size[s] + mixed_spread[c_at] * std::abs(h[s]);
      }
      out.y[row * channels + c] = sum * gate;
      out.y_size[row * channels + c] = terms * std::abs(gate);
    }
  });
  return out;
}

void check(Tally& tally, const Case& test, std::mt19937_64& random) {
  const Inputs in = make_inputs(test, random);
  const auto upload_typed = [&](const std::vector<float>& values) { return upload(encode(values, test.dtype)); };
  const DeviceBuffer xz = upload_typed(in.xz), conv_weight = upload_typed(in.conv_weight), conv_bias = upload_typed(in.conv_bias),
                     dt_norm = upload_typed(in.dt_norm), b_norm = upload_typed(in.b_norm), c_norm = upload_typed(in.c_norm),
                     x_proj = upload(in.x_proj.packed), dt_proj = upload(in.dt_proj.packed), x_scale = upload_values(in.x_proj.scale),
                     dt_scale = upload_values(in.dt_proj.scale), dt_bias = upload_values(in.dt_bias), a_log = upload_values(in.a_log),
                     d_skip = upload_values(in.d_skip), lengths = upload_values(in.lengths), conv_in = upload_typed(in.conv_state),
                     ssm_in = upload_values(in.ssm_state);
  DeviceBuffer conv_out(conv_in.bytes()), ssm_out(ssm_in.bytes()), y(test.batch * test.tokens * test.channels * 2);
  const auto floats = [](const DeviceBuffer& buffer) { return static_cast<const float*>(buffer.data()); };
  const bool int8 = test.weights == PackedType::kInt8;
  MambaInnerParams params{};
  params.batch = test.batch;
  params.tokens = test.tokens;
  params.channels = test.channels;
  params.states = test.states;
  params.dt_rank = test.dt_rank;
  params.kernel = test.kernel;
  params.weights = test.weights;
  DeviceBuffer workspace(mamba_inner_workspace(params)), arrivals(mamba_inner_arrivals(params) * 4);
  params.xz = xz.data();
  params.conv_weight = conv_weight.data();
  params.conv_bias = test.conv_bias ? conv_bias.data() : nullptr;
  params.x_proj = x_proj.data();
  params.x_proj_scale = int8 ? floats(x_scale) : nullptr;
  if (test.norms) params.dt_norm = dt_norm.data(), params.b_norm = b_norm.data(), params.c_norm = c_norm.data();
  params.dt_eps = kEps[0];
  params.b_eps = kEps[1];
  params.c_eps = kEps[2];
  params.dt_proj = dt_proj.data();
  params.dt_proj_scale = int8 ? floats(dt_scale) : nullptr;
  params.dt_bias = test.dt_bias ? floats(dt_bias) : nullptr;
  params.a_log = floats(a_log);
  params.d_skip = floats(d_skip);
  params.lengths = test.lengths ? static_cast<const int64_t*>(lengths.data()) : nullptr;
  params.conv_state_in = test.in_place ? conv_out.data() : conv_in.data();
  params.conv_state_out = conv_out.data();
  params.ssm_state_in = test.in_place ? floats(ssm_out) : floats(ssm_in);
  params.ssm_state_out = static_cast<float*>(ssm_out.data());
  params.y = y.data();
  params.workspace = workspace.data();
  params.arrivals = static_cast<uint32_t*>(arrivals.data());
  arrivals.fill(0);
  std::vector<unsigned char> first_y, first_ssm;
  for (int run = 0; run < 2; ++run) {
    y.fill(0xff);
    workspace.fill(0xff);
    conv_out.fill(0xff);
    ssm_out.fill(0xff);
    if (test.in_place) {
      CUDA_CHECK(cudaMemcpy(conv_out.data(), conv_in.data(), conv_in.bytes(), cudaMemcpyDeviceToDevice));
      CUDA_CHECK(cudaMemcpy(ssm_out.data(), ssm_in.data(), ssm_in.bytes(), cudaMemcpyDeviceToDevice));
    }
    CUDA_CHECK(mamba_inner(params, test.dtype, nullptr));
    CUDA_CHECK(cudaDeviceSynchronize());
    if (run == 0) first_y = download(y), first_ssm = download(ssm_out);
  }
  tally.record("repeats " + test.name(), first_y == download(y) && first_ssm == download(ssm_out) ? "" : "bits differ");
  const std::vector<unsigned char> counters = download(arrivals);
  tally.record("counters " + test.name(), std::all_of(counters.begin(), counters.end(), [](int c) { return c == 0; }) ? "" : "not reset");

  const Reference want = reference(test, in);
  const std::vector<float> got_y = decode(first_y, test.dtype), got_ssm = decode(first_ssm, DType::kFloat32);
  // A value next to a rounding boundary may fall to its other side; what follows
  // then moves by a unit in the last place of its terms.
  const double unit = 2 * output_rounding(test.dtype);
  WorstError y_error, ssm_error;
  double y_squares = 0, size_squares = 0, error_squares = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(got_y.size()); ++i) {
    const int64_t row = i / test.channels;
    if (test.lengths && row % test.tokens >= in.lengths[row / test.tokens]) continue;
    y_error.add(i, got_y[i], want.y[i], unit / 2 * std::abs(want.y[i]) + 2 * unit * want.y_size[i] + output_floor(test.dtype));
    y_squares += want.y[i] * want.y[i];
    size_squares += want.y_size[i] * want.y_size[i];
    error_squares += (got_y[i] - want.y[i]) * (got_y[i] - want.y[i]);
  }
  std::string failure = y_error.failure("y");
  // Rounding y alone makes an error of about a third of a unit in its last place; of a few dt one that falls to the other side
  // moves all of y, by 0.012 units of its terms at most as seen.
  if (!(std::sqrt(error_squares) <= unit * (0.6 * std::sqrt(y_squares) + 0.03 * std::sqrt(size_squares)) + 1e-30)) failure += "error of y " + std::to_string(std::sqrt(error_squares / y_squares)) + " of its size. ";
  for (int64_t i = 0; i < static_cast<int64_t>(got_ssm.size()); ++i) {
    const bool still = test.lengths && in.lengths[i / (test.channels * test.states)] == 0;
    ssm_error.add(i, got_ssm[i], want.ssm_state[i], still ? 1e-30 : 2 * unit * want.ssm_size[i] + 1e-7);
  }
  failure += ssm_error.failure("ssm state");
  if (download(conv_out) != encode(want.conv_state, test.dtype)) failure += "conv state differs. ";
  tally.record(test.name(), failure);
}

void check_refusals(Tally& tally) {
  const DeviceBuffer memory(4096);
  void* const any = memory.data();
  const auto refuse = [&](const char* name, DType dtype, auto change) {
    MambaInnerParams p{};
    p.batch = p.tokens = 1;
    p.channels = p.states = p.dt_rank = 8;
    p.kernel = 4;
    p.weights = PackedType::kInt8;
    p.xz = p.conv_weight = p.x_proj = p.dt_proj = p.conv_state_in = any;
    p.conv_state_out = p.y = p.workspace = any;
    p.x_proj_scale = p.dt_proj_scale = p.a_log = p.d_skip = p.ssm_state_in = static_cast<float*>(any);
    p.ssm_state_out = static_cast<float*>(any);
    p.arrivals = static_cast<uint32_t*>(any);
    change(p);
    const cudaError_t status = mamba_inner(p, dtype, nullptr);
    tally.record(name, status == cudaErrorInvalidValue ? "" : cudaGetErrorName(status));
  };
  const DType bf16 = DType::kBFloat16;
  refuse("float32", DType::kFloat32, [](auto&) {});
  refuse("no tokens", bf16, [](auto& p) { p.tokens = 0; });
  refuse("12 channels", bf16, [](auto& p) { p.channels = 12; });
  refuse("129 states", bf16, [](auto& p) { p.states = 129; });
  refuse("kernel of 5", bf16, [](auto& p) { p.kernel = 5; });
  refuse("no dt rank", bf16, [](auto& p) { p.dt_rank = 0; });
  refuse("one norm of three", bf16, [](auto& p) { p.b_norm = p.xz; });
  refuse("no scale", bf16, [](auto& p) { p.dt_proj_scale = nullptr; });
  refuse("misaligned xz", bf16, [](auto& p) { p.xz = static_cast<const char*>(p.xz) + 2; });
  refuse("no workspace", bf16, [](auto& p) { p.workspace = nullptr; });
}

}  // namespace

int main(int argc, char** argv) {
  require_device("mamba_inner_test");
  const bool quick = argc > 1 && std::string(argv[1]) == "--quick";
  const uint64_t seed = std::random_device{}();
  std::printf("mamba_inner_test seed %llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  Tally tally;
  struct Sizes {
    int64_t channels, states, dt_rank, kernel;
  };
  std::vector<Sizes> sizes{{128, 16, 4, 4}, {24, 5, 1, 2}, {72, 8, 12, 3}};
  if (!quick) sizes.insert(sizes.end(), {{8, 1, 7, 4}, {104, 33, 40, 2}, {128, 64, 8, 3}, {40, 128, 9, 4}, {1032, 16, 72, 4}, {64, 12, 1000, 4}});
  struct Shape {
    int64_t batch, tokens;
  };
  std::vector<Shape> shapes{{1, 1}, {5, 1}, {2, 3}, {3, 17}};
  if (!quick) shapes.insert(shapes.end(), {{2, 1}, {8, 1}, {9, 1}, {16, 1}, {17, 1}, {40, 1}, {1, 2}, {7, 2}, {1, 40}, {3, 150}});
  for (DType dtype : {DType::kBFloat16, DType::kFloat16})
    for (PackedType weights : {PackedType::kInt8, PackedType::k16Bit})
      for (const Sizes& s : sizes)
        for (const Shape& shape : shapes) {
          Case test{dtype, weights, shape.batch, shape.tokens, s.channels, s.states, s.dt_rank, s.kernel};
          test.norms = random() % 3 != 0;
          test.conv_bias = random() % 3 != 0;
          test.dt_bias = random() % 3 != 0;
          test.lengths = random() % 2 == 0;
          test.in_place = random() % 2 == 0;
          check(tally, test, random);
        }
  if (!quick)
    for (int64_t batch : {1, 16})
      for (int64_t tokens : {1, 40}) check(tally, Case{DType::kBFloat16, PackedType::kInt8, batch, tokens, 8192, 16, 256, 4, true, true, true, true, true}, random);
  check_refusals(tally);
  return tally.finish();
}
