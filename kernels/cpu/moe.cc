#include "cpu/moe.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "carving.h"
#include "kernels.h"

namespace layerweave::cpu {

namespace {

/// Rows whose packed inputs and hidden activations exist at a time; bounds the scratch memory.
constexpr int64_t kBatchRows = 2 * kMoeSegmentRows;
/// Multiply-adds below which a task of many rows is not worth starting.
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

/// Whether activations are rounded to 16 bits.
bool rounds(const MoeParams& p) { return p.weights[0].gate.type == WeightType::kInt8; }

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
  float* inputs;      // [most_rows, D], unless int8 weights want them rounded
  float* hidden;      // [most_rows, F]
  RoundedRows rounded_inputs, rounded_hidden;
  size_t bytes;
};

Scratch carve(const MoeParams& p) {
  Scratch s{};
  Carving carving(p.scratch);
  carving.take(s.logits, p.tokens * p.experts);
  carving.take(s.weights, pairs(p));
  carving.take(s.experts, pairs(p));
  carving.take(s.sorted, pairs(p));
  carving.take(s.starts, p.experts + 1);
  carving.take(s.segments, most_segments(p));
  carving.take(s.hidden, most_rows(p) * p.d_ff);
  if (rounds(p)) {
    carving.take(s.rounded_inputs.values, most_rows(p) * rounded_depth(p.d_model));
    carving.take(s.rounded_inputs.scales, most_rows(p) * rounded_blocks(p.d_model));
    carving.take(s.rounded_hidden.values, most_rows(p) * rounded_depth(p.d_ff));
    carving.take(s.rounded_hidden.scales, most_rows(p) * rounded_blocks(p.d_ff));
  } else {
    carving.take(s.inputs, most_rows(p) * p.d_model);
  }
  s.bytes = carving.bytes();
  return s;
}

class Run {
 public:
  Run(const MoeParams& params, const Parallel& parallel, const KernelTable& kernels) : p_(params), parallel_(parallel), kernels_(kernels), rounds_(rounds(params)), s_(carve(params)) {}

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

  /// Instead of the two above, where there is one expert.
  void choose_the_only_one() const {
    std::fill_n(s_.weights, p_.tokens, 1.0f);
    std::iota(s_.sorted, s_.sorted + p_.tokens, 0);
    s_.starts[0] = 0;
    s_.starts[1] = p_.tokens;
    parallel_for(parallel_, (p_.tokens + kFewRows - 1) / kFewRows, [&](int64_t task) {
      const int64_t begin = task * kFewRows, rows = std::min(kFewRows, p_.tokens - begin);
      std::memset(p_.y + begin * p_.d_model, 0, sizeof(float) * static_cast<size_t>(rows * p_.d_model));
    });
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
    int64_t rows = 0;
    for (int64_t i = 0; i < count; ++i) rows += s_.segments[i].rows;
    const bool small = rows <= kFewRows;
    for_each(small, count, [&](int64_t i) { pack(s_.segments[i]); });

    const bool few = std::all_of(s_.segments, s_.segments + count, [](const Segment& segment) { return segment.few; });
    // One task takes rows of gate and up of one expert.
    const int64_t hidden_rows = task_rows(few, p_.d_ff, p_.d_model, 2, count), hidden_tasks = (p_.d_ff + hidden_rows - 1) / hidden_rows;
    parallel_for(parallel_, count * hidden_tasks, [&](int64_t task) {
      const Segment& segment = s_.segments[task / hidden_tasks];
      const int64_t from = task % hidden_tasks * hidden_rows;
      for_blocks(segment, from, std::min(p_.d_ff, from + hidden_rows), [&](int64_t begin, int64_t end) { compute_hidden(segment, begin, end); });
    });

    if (rounds_) for_each(small, count, [&](int64_t i) { round_hidden(s_.segments[i]); });

    // One task takes the same outputs of every expert, so that no two add to the same element of y.
    const int64_t output_rows = task_rows(few, p_.d_model, p_.d_ff, count, 1);
    parallel_for(parallel_, (p_.d_model + output_rows - 1) / output_rows, [&](int64_t task) {
      const int64_t from = task * output_rows, to = std::min(p_.d_model, from + output_rows);
      for (int64_t i = 0; i < count; ++i) for_blocks(s_.segments[i], from, to, [&](int64_t begin, int64_t end) { add_output(s_.segments[i], begin, end); });
    });
  }

  /// Rows of `products` matrices [width, depth] that one task takes, where there are `groups` times as many tasks.
  int64_t task_rows(bool few, int64_t width, int64_t depth, int64_t products, int64_t groups) const {
    const int64_t row = depth * products;
    if (!few) return std::max<int64_t>(1, kTaskWork / (kBlockRows * row)) * kBlockRows;
    const int64_t bytes = row * (rounds_ ? 1 : p_.weights[0].gate.type == WeightType::kBFloat16 ? 2 : 4);
    const int64_t rows = std::max<int64_t>(1, few_rows_task_bytes(groups * width * bytes) / bytes), tasks = (width + rows - 1) / rows;
    // Whole groups of float32 columns, whose sums are added in another order than single ones.
    return ((width + tasks - 1) / tasks + 7) / 8 * 8;
  }

  /// Pieces of [from, to) whose results fit kMoeSegmentRows * kBlockRows floats.
  template <class F>
  static void for_blocks(const Segment& segment, int64_t from, int64_t to, F&& body) {
    const int64_t block = segment.few ? kMoeSegmentRows / kFewRows * kBlockRows : kBlockRows;
    for (int64_t begin = from; begin < to; begin += block) body(begin, std::min(to, begin + block));
  }

  /// On this thread where there is too little to do for others.
  template <class F>
  void for_each(bool here, int64_t count, F&& body) const {
    if (!here) return parallel_for(parallel_, count, body);
    for (int64_t i = 0; i < count; ++i) body(i);
  }

  void pack(const Segment& segment) const {
    const int64_t panel = kernels_.panel;
    if (segment.few) {
      if (!rounds_) return;
      for (int64_t r = 0; r < segment.rows; ++r) kernels_.round_row(p_.x + token(segment, r) * p_.d_model, p_.d_model, s_.rounded_inputs.from(segment.at + r, p_.d_model));
      return;
    }
    for (int64_t first = 0; first < segment.padded(panel); first += panel) {
      const float* rows[kMaxPanel];
      for (int64_t r = 0; r < panel; ++r) rows[r] = first + r < segment.rows ? p_.x + token(segment, first + r) * p_.d_model : nullptr;
      if (rounds_)
        pack_rounded(kernels_, rows, p_.d_model, s_.rounded_inputs.from(segment.at + first, p_.d_model));
      else
        kernels_.pack_panel(rows, 0, p_.d_model, s_.inputs + (segment.at + first) * p_.d_model);
    }
  }

  void round_hidden(const Segment& segment) const {
    const int64_t step = segment.few ? 1 : kernels_.panel;
    for (int64_t first = segment.at; first < segment.at + segment.padded(kernels_.panel); first += step) {
      const float* hidden = s_.hidden + first * p_.d_ff;
      const RoundedRows to = s_.rounded_hidden.from(first, p_.d_ff);
      if (segment.few) {
        kernels_.round_row(hidden, p_.d_ff, to);
        continue;
      }
      for (int64_t k0 = 0; k0 < p_.d_ff; k0 += kRoundedDepth) kernels_.round_panel(hidden + k0 * step, k0, std::min(kRoundedDepth, p_.d_ff - k0), to);
    }
  }

  /// The products of a segment's inputs, or of its hidden activations, with rows [begin, end) of w: where there are few, element
  /// [r,n] lies at out[r * out_row + n], otherwise [panel,n,i] at out[panel * out_row * panel + (n - begin) * panel + i].
  void multiply(const Segment& segment, const WeightMatrix& w, bool hidden, int64_t begin, int64_t end, float* out, int64_t out_row) const {
    const int64_t depth = hidden ? p_.d_ff : p_.d_model;
    const float* rows = hidden ? s_.hidden + segment.at * depth : s_.inputs + segment.at * depth;
    if (rounds_) {
      const RoundedRows x = (hidden ? s_.rounded_hidden : s_.rounded_inputs).from(segment.at, depth);
      if (segment.few) return kernels_.dot_rounded(w, depth, begin, end, x, segment.rows, out, out_row);
      return kernels_.multiply_rounded(w, depth, begin, end, x, segment.rows, out, out_row * kernels_.panel);
    }
    if (!segment.few) return kernels_.multiply_panels(w, depth, begin, end, rows, segment.rows, out, out_row * kernels_.panel);
    const float* x[kFewRows];
    for (int64_t r = 0; r < segment.rows; ++r) x[r] = hidden ? rows + r * depth : p_.x + token(segment, r) * depth;
    kernels_.dot_rows(w, depth, begin, end, x, segment.rows, out, out_row);
  }

  void compute_hidden(const Segment& segment, int64_t begin, int64_t end) const {
    const ExpertWeights& w = p_.weights[segment.expert];
    const int64_t panel = kernels_.panel, width = end - begin;
    float* hidden = s_.hidden + segment.at * p_.d_ff;
    alignas(64) float up[kMoeSegmentRows * kBlockRows];
    if (segment.few) {
      multiply(segment, w.gate, false, begin, end, hidden, p_.d_ff);
      multiply(segment, w.up, false, begin, end, up - begin, width);
      for (int64_t r = 0; r < segment.rows; ++r) kernels_.gate_in_place(hidden + r * p_.d_ff + begin, up + r * width, width);
      return;
    }
    float* gate = hidden + begin * panel;
    multiply(segment, w.gate, false, begin, end, gate, p_.d_ff);
    multiply(segment, w.up, false, begin, end, up, kBlockRows);
    for (int64_t i = 0; i < segment.padded(panel) / panel; ++i) kernels_.gate_in_place(gate + i * p_.d_ff * panel, up + i * kBlockRows * panel, width * panel);
  }

  void add_output(const Segment& segment, int64_t begin, int64_t end) const {
    const WeightMatrix& w = p_.weights[segment.expert].down;
    const int64_t panel = kernels_.panel;
    alignas(64) float out[kMoeSegmentRows * kBlockRows];
    if (segment.few) {
      multiply(segment, w, true, begin, end, out - begin, end - begin);
      for (int64_t r = 0; r < segment.rows; ++r) {
        const float weight = s_.weights[s_.sorted[segment.first + r]];
        float* y = p_.y + token(segment, r) * p_.d_model;
        for (int64_t d = begin; d < end; ++d) y[d] += weight * out[r * (end - begin) + d - begin];
      }
      return;
    }
    multiply(segment, w, true, begin, end, out, kBlockRows);
    for (int64_t first = 0; first < segment.rows; first += panel) {
      const int64_t rows = std::min(panel, segment.rows - first);
      float weights[kMaxPanel];
      float* y[kMaxPanel];
      for (int64_t r = 0; r < rows; ++r) {
        weights[r] = s_.weights[s_.sorted[segment.first + first + r]];
        y[r] = p_.y + token(segment, first + r) * p_.d_model + begin;
      }
      kernels_.add_panel(out + first * kBlockRows, end - begin, rows, weights, y);
    }
  }

  const MoeParams& p_;
  const Parallel& parallel_;
  const KernelTable& kernels_;
  const bool rounds_;
  const Scratch s_;
};

}  // namespace

size_t moe_scratch(const MoeParams& p) {
  MoeParams measured = p;
  measured.scratch = nullptr;
  return carve(measured).bytes;
}

namespace {

const char* problem_of(const MoeParams& p) {
  if (p.top_k < 1 || p.top_k > p.experts) return "topK must be 1 to the number of experts";
  if (p.tokens * p.top_k > INT32_MAX) return "tokens times topK must be below 2^31";
  for (int64_t e = 0; e < p.experts; ++e)
    for (const WeightMatrix* w : {&p.weights[e].gate, &p.weights[e].up, &p.weights[e].down})
      if (w->type != p.weights[0].gate.type) return "all weights must be of one type";
  return nullptr;
}

MoeParams only_expert(const GatedMlpParams& p) {
  return {p.tokens, p.d_model, p.d_ff, 1, 1, RouterOrder::kTopKThenSoftmax, false, p.x, nullptr, &p.weights, p.y, p.scratch};
}

}  // namespace

const char* moe(const MoeParams& p, const Parallel& parallel, Isa isa) {
  if (const char* problem = problem_of(p)) return problem;
  if (p.tokens == 0) return nullptr;
  const Run run(p, parallel, kernel_table(isa));
  run.route();
  run.sort_by_expert();
  run.run_experts();
  return nullptr;
}

size_t gated_mlp_scratch(const GatedMlpParams& p) { return moe_scratch(only_expert(p)); }

const char* gated_mlp(const GatedMlpParams& p, const Parallel& parallel, Isa isa) {
  const MoeParams expert = only_expert(p);
  if (const char* problem = problem_of(expert)) return problem;
  if (p.tokens == 0) return nullptr;
  const Run run(expert, parallel, kernel_table(isa));
  run.choose_the_only_one();
  run.run_experts();
  return nullptr;
}

}  // namespace layerweave::cpu
