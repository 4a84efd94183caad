#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ort_library.h"
#include "state.h"

namespace layerweave {

struct SessionSpec {
  /** Paths of the graph and of the library with our kernels (empty: none). */
  std::string graph;
  std::string kernels;
  int threads;
  int64_t vocab_size;
  /** Longest context in tokens; 0: no limit is known. */
  int64_t context_length;
  std::string input_ids;
  std::string past_lengths;
  std::string lengths;
  std::string logit_indices;
  std::string logits;
  std::vector<SlotSpec> slots;
};

using StateId = uint32_t;

/** One run over a batch of B rows, each padded on the right to T tokens. */
struct ForwardCall {
  StateId state;
  std::vector<int64_t> input_ids;      // [B, T]
  std::vector<int64_t> past_lengths;   // [B]
  std::vector<int64_t> lengths;        // [B]
  std::vector<int64_t> logit_indices;  // [B, L]
};

struct Memory {
  /** What ONNX Runtime's CPU allocator holds: weights it copied or packed, and activations. */
  size_t arena_now;
  size_t arena_peak;
  /** Buffers of all states. */
  size_t state_now;
  size_t state_peak;
};

/** A stop that another thread may ask for; a run ends between two operators, a load between two stages. */
class Interruption {
 public:
  explicit Interruption(const OrtLibrary& ort);
  void request();

  OrtRunOptions* run_options() { return run_options_.get(); }
  OrtSessionOptions* session_options() { return session_options_.get(); }

 private:
  const OrtLibrary& ort_;
  OrtOwned<OrtRunOptions> run_options_;
  OrtOwned<OrtSessionOptions> session_options_;
};

/** A loaded graph with the states of its sequences. Not thread-safe: one thread uses it from construction to destruction. */
class Session {
 public:
  /** @throws std::runtime_error with ONNX Runtime's message */
  Session(const OrtLibrary& ort, SessionSpec spec, Interruption& interruption);

  StateId create_state(int64_t batch, int64_t capacity);
  StateId copy_state(StateId id);
  void release_state(StateId id);

  /**
   * Replaces the state with what the graph returns, after growing buffers that are too small for
   * max(past_lengths) + T positions. When it throws, the state is what it was: a slot that isn't updated in place is
   * computed into its second buffer, and the buffers change roles only once the run has succeeded.
   * @returns logits [B, L, V]; `count` of them
   */
  std::unique_ptr<float[]> forward(ForwardCall& call, size_t& count);

  /** A copy of one slot and its shape. */
  std::unique_ptr<float[]> read_state(StateId id, size_t slot, std::vector<int64_t>& shape);
  /** Fills a slot with numbers of its shape, or of fewer positions than it has room for. */
  void write_state(StateId id, size_t slot, const std::vector<float>& numbers);
  /** Makes row `to_row` of one state a copy of row `from_row` of another, which holds `positions` tokens. */
  void copy_row(StateId from, int64_t from_row, int64_t positions, StateId to, int64_t to_row);

  Memory memory() const;

 private:
  State& state_of(StateId id);
  SharedTensor make_tensor(std::vector<int64_t> shape);
  void make_room(State& state, const std::vector<int64_t>& used, int64_t tokens);
  SharedTensor resized(const SlotSpec& spec, const Tensor& tensor, int64_t capacity, const std::vector<int64_t>& used);
  Tensor& own(const SlotSpec& spec, Slot& slot, const std::vector<int64_t>& used);

  const OrtLibrary& ort_;
  const SessionSpec spec_;
  Interruption& interruption_;
  OrtOwned<OrtSession> session_;
  OrtOwned<OrtAllocator> allocator_;
  OrtOwned<OrtIoBinding> binding_;
  // Before the states: their tensors are counted here until they are gone.
  Tally tally_;
  std::map<StateId, State> states_;
  StateId next_state_ = 0;
};

/** Whether a library of kernels can be registered. @throws std::runtime_error saying why not. */
void check_kernels(const OrtLibrary& ort, const std::string& path);

}  // namespace layerweave
