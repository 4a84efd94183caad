// The choice of experts for one token; see cpu/moe.h.
namespace layerweave::cpu::LAYERWEAVE_ISA {

inline void route(const MoeParams& p, float* logits, float* weights, int32_t* experts) {
  // The largest logits are the largest probabilities, so the choice is made before the softmax in both orders.
  for (int64_t k = 0; k < p.top_k; ++k) {
    int64_t best = -1;
    for (int64_t e = 0; e < p.experts; ++e) {
      bool taken = false;
      for (int64_t j = 0; j < k; ++j) taken |= experts[j] == e;
      if (!taken && (best < 0 || logits[e] > logits[best])) best = e;
    }
    experts[k] = static_cast<int32_t>(best);
    weights[k] = logits[best];
  }
  const float largest = weights[0];
  const auto exp_in_place = [largest](float* values, int64_t count) {
    float total = 0;
    for (int64_t i = 0; i < count; i += kLanes) {
      const int64_t lanes = smaller(kLanes, count - i);
      store(values + i, exp(load(values + i, lanes) - largest), lanes);
    }
    for (int64_t i = 0; i < count; ++i) total += values[i];
    return total;
  };
  const float chosen = exp_in_place(weights, p.top_k);
  const bool over_all = p.order == RouterOrder::kSoftmaxThenTopK && !p.renormalise;
  const float total = over_all ? exp_in_place(logits, p.experts) : chosen;
  for (int64_t k = 0; k < p.top_k; ++k) weights[k] /= total;
}

}  // namespace layerweave::cpu::LAYERWEAVE_ISA
