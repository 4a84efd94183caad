#include "cpu/cached_attention.h"

#include "host.h"

namespace layerweave::ort {

namespace {

class CachedAttention : public Kernel {
 public:
  CachedAttention(int64_t heads, int64_t kv_heads, int64_t window) : heads_(heads), kv_heads_(kv_heads), window_(window) {}

  void compute(const Call& call) const override {
    const auto query = call.input<float>(0), key = call.input<float>(1), value = call.input<float>(2), past_key = call.input<float>(3), past_value = call.input<float>(4);
    const auto past_lengths = call.input<int64_t>(5);
    expect(query.shape.size() == 3 && past_key.shape.size() == 4, "query [B, T, H·P] and past_key [B, G, S, P]", {&query.shape, &past_key.shape});
    const int64_t batch = query.shape[0], tokens = query.shape[1], capacity = past_key.shape[2], head_dim = past_key.shape[3];
    expect(query.shape[2] == heads_ * head_dim && key.shape == Shape{batch, tokens, kv_heads_ * head_dim}, "query [B, T, H·P] and key [B, T, G·P]", {&query.shape, &key.shape, &past_key.shape});
    expect(value.shape == key.shape && past_value.shape == past_key.shape, "key and value alike", {&key.shape, &value.shape, &past_key.shape, &past_value.shape});
    expect(past_key.shape[0] == batch && past_key.shape[1] == kv_heads_ && past_lengths.shape == Shape{batch}, "past_key [B, G, S, P] and past_lengths [B]",
           {&past_key.shape, &past_lengths.shape, &query.shape});
    cpu::CachedAttentionParams params = {batch,     tokens,     heads_,           kv_heads_,     head_dim,      capacity,      window_,
                                         query.data, key.data, value.data, past_lengths.data, call.output<float>(0, query.shape), past_key.data, past_value.data,
                                         call.output<float>(1, past_key.shape), call.output<float>(2, past_value.shape), nullptr};
    const Scratch scratch(call, cpu::cached_attention_scratch(params));
    params.scratch = scratch.data();
    succeed(cpu::cached_attention(params, parallel(call), cpu::best_isa()));
  }

 private:
  int64_t heads_, kv_heads_, window_;
};

std::unique_ptr<Kernel> create(const NodeInfo& node) {
  const int64_t heads = node.integer("n_heads"), kv_heads = node.integer("n_kv_heads"), window = node.integer("window");
  if (kv_heads < 1 || heads < 1 || heads % kv_heads || window < 0)
    throw OpError("expected n_heads a multiple of n_kv_heads and window at least 0; got " + print({heads, kv_heads, window}));
  return std::make_unique<CachedAttention>(heads, kv_heads, window);
}

}  // namespace

const Definition& cached_attention() {
  constexpr auto f32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  static const Definition definition = {
      "CachedAttention",
      nullptr,
      {{"query", f32}, {"key", f32}, {"value", f32}, {"past_key", f32}, {"past_value", f32}, {"past_lengths", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64}},
      {{"y", f32}, {"present_key", f32}, {"present_value", f32}},
      {{"n_heads", "int"}, {"n_kv_heads", "int"}, {"window", "int"}},
      {0, 3, 4},
      [](int** inputs, int** outputs) { return inplace_pairs({{3, 1}, {4, 2}}, inputs, outputs); },
      create,
  };
  return definition;
}

}  // namespace layerweave::ort
