// moe_route, moe_decode, moe_prefill and moe_prefill_slices against float64 references. --quick for the sanitizer.

#include "moe.cuh"

#include <numeric>

#include "check.h"

using namespace layerweave;

namespace {

struct Case {
  DType dtype;
  int64_t tokens, d_model, d_ff, experts, top_k;
  RouterOrder order = RouterOrder::kSoftmaxThenTopK;
  bool renormalise = false;
  PackedType weights = PackedType::kInt8;
  bool ties = false;      // experts 0 and 1, 2 and 3, ... have the same logits
  int residual = 0;       // 1 apart from y, 2 the same memory
  bool favourite = false; // every token chooses the last expert first
  enum { kDecode, kTiles, kSlices } path = kDecode;
  bool routed = true;     // else a gated MLP without routing

  std::string name() const {
    constexpr const char* kPaths[] = {"decode ", "prefill ", "slices "};
    return std::string(kPaths[path]) + (routed ? "" : "gated MLP ") + name_of(dtype) + (weights == PackedType::kInt8 ? " int8" : " 16-bit") + " M=" + std::to_string(tokens) +
           " D=" + std::to_string(d_model) + " F=" + std::to_string(d_ff) + " E=" + std::to_string(experts) +
           " K=" + std::to_string(top_k) + (order == RouterOrder::kSoftmaxThenTopK ? "" : " top-k first") +
           (renormalise ? " renormalised" : "") + (ties ? " ties" : "") + " residual " + std::to_string(residual) +
           (favourite ? " favourite" : "");
  }
};

/// Device memory of a routing, poisoned, and its values once it has run.
struct RoutingBuffers {
  DeviceBuffer experts, weights, offsets, permutation, positions;

  RoutingBuffers(int64_t choices, int64_t expert_count)
      : experts(choices * 4), weights(choices * 4), offsets((expert_count + 1) * 4), permutation(choices * 4), positions(choices * 4) {
    for (DeviceBuffer* buffer : {&experts, &weights, &offsets, &permutation, &positions}) buffer->fill(0xff);
  }
  Routing pointers() const {
    return {static_cast<int32_t*>(experts.data()), static_cast<float*>(weights.data()), static_cast<int32_t*>(offsets.data()),
            static_cast<int32_t*>(permutation.data()), static_cast<int32_t*>(positions.data())};
  }
};

template <typename T>
std::vector<T> values_of(const DeviceBuffer& buffer) {
  std::vector<T> values(buffer.bytes() / sizeof(T));
  CUDA_CHECK(cudaMemcpy(values.data(), buffer.data(), buffer.bytes(), cudaMemcpyDeviceToHost));
  return values;
}

struct Routed {
  std::vector<float> x;
  DeviceBuffer dx;
  RoutingBuffers buffers;
  std::vector<int32_t> experts, offsets, permutation;
  std::vector<float> weights;
};

/// Routes random tokens and checks everything that routing writes.
Routed route(Tally& tally, const Case& test, std::mt19937_64& random) {
  std::vector<float> x = random_values(random, test.tokens * test.d_model, test.dtype, 0.f, 1.f);
  std::vector<float> router = random_values(random, test.experts * test.d_model, DType::kFloat32, 0.f,
                                            2.f / std::sqrt(static_cast<float>(test.d_model)));
  if (test.ties)
    for (int64_t e = 1; e < test.experts; e += 2)
      std::copy_n(router.begin() + (e - 1) * test.d_model, test.d_model, router.begin() + e * test.d_model);
  if (test.favourite)
    for (int64_t m = 0; m < test.tokens; ++m) x[m * test.d_model] = 4, router[(test.experts - 1) * test.d_model] = 20;
  const int64_t choices = test.tokens * test.top_k;
  DeviceBuffer dx = upload(encode(x, test.dtype));
  const DeviceBuffer drouter = upload_values(router);
  DeviceBuffer dlogits(test.tokens * test.experts * 4), arrivals(4);
  dlogits.fill(0xff);
  arrivals.fill(0);
  RoutingBuffers buffers(choices, test.experts);
  const MoeRouteParams params{test.tokens, test.d_model, test.experts, test.top_k, test.order, test.renormalise, dx.data(),
                              static_cast<const float*>(drouter.data()), static_cast<float*>(dlogits.data()),
                              buffers.pointers(), static_cast<uint32_t*>(arrivals.data())};
  CUDA_CHECK(moe_route(params, test.dtype, nullptr));
  CUDA_CHECK(cudaDeviceSynchronize());

  const std::vector<float> logits = values_of<float>(dlogits), weights = values_of<float>(buffers.weights);
  const std::vector<int32_t> experts = values_of<int32_t>(buffers.experts), offsets = values_of<int32_t>(buffers.offsets),
                             permutation = values_of<int32_t>(buffers.permutation), positions = values_of<int32_t>(buffers.positions);
  std::string wrong;
  std::vector<double> want(logits.size()), bound(logits.size());
  parallel_for(test.tokens, [&](int64_t m) {
    for (int64_t e = 0; e < test.experts; ++e) {
      double sum = 0, size = 0;
      for (int64_t d = 0; d < test.d_model; ++d) {
        const double term = static_cast<double>(x[m * test.d_model + d]) * router[e * test.d_model + d];
        sum += term;
        size += std::abs(term);
      }
      want[m * test.experts + e] = sum;
      bound[m * test.experts + e] = 1e-6 * size + 1e-30;
    }
  });
  WorstError logit_error, weight_error;
  for (size_t i = 0; i < logits.size(); ++i) logit_error.add(static_cast<int64_t>(i), logits[i], want[i], bound[i]);
  // The choice itself is exact, given the logits that the device found.
  for (int64_t m = 0; m < test.tokens && wrong.empty(); ++m) {
    const float* l = &logits[m * test.experts];
    std::vector<int32_t> order(test.experts);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return l[a] > l[b]; });
    double all = 0, chosen = 0;
    for (int64_t k = 0; k < test.experts; ++k) {
      const double weight = std::exp(static_cast<double>(l[order[k]]) - l[order[0]]);
      all += weight;
      if (k < test.top_k) chosen += weight;
    }
    const double total = test.order == RouterOrder::kTopKThenSoftmax || test.renormalise ? chosen : all;
    for (int64_t k = 0; k < test.top_k; ++k) {
      const int64_t choice = m * test.top_k + k;
      if (experts[choice] != order[k]) wrong = "token " + std::to_string(m) + " chose expert " + std::to_string(experts[choice]) + ", not " + std::to_string(order[k]);
      const double weight = std::exp(static_cast<double>(l[order[k]]) - l[order[0]]) / total;
      // The difference of two logits is rounded once, exp and the division a few times.
      weight_error.add(choice, weights[choice], weight, weight * (1e-6 + 1.2e-7 * std::abs(l[order[k]] - l[order[0]])) + 1e-38);
    }
  }
  int32_t at = 0;
  for (int32_t e = 0; e < test.experts && wrong.empty(); ++e) {
    if (offsets[e] != at) wrong = "offset of expert " + std::to_string(e);
    for (int32_t choice = 0; choice < choices; ++choice)
      if (experts[choice] == e) {
        if (permutation[at] != choice || positions[choice] != at) wrong = "place of choice " + std::to_string(choice);
        ++at;
      }
  }
  if (wrong.empty() && offsets[test.experts] != choices) wrong = "last offset";
  if (values_of<uint32_t>(arrivals)[0] != 0) wrong += "arrivals not reset";
  tally.record("route " + test.name(), logit_error.failure("logits") + weight_error.failure("weights") + wrong);
  return {std::move(x), std::move(dx), std::move(buffers), experts, offsets, permutation, weights};
}

/// What a gated MLP's tokens amount to.
Routed unrouted(const Case& test, std::mt19937_64& random) {
  std::vector<float> x = random_values(random, test.tokens * test.d_model, test.dtype, 0.f, 1.f);
  DeviceBuffer dx = upload(encode(x, test.dtype));
  return {std::move(x), std::move(dx), RoutingBuffers(0, 0), std::vector<int32_t>(test.tokens, 0), {}, {}, std::vector<float>(test.tokens, 1.f)};
}

/// A matrix per expert, packed, and the values its elements stand for.
struct Matrix {
  int64_t rows, columns;
  std::vector<float> values;            // [E][rows, columns], unscaled
  std::vector<float> scale;             // [E][rows]
  std::vector<unsigned char> packed;    // of all experts
  std::vector<float> packed_scale;

  /// `row_at` takes a row to its packed row, of `packed_rows`.
  template <typename RowAt>
  void pack(const Case& test, int64_t packed_rows, RowAt row_at, std::vector<unsigned char>& to, std::vector<float>& to_scale) const {
    const size_t size = test.weights == PackedType::kInt8 ? 1 : 2;
    const int64_t elements = packed_elements(packed_rows, columns), scales = packed_panels(packed_rows) * kPanelRows;
    to.resize(test.experts * elements * size);
    to_scale.resize(test.experts * scales, NAN);
    parallel_for(test.experts, [&](int64_t e) {
      const std::vector<float> of_expert(values.begin() + e * rows * columns, values.begin() + (e + 1) * rows * columns);
      if (test.weights == PackedType::kInt8) {
        const std::vector<int8_t> codes(of_expert.begin(), of_expert.end());
        pack_rows(test.weights, codes.data(), rows, columns, row_at, reinterpret_cast<int8_t*>(to.data()) + e * elements);
      } else {
        const std::vector<unsigned char> bytes = encode(of_expert, test.dtype);
        pack_rows(test.weights, reinterpret_cast<const uint16_t*>(bytes.data()), rows, columns, row_at,
                  reinterpret_cast<uint16_t*>(to.data()) + e * elements);
      }
      for (int64_t r = 0; r < rows; ++r) to_scale[e * scales + row_at(r)] = scale[e * rows + r];
    });
  }
};

Matrix random_matrix(const Case& test, int64_t rows, int64_t columns, std::mt19937_64& random) {
  Matrix m{rows, columns, {}, {}, {}, {}};
  const bool int8 = test.weights == PackedType::kInt8;
  const float deviation = 1.f / std::sqrt(static_cast<float>(columns));
  m.values = random_values(random, test.experts * rows * columns, test.dtype, 0.f, int8 ? 40.f : deviation);
  m.scale = random_values(random, test.experts * rows, DType::kFloat32, deviation / 40, deviation / 400);
  if (int8)
    for (float& v : m.values) v = std::clamp(std::nearbyint(v), -127.f, 127.f);
  else
    std::fill(m.scale.begin(), m.scale.end(), 1.f);
  return m;
}

void check_experts(Tally& tally, const Case& test, std::mt19937_64& random) {
  const Routed routed = test.routed ? route(tally, test, random) : unrouted(test, random);
  const Matrix gate = random_matrix(test, test.d_ff, test.d_model, random), up = random_matrix(test, test.d_ff, test.d_model, random),
               down = random_matrix(test, test.d_model, test.d_ff, random);
  std::vector<unsigned char> pair_bytes, down_bytes;
  std::vector<float> pair_scale, down_scale;
  gate.pack(test, packed_pair_rows(test.d_ff), packed_gate_row, pair_bytes, pair_scale);
  up.pack(test, packed_pair_rows(test.d_ff), packed_up_row, pair_bytes, pair_scale);
  down.pack(test, test.d_model, [](int64_t r) { return r; }, down_bytes, down_scale);
  const std::vector<float> residual = random_values(random, test.tokens * test.d_model, test.dtype, 0.f, 1.f);

  const DeviceBuffer dpair = upload(pair_bytes), ddown = upload(down_bytes);
  const DeviceBuffer dpair_scale = upload_values(pair_scale), ddown_scale = upload_values(down_scale);
  const DeviceBuffer dresidual = upload(encode(residual, test.dtype));
  DeviceBuffer y(residual.size() * size_of(test.dtype));
  MoeParams params{};
  params.tokens = test.tokens;
  params.d_model = test.d_model;
  params.d_ff = test.d_ff;
  params.experts = test.experts;
  params.top_k = test.top_k;
  params.weights = test.weights;
  DeviceBuffer arrivals(moe_arrivals(params) * 4);
  arrivals.fill(0);
  DeviceBuffer workspace(test.path == Case::kDecode ? moe_decode_workspace(params) : moe_prefill_workspace(params));
  params.gate_up = dpair.data();
  params.down = ddown.data();
  if (test.weights == PackedType::kInt8) {
    params.gate_up_scale = static_cast<const float*>(dpair_scale.data());
    params.down_scale = static_cast<const float*>(ddown_scale.data());
  }
  params.x = routed.dx.data();
  params.residual = test.residual == 0 ? nullptr : test.residual == 1 ? dresidual.data() : y.data();
  params.y = y.data();
  if (test.routed) params.routing = routed.buffers.pointers();
  params.workspace = workspace.data();
  params.arrivals = static_cast<uint32_t*>(arrivals.data());
  const auto run_path = test.path == Case::kDecode ? moe_decode : test.path == Case::kTiles ? moe_prefill : moe_prefill_slices;
  std::vector<unsigned char> first;
  for (int run = 0; run < 2; ++run) {
    y.fill(0xff);
    workspace.fill(0xff);
    if (test.residual == 2) CUDA_CHECK(cudaMemcpy(y.data(), dresidual.data(), y.bytes(), cudaMemcpyDeviceToDevice));
    CUDA_CHECK(run_path(params, test.dtype, nullptr));
    CUDA_CHECK(cudaDeviceSynchronize());
    if (run == 0) first = download(y);
  }

  const int64_t choices = test.tokens * test.top_k;
  std::vector<double> hidden(choices * test.d_ff), hidden_bound(hidden.size());
  parallel_for(choices * test.d_ff, [&](int64_t i) {
    const int64_t choice = i / test.d_ff, f = i % test.d_ff, e = routed.experts[choice];
    const float* x = &routed.x[choice / test.top_k * test.d_model];
    double sum[2] = {}, size[2] = {};
    for (int side = 0; side < 2; ++side) {
      const Matrix& m = side == 0 ? gate : up;
      const int64_t row = e * test.d_ff + f;
      for (int64_t d = 0; d < test.d_model; ++d) {
        const double term = static_cast<double>(m.values[row * test.d_model + d]) * x[d];
        sum[side] += term;
        size[side] += std::abs(term);
      }
      sum[side] *= m.scale[row];
      size[side] *= m.scale[row];
    }
    const double silu = sum[0] / (1 + std::exp(-sum[0]));
    hidden[i] = silu * sum[1];
    hidden_bound[i] = output_rounding(test.dtype) * std::abs(hidden[i]) + output_floor(test.dtype) +
                      1e-6 * (std::abs(silu) * size[1] + 1.1 * size[0] * std::abs(sum[1]));
  });
  const std::vector<float> got = decode(first, test.dtype);
  std::vector<double> want(got.size()), bound(got.size());
  parallel_for(test.tokens * test.d_model, [&](int64_t i) {
    const int64_t m = i / test.d_model, d = i % test.d_model;
    double total = test.residual == 0 ? 0.0 : residual[i], size = std::abs(total), variance = 0, output_errors = 0;
    for (int64_t k = 0; k < test.top_k; ++k) {
      const int64_t choice = m * test.top_k + k, row = routed.experts[choice] * test.d_model + d;
      const double weight = static_cast<double>(routed.weights[choice]) * down.scale[row], before = total;
      for (int64_t f = 0; f < test.d_ff; ++f) {
        const double code = weight * down.values[row * test.d_ff + f];
        const double term = code * hidden[choice * test.d_ff + f], error = code * hidden_bound[choice * test.d_ff + f];
        total += term;
        size += std::abs(term);
        variance += error * error;
      }
      if (test.path == Case::kTiles) output_errors += output_rounding(test.dtype) * std::abs(total - before) + output_floor(test.dtype);
    }
    // Each hidden value carries its own rounding; they add like independent ones.
    want[i] = total;
    bound[i] = output_rounding(test.dtype) * std::abs(total) + output_errors + 8 * std::sqrt(variance) + 1e-6 * size + output_floor(test.dtype);
  });
  WorstError worst;
  for (size_t i = 0; i < got.size(); ++i) worst.add(static_cast<int64_t>(i), got[i], want[i], bound[i]);
  tally.record(test.name(), worst.failure("y"));
  tally.record("repeats " + test.name(), first == download(y) ? "" : "bits differ");
  tally.record("counters " + test.name(), values_of<uint32_t>(arrivals) == std::vector<uint32_t>(moe_arrivals(params), 0) ? "" : "not reset");
}

void check_refusals(Tally& tally) {
  const DeviceBuffer memory(1024);
  void* const any = memory.data();
  const Routing routing{static_cast<int32_t*>(any), static_cast<float*>(any), static_cast<int32_t*>(any), static_cast<int32_t*>(any), static_cast<int32_t*>(any)};
  const auto record = [&](const char* name, cudaError_t status) {
    tally.record(name, status == cudaErrorInvalidValue ? "" : cudaGetErrorName(status));
  };
  const auto refuse_route = [&](const char* name, auto change) {
    MoeRouteParams params{1, 8, 4, 2, RouterOrder::kSoftmaxThenTopK, false, any, static_cast<float*>(any), static_cast<float*>(any), routing, static_cast<uint32_t*>(any)};
    change(params);
    record(name, moe_route(params, DType::kBFloat16, nullptr));
  };
  refuse_route("route: no tokens", [](auto& p) { p.tokens = 0; });
  refuse_route("route: 65 experts", [](auto& p) { p.experts = 65; });
  refuse_route("route: more choices than experts", [](auto& p) { p.top_k = 5; });
  refuse_route("route: 9 choices", [](auto& p) { p.experts = 16, p.top_k = 9; });
  refuse_route("route: D of 12", [](auto& p) { p.d_model = 12; });
  refuse_route("route: no router", [](auto& p) { p.router = nullptr; });
  refuse_route("route: no permutation", [](auto& p) { p.routing.permutation = nullptr; });
  const auto refuse_decode = [&](const char* name, DType dtype, auto change) {
    MoeParams params{1, 8, 8, 4, 2, PackedType::kInt8, any, any, static_cast<float*>(any), static_cast<float*>(any), any, nullptr, any, routing, any, static_cast<uint32_t*>(any)};
    change(params);
    record(name, moe_decode(params, dtype, nullptr));
  };
  const DType bf16 = DType::kBFloat16;
  refuse_decode("decode: float32", DType::kFloat32, [](auto&) {});
  refuse_decode("decode: 17 tokens", bf16, [](auto& p) { p.tokens = 17; });
  refuse_decode("decode: F of 20", bf16, [](auto& p) { p.d_ff = 20; });
  refuse_decode("decode: no scale", bf16, [](auto& p) { p.down_scale = nullptr; });
  refuse_decode("decode: misaligned x", bf16, [](auto& p) { p.x = static_cast<const char*>(p.x) + 2; });
  refuse_decode("decode: no routing for 4 experts", bf16, [](auto& p) { p.routing = {}; });
  refuse_decode("decode: half a routing", bf16, [](auto& p) { p.experts = p.top_k = 1, p.routing.positions = nullptr; });
  refuse_decode("decode: no workspace", bf16, [](auto& p) { p.workspace = nullptr; });
  const auto refuse_prefill = [&](const char* name, auto change) {
    MoeParams params{1, 256, 128, 4, 2, PackedType::kInt8, any, any, static_cast<float*>(any), static_cast<float*>(any), any, nullptr, any, routing, any, static_cast<uint32_t*>(any)};
    change(params);
    record(name, moe_prefill(params, bf16, nullptr));
  };
  refuse_prefill("prefill: no tokens", [](auto& p) { p.tokens = 0; });
  refuse_prefill("prefill: D of 12", [](auto& p) { p.d_model = 12; });
  refuse_prefill("prefill: F of 20", [](auto& p) { p.d_ff = 20; });
  refuse_prefill("prefill: no counters", [](auto& p) { p.arrivals = nullptr; });
  refuse_prefill("prefill: misaligned residual", [](auto& p) { p.residual = static_cast<const char*>(p.y) + 2; });
}

}  // namespace

int main(int argc, char** argv) {
  require_device("moe_test");
  const bool quick = argc > 1 && std::string(argv[1]) == "--quick";
  const uint64_t seed = std::random_device{}();
  std::printf("moe_test seed %llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  Tally tally;
  const RouterOrder first = RouterOrder::kSoftmaxThenTopK, last = RouterOrder::kTopKThenSoftmax;
  const std::vector<DType> dtypes{DType::kBFloat16, DType::kFloat16, DType::kFloat32};

  std::vector<int64_t> token_counts{1, 5, 16, 17};
  if (!quick) token_counts.insert(token_counts.end(), {1000, 3001});
  for (DType dtype : dtypes)
    for (int64_t tokens : token_counts)
      for (const auto& [experts, top_k] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {4, 4}, {16, 2}, {33, 3}, {64, 8}})
        for (int64_t d_model : {8, 264}) {
          Case test{dtype, tokens, d_model, 8, experts, top_k};
          test.order = random() % 2 == 0 ? first : last;
          test.renormalise = test.order == first && random() % 2 == 0;
          test.ties = random() % 3 == 0;
          test.favourite = random() % 4 == 0;
          route(tally, test, random);
        }
  for (bool renormalise : {false, true}) route(tally, Case{DType::kBFloat16, quick ? 3 : 300, 4096, 8, 16, 2, first, renormalise}, random);
  route(tally, Case{DType::kBFloat16, quick ? 3 : 300, 4096, 8, 16, 2, last}, random);

  const auto options = [&](Case test) {
    test.residual = static_cast<int>(random() % 3);
    test.order = random() % 2 == 0 ? first : last;
    test.favourite = random() % 2 == 0;
    check_experts(tally, test, random);
  };
  struct Kind {
    DType dtype;
    PackedType weights;
  };
  const PackedType int8 = PackedType::kInt8, wide = PackedType::k16Bit;
  const std::vector<Kind> kinds{{DType::kBFloat16, int8}, {DType::kFloat16, int8}, {DType::kBFloat16, wide}, {DType::kFloat16, wide}};
  using Sizes = std::vector<std::pair<int64_t, int64_t>>;
  for (const Kind kind : kinds) {
    for (int64_t tokens : quick ? std::vector<int64_t>{1, 9} : std::vector<int64_t>{1, 2, 4, 8, 9, 16})
      for (const auto& [d_model, d_ff] : quick ? Sizes{{72, 40}} : Sizes{{8, 8}, {72, 40}, {136, 1096}, {1032, 520}})
        for (const auto& [experts, top_k] : Sizes{{1, 1}, {5, 3}, {16, 2}, {64, 8}}) {
          if (experts * d_model * d_ff > 4 << 20) continue;
          options(Case{kind.dtype, tokens, d_model, d_ff, experts, top_k, first, false, kind.weights});
        }
    const auto prefill = [&](auto path, int64_t tokens, int64_t d_model, int64_t d_ff, int64_t experts, int64_t top_k, bool routed = true) {
      Case test{kind.dtype, tokens, d_model, d_ff, experts, top_k, first, false, kind.weights};
      test.path = path;
      test.routed = routed;
      options(test);
    };
    for (int64_t tokens : quick ? std::vector<int64_t>{1, 70} : std::vector<int64_t>{1, 7, 17, 64, 65, 128, 200, 600})
      for (const auto& [d_model, d_ff] : quick ? Sizes{{72, 40}} : Sizes{{8, 8}, {72, 40}, {256, 136}, {264, 640}, {768, 384}})
        for (const auto& [experts, top_k] : Sizes{{1, 1}, {5, 3}, {16, 2}})
          if (experts * d_model * d_ff <= 3 << 19) prefill(Case::kTiles, tokens, d_model, d_ff, experts, top_k);
    if (!quick) prefill(Case::kTiles, 150, 256, 128, 64, 8);
    if (!quick) prefill(Case::kTiles, 40, 2048, 3456, 2, 1);
    // Over 16 tiles of tokens, so that tiles come in more than one group.
    if (!quick) prefill(Case::kTiles, 2500, 136, 264, 1, 1, false);
    for (int64_t tokens : quick ? std::vector<int64_t>{19} : std::vector<int64_t>{3, 16, 17, 100})
      for (const auto& [experts, top_k] : Sizes{{1, 1}, {5, 3}, {64, 8}}) prefill(Case::kSlices, tokens, 72, 40, experts, top_k);
    for (int64_t tokens : quick ? std::vector<int64_t>{3} : std::vector<int64_t>{1, 16}) prefill(Case::kDecode, tokens, 264, 136, 1, 1, false);
    for (int64_t tokens : quick ? std::vector<int64_t>{33} : std::vector<int64_t>{5, 33, 400}) {
      prefill(Case::kTiles, tokens, 264, 136, 1, 1, false);
      prefill(Case::kSlices, tokens, 264, 136, 1, 1, false);
    }
  }
  if (!quick) {
    check_experts(tally, Case{DType::kBFloat16, 11, 4096, 3456, 1, 1, first, false, int8}, random);
    check_experts(tally, Case{DType::kBFloat16, 1, 4096, 3456, 1, 1, first, false, wide}, random);
  }
  check_refusals(tally);
  return tally.finish();
}
