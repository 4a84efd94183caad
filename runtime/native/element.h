#pragma once

#include <onnxruntime_c_api.h>

#include <cstddef>
#include <string>

namespace layerweave {

/** Types that state can have: float32, float16, bfloat16. */
using ElementType = ONNXTensorElementDataType;

/** @throws std::runtime_error for another name than those of the manifest's types above */
ElementType element_type_named(const std::string& name);

size_t element_bytes(ElementType type);

/** Widening is exact, and narrowing to the nearest (even) undoes it bit for bit, NaNs included. */
void to_float32(ElementType type, const void* from, float* to, size_t count);
void from_float32(ElementType type, const float* from, void* to, size_t count);

}  // namespace layerweave
