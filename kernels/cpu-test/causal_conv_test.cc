#include "cpu/causal_conv.h"

#include "check.h"

using namespace layerweave::cpu;

namespace {

struct Case {
  std::string name;
  int64_t batch, tokens, channels, kernel;
  std::vector<int64_t> lengths;  // empty: null
  bool bias = true, in_place = true;
  int64_t pad = 0;  // elements between rows
};

std::string run(const Case& c, Isa isa, std::mt19937_64& random) {
  const int64_t wide = c.channels + c.pad, history = c.kernel - 1;
  const std::vector<float> x = random_values(random, c.batch * c.tokens * wide, 0, 1), weight = random_values(random, c.channels * c.kernel, 0, 1);
  const std::vector<float> bias = random_values(random, c.channels, 0, 1), past = random_values(random, c.batch * c.channels * history, 0, 1);
  std::vector<float> y(x.size(), -7), state = past, other(past.size(), -7);
  const CausalConvParams p = {c.batch, c.tokens, c.channels, c.kernel, x.data(), y.data(), wide, wide, weight.data(), c.bias ? bias.data() : nullptr,
                              c.lengths.empty() ? nullptr : c.lengths.data(), state.data(), c.in_place ? state.data() : other.data()};
  if (const char* wrong = causal_conv(p, threads(), isa)) return wrong;
  const std::vector<float>& result = c.in_place ? state : other;

  WorstError worst;
  for (int64_t row = 0; row < c.batch; ++row) {
    const int64_t length = c.lengths.empty() ? c.tokens : c.lengths[static_cast<size_t>(row)];
    for (int64_t i = 0; i < c.channels; ++i) {
      const auto input = [&](int64_t j) {
        return j < history ? past[static_cast<size_t>((row * c.channels + i) * history + j)] : x[static_cast<size_t>((row * c.tokens + j - history) * wide + i)];
      };
      for (int64_t t = 0; t < c.tokens; ++t) {
        double sum = c.bias ? bias[static_cast<size_t>(i)] : 0, size = std::abs(sum);
        for (int64_t k = 0; k < c.kernel; ++k) {
          const double term = static_cast<double>(weight[static_cast<size_t>(i * c.kernel + k)]) * input(t + k);
          sum += term;
          size += std::abs(term);
        }
        // silu grows no faster than 1.1 times its argument.
        worst.add((row * c.tokens + t) * wide + i, y[static_cast<size_t>((row * c.tokens + t) * wide + i)], silu(sum), 1e-6 * size + 1e-30);
      }
      for (int64_t k = 0; k < history; ++k)
        if (result[static_cast<size_t>((row * c.channels + i) * history + k)] != input(length + k)) return "the new state is not the last inputs";
    }
    for (int64_t t = 0; t < c.tokens; ++t)
      for (int64_t i = c.channels; i < wide; ++i)
        if (y[static_cast<size_t>((row * c.tokens + t) * wide + i)] != -7) return "wrote between the rows of y";
  }
  return worst.failure("y");
}

}  // namespace

int main() {
  const Case cases[] = {
      {"mamba-130m prefill", 1, 129, 1536, 4, {}},
      {"one of everything", 1, 1, 1, 1, {1}},
      {"one token", 2, 1, 1134, 4, {1, 0}},
      {"shorter than the history", 3, 2, 65, 4, {2, 1, 0}},
      {"1134 tokens", 1, 1134, 63, 4, {}},
      {"ragged", 4, 37, 129, 3, {37, 0, 1, 2}},
      {"no bias, other state", 2, 9, 66, 2, {9, 4}, false, false},
      {"unaligned rows", 2, 17, 61, 4, {17, 16}, true, true, 5},
      {"widest kernel", 1, 20, 70, 16, {11}},
      {"kernel 1", 2, 7, 70, 1, {7, 0}},
      {"no rows", 0, 5, 64, 4, {}},
      {"no tokens", 2, 0, 64, 4, {0, 0}},
  };
  Tally tally;
  for (Isa isa : testable_isas()) {
    std::mt19937_64 random(2);
    for (const Case& c : cases) tally.record(c.name + " on " + isa_name(isa), run(c, isa, random));
    CausalConvParams p{};
    p.kernel = 17;
    tally.record("refuses a kernel of 17", causal_conv(p, serial(), isa) ? "" : "accepted");
  }
  return tally.finish();
}
