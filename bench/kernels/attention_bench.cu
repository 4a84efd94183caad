// Times attention: few tokens against the card's copy rate, counting the cached
// positions that are read once, and many tokens by the products of the positions
// that each of them sees. And the choice of the next token.
// attention_bench [--commit HASH] [--date DATE] [--driver VERSION] [--json FILE]

#include <cmath>

#include "attention.cuh"
#include "sample.cuh"
#include "timing.cuh"

using namespace layerweave;

namespace {

struct Size {
  int64_t batch, tokens, past, capacity;
  int64_t heads = 32, kv_heads = 8, head_dim = 128, window = 0;
};

struct Result {
  Size size;
  double ms, bytes, flops;
};

Result bench(const Size& size) {
  const int64_t cache = size.batch * size.kv_heads * size.capacity * size.head_dim, row = (size.heads + 2 * size.kv_heads) * size.head_dim;
  const int64_t seen = size.window == 0 ? size.past + size.tokens : std::min(size.past + size.tokens, size.window + size.tokens - 1);
  const double bytes = 4.0 * static_cast<double>(size.batch * size.kv_heads * seen * size.head_dim);
  // As many caches as rotate through more than the L2 holds.
  const bool many = size.tokens > 16;
  const int sets = many ? 1 : static_cast<int>(std::min(16.0, 1 + static_cast<double>(kRotatingBytes) / (4.0 * static_cast<double>(cache))));
  std::vector<DeviceBuffer> keys, values;
  for (int i = 0; i < sets; ++i) {
    keys.push_back(random_buffer(cache, DType::kBFloat16, 1.f, 0.f));
    values.push_back(random_buffer(cache, DType::kBFloat16, 1.f, 0.f));
  }
  const DeviceBuffer qkv = random_buffer(size.batch * size.tokens * row, DType::kBFloat16, 1.f, 0.f);
  std::vector<float> inverse_frequencies(size.head_dim / 2);
  for (size_t i = 0; i < inverse_frequencies.size(); ++i) inverse_frequencies[i] = std::pow(10000.f, -2.f * static_cast<float>(i) / static_cast<float>(size.head_dim));
  const DeviceBuffer frequencies = upload_values(inverse_frequencies), past = upload_values(std::vector<int64_t>(size.batch, size.past));
  const DeviceBuffer y(size.batch * size.tokens * size.heads * size.head_dim * 2);
  AttentionParams params{};
  params.batch = size.batch;
  params.tokens = size.tokens;
  params.heads = size.heads;
  params.kv_heads = size.kv_heads;
  params.head_dim = size.head_dim;
  params.capacity = size.capacity;
  params.window = size.window;
  params.rope_scale = 1.f;
  const DeviceBuffer workspace(attention_workspace(params));
  DeviceBuffer arrivals(attention_arrivals(params) * 4);
  arrivals.fill(0);
  params.qkv = qkv.data();
  params.qkv_row_stride = row;
  params.inverse_frequencies = static_cast<const float*>(frequencies.data());
  params.past_lengths = static_cast<const int64_t*>(past.data());
  params.y = y.data();
  params.workspace = workspace.data();
  params.arrivals = static_cast<uint32_t*>(arrivals.data());
  const double ms = median_ms(many ? 1 : 16, [&](int i, cudaStream_t stream) {
    params.key_in = params.key_out = keys[i % sets].data();
    params.value_in = params.value_out = values[i % sets].data();
    CUDA_CHECK(attention(params, DType::kBFloat16, stream));
  });
  double pairs = 0;
  for (int64_t t = 0; t < size.tokens; ++t) {
    const int64_t visible = size.past + t + 1;
    pairs += static_cast<double>(size.window == 0 ? visible : std::min(visible, size.window));
  }
  return {size, ms, bytes, 4.0 * pairs * static_cast<double>(size.batch * size.heads * size.head_dim)};
}

struct Sampling {
  const char* name;
  int64_t batch, vocabulary;
  SampleRow row;
  double ms = 0;
};

void bench(Sampling& sampling) {
  const DeviceBuffer logits = random_buffer(sampling.batch * sampling.vocabulary, DType::kFloat32, 4.f, 0.f);
  seed_sampler(1, sampling.row.state);
  const DeviceBuffer rows = upload_values(std::vector<SampleRow>(sampling.batch, sampling.row)), tokens(sampling.batch * 8);
  SampleParams params{sampling.batch, sampling.vocabulary, static_cast<const float*>(logits.data()), sampling.vocabulary, static_cast<SampleRow*>(rows.data()),
                      static_cast<int64_t*>(tokens.data()), nullptr};
  const DeviceBuffer workspace(sample_workspace(params));
  params.workspace = workspace.data();
  sampling.ms = median_ms(32, [&](int, cudaStream_t stream) { CUDA_CHECK(sample(params, stream)); });
}

}  // namespace

int main(int argc, char** argv) {
  const BenchOptions options = parse_options("attention_bench", argc, argv);
  require_device("attention_bench");
  cudaDeviceProp card;
  CUDA_CHECK(cudaGetDeviceProperties(&card, 0));
  int runtime = 0;
  CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
  const double copy = copy_bandwidth();
  std::printf("%s: copy %.3f TB/s (read + written)\n", card.name, copy * 1e-12);

  constexpr int64_t kLong = 262144;
  std::vector<Result> results;
  for (const Size& size : {
           Size{1, 1, 100, kLong}, {1, 1, 2047, kLong}, {1, 1, 8191, kLong}, {1, 1, 32767, kLong}, {1, 1, 131071, kLong}, {1, 1, kLong - 1, kLong},
           {1, 4, kLong - 4, kLong}, {4, 1, 8191, 8192}, {16, 1, 8191, 8192}, {16, 1, 1023, 8192}, {64, 1, 2047, 2048},
           {1, 1, kLong - 1, kLong, 32, 8, 128, 4096}, {1, 1, kLong - 1, kLong, 32, 8, 64}, {1, 1, kLong - 1, kLong, 16, 8, 256}, {1, 1, kLong - 1, kLong, 64, 1},
           {1, 128, 0, 8192}, {1, 1024, 0, 8192}, {1, 2048, 0, 8192}, {1, 8192, 0, 8192}, {1, 8192, 131072, kLong}, {1, 8192, kLong - 8192, kLong},
           {4, 2048, 0, 2048}, {1, 8192, 131072, kLong, 32, 8, 128, 4096}, {1, 8192, 0, 8192, 32, 32}, {1, 8192, 0, 8192, 32, 8, 64}, {1, 8192, 0, 8192, 16, 8, 256}})
    results.push_back(bench(size));

  std::printf("%4s %6s %7s %7s %3s %3s %4s %6s %10s %9s %6s %8s\n", "B", "T", "past", "S", "H", "G", "P", "window", "ms", "copy ms", "limit", "TFLOP/s");
  for (const Result& r : results)
    std::printf("%4lld %6lld %7lld %7lld %3lld %3lld %4lld %6lld %10.4f %9.4f %5.0f%% %8.0f\n", static_cast<long long>(r.size.batch), static_cast<long long>(r.size.tokens),
                static_cast<long long>(r.size.past), static_cast<long long>(r.size.capacity), static_cast<long long>(r.size.heads),
                static_cast<long long>(r.size.kv_heads), static_cast<long long>(r.size.head_dim), static_cast<long long>(r.size.window), r.ms, r.bytes / copy * 1e3,
                r.bytes / copy * 1e5 / r.ms, r.flops / r.ms * 1e-9);

  std::vector<Sampling> samplings;
  for (const int64_t batch : {1, 16})
    for (Sampling sampling : {Sampling{"greedy", batch, 65536, {0, 1, 0, 0, {}}}, {"temperature", batch, 65536, {0.8, 1, 0, 0, {}}},
                              {"top-k 50", batch, 65536, {0.8, 1, 0, 50, {}}}, {"top-p 0.95", batch, 65536, {0.8, 0.95, 0, 0, {}}},
                              {"top-k 50, top-p 0.95, min-p 0.05", batch, 65536, {0.8, 0.95, 0.05, 50, {}}}}) {
      bench(sampling);
      std::printf("sample %-34s B %2lld V %lld %8.4f ms\n", sampling.name, static_cast<long long>(batch), static_cast<long long>(sampling.vocabulary), sampling.ms);
      samplings.push_back(sampling);
    }

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
                 "    {\"kernel\": \"attention\", \"dtype\": \"bfloat16\", \"batch\": %lld, \"tokens\": %lld, \"past\": %lld, \"capacity\": %lld, \"heads\": %lld, "
                 "\"kv_heads\": %lld, \"head_dim\": %lld, \"window\": %lld, \"bytes\": %.0f, \"median_ms\": %.5f, \"copy_limit_ms\": %.5f, "
                 "\"fraction_of_copy\": %.3f, \"tflops\": %.1f}%s\n",
                 static_cast<long long>(r.size.batch), static_cast<long long>(r.size.tokens), static_cast<long long>(r.size.past),
                 static_cast<long long>(r.size.capacity), static_cast<long long>(r.size.heads), static_cast<long long>(r.size.kv_heads),
                 static_cast<long long>(r.size.head_dim), static_cast<long long>(r.size.window), r.bytes, r.ms, r.bytes / copy * 1e3, r.bytes / copy * 1e3 / r.ms,
                 r.flops / r.ms * 1e-9, i + 1 == results.size() ? "" : ",");
  }
  std::fprintf(out, "  ],\n  \"sampling\": [\n");
  for (size_t i = 0; i < samplings.size(); ++i)
    std::fprintf(out, "    {\"options\": \"%s\", \"batch\": %lld, \"vocabulary\": %lld, \"median_ms\": %.5f}%s\n", samplings[i].name,
                 static_cast<long long>(samplings[i].batch), static_cast<long long>(samplings[i].vocabulary), samplings[i].ms, i + 1 == samplings.size() ? "" : ",");
  std::fprintf(out, "  ]\n}\n");
  if (out != stdout && std::fclose(out) != 0) {
    std::perror(options.json_path.c_str());
    return 1;
  }
  return 0;
}
