#pragma once

#include <cstdint>

namespace layerweave {

/// How a matrix of weights is stored: as values of the activations' type,
/// bfloat16 or float16, or int8 with one float32 scale an output row (symmetric:
/// w[r,c] = scale[r] * code[r,c], codes -127..127).
enum class PackedType { kInt8, k16Bit };

// The layout in which the kernels read a [rows, columns] matrix:
//
//   int8     [panel][chunk][half 2][lane 32][16 codes]
//   16 bits  [panel][chunk][half 2][step 2][lane 32][8 values]
//
// A panel is 32 rows, a half 16 of them, a chunk 32 columns; rows and columns
// that pad a panel or a chunk are zero. A warp's load of 16 bytes a lane is then
// contiguous, and holds what the A operand of mma.m16n8k16 wants of that lane:
// lane 4g + t has rows g and g + 8 of the half and columns 8t..8t+7 of the
// chunk, eight neighbours, so that the other operand is one 16-byte load too.
// Scales lie in the order of the packed rows, float32 [32 * panels].

inline constexpr int kPanelRows = 32;
inline constexpr int kChunkColumns = 32;

constexpr int64_t packed_panels(int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }
constexpr int64_t packed_chunks(int64_t columns) { return (columns + kChunkColumns - 1) / kChunkColumns; }

/// Elements, padding included, of a packed matrix.
constexpr int64_t packed_elements(int64_t rows, int64_t columns) {
  return packed_panels(rows) * kPanelRows * packed_chunks(columns) * kChunkColumns;
}

/// Where element [row, column] of a matrix lies, in elements.
constexpr int64_t packed_index(PackedType type, int64_t row, int64_t column, int64_t columns) {
  const int64_t half = (row / kPanelRows * packed_chunks(columns) + column / kChunkColumns) * 2 + row % kPanelRows / 16;
  const int64_t lane = row % 8 * 4 + column % kChunkColumns / 8, lower = row % 16 / 8, i = column % 8;
  if (type == PackedType::kInt8) {
    // Codes 0, 1, 2, 3 in bytes 0, 2, 1, 3: neighbours stand 16 bits apart, as
    // in the register of two 16-bit values that they become.
    constexpr int64_t kByte[4] = {0, 2, 1, 3};
    return (half * 32 + lane) * 16 + lower * 8 + i / 4 * 4 + kByte[i % 4];
  }
  return ((half * 2 + i / 4) * 32 + lane) * 8 + i % 4 / 2 * 4 + lower * 2 + i % 2;
}

/// Packed row of a gated pair's row f: the 16 gate rows of a panel stand before
/// the up rows of the same features. The pair packs as one [2 * F, D] matrix, F
/// padded to a multiple of 16.
constexpr int64_t packed_gate_row(int64_t feature) { return feature / 16 * 32 + feature % 16; }
constexpr int64_t packed_up_row(int64_t feature) { return packed_gate_row(feature) + 16; }
constexpr int64_t packed_pair_rows(int64_t features) { return (features + 15) / 16 * 32; }

/// Writes rows of a row-major matrix into a zeroed packed one of `columns`
/// columns, row r to packed row `row_at(r)`.
template <typename Element, typename RowAt>
void pack_rows(PackedType type, const Element* from, int64_t rows, int64_t columns, RowAt row_at, Element* to) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) to[packed_index(type, row_at(r), c, columns)] = from[r * columns + c];
}

}  // namespace layerweave
