#pragma once

#include "host_weights.h"
#include "session.h"

namespace layerweave {

/** A session on ONNX Runtime's CPU provider. */
class HostSession : public Session {
 public:
  HostSession(const OrtLibrary& ort, SessionSpec spec, Interruption& interruption);

  /** A slot that isn't updated in place is computed into its second buffer, and the two change roles only once the run has succeeded. */
  std::unique_ptr<float[]> forward(ForwardCall& call, size_t& count) override;
  /** The same into memory of the caller's, of exactly that many logits. */
  void forward_into(ForwardCall& call, float* logits, size_t count);
  Memory memory() const override;
  /** The time that JavaScript takes to choose a token and to ask for the next. */
  std::chrono::microseconds patience() const override { return std::chrono::microseconds(200); }

 private:
  size_t logit_count(const ForwardCall& call);
  void run(ForwardCall& call, float* logits);

  const HostWeights weights_;
  OrtOwned<OrtSession> session_;
  OrtOwned<OrtAllocator> allocator_;
  OrtOwned<OrtIoBinding> binding_;
};

}  // namespace layerweave
