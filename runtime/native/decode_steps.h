#pragma once

#include <functional>

#include "session.h"

namespace layerweave {

/** Steps of one token a row, each of which is fed what the one before chose. */
struct DecodeCall {
  StateId state;
  std::vector<int64_t> input_ids;     // [B] to begin with
  std::vector<int64_t> past_lengths;  // [B]
  std::vector<int64_t> limits;        // [B] tokens to be chosen at most; a row of none takes no part
  std::vector<int64_t> stop_tokens;   // with one of which a row ends
};

/** In place of a token, of a row that took no part in a step. */
constexpr int64_t kNoToken = -2;

/** Is given the tokens [B] of each step. */
using Delivery = std::function<void(std::vector<int64_t>)>;

/** One step: tokens [B] of the rows that are chosen. What it is given last it calls while it waits. */
using Step = std::function<std::vector<int64_t>(const ForwardCall&, const std::vector<bool>&, const std::function<void()>&)>;

/**
 * Makes steps until every row has ended: at its limit, with a stop token, or with -1 where its logits are not finite. The last
 * token of a row is not fed. Between two steps it asks whether to stop. When it throws, the steps that were delivered were made.
 */
void decode_steps(const DecodeCall& call, const Step& step, const std::function<bool()>& stopped, const Delivery& deliver);

}  // namespace layerweave
