// Times the kernels and sets each beside its limit on the card it runs on.
// kernels_bench [--commit HASH] [--date DATE] [--driver VERSION] [--json FILE]

#include <algorithm>
#include <cmath>
#include <string>

#include "causal_conv.cuh"
#include "device.h"
#include "mamba_inner.cuh"
#include "selective_scan.cuh"
#include "timing.cuh"

using namespace layerweave;

namespace {

constexpr int kExpChains = 8;
constexpr int kExpSteps = 4096;

// Powers of powers of two: sixteen warps a scheduler and eight independent
// chains a thread leave nothing but the special-function unit to wait for.
__global__ void exponentials(float* to, float seed) {
  float x[kExpChains];
  for (int i = 0; i < kExpChains; ++i) x[i] = seed - static_cast<float>(threadIdx.x + i) * 0x1p-10f;
  for (int step = 0; step < kExpSteps; ++step)
#pragma unroll
    for (int i = 0; i < kExpChains; ++i) asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(x[i]));
  float sum = 0;
  for (int i = 0; i < kExpChains; ++i) sum += x[i];
  to[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

/// Exponentials per second.
double exp_rate(int processors) {
  constexpr int kBlock = 1024;
  DeviceBuffer to(size_t{2} * processors * kBlock * sizeof(float));
  const double ms = median_ms(1, [&](int, cudaStream_t stream) {
    exponentials<<<2 * processors, kBlock, 0, stream>>>(static_cast<float*>(to.data()), -1.f);
    CUDA_CHECK(cudaGetLastError());
  });
  return 2.0 * processors * kBlock * kExpChains * kExpSteps / (ms * 1e-3);
}

struct Result {
  std::string kernel;
  DType dtype;
  int64_t batch, tokens, channels;
  double ms, copy_limit_ms, exp_limit_ms;

  double limit_ms() const { return std::max(copy_limit_ms, exp_limit_ms); }
};

struct Rates {
  double copy, exponentials;
};

Result bench_scan(const Rates& rates, DType dtype, int64_t batch, int64_t tokens, int64_t channels, int64_t states) {
  const int64_t rows = batch * tokens, dt_rank = 256;
  const int64_t bc_columns = dt_rank + 2 * states;
  const size_t size = size_of(dtype);
  // u, z and y in place; B and C as the projection leaves them.
  const double bytes = static_cast<double>(rows) * (4 * channels + 2 * states) * size +
                       static_cast<double>(batch) * channels * states * 8 + static_cast<double>(channels) * states * 4;
  struct Set {
    DeviceBuffer uz, delta, bc, y, state;
  };
  const int sets = static_cast<int>(std::min<double>(64, std::ceil(kRotatingBytes / bytes) + 1));
  std::vector<Set> rotation;
  for (int i = 0; i < sets; ++i)
    rotation.push_back({random_buffer(rows * 2 * channels, dtype, 1.f, 0.f),
                        random_buffer(rows * channels, dtype, 1.f, 0.f),
                        random_buffer(rows * bc_columns, dtype, 1.f, 0.f), DeviceBuffer(rows * channels * size),
                        random_buffer(batch * channels * states, DType::kFloat32, 1.f, 0.f)});
  const DeviceBuffer a_log = random_buffer(channels * states, DType::kFloat32, 0.7f, 1.5f);
  const DeviceBuffer d_skip = random_buffer(channels, DType::kFloat32, 1.f, 0.f);
  const DeviceBuffer bias = random_buffer(channels, DType::kFloat32, 1.f, -4.f);
  const int launches = std::max(sets, tokens <= 16 ? 256 : 8);
  const double ms = median_ms(launches, [&](int i, cudaStream_t stream) {
    const Set& set = rotation[i % sets];
    const auto at = [&](const DeviceBuffer& buffer, int64_t offset) {
      return static_cast<const char*>(buffer.data()) + offset * size;
    };
    SelectiveScanParams params{};
    params.batch = batch;
    params.tokens = tokens;
    params.channels = channels;
    params.states = states;
    params.u = at(set.uz, 0);
    params.z = at(set.uz, channels);
    params.u_row_stride = params.z_row_stride = 2 * channels;
    params.delta = set.delta.data();
    params.delta_row_stride = channels;
    params.b = at(set.bc, dt_rank);
    params.c = at(set.bc, dt_rank + states);
    params.b_row_stride = params.c_row_stride = bc_columns;
    params.y = set.y.data();
    params.y_row_stride = channels;
    params.a_log = static_cast<const float*>(a_log.data());
    params.d_skip = static_cast<const float*>(d_skip.data());
    params.delta_bias = static_cast<const float*>(bias.data());
    params.state_in = static_cast<const float*>(set.state.data());
    params.state_out = static_cast<float*>(set.state.data());
    CUDA_CHECK(selective_scan(params, dtype, stream));
  });
  return {"selective_scan N=" + std::to_string(states), dtype, batch, tokens, channels, ms, bytes / rates.copy * 1e3,
          static_cast<double>(rows) * channels * states / rates.exponentials * 1e3};
}

Result bench_conv(const Rates& rates, DType dtype, int64_t batch, int64_t tokens, int64_t channels) {
  constexpr int64_t kKernel = 4;
  const int64_t rows = batch * tokens;
  const size_t size = size_of(dtype);
  const double bytes = static_cast<double>(2 * rows * channels + batch * channels * (kKernel - 1) * 2 +
                                           channels * (kKernel + 1)) * size;
  struct Set {
    DeviceBuffer xz, y, state;
  };
  const int sets = static_cast<int>(std::min<double>(64, std::ceil(kRotatingBytes / bytes) + 1));
  std::vector<Set> rotation;
  for (int i = 0; i < sets; ++i)
    rotation.push_back({random_buffer(rows * 2 * channels, dtype, 1.f, 0.f), DeviceBuffer(rows * channels * size),
                        random_buffer(batch * channels * (kKernel - 1), dtype, 1.f, 0.f)});
  const DeviceBuffer weight = random_buffer(channels * kKernel, dtype, 0.5f, 0.f);
  const DeviceBuffer bias = random_buffer(channels, dtype, 1.f, 0.f);
  const int launches = std::max(sets, tokens <= 16 ? 256 : 8);
  const double ms = median_ms(launches, [&](int i, cudaStream_t stream) {
    const Set& set = rotation[i % sets];
    CausalConvParams params{};
    params.batch = batch;
    params.tokens = tokens;
    params.channels = channels;
    params.kernel = kKernel;
    params.x = set.xz.data();
    params.x_row_stride = 2 * channels;
    params.y = set.y.data();
    params.y_row_stride = channels;
    params.weight = weight.data();
    params.bias = bias.data();
    params.state_in = params.state_out = set.state.data();
    CUDA_CHECK(causal_conv(params, dtype, stream));
  });
  return {"causal_conv K=4", dtype, batch, tokens, channels, ms, bytes / rates.copy * 1e3,
          static_cast<double>(rows) * channels / rates.exponentials * 1e3};
}

/// A Mamba layer's inside, Jamba's size but for the channels.
Result bench_mamba(const Rates& rates, PackedType type, int64_t batch, int64_t tokens, int64_t channels) {
  constexpr int64_t kStates = 16, kRank = 256, kKernel = 4;
  const DType dtype = DType::kBFloat16, f32 = DType::kFloat32;
  const int64_t rows = batch * tokens, element = type == PackedType::kInt8 ? 1 : 2;
  const int64_t x_proj = packed_elements(kRank + 2 * kStates, channels) * element, dt_proj = packed_elements(channels, kRank) * element;
  const double weight_bytes = static_cast<double>(x_proj + dt_proj + channels * ((kKernel + 1) * 2 + kStates * 4 + 12));
  const double state_bytes = static_cast<double>(batch * channels * (kStates * 8 + (kKernel - 1) * 4));
  const double bytes = static_cast<double>(rows * channels * 6) + state_bytes + weight_bytes;
  struct Set {
    DeviceBuffer weights, xz, y, conv_state, ssm_state;
  };
  const int sets = static_cast<int>(std::min<double>(64, std::ceil(kRotatingBytes / bytes) + 1));
  std::vector<Set> rotation;
  for (int i = 0; i < sets; ++i)
    // Any bytes are codes; as bfloat16 these are small weights.
    rotation.push_back({random_buffer((x_proj + dt_proj) / 2, dtype, 0.01f, 0.f), random_buffer(rows * 2 * channels, dtype, 1.f, 0.f),
                        DeviceBuffer(rows * channels * 2), random_buffer(batch * channels * (kKernel - 1), dtype, 1.f, 0.f),
                        random_buffer(batch * channels * kStates, f32, 1.f, 0.f)});
  const DeviceBuffer conv_weight = random_buffer(channels * kKernel, dtype, 0.5f, 0.f), vector = random_buffer(channels, dtype, 0.1f, 1.f),
                     scale = random_buffer(channels + kRank, f32, 1e-5f, 2e-4f), dt_bias = random_buffer(channels, f32, 1.f, -4.f),
                     a_log = random_buffer(channels * kStates, f32, 0.7f, 1.5f), d_skip = random_buffer(channels, f32, 1.f, 0.f);
  const auto floats = [](const DeviceBuffer& buffer) { return static_cast<const float*>(buffer.data()); };
  MambaInnerParams params{};
  params.batch = batch;
  params.tokens = tokens;
  params.channels = channels;
  params.states = kStates;
  params.dt_rank = kRank;
  params.kernel = kKernel;
  params.weights = type;
  DeviceBuffer workspace(mamba_inner_workspace(params)), arrivals(mamba_inner_arrivals(params) * 4);
  arrivals.fill(0);
  params.conv_weight = conv_weight.data();
  params.conv_bias = params.dt_norm = params.b_norm = params.c_norm = vector.data();
  params.dt_eps = params.b_eps = params.c_eps = 1e-6f;
  params.x_proj_scale = params.dt_proj_scale = floats(scale);
  params.dt_bias = floats(dt_bias);
  params.a_log = floats(a_log);
  params.d_skip = floats(d_skip);
  params.workspace = workspace.data();
  params.arrivals = static_cast<uint32_t*>(arrivals.data());
  const int launches = std::max(sets, tokens <= 16 ? 256 : 8);
  const double ms = median_ms(launches, [&](int i, cudaStream_t stream) {
    const Set& set = rotation[i % sets];
    params.x_proj = set.weights.data();
    params.dt_proj = static_cast<const char*>(set.weights.data()) + x_proj;
    params.xz = set.xz.data();
    params.y = set.y.data();
    params.conv_state_in = params.conv_state_out = set.conv_state.data();
    params.ssm_state_in = params.ssm_state_out = static_cast<float*>(set.ssm_state.data());
    CUDA_CHECK(mamba_inner(params, dtype, stream));
  });
  return {type == PackedType::kInt8 ? "mamba_inner int8" : "mamba_inner 16-bit", dtype, batch, tokens, channels, ms, bytes / rates.copy * 1e3,
          static_cast<double>(rows) * channels * kStates / rates.exponentials * 1e3};
}

}  // namespace

int main(int argc, char** argv) {
  const BenchOptions options = parse_options("kernels_bench", argc, argv);
  require_device("kernels_bench");
  cudaDeviceProp card;
  CUDA_CHECK(cudaGetDeviceProperties(&card, 0));
  int runtime = 0;
  CUDA_CHECK(cudaRuntimeGetVersion(&runtime));

  const Rates rates{copy_bandwidth(), exp_rate(card.multiProcessorCount)};
  std::printf("%s: copy %.3f TB/s (read + written), exponentials %.3f T/s\n", card.name, rates.copy * 1e-12,
              rates.exponentials * 1e-12);

  std::vector<Result> results;
  constexpr int64_t kChannels = 8192;
  const DType bf16 = DType::kBFloat16;
  for (const auto& [batch, tokens] : {std::pair<int64_t, int64_t>{1, 2048}, {4, 2048}, {1, 8192}, {1, 65536}})
    results.push_back(bench_scan(rates, bf16, batch, tokens, kChannels, 16));
  results.push_back(bench_scan(rates, DType::kFloat16, 1, 8192, kChannels, 16));
  results.push_back(bench_scan(rates, DType::kFloat32, 1, 8192, kChannels, 16));
  for (int64_t states : {8, 32, 64, 128}) results.push_back(bench_scan(rates, bf16, 1, 2048, kChannels, states));
  for (int64_t channels : {1536, 4096}) results.push_back(bench_scan(rates, bf16, 1, 2048, channels, 16));
  for (int64_t tokens : {1, 4, 16, 128}) results.push_back(bench_scan(rates, bf16, 1, tokens, kChannels, 16));
  for (int64_t batch : {4, 16}) results.push_back(bench_scan(rates, bf16, batch, 1, kChannels, 16));
  for (int64_t tokens : {2048, 8192, 65536}) results.push_back(bench_conv(rates, bf16, 1, tokens, kChannels));
  results.push_back(bench_conv(rates, DType::kFloat32, 1, 8192, kChannels));
  for (int64_t batch : {1, 16}) results.push_back(bench_conv(rates, bf16, batch, 1, kChannels));
  for (PackedType type : {PackedType::kInt8, PackedType::k16Bit}) {
    for (int64_t batch : {1, 4, 16}) results.push_back(bench_mamba(rates, type, batch, 1, kChannels));
    for (int64_t tokens : {512, 2048, 8192}) results.push_back(bench_mamba(rates, type, 1, tokens, kChannels));
  }

  std::printf("%-22s %-9s %9s %6s %10s %10s %9s %6s\n", "kernel", "dtype", "B x T", "D", "ms", "copy ms", "exp ms", "limit");
  for (const Result& r : results) {
    const std::string size = std::to_string(r.batch) + "x" + std::to_string(r.tokens);
    std::printf("%-22s %-9s %9s %6lld %10.4f %10.4f %9.4f %5.0f%%\n", r.kernel.c_str(), name_of(r.dtype), size.c_str(),
                static_cast<long long>(r.channels), r.ms, r.copy_limit_ms, r.exp_limit_ms, 100 * r.limit_ms() / r.ms);
  }

  std::FILE* const out = options.open();
  if (out == nullptr) {
    std::perror(options.json_path.c_str());
    return 1;
  }
  std::fprintf(out,
               "{\n  \"card\": \"%s\",\n  \"driver\": \"%s\",\n  \"cuda\": \"%d.%d\",\n"
               "  \"date\": \"%s\",\n  \"commit\": \"%s\",\n"
               "  \"copy_bytes_per_s\": %.4g,\n  \"exp2_per_s\": %.4g,\n  \"samples\": %d,\n  \"results\": [\n",
               card.name, options.driver.c_str(), runtime / 1000, runtime % 1000 / 10, options.date.c_str(), options.commit.c_str(),
               rates.copy, rates.exponentials, kSamples);
  for (size_t i = 0; i < results.size(); ++i) {
    const Result& r = results[i];
    std::fprintf(out,
                 "    {\"kernel\": \"%s\", \"dtype\": \"%s\", \"batch\": %lld, \"tokens\": %lld, \"channels\": %lld, "
                 "\"median_ms\": %.5f, \"copy_limit_ms\": %.5f, \"exp_limit_ms\": %.5f, \"fraction_of_limit\": %.3f}%s\n",
                 r.kernel.c_str(), name_of(r.dtype), static_cast<long long>(r.batch), static_cast<long long>(r.tokens),
                 static_cast<long long>(r.channels), r.ms, r.copy_limit_ms, r.exp_limit_ms, r.limit_ms() / r.ms,
                 i + 1 == results.size() ? "" : ",");
  }
  std::fprintf(out, "  ]\n}\n");
  if (out != stdout && std::fclose(out) != 0) {
    std::perror(options.json_path.c_str());
    return 1;
  }
  return 0;
}
