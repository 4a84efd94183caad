#include "decode_steps.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace layerweave {

void decode_steps(const DecodeCall& call, const Step& step, const std::function<bool()>& stopped, const Delivery& deliver) {
  const size_t batch = call.past_lengths.size();
  if (call.input_ids.size() != batch || call.limits.size() != batch) throw std::logic_error("decoding takes B token ids, B past lengths and B limits");
  ForwardCall next{call.state, call.input_ids, call.past_lengths, std::vector<int64_t>(batch), std::vector<int64_t>(batch, 0)};
  std::vector<int64_t> left = call.limits;
  std::vector<int64_t> undelivered;
  const auto deliver_last = [&] {
    if (!undelivered.empty()) deliver(std::exchange(undelivered, {}));
  };
  try {
    for (;;) {
      std::vector<bool> chosen(batch);
      for (size_t row = 0; row < batch; row++) next.lengths[row] = chosen[row] = left[row] > 0;
      if (std::find(chosen.begin(), chosen.end(), true) == chosen.end() || stopped()) break;
      // Telling of the step before takes time that the card need not wait for.
      std::vector<int64_t> tokens = step(next, chosen, deliver_last);
      for (size_t row = 0; row < batch; row++) {
        if (!chosen[row]) {
          tokens[row] = kNoToken;
          continue;
        }
        const int64_t token = tokens[row];
        const bool ends = token < 0 || std::find(call.stop_tokens.begin(), call.stop_tokens.end(), token) != call.stop_tokens.end();
        left[row] = ends ? 0 : left[row] - 1;
        next.past_lengths[row]++;
        // As a row that is fed nothing is padded.
        next.input_ids[row] = left[row] > 0 ? token : 0;
      }
      undelivered = std::move(tokens);
    }
  } catch (const std::exception&) {
    deliver_last();
    throw;
  }
  deliver_last();
}

}  // namespace layerweave
