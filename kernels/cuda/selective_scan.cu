#include "selective_scan.cuh"

#include <algorithm>

#include "device_math.cuh"

namespace layerweave {
namespace {

// Threads that move data and evaluate what is needed once per (token, channel),
// beside the threads that run the recurrence.
constexpr int kElementThreads = 128;
// Slots of the input rings. u and z live from their fetch, over the tile's
// preparation and scan, to the end of its output; delta, B and C only to the
// preparation.
constexpr int kLongStages = 4;
constexpr int kShortStages = 2;
// Tokens whose operands the recurrence loads ahead of their use.
constexpr int kLookahead = 2;
// Up to this many tokens the step kernel, which has no tiles to fill, is used.
// It waits for each token's operands in turn: at 4 it is the slower one.
constexpr int kMaxStepTokens = 2;

__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// A vector of floats as wide as one thread's share of the states, at most 16 bytes.
template <int kCount>
struct alignas(4 * kCount) FloatVec {
  float value[kCount];
};

/// Shape of one thread block: kChannels channels, each on kLanes neighbouring
/// lanes with kStates / kLanes states apiece; kTile tokens between barriers.
template <int States, int Channels, int Lanes, int Tile>
struct Shape {
  static constexpr int kStates = States;
  static constexpr int kChannels = Channels;
  static constexpr int kLanes = Lanes;
  static constexpr int kTile = Tile;

  static constexpr int kStatesPerThread = kStates / kLanes;
  static constexpr int kVec = std::min(kStatesPerThread, 4);
  static constexpr int kVecs = kStatesPerThread / kVec;
  static constexpr int kScanThreads = kChannels * kLanes;
  static constexpr int kThreads = kScanThreads + kElementThreads;
  // One pass of the recurrence covers as many tokens as there are lanes to
  // reduce over, so that the reduction leaves one finished sum in each lane.
  static constexpr int kPass = kLanes;
  // About 8 tokens a loop iteration. With 16, the loop and the element threads'
  // code no longer share an instruction cache: measured, 1.7 times the time.
  static constexpr int kPassesUnrolled = std::max(1, 8 / kPass);

  // Rows of vectors of eight, dealt to the element threads: the tile's
  // channels, and its B and C behind one another.
  static constexpr int kRowVectors = kChannels / 8;
  static constexpr int kItemRows = kElementThreads / kRowVectors;
  static constexpr int kItems = (kTile + kItemRows - 1) / kItemRows;
  static constexpr int kBcRowVectors = 2 * kStates / 8;
  static constexpr int kBcItemRows = kElementThreads / kBcRowVectors;
  static constexpr int kBcItems = (kTile + kBcItemRows - 1) / kBcItemRows;
  // Keeps the rows that one warp writes sums to in different banks.
  static constexpr int kSumStride = kChannels + std::max(4, 32 / kLanes);

  static_assert(kStates % kLanes == 0 && kStatesPerThread % kVec == 0 && kStates % 8 == 0);
  static_assert(kScanThreads % 32 == 0 && kLanes <= 32);
  static_assert(kTile % kPass == 0 && kPass % kLookahead == 0 && kElementThreads % kRowVectors == 0 &&
                kElementThreads % kBcRowVectors == 0);
};

template <typename T, typename S>
struct SharedTile {
  using Item = uint4[Vec8<T>::kUnits][kElementThreads];
  // Written and read by the same thread alone: private queues of vectors, laid
  // out so that neighbouring threads touch neighbouring 16-byte words.
  Item u[kLongStages][S::kItems];
  Item z[kLongStages][S::kItems];
  Item delta[kShortStages][S::kItems];
  Item raw_bc[kShortStages][S::kBcItems];
  // (delta, delta * u) of two channels per 16-byte word, words swizzled.
  // The rows past the tile are only ever loaded ahead, never used.
  float4 step[2][S::kTile + kLookahead][S::kChannels / 2];
  alignas(16) float bc[2][S::kTile + kLookahead][2 * S::kStates];
  alignas(16) float sum[2][S::kTile][S::kSumStride];
};

// The eight channels of an element thread are four words 64 bytes from the next
// thread's: without the exclusive or, a quarter of a warp would meet in 8 banks.
__device__ __forceinline__ int swizzle(int word) { return word ^ ((word >> 3) & 3); }

template <typename T, typename S>
class ElementThread {
 public:
  __device__ ElementThread(const SelectiveScanParams& params, SharedTile<T, S>& shared, int thread, bool aligned)
      : params_(params),
        shared_(shared),
        thread_(thread),
        aligned_(aligned),
        row_(thread / S::kRowVectors),
        bc_row_(thread / S::kBcRowVectors),
        bc_part_(thread % S::kBcRowVectors) {
    const int64_t channel = int64_t{blockIdx.x} * S::kChannels + thread % S::kRowVectors * 8;
    const int64_t first = int64_t{blockIdx.y} * params.tokens;
    channels_ = static_cast<int>(min(max(params.channels - channel, int64_t{0}), int64_t{8}));
    whole_channels_ = params.channels - int64_t{blockIdx.x} * S::kChannels >= S::kChannels;
    tokens_ = static_cast<int>(params.tokens);
    live_tokens_ = params.lengths == nullptr
                       ? tokens_
                       : static_cast<int>(min(max(params.lengths[blockIdx.y], int64_t{0}), params.tokens));
    u_ = static_cast<const T*>(params.u) + (first + row_) * params.u_row_stride + channel;
    delta_ = static_cast<const T*>(params.delta) + (first + row_) * params.delta_row_stride + channel;
    z_ = params.z == nullptr ? nullptr : static_cast<const T*>(params.z) + (first + row_) * params.z_row_stride + channel;
    y_ = static_cast<T*>(params.y) + (first + row_) * params.y_row_stride + channel;
    const bool is_c = bc_part_ >= S::kBcRowVectors / 2;
    const int state = bc_part_ % (S::kBcRowVectors / 2) * 8;
    states_ = static_cast<int>(min(max(params.states - state, int64_t{0}), int64_t{8}));
    bc_stride_ = is_c ? params.c_row_stride : params.b_row_stride;
    bc_ = static_cast<const T*>(is_c ? params.c : params.b) + (first + bc_row_) * bc_stride_ + state;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      bias_[i] = i < channels_ && params.delta_bias != nullptr ? params.delta_bias[channel + i] : 0.f;
      skip_[i] = i < channels_ ? params.d_skip[channel + i] : 0.f;
    }
  }

  /// Starts the copies of the next tile's inputs; called once for each tile in turn.
  __device__ void fetch(int tile) {
    if (aligned_) {
      fetch_tile<true>(tile);
    } else {
      fetch_tile<false>(tile);
    }
    u_ += S::kTile * params_.u_row_stride;
    delta_ += S::kTile * params_.delta_row_stride;
    if (z_ != nullptr) z_ += S::kTile * params_.z_row_stride;
    bc_ += S::kTile * bc_stride_;
  }

  /// Turns one tile's raw inputs into what the recurrence reads.
  __device__ void prepare(int tile) {
    const int live = tokens_from(tile, live_tokens_);
    if (live == S::kTile && whole_channels_) {
      prepare_steps<true>(tile, live);
    } else {
      prepare_steps<false>(tile, live);
    }
    const bool is_c = bc_part_ >= S::kBcRowVectors / 2;
#pragma unroll
    for (int item = 0; item < S::kBcItems; ++item) {
      const int row = bc_row_ + item * S::kBcItemRows;
      if (row >= S::kTile) continue;
      float value[8];
      queued(shared_.raw_bc[tile % kShortStages][item]).unpack(value);
      if (states_ < 8 || !(row < live || is_c)) {
#pragma unroll
        for (int i = 0; i < 8; ++i)
          if (i >= states_ || !(row < live || is_c)) value[i] = 0.f;
      }
      float* to = &shared_.bc[tile & 1][row][bc_part_ * 8];
      reinterpret_cast<float4*>(to)[0] = make_float4(value[0], value[1], value[2], value[3]);
      reinterpret_cast<float4*>(to)[1] = make_float4(value[4], value[5], value[6], value[7]);
    }
  }

  /// Adds the skip term to the next tile's sums, gates them and stores y; called
  /// once for each tile in turn.
  __device__ void finish(int tile) {
    const int tokens = tokens_from(tile, tokens_);
#pragma unroll
    for (int item = 0; item < S::kItems; ++item) {
      const int row = row_ + item * S::kItemRows;
      if (row >= tokens || channels_ == 0) continue;
      float u[8], y[8];
      queued(shared_.u[tile % kLongStages][item]).unpack(u);
      const auto* sums = reinterpret_cast<const float4*>(&shared_.sum[tile & 1][row][thread_ % S::kRowVectors * 8]);
      const float4 low = sums[0], high = sums[1];
      const float sum[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) y[i] = fmaf(skip_[i], u[i], sum[i]);
      if (z_ != nullptr) {
        float z[8];
        queued(shared_.z[tile % kLongStages][item]).unpack(z);
#pragma unroll
        for (int i = 0; i < 8; ++i) y[i] *= silu(z[i]);
      }
      Vec8<T> result;
      result.pack(y);
      T* to = y_ + item * S::kItemRows * params_.y_row_stride;
      if (aligned_) {
        result.store(to);
      } else {
        result.store_partial(to, channels_);
      }
    }
    y_ += S::kTile * params_.y_row_stride;
  }

 private:
  /// How many of the tile's tokens come before `end`.
  __device__ static int tokens_from(int tile, int end) { return min(max(end - tile * S::kTile, 0), S::kTile); }

  template <bool kAligned>
  __device__ void fetch_tile(int tile) {
    const int tokens = tokens_from(tile, tokens_);
    const int long_slot = tile % kLongStages, short_slot = tile % kShortStages;
#pragma unroll
    for (int item = 0; item < S::kItems; ++item) {
      if (row_ + item * S::kItemRows >= tokens || channels_ == 0) continue;
      fetch_vector<kAligned>(shared_.u[long_slot][item], u_ + item * S::kItemRows * params_.u_row_stride, channels_);
      fetch_vector<kAligned>(shared_.delta[short_slot][item], delta_ + item * S::kItemRows * params_.delta_row_stride,
                             channels_);
      if (z_ != nullptr)
        fetch_vector<kAligned>(shared_.z[long_slot][item], z_ + item * S::kItemRows * params_.z_row_stride, channels_);
    }
#pragma unroll
    for (int item = 0; item < S::kBcItems; ++item)
      if (bc_row_ + item * S::kBcItemRows < tokens && states_ > 0)
        fetch_vector<kAligned>(shared_.raw_bc[short_slot][item], bc_ + item * S::kBcItemRows * bc_stride_, states_);
  }

  template <bool kWhole>
  __device__ void prepare_steps(int tile, int live) {
#pragma unroll
    for (int item = 0; item < S::kItems; ++item) {
      const int row = row_ + item * S::kItemRows;
      if (row >= S::kTile) continue;
      float u[8], delta[8];
      queued(shared_.u[tile % kLongStages][item]).unpack(u);
      queued(shared_.delta[tile % kShortStages][item]).unpack(delta);
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        float step[4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int c = 2 * pair + i;
          const float d = softplus(delta[c] + bias_[c]);
          // Selected, not multiplied: what padding holds may be infinite.
          const bool keep = kWhole || (row < live && c < channels_);
          step[2 * i] = keep ? d : 0.f;
          step[2 * i + 1] = keep ? d * u[c] : 0.f;
        }
        shared_.step[tile & 1][row][swizzle(thread_ % S::kRowVectors * 4 + pair)] =
            make_float4(step[0], step[1], step[2], step[3]);
      }
    }
  }

  template <bool kAligned>
  __device__ void fetch_vector(typename SharedTile<T, S>::Item& to, const T* from, int count) {
    if constexpr (kAligned) {
#pragma unroll
      for (int i = 0; i < Vec8<T>::kUnits; ++i)
        copy_async_16(&to[i][thread_], reinterpret_cast<const uint4*>(from) + i);
    } else {
      Vec8<T> value;
      value.load_partial(from, count);
#pragma unroll
      for (int i = 0; i < Vec8<T>::kUnits; ++i) to[i][thread_] = value.unit[i];
    }
  }
  __device__ Vec8<T> queued(const typename SharedTile<T, S>::Item& from) const {
    Vec8<T> value;
#pragma unroll
    for (int i = 0; i < Vec8<T>::kUnits; ++i) value.unit[i] = from[i][thread_];
    return value;
  }

  const SelectiveScanParams& params_;
  SharedTile<T, S>& shared_;
  const int thread_;
  const bool aligned_;
  const int row_;
  const int bc_row_;
  const int bc_part_;
  int channels_;  // of this thread's eight, how many exist
  int states_;    // likewise
  bool whole_channels_;
  int tokens_;
  int live_tokens_;
  const T* u_;
  const T* delta_;
  const T* z_;
  const T* bc_;
  T* y_;
  int64_t bc_stride_;
  float bias_[8];
  float skip_[8];
};

template <typename S>
class ScanThread {
 public:
  __device__ ScanThread(const SelectiveScanParams& params, int thread)
      : lane_(thread % S::kLanes),
        local_channel_(thread / S::kLanes),
        channel_(int64_t{blockIdx.x} * S::kChannels + local_channel_) {
#pragma unroll
    for (int s = 0; s < S::kStatesPerThread; ++s) {
      const bool inside = channel_ < params.channels && state(s) < params.states;
      state_[s] = inside ? params.state_in[state_offset(params, s)] : 0.f;
      decay_[s] = inside ? -expf(params.a_log[channel_ * params.states + state(s)]) * kLog2E : 0.f;
    }
  }

  /// Runs the recurrence over one tile. Each pass loads operands of tokens to
  /// come and completes the previous pass's sums, so that neither is waited for.
  template <typename Tile>
  __device__ void scan(Tile& shared, int buffer) {
    const float* bc = &shared.bc[buffer][0][lane_ * S::kVec];
    const float* step = reinterpret_cast<const float*>(&shared.step[buffer][0][swizzle(local_channel_ / 2)]) +
                        local_channel_ % 2 * 2;
    float* sum = &shared.sum[buffer][lane_][local_channel_];
    Operands operands[kLookahead];
    float partial[S::kPass], previous[S::kPass];
#pragma unroll
    for (int k = 0; k < kLookahead; ++k) load(operands[k], bc, step, k);
#pragma unroll
    for (int k = 0; k < S::kPass; ++k) {
      previous[k] = advance(operands[k % kLookahead]);
      load(operands[k % kLookahead], bc, step, k + kLookahead);
    }
#pragma unroll S::kPassesUnrolled
    for (int t0 = S::kPass; t0 < S::kTile; t0 += S::kPass) {
#pragma unroll
      for (int k = 0; k < S::kPass; ++k) {
        partial[k] = advance(operands[k % kLookahead]);
        load(operands[k % kLookahead], bc, step, t0 + k + kLookahead);
      }
      sum[(t0 - S::kPass) * S::kSumStride] = reduce(previous);
#pragma unroll
      for (int k = 0; k < S::kPass; ++k) previous[k] = partial[k];
    }
    sum[(S::kTile - S::kPass) * S::kSumStride] = reduce(previous);
  }

  __device__ void store_state(const SelectiveScanParams& params) const {
#pragma unroll
    for (int s = 0; s < S::kStatesPerThread; ++s)
      if (channel_ < params.channels && state(s) < params.states)
        params.state_out[state_offset(params, s)] = state_[s];
  }

 private:
  // Of one token: (delta, delta * u) of the thread's channel, B and C of its states.
  struct Operands {
    FloatVec<2> step;
    FloatVec<S::kVec> b[S::kVecs], c[S::kVecs];
  };

  __device__ static void load(Operands& to, const float* bc, const float* step, int t) {
    to.step = *reinterpret_cast<const FloatVec<2>*>(step + t * 2 * S::kChannels);
#pragma unroll
    for (int q = 0; q < S::kVecs; ++q) {
      const float* at = bc + t * 2 * S::kStates + q * S::kLanes * S::kVec;
      to.b[q] = *reinterpret_cast<const FloatVec<S::kVec>*>(at);
      to.c[q] = *reinterpret_cast<const FloatVec<S::kVec>*>(at + S::kStates);
    }
  }

  /// The recurrence over one token; returns this lane's part of C.h.
  __device__ float advance(const Operands& in) {
    const float delta = in.step.value[0], input = in.step.value[1];
    float part = 0.f;
#pragma unroll
    for (int s = 0; s < S::kStatesPerThread; ++s) {
      const float b = in.b[s / S::kVec].value[s % S::kVec];
      const float c = in.c[s / S::kVec].value[s % S::kVec];
      state_[s] = fmaf(exp2_fast(delta * decay_[s]), state_[s], input * b);
      part = s == 0 ? c * state_[s] : fmaf(c, state_[s], part);
    }
    return part;
  }

  /// Sum l over the lanes of a channel, in lane l: each step halves the sums a
  /// lane is responsible for, kLanes - 1 shuffles for kLanes sums.
  __device__ float reduce(float (&partial)[S::kPass]) const {
#pragma unroll
    for (int half = S::kLanes / 2; half >= 1; half /= 2) {
      const bool upper = (lane_ & half) != 0;
#pragma unroll
      for (int i = 0; i < half; ++i) {
        const float send = upper ? partial[i] : partial[i + half];
        const float keep = upper ? partial[i + half] : partial[i];
        partial[i] = keep + __shfl_xor_sync(0xffffffffu, send, half);
      }
    }
    return partial[0];
  }

  // Lanes interleave by vector, so that their reads of B and C are contiguous.
  __device__ int state(int s) const {
    return s / S::kVec * S::kLanes * S::kVec + lane_ * S::kVec + s % S::kVec;
  }
  __device__ int64_t state_offset(const SelectiveScanParams& params, int s) const {
    return (int64_t{blockIdx.y} * params.channels + channel_) * params.states + state(s);
  }

  const int lane_;
  const int local_channel_;
  const int64_t channel_;
  float state_[S::kStatesPerThread];
  float decay_[S::kStatesPerThread];
};

/// Prefill. Some warps run the recurrence over tile i from shared memory while
/// others write out tile i-1 and prepare tile i+1: the recurrence is bound by
/// the special-function unit and by issue slots, the rest by memory, and kept
/// apart they overlap. Time is not split: a block walks all of it, since any
/// split evaluates the exponentials again.
template <typename T, typename S>
__global__ void __launch_bounds__(S::kThreads, 1)
    scan_kernel(const __grid_constant__ SelectiveScanParams params, bool aligned) {
  extern __shared__ uint4 shared_memory[];
  auto& shared = *reinterpret_cast<SharedTile<T, S>*>(shared_memory);
  const int tiles = static_cast<int>((params.tokens + S::kTile - 1) / S::kTile);

  if (threadIdx.x < S::kScanThreads) {
    ScanThread<S> scan(params, static_cast<int>(threadIdx.x));
    __syncthreads();
    for (int tile = 0; tile < tiles; ++tile) {
      scan.scan(shared, tile & 1);
      __syncthreads();
    }
    scan.store_state(params);
  } else {
    ElementThread<T, S> element(params, shared, static_cast<int>(threadIdx.x) - S::kScanThreads, aligned);
    element.fetch(0);
    commit_copies();
    element.fetch(1);
    commit_copies();
    wait_copies<1>();
    element.prepare(0);
    __syncthreads();
    for (int tile = 0; tile < tiles; ++tile) {
      element.fetch(tile + 2);
      commit_copies();
      wait_copies<1>();
      if (tile > 0) element.finish(tile - 1);
      if (tile + 1 < tiles) element.prepare(tile + 1);
      __syncthreads();
    }
    element.finish(tiles - 1);
  }
}

/// Decode: the state is read and written once, everything else is small. A
/// thread holds 4 states of a channel; its neighbours repeat the elementwise
/// arithmetic rather than wait for one another.
template <typename T, int kLanes>
__global__ void __launch_bounds__(128) step_kernel(const __grid_constant__ SelectiveScanParams params, bool aligned) {
  const int64_t thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t channel = thread / kLanes;
  const int64_t batch = blockIdx.y;
  const int lane = static_cast<int>(thread % kLanes);
  const int first_state = lane * 4;
  const bool inside = channel < params.channels;
  const bool vector = aligned && params.states == 4 * kLanes;
  const int64_t offset = (batch * params.channels + channel) * params.states + first_state;

  float state[4] = {}, decay[4] = {};
  if (inside && vector) {
    const float4 a_log = *reinterpret_cast<const float4*>(params.a_log + channel * params.states + first_state);
    const float4 h = *reinterpret_cast<const float4*>(params.state_in + offset);
    const float a_logs[4] = {a_log.x, a_log.y, a_log.z, a_log.w};
    const float states[4] = {h.x, h.y, h.z, h.w};
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      state[s] = states[s];
      decay[s] = -expf(a_logs[s]) * kLog2E;
    }
  } else if (inside) {
#pragma unroll
    for (int s = 0; s < 4; ++s)
      if (first_state + s < params.states) {
        state[s] = params.state_in[offset + s];
        decay[s] = -expf(params.a_log[channel * params.states + first_state + s]) * kLog2E;
      }
  }
  const float bias = inside && params.delta_bias != nullptr ? params.delta_bias[channel] : 0.f;
  const float skip = inside ? params.d_skip[channel] : 0.f;
  const int64_t live_tokens = params.lengths == nullptr ? params.tokens : params.lengths[batch];

  for (int64_t t = 0; t < params.tokens; ++t) {
    const int64_t row = batch * params.tokens + t;
    float sum = 0.f, u = 0.f;
    if (inside) {
      u = to_float(static_cast<const T*>(params.u)[row * params.u_row_stride + channel]);
      const bool live = t < live_tokens;
      const float raw = to_float(static_cast<const T*>(params.delta)[row * params.delta_row_stride + channel]);
      const float delta = live ? softplus(raw + bias) : 0.f;
      const float input = live ? delta * u : 0.f;
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const int n = first_state + s;
        if (n >= params.states) continue;
        const float b = live ? to_float(static_cast<const T*>(params.b)[row * params.b_row_stride + n]) : 0.f;
        const float c = to_float(static_cast<const T*>(params.c)[row * params.c_row_stride + n]);
        state[s] = fmaf(exp2_fast(delta * decay[s]), state[s], input * b);
        sum = fmaf(c, state[s], sum);
      }
    }
#pragma unroll
    for (int half = kLanes / 2; half >= 1; half /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, half);
    if (inside && lane == 0) {
      float y = fmaf(skip, u, sum);
      if (params.z != nullptr) y *= silu(to_float(static_cast<const T*>(params.z)[row * params.z_row_stride + channel]));
      static_cast<T*>(params.y)[row * params.y_row_stride + channel] = from_float<T>(y);
    }
  }

  if (inside && vector) {
    *reinterpret_cast<float4*>(params.state_out + offset) = make_float4(state[0], state[1], state[2], state[3]);
  } else if (inside) {
#pragma unroll
    for (int s = 0; s < 4; ++s)
      if (first_state + s < params.states) params.state_out[offset + s] = state[s];
  }
}

bool aligned_16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <typename T>
bool aligned_rows(const void* pointer, int64_t row_stride) {
  return aligned_16(pointer) && row_stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
}

template <typename T, int kLanes>
cudaError_t launch_step(const SelectiveScanParams& params, cudaStream_t stream) {
  constexpr int kThreads = 128;
  const int64_t blocks = (params.channels * kLanes + kThreads - 1) / kThreads;
  const bool aligned = aligned_16(params.a_log) && aligned_16(params.state_in) && aligned_16(params.state_out);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(params.batch));
  step_kernel<T, kLanes><<<grid, kThreads, 0, stream>>>(params, aligned);
  return cudaGetLastError();
}

template <typename T, typename S>
cudaError_t launch_scan(const SelectiveScanParams& params, cudaStream_t stream) {
  const bool aligned = params.channels % 8 == 0 && params.states % 8 == 0 &&
                       aligned_rows<T>(params.u, params.u_row_stride) &&
                       aligned_rows<T>(params.delta, params.delta_row_stride) &&
                       aligned_rows<T>(params.b, params.b_row_stride) &&
                       aligned_rows<T>(params.c, params.c_row_stride) &&
                       (params.z == nullptr || aligned_rows<T>(params.z, params.z_row_stride)) &&
                       aligned_rows<T>(params.y, params.y_row_stride);
  constexpr int kSharedBytes = sizeof(SharedTile<T, S>);
  static_assert(kSharedBytes <= 163 * 1024, "more than a block may have on sm_80");
  const cudaError_t status =
      cudaFuncSetAttribute(scan_kernel<T, S>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (status != cudaSuccess) return status;
  const int64_t blocks = (params.channels + S::kChannels - 1) / S::kChannels;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(params.batch));
  scan_kernel<T, S><<<grid, S::kThreads, kSharedBytes, stream>>>(params, aligned);
  return cudaGetLastError();
}

cudaError_t multiprocessors(int& count) {
  int device = 0;
  const cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  return cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
}

template <typename T>
cudaError_t dispatch(const SelectiveScanParams& params, cudaStream_t stream) {
  const int64_t n = params.states;
  if (params.tokens <= kMaxStepTokens) {
    if (n <= 8) return launch_step<T, 2>(params, stream);
    if (n <= 16) return launch_step<T, 4>(params, stream);
    if (n <= 32) return launch_step<T, 8>(params, stream);
    if (n <= 64) return launch_step<T, 16>(params, stream);
    return launch_step<T, 32>(params, stream);
  }
  // float32 inputs take twice the room in the ring.
  constexpr int kTile = sizeof(T) == 4 ? 16 : 32;
  if (n <= 8) return launch_scan<T, Shape<8, 64, 2, kTile>>(params, stream);
  if (n <= 16) {
    int processors = 0;
    const cudaError_t status = multiprocessors(processors);
    if (status != cudaSuccess) return status;
    // Narrower blocks do less work a clock, so they pay only where the wide
    // ones would leave multiprocessors without any.
    const auto fits = [&](int64_t width) { return (params.channels + width - 1) / width * params.batch <= processors; };
    if (fits(16)) return launch_scan<T, Shape<16, 16, 8, kTile>>(params, stream);
    if (fits(32)) return launch_scan<T, Shape<16, 32, 4, kTile>>(params, stream);
    return launch_scan<T, Shape<16, 64, 2, kTile>>(params, stream);
  }
  if (n <= 32) return launch_scan<T, Shape<32, 64, 4, kTile>>(params, stream);
  if (n <= 64) return launch_scan<T, Shape<64, 32, 8, 16>>(params, stream);
  return launch_scan<T, Shape<128, 32, 8, kTile / 2>>(params, stream);
}

}  // namespace

cudaError_t selective_scan(const SelectiveScanParams& params, DType dtype, cudaStream_t stream) {
  const bool sizes = params.batch >= 1 && params.batch <= 65535 && params.tokens >= 1 &&
                     params.tokens <= kSelectiveScanMaxTokens && params.channels >= 1 && params.states >= 1 &&
                     params.states <= kSelectiveScanMaxStates;
  const bool tensors = params.u != nullptr && params.delta != nullptr && params.b != nullptr && params.c != nullptr &&
                       params.y != nullptr && params.a_log != nullptr && params.d_skip != nullptr &&
                       params.state_in != nullptr && params.state_out != nullptr;
  if (!sizes || !tensors) return cudaErrorInvalidValue;
  switch (dtype) {
    case DType::kFloat32:
      return dispatch<float>(params, stream);
    case DType::kFloat16:
      return dispatch<__half>(params, stream);
    case DType::kBFloat16:
      return dispatch<__nv_bfloat16>(params, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace layerweave
