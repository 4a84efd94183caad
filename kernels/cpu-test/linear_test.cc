#include "cpu/linear.h"

#include <cstring>

#include "check.h"

using namespace layerweave::cpu;

namespace {

struct Case {
  std::string name;
  int64_t rows, depth, width;
  bool bias;
};

std::string run(const Case& c, Isa isa, std::mt19937_64& random) {
  const std::vector<float> x = random_values(random, c.rows * c.depth, 0, 1), bias = random_values(random, c.width, 0, 1);
  std::vector<float> scales = random_values(random, c.width, 0.01f, 0.002f), y(static_cast<size_t>(c.rows * c.width), -7);
  std::vector<int8_t> codes(static_cast<size_t>(c.width * c.depth));
  for (int8_t& code : codes) code = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
  LinearParams p = {c.rows, c.depth, c.width, x.data(), {WeightType::kInt8, codes.data(), scales.data()}, c.bias ? bias.data() : nullptr, y.data(), nullptr};
  const Scratch scratch(linear_scratch(p));
  p.scratch = scratch.data();
  linear(p, threads(), isa);

  WorstError worst;
  for (int64_t m = 0; m < c.rows; ++m)
    for (int64_t n = 0; n < c.width; ++n) {
      const double offset = c.bias ? bias[static_cast<size_t>(n)] : 0;
      double want = offset, size = std::abs(offset);
      for (int64_t k = 0; k < c.depth; ++k) {
        const double term = static_cast<double>(x[static_cast<size_t>(m * c.depth + k)]) * codes[static_cast<size_t>(n * c.depth + k)] * scales[static_cast<size_t>(n)];
        want += term;
        size += std::abs(term);
      }
      worst.add(m * c.width + n, y[static_cast<size_t>(m * c.width + n)], want, 1e-6 * size + 1e-30);
    }
  return worst.failure("y");
}

}  // namespace

int main() {
  const Case cases[] = {
      {"one of everything", 1, 1, 1, true},
      {"decode", 1, 1134, 129, false},
      {"the most rows read as they lie", 8, 129, 257, true},
      {"the fewest that are packed", 9, 129, 257, true},
      {"hostile extents", 129, 129, 65, false},
      {"a whole segment", 256, 64, 96, false},
      {"one row beyond it", 257, 300, 50, true},
      {"one channel", 40, 17, 1, true},
      {"one input", 40, 1, 17, false},
      {"no rows", 0, 32, 32, true},
  };
  Tally tally;
  for (Isa isa : testable_isas()) {
    std::mt19937_64 random(5);
    for (const Case& c : cases) tally.record(c.name + " on " + isa_name(isa), run(c, isa, random));
  }
  return tally.finish();
}
