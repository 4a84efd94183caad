#include "op.h"

#include <algorithm>
#include <new>

namespace layerweave::ort {

void check(const OrtApi& api, OrtStatus* status) {
  if (!status) return;
  const OpError error(api.GetErrorMessage(status), api.GetErrorCode(status));
  api.ReleaseStatus(status);
  throw error;
}

namespace {

const Op& of(const OrtCustomOp* op) { return *static_cast<const Op*>(op); }

/// An op, and a node of it where there is one with a name, for messages.
std::string describe(const char* op, const std::string& node) { return std::string("ai.layerweave::") + op + (node.empty() ? "" : " (" + node + ")"); }

/// Runs `body`; what it throws becomes a status that begins with the op's name, and the node's.
template <class F>
OrtStatus* guarded(const OrtApi& api, const char* op, const std::string& node, F&& body) {
  const auto status = [&](OrtErrorCode code, const std::string& message) { return api.CreateStatus(code, (describe(op, node) + ": " + message).c_str()); };
  try {
    body();
    return nullptr;
  } catch (const OpError& error) {
    return status(error.code, error.what());
  } catch (const std::bad_alloc&) {
    return status(ORT_FAIL, "out of memory");
  } catch (const std::exception& error) {
    return status(ORT_FAIL, error.what());
  }
}

struct BoundKernel {
  const OrtApi& api;
  const char* op;
  std::string node;
  std::unique_ptr<Kernel> kernel;
};

OrtStatus* ORT_API_CALL create_kernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
  const Definition& definition = of(op).definition();
  const NodeInfo node(*api, info);
  std::string name;
  if (OrtStatus* status = guarded(*api, definition.name, name, [&] { name = node.node_name(); })) return status;
  return guarded(*api, definition.name, name, [&] { *kernel = new BoundKernel{*api, definition.name, name, definition.create(node)}; });
}

OrtStatus* ORT_API_CALL compute(void* kernel, OrtKernelContext* context) {
  const BoundKernel& bound = *static_cast<BoundKernel*>(kernel);
  return guarded(bound.api, bound.op, bound.node, [&] { bound.kernel->compute(Call(bound.api, context)); });
}

const OrtApi* inference_api = nullptr;

/// A tensor's type and shape as shape inference has it.
struct KnownShape {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> extents;    // -1 where only a name is known
  std::vector<const char*> names;  // "" where there is a number

  KnownShape(const OrtApi& api, const OrtShapeInferContext* context, size_t input) {
    OrtTensorTypeAndShapeInfo* info = nullptr;  // the context's own
    check(api, api.ShapeInferContext_GetInputTypeShape(context, input, &info));
    check(api, api.GetTensorElementType(info, &type));
    size_t rank = 0;
    check(api, api.GetDimensionsCount(info, &rank));
    extents.resize(rank);
    names.resize(rank);
    check(api, api.GetDimensions(info, extents.data(), rank));
    check(api, api.GetSymbolicDimensions(info, names.data(), rank));
  }

  bool knows(size_t axis) const { return axis < extents.size() && (extents[axis] >= 0 || *names[axis]); }

  /// ONNX Runtime would take an extent without a name for the number -1. An unknown rank reads as 0, and none of our ops
  /// takes a scalar.
  bool complete() const {
    for (size_t axis = 0; axis < extents.size(); ++axis)
      if (!knows(axis)) return false;
    return !extents.empty();
  }
};

int64_t integer_attribute(const OrtApi& api, const OrtShapeInferContext* context, const char* name) {
  const OrtOpAttr* attribute = nullptr;
  check(api, api.ShapeInferContext_GetAttribute(context, name, &attribute));
  int64_t value = 0;
  size_t bytes = sizeof value;
  check(api, api.ReadOpAttr(attribute, ORT_OP_ATTR_INT, &value, sizeof value, &bytes));
  return value;
}

/// The type of an output, and its shape, incomplete where it can't be told.
KnownShape output_shape(const OrtApi& api, const OrtShapeInferContext* context, const OutputShape& rule) {
  KnownShape shape(api, context, rule.like);
  if (!rule.last || shape.extents.empty()) return shape;
  int64_t extent = 1;
  const char* name = "";
  if (rule.last->input_axis) {
    const auto [input, axis] = *rule.last->input_axis;
    const KnownShape of(api, context, input);
    const bool is_number = of.knows(axis) && of.extents[axis] >= 0;
    extent = is_number ? of.extents[axis] : -1;
    // A name times an attribute has no name.
    if (!is_number && of.knows(axis) && !rule.last->attribute) name = of.names[axis];
  }
  if (rule.last->attribute && extent >= 0) extent *= integer_attribute(api, context, rule.last->attribute);
  shape.extents.back() = extent;
  shape.names.back() = name;
  return shape;
}

OrtStatus* ORT_API_CALL infer_shapes(const OrtCustomOp* op, OrtShapeInferContext* context) {
  const OrtApi& api = *inference_api;
  const Definition& definition = of(op).definition();
  return guarded(api, definition.name, "", [&] {
    for (size_t i = 0; i < definition.shapes.size(); ++i) {
      KnownShape shape = output_shape(api, context, definition.shapes[i]);
      if (!shape.complete()) continue;
      OrtTensorTypeAndShapeInfo* info = nullptr;
      check(api, api.CreateTensorTypeAndShapeInfo(&info));
      const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> owned(info, api.ReleaseTensorTypeAndShapeInfo);
      check(api, api.SetTensorElementType(info, shape.type));
      check(api, api.SetDimensions(info, shape.extents.data(), shape.extents.size()));
      check(api, api.SetSymbolicDimensions(info, shape.names.data(), shape.names.size()));
      check(api, api.ShapeInferContext_SetOutputTypeShape(context, i, info));
    }
  });
}

Tensor tensor_of(const OrtApi& api, const OrtValue* value) {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  const int64_t* extents = nullptr;
  size_t rank = 0;
  check(api, api.GetTensorElementTypeAndShapeDataReference(value, &type, &extents, &rank));
  void* data = nullptr;
  check(api, api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  return {type, data, {extents, rank}};
}

}  // namespace

Shape::Shape(const int64_t* extents, size_t rank) : rank_(rank) {
  if (rank > kMostAxes) throw OpError("expected tensors of at most " + std::to_string(kMostAxes) + " axes; got " + std::to_string(rank));
  std::copy_n(extents, rank, extents_.begin());
}

bool Shape::operator==(const Shape& other) const { return rank_ == other.rank_ && std::equal(data(), data() + rank_, other.data()); }

std::string print(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

void expect(bool condition, const char* expectation, std::initializer_list<const Shape*> shapes) {
  if (condition) return;
  std::string text = std::string("expected ") + expectation + "; got ";
  for (const Shape* const* shape = shapes.begin(); shape != shapes.end(); ++shape) text += (shape != shapes.begin() ? ", " : "") + print(**shape);
  throw OpError(text);
}

void succeed(const char* wrong) {
  if (wrong) throw OpError(wrong);
}

size_t inplace_pairs(std::initializer_list<std::pair<int, int>> input_to_output, int** inputs, int** outputs) {
  *inputs = new (std::nothrow) int[input_to_output.size()];
  *outputs = new (std::nothrow) int[input_to_output.size()];
  if (!*inputs || !*outputs) return 0;
  size_t i = 0;
  for (const auto& [input, output] : input_to_output) {
    (*inputs)[i] = input;
    (*outputs)[i++] = output;
  }
  return i;
}

int64_t NodeInfo::integer(const char* name) const {
  int64_t value = 0;
  check(api, api.KernelInfoGetAttribute_int64(info, name, &value));
  return value;
}

std::string NodeInfo::text(const char* name) const {
  size_t size = 0;  // with the closing zero
  check(api, api.KernelInfoGetAttribute_string(info, name, nullptr, &size));
  std::string value(size, '\0');
  check(api, api.KernelInfoGetAttribute_string(info, name, value.data(), &size));
  value.resize(size - 1);
  return value;
}

float NodeInfo::real(const char* name) const {
  float value = 0;
  check(api, api.KernelInfoGetAttribute_float(info, name, &value));
  return value;
}

std::string NodeInfo::node_name() const {
  size_t size = 0;  // with the closing zero
  check(api, api.KernelInfo_GetNodeName(info, nullptr, &size));
  std::string name(size, '\0');
  check(api, api.KernelInfo_GetNodeName(info, name.data(), &size));
  name.resize(size - 1);
  return name;
}

ONNXTensorElementDataType NodeInfo::input_type(size_t index) const {
  OrtTypeInfo* type = nullptr;
  check(api, api.KernelInfo_GetInputTypeInfo(info, index, &type));
  const std::unique_ptr<OrtTypeInfo, void (*)(OrtTypeInfo*)> owned(type, api.ReleaseTypeInfo);
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  check(api, api.CastTypeInfoToTensorInfo(type, &tensor));
  ONNXTensorElementDataType element = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  check(api, api.GetTensorElementType(tensor, &element));
  return element;
}

size_t NodeInfo::input_count() const {
  size_t count = 0;
  check(api, api.KernelInfo_GetInputCount(info, &count));
  return count;
}

std::optional<Tensor> NodeInfo::constant(size_t index) const {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  check(api, api.KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value));
  return is_constant ? std::optional(tensor_of(api, value)) : std::nullopt;
}

size_t Call::input_count() const {
  size_t count = 0;
  check(api, api.KernelContext_GetInputCount(context, &count));
  return count;
}

bool Call::has(size_t index) const {
  const OrtValue* value = nullptr;
  check(api, api.KernelContext_GetInput(context, index, &value));
  return value != nullptr;
}

Tensor Call::tensor(size_t index) const {
  const OrtValue* value = nullptr;
  check(api, api.KernelContext_GetInput(context, index, &value));
  if (!value) throw OpError("input " + std::to_string(index) + " is missing");
  return tensor_of(api, value);
}

void* Call::output_data(size_t index, const Shape& shape) const {
  OrtValue* value = nullptr;
  check(api, api.KernelContext_GetOutput(context, index, shape.data(), shape.size(), &value));
  void* data = nullptr;
  check(api, api.GetTensorMutableData(value, &data));
  return data;
}

Op::Op(const Definition& definition, uint32_t api_version) : OrtCustomOp{}, definition_(definition) {
  version = api_version;
  GetName = [](const OrtCustomOp* op) { return of(op).definition().name; };
  GetExecutionProviderType = [](const OrtCustomOp* op) { return of(op).definition().provider; };
  GetInputTypeCount = [](const OrtCustomOp* op) { return of(op).definition().inputs.size(); };
  GetInputType = [](const OrtCustomOp* op, size_t i) { return of(op).definition().inputs[i].type; };
  GetInputCharacteristic = [](const OrtCustomOp* op, size_t i) { return of(op).definition().inputs[i].characteristic; };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  GetVariadicInputHomogeneity = [](const OrtCustomOp* op) { return of(op).definition().inputs.back().type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED ? 0 : 1; };
  GetOutputTypeCount = [](const OrtCustomOp* op) { return of(op).definition().outputs.size(); };
  GetOutputType = [](const OrtCustomOp* op, size_t i) { return of(op).definition().outputs[i].type; };
  GetOutputCharacteristic = [](const OrtCustomOp* op, size_t i) { return of(op).definition().outputs[i].characteristic; };
  GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  CreateKernelV2 = create_kernel;
  KernelComputeV2 = compute;
  KernelDestroy = [](void* kernel) { delete static_cast<BoundKernel*>(kernel); };
  InferOutputShapeFn = infer_shapes;
  GetStartVersion = [](const OrtCustomOp*) { return 1; };
  GetEndVersion = [](const OrtCustomOp*) { return 1; };
  if (definition.may_inplace) {
    GetMayInplace = definition.may_inplace;
    ReleaseMayInplace = [](int* inputs, int* outputs) {
      delete[] inputs;
      delete[] outputs;
    };
  }
}

void set_inference_api(const OrtApi* api) { inference_api = api; }

}  // namespace layerweave::ort
