// Writes packed-vectors.json, what kernels/include/packed_weights.h makes of the matrices of pack.test.ts:
//   g++ -std=c++17 -I kernels/include test/cuda-lowering/packed-vectors.cc -o build/packed-vectors && build/packed-vectors > test/cuda-lowering/packed-vectors.json
#include <cinttypes>
#include <cstdio>
#include <vector>

#include "packed_weights.h"

using namespace layerweave;

template <class Element>
Element element(int64_t row, int64_t column) {
  if (sizeof(Element) == 1) return static_cast<Element>(column == 0 ? 127 : (row * 31 + column * 17) % 255 - 127);
  return static_cast<Element>((row * 1031 + column * 7 + 1) & 0xffff);
}

template <class Element>
std::vector<Element> matrix(int64_t rows, int64_t columns, int64_t first_row) {
  std::vector<Element> out;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) out.push_back(element<Element>(first_row + r, c));
  return out;
}

constexpr int64_t kFirstUpRow = 1000;

template <class Element>
void print(const char* dtype, PackedType type, int64_t rows, int64_t columns, bool gated, bool last) {
  std::vector<Element> packed(packed_elements(gated ? packed_pair_rows(rows) : rows, columns));
  const auto first = matrix<Element>(rows, columns, 0), second = matrix<Element>(rows, columns, kFirstUpRow);
  if (gated) {
    pack_rows(type, first.data(), rows, columns, packed_gate_row, packed.data());
    pack_rows(type, second.data(), rows, columns, packed_up_row, packed.data());
  } else {
    pack_rows(type, first.data(), rows, columns, [](int64_t row) { return row; }, packed.data());
  }
  uint64_t hash = 0xcbf29ce484222325u;
  const auto* bytes = reinterpret_cast<const uint8_t*>(packed.data());
  for (size_t i = 0; i < packed.size() * sizeof(Element); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3u;
  std::printf("  {\"dtype\": \"%s\", \"layout\": \"%s\", \"rows\": %" PRId64 ", \"columns\": %" PRId64 ", \"fnv1a\": \"%016" PRIx64 "\"}%s\n", dtype, gated ? "gated-panels" : "panels", rows, columns, hash, last ? "" : ",");
}

int main() {
  const int64_t shapes[][2] = {{1, 1}, {3, 5}, {16, 32}, {33, 40}, {64, 96}, {100, 67}, {17, 1024}};
  std::printf("[\n");
  for (const auto& [rows, columns] : shapes)
    for (const bool gated : {false, true}) {
      const bool last = gated && rows == 17;
      print<int8_t>("int8", PackedType::kInt8, rows, columns, gated, false);
      print<uint16_t>("bfloat16", PackedType::k16Bit, rows, columns, gated, last);
    }
  std::printf("]\n");
}
