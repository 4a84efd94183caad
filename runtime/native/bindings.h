#pragma once

#include <string>

#include "ort_library.h"

namespace layerweave {

/** Binds tensors for one run; a binding left behind would keep them. */
class Bindings {
 public:
  Bindings(const OrtLibrary& ort, OrtIoBinding* binding) : ort_(ort), binding_(binding) {}
  ~Bindings() {
    ort_.api().ClearBoundInputs(binding_);
    ort_.api().ClearBoundOutputs(binding_);
  }
  Bindings(const Bindings&) = delete;
  Bindings& operator=(const Bindings&) = delete;

  void input(const std::string& name, const OrtValue* value) { ort_.check(ort_.api().BindInput(binding_, name.c_str(), value)); }
  void output(const std::string& name, const OrtValue* value) { ort_.check(ort_.api().BindOutput(binding_, name.c_str(), value)); }

 private:
  const OrtLibrary& ort_;
  OrtIoBinding* binding_;
};

}  // namespace layerweave
