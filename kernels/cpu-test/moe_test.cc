#include "cpu/moe.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "check.h"

using namespace layerweave::cpu;

namespace {

struct Case {
  std::string name;
  int64_t tokens, d_model, d_ff, experts, top_k;
  RouterOrder order;
  bool renormalise;
  WeightType type = WeightType::kFloat32;
  int64_t favourite = -1;  // an expert that most tokens choose
};

/// Weights in their stored form, and the values those stand for.
struct Stored {
  std::vector<uint8_t> bytes;
  std::vector<float> scales, values;

  Stored(std::mt19937_64& random, int64_t rows, int64_t columns, WeightType type) : values(random_values(random, rows * columns, 0, 1 / std::sqrt(static_cast<float>(columns)))) {
    const size_t element = type == WeightType::kFloat32 ? 4 : type == WeightType::kBFloat16 ? 2 : 1;
    bytes.resize(values.size() * element);
    if (type == WeightType::kInt8)
      for (int64_t r = 0; r < rows; ++r) scales.push_back(std::abs(random_values(random, 1, 0.01f, 0.002f)[0]));
    for (size_t i = 0; i < values.size(); ++i) {
      if (type == WeightType::kBFloat16) {
        uint32_t bits;
        std::memcpy(&bits, &values[i], 4);
        bits &= 0xffff0000u;
        std::memcpy(&values[i], &bits, 4);
        std::memcpy(&bytes[i * 2], reinterpret_cast<const char*>(&bits) + 2, 2);
      } else if (type == WeightType::kInt8) {
        const int8_t code = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
        bytes[i] = static_cast<uint8_t>(code);
        values[i] = static_cast<float>(code) * scales[i / static_cast<size_t>(columns)];
      } else {
        std::memcpy(&bytes[i * 4], &values[i], 4);
      }
    }
  }
  WeightMatrix matrix(WeightType type) const { return {type, bytes.data(), scales.empty() ? nullptr : scales.data()}; }
};

struct Sum {
  double value, size;
};

/// w[row] . x, and the sum of the terms' sizes. `errors` holds the errors of x, and adds to the sizes.
Sum dot(const std::vector<float>& w, int64_t row, const std::vector<double>& x, const std::vector<double>& sizes) {
  Sum sum = {0, 0};
  for (size_t i = 0; i < x.size(); ++i) {
    const double weight = w[static_cast<size_t>(row) * x.size() + i];
    sum.value += weight * x[i];
    sum.size += std::abs(weight) * sizes[i];
  }
  return sum;
}

std::string run(const Case& c, Isa isa, std::mt19937_64& random) {
  std::vector<float> x = random_values(random, c.tokens * c.d_model, 0, 1), router = random_values(random, c.experts * c.d_model, 0, 1 / std::sqrt(static_cast<float>(c.d_model)));
  if (c.favourite >= 0)
    for (int64_t d = 0; d < c.d_model; ++d) {
      router[static_cast<size_t>(c.favourite * c.d_model + d)] = d == 0 ? 20.0f : 0.0f;
      for (int64_t m = 0; d == 0 && m < c.tokens; ++m) x[static_cast<size_t>(m * c.d_model)] = 1;
    }
  std::vector<Stored> stored;
  std::vector<ExpertWeights> weights;
  for (int64_t e = 0; e < c.experts; ++e) {
    stored.emplace_back(random, c.d_ff, c.d_model, c.type);
    stored.emplace_back(random, c.d_ff, c.d_model, c.type);
    stored.emplace_back(random, c.d_model, c.d_ff, c.type);
  }
  for (size_t e = 0; e < static_cast<size_t>(c.experts); ++e) weights.push_back({stored[3 * e].matrix(c.type), stored[3 * e + 1].matrix(c.type), stored[3 * e + 2].matrix(c.type)});
  std::vector<float> y(x.size(), -7);
  MoeParams p = {c.tokens, c.d_model, c.d_ff, c.experts, c.top_k, c.order, c.renormalise, x.data(), router.data(), weights.data(), y.data(), nullptr};
  const Scratch scratch(moe_scratch(p));
  p.scratch = scratch.data();
  if (const char* wrong = moe(p, threads(), isa)) return wrong;
  if (c.experts == 1) {
    std::vector<float> alone(x.size(), -7);
    GatedMlpParams mlp = {c.tokens, c.d_model, c.d_ff, x.data(), weights[0], alone.data(), nullptr};
    const Scratch other(gated_mlp_scratch(mlp));
    mlp.scratch = other.data();
    if (const char* wrong = gated_mlp(mlp, threads(), isa)) return wrong;
    if (alone != y) return "a gated MLP differs from a single expert";
  }

  WorstError worst;
  for (int64_t m = 0; m < c.tokens; ++m) {
    const std::vector<double> token(x.begin() + m * c.d_model, x.begin() + (m + 1) * c.d_model);
    std::vector<double> token_sizes = token;
    for (double& size : token_sizes) size = std::abs(size);
    std::vector<double> input_sizes = token_sizes;
    const auto add_rounding = [&](const std::vector<double>& values, std::vector<double>& sizes) {
      if (c.type != WeightType::kInt8) return;
      const std::vector<double> more = rounding_sizes(values);
      for (size_t i = 0; i < sizes.size(); ++i) sizes[i] += more[i];
    };
    add_rounding(token, input_sizes);
    std::vector<double> logits;
    double logit_size = 0;
    for (int64_t e = 0; e < c.experts; ++e) {
      const Sum logit = dot(router, e, token, token_sizes);
      logits.push_back(logit.value);
      logit_size = std::max(logit_size, logit.size);
    }
    std::vector<size_t> order(logits.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
    const size_t top = static_cast<size_t>(c.top_k);
    if (top < order.size() && logits[order[top - 1]] - logits[order[top]] < 1e-6 * logit_size) return "the case has a tie that rounding decides: choose another seed";
    double chosen = 0, all = 0;
    for (size_t e = 0; e < order.size(); ++e) {
      const double weight = std::exp(logits[order[e]] - logits[order[0]]);
      all += weight;
      if (e < top) chosen += weight;
    }
    const double total = c.order == RouterOrder::kTopKThenSoftmax || c.renormalise ? chosen : all;
    std::vector<double> want(token.size()), size(token.size());
    for (size_t k = 0; k < top; ++k) {
      const size_t e = order[k];
      const double weight = std::exp(logits[e] - logits[order[0]]) / total;
      std::vector<double> hidden, hidden_sizes;
      for (int64_t f = 0; f < c.d_ff; ++f) {
        const Sum gate = dot(stored[3 * e].values, f, token, input_sizes), up = dot(stored[3 * e + 1].values, f, token, input_sizes);
        hidden.push_back(silu(gate.value) * up.value);
        hidden_sizes.push_back(std::abs(silu(gate.value)) * up.size + 1.1 * gate.size * std::abs(up.value));
      }
      add_rounding(hidden, hidden_sizes);
      for (size_t d = 0; d < want.size(); ++d) {
        const Sum out = dot(stored[3 * e + 2].values, static_cast<int64_t>(d), hidden, hidden_sizes);
        want[d] += weight * out.value;
        size[d] += weight * (1 + logit_size) * out.size;
      }
    }
    for (size_t d = 0; d < want.size(); ++d) worst.add(m * c.d_model + static_cast<int64_t>(d), y[static_cast<size_t>(m * c.d_model) + d], want[d], 1e-6 * size[d] + 1e-30);
  }
  return worst.failure("y");
}

}  // namespace

int main() {
  constexpr RouterOrder softmax_first = RouterOrder::kSoftmaxThenTopK, top_k_first = RouterOrder::kTopKThenSoftmax;
  const Case cases[] = {
      {"jamba", 33, 128, 224, 16, 2, softmax_first, false},
      {"mixtral", 33, 128, 224, 8, 2, softmax_first, true},
      {"top-k first", 40, 96, 100, 8, 3, top_k_first, false},
      {"one of everything", 1, 1, 1, 1, 1, softmax_first, false},
      {"decode", 1, 129, 257, 16, 2, softmax_first, false},
      {"decode, batch of 8", 8, 129, 65, 4, 2, softmax_first, true},
      {"hostile extents", 129, 129, 65, 5, 3, top_k_first, false},
      {"more inputs than a pass covers", 20, 1134, 50, 2, 2, softmax_first, false},
      {"an expert nobody chooses, one that all choose", 300, 17, 33, 4, 1, softmax_first, false, WeightType::kFloat32, 2},
      {"several batches", 700, 33, 34, 3, 2, softmax_first, true},
      {"every expert", 9, 40, 40, 6, 6, softmax_first, false},
      {"nine tokens for one expert", 9, 64, 64, 1, 1, top_k_first, false},
      {"many experts", 50, 32, 16, 64, 8, softmax_first, true},
      {"bfloat16", 50, 129, 65, 3, 2, softmax_first, false, WeightType::kBFloat16},
      {"bfloat16 in decode", 2, 129, 65, 3, 2, softmax_first, false, WeightType::kBFloat16},
      {"int8", 50, 300, 65, 3, 2, softmax_first, false, WeightType::kInt8},
      {"int8, several blocks of hidden activations", 60, 65, 600, 2, 2, softmax_first, false, WeightType::kInt8},
      {"int8, batch of 8", 8, 300, 129, 3, 2, softmax_first, true, WeightType::kInt8},
      {"int8 in decode", 2, 129, 65, 3, 2, softmax_first, true, WeightType::kInt8},
      {"int8, one expert in decode", 1, 300, 129, 1, 1, softmax_first, false, WeightType::kInt8},
      {"int8, one expert, several batches", 600, 65, 129, 1, 1, softmax_first, false, WeightType::kInt8},
      {"no tokens, one expert", 0, 32, 32, 1, 1, softmax_first, false},
      {"no tokens", 0, 32, 32, 4, 2, softmax_first, false},
  };
  Tally tally;
  for (Isa isa : testable_isas()) {
    std::mt19937_64 random(4);
    for (const Case& c : cases) tally.record(c.name + " on " + isa_name(isa), run(c, isa, random));
    MoeParams p{};
    p.tokens = 1, p.experts = 2, p.top_k = 3;
    const ExpertWeights mixed = {{WeightType::kFloat32, nullptr, nullptr}, {WeightType::kFloat32, nullptr, nullptr}, {WeightType::kInt8, nullptr, nullptr}};
    MoeParams q{};
    q.tokens = q.experts = q.top_k = 1, q.weights = &mixed;
    tally.record("refuses weights of several types", moe(q, serial(), isa) ? "" : "accepted");
    GatedMlpParams mlp{};
    mlp.tokens = 1, mlp.weights = mixed;
    tally.record("refuses an MLP's weights of several types", gated_mlp(mlp, serial(), isa) ? "" : "accepted");
    tally.record("refuses more choices than experts", moe(p, serial(), isa) ? "" : "accepted");
  }
  return tally.finish();
}
