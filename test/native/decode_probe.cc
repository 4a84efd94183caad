// Prints what decode_steps asks of its steps and delivers, over a model whose next token is the sum of a row's last token and
// its length: test/native/cuda.test.ts builds and runs this.
#include <cstdio>
#include <stdexcept>

#include "decode_steps.h"

using namespace layerweave;

namespace {

void print(const char* what, const std::vector<int64_t>& numbers) {
  std::printf("%s", what);
  for (const int64_t number : numbers) std::printf(" %lld", static_cast<long long>(number));
  std::printf("\n");
}

/** Steps until the one numbered `failing`; a row of length 99 has no finite logits. */
void decode(const DecodeCall& call, int stop_before, int failing) {
  int made = 0;
  const Step step = [&](const ForwardCall& next, const std::vector<bool>& chosen, const std::function<void()>& meanwhile) {
    if (made == failing) throw std::runtime_error("failed");
    made++;
    print("feed", next.input_ids);
    print("past", next.past_lengths);
    print("take", next.lengths);
    meanwhile();
    std::vector<int64_t> tokens(chosen.size(), 12345);
    for (size_t row = 0; row < tokens.size(); row++)
      if (chosen[row]) tokens[row] = next.past_lengths[row] == 99 ? -1 : next.input_ids[row] + next.past_lengths[row];
    return tokens;
  };
  try {
    decode_steps(call, step, [&] { return made == stop_before; }, [](const std::vector<int64_t>& tokens) { print("told", tokens); });
    std::printf("end\n");
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
  }
}

}  // namespace

int main() {
  // The rows end at a stop token, at a limit, for logits that are not finite; one takes no part.
  decode({7, {1, 5, 3, 0}, {10, 20, 98, 4}, {9, 2, 9, 0}, {22, 50}}, -1, -1);
  decode({7, {1}, {10}, {9}, {}}, 2, -1);
  decode({7, {1}, {10}, {9}, {}}, -1, 1);
  decode({7, {1}, {10}, {9}, {}}, 0, -1);
  decode({7, {1, 2}, {10}, {9}, {}}, -1, -1);
}
