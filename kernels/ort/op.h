#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/parallel.h"
#include "onnxruntime_c_api.h"

namespace layerweave::ort {

/// An input or output of an op. Only the last input may be variadic; its tensors may be of different types where its own is
/// undefined.
struct Formal {
  const char* name;
  ONNXTensorElementDataType type;
  OrtCustomOpInputOutputCharacteristic characteristic = INPUT_OUTPUT_REQUIRED;
};

struct Attribute {
  const char* name;
  const char* type;  // "int" or "string"
};

/// What went wrong, for ONNX Runtime's status.
class OpError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

using Shape = std::vector<int64_t>;

std::string print(const Shape& shape);

/// The attributes of a node, while its kernel is made. All attributes of our ops are required.
class NodeInfo {
 public:
  NodeInfo(const OrtApi& api, const OrtKernelInfo* info) : api_(api), info_(info) {}
  int64_t integer(const char* name) const;
  std::string text(const char* name) const;

 private:
  const OrtApi& api_;
  const OrtKernelInfo* info_;
};

template <class T>
struct Input {
  const T* data;
  Shape shape;
};

/// One call of a kernel.
class Call {
 public:
  Call(const OrtApi& api, OrtKernelContext* context) : api_(api), context_(context) {}

  size_t input_count() const;
  /// Whether an optional input is given.
  bool has(size_t index) const;
  ONNXTensorElementDataType element_type(size_t index) const;
  template <class T>
  Input<T> input(size_t index) const {
    const OrtValue* value = input_value(index);
    return {static_cast<const T*>(data_of(value)), shape_of(value)};
  }
  float* output(size_t index, const Shape& shape) const;

  /// Memory of this call, aligned to 64 bytes, from ONNX Runtime's CPU allocator. Null for 0 bytes.
  class Scratch {
   public:
    Scratch(const OrtApi& api, const OrtKernelContext* context, size_t bytes);
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    void* data() const { return data_; }

   private:
    const OrtApi& api_;
    OrtAllocator* allocator_ = nullptr;
    void* data_ = nullptr;
  };
  Scratch scratch(size_t bytes) const { return Scratch(api_, context_, bytes); }

  /// ONNX Runtime's intra-op threads.
  cpu::Parallel parallel() const;

 private:
  const OrtValue* input_value(size_t index) const;
  const void* data_of(const OrtValue* value) const;
  Shape shape_of(const OrtValue* value) const;

  const OrtApi& api_;
  OrtKernelContext* context_;
};

/// A node's kernel. Both may throw.
class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void compute(const Call& call) const = 0;
};

/// All that ONNX Runtime and the tests ask of one op.
struct Definition {
  const char* name;
  std::vector<Formal> inputs, outputs;
  std::vector<Attribute> attributes;
  /// Each output has the shape of this input.
  std::vector<size_t> shaped_like;
  /// ONNX Runtime asks without saying for which op, hence a function: the inputs that outputs may take the place of.
  size_t (*may_inplace)(int** inputs, int** outputs);
  std::unique_ptr<Kernel> (*create)(const NodeInfo&);
};

const Definition& cached_attention();
const Definition& causal_conv();
const Definition& moe();
const Definition& quantized_linear();
const Definition& selective_scan();

/// An OrtCustomOp of a definition, which must outlive it.
class Op : public OrtCustomOp {
 public:
  Op(const Definition& definition, uint32_t api_version);
  const Definition& definition() const { return definition_; }

 private:
  const Definition& definition_;
};

/// Before the first session: shape inference is told nothing of the runtime that asks.
void set_inference_api(const OrtApi* api);

/// Throws unless the condition holds. `shapes` are those of the inputs concerned.
void expect(bool condition, const char* expectation, const std::vector<const Shape*>& shapes);

/// Throws what a kernel says is wrong.
void succeed(const char* wrong);

/// For Definition::may_inplace.
size_t inplace_pairs(std::initializer_list<std::pair<int, int>> input_to_output, int** inputs, int** outputs);

}  // namespace layerweave::ort
