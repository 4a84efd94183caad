// Runs a compiled model twice, once on the function bodies and once on the registered kernels, over the same ragged batch: a
// prefill, another chunk, and a few single tokens. With the kernels every state is bound to one buffer as input and output, so
// that it is updated in place; with the bodies each run's outputs are the next one's inputs. Prints the largest difference of
// the logits and of the final recurrent states, relative to the largest magnitude, and the seconds each took.
//
//   graph_probe <libonnxruntime> <liblayerweave_ops> <model.onnx> <vocabulary> [threads] [first chunk]
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "onnxruntime_c_api.h"

namespace {

const OrtApi* api;

void check(OrtStatus* status) {
  if (!status) return;
  std::fprintf(stderr, "%s\n", api->GetErrorMessage(status));
  std::exit(1);
}

void* open_or_exit(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    std::fprintf(stderr, "%s\n", dlerror());
    std::exit(1);
  }
  return library;
}

struct Port {
  std::string name;
  ONNXTensorElementDataType type;
  std::vector<int64_t> dims;
  std::vector<std::string> symbols;
};

struct Step {
  int64_t tokens;
  std::vector<int64_t> lengths;
};

constexpr int64_t kBatch = 3, kCapacity = 700;

struct Model {
  OrtSession* session = nullptr;
  std::vector<Port> inputs, outputs;
  OrtAllocator* allocator = nullptr;
  OrtMemoryInfo* memory = nullptr;

  Model(OrtEnv* env, const char* path, const char* ops, int threads) {
    OrtSessionOptions* options;
    check(api->CreateSessionOptions(&options));
    check(api->SetIntraOpNumThreads(options, threads));
    check(api->SetSessionLogSeverityLevel(options, 3));
    if (ops) check(api->RegisterCustomOpsLibrary_V2(options, ops));
    check(api->CreateSession(env, path, options, &session));
    api->ReleaseSessionOptions(options);
    check(api->GetAllocatorWithDefaultOptions(&allocator));
    check(api->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
    size_t count;
    check(api->SessionGetInputCount(session, &count));
    for (size_t i = 0; i < count; ++i) inputs.push_back(port(i, true));
    check(api->SessionGetOutputCount(session, &count));
    for (size_t i = 0; i < count; ++i) outputs.push_back(port(i, false));
  }
  ~Model() {
    api->ReleaseMemoryInfo(memory);
    api->ReleaseSession(session);
  }

  Port port(size_t i, bool input) {
    char* name;
    OrtTypeInfo* type;
    check(input ? api->SessionGetInputName(session, i, allocator, &name) : api->SessionGetOutputName(session, i, allocator, &name));
    check(input ? api->SessionGetInputTypeInfo(session, i, &type) : api->SessionGetOutputTypeInfo(session, i, &type));
    const OrtTensorTypeAndShapeInfo* info;
    check(api->CastTypeInfoToTensorInfo(type, &info));
    Port port{name, ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, {}, {}};
    check(api->GetTensorElementType(info, &port.type));
    size_t rank;
    check(api->GetDimensionsCount(info, &rank));
    port.dims.resize(rank);
    check(api->GetDimensions(info, port.dims.data(), rank));
    std::vector<const char*> symbols(rank);
    check(api->GetSymbolicDimensions(info, symbols.data(), rank));
    for (const char* symbol : symbols) port.symbols.push_back(symbol);
    api->ReleaseTypeInfo(type);
    check(api->AllocatorFree(allocator, name));
    return port;
  }

  template <class T>
  OrtValue* tensor(std::vector<T>& data, const std::vector<int64_t>& shape, ONNXTensorElementDataType type) {
    OrtValue* value;
    check(api->CreateTensorWithDataAsOrtValue(memory, data.data(), data.size() * sizeof(T), shape.data(), shape.size(), type, &value));
    return value;
  }
};

struct Result {
  std::vector<float> logits, states;
  double seconds = 0;
};

Result run(Model& model, const std::vector<Step>& steps, int64_t vocabulary, bool in_place) {
  Result result;
  std::map<std::string, std::vector<float>> states;
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const Port& input : model.inputs) {
    if (input.name.rfind("past_key_values", 0) != 0) continue;
    std::vector<int64_t> shape = input.dims;
    int64_t count = 1;
    for (size_t i = 0; i < shape.size(); ++i) {
      if (shape[i] < 0) shape[i] = input.symbols[i] == "S" ? kCapacity : kBatch;
      count *= shape[i];
    }
    states[input.name].assign(static_cast<size_t>(count), 0.0f);
    shapes[input.name] = shape;
  }
  std::mt19937 random(5);
  std::vector<int64_t> past(kBatch, 0);
  for (const Step& step : steps) {
    std::vector<int64_t> ids(static_cast<size_t>(kBatch * step.tokens)), lengths = step.lengths, indices(kBatch * 2);
    for (int64_t& id : ids) id = static_cast<int64_t>(random() % static_cast<uint32_t>(vocabulary));
    for (int64_t b = 0; b < kBatch; ++b) {
      const int64_t last = std::max<int64_t>(0, lengths[static_cast<size_t>(b)] - 1);
      indices[static_cast<size_t>(2 * b)] = last / 2;
      indices[static_cast<size_t>(2 * b + 1)] = last;
    }
    std::vector<OrtValue*> in, out;
    std::vector<const char*> in_names, out_names;
    std::map<std::string, OrtValue*> by_name;
    for (const Port& input : model.inputs) {
      in_names.push_back(input.name.c_str());
      OrtValue* value;
      if (input.name == "input_ids") value = model.tensor(ids, {kBatch, step.tokens}, input.type);
      else if (input.name == "past_lengths") value = model.tensor(past, {kBatch}, input.type);
      else if (input.name == "lengths") value = model.tensor(lengths, {kBatch}, input.type);
      else if (input.name == "logit_indices") value = model.tensor(indices, {kBatch, 2}, input.type);
      else value = model.tensor(states[input.name], shapes[input.name], input.type);
      by_name[input.name] = value;
      in.push_back(value);
    }
    const auto past_of = [](const std::string& present) { return "past_key_values" + present.substr(std::strlen("present")); };
    for (const Port& output : model.outputs) {
      out_names.push_back(output.name.c_str());
      out.push_back(in_place && output.name != "logits" ? by_name.at(past_of(output.name)) : nullptr);
    }
    const auto start = std::chrono::steady_clock::now();
    check(api->Run(model.session, nullptr, in_names.data(), in.data(), in.size(), out_names.data(), out.size(), out.data()));
    result.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    for (size_t i = 0; i < out.size(); ++i) {
      const std::string& name = model.outputs[i].name;
      float* data;
      check(api->GetTensorMutableData(out[i], reinterpret_cast<void**>(&data)));
      if (name == "logits") {
        // Rows without a token have no logits that mean anything.
        for (int64_t b = 0; b < kBatch; ++b)
          if (lengths[static_cast<size_t>(b)] > 0) result.logits.insert(result.logits.end(), data + b * 2 * vocabulary, data + (b + 1) * 2 * vocabulary);
      } else if (!in_place) {
        std::vector<float>& state = states[past_of(name)];
        std::memcpy(state.data(), data, state.size() * sizeof(float));
      }
      if (name == "logits" || !in_place) api->ReleaseValue(out[i]);
    }
    for (OrtValue* value : in) api->ReleaseValue(value);
    for (size_t b = 0; b < kBatch; ++b) past[b] += lengths[b];
  }
  for (const auto& [name, state] : states)
    if (name.find("_state") != std::string::npos) result.states.insert(result.states.end(), state.begin(), state.end());
  return result;
}

double relative_error(const std::vector<float>& got, const std::vector<float>& want) {
  if (got.size() != want.size()) return INFINITY;
  double error = 0, largest = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double difference = std::abs(static_cast<double>(got[i]) - want[i]);
    if (!(difference <= error)) error = difference;
    largest = std::fmax(largest, std::abs(static_cast<double>(want[i])));
  }
  return want.empty() ? 0 : error / largest;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr, "graph_probe <libonnxruntime> <liblayerweave_ops> <model.onnx> <vocabulary> [threads] [first chunk]\n");
    return 2;
  }
  const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(open_or_exit(argv[1]), "OrtGetApiBase"))();
  api = base->GetApi(ORT_API_VERSION);
  if (!api) {
    std::fprintf(stderr, "the library is %s, the headers are of API %d\n", base->GetVersionString(), ORT_API_VERSION);
    return 1;
  }
  const int threads = argc > 5 ? std::atoi(argv[5]) : 2;
  const int64_t chunk = argc > 6 ? std::atoll(argv[6]) : 37;
  OrtEnv* env;
  check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "graph_probe", &env));
  const std::vector<Step> steps = {{chunk, {chunk, std::min<int64_t>(chunk, 5), 0}}, {12, {1, 12, 7}}, {1, {1, 0, 1}}, {1, {1, 1, 1}}, {3, {3, 2, 0}}};
  Result bodies, kernels;
  {
    Model model(env, argv[3], nullptr, threads);
    bodies = run(model, steps, std::atoll(argv[4]), false);
  }
  {
    Model model(env, argv[3], argv[2], threads);
    kernels = run(model, steps, std::atoll(argv[4]), true);
    const Result copied = run(model, steps, std::atoll(argv[4]), false);
    if (copied.logits != kernels.logits || copied.states != kernels.states) {
      std::fprintf(stderr, "state in place and state copied give different results\n");
      return 1;
    }
  }
  api->ReleaseEnv(env);
  std::printf("{\"logits\":%.3g,\"states\":%.3g,\"bodySeconds\":%.4f,\"kernelSeconds\":%.4f}\n", relative_error(kernels.logits, bodies.logits),
              relative_error(kernels.states, bodies.states), bodies.seconds, kernels.seconds);
  return 0;
}
