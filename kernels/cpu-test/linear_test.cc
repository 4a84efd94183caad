#include "cpu/linear.h"

#include <limits>

#include "check.h"

using namespace layerweave::cpu;

namespace {

struct Case {
  std::string name;
  int64_t rows, depth, width;
  bool bias;
  void (*change)(std::vector<float>& x) = nullptr;
};

std::string run(const Case& c, Isa isa, std::mt19937_64& random) {
  std::vector<float> x = random_values(random, c.rows * c.depth, 0, 1);
  if (c.change) c.change(x);
  const std::vector<float> bias = random_values(random, c.width, 0, 1);
  std::vector<float> scales = random_values(random, c.width, 0.01f, 0.002f), y(static_cast<size_t>(c.rows * c.width), -7);
  std::vector<int8_t> codes(static_cast<size_t>(c.width * c.depth));
  for (int8_t& code : codes) code = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
  LinearParams p = {c.rows, c.depth, c.width, x.data(), codes.data(), scales.data(), c.bias ? bias.data() : nullptr, y.data(), nullptr};
  const Scratch scratch(linear_scratch(p));
  p.scratch = scratch.data();
  linear(p, threads(), isa);

  WorstError worst;
  for (int64_t m = 0; m < c.rows; ++m) {
    const std::vector<double> row(x.begin() + m * c.depth, x.begin() + (m + 1) * c.depth), rounding = rounding_sizes(row);
    for (int64_t n = 0; n < c.width; ++n) {
      const double offset = c.bias ? bias[static_cast<size_t>(n)] : 0;
      double want = offset, size = std::abs(offset);
      for (size_t k = 0; k < row.size(); ++k) {
        const double weight = static_cast<double>(codes[static_cast<size_t>(n * c.depth) + k]) * scales[static_cast<size_t>(n)];
        want += weight * row[k];
        size += std::abs(weight) * (std::abs(row[k]) + rounding[k]);
      }
      worst.add(m * c.width + n, y[static_cast<size_t>(m * c.width + n)], want, 1e-6 * size + 1e-30);
    }
  }
  return worst.failure("y");
}

/// All codes and activations as large as they get, so that a block's sum in 32 bits is, and numbers that are not finite.
std::string run_extremes(int64_t rows, Isa isa) {
  constexpr int64_t depth = 600, width = 20;
  std::vector<float> x(static_cast<size_t>(rows * depth), -2), y(static_cast<size_t>(rows * width));
  const std::vector<float> scales(width, 1);
  const std::vector<int8_t> codes(static_cast<size_t>(width * depth), -127);
  x[1] = std::numeric_limits<float>::quiet_NaN();
  x[depth + 599] = -std::numeric_limits<float>::infinity();
  LinearParams p = {rows, depth, width, x.data(), codes.data(), scales.data(), nullptr, y.data(), nullptr};
  const Scratch scratch(linear_scratch(p));
  p.scratch = scratch.data();
  linear(p, threads(), isa);
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t n = 0; n < width; ++n) {
      const float value = y[static_cast<size_t>(m * width + n)];
      if (m < 2 ? !std::isnan(value) : std::abs(value - 2 * 127 * depth) > 0.5f) return "y[" + std::to_string(m) + "] is " + std::to_string(value);
    }
  return "";
}

}  // namespace

int main() {
  const Case cases[] = {
      {"one of everything", 1, 1, 1, true},
      {"decode", 1, 1134, 129, false},
      {"two rows, several tasks", 2, 300, 517, true},
      {"four rows, several tasks", 4, 1134, 258, false},
      {"seven rows, several tasks", 7, 600, 259, true},
      {"the most rows read as they lie", 8, 129, 257, true},
      {"the fewest that are packed", 9, 129, 257, true},
      {"hostile extents", 129, 129, 65, false},
      {"a whole segment", 256, 64, 96, false},
      {"one row beyond it", 257, 300, 50, true},
      {"one channel", 40, 17, 1, true},
      {"one input", 40, 1, 17, false},
      {"no rows", 0, 32, 32, true},
      {"no channels", 1, 32, 0, true},
      {"one activation far beyond the others", 3, 700, 33, false, [](std::vector<float>& x) { x[5] = 1000; }},
      {"the same in a panel", 33, 700, 33, false, [](std::vector<float>& x) { x[5] = 1000; }},
      {"a block of zeros, one of tiny numbers", 12, 600, 33, true, [](std::vector<float>& x) { std::fill_n(x.begin(), 256, 0.0f), std::fill_n(x.begin() + 256, 256, 1e-42f); }},
      {"huge numbers", 12, 300, 20, false, [](std::vector<float>& x) { for (float& value : x) value *= 1e30f; }},
  };
  Tally tally;
  for (Isa isa : testable_isas()) {
    std::mt19937_64 random(5);
    for (const Case& c : cases) tally.record(c.name + " on " + isa_name(isa), run(c, isa, random));
    for (int64_t rows : {2, 4, 40}) tally.record("extremes of " + std::to_string(rows) + " rows on " + isa_name(isa), run_extremes(rows, isa));
  }
  return tally.finish();
}
