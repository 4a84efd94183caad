// The causal convolution of one task's channels; see cpu/causal_conv.h.
namespace layerweave::cpu::LAYERWEAVE_ISA {

/// Tokens between the request for a row and its use.
inline constexpr int64_t kConvAhead = 8;

/// kKernel taps, or p.kernel where it is 0: known while compiling, the state of a single token is read and written several times
/// as fast.
template <int64_t kKernel>
void conv_channels_of(const CausalConvParams& p, int64_t row, int64_t begin, int64_t end) {
  const int64_t kernel = kKernel ? kKernel : p.kernel, history = kernel - 1, width = end - begin;
  const int64_t length = p.lengths ? p.lengths[row] : p.tokens;
  const float* x = p.x + row * p.tokens * p.x_row_stride + begin;
  float* y = p.y + row * p.tokens * p.y_row_stride + begin;

  // Copied before the new state is written, which may lie in the same place.
  float past[kCausalConvMaxKernel][kMaxTaskChannels], taps[kCausalConvMaxKernel][kMaxTaskChannels], bias[kMaxTaskChannels];
  for (int64_t i = width; i < width + kLanes && i < kMaxTaskChannels; ++i) {
    // Lanes behind the last channel, computed and not stored.
    for (int64_t k = 0; k < kernel; ++k) taps[k][i] = 0;
    bias[i] = 0;
  }
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t k = 0; k < kernel; ++k) taps[k][i] = p.weight[(begin + i) * kernel + k];
    for (int64_t k = 0; k < history; ++k) past[k][i] = p.state_in[(row * p.channels + begin + i) * history + k];
    bias[i] = p.bias ? p.bias[begin + i] : 0;
  }
  // Input j of the row, the state's K-1 inputs first.
  const auto input = [&](int64_t j) { return j < history ? past[j] : x + (j - history) * p.x_row_stride; };

  const auto convolve = [&](const float* const* rows, int64_t t, int64_t i, int64_t lanes) __attribute__((always_inline)) {
    will_read(x, (t + kConvAhead) * p.x_row_stride + i);
    will_write(y, (t + kConvAhead) * p.y_row_stride + i);
    Floats sum = load(bias + i);
#pragma GCC unroll 4
    for (int64_t k = 0; k < kernel; ++k) sum += load(taps[k] + i) * load(rows[k] + i, lanes);
    store(y + t * p.y_row_stride + i, silu(sum), lanes);
  };
  for (int64_t t = 0; t < p.tokens; ++t) {
    const float* rows[kCausalConvMaxKernel];
    for (int64_t k = 0; k < kernel; ++k) rows[k] = input(t + k);
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) convolve(rows, t, i, kLanes);
    if (i < width) convolve(rows, t, i, width - i);
  }

  const float* last[kCausalConvMaxKernel];
  for (int64_t k = 0; k < history; ++k) last[k] = input(length + k);
  for (int64_t i = 0; i < width; ++i)
    for (int64_t k = 0; k < history; ++k) p.state_out[(row * p.channels + begin + i) * history + k] = last[k][i];
}

inline void conv_channels(const CausalConvParams& p, int64_t row, int64_t begin, int64_t end) {
  if (p.kernel == 4) return conv_channels_of<4>(p, row, begin, end);
  conv_channels_of<0>(p, row, begin, end);
}

}  // namespace layerweave::cpu::LAYERWEAVE_ISA
