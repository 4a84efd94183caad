#include <algorithm>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "op.h"

namespace {

using namespace layerweave::ort;

constexpr const char* kDomain = "ai.layerweave";

/// The first version with all that the ops need: a tensor's shape without a copy came last.
constexpr uint32_t kOldestApi = 24;

/// What must outlive the sessions it was registered for: until this library is unloaded.
struct Registered {
  const OrtApi& api;
  OrtCustomOpDomain* domain = nullptr;
  std::deque<Op> ops;

  explicit Registered(const OrtApi& runtime) : api(runtime) {}
  ~Registered() {
    if (domain) api.ReleaseCustomOpDomain(domain);
  }

  OrtStatus* add_to(OrtSessionOptions* options, uint32_t version) {
    if (OrtStatus* status = api.CreateCustomOpDomain(kDomain, &domain)) return status;
    for (const Definition* definition : definitions()) {
      ops.emplace_back(*definition, version);
      if (OrtStatus* status = api.CustomOpDomain_Add(domain, &ops.back())) return status;
    }
    return api.AddCustomOpDomain(options, domain);
  }
};

std::mutex registering;
std::vector<std::unique_ptr<Registered>> registered;

/// The API version of a runtime: the 29 of 1.29.0.
uint32_t api_version(const OrtApiBase& base) {
  const std::string version = base.GetVersionString();
  const size_t dot = version.find('.');
  return dot == std::string::npos ? 0 : static_cast<uint32_t>(std::atoi(version.c_str() + dot + 1));
}

std::string describe(const std::vector<Formal>& formals, OrtCustomOpInputOutputCharacteristic (*characteristic)(const OrtCustomOp*, size_t), const Op& op) {
  std::string text;
  for (size_t i = 0; i < formals.size(); ++i) {
    static constexpr const char* kinds[] = {"required", "optional", "variadic"};
    text += std::string(i ? "," : "") + "{\"name\":\"" + formals[i].name + "\",\"kind\":\"" + kinds[characteristic(&op, i)] + "\"}";
  }
  return text;
}

}  // namespace

#define LAYERWEAVE_EXPORT extern "C" __attribute__((visibility("default")))

/// Adds this library's kernels to a session. The ops live as long as this library is loaded.
LAYERWEAVE_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const uint32_t running = api_version(*base), version = std::min<uint32_t>(running, ORT_API_VERSION);
  const OrtApi* api = base->GetApi(version);
  if (!api || version < kOldestApi) {
    const std::string message = std::string("ONNX Runtime ") + base->GetVersionString() + " is too old for the ops of " + kDomain + ": 1." + std::to_string(kOldestApi) + " or newer is needed";
    const OrtApi* any = base->GetApi(1);
    return any ? any->CreateStatus(ORT_NOT_IMPLEMENTED, message.c_str()) : nullptr;
  }
  const std::lock_guard<std::mutex> lock(registering);
  set_inference_api(api);
  try {
    registered.push_back(std::make_unique<Registered>(*api));
    return registered.back()->add_to(options, version);
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}

/// The registered ops as JSON, as ONNX Runtime is told of them; for the test that holds them to the compiler's table.
LAYERWEAVE_EXPORT const char* LayerweaveOpTable() {
  static const std::string table = [] {
    std::string text = "{";
    std::set<std::string> told;
    for (const Definition* definition : definitions()) {
      if (!told.insert(definition->name).second) continue;  // the same for other types
      const Op op(*definition, ORT_API_VERSION);
      std::string attributes;
      for (const Attribute& attribute : definition->attributes) attributes += std::string(attributes.empty() ? "" : ",") + "\"" + attribute.name + "\":\"" + attribute.type + "\"";
      text += std::string(text.size() > 1 ? "," : "") + "\"" + kDomain + "::" + op.GetName(&op) + "\":{\"inputs\":[" + describe(definition->inputs, op.GetInputCharacteristic, op) +
              "],\"outputs\":[" + describe(definition->outputs, op.GetOutputCharacteristic, op) + "],\"attributes\":{" + attributes + "}}";
    }
    return text + "}";
  }();
  return table.c_str();
}
