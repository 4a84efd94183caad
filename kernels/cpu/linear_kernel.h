// Products with row-major weights [out, in]: dot products for a few rows of activations, packed panels for many.
#pragma once
namespace layerweave::cpu::LAYERWEAVE_ISA {

inline constexpr int64_t kTileRows = LAYERWEAVE_TILE_ROWS;
inline constexpr int64_t kPanelVectors = 2;
inline constexpr int64_t kPanel = kPanelVectors * kLanes;

/// out[r,i] (+)= sum_k w[r * kRowStride + k * column_stride] * panel[k,i] for kRows rows r, of which `rows` are stored. With
/// kTileRows the accumulators fill the register file; each weight is broadcast once for kVectors products.
template <int64_t kRows, int64_t kVectors, int64_t kRowStride>
LAYERWEAVE_INLINE void multiply_tile(const float* w, int64_t column_stride, const float* panel, int64_t depth, float* out, int64_t rows, bool accumulate) {
  Floats sums[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k, w += column_stride, panel += kPanel) {
    Floats x[kVectors];
    for (int64_t v = 0; v < kVectors; ++v) x[v] = load(panel + v * kLanes);
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
      const Floats weight = broadcast(w[r * kRowStride]);
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) sums[r][v] += weight * x[v];
    }
  }
#pragma GCC unroll 16
  for (int64_t r = 0; r < kRows; ++r) {
    if (r >= rows) return;
#pragma GCC unroll 2
    for (int64_t v = 0; v < kVectors; ++v) {
      float* at = out + r * kPanel + v * kLanes;
      store(at, accumulate ? load(at) + sums[r][v] : sums[r][v]);
    }
  }
}

/// Inputs that one pass of the packed product covers: a tile of weights and a panel stay in the first-level cache.
inline constexpr int64_t kDepthBlock = 256;
/// Rows of a tile lie a line apart from a power of two, or they would fall into the same set of the cache.
inline constexpr int64_t kTileStride = kDepthBlock + 16;

/// Asks for the next tile's weights while this one's products are computed, some rows of it for each panel: pieces of rows are too
/// short for the hardware to see them coming.
template <class T>
struct NextTile {
  const T* weights;
  int64_t depth, block, rows_per_panel;

  LAYERWEAVE_INLINE NextTile(const T* w, int64_t depth, int64_t block, int64_t k0, int64_t n, int64_t begin, int64_t end, int64_t rows)
      : depth(depth), block(block), rows_per_panel((kTileRows * kPanel + rows - 1) / rows) {
    const bool last = n + kTileRows >= end;
    weights = w + (last ? begin : n + kTileRows) * depth + (last ? k0 + block : k0);
  }
  LAYERWEAVE_INLINE void ask(int64_t panel) const {
    for (int64_t r = panel * rows_per_panel; r < smaller(kTileRows, (panel + 1) * rows_per_panel); ++r)
      for (int64_t k = 0; k < block; k += static_cast<int64_t>(64 / sizeof(T))) will_read(weights, r * depth + k);
  }
};

template <class T>
void multiply_panels_of(const T* w, int64_t depth, int64_t begin, int64_t end, const float* panels, int64_t rows, float* out, int64_t out_panel) {
  alignas(64) float tile[kTileRows * kTileStride];
  for (int64_t k0 = 0; k0 < depth; k0 += kDepthBlock) {
    const int64_t block = smaller(kDepthBlock, depth - k0);
    for (int64_t n = begin; n < end; n += kTileRows) {
      const int64_t tile_rows = smaller(kTileRows, end - n);
      for (int64_t r = 0; r < kTileRows; ++r) {
        // Behind the last row stand copies of it, whose products are not stored.
        const T* row = w + (n + smaller(r, tile_rows - 1)) * depth + k0;
        for (int64_t k = 0; k < block; k += kLanes) store(tile + r * kTileStride + k, load(row + k, smaller(kLanes, block - k)));
      }
      const NextTile<T> next(w, depth, kDepthBlock, k0, n, begin, end, rows);
      for (int64_t first = 0, panel = 0; first < rows; first += kPanel, ++panel) {
        next.ask(panel);
        const float* x = panels + panel * depth * kPanel + k0 * kPanel;
        float* at = out + panel * out_panel + (n - begin) * kPanel;
        if (rows - first > kLanes)
          multiply_tile<kTileRows, 2, kTileStride>(tile, 1, x, block, at, tile_rows, k0 > 0);
        else
          multiply_tile<kTileRows, 1, kTileStride>(tile, 1, x, block, at, tile_rows, k0 > 0);
      }
    }
  }
}

inline void multiply_panels(const WeightMatrix& w, int64_t depth, int64_t begin, int64_t end, const float* panels, int64_t rows, float* out, int64_t out_panel) {
  if (w.type == WeightType::kFloat32) return multiply_panels_of(static_cast<const float*>(w.data), depth, begin, end, panels, rows, out, out_panel);
  multiply_panels_of(static_cast<const uint16_t*>(w.data), depth, begin, end, panels, rows, out, out_panel);
}

/// out[r,j] = sum_k x[r][k] * w[j * depth + k] for kRows rows and kColumns rows of weights.
template <int64_t kRows, int64_t kColumns, class T>
LAYERWEAVE_INLINE void dot_tile(const T* w, int64_t depth, const float* const* x, float* out, int64_t out_row) {
  Floats sums[kRows][kColumns] = {};
  const auto add = [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
    Floats values[kRows];
#pragma GCC unroll 4
    for (int64_t r = 0; r < kRows; ++r) values[r] = load(x[r] + k, lanes);
#pragma GCC unroll 4
    for (int64_t j = 0; j < kColumns; ++j) {
      // The next tile's rows: the hardware looks too short a way ahead for weights of one byte.
      will_read(w, (j + kColumns) * depth + k);
      const Floats weight = load(w + j * depth + k, lanes);
#pragma GCC unroll 4
      for (int64_t r = 0; r < kRows; ++r) sums[r][j] += values[r] * weight;
    }
  };
  int64_t k = 0;
  for (; k + kLanes <= depth; k += kLanes) add(k, kLanes);
  if (k < depth) add(k, depth - k);
#pragma GCC unroll 4
  for (int64_t r = 0; r < kRows; ++r) {
    if constexpr (kColumns == 4)
      store_sums(out + r * out_row, sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
    else
      out[r * out_row] = sum(sums[r][0]);
  }
}

/// Rows of activations that one pass over the weights serves: four times as many sums fit the register file.
inline constexpr int64_t kDotRows = LAYERWEAVE_LANES == 16 ? 4 : 2;

/// `count` rows of weights against kRows rows of activations.
template <int64_t kRows, class T>
LAYERWEAVE_INLINE void dot_columns(const T* w, int64_t depth, int64_t count, const float* const* x, float* out, int64_t out_row) {
  int64_t n = 0;
  for (; n + 4 <= count; n += 4) dot_tile<kRows, 4>(w + n * depth, depth, x, out + n, out_row);
  for (; n < count; ++n) dot_tile<kRows, 1>(w + n * depth, depth, x, out + n, out_row);
}

/// The same for any number of rows; those beyond kDotRows take further passes over the weights.
template <class T>
LAYERWEAVE_INLINE void dot_block(const T* w, int64_t depth, int64_t count, const float* const* x, int64_t rows, float* out, int64_t out_row) {
  for (int64_t r = 0; r < rows; r += kDotRows) {
    float* at = out + r * out_row;
    switch (smaller(kDotRows, rows - r)) {
      case 1: dot_columns<1>(w, depth, count, x + r, at, out_row); break;
      case 2: dot_columns<2>(w, depth, count, x + r, at, out_row); break;
      case 3: if constexpr (kDotRows > 2) dot_columns<3>(w, depth, count, x + r, at, out_row); break;
      default: if constexpr (kDotRows > 2) dot_columns<4>(w, depth, count, x + r, at, out_row);
    }
  }
}

template <class T>
void dot_rows_of(const T* w, int64_t depth, int64_t begin, int64_t end, const float* const* x, int64_t rows, float* out, int64_t out_row) {
  // Few enough rows of weights for a second pass over them to find them in the cache.
  constexpr int64_t kBlock = 8;
  for (int64_t n = begin; n < end; n += kBlock) dot_block(w + n * depth, depth, smaller(kBlock, end - n), x, rows, out + n, out_row);
}

inline void dot_rows(const WeightMatrix& w, int64_t depth, int64_t begin, int64_t end, const float* const* x, int64_t rows, float* out, int64_t out_row) {
  if (w.type == WeightType::kFloat32) return dot_rows_of(static_cast<const float*>(w.data), depth, begin, end, x, rows, out, out_row);
  dot_rows_of(static_cast<const uint16_t*>(w.data), depth, begin, end, x, rows, out, out_row);
}

/// Columns [k0, k1) of up to kPanel rows, as [k1 - k0][kPanel]; 0 for rows that are null.
inline void pack_panel(const float* const* rows, int64_t k0, int64_t k1, float* panel) {
  static constexpr float zeros[kLanes] = {};
  for (int64_t k = k0; k < k1; k += kLanes) {
    const int64_t columns = smaller(kLanes, k1 - k);
    for (int64_t v = 0; v < kPanelVectors; ++v) {
      Floats block[kLanes];
#pragma GCC unroll 16
      for (int64_t r = 0; r < kLanes; ++r) {
        const float* row = rows[v * kLanes + r];
        block[r] = row ? load(row + k, columns) : load(zeros);
      }
      transpose(block);
#pragma GCC unroll 16
      for (int64_t c = 0; c < kLanes; ++c)
        if (c < columns) store(panel + (k - k0 + c) * kPanel + v * kLanes, block[c]);
    }
  }
}

/// The way back: y[r][n] = panel[n][r], plus bias[n] where given; or y[r][n] += factors[r] * panel[n][r].
template <class F>
LAYERWEAVE_INLINE void each_row_vector(const float* panel, int64_t count, int64_t rows, F&& visit) {
  for (int64_t n = 0; n < count; n += kLanes) {
    const int64_t columns = smaller(kLanes, count - n);
    for (int64_t first = 0; first < rows; first += kLanes) {
      Floats block[kLanes];
#pragma GCC unroll 16
      for (int64_t c = 0; c < kLanes; ++c) block[c] = c < columns ? load(panel + (n + c) * kPanel + first) : Floats{};
      transpose(block);
      for (int64_t r = 0; r < smaller(kLanes, rows - first); ++r) visit(first + r, n, columns, block[r]);
    }
  }
}

inline void unpack_panel(const float* panel, int64_t count, int64_t rows, const float* bias, float* y, int64_t y_row) {
  each_row_vector(panel, count, rows, [&](int64_t r, int64_t n, int64_t columns, Floats values) __attribute__((always_inline)) {
    store(y + r * y_row + n, bias ? values + load(bias + n, columns) : values, columns);
  });
}

inline void add_panel(const float* panel, int64_t count, int64_t rows, const float* factors, float* const* y) {
  each_row_vector(panel, count, rows, [&](int64_t r, int64_t n, int64_t columns, Floats values) __attribute__((always_inline)) {
    store(y[r] + n, load(y[r] + n, columns) + values * factors[r], columns);
  });
}

inline void gate_in_place(float* gate, const float* up, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t lanes = smaller(kLanes, count - i);
    store(gate + i, silu(load(gate + i, lanes)) * load(up + i, lanes), lanes);
  }
}

}  // namespace layerweave::cpu::LAYERWEAVE_ISA
