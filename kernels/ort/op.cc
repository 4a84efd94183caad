#include "op.h"

#include <algorithm>
#include <new>

namespace layerweave::ort {

namespace {

void check(const OrtApi& api, OrtStatus* status) {
  if (!status) return;
  const std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  throw OpError(message);
}

const Op& of(const OrtCustomOp* op) { return *static_cast<const Op*>(op); }

/// Runs `body`; what it throws becomes a status that begins with the op's name.
template <class F>
OrtStatus* guarded(const OrtApi& api, const char* op, F&& body) {
  try {
    body();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(ORT_FAIL, (std::string("ai.layerweave::") + op + ": out of memory").c_str());
  } catch (const std::exception& error) {
    return api.CreateStatus(ORT_INVALID_ARGUMENT, (std::string("ai.layerweave::") + op + ": " + error.what()).c_str());
  }
}

struct BoundKernel {
  const OrtApi& api;
  const char* op;
  std::unique_ptr<Kernel> kernel;
};

OrtStatus* ORT_API_CALL create_kernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
  const Definition& definition = of(op).definition();
  return guarded(*api, definition.name, [&] { *kernel = new BoundKernel{*api, definition.name, definition.create(NodeInfo(*api, info))}; });
}

OrtStatus* ORT_API_CALL compute(void* kernel, OrtKernelContext* context) {
  const BoundKernel& bound = *static_cast<BoundKernel*>(kernel);
  return guarded(bound.api, bound.op, [&] { bound.kernel->compute(Call(bound.api, context)); });
}

const OrtApi* inference_api = nullptr;

/// Whether every extent is a number or has a name: ONNX Runtime would take another for the number -1. An unknown rank reads
/// as 0, and none of our ops takes a scalar.
bool known(const OrtApi& api, const OrtTensorTypeAndShapeInfo* info) {
  size_t rank = 0;
  check(api, api.GetDimensionsCount(info, &rank));
  Shape shape(rank);
  std::vector<const char*> names(rank);
  check(api, api.GetDimensions(info, shape.data(), rank));
  check(api, api.GetSymbolicDimensions(info, names.data(), rank));
  for (size_t i = 0; i < rank; ++i)
    if (shape[i] < 0 && !*names[i]) return false;
  return rank > 0;
}

OrtStatus* ORT_API_CALL infer_shapes(const OrtCustomOp* op, OrtShapeInferContext* context) {
  const OrtApi& api = *inference_api;
  const Definition& definition = of(op).definition();
  return guarded(api, definition.name, [&] {
    for (size_t i = 0; i < definition.shaped_like.size(); ++i) {
      OrtTensorTypeAndShapeInfo* info = nullptr;  // the context's own
      check(api, api.ShapeInferContext_GetInputTypeShape(context, definition.shaped_like[i], &info));
      if (known(api, info)) check(api, api.ShapeInferContext_SetOutputTypeShape(context, i, info));
    }
  });
}

}  // namespace

std::string print(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

void expect(bool condition, const char* expectation, const std::vector<const Shape*>& shapes) {
  if (condition) return;
  std::string text = std::string("expected ") + expectation + "; got ";
  for (size_t i = 0; i < shapes.size(); ++i) text += (i ? ", " : "") + print(*shapes[i]);
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
  check(api_, api_.KernelInfoGetAttribute_int64(info_, name, &value));
  return value;
}

std::string NodeInfo::text(const char* name) const {
  size_t size = 0;  // with the closing zero
  check(api_, api_.KernelInfoGetAttribute_string(info_, name, nullptr, &size));
  std::string value(size, '\0');
  check(api_, api_.KernelInfoGetAttribute_string(info_, name, value.data(), &size));
  value.resize(size - 1);
  return value;
}

size_t Call::input_count() const {
  size_t count = 0;
  check(api_, api_.KernelContext_GetInputCount(context_, &count));
  return count;
}

bool Call::has(size_t index) const {
  const OrtValue* value = nullptr;
  check(api_, api_.KernelContext_GetInput(context_, index, &value));
  return value != nullptr;
}

const OrtValue* Call::input_value(size_t index) const {
  const OrtValue* value = nullptr;
  check(api_, api_.KernelContext_GetInput(context_, index, &value));
  if (!value) throw OpError("input " + std::to_string(index) + " is missing");
  return value;
}

const void* Call::data_of(const OrtValue* value) const {
  void* data = nullptr;
  check(api_, api_.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  return data;
}

ONNXTensorElementDataType Call::element_type(size_t index) const {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api_, api_.GetTensorTypeAndShape(input_value(index), &info));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> owned(info, api_.ReleaseTensorTypeAndShapeInfo);
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  check(api_, api_.GetTensorElementType(info, &type));
  return type;
}

Shape Call::shape_of(const OrtValue* value) const {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api_, api_.GetTensorTypeAndShape(value, &info));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> owned(info, api_.ReleaseTensorTypeAndShapeInfo);
  size_t rank = 0;
  check(api_, api_.GetDimensionsCount(info, &rank));
  Shape shape(rank);
  check(api_, api_.GetDimensions(info, shape.data(), rank));
  return shape;
}

float* Call::output(size_t index, const Shape& shape) const {
  OrtValue* value = nullptr;
  check(api_, api_.KernelContext_GetOutput(context_, index, shape.data(), shape.size(), &value));
  void* data = nullptr;
  check(api_, api_.GetTensorMutableData(value, &data));
  return static_cast<float*>(data);
}

Call::Scratch::Scratch(const OrtApi& api, const OrtKernelContext* context, size_t bytes) : api_(api) {
  if (!bytes) return;
  OrtMemoryInfo* memory = nullptr;
  check(api, api.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  const std::unique_ptr<OrtMemoryInfo, void (*)(OrtMemoryInfo*)> owned(memory, api.ReleaseMemoryInfo);
  check(api, api.KernelContext_GetAllocator(context, memory, &allocator_));
  if (OrtStatus* status = api.AllocatorAlloc(allocator_, bytes, &data_)) {
    api.ReleaseAllocator(allocator_);
    check(api, status);
  }
}

Call::Scratch::~Scratch() {
  if (!allocator_) return;
  if (OrtStatus* status = api_.AllocatorFree(allocator_, data_)) api_.ReleaseStatus(status);
  api_.ReleaseAllocator(allocator_);
}

cpu::Parallel Call::parallel() const {
  const auto run = [](void* self, cpu::Parallel::Body body, void* data, size_t count) {
    const Call& call = *static_cast<const Call*>(self);
    // As many batches as tasks: a thread takes the next one when it is done with one.
    check(call.api_, call.api_.KernelContext_ParallelFor(call.context_, body, count, count, data));
  };
  return {run, const_cast<Call*>(this)};
}

Op::Op(const Definition& definition, uint32_t api_version) : OrtCustomOp{}, definition_(definition) {
  version = api_version;
  GetName = [](const OrtCustomOp* op) { return of(op).definition().name; };
  GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
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
