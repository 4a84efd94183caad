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
  Memory memory() const override;

 private:
  void run_into(ForwardCall& call, float* logits, size_t count) override;

  const HostWeights weights_;
  OrtOwned<OrtSession> session_;
  OrtOwned<OrtAllocator> allocator_;
  OrtOwned<OrtIoBinding> binding_;
};

}  // namespace layerweave
