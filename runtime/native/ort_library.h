#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <string>

namespace layerweave {

/** An object of ONNX Runtime's, released by the function that its library gives for it. */
template <typename T>
using OrtOwned = std::unique_ptr<T, void (*)(T*)>;

/**
 * ONNX Runtime's core library and its environment. Loaded once per file and kept until the process ends: unloading
 * would take its threads' code away, and onnxruntime-node may use the same copy.
 */
class OrtLibrary {
 public:
  /** @throws std::runtime_error saying why this file is not an ONNX Runtime that can be used. */
  static const OrtLibrary& open(const std::string& path);

  const OrtApi& api() const { return *api_; }
  OrtEnv* env() const { return env_; }
  const std::string& version() const { return version_; }
  /** The folder it was loaded from; it looks there for its execution providers. */
  const std::string& folder() const { return folder_; }

  /** @throws std::runtime_error with the status' message, unless it is null. */
  void check(OrtStatus* status) const;

 private:
  explicit OrtLibrary(const std::string& path);

  const OrtApi* api_ = nullptr;
  OrtEnv* env_ = nullptr;
  std::string version_;
  std::string folder_;
};

}  // namespace layerweave
