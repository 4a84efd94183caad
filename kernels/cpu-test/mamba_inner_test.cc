#include "cpu/mamba_inner.h"

#include "check.h"

using namespace layerweave::cpu;

namespace {

struct Case {
  std::string name;
  int64_t batch, tokens, channels, states, dt_rank, kernel;
  std::vector<int64_t> lengths;
  bool norms = true, bias = true, in_place = true;
  bool hostile_padding = false;  // NaN behind lengths[b]
};

struct Matrix {
  std::vector<int8_t> codes;
  std::vector<float> scales;
};

Matrix random_matrix(std::mt19937_64& random, int64_t rows, int64_t columns) {
  Matrix made = {std::vector<int8_t>(static_cast<size_t>(rows * columns)), random_values(random, rows, 0.02f / std::sqrt(static_cast<float>(columns)), 0.001f / std::sqrt(static_cast<float>(columns)))};
  for (int8_t& code : made.codes) code = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
  return made;
}

/// A number in float64, and how far the kernel's may be from it.
struct Bounded {
  double value = 0, error = 0;
};

std::vector<Bounded> project(const Matrix& w, const std::vector<Bounded>& x) {
  std::vector<double> values(x.size());
  for (size_t k = 0; k < x.size(); ++k) values[k] = x[k].value;
  const std::vector<double> rounding = rounding_sizes(values);
  std::vector<Bounded> y(w.scales.size());
  for (size_t n = 0; n < y.size(); ++n)
    for (size_t k = 0; k < x.size(); ++k) {
      const double weight = static_cast<double>(w.codes[n * x.size() + k]) * w.scales[n];
      y[n].value += weight * values[k];
      y[n].error += std::abs(weight) * (x[k].error + 1e-6 * (std::abs(values[k]) + 1.1 * rounding[k]));
    }
  return y;
}

void normalise(Bounded* x, const std::vector<float>& scale, double eps) {
  double squares = 0, wrong = 0;
  for (size_t i = 0; i < scale.size(); ++i) {
    squares += x[i].value * x[i].value;
    wrong += std::abs(x[i].value) * x[i].error;
  }
  const double count = static_cast<double>(scale.size()), mean = squares / count + eps, factor = 1 / std::sqrt(mean);
  for (size_t i = 0; i < scale.size(); ++i) {
    const double weight = std::abs(factor * scale[i]);
    x[i] = {x[i].value * factor * scale[i], weight * (x[i].error + std::abs(x[i].value) * (wrong / count / mean + 2e-6))};
  }
}

std::string run(const Case& c, Isa isa, std::mt19937_64& random) {
  const int64_t I = c.channels, N = c.states, R = c.dt_rank, K = c.kernel, rows = c.batch * c.tokens;
  std::vector<float> xz = random_values(random, rows * 2 * I, 0, 1);
  const std::vector<float> taps = random_values(random, I * K, 0, 0.5f), conv_bias = random_values(random, I, 0, 0.5f);
  const Matrix x_proj = random_matrix(random, R + 2 * N, I), dt_proj = random_matrix(random, I, R);
  const std::vector<float> dt_norm = random_values(random, R, 1, 0.2f), b_norm = random_values(random, N, 1, 0.2f), c_norm = random_values(random, N, 1, 0.2f);
  const std::vector<float> dt_bias = random_values(random, I, -3, 1), a_log = random_values(random, I * N, 0.5f, 1), skip = random_values(random, I, 0, 1);
  const std::vector<float> conv_state = random_values(random, c.batch * I * (K - 1), 0, 1), ssm_state = random_values(random, c.batch * I * N, 0, 1);
  if (c.hostile_padding)
    for (int64_t row = 0; row < c.batch; ++row)
      for (int64_t at = (row * c.tokens + c.lengths[static_cast<size_t>(row)]) * 2 * I; at < (row + 1) * c.tokens * 2 * I; ++at) xz[static_cast<size_t>(at)] = NAN;

  std::vector<float> y(static_cast<size_t>(rows * I), -7), conv_out(conv_state.size(), -7), ssm_out(ssm_state.size(), -7);
  if (c.in_place) conv_out = conv_state, ssm_out = ssm_state;
  MambaInnerParams p = {c.batch, c.tokens, I, N, R, K, xz.data(), taps.data(), c.bias ? conv_bias.data() : nullptr, x_proj.codes.data(), x_proj.scales.data(),
                        c.norms ? dt_norm.data() : nullptr, c.norms ? b_norm.data() : nullptr, c.norms ? c_norm.data() : nullptr, 1e-5f, 1e-6f, 1e-3f,
                        dt_proj.codes.data(), dt_proj.scales.data(), dt_bias.data(), a_log.data(), skip.data(), c.lengths.data(),
                        c.in_place ? conv_out.data() : conv_state.data(), conv_out.data(), c.in_place ? ssm_out.data() : ssm_state.data(), ssm_out.data(), y.data(), nullptr};
  const Scratch scratch(mamba_inner_scratch(p));
  p.scratch = scratch.data();
  if (const char* wrong = mamba_inner(p, threads(), isa)) return wrong;

  WorstError worst_y, worst_conv, worst_ssm;
  for (int64_t row = 0; row < c.batch; ++row) {
    const int64_t length = c.lengths[static_cast<size_t>(row)];
    std::vector<Bounded> h(static_cast<size_t>(I * N));
    for (size_t i = 0; i < h.size(); ++i) h[i].value = ssm_state[static_cast<size_t>(row * I * N) + i];
    // Input j of a channel, the state's first.
    const auto input = [&](int64_t j, int64_t i) -> double {
      if (j < K - 1) return conv_state[static_cast<size_t>((row * I + i) * (K - 1) + j)];
      return xz[static_cast<size_t>((row * c.tokens + j - (K - 1)) * 2 * I + i)];
    };
    for (int64_t t = 0; t < length; ++t) {
      std::vector<Bounded> u(static_cast<size_t>(I));
      for (int64_t i = 0; i < I; ++i) {
        double sum = c.bias ? conv_bias[static_cast<size_t>(i)] : 0, size = std::abs(sum);
        for (int64_t k = 0; k < K; ++k) {
          const double product = taps[static_cast<size_t>(i * K + k)] * input(t + k, i);
          sum += product;
          size += std::abs(product);
        }
        u[static_cast<size_t>(i)] = {silu(sum), 2e-6 * size};
      }
      std::vector<Bounded> projected = project(x_proj, u);
      Bounded* b = projected.data() + R;
      if (c.norms) {
        normalise(projected.data(), dt_norm, 1e-5f);
        normalise(b, b_norm, 1e-6f);
        normalise(b + N, c_norm, 1e-3f);
      }
      const std::vector<Bounded> delta = project(dt_proj, {projected.begin(), projected.begin() + R});
      for (int64_t i = 0; i < I; ++i) {
        const size_t ii = static_cast<size_t>(i);
        const double raw = delta[ii].value + dt_bias[ii], step = softplus(raw);
        const double step_error = delta[ii].error + 1e-6 * (step + std::abs(raw));  // softplus has a slope below 1
        double sum = skip[ii] * u[ii].value, error = std::abs(skip[ii]) * u[ii].error + 1e-6 * std::abs(sum);
        for (int64_t n = 0; n < N; ++n) {
          Bounded& state = h[static_cast<size_t>(i * N + n)];
          const double a = -std::exp(static_cast<double>(a_log[static_cast<size_t>(i * N + n)])), decay = std::exp(step * a);
          const double kept = decay * state.value, added = step * b[n].value * u[ii].value;
          state.error = decay * state.error + std::abs(kept) * (std::abs(a) * step_error + 1e-6 * (1 + std::abs(step * a))) + step_error * std::abs(b[n].value * u[ii].value) +
                        step * (b[n].error * std::abs(u[ii].value) + u[ii].error * std::abs(b[n].value)) + 1e-6 * std::abs(added);
          state.value = kept + added;
          sum += state.value * b[N + n].value;
          error += state.error * std::abs(b[N + n].value) + std::abs(state.value) * (b[N + n].error + 1e-6 * std::abs(b[N + n].value));
        }
        const double gate = silu(xz[static_cast<size_t>((row * c.tokens + t) * 2 * I + I + i)]);
        const int64_t at = (row * c.tokens + t) * I + i;
        worst_y.add(at, y[static_cast<size_t>(at)], sum * gate, (error + 2e-6 * std::abs(sum)) * std::abs(gate) + 1e-30);
      }
    }
    for (int64_t i = 0; i < I; ++i) {
      for (int64_t k = 0; k < K - 1; ++k) {
        const int64_t at = (row * I + i) * (K - 1) + k;
        worst_conv.add(at, conv_out[static_cast<size_t>(at)], input(length + k, i), 1e-30);
      }
      for (int64_t n = 0; n < N; ++n) {
        const Bounded& state = h[static_cast<size_t>(i * N + n)];
        const int64_t at = (row * I + i) * N + n;
        worst_ssm.add(at, ssm_out[static_cast<size_t>(at)], state.value, state.error + 1e-30);
        if (length == 0 && ssm_out[static_cast<size_t>(at)] != ssm_state[static_cast<size_t>(at)]) return "length 0 changed the state";
      }
    }
  }
  return worst_y.failure("y") + worst_conv.failure("conv state") + worst_ssm.failure("ssm state");
}

}  // namespace

int main() {
  const Case cases[] = {
      {"decode", 1, 1, 1536, 16, 48, 4, {1}},
      {"one of everything", 1, 1, 1, 1, 1, 2, {1}},
      {"decode, rows of which one stands still", 3, 1, 130, 16, 9, 4, {1, 0, 1}},
      {"few rows, ragged", 2, 4, 131, 17, 33, 3, {4, 2}},
      {"eight rows", 8, 1, 65, 5, 7, 4, std::vector<int64_t>(8, 1)},
      {"nine rows", 9, 1, 65, 5, 7, 4, std::vector<int64_t>(9, 1)},
      {"prefill", 1, 70, 257, 16, 17, 4, {70}},
      {"prefill of more than a segment", 1, 300, 64, 4, 4, 4, {300}},
      {"ragged with NaN padding", 4, 37, 67, 16, 5, 4, {37, 0, 31, 1}, true, true, true, true},
      {"few rows with NaN padding", 2, 3, 67, 16, 5, 4, {3, 1}, true, true, true, true},
      {"no norms, no bias, other state", 2, 31, 63, 5, 3, 5, {31, 20}, false, false, false},
      {"decode, no norms, other state", 2, 1, 63, 128, 64, 16, {1, 1}, false, false, false},
      {"no tokens", 2, 0, 64, 16, 4, 4, {0, 0}},
      {"no rows", 0, 5, 64, 16, 4, 4, {}},
  };
  Tally tally;
  for (Isa isa : testable_isas()) {
    std::mt19937_64 random(1);
    for (const Case& c : cases) tally.record(c.name + " on " + isa_name(isa), run(c, isa, random));
    const int64_t length = 6;
    MambaInnerParams p{};
    p.batch = 1, p.tokens = 5, p.channels = 1, p.states = 16, p.dt_rank = 1, p.kernel = 4, p.lengths = &length;
    tally.record("refuses lengths above T", mamba_inner(p, serial(), isa) ? "" : "accepted");
    p.states = 129;
    tally.record("refuses 129 states", mamba_inner(p, serial(), isa) ? "" : "accepted");
    p.states = 16, p.kernel = 17;
    tally.record("refuses 17 taps", mamba_inner(p, serial(), isa) ? "" : "accepted");
    p.kernel = 4, p.dt_rank = 0;
    tally.record("refuses no dt", mamba_inner(p, serial(), isa) ? "" : "accepted");
  }
  return tally.finish();
}
