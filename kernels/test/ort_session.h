#pragma once

#include <dlfcn.h>

#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "device.h"
#include "onnxruntime_c_api.h"

namespace layerweave {

struct Tensor {
  std::string name;
  ONNXTensorElementDataType type;
  std::vector<int64_t> shape;
  std::vector<unsigned char> bytes;  // empty for an output

  size_t size() const {
    size_t count = 1;
    for (const int64_t extent : shape) count *= static_cast<size_t>(extent);
    switch (type) {
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
        return count;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
        return count * 4;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
        return count * 8;
      default:
        return count * 2;
    }
  }
};

/// A graph of one node, its weights constant.
struct Model {
  std::string op, node;
  std::vector<std::pair<std::string, std::variant<int64_t, float, std::string>>> attributes;
  std::vector<std::string> node_inputs;  // "" for an absent one
  std::vector<Tensor> inputs, constants, outputs;
  std::map<std::string, std::string> in_place;  // present → past
  std::string domain = "ai.layerweave";
};

/// A protobuf message, as far as ONNX needs it.
class Message {
 public:
  Message& number(int field, uint64_t value) {
    varint(static_cast<uint64_t>(field) << 3);
    varint(value);
    return *this;
  }
  Message& real(int field, float value) {
    varint(static_cast<uint64_t>(field) << 3 | 5);
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Message& text(int field, const std::string& value) {
    varint(static_cast<uint64_t>(field) << 3 | 2);
    varint(value.size());
    bytes_ += value;
    return *this;
  }
  Message& message(int field, const Message& value) { return text(field, value.bytes_); }
  const std::string& bytes() const { return bytes_; }

 private:
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>(value | 0x80);
    bytes_ += static_cast<char>(value);
  }
  std::string bytes_;
};

inline Message value_info(const Tensor& tensor) {
  Message shape;
  for (const int64_t extent : tensor.shape) shape.message(1, Message().number(1, static_cast<uint64_t>(extent)));
  return Message().text(1, tensor.name).message(2, Message().message(1, Message().number(1, tensor.type).message(2, shape)));
}

/// The model as ONNX (ModelProto).
inline std::string encode_onnx(const Model& model) {
  Message node, graph;
  for (const std::string& name : model.node_inputs) node.text(1, name);
  for (const Tensor& tensor : model.outputs) node.text(2, tensor.name);
  node.text(3, model.node).text(4, model.op).text(7, model.domain);
  for (const auto& [name, value] : model.attributes) {
    Message attribute;
    attribute.text(1, name);
    if (const auto* text = std::get_if<std::string>(&value)) attribute.text(4, *text).number(20, 3);
    else if (const auto* real = std::get_if<float>(&value)) attribute.real(2, *real).number(20, 1);
    else attribute.number(3, static_cast<uint64_t>(std::get<int64_t>(value))).number(20, 2);
    node.message(5, attribute);
  }
  graph.message(1, node).text(2, "op");
  for (const Tensor& tensor : model.constants) {
    Message constant;
    for (const int64_t extent : tensor.shape) constant.number(1, static_cast<uint64_t>(extent));
    graph.message(5, constant.number(2, tensor.type).text(8, tensor.name).text(9, std::string(tensor.bytes.begin(), tensor.bytes.end())));
  }
  for (const Tensor& tensor : model.inputs) graph.message(11, value_info(tensor));
  for (const Tensor& tensor : model.outputs) graph.message(12, value_info(tensor));
  return Message().number(1, 10).message(7, graph).message(8, Message().text(1, "").number(2, 23)).message(8, Message().text(1, model.domain).number(2, 1)).bytes();
}

/// ONNX Runtime, with our library of CUDA ops, or without where its path is "". What fails throws its message.
class Runtime {
 public:
  Runtime(const std::string& library, const std::string& ops) : ops_(ops) {
    void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) throw std::runtime_error(dlerror());
    const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"))();
    version = base->GetVersionString();
    api = base->GetApi(ORT_API_VERSION);
    if (!api) throw std::runtime_error(library + " is " + version + ", the headers are of API " + std::to_string(ORT_API_VERSION));
    check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "layerweave", &env));
  }

  void check(OrtStatus* status) const {
    if (!status) return;
    const std::string message = api->GetErrorMessage(status);
    api->ReleaseStatus(status);
    throw std::runtime_error(message);
  }

  /// The CUDA provider is left out where there is no stream.
  OrtSession* open(const Model& model, cudaStream_t stream, bool capture) const {
    OrtSessionOptions* options;
    check(api->CreateSessionOptions(&options));
    const std::unique_ptr<OrtSessionOptions, void (*)(OrtSessionOptions*)> owned(options, api->ReleaseSessionOptions);
    check(api->SetSessionGraphOptimizationLevel(options, ORT_DISABLE_ALL));
    if (!ops_.empty()) check(api->RegisterCustomOpsLibrary_V2(options, ops_.c_str()));
    if (stream) {
      OrtCUDAProviderOptionsV2* cuda;
      check(api->CreateCUDAProviderOptions(&cuda));
      const std::unique_ptr<OrtCUDAProviderOptionsV2, void (*)(OrtCUDAProviderOptionsV2*)> owned_cuda(cuda, api->ReleaseCUDAProviderOptions);
      const char* keys[] = {"enable_cuda_graph"};
      const char* values[] = {capture ? "1" : "0"};
      check(api->UpdateCUDAProviderOptions(cuda, keys, values, 1));
      check(api->UpdateCUDAProviderOptionsWithValue(cuda, "user_compute_stream", stream));
      check(api->SessionOptionsAppendExecutionProvider_CUDA_V2(options, cuda));
    }
    const std::string bytes = encode_onnx(model);
    OrtSession* session;
    check(api->CreateSessionFromArray(env, bytes.data(), bytes.size(), options, &session));
    return session;
  }

  std::string version;
  const OrtApi* api;
  OrtEnv* env;

 private:
  const std::string ops_;
};

/// A session of a model with every input and output in device memory of ours, at addresses that stay.
class Session {
 public:
  Session(const Runtime& runtime, const Model& model, cudaStream_t stream, bool capture, bool in_place)
      : runtime_(runtime), session_(runtime.open(model, stream, capture)) {
    const OrtApi& api = *runtime.api;
    runtime_.check(api.CreateMemoryInfo("Cuda", OrtDeviceAllocator, 0, OrtMemTypeDefault, &memory_));
    runtime_.check(api.CreateIoBinding(session_, &binding_));
    for (const Tensor& tensor : model.inputs) bind(tensor, tensor.name, true);
    for (const Tensor& tensor : model.outputs) bind(tensor, in_place && model.in_place.count(tensor.name) ? model.in_place.at(tensor.name) : tensor.name, false);
  }
  ~Session() {
    const OrtApi& api = *runtime_.api;
    api.ReleaseIoBinding(binding_);
    for (OrtValue* value : values_) api.ReleaseValue(value);
    api.ReleaseMemoryInfo(memory_);
    api.ReleaseSession(session_);
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// Outputs after a run on these inputs, by name; whatever was in the buffers is overwritten first.
  std::map<std::string, std::vector<unsigned char>> run(const std::vector<Tensor>& inputs) {
    for (auto& [name, buffer] : buffers_) buffer.fill(0xff);
    for (const Tensor& tensor : inputs) CUDA_CHECK(cudaMemcpy(buffers_.at(tensor.name).data(), tensor.bytes.data(), tensor.size(), cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaDeviceSynchronize());
    enqueue(nullptr);
    CUDA_CHECK(cudaDeviceSynchronize());
    std::map<std::string, std::vector<unsigned char>> outputs;
    for (const auto& [name, buffer] : outputs_) outputs[name] = download(buffers_.at(buffer));
    return outputs;
  }

  void enqueue(const OrtRunOptions* options) { runtime_.check(runtime_.api->RunWithBinding(session_, options, binding_)); }
  /// The memory of an input or output.
  const DeviceBuffer& buffer(const std::string& name) const { return buffers_.at(name); }

 private:
  void bind(const Tensor& tensor, const std::string& buffer, bool input) {
    const OrtApi& api = *runtime_.api;
    DeviceBuffer& memory = buffers_.try_emplace(buffer, tensor.size()).first->second;
    OrtValue* value;
    runtime_.check(api.CreateTensorWithDataAsOrtValue(memory_, memory.data(), tensor.size(), tensor.shape.data(), tensor.shape.size(), tensor.type, &value));
    values_.push_back(value);
    if (!input) outputs_[tensor.name] = buffer;
    runtime_.check(input ? api.BindInput(binding_, tensor.name.c_str(), value) : api.BindOutput(binding_, tensor.name.c_str(), value));
  }

  const Runtime& runtime_;
  OrtSession* session_;
  OrtMemoryInfo* memory_ = nullptr;
  OrtIoBinding* binding_ = nullptr;
  std::vector<OrtValue*> values_;
  std::map<std::string, DeviceBuffer> buffers_;
  std::map<std::string, std::string> outputs_;
};

}  // namespace layerweave
