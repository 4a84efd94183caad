// The selective scan of one task's channels; see cpu/selective_scan.h.
namespace layerweave::cpu::LAYERWEAVE_ISA {

inline constexpr int64_t kTokenBlock = 16;
inline constexpr int64_t kStateChunk = LAYERWEAVE_STATE_CHUNK;

/// Up to here reading the state as it lies, states across the lanes, beats turning it around for channels across the lanes.
inline constexpr int64_t kFewTokens = 4;
/// Floats between the request for a state and its use there: 4 KB, where the hardware stops.
inline constexpr int64_t kScanAhead = 1024;

/// What the recurrence takes from and adds to one token and block of channels.
struct ScanToken {
  Floats step;    // delta after softplus; 0 for padding
  Floats driven;  // step * u
  Floats sum;     // D * u + sum_n C * h
};

struct ScanRow {
  const SelectiveScanParams& p;
  int64_t row;
  int64_t length;

  const float* at(const float* x, int64_t stride, int64_t t) const { return x + (row * p.tokens + t) * stride; }

  ScanToken begin_token(int64_t t, int64_t channel, int64_t lanes) const {
    const Floats u = load(at(p.u, p.u_row_stride, t) + channel, lanes);
    ScanToken token = {Floats{}, Floats{}, load(p.d_skip + channel, lanes) * u};
    if (t < length) {
      Floats raw = load(at(p.delta, p.delta_row_stride, t) + channel, lanes);
      if (p.delta_bias) raw += load(p.delta_bias + channel, lanes);
      token.step = softplus(raw);
      token.driven = token.step * u;
    }
    return token;
  }

  void finish_token(int64_t t, int64_t channel, int64_t lanes, Floats y) const {
    if (p.z) y *= silu(load(at(p.z, p.z_row_stride, t) + channel, lanes));
    store(p.y + (row * p.tokens + t) * p.y_row_stride + channel, y, lanes);
  }
};

/// kCount states of one block of channels over `count` tokens, of which `active` change the state.
template <int64_t kCount>
LAYERWEAVE_INLINE void advance(ScanToken* tokens, int64_t count, int64_t active, const float* b, int64_t b_stride, const float* c, int64_t c_stride, const Floats* a, Floats* state) {
  Floats h[kCount];
  for (int64_t n = 0; n < kCount; ++n) h[n] = state[n];
  for (int64_t t = 0; t < active; ++t, b += b_stride, c += c_stride) {
    const Floats step = tokens[t].step, driven = tokens[t].driven;
    Floats y = tokens[t].sum;
#pragma GCC unroll 16
    for (int64_t n = 0; n < kCount; ++n) {
      h[n] = exp2_of_small(step * a[n]) * h[n] + driven * b[n];
      y += h[n] * c[n];
    }
    tokens[t].sum = y;
  }
  for (int64_t t = active; t < count; ++t, c += c_stride)
    for (int64_t n = 0; n < kCount; ++n) tokens[t].sum += h[n] * c[n];
  for (int64_t n = 0; n < kCount; ++n) state[n] = h[n];
}

inline void scan_many_tokens(const ScanRow& scan, int64_t begin, int64_t end) {
  const SelectiveScanParams& p = scan.p;
  const int64_t states = p.states;
  const float* state_in = p.state_in + scan.row * p.channels * states;
  float* state_out = p.state_out + scan.row * p.channels * states;

  // A * log2(e) and the state, channels across the lanes: [block][N].
  Floats a[kMaxTaskStates / kLanes], h[kMaxTaskStates / kLanes];
  for (int64_t channel = begin, block = 0; channel < end; channel += kLanes, ++block) {
    const int64_t lanes = smaller(kLanes, end - channel);
    for (int64_t n = 0; n < states; ++n) {
      float log_column[kLanes] = {}, state_column[kLanes] = {};
      for (int64_t i = 0; i < lanes; ++i) {
        log_column[i] = p.a_log[(channel + i) * states + n];
        state_column[i] = state_in[(channel + i) * states + n];
      }
      a[block * states + n] = exp(load(log_column)) * -kLog2E;
      h[block * states + n] = load(state_column);
    }
  }

  for (int64_t t0 = 0; t0 < p.tokens; t0 += kTokenBlock) {
    const int64_t count = smaller(kTokenBlock, p.tokens - t0);
    const int64_t active = smaller(count, larger(0, scan.length - t0));
    const float* b = scan.at(p.b, p.b_row_stride, t0);
    const float* c = scan.at(p.c, p.c_row_stride, t0);
    for (int64_t channel = begin, block = 0; channel < end; channel += kLanes, ++block) {
      const int64_t lanes = smaller(kLanes, end - channel);
      ScanToken tokens[kTokenBlock];
      for (int64_t t = 0; t < count; ++t) tokens[t] = scan.begin_token(t0 + t, channel, lanes);
      int64_t n = 0;
      for (; n + kStateChunk <= states; n += kStateChunk)
        advance<kStateChunk>(tokens, count, active, b + n, p.b_row_stride, c + n, p.c_row_stride, a + block * states + n, h + block * states + n);
      for (; n < states; ++n) advance<1>(tokens, count, active, b + n, p.b_row_stride, c + n, p.c_row_stride, a + block * states + n, h + block * states + n);
      for (int64_t t = 0; t < count; ++t) scan.finish_token(t0 + t, channel, lanes, tokens[t].sum);
    }
  }

  for (int64_t channel = begin, block = 0; channel < end; channel += kLanes, ++block)
    for (int64_t i = 0; i < smaller(kLanes, end - channel); ++i)
      for (int64_t n = 0; n < states; ++n) state_out[(channel + i) * states + n] = h[block * states + n][i];
}

inline void scan_few_tokens(const ScanRow& scan, int64_t begin, int64_t end) {
  const SelectiveScanParams& p = scan.p;
  const int64_t states = p.states;
  float step[kFewTokens][kMaxTaskChannels], driven[kFewTokens][kMaxTaskChannels], sums[kFewTokens][kMaxTaskChannels];
  for (int64_t t = 0; t < p.tokens; ++t)
    for (int64_t channel = begin; channel < end; channel += kLanes) {
      const ScanToken token = scan.begin_token(t, channel, smaller(kLanes, end - channel));
      store(step[t] + channel - begin, token.step);
      store(driven[t] + channel - begin, token.driven);
      store(sums[t] + channel - begin, token.sum);
    }
  for (int64_t first = begin; first < end; first += kLanes)
    for (int64_t n = 0; n < states; n += kLanes) {
      const int64_t lanes = smaller(kLanes, states - n), count = smaller(kLanes, end - first);
      // Each channel's products with C, to be summed together.
      Floats products[kFewTokens][kLanes];
      for (int64_t i = 0; i < count; ++i) {
        const int64_t channel = first + i, at = (scan.row * p.channels + channel) * states + n;
        will_read(p.a_log, channel * states + n + kScanAhead);
        will_read(p.state_in, at + kScanAhead);
        will_write(p.state_out, at + kScanAhead);
        const Floats a = exp(load(p.a_log + channel * states + n, lanes)) * -kLog2E;
        Floats h = load(p.state_in + at, lanes);
        for (int64_t t = 0; t < p.tokens; ++t) {
          if (t < scan.length) h = exp2_of_small(a * step[t][channel - begin]) * h + load(scan.at(p.b, p.b_row_stride, t) + n, lanes) * driven[t][channel - begin];
          products[t][i] = h * load(scan.at(p.c, p.c_row_stride, t) + n, lanes);
        }
        store(p.state_out + at, h, lanes);
      }
      for (int64_t t = 0; t < p.tokens; ++t) {
        for (int64_t i = count; i < kLanes; ++i) products[t][i] = Floats{};
        transpose(products[t]);
        Floats total = load(sums[t] + first - begin);
        for (int64_t i = 0; i < kLanes; ++i) total += products[t][i];
        store(sums[t] + first - begin, total);
      }
    }
  for (int64_t t = 0; t < p.tokens; ++t)
    for (int64_t channel = begin; channel < end; channel += kLanes) scan.finish_token(t, channel, smaller(kLanes, end - channel), load(sums[t] + channel - begin));
}

inline void scan_channels(const SelectiveScanParams& p, int64_t row, int64_t begin, int64_t end) {
  const ScanRow scan = {p, row, p.lengths ? p.lengths[row] : p.tokens};
  if (p.tokens <= kFewTokens)
    scan_few_tokens(scan, begin, end);
  else
    scan_many_tokens(scan, begin, end);
}

}  // namespace layerweave::cpu::LAYERWEAVE_ISA
