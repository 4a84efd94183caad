#pragma once

#include "../op.h"
#include "cpu/parallel.h"

namespace layerweave::ort {

/// Memory of one call, aligned to 64 bytes, from ONNX Runtime's CPU allocator. Null for 0 bytes.
class Scratch {
 public:
  Scratch(const Call& call, size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const { return data_; }

 private:
  const OrtApi& api_;
  OrtAllocator* allocator_ = nullptr;
  void* data_ = nullptr;
};

/// ONNX Runtime's intra-op threads, for the length of the call.
cpu::Parallel parallel(const Call& call);

const Definition& cached_attention();
const Definition& causal_conv();
const Definition& gated_mlp();
const Definition& mamba_inner();
const Definition& moe();
const Definition& quantized_linear();
const Definition& selective_scan();

}  // namespace layerweave::ort
