// The sampler against a port of the one on the host, draw by draw.
// sample_test [--quick]   (--quick: small shapes, for compute-sanitizer)

#include "sample.cuh"

#include <limits>

#include "check.h"

using namespace layerweave;

namespace {

struct Options {
  double temperature = 0;
  int64_t top_k = 0;
  double top_p = 1, min_p = 0;
};

/// runtime/sampling.ts, in its own arithmetic and order.
struct HostSampler {
  Options options;
  uint32_t state[4];

  static uint32_t rotate(uint32_t x, int by) { return x << by | x >> (32 - by); }
  uint32_t draw32() {
    const uint32_t result = rotate(state[1] * 5, 7) * 9, t = state[1] << 9;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= t;
    state[3] = rotate(state[3], 11);
    return result;
  }
  double random() {
    const double upper = draw32() >> 5;
    return (upper * 0x1p26 + (draw32() >> 6)) / 0x1p53;
  }

  static int64_t argmax(const float* logits, int64_t count) {
    int64_t best = -1;
    float value = -INFINITY;
    for (int64_t i = 0; i < count; ++i) {
      if (std::isnan(logits[i])) return -1;
      if (logits[i] > value) {
        value = logits[i];
        best = i;
      }
    }
    return value < INFINITY ? best : -1;
  }

  int64_t next(const float* logits, int64_t count) {
    const int64_t best_id = argmax(logits, count);
    if (best_id < 0 || options.temperature == 0) return best_id;
    std::vector<int64_t> ids;
    float threshold = -INFINITY;
    if (options.top_k > 0 && options.top_k < count) {
      std::vector<float> sorted(logits, logits + count);
      std::sort(sorted.begin(), sorted.end());
      threshold = sorted[count - options.top_k];
    }
    for (int64_t i = 0; i < count; ++i)
      if (logits[i] >= threshold) ids.push_back(i);
    std::vector<double> weights;
    for (int64_t id : ids) weights.push_back(std::exp((static_cast<double>(logits[id]) - logits[best_id]) / options.temperature));
    const auto keep = [&](const auto& kept) {
      size_t to = 0;
      for (size_t i = 0; i < ids.size(); ++i)
        if (kept(weights[i])) {
          ids[to] = ids[i];
          weights[to++] = weights[i];
        }
      ids.resize(to);
      weights.resize(to);
    };
    if (options.top_p < 1) {
      std::vector<double> sorted = weights;
      std::sort(sorted.rbegin(), sorted.rend());
      double whole = 0, mass = 0;
      for (double w : sorted) whole += w;
      const double needed = options.top_p * whole;
      size_t taken = 0;
      while (taken < sorted.size() && (taken == 0 || mass < needed)) mass += sorted[taken++];
      const double least = sorted[taken - 1];
      int64_t ties = static_cast<int64_t>(taken) - (std::find(sorted.begin(), sorted.end(), least) - sorted.begin());
      keep([&](double w) { return w > least || (w == least && ties-- > 0); });
    }
    if (options.min_p > 0) keep([&](double w) { return w >= options.min_p; });
    double whole = 0;
    for (double w : weights) whole += w;
    double left = random();
    size_t chosen = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (weights[i] / whole > 0) chosen = i;
      left -= weights[i] / whole;
      if (left < 0) break;
    }
    return ids[chosen];
  }
};

/// `draws` tokens of each row in turn, all rows' options and seeds their own.
std::string compare(const std::vector<float>& logits, int64_t vocabulary, const std::vector<Options>& options, const std::vector<uint64_t>& seeds, int draws) {
  const int64_t batch = static_cast<int64_t>(options.size()), stride = static_cast<int64_t>(logits.size()) / batch;
  std::vector<HostSampler> hosts(batch);
  std::vector<SampleRow> rows(batch);
  for (int64_t b = 0; b < batch; ++b) {
    hosts[b].options = options[b];
    seed_sampler(seeds[b], hosts[b].state);
    rows[b] = {options[b].temperature, options[b].top_p, options[b].min_p, options[b].top_k, {}};
    seed_sampler(seeds[b], rows[b].state);
  }
  const DeviceBuffer device_logits = upload_values(logits), device_rows = upload_values(rows);
  SampleParams params{batch, vocabulary, static_cast<const float*>(device_logits.data()), stride, static_cast<SampleRow*>(device_rows.data()), nullptr, nullptr};
  const DeviceBuffer workspace(sample_workspace(params));
  DeviceBuffer tokens(batch * draws * 8);
  tokens.fill(0x7f);
  params.workspace = workspace.data();
  for (int draw = 0; draw < draws; ++draw) {
    params.tokens = static_cast<int64_t*>(tokens.data()) + draw * batch;
    CUDA_CHECK(sample(params, nullptr));
  }
  CUDA_CHECK(cudaDeviceSynchronize());
  std::vector<int64_t> got(batch * draws);
  CUDA_CHECK(cudaMemcpy(got.data(), tokens.data(), tokens.bytes(), cudaMemcpyDeviceToHost));
  CUDA_CHECK(cudaMemcpy(rows.data(), device_rows.data(), device_rows.bytes(), cudaMemcpyDeviceToHost));
  std::vector<std::string> failures(batch);
  parallel_for(batch, [&](int64_t b) {
    char text[200];
    for (int draw = 0; draw < draws && failures[b].empty(); ++draw) {
      const int64_t want = hosts[b].next(logits.data() + b * stride, vocabulary);
      if (got[draw * batch + b] == want) continue;
      std::snprintf(text, sizeof text, "row %lld draw %d: token %lld, expected %lld (temperature %g top-k %lld top-p %g min-p %g)", static_cast<long long>(b), draw,
                    static_cast<long long>(got[draw * batch + b]), static_cast<long long>(want), options[b].temperature, static_cast<long long>(options[b].top_k),
                    options[b].top_p, options[b].min_p);
      failures[b] = text;
    }
    if (failures[b].empty() && !std::equal(rows[b].state, rows[b].state + 4, hosts[b].state)) failures[b] = "the random state differs";
  });
  for (const std::string& failure : failures)
    if (!failure.empty()) return failure;
  return "";
}

/// First draws of runtime/sampling.ts's randomSource, times 2^53.
void check_seeds(Tally& tally) {
  constexpr struct {
    uint64_t seed, first, second;
  } kKnown[] = {{0, 8781736461129401, 8120758961586099},          {1, 7239413632182799, 7326835322976991}, {123456789, 242979873135515, 7036442995862683},
                {4294967296, 4074887397797430, 1155708454252835}, {9007199254740991, 5910868388713884, 1696212525733328}};
  for (const auto& known : kKnown) {
    HostSampler host;
    seed_sampler(known.seed, host.state);
    const double first = host.random() * 0x1p53, second = host.random() * 0x1p53;
    tally.record("seed " + std::to_string(known.seed), first == static_cast<double>(known.first) && second == static_cast<double>(known.second) ? "" : "another sequence");
  }
}

void check_refusals(Tally& tally) {
  const DeviceBuffer memory(4096);
  const SampleParams good{1, 16, static_cast<const float*>(memory.data()), 16, static_cast<SampleRow*>(memory.data()), static_cast<int64_t*>(memory.data()), memory.data()};
  const auto refuse = [&](const char* name, auto change) {
    SampleParams params = good;
    change(params);
    const cudaError_t status = sample(params, nullptr);
    tally.record(name, status == cudaErrorInvalidValue ? "" : cudaGetErrorName(status));
  };
  refuse("no batch", [](auto& p) { p.batch = 0; });
  refuse("no vocabulary", [](auto& p) { p.vocabulary = 0; });
  refuse("too large a vocabulary", [](auto& p) { p.vocabulary = p.logits_row_stride = kSampleMaxVocabulary + 1; });
  refuse("rows that overlap", [](auto& p) { p.logits_row_stride = 15; });
  refuse("no logits", [](auto& p) { p.logits = nullptr; });
  refuse("no rows", [](auto& p) { p.rows = nullptr; });
  refuse("no tokens", [](auto& p) { p.tokens = nullptr; });
  refuse("no workspace", [](auto& p) { p.workspace = nullptr; });
}

}  // namespace

int main(int argc, char** argv) {
  require_device("sample_test");
  const bool quick = argc > 1 && std::string(argv[1]) == "--quick";
  const uint64_t seed = std::random_device{}();
  std::printf("sample_test seed %llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  const auto one_of = [&](const auto& choices) { return choices[random() % choices.size()]; };
  Tally tally;

  const std::vector<int64_t> vocabularies = quick ? std::vector<int64_t>{1, 33, 2000} : std::vector<int64_t>{1, 2, 33, 1000, 32000, 65536, kSampleMaxVocabulary};
  // Kinds of logits: spread, flat, of few distinct values, mostly -infinity.
  for (int64_t vocabulary : vocabularies)
    for (int kind = 0; kind < 4; ++kind) {
      const int64_t batch = quick ? 3 : vocabulary > 100000 ? 8 : 32, stride = vocabulary + static_cast<int64_t>(random() % 5);
      std::vector<float> logits = random_values(random, batch * stride, DType::kFloat32, 0.f, kind == 1 ? 0.01f : 4.f);
      for (float& logit : logits) {
        if (kind == 2) logit = std::round(logit);
        if (kind == 3 && random() % 20 != 0) logit = -std::numeric_limits<float>::infinity();
      }
      for (int64_t b = 0; b < batch; ++b) logits[b * stride + static_cast<int64_t>(random() % vocabulary)] = 0.f;
      std::vector<Options> options(batch);
      std::vector<uint64_t> seeds(batch);
      for (int64_t b = 0; b < batch; ++b) {
        options[b].temperature = one_of(std::vector<double>{0, 0.3, 0.7, 1, 1.3, 10});
        options[b].top_k = one_of(std::vector<int64_t>{0, 0, 1, 2, 40, 50, 1000, 1 << 20});
        options[b].top_p = one_of(std::vector<double>{1, 1, 1e-9, 0.1, 0.5, 0.9, 0.95, 0.999999});
        options[b].min_p = one_of(std::vector<double>{0, 0, 0.05, 0.5, 1});
        seeds[b] = random() >> 11;
      }
      tally.record("V" + std::to_string(vocabulary) + " kind " + std::to_string(kind), compare(logits, vocabulary, options, seeds, quick ? 2 : 12));
    }
  {
    // Best tokens that tie, zeros of both signs, and rows nothing can be chosen from.
    const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> logits{1, 3, 3, 2, -0.f, 0, -1, -0.f, 1, nan, 2, 0, 5, inf, 2, 0, -inf, -inf, -inf, -inf, -inf, -inf, 4, -inf, -nan, 1, 1, 1, 0, -inf, inf, 0};
    for (const Options& option : {Options{}, Options{1, 2, 1, 0}, Options{1, 0, 0.5, 0}, Options{0.5, 1, 0.3, 1}}) {
      const std::vector<Options> options(8, option);
      tally.record("special values", compare(logits, 4, options, {1, 2, 3, 4, 5, 6, 7, 8}, 20));
    }
  }
  check_seeds(tally);
  check_refusals(tally);
  return tally.finish();
}
