// The ops as ONNX Runtime sees them: each in a session of its own on the CUDA provider, against a float64 reference, then with
// its state in place, then as a captured graph, both bit for bit as before.
//
//   ort_cuda_ops_test <folder of libonnxruntime.so.1 and its CUDA provider> <liblayerweave_ops_cuda.so>
//
// Without a device it ends after what needs none: every model must pass ONNX Runtime's checks of types and shapes, up to there
// being no provider for its node.

#include <cmath>
#include <cstring>

#include "check.h"
#include "ort_session.h"
#include "packed_weights.h"

using namespace layerweave;

namespace {

/// The outputs expected of a model; what does not count is NaN.
struct Case {
  Model model;
  std::map<std::string, std::vector<double>> expected;

  std::string name() const { return model.op + " " + model.node; }
};

constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr auto kCodes = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;

ONNXTensorElementDataType type_of(DType dtype) { return dtype == DType::kBFloat16 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16; }

int64_t padded(int64_t extent) { return packed_panels(extent) * kPanelRows; }

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double silu(double x) { return x * sigmoid(x); }

/// Makes the tensors of a case, and remembers their values for its reference.
class Maker {
 public:
  Maker(Case& made, DType dtype, std::mt19937_64& random) : case_(made), dtype_(dtype), random_(random) {}

  std::vector<float> input(const std::string& name, const std::vector<int64_t>& shape, float mean = 0, float deviation = 1) { return add(case_.model.inputs, name, shape, dtype_, mean, deviation); }
  std::vector<float> input_f32(const std::string& name, const std::vector<int64_t>& shape) { return add(case_.model.inputs, name, shape, DType::kFloat32, 0, 1); }
  std::vector<float> constant(const std::string& name, const std::vector<int64_t>& shape, float mean = 0, float deviation = 1) { return add(case_.model.constants, name, shape, dtype_, mean, deviation); }
  std::vector<float> constant_f32(const std::string& name, const std::vector<int64_t>& shape, float mean = 0, float deviation = 1) {
    return add(case_.model.constants, name, shape, DType::kFloat32, mean, deviation);
  }
  void input_i64(const std::string& name, const std::vector<int64_t>& shape, const std::vector<int64_t>& values) {
    Tensor tensor{name, kInt64, shape, std::vector<unsigned char>(values.size() * 8)};
    std::memcpy(tensor.bytes.data(), values.data(), tensor.bytes.size());
    push(case_.model.inputs, std::move(tensor));
  }
  void absent() { case_.model.node_inputs.push_back(""); }

  /// A packed weight, of `parts` [rows, columns] one after another, and its scales if it is int8. Returns the parts' values.
  template <typename RowAt>
  std::vector<double> packed(const std::string& name, PackedType type, const std::vector<int64_t>& leading, int64_t rows, int64_t columns, int64_t packed_rows, int64_t matrices, RowAt row_at) {
    int64_t parts = 1;
    for (const int64_t extent : leading) parts *= extent;
    const float deviation = 1 / std::sqrt(static_cast<float>(columns));
    const int64_t each = packed_rows * padded(columns);
    std::vector<double> values(parts * matrices * rows * columns);
    std::vector<float> scale(parts * packed_rows, 0.f);
    std::vector<int8_t> codes(type == PackedType::kInt8 ? parts * each : 0);
    std::vector<float> halves(type == PackedType::kInt8 ? 0 : parts * each);
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t matrix = 0; matrix < matrices; ++matrix)
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t to = row_at(matrix, r);
          const float row_scale = deviation / 70 * (1 + static_cast<float>(random_() % 8) / 8);
          scale[part * packed_rows + to] = row_scale;
          for (int64_t c = 0; c < columns; ++c) {
            const int code = static_cast<int>(random_() % 255) - 127;
            double& value = values[((part * matrices + matrix) * rows + r) * columns + c];
            const int64_t at = part * each + packed_index(type, to, c, columns);
            if (type == PackedType::kInt8) {
              codes[at] = static_cast<int8_t>(code);
              value = static_cast<double>(code) * row_scale;
            } else {
              const float rounded = decode(encode({static_cast<float>(code) * row_scale}, dtype_), dtype_)[0];
              halves[at] = rounded;
              value = rounded;
            }
          }
        }
    std::vector<int64_t> shape = leading;
    shape.insert(shape.end(), {packed_rows, padded(columns)});
    Tensor weight{name, type == PackedType::kInt8 ? kCodes : type_of(dtype_), shape, {}};
    if (type == PackedType::kInt8) weight.bytes.assign(codes.begin(), codes.end());
    else weight.bytes = encode(halves, dtype_);
    push(case_.model.constants, std::move(weight));
    std::vector<int64_t> scale_shape = leading;
    scale_shape.push_back(packed_rows);
    if (type == PackedType::kInt8) push(case_.model.constants, {name + "_scale", kFloat, scale_shape, encode(scale, DType::kFloat32)});
    else absent();
    return values;
  }
  std::vector<double> packed(const std::string& name, PackedType type, const std::vector<int64_t>& leading, int64_t rows, int64_t columns) {
    return packed(name, type, leading, rows, columns, padded(rows), 1, [](int64_t, int64_t r) { return r; });
  }

  void output(const std::string& name, const std::vector<int64_t>& shape, std::vector<double> expected, bool f32 = false) {
    case_.model.outputs.push_back({name, f32 ? kFloat : type_of(dtype_), shape, {}});
    case_.expected[name] = std::move(expected);
  }

 private:
  void push(std::vector<Tensor>& to, Tensor tensor) {
    case_.model.node_inputs.push_back(tensor.name);
    to.push_back(std::move(tensor));
  }
  std::vector<float> add(std::vector<Tensor>& to, const std::string& name, const std::vector<int64_t>& shape, DType dtype, float mean, float deviation) {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    std::vector<float> values = random_values(random_, count, dtype, mean, deviation);
    push(to, {name, dtype == DType::kFloat32 ? kFloat : type_of(dtype), shape, encode(values, dtype)});
    return values;
  }

  Case& case_;
  const DType dtype_;
  std::mt19937_64& random_;
};

Case packed_linear(DType dtype, int64_t tokens, bool with_bias, std::mt19937_64& random) {
  constexpr int64_t kRows = 72, kColumns = 136;
  Case made;
  made.model = {"PackedLinear", std::string("/") + name_of(dtype) + "/" + std::to_string(tokens), {{"rows", kRows}}, {}, {}, {}, {}, {}};
  Maker make(made, dtype, random);
  const auto x = make.input("x", {tokens, kColumns});
  const auto weight = make.packed("weight", PackedType::kInt8, {}, kRows, kColumns);
  std::vector<float> bias(kRows, 0.f);
  if (with_bias) bias = make.constant("bias", {kRows});
  else make.absent();
  std::vector<double> y(tokens * kRows);
  for (int64_t m = 0; m < tokens; ++m)
    for (int64_t n = 0; n < kRows; ++n) {
      double sum = bias[n];
      for (int64_t k = 0; k < kColumns; ++k) sum += weight[n * kColumns + k] * x[m * kColumns + k];
      y[m * kRows + n] = sum;
    }
  make.output("y", {tokens, kRows}, y);
  return made;
}

Case attention_inner(DType dtype, int64_t tokens, int64_t window, bool rotated, std::mt19937_64& random) {
  constexpr int64_t kBatch = 2, kHeads = 4, kKvHeads = 2, kHeadDim = 64, kCapacity = 80, kWidth = (kHeads + 2 * kKvHeads) * kHeadDim;
  const std::vector<int64_t> past = {0, 37}, cache = {kBatch, kKvHeads, kCapacity, kHeadDim};
  Case made;
  made.model = {"AttentionInner",
                std::string("/") + name_of(dtype) + "/" + std::to_string(tokens) + "/window " + std::to_string(window) + (rotated ? "" : "/not rotated"),
                {{"n_heads", kHeads}, {"n_kv_heads", kKvHeads}, {"window", window}, {"rope_scale", rotated ? 1.25f : 1.f}},
                {}, {}, {}, {}, {{"present_key", "past_key"}, {"present_value", "past_value"}}};
  Maker make(made, dtype, random);
  const auto qkv = make.input("qkv", {kBatch * tokens, kWidth});
  const auto past_key = make.input("past_key", cache), past_value = make.input("past_value", cache);
  make.input_i64("past_lengths", {kBatch}, past);
  std::vector<float> frequencies(kHeadDim / 2, 0.f);
  if (rotated) {
    frequencies = make.constant_f32("inverse_frequencies", {kHeadDim / 2});
  } else {
    make.absent();
  }
  // Element i of a head of a token's q, k or v: heads 0 to H + 2G - 1.
  const auto rotate = [&](int64_t b, int64_t t, int64_t head, int64_t i) -> double {
    const float* x = qkv.data() + (b * tokens + t) * kWidth + head * kHeadDim;
    if (!rotated || head >= kHeads + kKvHeads) return x[i];
    constexpr int64_t kHalf = kHeadDim / 2;
    const double angle = static_cast<double>(past[b] + t) * frequencies[i % kHalf];
    return 1.25 * (x[i] * std::cos(angle) + (i < kHalf ? -x[i + kHalf] : x[i - kHalf]) * std::sin(angle));
  };
  const auto at = [&](int64_t b, int64_t g, int64_t s, int64_t i) { return ((b * kKvHeads + g) * kCapacity + s) * kHeadDim + i; };
  std::vector<double> key(kBatch * kKvHeads * kCapacity * kHeadDim, NAN), value = key, y(kBatch * tokens * kHeads * kHeadDim);
  for (int64_t b = 0; b < kBatch; ++b)
    for (int64_t g = 0; g < kKvHeads; ++g)
      for (int64_t s = 0; s < past[b] + tokens; ++s)
        for (int64_t i = 0; i < kHeadDim; ++i) {
          const int64_t element = at(b, g, s, i), t = s - past[b];
          key[element] = t < 0 ? past_key[element] : rotate(b, t, kHeads + g, i);
          value[element] = t < 0 ? past_value[element] : rotate(b, t, kHeads + kKvHeads + g, i);
        }
  for (int64_t b = 0; b < kBatch; ++b)
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t h = 0; h < kHeads; ++h) {
        const int64_t position = past[b] + t, first = window ? std::max<int64_t>(0, position - window + 1) : 0, g = h / (kHeads / kKvHeads);
        std::vector<double> weights;
        double largest = -INFINITY, sum = 0;
        for (int64_t j = first; j <= position; ++j) {
          double score = 0;
          for (int64_t i = 0; i < kHeadDim; ++i) score += rotate(b, t, h, i) * key[at(b, g, j, i)];
          weights.push_back(score / std::sqrt(static_cast<double>(kHeadDim)));
          largest = std::max(largest, weights.back());
        }
        for (double& weight : weights) sum += weight = std::exp(weight - largest);
        for (int64_t i = 0; i < kHeadDim; ++i) {
          double mixed = 0;
          for (int64_t j = first; j <= position; ++j) mixed += weights[j - first] / sum * value[at(b, g, j, i)];
          y[((b * tokens + t) * kHeads + h) * kHeadDim + i] = mixed;
        }
      }
  make.output("y", {kBatch * tokens, kHeads * kHeadDim}, y);
  make.output("present_key", cache, key);
  make.output("present_value", cache, value);
  return made;
}

Case packed_moe(DType dtype, int64_t tokens, bool routed, PackedType type, std::mt19937_64& random) {
  constexpr int64_t kModel = 64, kFeatures = 72;
  const int64_t experts = routed ? 4 : 1, top_k = routed ? 2 : 1;
  Case made;
  made.model = {"PackedMoE",
                std::string("/") + name_of(dtype) + "/" + std::to_string(tokens) + (routed ? "/routed" : "/one expert") + (type == PackedType::kInt8 ? "/int8" : "/16 bits"),
                {{"n_experts", experts}, {"top_k", top_k}, {"router", std::string("softmax-then-top-k")}, {"renormalise", int64_t{0}}, {"d_ff", kFeatures}},
                {}, {}, {}, {}, {}};
  Maker make(made, dtype, random);
  const auto x = make.input("x", {tokens, kModel});
  std::vector<float> router;
  if (routed) router = make.constant_f32("router", {experts, kModel}, 0, 0.3f);
  else make.absent();
  const auto gate_up = make.packed("gate_up", type, {experts}, kFeatures, kModel, packed_pair_rows(kFeatures), 2,
                                   [](int64_t matrix, int64_t f) { return matrix == 0 ? packed_gate_row(f) : packed_up_row(f); });
  const auto down = make.packed("down", type, {experts}, kModel, kFeatures);
  std::vector<double> y(tokens * kModel, 0.0);
  for (int64_t m = 0; m < tokens; ++m) {
    std::vector<std::pair<double, int64_t>> chosen;
    double sum = 0;
    for (int64_t e = 0; e < experts; ++e) {
      double logit = 0;
      for (int64_t d = 0; routed && d < kModel; ++d) logit += static_cast<double>(router[e * kModel + d]) * x[m * kModel + d];
      chosen.push_back({std::exp(logit), e});
      sum += chosen.back().first;
    }
    std::sort(chosen.rbegin(), chosen.rend());
    for (int64_t k = 0; k < top_k; ++k) {
      const auto [mass, e] = chosen[k];
      std::vector<double> h(kFeatures);
      for (int64_t f = 0; f < kFeatures; ++f) {
        double gate = 0, up = 0;
        for (int64_t d = 0; d < kModel; ++d) {
          gate += gate_up[((2 * e) * kFeatures + f) * kModel + d] * x[m * kModel + d];
          up += gate_up[((2 * e + 1) * kFeatures + f) * kModel + d] * x[m * kModel + d];
        }
        h[f] = silu(gate) * up;
      }
      for (int64_t d = 0; d < kModel; ++d)
        for (int64_t f = 0; f < kFeatures; ++f) y[m * kModel + d] += mass / sum * down[(e * kModel + d) * kFeatures + f] * h[f];
    }
  }
  make.output("y", {tokens, kModel}, y);
  return made;
}

Case packed_mamba_inner(DType dtype, int64_t tokens, bool normed, PackedType type, std::mt19937_64& random) {
  constexpr int64_t kBatch = 2, kChannels = 64, kStates = 16, kRank = 8, kKernel = 4, kProjected = kRank + 2 * kStates;
  const std::vector<int64_t> lengths = {tokens, std::max<int64_t>(1, tokens - 2)};
  Case made;
  made.model = {"PackedMambaInner",
                std::string("/") + name_of(dtype) + "/" + std::to_string(tokens) + (normed ? "/normed" : "") + (type == PackedType::kInt8 ? "/int8" : "/16 bits"),
                {{"dt_rank", kRank}, {"d_state", kStates}, {"dt_eps", 1e-5f}, {"b_eps", 1e-6f}, {"c_eps", 1e-4f}},
                {}, {}, {}, {}, {{"present_conv", "past_conv"}, {"present_ssm", "past_ssm"}}};
  Maker make(made, dtype, random);
  const auto xz = make.input("xz", {kBatch * tokens, 2 * kChannels});
  const auto conv = make.constant("conv_weight", {kChannels, 1, kKernel}, 0, 0.5f), conv_bias = make.constant("conv_bias", {kChannels}, 0, 0.5f);
  const auto x_proj = make.packed("x_proj", type, {}, kProjected, kChannels);
  std::vector<float> norms[3];
  for (int i = 0; i < 3; ++i) {
    const char* names[] = {"dt_norm", "b_norm", "c_norm"};
    if (normed) norms[i] = make.constant(names[i], {i == 0 ? kRank : kStates}, 1, 0.2f);
    else make.absent();
  }
  const auto dt_proj = make.packed("dt_proj", type, {}, kChannels, kRank);
  const auto dt_bias = make.constant_f32("dt_bias", {kChannels}, -1, 0.5f), a_log = make.constant_f32("A_log", {kChannels, kStates}, 0, 0.5f), skip = make.constant_f32("D", {kChannels});
  const auto past_conv = make.input("past_conv", {kBatch, kChannels, kKernel - 1}), past_ssm = make.input_f32("past_ssm", {kBatch, kChannels, kStates});
  make.input_i64("lengths", {kBatch}, lengths);
  std::vector<double> y(kBatch * tokens * kChannels, NAN), conv_state(past_conv.begin(), past_conv.end()), ssm(past_ssm.begin(), past_ssm.end());
  for (int64_t b = 0; b < kBatch; ++b)
    for (int64_t t = 0; t < lengths[b]; ++t) {
      const float* row = xz.data() + (b * tokens + t) * 2 * kChannels;
      std::vector<double> u(kChannels), projected(kProjected);
      for (int64_t d = 0; d < kChannels; ++d) {
        double* state = conv_state.data() + (b * kChannels + d) * (kKernel - 1);
        double sum = conv_bias[d] + conv[d * kKernel + kKernel - 1] * static_cast<double>(row[d]);
        for (int64_t k = 0; k < kKernel - 1; ++k) sum += conv[d * kKernel + k] * state[k];
        u[d] = silu(sum);
        std::copy(state + 1, state + kKernel - 1, state);
        state[kKernel - 2] = row[d];
      }
      for (int64_t r = 0; r < kProjected; ++r)
        for (int64_t d = 0; d < kChannels; ++d) projected[r] += x_proj[r * kChannels + d] * u[d];
      const int64_t starts[] = {0, kRank, kRank + kStates, kProjected};
      const double epsilons[] = {1e-5, 1e-6, 1e-4};
      for (int i = 0; normed && i < 3; ++i) {
        double squares = 0;
        for (int64_t r = starts[i]; r < starts[i + 1]; ++r) squares += projected[r] * projected[r];
        const double factor = 1 / std::sqrt(squares / static_cast<double>(starts[i + 1] - starts[i]) + epsilons[i]);
        for (int64_t r = starts[i]; r < starts[i + 1]; ++r) projected[r] *= factor * norms[i][r - starts[i]];
      }
      for (int64_t d = 0; d < kChannels; ++d) {
        double raw = dt_bias[d], mixed = skip[d] * u[d];
        for (int64_t r = 0; r < kRank; ++r) raw += dt_proj[d * kRank + r] * projected[r];
        const double delta = std::log1p(std::exp(raw));
        for (int64_t n = 0; n < kStates; ++n) {
          double& h = ssm[(b * kChannels + d) * kStates + n];
          h = std::exp(-delta * std::exp(static_cast<double>(a_log[d * kStates + n]))) * h + delta * projected[kRank + n] * u[d];
          mixed += projected[kRank + kStates + n] * h;
        }
        y[(b * tokens + t) * kChannels + d] = mixed * silu(row[kChannels + d]);
      }
    }
  make.output("y", {kBatch * tokens, kChannels}, y);
  make.output("present_conv", {kBatch, kChannels, kKernel - 1}, conv_state);
  make.output("present_ssm", {kBatch, kChannels, kStates}, ssm, true);
  return made;
}

Case select_tokens(DType dtype, std::mt19937_64& random) {
  constexpr int64_t kBatch = 2, kTokens = 5, kSelected = 3, kModel = 40;
  const std::vector<int64_t> indices = {4, 0, 4, 2, 1, 3};
  Case made;
  made.model = {"SelectTokens", std::string("/") + name_of(dtype), {}, {}, {}, {}, {}, {}};
  Maker make(made, dtype, random);
  const auto x = make.input("x", {kBatch * kTokens, kModel});
  make.input_i64("indices", {kBatch, kSelected}, indices);
  std::vector<double> y;
  for (int64_t i = 0; i < kBatch * kSelected; ++i)
    for (int64_t d = 0; d < kModel; ++d) y.push_back(x[(i / kSelected * kTokens + indices[i]) * kModel + d]);
  make.output("y", {kBatch * kSelected, kModel}, y);
  return made;
}

Case residual_norm(DType dtype, int64_t tokens, std::mt19937_64& random) {
  constexpr int64_t kModel = 40;
  Case made;
  made.model = {"ResidualNorm", std::string("/") + name_of(dtype) + "/" + std::to_string(tokens), {{"epsilon", 1e-6f}}, {}, {}, {}, {}, {}};
  Maker make(made, dtype, random);
  const auto x = make.input("x", {tokens, kModel}), residual = make.input("residual", {tokens, kModel});
  const auto scale = make.constant("scale", {kModel}, 1, 0.2f);
  std::vector<double> y, sum;
  for (int64_t m = 0; m < tokens; ++m) {
    double squares = 0;
    for (int64_t d = 0; d < kModel; ++d) {
      sum.push_back(static_cast<double>(x[m * kModel + d]) + residual[m * kModel + d]);
      squares += sum.back() * sum.back();
    }
    for (int64_t d = 0; d < kModel; ++d) y.push_back(sum[m * kModel + d] / std::sqrt(squares / kModel + 1e-6) * scale[d]);
  }
  make.output("y", {tokens, kModel}, y);
  make.output("sum", {tokens, kModel}, sum);
  return made;
}

std::vector<Case> cases() {
  std::mt19937_64 random(11);
  std::vector<Case> all;
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const int64_t tokens : {1, 16, 100}) all.push_back(packed_linear(dtype, tokens, tokens > 1, random));
    for (const int64_t tokens : {1, 9}) {
      all.push_back(attention_inner(dtype, tokens, 0, true, random));
      all.push_back(attention_inner(dtype, tokens, 0, false, random));
      all.push_back(attention_inner(dtype, tokens, 6, true, random));
    }
    for (const PackedType type : {PackedType::kInt8, PackedType::k16Bit}) {
      for (const int64_t tokens : {2, 40}) {
        all.push_back(packed_moe(dtype, tokens, true, type, random));
        all.push_back(packed_moe(dtype, tokens, false, type, random));
      }
      for (const int64_t tokens : {1, 7}) {
        all.push_back(packed_mamba_inner(dtype, tokens, true, type, random));
        all.push_back(packed_mamba_inner(dtype, tokens, false, type, random));
      }
    }
    for (const int64_t tokens : {1, 20}) all.push_back(residual_norm(dtype, tokens, random));
    all.push_back(select_tokens(dtype, random));
  }
  return all;
}

/// What differs from the reference, by more than a few roundings of the 16-bit values that stand between input and output.
std::string mismatch(const Case& test, const std::map<std::string, std::vector<unsigned char>>& outputs) {
  for (const Tensor& tensor : test.model.outputs) {
    const DType dtype = tensor.type == kFloat ? DType::kFloat32 : tensor.type == type_of(DType::kBFloat16) ? DType::kBFloat16 : DType::kFloat16;
    const bool coarse = test.model.inputs[0].type == type_of(DType::kBFloat16);
    const std::vector<float> got = decode(outputs.at(tensor.name), dtype);
    const std::vector<double>& want = test.expected.at(tensor.name);
    double largest = 0;
    for (const double value : want)
      if (!std::isnan(value)) largest = std::max(largest, std::abs(value));
    WorstError worst;
    for (size_t i = 0; i < want.size(); ++i)
      if (!std::isnan(want[i])) worst.add(static_cast<int64_t>(i), got[i], want[i], largest * (coarse ? 0x1p-5 : 0x1p-8));
    const std::string failure = worst.failure(tensor.name.c_str());
    if (!failure.empty()) return failure;
  }
  return "";
}

/// Whether all that counts is the same bit for bit.
std::string difference(const Case& test, const std::map<std::string, std::vector<unsigned char>>& got, const std::map<std::string, std::vector<unsigned char>>& want) {
  for (const Tensor& tensor : test.model.outputs) {
    const std::vector<double>& counts = test.expected.at(tensor.name);
    const size_t bytes = tensor.size() / counts.size();
    for (size_t i = 0; i < counts.size(); ++i)
      if (!std::isnan(counts[i]) && std::memcmp(got.at(tensor.name).data() + i * bytes, want.at(tensor.name).data() + i * bytes, bytes) != 0)
        return tensor.name + " differs at " + std::to_string(i);
  }
  return "";
}

template <class F>
void record(Tally& tally, const std::string& name, F&& body) {
  try {
    tally.record(name, body());
  } catch (const std::exception& error) {
    tally.record(name, error.what());
  }
}

void check_types(Tally& tally, const Runtime& runtime, const Case& test) {
  try {
    runtime.api->ReleaseSession(runtime.open(test.model, nullptr, false));
    tally.record(test.name() + " without a provider", "a session was created");
  } catch (const std::exception& error) {
    // Without a provider ONNX Runtime tries whether float32 would do for float16, and says that it would not.
    const std::string message = error.what(), half = "InsertedPrecisionFreeCast_" + test.model.inputs[0].name;
    const bool expected = message.find("Could not find an implementation for " + test.model.op) != std::string::npos ||
                          (test.model.inputs[0].type == type_of(DType::kFloat16) && message.find(half) != std::string::npos);
    tally.record(test.name() + " without a provider", expected ? "" : error.what());
  }
}

/// The same inputs, the floating ones in another order.
std::vector<Tensor> others(const Model& model) {
  std::vector<Tensor> inputs = model.inputs;
  for (Tensor& tensor : inputs)
    if (tensor.type != kInt64) {
      const size_t bytes = tensor.type == kFloat ? 4 : 2;
      std::rotate(tensor.bytes.begin(), tensor.bytes.begin() + static_cast<std::ptrdiff_t>(3 * bytes), tensor.bytes.end());
    }
  return inputs;
}

void check_runs(Tally& tally, const Runtime& runtime, const Case& test, cudaStream_t stream) {
  const std::vector<Tensor>&first = test.model.inputs, second = others(test.model);
  std::map<std::string, std::vector<unsigned char>> first_outputs, second_outputs;
  record(tally, test.name(), [&] {
    Session apart(runtime, test.model, stream, false, false);
    first_outputs = apart.run(first);
    second_outputs = apart.run(second);
    return mismatch(test, first_outputs);
  });
  if (second_outputs.empty()) return;
  record(tally, test.name() + " in place", [&] {
    Session in_place(runtime, test.model, stream, false, true);
    return difference(test, in_place.run(first), first_outputs);
  });
  record(tally, test.name() + " captured", [&] {
    Session captured(runtime, test.model, stream, true, true);
    captured.run(first);  // captures, which advances the state more than once
    const std::string again = difference(test, captured.run(first), first_outputs);
    return again.empty() ? difference(test, captured.run(second), second_outputs) : again;
  });
}

/// What a wrong input leads to: a message with the op and its node, and a session that still works.
void check_errors(Tally& tally, const Runtime& runtime, cudaStream_t stream) {
  std::mt19937_64 random(3);
  Case test = packed_linear(DType::kBFloat16, 2, true, random);
  test.model.node = "/layers.7/attention/o_proj";
  for (Tensor& tensor : test.model.constants)
    if (tensor.name == "bias") {
      tensor.shape[0] -= 8;
      tensor.bytes.resize(tensor.size());
    }
  record(tally, "a wrong shape", [&]() -> std::string {
    Session session(runtime, test.model, stream, false, false);
    try {
      session.run(test.model.inputs);
    } catch (const std::exception& error) {
      const std::string message = error.what();
      return message.find("ai.layerweave::PackedLinear (/layers.7/attention/o_proj): expected bias of shape [72]; got [64]") == std::string::npos ? message : "";
    }
    return "nothing was thrown";
  });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "ort_cuda_ops_test <folder of libonnxruntime.so.1 and its CUDA provider> <liblayerweave_ops_cuda.so>\n");
    return 2;
  }
  try {
    const Runtime runtime(std::string(argv[1]) + "/libonnxruntime.so.1", argv[2]);
    const std::vector<Case> all = cases();
    Tally tally;
    for (const Case& test : all) check_types(tally, runtime, test);
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      if (tally.finish() != 0) return 1;
      require_device("ort_cuda_ops_test");
    }
    cudaStream_t stream;
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    for (const Case& test : all) check_runs(tally, runtime, test, stream);
    check_errors(tally, runtime, stream);
    return tally.finish();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
