#include "cpu/moe.h"

#include <algorithm>
#include <cstring>

#include "kernels.h"

namespace layerweave::cpu {

namespace {

/// Rows whose packed inputs and hidden activations exist at a time; bounds the scratch memory.
constexpr int64_t kBatchRows = 2 * kMoeSegmentRows;
/// Multiply-adds below which a task is not worth starting.
constexpr int64_t kTaskWork = 1 << 16;

/// Up to kMoeSegmentRows of the (token, expert) pairs of one expert.
struct Segment {
  int32_t expert;
  int32_t rows;
  int64_t first;  // among the pairs sorted by expert
  int64_t at;     // rows before it in the packed inputs and the hidden activations of its batch
  bool few;       // rows as they lie, rather than packed panels

  int64_t padded(int64_t panel) const { return few ? rows : (rows + panel - 1) / panel * panel; }
};

int64_t pairs(const MoeParams& p) { return p.tokens * p.top_k; }
int64_t most_segments(const MoeParams& p) { return std::min(p.experts, pairs(p)) + pairs(p) / kMoeSegmentRows; }
int64_t most_rows(const MoeParams& p) { return std::min(kBatchRows, pairs(p) + std::min(p.experts, pairs(p)) * (kMaxPanel - 1)); }

struct Scratch {
  float* logits;      // [M,E]
  float* weights;     // [M,K]
  int32_t* experts;   // [M,K]
  int32_t* sorted;    // [M*K], pairs m * K + k by expert, then by token
  int64_t* starts;    // [E + 1], where each expert's pairs begin in `sorted`
  Segment* segments;  // [most_segments]
  float* inputs;      // [most_rows, D]
  float* hidden;      // [most_rows, F]
  size_t bytes;
};

Scratch carve(const MoeParams& p) {
  Scratch s{};
  char* base = static_cast<char*>(p.scratch);
  const auto take = [&](auto*& member, int64_t count) {
    using Element = std::remove_reference_t<decltype(*member)>;
    if (base) member = reinterpret_cast<Element*>(base + s.bytes);
    s.bytes += (sizeof(Element) * static_cast<size_t>(count) + 63) / 64 * 64;
  };
  take(s.logits, p.tokens * p.experts);
  take(s.weights, pairs(p));
  take(s.experts, pairs(p));
  take(s.sorted, pairs(p));
  take(s.starts, p.experts + 1);
  take(s.segments, most_segments(p));
  take(s.inputs, most_rows(p) * p.d_model);
  take(s.hidden, most_rows(p) * p.d_ff);
  return s;
}

class Run {
 public:
  Run(const MoeParams& params, const Parallel& parallel, const KernelTable& kernels) : p_(params), parallel_(parallel), kernels_(kernels), s_(carve(params)) {}

  void route() const {
    parallel_for(parallel_, (p_.tokens + kFewRows - 1) / kFewRows, [&](int64_t task) {
      const int64_t begin = task * kFewRows, rows = std::min(kFewRows, p_.tokens - begin);
      const float* x[kFewRows];
      for (int64_t r = 0; r < rows; ++r) x[r] = p_.x + (begin + r) * p_.d_model;
      float* logits = s_.logits + begin * p_.experts;
      kernels_.dot_rows({WeightType::kFloat32, p_.router, nullptr}, p_.d_model, 0, p_.experts, x, rows, logits, p_.experts);
      for (int64_t m = begin; m < begin + rows; ++m) kernels_.route(p_, s_.logits + m * p_.experts, s_.weights + m * p_.top_k, s_.experts + m * p_.top_k);
      std::memset(p_.y + begin * p_.d_model, 0, sizeof(float) * static_cast<size_t>(rows * p_.d_model));
    });
  }

  void sort_by_expert() const {
    std::fill_n(s_.starts, p_.experts + 1, 0);
    for (int64_t i = 0; i < pairs(p_); ++i) ++s_.starts[s_.experts[i] + 1];
    for (int64_t e = 0; e < p_.experts; ++e) s_.starts[e + 1] += s_.starts[e];
    for (int64_t i = 0; i < pairs(p_); ++i) s_.sorted[s_.starts[s_.experts[i]]++] = static_cast<int32_t>(i);
    // Each start has moved to the next one's place.
    for (int64_t e = p_.experts; e > 0; --e) s_.starts[e] = s_.starts[e - 1];
    s_.starts[0] = 0;
  }

  void run_experts() const {
    int64_t count = 0, rows = 0;
    for (int64_t e = 0; e < p_.experts; ++e)
      for (int64_t first = s_.starts[e]; first < s_.starts[e + 1]; first += kMoeSegmentRows) {
        Segment segment = {static_cast<int32_t>(e), static_cast<int32_t>(std::min(kMoeSegmentRows, s_.starts[e + 1] - first)), first, rows, false};
        segment.few = segment.rows <= kFewRows;
        if (rows + segment.padded(kernels_.panel) > kBatchRows) {
          run_batch(count);
          count = rows = segment.at = 0;
        }
        rows += segment.padded(kernels_.panel);
        s_.segments[count++] = segment;
      }
    if (count) run_batch(count);
  }

 private:
  int64_t token(const Segment& segment, int64_t r) const { return s_.sorted[segment.first + r] / p_.top_k; }

  void run_batch(int64_t count) const {
    parallel_for(parallel_, count, [&](int64_t i) { pack(s_.segments[i]); });

    // One task takes blocks [task * grain, …) of the rows of gate and up of one expert.
    const int64_t hidden_blocks = blocks(p_.d_ff), hidden_grain = grain(p_.d_model, 2);
    const int64_t hidden_tasks = (hidden_blocks + hidden_grain - 1) / hidden_grain;
    parallel_for(parallel_, count * hidden_tasks, [&](int64_t task) {
      const int64_t from = task % hidden_tasks * hidden_grain;
      for (int64_t block = from; block < std::min(hidden_blocks, from + hidden_grain); ++block)
        compute_hidden(s_.segments[task / hidden_tasks], block * kBlockRows, std::min(p_.d_ff, (block + 1) * kBlockRows));
    });

    // One task takes the same outputs of every expert, so that no two add to the same element of y.
    const int64_t output_blocks = blocks(p_.d_model), output_grain = grain(p_.d_ff, count);
    parallel_for(parallel_, (output_blocks + output_grain - 1) / output_grain, [&](int64_t task) {
      const int64_t from = task * output_grain;
      for (int64_t block = from; block < std::min(output_blocks, from + output_grain); ++block)
        for (int64_t i = 0; i < count; ++i) add_output(s_.segments[i], block * kBlockRows, std::min(p_.d_model, (block + 1) * kBlockRows));
    });
  }

  static int64_t blocks(int64_t rows) { return (rows + kBlockRows - 1) / kBlockRows; }
  static int64_t grain(int64_t depth, int64_t products) { return std::max<int64_t>(1, kTaskWork / (kBlockRows * depth * products)); }

  void pack(const Segment& segment) const {
    if (segment.few) return;
    const int64_t panel = kernels_.panel;
    // A few columns of every row at a time: what is written so far stays in the first-level cache until its lines are full.
    constexpr int64_t kColumns = 64;
    for (int64_t first = 0; first < segment.padded(panel); first += panel) {
      float* packed = s_.inputs + (segment.at + first) * p_.d_model;
      for (int64_t d0 = 0; d0 < p_.d_model; d0 += kColumns)
        for (int64_t r = 0; r < panel; ++r) {
          const float* x = first + r < segment.rows ? p_.x + token(segment, first + r) * p_.d_model : nullptr;
          for (int64_t d = d0; d < std::min(p_.d_model, d0 + kColumns); ++d) packed[d * panel + r] = x ? x[d] : 0;
        }
    }
  }

  void compute_hidden(const Segment& segment, int64_t begin, int64_t end) const {
    const ExpertWeights& w = p_.weights[segment.expert];
    const int64_t panel = kernels_.panel, width = end - begin;
    float* hidden = s_.hidden + segment.at * p_.d_ff;
    if (segment.few) {
      const float* x[kFewRows];
      for (int64_t r = 0; r < segment.rows; ++r) x[r] = p_.x + token(segment, r) * p_.d_model;
      float up[kFewRows * kBlockRows];
      kernels_.dot_rows(w.gate, p_.d_model, begin, end, x, segment.rows, hidden, p_.d_ff);
      kernels_.dot_rows(w.up, p_.d_model, begin, end, x, segment.rows, up - begin, kBlockRows);
      for (int64_t r = 0; r < segment.rows; ++r) kernels_.gate_in_place(hidden + r * p_.d_ff + begin, up + r * kBlockRows, width);
      return;
    }
    alignas(64) float up[kMoeSegmentRows * kBlockRows];
    const float* x = s_.inputs + segment.at * p_.d_model;
    float* gate = hidden + begin * panel;
    kernels_.multiply_panels(w.gate, p_.d_model, begin, end, x, segment.rows, gate, p_.d_ff * panel);
    kernels_.multiply_panels(w.up, p_.d_model, begin, end, x, segment.rows, up, kBlockRows * panel);
    for (int64_t i = 0; i < segment.padded(panel) / panel; ++i) kernels_.gate_in_place(gate + i * p_.d_ff * panel, up + i * kBlockRows * panel, width * panel);
  }

  void add_output(const Segment& segment, int64_t begin, int64_t end) const {
    const ExpertWeights& w = p_.weights[segment.expert];
    const int64_t panel = kernels_.panel;
    const float* hidden = s_.hidden + segment.at * p_.d_ff;
    alignas(64) float out[kMoeSegmentRows * kBlockRows];
    if (segment.few) {
      const float* x[kFewRows];
      for (int64_t r = 0; r < segment.rows; ++r) x[r] = hidden + r * p_.d_ff;
      kernels_.dot_rows(w.down, p_.d_ff, begin, end, x, segment.rows, out - begin, kBlockRows);
    } else {
      kernels_.multiply_panels(w.down, p_.d_ff, begin, end, hidden, segment.rows, out, kBlockRows * panel);
    }
    for (int64_t r = 0; r < segment.rows; ++r) {
      const float weight = s_.weights[s_.sorted[segment.first + r]];
      float* y = p_.y + token(segment, r) * p_.d_model + begin;
      const float* share = segment.few ? out + r * kBlockRows : out + r / panel * kBlockRows * panel + r % panel;
      const int64_t stride = segment.few ? 1 : panel;
      for (int64_t d = 0; d < end - begin; ++d) y[d] += weight * share[d * stride];
    }
  }

  const MoeParams& p_;
  const Parallel& parallel_;
  const KernelTable& kernels_;
  const Scratch s_;
};

}  // namespace

size_t moe_scratch(const MoeParams& p) {
  MoeParams measured = p;
  measured.scratch = nullptr;
  return carve(measured).bytes;
}

const char* moe(const MoeParams& p, const Parallel& parallel, Isa isa) {
  if (p.top_k < 1 || p.top_k > p.experts) return "topK must be 1 to the number of experts";
  if (p.tokens * p.top_k > INT32_MAX) return "tokens times topK must be below 2^31";
  if (p.tokens == 0) return nullptr;
  const Run run(p, parallel, kernel_table(isa));
  run.route();
  run.sort_by_expert();
  run.run_experts();
  return nullptr;
}

}  // namespace layerweave::cpu
