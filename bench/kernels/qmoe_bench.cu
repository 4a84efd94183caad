// Times ONNX Runtime's own int8 experts, com.microsoft::QMoE with a scale a row and SwiGLU, at the sizes of moe_bench, as
// captured graphs and without. Its softmax and top-k are included, the router's product is not. Weights are random codes,
// whose order, which the op defines, changes no time.
// qmoe_bench <folder of libonnxruntime.so.1 and its CUDA provider> [--commit HASH] [--date DATE] [--driver VERSION] [--json FILE]

#include <cmath>
#include <random>

#include "ort_session.h"
#include "timing.cuh"

using namespace layerweave;

namespace {

constexpr int64_t kModel = 4096, kFeatures = 14336, kExperts = 16, kTopK = 2;
constexpr auto kCodes = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;

struct Result {
  DType dtype;
  bool captured;
  int64_t tokens;
  double distinct_experts, ms;

  double bytes() const { return distinct_experts * 3.0 * kModel * kFeatures; }
  double flops() const { return tokens > 16 ? 6.0 * static_cast<double>(tokens * kTopK) * kModel * kFeatures : 0; }
};

Model qmoe(DType dtype, int64_t tokens) {
  const auto type = dtype == DType::kBFloat16 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
  Model model;
  model.op = "QMoE";
  model.node = "/experts";
  model.domain = "com.microsoft";
  model.attributes = {{"k", kTopK}, {"activation_type", std::string("swiglu")}, {"swiglu_fusion", int64_t{1}}, {"expert_weight_bits", int64_t{8}}};
  model.node_inputs = {"x", "router", "gate_up", "gate_up_scale", "", "down", "down_scale"};
  model.inputs = {{"x", type, {tokens, kModel}, {}},
                  {"router", type, {tokens, kExperts}, {}},
                  {"gate_up", kCodes, {kExperts, 2 * kFeatures, kModel}, {}},
                  {"gate_up_scale", type, {kExperts, 2 * kFeatures}, {}},
                  {"down", kCodes, {kExperts, kModel, kFeatures}, {}},
                  {"down_scale", type, {kExperts, kModel}, {}}};
  model.outputs = {{"y", type, {tokens, kModel}, {}}};
  return model;
}

/// Experts that at least one token chooses.
int64_t distinct_experts(const std::vector<float>& logits) {
  std::vector<bool> chosen(kExperts);
  for (size_t row = 0; row < logits.size(); row += kExperts) {
    std::vector<std::pair<float, int64_t>> order;
    for (int64_t e = 0; e < kExperts; ++e) order.push_back({logits[row + e], e});
    std::sort(order.rbegin(), order.rend());
    for (int64_t k = 0; k < kTopK; ++k) chosen[order[k].second] = true;
  }
  return std::count(chosen.begin(), chosen.end(), true);
}

Result bench(const Runtime& runtime, cudaStream_t stream, DType dtype, int64_t tokens, bool captured) {
  Session session(runtime, qmoe(dtype, tokens), stream, captured, false);
  const auto set = [&](const char* name, const DeviceBuffer& from) {
    CUDA_CHECK(cudaMemcpy(session.buffer(name).data(), from.data(), from.bytes(), cudaMemcpyDeviceToDevice));
  };
  set("gate_up", random_codes(kExperts * 2 * kFeatures * kModel, 1));
  set("down", random_codes(kExperts * kModel * kFeatures, 2));
  set("gate_up_scale", random_buffer(kExperts * 2 * kFeatures, dtype, 1e-5f, 2e-4f));
  set("down_scale", random_buffer(kExperts * kModel, dtype, 1e-5f, 2e-4f));
  // Runs follow one another without the host waiting for each.
  OrtRunOptions* options;
  runtime.check(runtime.api->CreateRunOptions(&options));
  const std::unique_ptr<OrtRunOptions, void (*)(OrtRunOptions*)> owned(options, runtime.api->ReleaseRunOptions);
  runtime.check(runtime.api->AddRunConfigEntry(options, "disable_synchronize_execution_providers", "1"));
  const int batches = tokens > 16 ? 1 : 8, runs = tokens > 16 ? 1 : 4;
  std::mt19937_64 random(5);
  std::normal_distribution<float> normal;
  Events events;
  Result result{dtype, captured, tokens, 0, 0};
  for (int batch = 0; batch < batches; ++batch) {
    std::vector<float> logits(tokens * kExperts);
    for (float& logit : logits) logit = normal(random);
    const std::vector<unsigned char> router = encode(logits, dtype);
    result.distinct_experts += static_cast<double>(distinct_experts(decode(router, dtype))) / batches;
    set("router", upload(router));
    set("x", random_buffer(tokens * kModel, dtype, 1.f, 0.f));
    CUDA_CHECK(cudaMemset(session.buffer("y").data(), 0xff, session.buffer("y").bytes()));
    CUDA_CHECK(cudaDeviceSynchronize());
    std::vector<double> samples;
    for (int i = 0; i < kSamples + 3; ++i) {
      const float ms = events.time(stream, [&] {
        for (int run = 0; run < runs; ++run) session.enqueue(options);
      });
      if (i >= 3) samples.push_back(ms / runs);
    }
    result.ms += median(samples) / batches;
    CUDA_CHECK(cudaDeviceSynchronize());
    double squares = 0;
    for (const float y : decode(download(session.buffer("y")), dtype)) squares += static_cast<double>(y) * y;
    if (!std::isfinite(squares) || squares == 0) throw std::runtime_error("its output is not finite, or zero");
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-') {
    std::fprintf(stderr, "usage: qmoe_bench <folder of libonnxruntime.so.1 and its CUDA provider> [--commit HASH] [--date DATE] [--driver VERSION] [--json FILE]\n");
    return 2;
  }
  const BenchOptions options = parse_options("qmoe_bench", argc - 1, argv + 1);
  require_device("qmoe_bench");
  cudaDeviceProp card;
  CUDA_CHECK(cudaGetDeviceProperties(&card, 0));
  int cuda = 0;
  CUDA_CHECK(cudaRuntimeGetVersion(&cuda));
  const double copy = copy_bandwidth();
  std::printf("%s: copy %.3f TB/s (read + written)\n", card.name, copy * 1e-12);
  cudaStream_t stream;
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));

  std::string version;
  std::vector<Result> results;
  bool refused = false;
  try {
    const Runtime runtime(std::string(argv[1]) + "/libonnxruntime.so.1", "");
    version = runtime.version;
    for (const DType dtype : {DType::kBFloat16, DType::kFloat16})
      for (const int64_t tokens : {1, 16, 8192})
        for (const bool captured : {true, false}) {
          try {
            results.push_back(bench(runtime, stream, dtype, tokens, captured));
          } catch (const std::exception& error) {
            std::fprintf(stderr, "QMoE %s, %lld tokens, %s: %s\n", name_of(dtype), static_cast<long long>(tokens), captured ? "captured" : "not captured", error.what());
            refused = true;
          }
        }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }

  std::printf("%-9s %-8s %5s %8s %9s %9s %6s %8s\n", "QMoE", "captured", "M", "experts", "ms", "copy ms", "limit", "TFLOP/s");
  for (const Result& r : results)
    std::printf("%-9s %-8s %5lld %8.2f %9.4f %9.4f %5.0f%% %8.0f\n", name_of(r.dtype), r.captured ? "yes" : "no", static_cast<long long>(r.tokens),
                r.distinct_experts, r.ms, r.bytes() / copy * 1e3, r.bytes() / copy * 1e5 / r.ms, r.flops() / r.ms * 1e-9);

  std::FILE* const out = options.open();
  if (out == nullptr) {
    std::perror(options.json_path.c_str());
    return 1;
  }
  std::fprintf(out,
               "{\n  \"card\": \"%s\",\n  \"driver\": \"%s\",\n  \"cuda\": \"%d.%d\",\n  \"onnxruntime\": \"%s\",\n  \"date\": \"%s\",\n  \"commit\": \"%s\",\n"
               "  \"copy_bytes_per_s\": %.4g,\n  \"samples\": %d,\n  \"results\": [\n",
               card.name, options.driver.c_str(), cuda / 1000, cuda % 1000 / 10, version.c_str(), options.date.c_str(), options.commit.c_str(), copy, kSamples);
  for (size_t i = 0; i < results.size(); ++i) {
    const Result& r = results[i];
    std::fprintf(out,
                 "    {\"kernel\": \"com.microsoft::QMoE\", \"weights\": \"int8\", \"activations\": \"%s\", \"cuda_graph\": %s, \"shape\": \"E%lld top-%lld %lldx%lld\", "
                 "\"tokens\": %lld, \"distinct_experts\": %.3f, \"bytes\": %.0f, \"median_ms\": %.5f, \"copy_limit_ms\": %.5f, \"fraction_of_copy\": %.3f, \"tflops\": %.1f}%s\n",
                 name_of(r.dtype), r.captured ? "true" : "false", static_cast<long long>(kExperts), static_cast<long long>(kTopK), static_cast<long long>(kModel),
                 static_cast<long long>(kFeatures), static_cast<long long>(r.tokens), r.distinct_experts, r.bytes(), r.ms, r.bytes() / copy * 1e3,
                 r.bytes() / copy * 1e3 / r.ms, r.flops() / r.ms * 1e-9, i + 1 == results.size() ? "" : ",");
  }
  std::fprintf(out, "  ]\n}\n");
  if (out != stdout && std::fclose(out) != 0) {
    std::perror(options.json_path.c_str());
    return 1;
  }
  return refused ? 1 : 0;
}
