#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ort_library.h"
#include "state.h"

namespace layerweave {

/** A weight's place in a file; it is stored as the graph takes it. */
struct WeightSpec {
  std::string name;
  std::string file;
  int64_t offset;
  size_t bytes;
  ONNXTensorElementDataType type;
  std::vector<int64_t> shape;
};

/** Told of the bytes loaded so far and of those in all, on the session's thread. */
using Progress = std::function<void(size_t, size_t)>;

struct CudaSpec {
  int ordinal;
  /** Repeats steps of one token as captured graphs. */
  bool graphs;
  /** What ONNX Runtime's allocator takes from the card to begin with. */
  size_t arena_bytes;
  /** In files' order. */
  std::vector<WeightSpec> weights;
};

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
  /** Null: on the CPU. */
  std::shared_ptr<const CudaSpec> cuda;
  /** Null: nobody asks. */
  Progress progress;
  /** Weights to be copied into memory, on the CPU; ONNX Runtime maps the others' files. In files' order. */
  std::vector<WeightSpec> copied = {};
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

/** On a card: what the session and the driver say of its memory. */
struct CardMemory {
  size_t weights;
  /** What ONNX Runtime's allocator took from the card to hand out. */
  size_t arena_reserved;
  /** Token ids on their way to the card, logits on theirs back, and samplers. */
  size_t exchange;
  double load_seconds;
  size_t used_before;
  size_t used_now;
  size_t total;
};

/** Where the time of steps of one token went. */
struct StepTimes {
  size_t steps;
  /** Until everything was handed to the card; the rest of a step waits for it. */
  double host_seconds;
  double wait_seconds;
  /** Kernels of one step; 0: no state has taken one. */
  size_t launches;
};

struct Memory {
  /** What ONNX Runtime's allocator holds: weights it copied or packed, and activations. */
  size_t arena_now;
  size_t arena_peak;
  /** Buffers of all states. */
  size_t state_now;
  size_t state_peak;
  /** Null on the CPU. */
  std::shared_ptr<const CardMemory> card;
};

/** A stop that another thread may ask for; a run ends between two operators, a load between two stages. */
class Interruption {
 public:
  explicit Interruption(const OrtLibrary& ort);
  void request();
  bool requested() const { return requested_; }

  OrtRunOptions* run_options() { return run_options_.get(); }
  OrtSessionOptions* session_options() { return session_options_.get(); }

 private:
  const OrtLibrary& ort_;
  std::atomic<bool> requested_{false};
  OrtOwned<OrtRunOptions> run_options_;
  OrtOwned<OrtSessionOptions> session_options_;
};

/**
 * A loaded graph with the states of its sequences, wherever they lie. Not thread-safe: one thread uses it from
 * construction to destruction.
 */
class Session {
 public:
  virtual ~Session() = default;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  StateId create_state(int64_t batch, int64_t capacity);
  StateId copy_state(StateId id);
  virtual void release_state(StateId id);

  /**
   * Replaces the state with what the graph returns, after growing buffers that are too small for
   * max(past_lengths) + T positions. When it throws, the state is what it was.
   * @returns logits [B, L, V]; `count` of them
   */
  virtual std::unique_ptr<float[]> forward(ForwardCall& call, size_t& count) = 0;
  /** As `forward`, with the logits in memory that the caller lends, with room for `room` of them. @returns how many */
  size_t forward_into(ForwardCall& call, float* logits, size_t room);

  /** A copy of one slot and its shape; of a slot that grows the first `positions`, or all when that is negative. */
  std::unique_ptr<float[]> read_state(StateId id, size_t slot, int64_t positions, std::vector<int64_t>& shape);
  /**
   * Bytes `from` … of a slot as it is stored, with the positions of the longest of the rows, which hold `lengths` tokens; behind a
   * row's own are zeros.
   */
  void read_bytes(StateId id, size_t slot, const std::vector<int64_t>& lengths, size_t from, std::byte* bytes, size_t count);
  /** Fills a part of what `read_bytes` reads, in a state that shares nothing. */
  void write_bytes(StateId id, size_t slot, const std::vector<int64_t>& lengths, size_t from, const std::byte* bytes, size_t count);
  /** Makes row `to_row` of one state a copy of row `from_row` of another, which holds `positions` tokens. */
  void copy_row(StateId from, int64_t from_row, int64_t positions, StateId to, int64_t to_row);

  virtual Memory memory() const = 0;

 protected:
  Session(const OrtLibrary& ort, SessionSpec spec, Interruption& interruption, std::unique_ptr<Device> device);

  /** How many rows, tokens of each and logits of each a call is about. @throws std::logic_error when its parts don't fit */
  struct Extents {
    int64_t batch;
    int64_t tokens;
    int64_t wanted;
  };
  static Extents extents_of(const State& state, const ForwardCall& call);
  size_t logit_count(const ForwardCall& call);

  /** What `forward` does, with room for the call's logits. */
  virtual void run_into(ForwardCall& call, float* logits, size_t count) = 0;

  State& state_of(StateId id);
  SharedTensor make_tensor(ElementType type, std::vector<int64_t> shape);
  void make_room(State& state, const std::vector<int64_t>& used, int64_t tokens);
  Tensor& own(const SlotSpec& spec, Slot& slot, const std::vector<int64_t>& used);
  Tensor& spare(const SlotSpec& spec, Slot& slot);

  const OrtLibrary& ort_;
  const SessionSpec spec_;
  Interruption& interruption_;
  const std::unique_ptr<Device> device_;
  // Before the states: their tensors are counted here until they are gone.
  Tally tally_;

 private:
  SharedTensor resized(const SlotSpec& spec, const Tensor& tensor, int64_t capacity, const std::vector<int64_t>& used);

  std::map<StateId, State> states_;
  StateId next_state_ = 0;
};

/** What an allocator of ONNX Runtime's has handed out, now and at most, and what it has taken to hand out. */
struct ArenaUse {
  size_t now;
  size_t peak;
  size_t reserved;
};
ArenaUse arena_use(const OrtLibrary& ort, const OrtAllocator* allocator);

OrtOwned<OrtAllocator> session_allocator(const OrtLibrary& ort, const OrtSession* session, const OrtMemoryInfo* info);
OrtOwned<OrtIoBinding> make_binding(const OrtLibrary& ort, OrtSession* session);

/** Whether a library of kernels can be registered. @throws std::runtime_error saying why not. */
void check_kernels(const OrtLibrary& ort, const std::string& path);

}  // namespace layerweave
