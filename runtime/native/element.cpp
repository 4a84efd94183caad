#include "element.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>

namespace layerweave {

namespace {

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

constexpr uint32_t kInfinity = 0x7f800000;

uint16_t to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  // Rounding could carry a NaN's payload into the sign; one that lies in the lower half alone must not become infinity.
  if ((bits & 0x7fffffff) > kInfinity) return static_cast<uint16_t>(bits >> 16 | ((bits & 0x7f0000) == 0 ? 0x40 : 0));
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float from_float16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = half >> 10 & 0x1f;
  const uint32_t mantissa = half & 0x3ff;
  if (exponent == 0x1f) return float_of(sign | kInfinity | mantissa << 13);
  if (exponent == 0) return float_of(sign | bits_of(std::ldexp(static_cast<float>(mantissa), -24)));
  return float_of(sign | (exponent + 127 - 15) << 23 | mantissa << 13);
}

uint16_t to_float16(float value) {
  const uint32_t bits = bits_of(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > kInfinity) return static_cast<uint16_t>(sign | 0x7c00 | (magnitude >> 13 & 0x3ff) | ((magnitude & 0x7fe000) == 0 ? 0x200 : 0));
  // Half way between the largest number and what would follow it.
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  // Below 2^-14 the numbers are multiples of 2^-24.
  if (magnitude < 0x38800000) return static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(float_of(magnitude), 24))));
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1) - ((127 - 15) << 23);
  return static_cast<uint16_t>(sign | rounded >> 13);
}

[[noreturn]] void unknown(const std::string& type) { throw std::runtime_error("state can't be of type " + type); }

template <typename To, typename From, typename Convert>
void convert(const void* from, void* to, size_t count, Convert one) {
  for (size_t i = 0; i < count; i++) static_cast<To*>(to)[i] = one(static_cast<const From*>(from)[i]);
}

}  // namespace

ElementType element_type_named(const std::string& name) {
  if (name == "float32") return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  if (name == "float16") return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
  if (name == "bfloat16") return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
  unknown(name);
}

size_t element_bytes(ElementType type) { return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ? 4 : 2; }

void to_float32(ElementType type, const void* from, float* to, size_t count) {
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) std::memcpy(to, from, count * sizeof(float));
  else if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16) convert<float, uint16_t>(from, to, count, from_float16);
  else convert<float, uint16_t>(from, to, count, [](uint16_t value) { return float_of(static_cast<uint32_t>(value) << 16); });
}

void from_float32(ElementType type, const float* from, void* to, size_t count) {
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) std::memcpy(to, from, count * sizeof(float));
  else convert<uint16_t, float>(from, to, count, type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ? to_float16 : to_bfloat16);
}

}  // namespace layerweave
