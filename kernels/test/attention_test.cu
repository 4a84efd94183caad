// Attention over the KV cache against a float64 reference over hostile shapes.
// attention_test [--quick]   (--quick: small shapes, for compute-sanitizer)

#include "attention.cuh"

#include "check.h"

using namespace layerweave;

namespace {

struct Case {
  DType dtype;
  int64_t batch, tokens, heads, kv_heads, head_dim, past;
  int64_t window = 0;
  bool rope = true;
  bool in_place = true;
  // Past lengths of the other rows anywhere below that of row 0.
  bool ragged = false;
  // Positions of the cache that stay free behind the longest row.
  int64_t spare = 0;
  float rope_scale = 1.f;
  float query_deviation = 1.f;

  std::string name() const {
    char text[250];
    std::snprintf(text, sizeof text, "%s B%lld T%lld H%lld G%lld P%lld past %lld window %lld spare %lld%s%s%s", name_of(dtype), static_cast<long long>(batch),
                  static_cast<long long>(tokens), static_cast<long long>(heads), static_cast<long long>(kv_heads), static_cast<long long>(head_dim),
                  static_cast<long long>(past), static_cast<long long>(window), static_cast<long long>(spare), rope ? " rope" : "",
                  in_place ? " in-place" : "", ragged ? " ragged" : "");
    return text;
  }
  int64_t row() const { return (heads + 2 * kv_heads) * head_dim; }
  int64_t capacity() const { return past + tokens + spare; }
  int64_t cache() const { return batch * kv_heads * capacity() * head_dim; }
  AttentionParams sizes() const {
    AttentionParams params{};
    params.batch = batch;
    params.tokens = tokens;
    params.heads = heads;
    params.kv_heads = kv_heads;
    params.head_dim = head_dim;
    params.capacity = capacity();
    params.window = window;
    params.rope_scale = rope_scale;
    return params;
  }
};

struct Inputs {
  int64_t stride;
  std::vector<float> qkv, keys, values, inverse_frequencies;
  std::vector<int64_t> past;
};

constexpr size_t kGuard = 4096;
constexpr unsigned char kPoison = 0xff;  // a NaN, as counter: more than any block waits for

DeviceBuffer guarded(size_t bytes) {
  DeviceBuffer buffer(bytes + kGuard);
  buffer.fill(kPoison);
  return buffer;
}

DeviceBuffer guarded(const std::vector<unsigned char>& bytes) {
  DeviceBuffer buffer = guarded(bytes.size());
  CUDA_CHECK(cudaMemcpy(buffer.data(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
  return buffer;
}

/// The buffer without its guard, whose state `intact` keeps.
std::vector<unsigned char> unguarded(const DeviceBuffer& buffer, bool& intact) {
  std::vector<unsigned char> bytes = download(buffer);
  for (size_t i = bytes.size() - kGuard; i < bytes.size(); ++i) intact = intact && bytes[i] == kPoison;
  bytes.resize(bytes.size() - kGuard);
  return bytes;
}

Inputs make_inputs(const Case& test, std::mt19937_64& random) {
  Inputs in;
  in.stride = test.row() + (random() % 2 == 0 ? 8 : 0);
  in.qkv = random_values(random, test.batch * test.tokens * in.stride, test.dtype, 0.f, test.query_deviation);
  in.keys = random_values(random, test.cache(), test.dtype, 0.f, 1.f);
  in.values = random_values(random, test.cache(), test.dtype, 0.f, 1.f);
  for (int64_t i = 0; i < test.head_dim / 2; ++i)
    in.inverse_frequencies.push_back(static_cast<float>(std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(test.head_dim))));
  for (int64_t b = 0; b < test.batch; ++b)
    in.past.push_back(b == 0 || !test.ragged ? test.past : std::uniform_int_distribution<int64_t>(0, test.past)(random));
  // Nothing may be read from where no position counts.
  for (int64_t head = 0; head < test.batch * test.kv_heads; ++head)
    for (int64_t i = in.past[head / test.kv_heads] * test.head_dim; i < test.capacity() * test.head_dim; ++i)
      in.keys[head * test.capacity() * test.head_dim + i] = in.values[head * test.capacity() * test.head_dim + i] = NAN;
  return in;
}

struct Outputs {
  std::vector<float> y, keys, values;
  bool intact = true, rests = true, repeats = true;
};

Outputs run(const Case& test, const Inputs& in, const std::vector<int64_t>& past_lengths) {
  const size_t size = size_of(test.dtype);
  const DeviceBuffer qkv = upload(encode(in.qkv, test.dtype)), frequencies = upload_values(in.inverse_frequencies), past = upload_values(past_lengths);
  AttentionParams params = test.sizes();
  const int64_t workspace_bytes = attention_workspace(params), counters = attention_arrivals(params);
  DeviceBuffer arrivals(counters * 4);
  arrivals.fill(0);
  Outputs out;
  std::vector<unsigned char> first;
  for (int repeat = 0; repeat < 2; ++repeat) {
    const DeviceBuffer keys = guarded(encode(in.keys, test.dtype)), values = guarded(encode(in.values, test.dtype));
    const DeviceBuffer keys_out = guarded(test.cache() * size), values_out = guarded(test.cache() * size);
    const DeviceBuffer y = guarded(test.batch * test.tokens * test.heads * test.head_dim * size), workspace = guarded(workspace_bytes);
    params.qkv = qkv.data();
    params.qkv_row_stride = in.stride;
    params.inverse_frequencies = test.rope ? static_cast<const float*>(frequencies.data()) : nullptr;
    params.past_lengths = static_cast<const int64_t*>(past.data());
    params.key_in = keys.data();
    params.value_in = values.data();
    params.key_out = test.in_place ? keys.data() : keys_out.data();
    params.value_out = test.in_place ? values.data() : values_out.data();
    params.y = y.data();
    params.workspace = workspace.data();
    params.arrivals = counters == 0 ? nullptr : static_cast<uint32_t*>(arrivals.data());
    CUDA_CHECK(attention(params, test.dtype, nullptr));
    CUDA_CHECK(cudaDeviceSynchronize());
    const std::vector<unsigned char> bytes = unguarded(y, out.intact);
    out.y = decode(bytes, test.dtype);
    out.keys = decode(unguarded(test.in_place ? keys : keys_out, out.intact), test.dtype);
    out.values = decode(unguarded(test.in_place ? values : values_out, out.intact), test.dtype);
    unguarded(workspace, out.intact);
    for (unsigned char byte : download(arrivals)) out.rests = out.rests && (byte == 0 || counters == 0);
    if (repeat == 0) first = bytes;
    out.repeats = first == bytes;
  }
  return out;
}

/// Rotated, not rounded. The angle is a float32 product, as in the headers' contract.
std::vector<double> rotate(const Case& test, const Inputs& in, const float* x, int64_t position) {
  std::vector<double> y(x, x + test.head_dim);
  const int64_t half = test.head_dim / 2;
  for (int64_t i = 0; test.rope && i < half; ++i) {
    const double angle = static_cast<float>(position) * in.inverse_frequencies[i], c = std::cos(angle) * test.rope_scale, s = std::sin(angle) * test.rope_scale;
    y[i] = x[i] * c - static_cast<double>(x[i + half]) * s;
    y[i + half] = x[i + half] * c + static_cast<double>(x[i]) * s;
  }
  return y;
}

std::string compare(const Case& test, const Inputs& in, const Outputs& got) {
  const int64_t P = test.head_dim, group = test.heads / test.kv_heads;
  const double rounding = output_rounding(test.dtype), floor = output_floor(test.dtype);
  std::string failure;
  if (!got.intact) failure += "wrote beyond a buffer. ";
  if (!got.rests) failure += "left counters behind. ";
  if (!got.repeats) failure += "bits differ between runs. ";

  WorstError keys, values;
  for (int64_t head = 0; head < test.batch * test.kv_heads; ++head) {
    const int64_t b = head / test.kv_heads, g = head % test.kv_heads, at = head * test.capacity() * P;
    for (int64_t i = 0; i < in.past[b] * P; ++i) {
      keys.add(at + i, got.keys[at + i], in.keys[at + i], 1e-37);
      values.add(at + i, got.values[at + i], in.values[at + i], 1e-37);
    }
    for (int64_t t = 0; t < test.tokens; ++t) {
      const float* k = in.qkv.data() + (b * test.tokens + t) * in.stride + (test.heads + g) * P;
      const std::vector<double> rotated = rotate(test, in, k, in.past[b] + t);
      for (int64_t i = 0; i < P; ++i) {
        const int64_t to = at + (in.past[b] + t) * P + i;
        // Each angle is known to a few 2^-24.
        const double size = test.rope_scale * (std::abs(k[i]) + std::abs(k[(i + P / 2) % P]));
        keys.add(to, got.keys[to], rotated[i], test.rope ? rounding * std::abs(rotated[i]) + 1e-6 * size + floor : 1e-37);
        values.add(to, got.values[to], k[test.kv_heads * P + i], 1e-37);
      }
    }
  }
  failure += keys.failure("key") + values.failure("value");
  if (!failure.empty()) return failure;

  const int64_t rows = test.batch * test.tokens * test.heads;
  std::vector<WorstError> worst(rows);
  parallel_for(rows, [&](int64_t row) {
    const int64_t head = row % test.heads, t = row / test.heads % test.tokens, b = row / test.heads / test.tokens;
    const int64_t position = in.past[b] + t, first = test.window == 0 ? 0 : std::max<int64_t>(0, position - test.window + 1);
    const int64_t cache = (b * test.kv_heads + head / group) * test.capacity() * P;
    const std::vector<double> exact = rotate(test, in, in.qkv.data() + (b * test.tokens + t) * in.stride + head * P, position);
    const std::vector<float> q = decode(encode(std::vector<float>(exact.begin(), exact.end()), test.dtype), test.dtype);
    const double scale = 1 / std::sqrt(static_cast<double>(P));
    std::vector<double> scores;
    double largest = -INFINITY, score_error = 0;
    for (int64_t j = first; j <= position; ++j) {
      const float* k = got.keys.data() + cache + j * P;
      double sum[8] = {}, size[8] = {}, term_size[8] = {};
      for (int64_t i = 0; i < P; i += 8)
        for (int lane = 0; lane < 8; ++lane) {
          const double term = static_cast<double>(q[i + lane]) * k[i + lane];
          sum[lane] += term;
          size[lane] += std::abs(term);
          term_size[lane] = std::max(term_size[lane], std::abs(term));
        }
      for (int lane = 1; lane < 8; ++lane) {
        sum[0] += sum[lane];
        size[0] += size[lane];
        term_size[0] = std::max(term_size[0], term_size[lane]);
      }
      scores.push_back(sum[0] * scale);
      largest = std::max(largest, scores.back());
      // Float32 sums, and two of q's elements rounded the other way: those so near
      // a tie that the last bit of float32 decides.
      score_error = std::max(score_error, (1e-6 * size[0] + (test.rope ? 4 * rounding * term_size[0] : 0)) * scale);
    }
    std::vector<double> sum(P), size(P), plain(P);
    double total = 0;
    for (int64_t j = first; j <= position; ++j) {
      const float* v = got.values.data() + cache + j * P;
      const double p = std::exp(scores[j - first] - largest);
      total += p;
      for (int64_t i = 0; i < P; ++i) {
        sum[i] += p * v[i];
        size[i] += p * std::abs(v[i]);
        plain[i] += std::abs(v[i]);
      }
    }
    for (int64_t i = 0; i < P; ++i) {
      const double want = sum[i] / total;
      // Probabilities are rounded to the dtype against the sum of unrounded ones.
      const double bound = rounding * std::abs(want) + (rounding + 2 * std::expm1(score_error) + 1e-5) * size[i] / total + floor * (1 + plain[i] / total);
      worst[row].add(row * P + i, got.y[row * P + i], want, bound);
    }
  });
  for (const WorstError& error : worst)
    if (!error.failure("y").empty()) return error.failure("y");
  return "";
}

void check(Tally& tally, const Case& test, std::mt19937_64& random) {
  const Inputs in = make_inputs(test, random);
  tally.record(test.name(), compare(test, in, run(test, in, in.past)));
}

/// Lengths that the capacity can't hold are taken as the nearest it can.
void check_clamped(Tally& tally, const Case& test, std::mt19937_64& random) {
  Inputs in = make_inputs(test, random);
  std::vector<int64_t> wild = in.past;
  for (int64_t b = 0; b < test.batch; ++b) wild[b] = in.past[b] == 0 ? -5 - b : test.past + 1000;
  tally.record("clamped " + test.name(), compare(test, in, run(test, in, wild)));
}

void check_refusals(Tally& tally) {
  const DeviceBuffer memory(1 << 16);
  void* const any = memory.data();
  AttentionParams good = Case{DType::kBFloat16, 1, 1, 4, 2, 64, 15}.sizes();
  good.qkv = good.key_in = good.value_in = any;
  good.key_out = good.value_out = good.y = good.workspace = any;
  good.qkv_row_stride = 512;
  good.past_lengths = static_cast<const int64_t*>(any);
  good.arrivals = static_cast<uint32_t*>(any);
  const auto refuse = [&](const char* name, auto change) {
    AttentionParams params = good;
    change(params);
    const cudaError_t status = attention(params, DType::kBFloat16, nullptr);
    tally.record(name, status == cudaErrorInvalidValue ? "" : cudaGetErrorName(status));
  };
  refuse("no batch", [](auto& p) { p.batch = 0; });
  refuse("no tokens", [](auto& p) { p.tokens = 0; });
  refuse("more tokens than capacity", [](auto& p) { p.tokens = 17; });
  refuse("heads of no group", [](auto& p) { p.kv_heads = 3; });
  refuse("head_dim of 12", [](auto& p) { p.head_dim = 12; });
  refuse("head_dim of 264", [](auto& p) { p.head_dim = 264; p.qkv_row_stride = 4096; });
  refuse("negative window", [](auto& p) { p.window = -1; });
  refuse("rows that overlap", [](auto& p) { p.qkv_row_stride = 504; });
  refuse("no qkv", [](auto& p) { p.qkv = nullptr; });
  refuse("no past lengths", [](auto& p) { p.past_lengths = nullptr; });
  refuse("no workspace", [](auto& p) { p.workspace = nullptr; });
  refuse("no arrivals", [](auto& p) { p.arrivals = nullptr; });
  refuse("a cache off 16 bytes", [](auto& p) { p.key_out = static_cast<char*>(p.key_out) + 2; });
  tally.record("float32", attention(good, DType::kFloat32, nullptr) == cudaErrorInvalidValue ? "" : "accepted");
}

}  // namespace

int main(int argc, char** argv) {
  require_device("attention_test");
  const bool quick = argc > 1 && std::string(argv[1]) == "--quick";
  const uint64_t seed = std::random_device{}();
  std::printf("attention_test seed %llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  const auto coin = [&] { return random() % 2 == 0; };
  const auto one_of = [&](const auto& choices) { return choices[random() % choices.size()]; };
  Tally tally;

  const std::vector<DType> dtypes = quick ? std::vector<DType>{DType::kBFloat16} : std::vector<DType>{DType::kBFloat16, DType::kFloat16};
  const std::vector<int64_t> token_counts = quick ? std::vector<int64_t>{1, 7, 40} : std::vector<int64_t>{1, 2, 7, 17, 129, 1134};
  const std::vector<int64_t> pasts = quick ? std::vector<int64_t>{0, 130} : std::vector<int64_t>{0, 1, 255, 1023};
  const std::vector<std::pair<int64_t, int64_t>> groups{{4, 2}, {3, 1}, {2, 2}, {8, 1}, {4, 1}};
  for (DType dtype : dtypes)
    for (int64_t head_dim : {8, 64, 80, 128, 256})
      for (int64_t tokens : token_counts)
        for (int64_t past : pasts) {
          // Enough of the largest shape; the reference walks it on the CPU.
          const bool large = tokens > 1000;
          const auto [heads, kv_heads] = large ? std::pair<int64_t, int64_t>{4, 2} : one_of(groups);
          Case test{dtype, large ? 1 : 1 + static_cast<int64_t>(random() % 3), tokens, heads, kv_heads, head_dim, past};
          test.window = coin() ? 0 : one_of(std::vector<int64_t>{1, 5, 128, 300});
          test.rope = coin();
          test.in_place = coin();
          test.ragged = coin();
          test.spare = coin() ? 0 : static_cast<int64_t>(random() % 200);
          test.rope_scale = coin() ? 1.f : 1.25f;
          test.query_deviation = coin() ? 1.f : 3.f;
          check(tally, test, random);
        }
  for (int options = 0; options < 16; ++options)
    for (DType dtype : dtypes)
      for (int64_t tokens : {1, 3, quick ? 33 : 300}) {
        Case test{dtype, 3, tokens, 8, 2, 128, quick ? 70 : 700};
        test.window = options & 1 ? 64 : 0;
        test.rope = options & 2;
        test.in_place = options & 4;
        test.ragged = options & 8;
        test.spare = tokens == 1 ? 0 : 9;
        check(tally, test, random);
      }
  if (!quick)
    for (DType dtype : dtypes) {
      // More tiles than blocks; angles of many turns; more rows than one tile has; little of a large cache.
      check(tally, {dtype, 2, 1, 8, 2, 128, 20000}, random);
      check(tally, {dtype, 3, 1, 4, 2, 64, 30011, 0, true, true, true}, random);
      check(tally, {dtype, 2, 4, 8, 2, 128, 9000, 4096, true, true, true}, random);
      check(tally, {dtype, 1, 1, 1, 1, 256, 70001}, random);
      check(tally, {dtype, 2, 1, 40, 2, 64, 3000, 0, true, true, true}, random);
      check(tally, {dtype, 70, 1, 4, 1, 64, 500, 0, true, true, true}, random);
      check(tally, {dtype, 1, 1, 32, 8, 128, 100, 0, true, true, false, 20000}, random);
      check(tally, {dtype, 1, 200, 8, 2, 128, 20000, 0, true, true, false, 50}, random);
      check(tally, {dtype, 1, 150, 4, 1, 128, 8000, 4096}, random);
    }
  for (int64_t tokens : {1, 40}) check_clamped(tally, {DType::kBFloat16, 2, tokens, 4, 2, 64, 100}, random);
  check_refusals(tally);
  return tally.finish();
}
