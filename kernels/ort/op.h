#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

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
  const char* type;  // "int", "float" or "string"
};

/// What went wrong, for ONNX Runtime's status.
class OpError : public std::runtime_error {
 public:
  explicit OpError(const std::string& message, OrtErrorCode code = ORT_INVALID_ARGUMENT) : std::runtime_error(message), code(code) {}
  const OrtErrorCode code;
};

/// Throws what a status says is wrong, and releases it.
void check(const OrtApi& api, OrtStatus* status);

/// The extents of a tensor. They lie here and not on the heap: ops with a hundred inputs look at each in every call.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> extents) : Shape(extents.begin(), extents.size()) {}
  Shape(const int64_t* extents, size_t rank);
  size_t size() const { return rank_; }
  bool empty() const { return rank_ == 0; }
  int64_t operator[](size_t axis) const { return extents_[axis]; }
  const int64_t* data() const { return extents_.data(); }
  bool operator==(const Shape& other) const;
  bool operator!=(const Shape& other) const { return !(*this == other); }

 private:
  static constexpr size_t kMostAxes = 4;
  std::array<int64_t, kMostAxes> extents_{};
  size_t rank_ = 0;
};

std::string print(const Shape& shape);

/// A tensor's elements, which stay ONNX Runtime's.
struct Tensor {
  ONNXTensorElementDataType type;
  const void* data;
  Shape shape;
};

/// A node while its kernel is made. All attributes of our ops are required.
class NodeInfo {
 public:
  NodeInfo(const OrtApi& api, const OrtKernelInfo* info) : api(api), info(info) {}
  int64_t integer(const char* name) const;
  float real(const char* name) const;
  std::string text(const char* name) const;
  std::string node_name() const;
  ONNXTensorElementDataType input_type(size_t index) const;
  size_t input_count() const;
  /// An input that is the same in every call, and stays where it is; null where it isn't.
  std::optional<Tensor> constant(size_t index) const;

  const OrtApi& api;
  const OrtKernelInfo* const info;
};

template <class T>
struct Input {
  const T* data;
  Shape shape;
};

/// One call of a kernel.
class Call {
 public:
  Call(const OrtApi& api, OrtKernelContext* context) : api(api), context(context) {}

  size_t input_count() const;
  /// Whether an optional input is given.
  bool has(size_t index) const;
  ONNXTensorElementDataType element_type(size_t index) const { return tensor(index).type; }
  Tensor tensor(size_t index) const;
  template <class T>
  Input<T> input(size_t index) const {
    const Tensor given = tensor(index);
    return {static_cast<const T*>(given.data), given.shape};
  }
  template <class T>
  T* output(size_t index, const Shape& shape) const {
    return static_cast<T*>(output_data(index, shape));
  }

  const OrtApi& api;
  OrtKernelContext* const context;

 private:
  void* output_data(size_t index, const Shape& shape) const;
};

/// A node's kernel. Both may throw.
class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void compute(const Call& call) const = 0;
};

/// The number of an attribute, times the extent of an input's axis; either may be left out.
struct Extent {
  const char* attribute = nullptr;
  std::optional<std::pair<size_t, size_t>> input_axis;
};

/// The type and shape of an input, or all of it but the last extent.
struct OutputShape {
  size_t like;
  std::optional<Extent> last;

  OutputShape(size_t like, std::optional<Extent> last = std::nullopt) : like(like), last(last) {}
};

/// All that ONNX Runtime and the tests ask of one op. Definitions of one name differ in nothing but types.
struct Definition {
  const char* name;
  const char* provider;  // ONNX Runtime's execution provider; null is the CPU's
  std::vector<Formal> inputs, outputs;
  std::vector<Attribute> attributes;
  /// Of each output, or empty where shapes are not inferred.
  std::vector<OutputShape> shapes;
  /// ONNX Runtime asks without saying for which op, hence a function: the inputs that outputs may take the place of.
  size_t (*may_inplace)(int** inputs, int** outputs);
  std::unique_ptr<Kernel> (*create)(const NodeInfo&);
};

/// The ops of this library.
const std::vector<const Definition*>& definitions();

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
void expect(bool condition, const char* expectation, std::initializer_list<const Shape*> shapes);

/// Throws what a kernel says is wrong.
void succeed(const char* wrong);

/// For Definition::may_inplace.
size_t inplace_pairs(std::initializer_list<std::pair<int, int>> input_to_output, int** inputs, int** outputs);

}  // namespace layerweave::ort
