#include "mamba_inner.cuh"

#include "causal_conv.cuh"
#include "linear_packed.cuh"
#include "packed_panel.cuh"
#include "selective_scan.cuh"

namespace layerweave {
namespace {

// Sequences of the two decode kernels, as many as a panel's product takes.
constexpr int kMostSequences = 16;
// Channels whose convolution a block of the first kernel works out and multiplies.
constexpr int kSliceChunks = 8;
constexpr int kSliceColumns = kSliceChunks * kChunkColumns;
// A row of tokens apart, lanes of different tokens meet different banks.
constexpr int kRowPadding = 8;
constexpr int64_t kMostDynamicShared = 30 << 10;
constexpr int kNormThreads = 256;
// The second kernel's threads hold states through a product, which takes more
// registers than four blocks a multiprocessor leave.
constexpr int kStepBlocksPerProcessor = 3;

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

/// Columns of a row between x_proj and the scan: dt, b and c, each from a
/// multiple of 8 on.
struct Mixed {
  int64_t b, c, stride;
};
Mixed mixed_columns(const MambaInnerParams& p) {
  const int64_t b = round_up(p.dt_rank, 8), c = b + round_up(p.states, 8);
  return {b, c, c + round_up(p.states, 8)};
}

struct DecodePlan {
  int chunks, parts;       // of x_proj's columns
  int projected, stride;   // R + 2N, and as elements of a row of it
  int dt_columns;          // R rounded up to 8
  int shared_stride;       // of a row in shared memory: sequences in different banks
  int64_t partial_bytes, projected_bytes, shared_bytes, dt_proj_bytes;
};

DecodePlan decode_plan(const MambaInnerParams& p) {
  DecodePlan plan{};
  plan.chunks = static_cast<int>(packed_chunks(p.channels));
  plan.parts = (plan.chunks + kSliceChunks - 1) / kSliceChunks;
  plan.projected = static_cast<int>(p.dt_rank + 2 * p.states);
  plan.dt_columns = static_cast<int>(round_up(p.dt_rank, 8));
  plan.stride = static_cast<int>(round_up(plan.projected, 4));
  plan.shared_stride = static_cast<int>(round_up(plan.projected, 32)) + kRowPadding;
  plan.projected_bytes = p.batch * plan.stride * 4;
  plan.partial_bytes = plan.parts == 1 ? 0 : plan.parts * p.batch * packed_panels(plan.projected) * kPanelRows * 4;
  plan.dt_proj_bytes = packed_elements(p.channels, p.dt_rank) * (p.weights == PackedType::kInt8 ? 1 : 2);
  plan.shared_bytes = p.batch * ((plan.dt_columns + kRowPadding) * 2 + plan.shared_stride * 4);
  return plan;
}

bool decodes(const MambaInnerParams& p) {
  return p.tokens == 1 && p.batch <= kMostSequences && decode_plan(p).shared_bytes <= kMostDynamicShared;
}

/// The convolution's weights of 8 neighbouring channels.
template <typename T, int kKernel>
struct ConvWeights {
  float weight[8 * kKernel], bias[8];

  __device__ __forceinline__ ConvWeights(const MambaInnerParams& params, int64_t channel) {
#pragma unroll
    for (int k = 0; k < kKernel; ++k) load(static_cast<const T*>(params.conv_weight) + channel * kKernel + 8 * k, weight + 8 * k);
#pragma unroll
    for (int i = 0; i < 8; ++i) bias[i] = 0;
    if (params.conv_bias != nullptr) load(static_cast<const T*>(params.conv_bias) + channel, bias);
  }

 private:
  static __device__ __forceinline__ void load(const T* from, float* to) {
    Vec8<T> packed;
    packed.unit[0] = *reinterpret_cast<const uint4*>(from);
    float value[8];
    packed.unpack(value);
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = value[i];
  }
};

/// Past the L1, for step_kernel, which reads before it waits.
template <typename T>
__device__ __forceinline__ uint4 load_unit(const T* from) { return __ldcg(reinterpret_cast<const uint4*>(from)); }

/// The last inputs of 8 neighbouring channels of one sequence, and the newest.
template <typename T, int kKernel>
struct ConvWindow {
  static constexpr int kPast = kKernel - 1;
  Vec8<T> past[kPast], input;

  __device__ __forceinline__ void load(const MambaInnerParams& params, int64_t sequence, int64_t channel) {
    input.unit[0] = load_unit(static_cast<const T*>(params.xz) + sequence * 2 * params.channels + channel);
    const T* state = static_cast<const T*>(params.conv_state_in) + (sequence * params.channels + channel) * kPast;
#pragma unroll
    for (int k = 0; k < kPast; ++k) past[k].unit[0] = load_unit(state + 8 * k);
  }
  /// silu of the convolution, in the activations' type as causal_conv leaves it.
  __device__ __forceinline__ Vec8<T> convolve(const ConvWeights<T, kKernel>& weights) const {
    float newest[8], state[8 * kPast], out[8];
    input.unpack(newest);
#pragma unroll
    for (int k = 0; k < kPast; ++k) {
      float value[8];
      past[k].unpack(value);
#pragma unroll
      for (int i = 0; i < 8; ++i) state[8 * k + i] = value[i];
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float sum = weights.bias[i];
#pragma unroll
      for (int k = 0; k < kPast; ++k) sum = fmaf(weights.weight[i * kKernel + k], state[i * kPast + k], sum);
      out[i] = silu(fmaf(weights.weight[i * kKernel + kPast], newest[i], sum));
    }
    Vec8<T> packed;
    packed.pack(out);
    return packed;
  }
  /// The state one token on, or as it is.
  __device__ __forceinline__ void store_state(const MambaInnerParams& params, int64_t sequence, int64_t channel, bool advance) const {
    T before[8 * kPast], newest[8], after[8 * kPast];
    __builtin_memcpy(before, past, sizeof before);
    __builtin_memcpy(newest, &input, sizeof newest);
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int k = 0; k < kPast; ++k)
        after[i * kPast + k] = !advance ? before[i * kPast + k] : k + 1 < kPast ? before[i * kPast + k + 1] : newest[i];
    Vec8<T> packed[kPast];
    __builtin_memcpy(packed, after, sizeof after);
    T* to = static_cast<T*>(params.conv_state_out) + (sequence * params.channels + channel) * kPast;
#pragma unroll
    for (int k = 0; k < kPast; ++k) packed[k].store(to + 8 * k);
  }
};

/// Block (panel, part): 32 rows of x_proj times the convolution of a slice of the
/// channels, which every panel's block works out for itself rather than wait for
/// a launch of its own. The last block of a panel sums the parts.
template <typename T, PackedType kType, int kKernel>
__global__ void __launch_bounds__(kPanelThreads, kPanelBlocksPerProcessor)
    project_kernel(const __grid_constant__ MambaInnerParams params, DecodePlan plan, float* projected, float* partial) {
  __shared__ PanelShared shared;
  __shared__ alignas(16) T u[kMostSequences][kSliceColumns + kRowPadding];
  const int panel = blockIdx.x, part = blockIdx.y, sequences = static_cast<int>(params.batch);
  const int chunks = min(kSliceChunks, plan.chunks - part * kSliceChunks);
  const int64_t first_channel = int64_t{part} * kSliceColumns;
  const int channels = static_cast<int>(min(int64_t{kSliceColumns}, params.channels - first_channel));
  const uint4* weights =
      static_cast<const uint4*>(params.x_proj) + (int64_t{panel} * plan.chunks + part * kSliceChunks) * kLoadsPerChunk<kType> * 32;
  // On their way to the L2 while the convolution is worked out.
  prefetch(weights, int64_t{chunks} * kLoadsPerChunk<kType> * 512, threadIdx.x, kPanelThreads);
  if constexpr (kEarlyLaunch)
    prefetch(static_cast<const T*>(params.conv_weight) + first_channel * kKernel, int64_t{channels} * kKernel * 2, threadIdx.x, kPanelThreads);
  wait_for_kernels_before();
  let_next_kernel_start();  // not earlier: step_kernel reads xz and states before it waits
  constexpr int kGroups = kSliceColumns / 8, kRound = kPanelThreads / kGroups, kInFlight = 2;
  const int group = threadIdx.x % kGroups * 8;
  if (group < channels) {
    const ConvWeights<T, kKernel> conv(params, first_channel + group);
    for (int first = threadIdx.x / kGroups; first < sequences; first += kInFlight * kRound) {
      ConvWindow<T, kKernel> window[kInFlight];
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) window[k].load(params, min(first + k * kRound, sequences - 1), first_channel + group);
#pragma unroll
      for (int k = 0; k < kInFlight; ++k)
        if (first + k * kRound < sequences) window[k].convolve(conv).store(&u[first + k * kRound][group]);
    }
  }
  // And, behind all that is waited for here, what the next kernel reads.
  const int64_t thread = (int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * kPanelThreads + threadIdx.x, threads = int64_t{gridDim.x} * gridDim.y * kPanelThreads;
  prefetch(params.dt_proj, plan.dt_proj_bytes, thread, threads);
  prefetch(params.a_log, params.channels * params.states * 4, thread, threads);
  prefetch(params.ssm_state_in, params.batch * params.channels * params.states * 4, thread, threads);
  __syncthreads();
  block_multiply<T, kType>(weights, 0, chunks, 0, channels, sequences, [&](int n) { return u[n]; }, shared, [] {});
  const auto store = [&](int row, int n, float sum) {
    if (row >= plan.projected) return;
    if constexpr (kType == PackedType::kInt8) sum *= params.x_proj_scale[row];
    projected[n * plan.stride + row] = sum;
  };
  const auto partial_at = [&](int p, int n) { return partial + ((int64_t{p} * gridDim.x + panel) * sequences + n) * kPanelRows; };
  for (int i = threadIdx.x; i < sequences * kPanelRows; i += kPanelThreads) {
    const int n = i / kPanelRows, r = i % kPanelRows;
    const float sum = shared.total(r / 16, r % 16, n);
    if (plan.parts == 1)
      store(panel * kPanelRows + r, n, sum);
    else
      partial_at(part, n)[r] = sum;
  }
  if (plan.parts == 1 || !last_to_arrive(params.arrivals + panel, plan.parts)) return;
  for (int i = threadIdx.x; i < sequences * (kPanelRows / 4); i += kPanelThreads) {
    const int n = i / (kPanelRows / 4), r = i % (kPanelRows / 4) * 4;
    float4 sum{};
#pragma unroll 16
    for (int p = 0; p < plan.parts; ++p) {
      const float4 v = __ldcg(reinterpret_cast<const float4*>(partial_at(p, n) + r));
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    const int row = panel * kPanelRows + r;
    store(row, n, sum.x), store(row + 1, n, sum.y), store(row + 2, n, sum.z), store(row + 3, n, sum.w);
  }
}

/// `width` neighbouring lanes turn `count` values into their RMS norm, or leave
/// them without a weight: put(i, value).
template <typename T, typename Get, typename Put>
__device__ __forceinline__ void normalise(int width, int count, const T* weight, float eps, Get get, Put put) {
  const int lane = threadIdx.x % width;
  float factor = 1;
  if (weight != nullptr) {
    float squares = 0;
#pragma unroll 8
    for (int i = lane; i < count; i += width) squares = fmaf(get(i), get(i), squares);
    for (int step = width / 2; step > 0; step /= 2) squares += __shfl_xor_sync(~0u, squares, step);
    factor = rsqrtf(squares / static_cast<float>(count) + eps);
  }
#pragma unroll 8
  for (int i = lane; i < count; i += width) put(i, weight == nullptr ? get(i) : get(i) * factor * to_float(weight[i]));
}

__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}

/// Of a (sequence, channel): step size, step size times u, u, silu of the gate.
using Step = float4;

/// Calls each(sequence, group) for the groups of 8 channels of a panel.
template <typename Each>
__device__ __forceinline__ void for_groups(const MambaInnerParams& params, int64_t first_channel, Each each) {
  for (int i = threadIdx.x; i < params.batch * (kPanelRows / 8); i += kPanelThreads) {
    const int group = i % (kPanelRows / 8) * 8;
    if (first_channel + group < params.channels) each(i / (kPanelRows / 8), group);
  }
}

/// Puts u and the gate of a panel's channels into `steps`.
template <typename T, int kKernel>
__device__ __forceinline__ void convolve_panel(const MambaInnerParams& params, int64_t first_channel, Step (*steps)[kPanelRows]) {
  for_groups(params, first_channel, [&](int n, int group) {
    const int64_t channel = first_channel + group;
    ConvWindow<T, kKernel> window;
    window.load(params, n, channel);
    Vec8<T> packed;
    packed.unit[0] = load_unit(static_cast<const T*>(params.xz) + (n * 2 + 1) * params.channels + channel);
    float u[8], gate[8];
    packed.unpack(gate);
    window.convolve(ConvWeights<T, kKernel>(params, channel)).unpack(u);
#pragma unroll
    for (int k = 0; k < 8; ++k) steps[n][group + k] = Step{0, 0, u[k], silu(gate[k])};
  });
}

/// Writes the new state of a panel's convolution.
template <typename T, int kKernel, typename Live>
__device__ __forceinline__ void advance_panel(const MambaInnerParams& params, int64_t first_channel, Live live) {
  for_groups(params, first_channel, [&](int n, int group) {
    ConvWindow<T, kKernel> window;
    window.load(params, n, first_channel + group);
    window.store_state(params, n, first_channel + group, live(n));
  });
}

/// Block: 32 channels from the projection's output to y and the new states. A
/// thread has 4 states of a channel, which has kLanes threads.
template <typename T, PackedType kType, int kLanes>
__global__ void __launch_bounds__(kPanelThreads, kStepBlocksPerProcessor)
    step_kernel(const __grid_constant__ MambaInnerParams params, DecodePlan plan, const float* projected) {
  let_next_kernel_start();
  extern __shared__ uint4 dynamic_shared[];
  __shared__ PanelShared shared;
  __shared__ Step steps[kMostSequences][kPanelRows];
  const int sequences = static_cast<int>(params.batch), states = static_cast<int>(params.states);
  const int dt_rank = static_cast<int>(params.dt_rank), dt_stride = plan.dt_columns + kRowPadding;
  const int64_t first_channel = int64_t{blockIdx.x} * kPanelRows;
  const int chunks = (plan.dt_columns + kChunkColumns - 1) / kChunkColumns;
  const uint4* weights = static_cast<const uint4*>(params.dt_proj) + blockIdx.x * int64_t{chunks} * kLoadsPerChunk<kType> * 32;
  T* const dt = reinterpret_cast<T*>(dynamic_shared);
  float* const rows = reinterpret_cast<float*>(dt + sequences * dt_stride);
  const auto live = [&](int n) { return params.lengths == nullptr || params.lengths[n] > 0; };
  // A pass is kPanelThreads / kLanes channels, of as many sequences if a panel
  // has fewer.
  constexpr int kPassChannels = kPanelThreads / kLanes < kPanelRows ? kPanelThreads / kLanes : kPanelRows;
  constexpr int kPassSequences = kPanelThreads / kLanes / kPassChannels;
  constexpr int kInFlight = 8;
  const int lane = threadIdx.x % kLanes, first_state = lane * 4;
  const bool whole = states == 4 * kLanes;
  const int own_row = static_cast<int>(threadIdx.x) / kLanes % kPassChannels, own_sequence = static_cast<int>(threadIdx.x) / (kLanes * kPassChannels);
  const auto load4 = [&](const float* from, bool inside, float(&to)[4]) {
    if (whole && inside) {
      const float4 v = __ldcg(reinterpret_cast<const float4*>(from));
      to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    } else {
#pragma unroll
      for (int s = 0; s < 4; ++s) to[s] = inside && first_state + s < states ? __ldcg(from + s) : 0.f;
    }
  };
  const auto offset = [&](int n, int64_t channel) { return (n * params.channels + channel) * states + first_state; };
  float decay[4], state[kInFlight][4];
  const auto load_decay = [&](int r) {
    load4(params.a_log + (first_channel + r) * states + first_state, first_channel + r < params.channels, decay);
#pragma unroll
    for (int s = 0; s < 4; ++s) decay[s] = -expf(decay[s]) * kLog2E;
  };
  const auto load_states = [&](int r, int first) {
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const int n = first + own_sequence + k * kPassSequences;
      if (n < sequences) load4(params.ssm_state_in + offset(n, first_channel + r), first_channel + r < params.channels, state[k]);
    }
  };

  // Before the projection is there: all that doesn't need it, and nothing that
  // writes what the kernel before reads.
  load_states(own_row, 0);
  load_decay(own_row);
  if (params.kernel == 2)
    convolve_panel<T, 2>(params, first_channel, steps);
  else if (params.kernel == 3)
    convolve_panel<T, 3>(params, first_channel, steps);
  else
    convolve_panel<T, 4>(params, first_channel, steps);
  wait_for_kernels_before();
  for (int i = threadIdx.x; i < sequences * (plan.stride / 4); i += kPanelThreads) {
    const int n = i / (plan.stride / 4), column = i % (plan.stride / 4) * 4;
    copy_async_16(rows + n * plan.shared_stride + column, projected + n * plan.stride + column);
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  const int width = sequences <= 4 ? 32 : sequences <= 8 ? 16 : 8;
  // Lanes without a sequence have nothing to do, but lanes add up together.
  const int own = static_cast<int>(threadIdx.x) / width;
  const bool has = own < sequences, own_live = has && live(own);
  float* const row = rows + own * plan.shared_stride;
  T* const dt_row = dt + own * dt_stride;
  normalise(width, has ? dt_rank : 0, static_cast<const T*>(params.dt_norm), params.dt_eps, [&](int i) { return row[i]; },
            [&](int i, float value) { dt_row[i] = from_float<T>(value); });
  for (int i = dt_rank + threadIdx.x % width; has && i < plan.dt_columns; i += width) dt_row[i] = from_float<T>(0.f);
  float* const b_row = row + dt_rank;
  float* const c_row = b_row + states;
  normalise(width, has ? states : 0, static_cast<const T*>(params.b_norm), params.b_eps, [&](int i) { return b_row[i]; },
            [&](int i, float value) { b_row[i] = own_live ? value : 0.f; });
  normalise(width, has ? states : 0, static_cast<const T*>(params.c_norm), params.c_eps, [&](int i) { return c_row[i]; },
            [&](int i, float value) { c_row[i] = value; });
  __syncthreads();
  block_multiply<T, kType>(weights, 0, chunks, 0, plan.dt_columns, sequences, [&](int n) { return dt + n * dt_stride; }, shared, [] {});
  for (int i = threadIdx.x; i < sequences * kPanelRows; i += kPanelThreads) {
    const int n = i / kPanelRows, r = i % kPanelRows;
    const int64_t channel = first_channel + r;
    if (channel >= params.channels) continue;
    float raw = shared.total(r / 16, r % 16, n);
    if constexpr (kType == PackedType::kInt8) raw *= params.dt_proj_scale[channel];
    if (params.dt_bias != nullptr) raw += params.dt_bias[channel];
    Step& step = steps[n][r];
    step.x = live(n) ? softplus(raw) : 0.f;
    step.y = live(n) ? step.x * step.z : 0.f;
  }
  __syncthreads();

  for (int r = own_row; r < kPanelRows; r += kPassChannels) {
    const int64_t channel = first_channel + r;
    const bool inside = channel < params.channels;
    if (r != own_row) load_decay(r);
    const float skip = inside ? params.d_skip[channel] : 0.f;
    // Every thread makes as many turns, since a channel's lanes add up together.
    for (int first = 0; first < sequences; first += kPassSequences * kInFlight) {
      if (r != own_row || first != 0) load_states(r, first);
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) {
        const int n = first + own_sequence + k * kPassSequences;
        if (first + k * kPassSequences >= sequences) break;
        float sum = 0;
        Step step{};
        if (n < sequences && inside) {
          step = steps[n][r];
          const float* b = rows + n * plan.shared_stride + dt_rank + first_state;
#pragma unroll
          for (int s = 0; s < 4; ++s) {
            if (first_state + s >= states) continue;
            state[k][s] = fmaf(exp2_fast(step.x * decay[s]), state[k][s], step.y * b[s]);
            sum = fmaf(b[states + s], state[k][s], sum);
          }
          float* to = params.ssm_state_out + offset(n, channel);
          if (whole) {
            *reinterpret_cast<float4*>(to) = make_float4(state[k][0], state[k][1], state[k][2], state[k][3]);
          } else {
#pragma unroll
            for (int s = 0; s < 4; ++s)
              if (first_state + s < states) to[s] = state[k][s];
          }
        }
#pragma unroll
        for (int half = kLanes / 2; half >= 1; half /= 2) sum += __shfl_xor_sync(~0u, sum, half);
        if (n < sequences && inside && lane == 0)
          static_cast<T*>(params.y)[n * params.channels + channel] = from_float<T>(fmaf(skip, step.z, sum) * step.w);
      }
    }
  }
  if (params.kernel == 2)
    advance_panel<T, 2>(params, first_channel, live);
  else if (params.kernel == 3)
    advance_panel<T, 3>(params, first_channel, live);
  else
    advance_panel<T, 4>(params, first_channel, live);
}

template <typename T, PackedType kType>
cudaError_t decode(const MambaInnerParams& params, cudaStream_t stream) {
  const DecodePlan plan = decode_plan(params);
  float* const projected = static_cast<float*>(params.workspace);
  float* const partial = reinterpret_cast<float*>(static_cast<char*>(params.workspace) + plan.projected_bytes);
  const dim3 grid(static_cast<unsigned>(packed_panels(plan.projected)), static_cast<unsigned>(plan.parts));
  const auto project = [&](auto kernel) {
    return launch_early(project_kernel<T, kType, decltype(kernel)::value>, grid, kPanelThreads, 0, stream, params, plan, projected, partial);
  };
  const cudaError_t status = params.kernel == 2   ? project(std::integral_constant<int, 2>{})
                             : params.kernel == 3 ? project(std::integral_constant<int, 3>{})
                                                  : project(std::integral_constant<int, 4>{});
  if (status != cudaSuccess) return status;
  const auto step = [&](auto lanes) {
    return launch_early(step_kernel<T, kType, decltype(lanes)::value>, dim3(static_cast<unsigned>(packed_panels(params.channels))), kPanelThreads,
                        plan.shared_bytes, stream, params, plan, projected);
  };
  if (params.states <= 8) return step(std::integral_constant<int, 2>{});
  if (params.states <= 16) return step(std::integral_constant<int, 4>{});
  if (params.states <= 32) return step(std::integral_constant<int, 8>{});
  if (params.states <= 64) return step(std::integral_constant<int, 16>{});
  return step(std::integral_constant<int, 32>{});
}

/// A warp makes a row's dt, b and c of the projection's.
template <typename T>
__global__ void __launch_bounds__(kNormThreads)
    norm_kernel(const __grid_constant__ MambaInnerParams params, int64_t rows, Mixed columns, const T* projected, T* mixed) {
  const int64_t row = (int64_t{blockIdx.x} * kNormThreads + threadIdx.x) / 32;
  if (row >= rows) return;
  const int dt_rank = static_cast<int>(params.dt_rank), states = static_cast<int>(params.states);
  const T* from = projected + row * (dt_rank + 2 * states);
  T* const to = mixed + row * columns.stride;
  const auto part = [&](const T* source, T* target, int count, const void* weight, float eps) {
    normalise(32, count, static_cast<const T*>(weight), eps, [&](int i) { return to_float(source[i]); },
              [&](int i, float value) { target[i] = from_float<T>(value); });
  };
  part(from, to, dt_rank, params.dt_norm, params.dt_eps);
  for (int64_t i = dt_rank + threadIdx.x % 32; i < columns.b; i += 32) to[i] = from_float<T>(0.f);
  part(from + dt_rank, to + columns.b, states, params.b_norm, params.b_eps);
  part(from + dt_rank + states, to + columns.c, states, params.c_norm, params.c_eps);
}

struct PrefillPlan {
  LinearPackedParams x_proj, dt_proj;
  int64_t u, projected, mixed, linear, bytes;  // where they lie in the workspace
};

PrefillPlan prefill_plan(const MambaInnerParams& p) {
  const int64_t rows = p.batch * p.tokens, projected = p.dt_rank + 2 * p.states;
  const Mixed columns = mixed_columns(p);
  PrefillPlan plan{};
  plan.x_proj.tokens = plan.dt_proj.tokens = rows;
  plan.x_proj.weights = plan.dt_proj.weights = p.weights;
  plan.x_proj.columns = plan.x_proj.x_row_stride = p.channels;
  plan.x_proj.rows = plan.x_proj.y_row_stride = projected;
  plan.dt_proj.columns = columns.b;
  plan.dt_proj.x_row_stride = columns.stride;
  plan.dt_proj.rows = plan.dt_proj.y_row_stride = p.channels;
  const auto elements = [](int64_t count) { return round_up(count * 2, 256); };
  plan.projected = plan.u + elements(rows * p.channels);
  plan.mixed = plan.projected + elements(rows * projected);
  plan.linear = plan.mixed + elements(rows * columns.stride);
  plan.bytes = plan.linear + std::max(linear_packed_workspace(plan.x_proj), linear_packed_workspace(plan.dt_proj));
  return plan;
}

template <typename T>
cudaError_t prefill(const MambaInnerParams& params, DType dtype, cudaStream_t stream) {
  PrefillPlan plan = prefill_plan(params);
  const Mixed columns = mixed_columns(params);
  char* const base = static_cast<char*>(params.workspace);
  T* const u = reinterpret_cast<T*>(base + plan.u);
  T* const mixed = reinterpret_cast<T*>(base + plan.mixed);
  const int64_t rows = params.batch * params.tokens;

  CausalConvParams conv{};
  conv.batch = params.batch;
  conv.tokens = params.tokens;
  conv.channels = params.channels;
  conv.kernel = params.kernel;
  conv.x = params.xz;
  conv.x_row_stride = 2 * params.channels;
  conv.y = u;
  conv.y_row_stride = params.channels;
  conv.weight = params.conv_weight;
  conv.bias = params.conv_bias;
  conv.lengths = params.lengths;
  conv.state_in = params.conv_state_in;
  conv.state_out = params.conv_state_out;
  cudaError_t status = causal_conv(conv, dtype, stream);
  if (status != cudaSuccess) return status;

  plan.x_proj.weight = params.x_proj;
  plan.x_proj.scale = params.x_proj_scale;
  plan.x_proj.x = u;
  plan.x_proj.y = base + plan.projected;
  plan.x_proj.workspace = base + plan.linear;
  plan.x_proj.arrivals = params.arrivals;
  status = linear_packed(plan.x_proj, dtype, stream);
  if (status != cudaSuccess) return status;

  norm_kernel<T><<<static_cast<unsigned>((rows * 32 + kNormThreads - 1) / kNormThreads), kNormThreads, 0, stream>>>(
      params, rows, columns, reinterpret_cast<const T*>(base + plan.projected), mixed);
  status = cudaGetLastError();
  if (status != cudaSuccess) return status;

  plan.dt_proj.weight = params.dt_proj;
  plan.dt_proj.scale = params.dt_proj_scale;
  plan.dt_proj.x = mixed;
  plan.dt_proj.y = params.y;  // the steps, until the scan puts its result in their place
  plan.dt_proj.workspace = base + plan.linear;
  plan.dt_proj.arrivals = params.arrivals;
  status = linear_packed(plan.dt_proj, dtype, stream);
  if (status != cudaSuccess) return status;

  SelectiveScanParams scan{};
  scan.batch = params.batch;
  scan.tokens = params.tokens;
  scan.channels = params.channels;
  scan.states = params.states;
  scan.u = u;
  scan.delta = scan.y = params.y;
  scan.b = mixed + columns.b;
  scan.c = mixed + columns.c;
  scan.z = static_cast<const T*>(params.xz) + params.channels;
  scan.u_row_stride = scan.delta_row_stride = scan.y_row_stride = params.channels;
  scan.b_row_stride = scan.c_row_stride = columns.stride;
  scan.z_row_stride = 2 * params.channels;
  scan.a_log = params.a_log;
  scan.d_skip = params.d_skip;
  scan.delta_bias = params.dt_bias;
  scan.lengths = params.lengths;
  scan.state_in = params.ssm_state_in;
  scan.state_out = params.ssm_state_out;
  return selective_scan(scan, dtype, stream);
}

template <typename T>
cudaError_t dispatch(const MambaInnerParams& params, DType dtype, cudaStream_t stream) {
  if (!decodes(params)) return prefill<T>(params, dtype, stream);
  return params.weights == PackedType::kInt8 ? decode<T, PackedType::kInt8>(params, stream) : decode<T, PackedType::k16Bit>(params, stream);
}

}  // namespace

int64_t mamba_inner_workspace(const MambaInnerParams& params) {
  if (!decodes(params)) return prefill_plan(params).bytes;
  const DecodePlan plan = decode_plan(params);
  return plan.projected_bytes + plan.partial_bytes;
}

int64_t mamba_inner_arrivals(const MambaInnerParams& params) {
  const PrefillPlan plan = prefill_plan(params);
  return std::max(linear_packed_arrivals(plan.x_proj), linear_packed_arrivals(plan.dt_proj));
}

cudaError_t mamba_inner(const MambaInnerParams& params, DType dtype, cudaStream_t stream) {
  const MambaInnerParams& p = params;
  if (p.batch < 1 || p.batch > 65535 || p.tokens < 1 || p.tokens > (int64_t{1} << 26) / p.batch || p.channels < 8 || p.channels % 8 != 0 ||
      p.channels > 1 << 20 || p.states < 1 || p.states > kSelectiveScanMaxStates || p.dt_rank < 1 || p.dt_rank > 1 << 20 || p.kernel < 2 ||
      p.kernel > 4 || dtype == DType::kFloat32)
    return cudaErrorInvalidValue;
  if (p.weights == PackedType::kInt8 && (p.x_proj_scale == nullptr || p.dt_proj_scale == nullptr)) return cudaErrorInvalidValue;
  const int norms = (p.dt_norm != nullptr) + (p.b_norm != nullptr) + (p.c_norm != nullptr);
  if (norms != 0 && norms != 3) return cudaErrorInvalidValue;
  for (const void* tensor : {p.xz, p.conv_weight, p.x_proj, p.dt_proj, static_cast<const void*>(p.a_log), static_cast<const void*>(p.d_skip),
                             p.conv_state_in, static_cast<const void*>(p.conv_state_out), static_cast<const void*>(p.ssm_state_in),
                             static_cast<const void*>(p.ssm_state_out), static_cast<const void*>(p.y), static_cast<const void*>(p.workspace)})
    if (tensor == nullptr || !aligned16(tensor)) return cudaErrorInvalidValue;
  if (!aligned16(p.conv_bias) || p.arrivals == nullptr) return cudaErrorInvalidValue;
  return dtype == DType::kBFloat16 ? dispatch<__nv_bfloat16>(params, dtype, stream) : dispatch<__half>(params, dtype, stream);
}

}  // namespace layerweave
