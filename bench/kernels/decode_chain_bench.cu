// Captures the launches of decode steps of one Jamba block (8 layers of Jamba-v0.1, int8) as one graph and times it: what the
// card takes for a step, between norms and projections and all. The captured steps' logits and states have to have the bits of
// the same launches one at a time. --quick for the sanitizer: a small block, not timed.

#include <cmath>
#include <utility>

#include "attention.cuh"
#include "linear_packed.cuh"
#include "mamba_inner.cuh"
#include "moe.cuh"
#include "residual_norm.cuh"
#include "timing.cuh"

using namespace layerweave;

namespace {

struct Sizes {
  int64_t d_model, channels, states, dt_rank, d_ff, experts, top_k, heads, kv_heads, head_dim, vocabulary, capacity, past;
};
constexpr Sizes kFull{4096, 8192, 16, 256, 14336, 16, 2, 32, 8, 128, 65536, 1024, 512};
constexpr Sizes kSmall{256, 512, 16, 16, 512, 4, 2, 4, 2, 64, 1024, 64, 32};
constexpr int kLayers = 8, kAttentionLayer = 4, kSteps = 4;
constexpr DType kType = DType::kBFloat16;

/// A packed int8 matrix whose products are about as large as what they multiply, times `gain`.
struct Matrix {
  DeviceBuffer codes, scales;
  int64_t rows, columns;

  Matrix(int64_t rows, int64_t columns, float gain = 1.f, int64_t count = 1)
      : codes(random_codes(count * packed_elements(rows, columns), seed())),
        scales(random_buffer(count * packed_panels(rows) * kPanelRows, DType::kFloat32, 0.f, gain / (74.f * std::sqrt(static_cast<float>(columns))))),
        rows(rows),
        columns(columns) {}
  const float* scale() const { return static_cast<const float*>(scales.data()); }

 private:
  static uint64_t seed() {
    static uint64_t next = 1000;
    return ++next;
  }
};

DeviceBuffer vector(int64_t count, float scale, float shift, DType dtype = kType) { return random_buffer(count, dtype, scale, shift); }

struct MambaLayer {
  Matrix in, x_proj, dt_proj, out;
  DeviceBuffer conv_weight, conv_bias, dt_norm, b_norm, c_norm, dt_bias, a_log, d_skip;

  explicit MambaLayer(const Sizes& s)
      : in(2 * s.channels, s.d_model),
        x_proj(s.dt_rank + 2 * s.states, s.channels),
        dt_proj(s.channels, s.dt_rank),
        out(s.d_model, s.channels, 0.4f),
        conv_weight(vector(s.channels * 4, 0.4f, 0.f)),
        conv_bias(vector(s.channels, 0.1f, 0.f)),
        dt_norm(vector(s.dt_rank, 0.f, 1.f)),
        b_norm(vector(s.states, 0.f, 1.f)),
        c_norm(vector(s.states, 0.f, 1.f)),
        dt_bias(vector(s.channels, 0.5f, -3.f, DType::kFloat32)),
        a_log(vector(s.channels * s.states, 0.5f, 1.f, DType::kFloat32)),
        d_skip(vector(s.channels, 0.f, 1.f, DType::kFloat32)) {}
};

struct Experts {
  Matrix gate_up, down;
  DeviceBuffer router;
  int64_t count;

  Experts(const Sizes& s, int64_t count)
      : gate_up(packed_pair_rows(s.d_ff), s.d_model, 1.f, count),
        down(s.d_model, s.d_ff, 0.4f, count),
        router(vector(count * s.d_model, 0.02f, 0.f, DType::kFloat32)),
        count(count) {}
};

struct Block {
  Sizes sizes;
  std::vector<MambaLayer> mamba;
  std::vector<Experts> experts;
  Matrix qkv, o, head;
  DeviceBuffer norm;

  explicit Block(const Sizes& s)
      : sizes(s),
        qkv((s.heads + 2 * s.kv_heads) * s.head_dim, s.d_model),
        o(s.d_model, s.heads * s.head_dim, 0.4f),
        head(s.vocabulary, s.d_model),
        norm(vector(s.d_model, 0.1f, 1.f)) {
    mamba.reserve(kLayers - 1);
    experts.reserve(kLayers);
    for (int i = 0; i < kLayers - 1; ++i) mamba.emplace_back(s);
    for (int i = 0; i < kLayers; ++i) experts.emplace_back(s, i % 2 == 0 ? 1 : s.experts);
  }
};

/// The activations and states of a batch, and the launches of its steps. All
/// workspaces lie in one place, as closely as memory can be used again.
class Decode {
 public:
  Decode(const Block& block, int64_t batch)
      : block_(block),
        s_(block.sizes),
        batch_(batch),
        tokens_(vector(kSteps * batch * s_.d_model, 1.f, 0.f)),
        zero_(batch * s_.d_model * 2),
        conv_start_(vector((kLayers - 1) * batch * s_.channels * 3, 0.5f, 0.f)),
        ssm_start_(vector((kLayers - 1) * batch * s_.channels * s_.states, 0.2f, 0.f, DType::kFloat32)),
        cache_(vector(2 * batch * s_.kv_heads * s_.capacity * s_.head_dim, 0.5f, 0.f)),
        conv_(conv_start_.bytes()),
        ssm_(ssm_start_.bytes()),
        past_(upload_values(std::vector<int64_t>(batch, s_.past))),
        x_(batch * s_.d_model * 2),
        normed_(x_.bytes()),
        sums_{DeviceBuffer(x_.bytes()), DeviceBuffer(x_.bytes())},
        wide_(batch * std::max(2 * s_.channels, (s_.heads + 2 * s_.kv_heads) * s_.head_dim) * 2),
        inner_(batch * s_.channels * 2),
        logits_(kSteps * batch * s_.vocabulary * 2),
        scratch_(size_t{64} << 20),
        arrivals_(4 * (size_t{1} << 16)) {
    zero_.fill(0);
    arrivals_.fill(0);
    reset();
  }

  void reset() {
    CUDA_CHECK(cudaMemcpy(conv_.data(), conv_start_.data(), conv_.bytes(), cudaMemcpyDeviceToDevice));
    CUDA_CHECK(cudaMemcpy(ssm_.data(), ssm_start_.data(), ssm_.bytes(), cudaMemcpyDeviceToDevice));
    logits_.fill(0xff);
    scratch_.fill(0xff);
    CUDA_CHECK(cudaDeviceSynchronize());
  }

  /// Calls after() behind every launch or two.
  template <typename After>
  void step(int number, cudaStream_t stream, After after) {
    const void* x = at(tokens_, number * batch_ * s_.d_model * 2);
    const void* more = zero_.data();
    int sums = 0;
    const auto norm = [&] {
      const ResidualNormParams params{batch_, s_.d_model, 1e-6f, x, more, block_.norm.data(), normed_.data(), sums_[sums].data()};
      CUDA_CHECK(residual_norm(params, kType, stream));
      x = sums_[sums].data(), more = x_.data(), sums = 1 - sums;
      after();
    };
    for (int layer = 0; layer < kLayers; ++layer) {
      norm();
      if (layer == kAttentionLayer)
        attend(stream, after);
      else
        mamba(layer < kAttentionLayer ? layer : layer - 1, stream, after);
      norm();
      route_and_mix(block_.experts[layer], stream, after);
    }
    norm();
    multiply(block_.head, normed_.data(), at(logits_, number * batch_ * s_.vocabulary * 2), stream, after);
  }

  /// Logits, then states.
  std::vector<unsigned char> result() const {
    CUDA_CHECK(cudaDeviceSynchronize());
    std::vector<unsigned char> all;
    for (const DeviceBuffer* buffer : {&logits_, &conv_, &ssm_}) {
      const std::vector<unsigned char> bytes = download(*buffer);
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  }
  /// Of the logits, whether they are numbers.
  bool finite() const {
    for (const float value : decode(download(logits_), kType))
      if (!std::isfinite(value)) return false;
    return true;
  }

 private:
  static char* at(const DeviceBuffer& buffer, int64_t bytes) { return static_cast<char*>(buffer.data()) + bytes; }
  uint32_t* arrivals() const { return static_cast<uint32_t*>(arrivals_.data()); }

  template <typename After>
  void multiply(const Matrix& matrix, const void* x, void* y, cudaStream_t stream, After after) {
    LinearPackedParams params{batch_, matrix.rows, matrix.columns, PackedType::kInt8, matrix.codes.data(), matrix.scale(), nullptr, x, y, matrix.columns, matrix.rows, scratch_.data(), arrivals()};
    CUDA_CHECK(linear_packed(params, kType, stream));
    after();
  }

  template <typename After>
  void mamba(int index, cudaStream_t stream, After after) {
    const MambaLayer& layer = block_.mamba[index];
    multiply(layer.in, normed_.data(), wide_.data(), stream, after);
    MambaInnerParams p{};
    p.batch = batch_, p.tokens = 1, p.channels = s_.channels, p.states = s_.states, p.dt_rank = s_.dt_rank, p.kernel = 4;
    p.weights = PackedType::kInt8;
    p.xz = wide_.data();
    p.conv_weight = layer.conv_weight.data(), p.conv_bias = layer.conv_bias.data();
    p.x_proj = layer.x_proj.codes.data(), p.x_proj_scale = layer.x_proj.scale();
    p.dt_norm = layer.dt_norm.data(), p.b_norm = layer.b_norm.data(), p.c_norm = layer.c_norm.data();
    p.dt_eps = p.b_eps = p.c_eps = 1e-6f;
    p.dt_proj = layer.dt_proj.codes.data(), p.dt_proj_scale = layer.dt_proj.scale();
    p.dt_bias = static_cast<const float*>(layer.dt_bias.data());
    p.a_log = static_cast<const float*>(layer.a_log.data());
    p.d_skip = static_cast<const float*>(layer.d_skip.data());
    p.conv_state_in = p.conv_state_out = at(conv_, index * batch_ * s_.channels * 3 * 2);
    p.ssm_state_in = p.ssm_state_out = reinterpret_cast<float*>(at(ssm_, index * batch_ * s_.channels * s_.states * 4));
    p.y = inner_.data();
    p.workspace = scratch_.data(), p.arrivals = arrivals();
    CUDA_CHECK(mamba_inner(p, kType, stream));
    after();
    multiply(layer.out, inner_.data(), x_.data(), stream, after);
  }

  template <typename After>
  void attend(cudaStream_t stream, After after) {
    multiply(block_.qkv, normed_.data(), wide_.data(), stream, after);
    AttentionParams p{};
    p.batch = batch_, p.tokens = 1, p.heads = s_.heads, p.kv_heads = s_.kv_heads, p.head_dim = s_.head_dim, p.capacity = s_.capacity;
    p.qkv = wide_.data(), p.qkv_row_stride = (s_.heads + 2 * s_.kv_heads) * s_.head_dim;
    p.past_lengths = static_cast<const int64_t*>(past_.data());
    p.key_in = p.key_out = cache_.data();
    p.value_in = p.value_out = at(cache_, static_cast<int64_t>(cache_.bytes()) / 2);
    p.y = inner_.data();
    p.workspace = scratch_.data(), p.arrivals = arrivals();
    CUDA_CHECK(attention(p, kType, stream));
    after();
    multiply(block_.o, inner_.data(), x_.data(), stream, after);
  }

  template <typename After>
  void route_and_mix(const Experts& experts, cudaStream_t stream, After after) {
    const bool routed = experts.count > 1;
    MoeParams p{};
    p.tokens = batch_, p.d_model = s_.d_model, p.d_ff = s_.d_ff, p.experts = experts.count, p.top_k = routed ? s_.top_k : 1;
    p.weights = PackedType::kInt8;
    p.gate_up = experts.gate_up.codes.data(), p.gate_up_scale = experts.gate_up.scale();
    p.down = experts.down.codes.data(), p.down_scale = experts.down.scale();
    p.x = normed_.data(), p.y = x_.data();
    p.arrivals = arrivals();
    char* place = static_cast<char*>(scratch_.data());
    const auto take = [&](int64_t bytes) { return std::exchange(place, place + (bytes + 255) / 256 * 256); };
    p.workspace = take(moe_decode_workspace(p));
    if (routed) {
      const int64_t choices = batch_ * s_.top_k;
      float* const logits = reinterpret_cast<float*>(take(batch_ * experts.count * 4));
      const auto ints = [&](int64_t count) { return reinterpret_cast<int32_t*>(take(count * 4)); };
      int32_t* const chosen = ints(choices);
      float* const weights = reinterpret_cast<float*>(take(choices * 4));
      int32_t* const offsets = ints(experts.count + 1);
      int32_t* const permutation = ints(choices);
      p.routing = {chosen, weights, offsets, permutation, ints(choices)};
      const MoeRouteParams route{batch_, s_.d_model, experts.count, s_.top_k, RouterOrder::kSoftmaxThenTopK, false, normed_.data(),
                                 static_cast<const float*>(experts.router.data()), logits, p.routing, arrivals() + moe_arrivals(p)};
      CUDA_CHECK(moe_route(route, kType, stream));
      after();
    }
    CUDA_CHECK(moe_decode(p, kType, stream));
    after();
  }

  const Block& block_;
  const Sizes s_;
  const int64_t batch_;
  DeviceBuffer tokens_, zero_, conv_start_, ssm_start_, cache_, conv_, ssm_, past_, x_, normed_, sums_[2], wide_, inner_, logits_, scratch_, arrivals_;
};

/// Returns whether the graph gave what launches one at a time give.
bool run(const Block& block, int64_t batch, int replays) {
  Decode decode(block, batch);
  cudaStream_t stream;
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  for (int i = 0; i < kSteps; ++i) decode.step(i, stream, [&] { CUDA_CHECK(cudaStreamSynchronize(stream)); });
  const std::vector<unsigned char> want = decode.result();
  bool same = decode.finite();
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < kSteps; ++i) decode.step(i, stream, [] {});
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  CUDA_CHECK(cudaGraphInstantiate(&replay, graph, 0));
  for (int i = 0; i < 3; ++i) {
    decode.reset();
    CUDA_CHECK(cudaGraphLaunch(replay, stream));
    same = same && decode.result() == want;
  }
  Events events;
  std::vector<double> samples;
  for (int i = 0; i < replays; ++i) samples.push_back(events.time(stream, [&] { CUDA_CHECK(cudaGraphLaunch(replay, stream)); }) * 1e3 / kSteps);
  std::printf("batch %2lld: ", static_cast<long long>(batch));
  if (replays > 0) std::printf("%7.1f us a step, best %7.1f, ", median(samples), *std::min_element(samples.begin(), samples.end()));
  std::printf("%s\n", same ? "bits as one at a time" : "WRONG BITS");
  std::fflush(stdout);
  CUDA_CHECK(cudaGraphExecDestroy(replay));
  CUDA_CHECK(cudaGraphDestroy(graph));
  CUDA_CHECK(cudaStreamDestroy(stream));
  return same;
}

}  // namespace

int main(int argc, char** argv) {
  require_device("decode_chain_bench");
  const bool quick = argc > 1 && std::string(argv[1]) == "--quick";
  const Block block(quick ? kSmall : kFull);
  bool same = true;
  for (const int64_t batch : {1, 4, 16}) same = run(block, batch, quick ? 0 : kSamples) && same;
  return same ? 0 : 1;
}
