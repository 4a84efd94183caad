#include "ort_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>

namespace layerweave {

const OrtLibrary& OrtLibrary::open(const std::string& path) {
  // Node loads an addon once per process, whichever of its threads asks.
  static std::mutex mutex;
  static auto& libraries = *new std::map<std::string, std::unique_ptr<OrtLibrary>>;
  const std::lock_guard<std::mutex> lock(mutex);
  auto& library = libraries[path];
  if (!library) library.reset(new OrtLibrary(path));
  return *library;
}

OrtLibrary::OrtLibrary(const std::string& path) : folder_(path.substr(0, path.find_last_of('/'))) {
  // ONNX Runtime reports to its maker, and writes an id and a database for it, unless this is set before it is loaded.
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  std::unique_ptr<void, int (*)(void*)> handle(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL), dlclose);
  if (!handle) throw std::runtime_error(dlerror());
  using GetApiBase = const OrtApiBase* (*)();
  const auto get_api_base = reinterpret_cast<GetApiBase>(dlsym(handle.get(), "OrtGetApiBase"));
  if (!get_api_base) throw std::runtime_error(path + " is no ONNX Runtime: it lacks the symbol OrtGetApiBase");
  const OrtApiBase* base = get_api_base();
  version_ = base->GetVersionString();
  api_ = base->GetApi(ORT_API_VERSION);
  if (!api_)
    throw std::runtime_error(path + " is ONNX Runtime " + version_ + ", which does not offer version " +
                             std::to_string(ORT_API_VERSION) + " of the C API");
  // The first environment of a process decides about logging; whoever makes it, errors reach us as statuses.
  check(api_->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "layerweave", &env_));
  // From here on for good. A library that was refused goes: whoever asked for its name next would get it.
  handle.release();
}

void OrtLibrary::check(OrtStatus* status) const {
  if (!status) return;
  const std::string message = api_->GetErrorMessage(status);
  api_->ReleaseStatus(status);
  throw std::runtime_error(message);
}

}  // namespace layerweave
