#include "cpu/cached_attention.h"

#include <algorithm>

#include "check.h"

using namespace layerweave::cpu;

namespace {

struct Case {
  std::string name;
  int64_t batch, tokens, heads, kv_heads, head_dim, capacity, window;
  std::vector<int64_t> past;
  bool in_place = true;
  float spread = 1;  // of queries and keys: large ones make the softmax sharp
};

std::string run(const Case& c, Isa isa, std::mt19937_64& random) {
  const int64_t cache = c.batch * c.kv_heads * c.capacity * c.head_dim, added = c.batch * c.tokens * c.kv_heads * c.head_dim;
  const std::vector<float> q = random_values(random, c.batch * c.tokens * c.heads * c.head_dim, 0, c.spread), k = random_values(random, added, 0, c.spread), v = random_values(random, added, 0, 1);
  std::vector<float> past_key = random_values(random, cache, 0, c.spread), past_value = random_values(random, cache, 0, 1);
  // Nothing behind the positions that count may be read into a result.
  for (int64_t i = 0; i < c.batch * c.kv_heads; ++i)
    for (int64_t s = c.past[static_cast<size_t>(i / c.kv_heads)]; s < c.capacity; ++s)
      for (int64_t d = 0; d < c.head_dim; ++d) past_key[static_cast<size_t>((i * c.capacity + s) * c.head_dim + d)] = past_value[static_cast<size_t>((i * c.capacity + s) * c.head_dim + d)] = NAN;
  std::vector<float> key = past_key, value = past_value, other_key(key.size()), other_value(value.size()), y(q.size(), -7);
  CachedAttentionParams p = {c.batch, c.tokens, c.heads, c.kv_heads, c.head_dim, c.capacity, c.window, q.data(), k.data(), v.data(), c.past.data(), y.data(),
                             key.data(), value.data(), c.in_place ? key.data() : other_key.data(), c.in_place ? value.data() : other_value.data(), nullptr};
  const Scratch scratch(cached_attention_scratch(p));
  p.scratch = scratch.data();
  if (const char* wrong = cached_attention(p, threads(), isa)) return wrong;
  const std::vector<float>&present_key = c.in_place ? key : other_key, &present_value = c.in_place ? value : other_value;

  std::vector<float> want_key = past_key, want_value = past_value;
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t g = 0; g < c.kv_heads; ++g)
      for (int64_t t = 0; t < c.tokens; ++t)
        for (int64_t d = 0; d < c.head_dim; ++d) {
          const size_t to = static_cast<size_t>(((b * c.kv_heads + g) * c.capacity + c.past[static_cast<size_t>(b)] + t) * c.head_dim + d);
          const size_t from = static_cast<size_t>(((b * c.tokens + t) * c.kv_heads + g) * c.head_dim + d);
          want_key[to] = k[from];
          want_value[to] = v[from];
        }
  const auto same = [](float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); };
  if (!std::equal(want_key.begin(), want_key.end(), present_key.begin(), same)) return "present_key is not past_key with the new keys";
  if (!std::equal(want_value.begin(), want_value.end(), present_value.begin(), same)) return "present_value is not past_value with the new values";

  WorstError worst;
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t t = 0; t < c.tokens; ++t)
      for (int64_t h = 0; h < c.heads; ++h) {
        const int64_t position = c.past[static_cast<size_t>(b)] + t, first = c.window ? std::max<int64_t>(0, position - c.window + 1) : 0;
        const size_t kv = static_cast<size_t>((b * c.kv_heads + h / (c.heads / c.kv_heads)) * c.capacity * c.head_dim);
        const size_t at = static_cast<size_t>(((b * c.tokens + t) * c.heads + h) * c.head_dim), width = static_cast<size_t>(c.head_dim);
        std::vector<double> scores;
        double largest = -1e300, size = 0;
        for (int64_t s = first; s <= position; ++s) {
          double score = 0, terms = 0;
          for (size_t d = 0; d < width; ++d) {
            const double term = static_cast<double>(q[at + d]) * want_key[kv + static_cast<size_t>(s) * width + d];
            score += term;
            terms += std::abs(term);
          }
          scores.push_back(score / std::sqrt(static_cast<double>(c.head_dim)));
          size = std::max(size, terms / std::sqrt(static_cast<double>(c.head_dim)));
          largest = std::max(largest, scores.back());
        }
        double total = 0;
        for (double& score : scores) total += score = std::exp(score - largest);
        for (size_t d = 0; d < width; ++d) {
          double want = 0, magnitude = 0;
          for (size_t s = 0; s < scores.size(); ++s) {
            const double term = scores[s] / total * want_value[kv + (static_cast<size_t>(first) + s) * width + d];
            want += term;
            magnitude += std::abs(term);
          }
          // An error of a score is a relative error of its weight.
          worst.add(static_cast<int64_t>(at + d), y[at + d], want, (1e-6 + 3e-7 * size) * magnitude + 1e-30);
        }
      }
  return worst.failure("y");
}

}  // namespace

int main() {
  const Case cases[] = {
      {"jamba prefill", 1, 129, 8, 2, 128, 160, 0, {0}},
      {"one of everything", 1, 1, 1, 1, 1, 1, 0, {0}},
      {"chunk behind a past", 2, 65, 4, 4, 64, 1200, 0, {1134, 1}},
      {"decode, grouped", 3, 1, 16, 4, 128, 1135, 0, {1134, 0, 129}},
      {"decode, many splits", 1, 1, 4, 1, 64, 20000, 0, {19999}},
      {"decode, 8 rows", 2, 2, 8, 2, 80, 700, 0, {698, 255}},
      {"decode, 7 rows", 1, 1, 7, 1, 33, 300, 0, {290}},
      {"decode, 3 rows over one split", 1, 3, 2, 2, 129, 300, 0, {256}},
      {"nine rows", 1, 3, 3, 1, 48, 200, 0, {129}},
      {"window in prefill", 2, 129, 2, 1, 32, 300, 50, {0, 131}},
      {"window of 1", 1, 40, 2, 2, 16, 64, 1, {3}},
      {"window in decode", 2, 1, 8, 2, 64, 1134, 300, {1133, 17}},
      {"window in decode, several tokens", 2, 4, 2, 1, 64, 1134, 7, {1130, 0}},
      {"window longer than all", 1, 20, 2, 2, 24, 64, 1000, {5}},
      {"other buffer, prefill", 2, 33, 4, 2, 40, 100, 0, {7, 0}, false},
      {"other buffer, decode", 2, 1, 4, 2, 40, 100, 0, {7, 99}, false},
      {"sharp softmax", 1, 70, 4, 2, 64, 200, 0, {111}, true, 6},
      {"sharp softmax in decode", 2, 1, 4, 2, 64, 1300, 0, {1111, 400}, true, 6},
      {"widest head", 1, 40, 2, 1, 256, 128, 0, {50}},
      {"unaligned head", 1, 40, 3, 1, 129, 128, 0, {50}},
      {"no rows", 0, 4, 2, 1, 16, 8, 0, {}},
  };
  Tally tally;
  for (Isa isa : testable_isas()) {
    std::mt19937_64 random(3);
    for (const Case& c : cases) tally.record(c.name + " on " + isa_name(isa), run(c, isa, random));
    const int64_t past = 5;
    CachedAttentionParams p{};
    p.batch = 1, p.tokens = 4, p.heads = 2, p.kv_heads = 2, p.head_dim = 8, p.capacity = 8, p.past_lengths = &past;
    tally.record("refuses a full cache", cached_attention(p, serial(), isa) ? "" : "accepted");
    p.head_dim = 257;
    tally.record("refuses a head of 257", cached_attention(p, serial(), isa) ? "" : "accepted");
  }
  return tally.finish();
}
