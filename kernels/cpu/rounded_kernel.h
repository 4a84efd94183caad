// Products with int8 weights. Activations are rounded to 16 bits, a block of kRoundedDepth inputs of a row sharing a scale, so that
// a multiply-add unit takes twice as many products as of float32, and sums them exactly: kRoundedDepth products of an int8 and an
// int16 fit 32 bits.
#pragma once
namespace layerweave::cpu::LAYERWEAVE_ISA {

/// The largest rounded value, and the least maximum of a block that its scale follows: below, a float has no reciprocal.
inline constexpr float kMostRounded = 32767.0f, kLeastMaximum = 0x1p-100f;

/// NaN for a block that holds a number which is not finite, so that its products tell; otherwise what 1 stands for.
LAYERWEAVE_INLINE Floats scale_of(Floats most, Floats poison) { return most / kMostRounded + poison; }

inline void round_row(const float* x, int64_t depth, const RoundedRows& to) {
  int16_t* values = to.values;
  float* scales = to.scales;
  for (int64_t k0 = 0; k0 < depth; k0 += kRoundedDepth) {
    const int64_t end = smaller(depth, k0 + kRoundedDepth);
    Floats most = broadcast(kLeastMaximum), poison = {};
    for (int64_t k = k0; k < end; k += kLanes) {
      const Floats v = load(x + k, smaller(kLanes, end - k));
      most = max(most, max(v, -v));
      poison += v - v;
    }
    most = broadcast(largest(most));
    scales[k0 / kRoundedDepth] = scale_of(most, broadcast(sum(poison)))[0];
    const Floats inverse = kMostRounded / most;
    for (int64_t k = k0; k < end; k += kLanes) {
      const Ints rounded = to_nearest(load(x + k, smaller(kLanes, end - k)) * inverse);
      // Behind the last value stand zeros of the padded load, in room that rounded_depth provides.
      store_shorts(values + k, rounded);
    }
  }
  for (int64_t k = (depth + kLanes - 1) / kLanes * kLanes; k < rounded_depth(depth); ++k) values[k] = 0;
}

inline void round_panel(const float* panel, int64_t k0, int64_t count, const RoundedRows& to) {
  int16_t* pairs = to.values + k0 * kPanel;
  for (int64_t v = 0; v < kPanel; v += kLanes) {
    Floats most = broadcast(kLeastMaximum), poison = {};
    for (int64_t k = 0; k < count; ++k) {
      const Floats x = load(panel + k * kPanel + v);
      most = max(most, max(x, -x));
      poison += x - x;
    }
    store(to.scales + k0 / kRoundedDepth * kPanel + v, scale_of(most, poison));
    const Floats inverse = kMostRounded / most;
    for (int64_t k = 0; k < count; k += 2) {
      const Ints even = to_nearest(load(panel + k * kPanel + v) * inverse);
      const Ints odd = k + 1 < count ? to_nearest(load(panel + (k + 1) * kPanel + v) * inverse) : Ints{};
      store(reinterpret_cast<float*>(pairs + (k * kPanel + 2 * v)), reinterpret_cast<Floats>((even & 0xffff) | (odd << 16)));
    }
  }
}

/// out[r,i] (+)= scale[r] * panel_scale[i] * sum of products, for kTileRows rows r, of which `rows` are stored.
template <int64_t kVectors>
LAYERWEAVE_INLINE void multiply_rounded_tile(const int16_t* w, const float* scales, const int16_t* panel, const float* panel_scales, int64_t pairs, float* out, int64_t rows, bool accumulate) {
  Ints sums[kTileRows][kVectors] = {};
  for (int64_t k = 0; k < pairs; ++k, w += 2, panel += 2 * kPanel) {
    Shorts x[kVectors];
    for (int64_t v = 0; v < kVectors; ++v) x[v] = load(panel + 2 * v * kLanes);
#pragma GCC unroll 16
    for (int64_t r = 0; r < kTileRows; ++r) {
      const Shorts weight = broadcast_pair(w + r * kTileStride);
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) sums[r][v] = add_products(sums[r][v], weight, x[v]);
    }
  }
#pragma GCC unroll 16
  for (int64_t r = 0; r < kTileRows; ++r) {
    if (r >= rows) return;
#pragma GCC unroll 2
    for (int64_t v = 0; v < kVectors; ++v) {
      float* at = out + r * kPanel + v * kLanes;
      const Floats product = to_floats(sums[r][v]) * (load(panel_scales + v * kLanes) * scales[r]);
      store(at, accumulate ? load(at) + product : product);
    }
  }
}

inline void multiply_rounded(const WeightMatrix& matrix, int64_t depth, int64_t begin, int64_t end, const RoundedRows& x, int64_t rows, float* out, int64_t out_panel) {
  const int8_t* w = static_cast<const int8_t*>(matrix.data);
  alignas(64) int16_t tile[kTileRows * kTileStride];
  for (int64_t k0 = 0; k0 < depth; k0 += kRoundedDepth) {
    const int64_t block = smaller(kRoundedDepth, depth - k0);
    for (int64_t n = begin; n < end; n += kTileRows) {
      const int64_t tile_rows = smaller(kTileRows, end - n);
      float scales[kTileRows];
      for (int64_t r = 0; r < kTileRows; ++r) {
        // Behind the last row stand copies of it, whose products are not stored.
        const int64_t source = n + smaller(r, tile_rows - 1);
        scales[r] = matrix.scales[source];
        for (int64_t k = 0; k < block; k += 2 * kLanes) store(tile + r * kTileStride + k, load_shorts(w + source * depth + k0 + k, smaller(2 * kLanes, block - k)));
      }
      const NextTile<int8_t> next(w, depth, kRoundedDepth, k0, n, begin, end, rows);
      for (int64_t first = 0, panel = 0; first < rows; first += kPanel, ++panel) {
        next.ask(panel);
        const int16_t* values = x.values + (panel * rounded_depth(depth) + k0) * kPanel;
        const float* panel_scales = x.scales + (panel * rounded_blocks(depth) + k0 / kRoundedDepth) * kPanel;
        float* at = out + panel * out_panel + (n - begin) * kPanel;
        if (rows - first > kLanes)
          multiply_rounded_tile<kPanelVectors>(tile, scales, values, panel_scales, (block + 1) / 2, at, tile_rows, k0 > 0);
        else
          multiply_rounded_tile<1>(tile, scales, values, panel_scales, (block + 1) / 2, at, tile_rows, k0 > 0);
      }
    }
  }
}

/// Bytes that weights are asked for ahead: the hardware stops at the end of each 4 KB.
inline constexpr int64_t kReadAhead = 1024;

/// Rows of weights that are read at once, far from each other: memory answers several distant streams faster than one, and the
/// sums of all have to fit the register file.
constexpr int64_t streams_for(int64_t rows) {
  if (rows == 1) return 4;
  if (kLanes < 16) return rows == 2 ? 2 : 1;
  return rows == 2 ? 4 : 2;
}

/// out[r * out_row + s * apart] = w[s * apart] . x[r] for kRows rows of x and kStreams rows of weights.
template <int64_t kStreams, int64_t kRows>
LAYERWEAVE_INLINE void dot_rounded_rows(const int8_t* w, const float* weight_scales, int64_t apart, int64_t depth, const int16_t* values, const float* scales, float* out, int64_t out_row) {
  const int64_t value_row = rounded_depth(depth), scale_row = rounded_blocks(depth);
  Floats totals[kStreams][kRows] = {};
  for (int64_t k0 = 0, block = 0; k0 < depth; k0 += kRoundedDepth, ++block) {
    Ints sums[kStreams][kRows] = {};
    const auto add = [&](int64_t stream, int64_t k, Shorts first, Shorts second) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int64_t r = 0; r < kRows; ++r) {
        const int16_t* x = values + r * value_row + k;
        sums[stream][r] = add_products(add_products(sums[stream][r], first, load(x)), second, load(x + 2 * kLanes));
      }
    };
    const int64_t end = smaller(depth, k0 + kRoundedDepth);
    int64_t k = k0;
    for (; k + 4 * kLanes <= end; k += 4 * kLanes) {
#pragma GCC unroll 4
      for (int64_t stream = 0; stream < kStreams; ++stream) {
        const int64_t at = stream * apart * depth + k;
        Shorts first, second;
        load_shorts(w + at, first, second);
        will_read_first(w, at + kReadAhead);
        add(stream, k, first, second);
      }
    }
    if (k < end) {
#pragma GCC unroll 4
      for (int64_t stream = 0; stream < kStreams; ++stream) {
        const int8_t* rest = w + stream * apart * depth + k;
        add(stream, k, load_shorts(rest, smaller(2 * kLanes, end - k)), load_shorts(rest + 2 * kLanes, larger(0, end - k - 2 * kLanes)));
      }
    }
#pragma GCC unroll 4
    for (int64_t stream = 0; stream < kStreams; ++stream)
#pragma GCC unroll 4
      for (int64_t r = 0; r < kRows; ++r) totals[stream][r] += to_floats(sums[stream][r]) * scales[r * scale_row + block];
  }
#pragma GCC unroll 4
  for (int64_t stream = 0; stream < kStreams; ++stream)
#pragma GCC unroll 4
    for (int64_t r = 0; r < kRows; ++r) out[r * out_row + stream * apart] = sum(totals[stream][r]) * weight_scales[stream * apart];
}

template <int64_t kRows>
LAYERWEAVE_INLINE void dot_rounded_range(const WeightMatrix& matrix, int64_t depth, int64_t begin, int64_t end, const int16_t* values, const float* scales, float* out, int64_t out_row) {
  constexpr int64_t kStreams = streams_for(kRows);
  const int8_t* w = static_cast<const int8_t*>(matrix.data);
  const int64_t apart = (end - begin) / kStreams;
  for (int64_t n = begin; n < begin + apart; ++n) dot_rounded_rows<kStreams, kRows>(w + n * depth, matrix.scales + n, apart, depth, values, scales, out + n, out_row);
  for (int64_t n = begin + kStreams * apart; n < end; ++n) dot_rounded_rows<1, kRows>(w + n * depth, matrix.scales + n, 0, depth, values, scales, out + n, out_row);
}

inline void dot_rounded(const WeightMatrix& matrix, int64_t depth, int64_t begin, int64_t end, const RoundedRows& x, int64_t rows, float* out, int64_t out_row) {
  constexpr int64_t kMost = 4;
  // Few enough rows of weights for further passes over them to find them in the cache.
  const int64_t span = rows <= kMost ? larger(1, end - begin) : 16;
  for (int64_t from = begin; from < end; from += span) {
    const int64_t to = smaller(end, from + span);
    for (int64_t r = 0; r < rows; r += kMost) {
      const int16_t* values = x.values + r * rounded_depth(depth);
      const float* scales = x.scales + r * rounded_blocks(depth);
      float* at = out + r * out_row;
      switch (smaller(kMost, rows - r)) {
        case 1: dot_rounded_range<1>(matrix, depth, from, to, values, scales, at, out_row); break;
        case 2: dot_rounded_range<2>(matrix, depth, from, to, values, scales, at, out_row); break;
        case 3: dot_rounded_range<3>(matrix, depth, from, to, values, scales, at, out_row); break;
        default: dot_rounded_range<4>(matrix, depth, from, to, values, scales, at, out_row);
      }
    }
  }
}

}  // namespace layerweave::cpu::LAYERWEAVE_ISA
