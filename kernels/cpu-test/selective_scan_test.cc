#include "cpu/selective_scan.h"

#include "check.h"

using namespace layerweave::cpu;

namespace {

struct Case {
  std::string name;
  int64_t batch, tokens, channels, states;
  std::vector<int64_t> lengths;  // empty: null
  bool gate = true, bias = true, in_place = true;
  int64_t pad = 0;  // elements between rows
  bool hostile_padding = false;  // NaN behind lengths[b]
};

struct Data {
  std::vector<float> u, delta, b, c, z, a_log, d_skip, delta_bias, state;
};

Data make(const Case& c, std::mt19937_64& random) {
  const int64_t wide = c.batch * c.tokens * (c.channels + c.pad), narrow = c.batch * c.tokens * (c.states + c.pad);
  Data d = {random_values(random, wide, 0, 1),
            random_values(random, wide, 0, 1),
            random_values(random, narrow, 0, 1),
            random_values(random, narrow, 0, 1),
            random_values(random, wide, 0, 2),
            random_values(random, c.channels * c.states, 0.5f, 1),
            random_values(random, c.channels, 0, 1),
            random_values(random, c.channels, -3, 2),
            random_values(random, c.batch * c.channels * c.states, 0, 1)};
  if (c.hostile_padding)
    for (int64_t row = 0; row < c.batch; ++row)
      for (int64_t t = c.lengths[static_cast<size_t>(row)]; t < c.tokens; ++t)
        for (int64_t i = 0; i < c.channels; ++i) d.u[static_cast<size_t>((row * c.tokens + t) * (c.channels + c.pad) + i)] = NAN;
  return d;
}

std::string run(const Case& c, Isa isa, const Parallel& parallel, std::mt19937_64& random) {
  const Data d = make(c, random);
  const int64_t wide = c.channels + c.pad, narrow = c.states + c.pad;
  std::vector<float> y(static_cast<size_t>(c.batch * c.tokens * wide), -7), state = d.state, other(d.state.size(), -7);
  SelectiveScanParams p = {c.batch, c.tokens, c.channels, c.states, d.u.data(), d.delta.data(), d.b.data(), d.c.data(), c.gate ? d.z.data() : nullptr,
                           y.data(), wide, wide, narrow, narrow, wide, wide, d.a_log.data(), d.d_skip.data(), c.bias ? d.delta_bias.data() : nullptr,
                           c.lengths.empty() ? nullptr : c.lengths.data(), state.data(), c.in_place ? state.data() : other.data()};
  if (const char* wrong = selective_scan(p, parallel, isa)) return wrong;
  const std::vector<float>& result = c.in_place ? state : other;

  WorstError worst_y, worst_state;
  for (int64_t row = 0; row < c.batch; ++row) {
    const int64_t length = c.lengths.empty() ? c.tokens : c.lengths[static_cast<size_t>(row)];
    for (int64_t i = 0; i < c.channels; ++i) {
      std::vector<double> h(static_cast<size_t>(c.states)), magnitude(h.size());
      for (int64_t n = 0; n < c.states; ++n) {
        h[static_cast<size_t>(n)] = d.state[static_cast<size_t>((row * c.channels + i) * c.states + n)];
        magnitude[static_cast<size_t>(n)] = std::abs(h[static_cast<size_t>(n)]);
      }
      for (int64_t t = 0; t < c.tokens; ++t) {
        const size_t at = static_cast<size_t>((row * c.tokens + t) * wide + i);
        const double u = d.u[at];
        double sum = d.d_skip[static_cast<size_t>(i)] * u, size = std::abs(sum);
        for (int64_t n = 0; n < c.states; ++n) {
          const size_t nn = static_cast<size_t>(n), bc = static_cast<size_t>((row * c.tokens + t) * narrow + n);
          if (t < length) {
            const double step = softplus(static_cast<double>(d.delta[at]) + (c.bias ? static_cast<double>(d.delta_bias[static_cast<size_t>(i)]) : 0));
            const double exponent = -step * std::exp(static_cast<double>(d.a_log[static_cast<size_t>(i * c.states + n)]));
            const double decay = std::exp(exponent);
            h[nn] = decay * h[nn] + step * d.b[bc] * u;
            // The exponent is rounded, so the decay's relative error grows with it: its share is |exponent| units.
            magnitude[nn] = decay * (1 - exponent) * magnitude[nn] + std::abs(step * d.b[bc] * u);
          }
          sum += h[nn] * d.c[bc];
          size += magnitude[nn] * std::abs(d.c[bc]);
        }
        const double gate = c.gate ? silu(d.z[at]) : 1;
        // Rounding of the terms, weighed by their sizes; errors of the state add up over the tokens that still count in it.
        const double bound = 3e-6 * size * std::abs(gate) + 1e-30;
        if (c.hostile_padding && t >= length) continue;
        worst_y.add(static_cast<int64_t>(at), y[at], sum * gate, bound);
      }
      for (int64_t n = 0; n < c.states; ++n) {
        const int64_t at = (row * c.channels + i) * c.states + n;
        worst_state.add(at, result[static_cast<size_t>(at)], h[static_cast<size_t>(n)], 3e-6 * magnitude[static_cast<size_t>(n)] + 1e-30);
        if (length == 0 && result[static_cast<size_t>(at)] != d.state[static_cast<size_t>(at)]) return "length 0 changed the state";
      }
    }
    for (int64_t t = 0; t < c.tokens; ++t)
      for (int64_t i = c.channels; i < wide; ++i)
        if (y[static_cast<size_t>((row * c.tokens + t) * wide + i)] != -7) return "wrote between the rows of y";
  }
  return worst_y.failure("y") + worst_state.failure("state");
}

/// Pieces of a sequence, state carried, equal the whole.
std::string split(Isa isa, std::mt19937_64& random) {
  const Case c = {"", 1, 50, 37, 16, {}};
  const Data d = make(c, random);
  const auto scan = [&](int64_t from, int64_t to, std::vector<float>& state, std::vector<float>& y) {
    const auto at = [&](const std::vector<float>& x, int64_t width) { return x.data() + from * width; };
    const SelectiveScanParams p = {1, to - from, c.channels, c.states, at(d.u, 37), at(d.delta, 37), at(d.b, 16), at(d.c, 16), at(d.z, 37), y.data() + from * 37,
                                   37, 37, 16, 16, 37, 37, d.a_log.data(), d.d_skip.data(), d.delta_bias.data(), nullptr, state.data(), state.data()};
    selective_scan(p, serial(), isa);
  };
  std::vector<float> whole_state = d.state, state = d.state, whole(50 * 37), pieces(50 * 37);
  scan(0, 50, whole_state, whole);
  for (int64_t from : {0, 7, 40, 41, 43, 47}) scan(from, from == 0 ? 7 : from == 7 ? 40 : from == 40 ? 41 : from == 41 ? 43 : from == 43 ? 47 : 50, state, pieces);
  WorstError worst;
  for (size_t i = 0; i < whole.size(); ++i) worst.add(static_cast<int64_t>(i), pieces[i], whole[i], 1e-5 * (1 + std::abs(whole[i])));
  for (size_t i = 0; i < state.size(); ++i) worst.add(static_cast<int64_t>(i), state[i], whole_state[i], 1e-5 * (1 + std::abs(whole_state[i])));
  return worst.failure("piece");
}

}  // namespace

int main() {
  const Case cases[] = {
      {"mamba-130m prefill", 1, 129, 1536, 16, {}},
      {"one of everything", 1, 1, 1, 1, {1}},
      {"hostile extents", 2, 129, 129, 129 - 1, {129, 64}},
      {"1134 tokens", 1, 1134, 65, 16, {}},
      {"1134 channels", 2, 33, 1134, 16, {33, 1}},
      {"decode", 3, 1, 1134, 16, {1, 0, 1}},
      {"few tokens, ragged", 3, 4, 130, 17, {4, 0, 2}},
      {"five tokens", 1, 5, 64, 8, {}},
      {"lengths 0", 2, 40, 70, 16, {0, 0}},
      {"ragged with NaN padding", 4, 37, 67, 16, {37, 0, 31, 32}, true, true, true, 0, true},
      {"few tokens with NaN padding", 3, 3, 67, 16, {3, 0, 2}, true, true, true, 0, true},
      {"no gate, no bias, other state", 2, 31, 63, 5, {}, false, false, false},
      {"unaligned rows", 2, 33, 61, 13, {33, 20}, true, true, true, 3},
      {"decode, other state", 2, 1, 61, 7, {}, true, true, false, 1},
      {"no rows", 0, 5, 64, 16, {}},
      {"no tokens", 2, 0, 64, 16, {0, 0}},
  };
  Tally tally;
  for (Isa isa : testable_isas()) {
    std::mt19937_64 random(1);
    for (const Case& c : cases) {
      const std::string on = c.name + " on " + isa_name(isa);
      tally.record(on, run(c, isa, threads(), random));
    }
    tally.record(std::string("pieces on ") + isa_name(isa), split(isa, random));
    SelectiveScanParams p{};
    p.states = 129;
    tally.record("refuses 129 states", selective_scan(p, serial(), isa) ? "" : "accepted");
    const int64_t length = 6;
    p = {};
    p.batch = 1, p.tokens = 5, p.states = 16, p.lengths = &length;
    tally.record("refuses lengths above T", selective_scan(p, serial(), isa) ? "" : "accepted");
  }
  return tally.finish();
}
