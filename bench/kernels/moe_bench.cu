// Times the experts and the packed linear layer of a few tokens against the card's
// copy rate, counting each distinct expert's weights once, and both with many
// tokens, whose rate moe_peers.py sets beside that of a dense product.
// moe_bench [--commit HASH] [--date DATE] [--driver VERSION] [--json FILE]

#include <cmath>

#include "linear_packed.cuh"
#include "moe.cuh"
#include "timing.cuh"

using namespace layerweave;

namespace {

constexpr int kLaunches = 32;

const char* name_of(PackedType type) { return type == PackedType::kInt8 ? "int8" : "bfloat16"; }

DeviceBuffer random_weights(int64_t elements, PackedType type, uint64_t seed) {
  return type == PackedType::kInt8 ? random_codes(elements, seed) : random_buffer(elements, DType::kBFloat16, 0.01f, 0.f);
}

struct Result {
  std::string kernel, weights, shape;
  int64_t tokens;
  double distinct_experts;  // mean over the rotation, 0 for a dense layer
  double ms, bytes;
  double flops = 0;  // of many tokens
};

struct MoeSize {
  int64_t d_model = 4096, d_ff = 14336, experts = 16, top_k = 2;
};

/// Routing alone, the experts alone, and both.
void bench_moe(std::vector<Result>& results, const MoeSize& size, PackedType type, const std::vector<int64_t>& batches) {
  const int64_t element = type == PackedType::kInt8 ? 1 : 2;
  const int64_t pair = packed_elements(packed_pair_rows(size.d_ff), size.d_model), down = packed_elements(size.d_model, size.d_ff);
  const DeviceBuffer gate_up = random_weights(size.experts * pair, type, 1), downs = random_weights(size.experts * down, type, 2);
  const DeviceBuffer gate_up_scale = random_buffer(size.experts * packed_pair_rows(size.d_ff), DType::kFloat32, 1e-5f, 2e-4f);
  const DeviceBuffer down_scale = random_buffer(size.experts * size.d_model, DType::kFloat32, 1e-5f, 2e-4f);
  const DeviceBuffer router = random_buffer(size.experts * size.d_model, DType::kFloat32, 0.02f, 0.f);
  for (const int64_t tokens : batches) {
    const int64_t choices = tokens * size.top_k;
    const DeviceBuffer x = random_buffer(kLaunches * tokens * size.d_model, DType::kBFloat16, 1.f, 0.f);
    DeviceBuffer y(tokens * size.d_model * 2), logits(tokens * size.experts * 4), arrivals((1 + packed_panels(size.d_model)) * 4);
    DeviceBuffer ints(kLaunches * (3 * choices + size.experts + 1) * 4), weights(kLaunches * choices * 4);
    arrivals.fill(0);
    MoeParams experts{};
    experts.tokens = tokens;
    experts.d_model = size.d_model;
    experts.d_ff = size.d_ff;
    experts.experts = size.experts;
    experts.top_k = size.top_k;
    experts.weights = type;
    DeviceBuffer workspace(moe_decode_workspace(experts));
    const auto routing = [&](int i) {
      int32_t* at = static_cast<int32_t*>(ints.data()) + i * (3 * choices + size.experts + 1);
      return Routing{at, static_cast<float*>(weights.data()) + i * choices, at + 3 * choices, at + choices, at + 2 * choices};
    };
    const auto tokens_of = [&](int i) { return static_cast<const __nv_bfloat16*>(x.data()) + i * tokens * size.d_model; };
    const auto route = [&](int i, cudaStream_t stream) {
      const MoeRouteParams params{tokens, size.d_model, size.experts, size.top_k, RouterOrder::kSoftmaxThenTopK, false, tokens_of(i),
                                  static_cast<const float*>(router.data()), static_cast<float*>(logits.data()), routing(i),
                                  static_cast<uint32_t*>(arrivals.data())};
      CUDA_CHECK(moe_route(params, DType::kBFloat16, stream));
    };
    const auto decode = [&](int i, cudaStream_t stream) {
      MoeParams params = experts;
      params.gate_up = gate_up.data();
      params.down = downs.data();
      params.gate_up_scale = static_cast<const float*>(gate_up_scale.data());
      params.down_scale = static_cast<const float*>(down_scale.data());
      params.x = tokens_of(i);
      params.y = y.data();
      params.routing = routing(i);
      params.workspace = workspace.data();
      params.arrivals = static_cast<uint32_t*>(arrivals.data()) + 1;
      CUDA_CHECK(moe_decode(params, DType::kBFloat16, stream));
    };
    const double route_ms = median_ms(kLaunches, route);
    double distinct = 0;
    for (int i = 0; i < kLaunches; ++i) {
      std::vector<int32_t> offsets(size.experts + 1);
      CUDA_CHECK(cudaMemcpy(offsets.data(), routing(i).offsets, offsets.size() * 4, cudaMemcpyDeviceToHost));
      for (int64_t e = 0; e < size.experts; ++e) distinct += offsets[e + 1] > offsets[e];
    }
    distinct /= kLaunches;
    const double bytes = distinct * static_cast<double>((pair + down) * element);
    const double experts_ms = median_ms(kLaunches, decode);
    const double both_ms = median_ms(kLaunches, [&](int i, cudaStream_t stream) {
      route(i, stream);
      decode(i, stream);
    });
    const std::string shape = "E" + std::to_string(size.experts) + " top-" + std::to_string(size.top_k) + " " +
                              std::to_string(size.d_model) + "x" + std::to_string(size.d_ff);
    results.push_back({"moe_route", "float32", shape, tokens, distinct, route_ms, static_cast<double>(size.experts * size.d_model * 4)});
    results.push_back({"moe_decode", name_of(type), shape, tokens, distinct, experts_ms, bytes});
    results.push_back({"moe_route+moe_decode", name_of(type), shape, tokens, distinct, both_ms, bytes});
  }
}

void bench_prefill(std::vector<Result>& results, const MoeSize& size, PackedType type, const std::vector<int64_t>& token_counts) {
  const int64_t element = type == PackedType::kInt8 ? 1 : 2;
  const int64_t pair = packed_elements(packed_pair_rows(size.d_ff), size.d_model), down = packed_elements(size.d_model, size.d_ff);
  const DeviceBuffer gate_up = random_weights(size.experts * pair, type, 4), downs = random_weights(size.experts * down, type, 5);
  const DeviceBuffer gate_up_scale = random_buffer(size.experts * packed_pair_rows(size.d_ff), DType::kFloat32, 1e-5f, 2e-4f);
  const DeviceBuffer down_scale = random_buffer(size.experts * size.d_model, DType::kFloat32, 1e-5f, 2e-4f);
  const DeviceBuffer router = random_buffer(size.experts * size.d_model, DType::kFloat32, 0.02f, 0.f);
  DeviceBuffer arrivals((1 + packed_panels(size.d_model)) * 4);
  arrivals.fill(0);
  for (const int64_t tokens : token_counts) {
    const int64_t choices = tokens * size.top_k;
    const DeviceBuffer x = random_buffer(tokens * size.d_model, DType::kBFloat16, 1.f, 0.f);
    const DeviceBuffer y(tokens * size.d_model * 2), logits(tokens * size.experts * 4), weights(choices * 4),
        ints((3 * choices + size.experts + 1) * 4);
    int32_t* at = static_cast<int32_t*>(ints.data());
    const Routing routing{at, static_cast<float*>(weights.data()), at + 3 * choices, at + choices, at + 2 * choices};
    MoeParams params{tokens, size.d_model, size.d_ff, size.experts, size.top_k, type, gate_up.data(), downs.data(),
                     static_cast<const float*>(gate_up_scale.data()), static_cast<const float*>(down_scale.data()), x.data(), nullptr,
                     y.data(), {}, nullptr, static_cast<uint32_t*>(arrivals.data()) + 1};
    if (size.experts > 1) params.routing = routing;
    const DeviceBuffer workspace(moe_prefill_workspace(params));
    params.workspace = workspace.data();
    const std::string shape = "E" + std::to_string(size.experts) + " top-" + std::to_string(size.top_k) + " " +
                              std::to_string(size.d_model) + "x" + std::to_string(size.d_ff);
    const double flops = 6.0 * static_cast<double>(choices) * static_cast<double>(size.d_model * size.d_ff);
    const double bytes = static_cast<double>(size.experts * (pair + down) * element);
    if (size.experts > 1) {
      const MoeRouteParams route{tokens, size.d_model, size.experts, size.top_k, RouterOrder::kSoftmaxThenTopK, false, x.data(),
                                 static_cast<const float*>(router.data()), static_cast<float*>(logits.data()), routing,
                                 static_cast<uint32_t*>(arrivals.data())};
      const double route_ms = median_ms(1, [&](int, cudaStream_t stream) { CUDA_CHECK(moe_route(route, DType::kBFloat16, stream)); });
      results.push_back({"moe_route", "float32", shape, tokens, static_cast<double>(size.experts), route_ms, static_cast<double>(tokens * size.d_model * 2)});
    }
    const double ms = median_ms(1, [&](int, cudaStream_t stream) { CUDA_CHECK(moe_prefill(params, DType::kBFloat16, stream)); });
    results.push_back({"moe_prefill", name_of(type), shape, tokens, static_cast<double>(size.experts), ms, bytes, flops});
  }
}

/// A gated MLP: one expert without a router.
void bench_mlp(std::vector<Result>& results, PackedType type, const std::vector<int64_t>& batches) {
  constexpr MoeSize kSize{4096, 14336, 1, 1};
  const int64_t element = type == PackedType::kInt8 ? 1 : 2;
  const int64_t pair = packed_elements(packed_pair_rows(kSize.d_ff), kSize.d_model), down = packed_elements(kSize.d_model, kSize.d_ff);
  const DeviceBuffer gate_up = random_weights(pair, type, 6), downs = random_weights(down, type, 7);
  const DeviceBuffer scale = random_buffer(packed_pair_rows(kSize.d_ff), DType::kFloat32, 1e-5f, 2e-4f);
  for (const int64_t tokens : batches) {
    const DeviceBuffer x = random_buffer(tokens * kSize.d_model, DType::kBFloat16, 1.f, 0.f), y(tokens * kSize.d_model * 2);
    MoeParams params{tokens, kSize.d_model, kSize.d_ff, 1, 1, type, gate_up.data(), downs.data(), static_cast<const float*>(scale.data()),
                     static_cast<const float*>(scale.data()), x.data(), nullptr, y.data(), {}, nullptr, nullptr};
    const DeviceBuffer workspace(moe_decode_workspace(params));
    DeviceBuffer arrivals(moe_arrivals(params) * 4);
    arrivals.fill(0);
    params.workspace = workspace.data();
    params.arrivals = static_cast<uint32_t*>(arrivals.data());
    const double ms = median_ms(kLaunches, [&](int, cudaStream_t stream) { CUDA_CHECK(moe_decode(params, DType::kBFloat16, stream)); });
    results.push_back({"moe_decode", name_of(type), "gated MLP 4096x14336", tokens, 0, ms, static_cast<double>((pair + down) * element)});
  }
}

void bench_linear(std::vector<Result>& results, PackedType type, int64_t columns, int64_t rows, const std::vector<int64_t>& batches) {
  const int64_t elements = packed_elements(rows, columns), bytes = elements * (type == PackedType::kInt8 ? 1 : 2);
  const int sets = static_cast<int>(kRotatingBytes / bytes) + 1;
  const DeviceBuffer weights = random_weights(sets * elements, type, 3), scale = random_buffer(rows + kPanelRows, DType::kFloat32, 1e-5f, 2e-4f);
  for (const int64_t tokens : batches) {
    const DeviceBuffer x = random_buffer(tokens * columns, DType::kBFloat16, 1.f, 0.f);
    LinearPackedParams params{};
    params.tokens = tokens;
    params.rows = params.y_row_stride = rows;
    params.columns = params.x_row_stride = columns;
    params.weights = type;
    DeviceBuffer y(tokens * rows * 2), arrivals(linear_packed_arrivals(params) * 4), workspace(linear_packed_workspace(params));
    arrivals.fill(0);
    params.scale = static_cast<const float*>(scale.data());
    params.x = x.data();
    params.y = y.data();
    params.workspace = workspace.data();
    params.arrivals = static_cast<uint32_t*>(arrivals.data());
    const double ms = median_ms(tokens > 256 ? 4 : std::max(sets, kLaunches), [&](int i, cudaStream_t stream) {
      params.weight = static_cast<const char*>(weights.data()) + i % sets * bytes;
      CUDA_CHECK(linear_packed(params, DType::kBFloat16, stream));
    });
    results.push_back({"linear_packed", name_of(type), std::to_string(columns) + "->" + std::to_string(rows), tokens, 0, ms,
                       static_cast<double>(bytes) + (tokens > 256 ? static_cast<double>(tokens * (rows + columns) * 2) : 0),
                       tokens > 256 ? 2.0 * static_cast<double>(tokens * rows) * static_cast<double>(columns) : 0});
  }
}

}  // namespace

int main(int argc, char** argv) {
  const BenchOptions options = parse_options("moe_bench", argc, argv);
  require_device("moe_bench");
  cudaDeviceProp card;
  CUDA_CHECK(cudaGetDeviceProperties(&card, 0));
  int runtime = 0;
  CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
  const double copy = copy_bandwidth();
  std::printf("%s: copy %.3f TB/s (read + written)\n", card.name, copy * 1e-12);

  std::vector<Result> results;
  const PackedType int8 = PackedType::kInt8, bf16 = PackedType::k16Bit;
  bench_moe(results, {}, int8, {1, 2, 4, 8, 16});
  bench_moe(results, {}, bf16, {1, 16});
  bench_prefill(results, {}, int8, {256, 2048, 8192});
  bench_prefill(results, {}, bf16, {256, 2048, 8192});
  for (PackedType type : {int8, bf16}) {
    bench_mlp(results, type, {1, 16});
    bench_prefill(results, {4096, 14336, 1, 1}, type, {2048, 8192});
    bench_linear(results, type, 4096, 16384, {1, 16, 32, 64, 256, 2048, 8192});
  }
  for (const auto& [columns, rows] : {std::pair<int64_t, int64_t>{8192, 4096}, {4096, 28672}, {14336, 4096}, {4096, 65536}})
    bench_linear(results, int8, columns, rows, {1, 16});
  // Between a Mamba layer's projections: x_proj and dt_proj.
  bench_linear(results, int8, 8192, 288, {1, 16, 512, 8192});
  bench_linear(results, int8, 256, 8192, {512, 8192});

  std::printf("%-22s %-9s %-22s %5s %8s %9s %9s %6s %8s\n", "kernel", "weights", "shape", "M", "experts", "ms", "copy ms", "limit", "TFLOP/s");
  for (const Result& r : results)
    std::printf("%-22s %-9s %-22s %5lld %8.2f %9.4f %9.4f %5.0f%% %8.0f\n", r.kernel.c_str(), r.weights.c_str(), r.shape.c_str(),
                static_cast<long long>(r.tokens), r.distinct_experts, r.ms, r.bytes / copy * 1e3, r.bytes / copy * 1e5 / r.ms, r.flops / r.ms * 1e-9);

  std::FILE* const out = options.open();
  if (out == nullptr) {
    std::perror(options.json_path.c_str());
    return 1;
  }
  std::fprintf(out,
               "{\n  \"card\": \"%s\",\n  \"driver\": \"%s\",\n  \"cuda\": \"%d.%d\",\n  \"date\": \"%s\",\n  \"commit\": \"%s\",\n"
               "  \"copy_bytes_per_s\": %.4g,\n  \"samples\": %d,\n  \"results\": [\n",
               card.name, options.driver.c_str(), runtime / 1000, runtime % 1000 / 10, options.date.c_str(), options.commit.c_str(), copy, kSamples);
  for (size_t i = 0; i < results.size(); ++i) {
    const Result& r = results[i];
    std::fprintf(out,
                 "    {\"kernel\": \"%s\", \"weights\": \"%s\", \"shape\": \"%s\", \"tokens\": %lld, \"distinct_experts\": %.3f, "
                 "\"bytes\": %.0f, \"median_ms\": %.5f, \"copy_limit_ms\": %.5f, \"fraction_of_copy\": %.3f, \"tflops\": %.1f}%s\n",
                 r.kernel.c_str(), r.weights.c_str(), r.shape.c_str(), static_cast<long long>(r.tokens), r.distinct_experts, r.bytes,
                 r.ms, r.bytes / copy * 1e3, r.bytes / copy * 1e3 / r.ms, r.flops / r.ms * 1e-9, i + 1 == results.size() ? "" : ",");
  }
  std::fprintf(out, "  ]\n}\n");
  if (out != stdout && std::fclose(out) != 0) {
    std::perror(options.json_path.c_str());
    return 1;
  }
  return 0;
}
