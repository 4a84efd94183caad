#pragma once

#include <chrono>
#include <functional>

#include "bindings.h"
#include "cuda_rates.h"
#include "decode_steps.h"
#include "device_sampler.h"
#include "device_weights.h"
#include "session.h"

namespace layerweave {

using SamplerId = uint32_t;

/**
 * A session on ONNX Runtime's CUDA provider. State keeps its addresses, so that a step of one token can be captured once
 * and repeated: a run computes recurrent state into second buffers, which are copied back when it has succeeded; a
 * captured step updates it where it is.
 */
class CudaSession : public Session {
 public:
  CudaSession(const OrtLibrary& ort, const CudaLibrary& cuda, SessionSpec spec, Interruption& interruption);
  ~CudaSession() override;

  void release_state(StateId id) override;
  std::unique_ptr<float[]> forward(ForwardCall& call, size_t& count) override;
  /** Page-locked memory that any thread may give back, when the session has ended too. */
  PinnedMemory lend(size_t bytes) const;
  Memory memory() const override;

  SamplerId create_sampler(const std::vector<SampledRow>& rows);
  void release_sampler(SamplerId id);
  /** As `forward` of one logit a row, from which the rows in `chosen` are given tokens on the card. @returns DeviceSampler::receive's tokens [B] */
  std::vector<int64_t> forward_sampled(const ForwardCall& call, SamplerId id, const std::vector<bool>& chosen) {
    return forward_sampled(call, id, chosen, [] {});
  }
  /** Steps of `forward_sampled`, each fed what the one before chose, as `decode_steps` says. */
  void decode(const DecodeCall& call, SamplerId id, const std::function<bool()>& stopped, const Delivery& deliver);

  CardRates measure_card() { return layerweave::measure_card(cuda_, compute_type()); }
  /** Of the steps since this was last asked, and the kernels that a step of a state launches. */
  StepTimes step_times(StateId id);

 private:
  /** What a run takes and gives, on the card and page-locked on the host; the same addresses for as long as nothing larger is asked for. */
  class Exchange {
   public:
    explicit Exchange(CudaDevice& device) : device_(device) {}

    void fit(const Extents& extents, int64_t vocab_size);
    /** Sends a call's numbers to the card, in one copy. */
    void send(const ForwardCall& call);
    /** Brings `count` logits back, and waits for everything before. */
    std::unique_ptr<float[]> receive(size_t count);
    /** The same, to page-locked memory. */
    void receive(size_t count, float* logits);
    void bind(const CudaSession& session, Bindings& bindings, const Extents& extents) const;
    /** [B, L, V] of the last run, on the card. */
    const float* logits() const { return reinterpret_cast<const float*>(logits_.card->data()); }
    size_t bytes() const { return inputs_.bytes + logits_.bytes; }

   private:
    struct Buffer {
      size_t bytes = 0;
      PinnedMemory host;
      std::unique_ptr<DeviceMemory> card;
      void fit(CudaDevice& device, size_t wanted);
    };
    /** Where each input begins in the one buffer: ids, past lengths, lengths, logit indices. */
    struct Offsets {
      size_t past_lengths;
      size_t lengths;
      size_t logit_indices;
      size_t end;
    };
    static Offsets offsets_of(const Extents& extents);

    CudaDevice& device_;
    Buffer inputs_;
    Buffer logits_;
    Offsets offsets_{};
  };

  /** A graph that ONNX Runtime captured and holds under a number. */
  class CapturedGraph {
   public:
    CapturedGraph(const OrtLibrary& ort, OrtSession* session, int number) : ort_(ort), session_(session), number_(number) {}
    ~CapturedGraph();
    CapturedGraph(const CapturedGraph&) = delete;
    CapturedGraph& operator=(const CapturedGraph&) = delete;
    int number() const { return number_; }

   private:
    const OrtLibrary& ort_;
    OrtSession* session_;
    int number_;
  };

  /** How a state takes single tokens: the steps so far and, after some, the graph that repeats them. */
  struct Stepping {
    Stepping(const OrtLibrary& ort, OrtSession* session, CudaDevice& device) : binding(make_binding(ort, session)), bindings(ort, binding.get()), exchange(device) {}

    /** Addresses of the state that the graph was captured for. */
    std::vector<const void*> addresses;
    int steps = 0;
    OrtOwned<OrtIoBinding> binding;
    Bindings bindings;
    Exchange exchange;
    std::unique_ptr<CapturedGraph> graph;
  };

  /** Hands a run over to the card, then calls `receive`(what will hold the logits, extents), which waits for it. */
  template <typename Receive>
  void run_and_receive(const ForwardCall& call, Receive receive);
  /** `meanwhile` is called while the card works. */
  std::vector<int64_t> forward_sampled(const ForwardCall& call, SamplerId id, const std::vector<bool>& chosen, const std::function<void()>& meanwhile);
  void run_into(ForwardCall& call, float* logits, size_t count) override;
  Exchange& run_once(State& state, const ForwardCall& call, const Extents& extents);
  Exchange& step(State& state, const ForwardCall& call, const Extents& extents);
  DeviceSampler& sampler_of(SamplerId id);
  void capture(State& state, Stepping& stepping);
  size_t count_launches(State& state, const Extents& extents);
  ElementType compute_type() const;
  void run(OrtIoBinding* binding, int graph);
  void wait_quietly() noexcept;

  CudaDevice& cuda_;
  size_t used_before_;
  const SamplerLibrary sampler_library_;
  std::unique_ptr<DeviceWeights> weights_;
  OrtOwned<OrtSession> session_;
  OrtOwned<OrtAllocator> allocator_;
  OrtOwned<OrtIoBinding> binding_;
  Exchange exchange_;
  int next_graph_ = 1;
  /** The graph number that the run options name. */
  int current_graph_ = 0;
  std::map<StateId, Stepping> stepping_;
  std::map<SamplerId, DeviceSampler> samplers_;
  SamplerId next_sampler_ = 0;
  using Clock = std::chrono::steady_clock;
  /** When the last run was all on its way to the card. */
  Clock::time_point handed_over_;
  StepTimes times_{};
};

}  // namespace layerweave
