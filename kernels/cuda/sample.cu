#include "sample.cuh"

#include <cmath>

namespace layerweave {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
// Keys are 32 bits, found by their upper 11, the next 11, the last 10.
constexpr int kBins = 2048;
// The best token's weight. V of them fit 64 bits.
constexpr double kOne = 0x1p45;
static_assert(kSampleMaxVocabulary <= int64_t{1} << 18);

/// Keys order as the logits do, -0 and 0 being one.
__device__ __forceinline__ uint32_t key_of(float logit) {
  const uint32_t bits = __float_as_uint(logit + 0.f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// The sum or the largest of all threads' values, at all of them.
template <typename V, typename Combine>
__device__ __forceinline__ V combine_block(V value, V (&shared)[kWarps], const Combine& combine) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value = combine(value, __shfl_xor_sync(~0u, value, offset));
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  value = shared[threadIdx.x % 32];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value = combine(value, __shfl_xor_sync(~0u, value, offset));
  return value;
}

__device__ __forceinline__ uint64_t scan_warp(uint64_t value) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint64_t before = __shfl_up_sync(~0u, value, offset);
    if (threadIdx.x % 32 >= offset) value += before;
  }
  return value;
}

/// The sum up to and with this thread's value, and of all threads'.
__device__ __forceinline__ uint64_t scan_block(uint64_t value, uint64_t (&shared)[kWarps], uint64_t& total) {
  const uint64_t within = scan_warp(value);
  __syncthreads();
  if (threadIdx.x % 32 == 31) shared[threadIdx.x / 32] = within;
  __syncthreads();
  const uint64_t warps = scan_warp(shared[threadIdx.x % 32]);
  total = __shfl_sync(~0u, warps, 31);
  const uint64_t before = __shfl_sync(~0u, warps, max(static_cast<int>(threadIdx.x / 32) - 1, 0));
  return within + (threadIdx.x < 32 ? 0 : before);
}

/// Hands use(i, load(i)) the elements begin, begin + step, ... below end, with the
/// loads of several in flight: a walk of one load after another waits for most of its time.
template <typename Load, typename Use>
__device__ __forceinline__ void walk(int64_t begin, int64_t end, int step, const Load& load, const Use& use) {
  constexpr int kInFlight = sizeof(load(begin)) > 4 ? 8 : 16;  // what 64 registers hold
  for (int64_t base = begin; base < end; base += step * kInFlight) {
    decltype(load(base)) value[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k)
      if (base + k * step < end) value[k] = load(base + k * step);
#pragma unroll
    for (int k = 0; k < kInFlight; ++k)
      if (base + k * step < end) use(base + k * step, value[k]);
  }
}

struct KeyMass {
  uint32_t key;
  uint64_t mass;
};

struct Selected {
  uint32_t key;
  uint64_t above;  // mass of larger keys
};

struct SelectShared {
  uint32_t low[kBins], high[kBins];  // halves of the bins' masses: shared memory adds 32 bits at a time
  uint64_t warps[kWarps];
  Selected selected;
};

/// The largest key that, with all larger ones, has a mass of at least `needed`,
/// which is above 0 and no more than the whole mass.
template <typename Load>
__device__ Selected select(int64_t count, uint64_t needed, SelectShared& shared, const Load& load) {
  Selected found{0, 0};
  for (int pass = 0; pass < 3; ++pass) {
    const int shift = pass == 0 ? 21 : pass == 1 ? 10 : 0;
    const uint32_t known = pass == 0 ? 0 : pass == 1 ? 0xffe00000u : 0xfffffc00u, mask = pass == 2 ? 1023 : 2047;
    for (int i = threadIdx.x; i < kBins; i += kThreads) shared.low[i] = shared.high[i] = 0;
    __syncthreads();
    walk(threadIdx.x, count, kThreads, load, [&](int64_t, KeyMass element) {
      if ((element.key & known) != found.key || element.mass == 0) return;
      const uint32_t bin = element.key >> shift & mask, low = static_cast<uint32_t>(element.mass), before = atomicAdd(&shared.low[bin], low);
      const uint32_t high = static_cast<uint32_t>(element.mass >> 32) + (before + low < low ? 1 : 0);
      if (high != 0) atomicAdd(&shared.high[bin], high);
    });
    __syncthreads();
    // Bins from the highest: a thread has two of them.
    const int high = kBins - 1 - 2 * static_cast<int>(threadIdx.x);
    const uint64_t first = uint64_t{shared.high[high]} << 32 | shared.low[high], second = uint64_t{shared.high[high - 1]} << 32 | shared.low[high - 1];
    const uint64_t mine = first + second;
    const uint64_t within = scan_warp(mine);
    if (threadIdx.x % 32 == 31) shared.warps[threadIdx.x / 32] = within;
    __syncthreads();
    uint64_t before = found.above + within - mine;
    for (int w = 0; w < static_cast<int>(threadIdx.x / 32); ++w) before += shared.warps[w];
    if (before < needed && before + mine >= needed) {
      const bool upper = before + first >= needed;
      shared.selected = {found.key | static_cast<uint32_t>(upper ? high : high - 1) << shift, upper ? before : before + first};
    }
    __syncthreads();
    found = shared.selected;
  }
  return found;
}

__device__ __forceinline__ uint32_t rotate(uint32_t x, int by) { return x << by | x >> (32 - by); }

/// xoshiro128** (Blackman and Vigna, 2018).
__device__ __forceinline__ uint32_t draw(uint32_t (&s)[4]) {
  const uint32_t result = rotate(s[1] * 5, 7) * 9, t = s[1] << 9;
  s[2] ^= s[0];
  s[3] ^= s[1];
  s[1] ^= s[2];
  s[0] ^= s[3];
  s[2] ^= t;
  s[3] = rotate(s[3], 11);
  return result;
}

/// A block chooses a row's token.
__global__ void __launch_bounds__(kThreads) sample_kernel(const __grid_constant__ SampleParams params) {
  __shared__ SelectShared select_shared;
  __shared__ uint64_t shared[kWarps], ties_of[kWarps], mass_of[kWarps], tied_mass_of[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t count = params.vocabulary;
  const float* const logits = params.logits + blockIdx.x * params.logits_row_stride;
  SampleRow& row = params.rows[blockIdx.x];

  // The best token is the largest key with the lowest id; NaN is above all.
  uint64_t best_of_thread = 0;
  const auto logit_at = [&](int64_t i) { return logits[i]; };
  walk(threadIdx.x, count, kThreads, logit_at, [&](int64_t i, float logit) {
    const uint32_t key = logit != logit ? 0xffffffffu : key_of(logit);
    best_of_thread = max(best_of_thread, uint64_t{key} << 32 | static_cast<uint32_t>(~i));
  });
  const uint64_t best_token = combine_block(best_of_thread, shared, [](uint64_t a, uint64_t b) { return max(a, b); });
  const uint32_t best_key = static_cast<uint32_t>(best_token >> 32);
  const int64_t best_id = static_cast<uint32_t>(~best_token);
  if (best_key <= key_of(-INFINITY) || best_key >= key_of(INFINITY) || row.temperature == 0) {
    if (threadIdx.x == 0) params.tokens[blockIdx.x] = best_key <= key_of(-INFINITY) || best_key >= key_of(INFINITY) ? -1 : best_id;
    return;
  }

  uint32_t threshold = 0;
  if (row.top_k > 0 && row.top_k < count)
    threshold = select(count, static_cast<uint64_t>(row.top_k), select_shared, [&](int64_t i) { return KeyMass{key_of(logits[i]), 1}; }).key;

  uint64_t* const weights = static_cast<uint64_t*>(params.workspace) + blockIdx.x * count;
  const double best = logits[best_id], sharpness = 1 / row.temperature;
  const auto weight_of = [&](float logit) {
    const double exponent = (logit - best) * sharpness;
    // exp(-32) rounds to 0 in units of 2^-45.
    return exponent > -32 ? uint64_t{__double2ull_rn(exp(exponent) * kOne)} : 0;
  };
  uint64_t total = 0;
  walk(threadIdx.x, count, kThreads, logit_at, [&](int64_t i, float logit) {
    const uint64_t weight = key_of(logit) < threshold ? 0 : weight_of(logit);
    weights[i] = weight;
    total += weight;
  });
  const auto add = [](uint64_t a, uint64_t b) { return a + b; };
  total = combine_block(total, shared, add);

  const auto keyed_mass = [&](int64_t i) { return KeyMass{key_of(logits[i]), weights[i]}; };

  // Of the tokens tied at the threshold the first `ties` stay.
  uint64_t ties = ~uint64_t{0};
  if (row.top_p < 1) {
    const uint64_t needed = max(uint64_t{1}, min(total, uint64_t{__double2ull_ru(row.top_p * static_cast<double>(total))}));
    const Selected selected = select(count, needed, select_shared, keyed_mass);
    const uint32_t bits = selected.key & 0x80000000u ? selected.key & 0x7fffffffu : ~selected.key;
    const uint64_t weight = weight_of(__uint_as_float(bits));
    threshold = selected.key;
    ties = (needed - selected.above + weight - 1) / weight;
  }

  // A warp has a piece of the vocabulary: the mass above the threshold and the ties in it.
  __syncthreads();  // a warp reads weights that others wrote
  const double least = row.min_p * kOne;
  const auto kept = [&](uint64_t weight) { return static_cast<double>(weight) >= least ? weight : uint64_t{0}; };
  const int64_t piece = (count + kThreads - 1) / kThreads * 32, begin = min(warp * piece, count), end = min(begin + piece, count);
  uint64_t mass = 0, tied = 0, tied_mass = 0;
  walk(begin + lane, end, 32, keyed_mass, [&](int64_t, KeyMass element) {
    if (element.key > threshold) mass += kept(element.mass);
    if (element.key == threshold) {
      ++tied;
      tied_mass = kept(element.mass);
    }
  });
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    mass += __shfl_xor_sync(~0u, mass, offset);
    tied += __shfl_xor_sync(~0u, tied, offset);
    tied_mass = max(tied_mass, __shfl_xor_sync(~0u, tied_mass, offset));
  }
  if (lane == 0) {
    ties_of[warp] = tied;
    mass_of[warp] = mass;
    tied_mass_of[warp] = tied_mass;
  }
  __syncthreads();
  uint64_t left = 0, ties_left = ties;
  for (int w = 0; w < kWarps; ++w) {
    const uint64_t stay = min(ties_left, ties_of[w]);
    left += mass_of[w] + stay * tied_mass_of[w];
    ties_left -= stay;
  }

  uint32_t state[4] = {row.state[0], row.state[1], row.state[2], row.state[3]};
  const uint64_t upper = draw(state) >> 5, random = upper << 26 | draw(state) >> 6;  // of 2^53
  uint64_t target = __umul64hi(random, left) << 11 | random * left >> 53;
  __syncthreads();  // all have read the state
  if (threadIdx.x == 0)
    for (int k = 0; k < 4; ++k) row.state[k] = state[k];

  // The piece that the target lies in, then the token.
  int chosen = 0;
  for (ties_left = ties; chosen < kWarps - 1; ++chosen) {
    const uint64_t stay = min(ties_left, ties_of[chosen]), here = mass_of[chosen] + stay * tied_mass_of[chosen];
    if (target < here) break;
    target -= here;
    ties_left -= stay;
  }
  const int64_t chosen_end = min((chosen + 1) * piece, count);
  for (int64_t base = chosen * piece; base < chosen_end; base += kThreads) {
    const int64_t i = base + threadIdx.x;
    const KeyMass element = i < chosen_end ? keyed_mass(i) : KeyMass{0, 0};
    const bool tie = i < chosen_end && element.key == threshold;
    uint64_t ties_here, mass_here;
    const uint64_t tie_rank = scan_block(tie ? 1 : 0, shared, ties_here);
    const bool stays = i < chosen_end && (element.key > threshold || (tie && tie_rank <= ties_left));
    const uint64_t own = stays ? kept(element.mass) : 0, sum = scan_block(own, shared, mass_here);
    if (sum > target && sum - own <= target) params.tokens[blockIdx.x] = i;
    if (target < mass_here) return;
    target -= mass_here;
    ties_left -= min(ties_left, ties_here);
  }
}

}  // namespace

int64_t sample_workspace(const SampleParams& params) { return params.batch * params.vocabulary * int64_t{sizeof(uint64_t)}; }

void seed_sampler(uint64_t seed, uint32_t (&state)[4]) {
  uint32_t mix = static_cast<uint32_t>(seed);
  // A Weyl sequence through MurmurHash3's finaliser.
  const auto next = [&] {
    mix += 0x9e3779b9u;
    uint32_t z = (mix ^ mix >> 16) * 0x85ebca6bu;
    z = (z ^ z >> 13) * 0xc2b2ae35u;
    return z ^ z >> 16;
  };
  mix = next() ^ static_cast<uint32_t>(seed >> 32);
  for (uint32_t& word : state) word = next();
}

cudaError_t sample(const SampleParams& params, cudaStream_t stream) {
  if (params.batch < 1 || params.batch > 65535 || params.vocabulary < 1 || params.vocabulary > kSampleMaxVocabulary ||
      params.logits_row_stride < params.vocabulary || params.logits == nullptr || params.rows == nullptr || params.tokens == nullptr ||
      params.workspace == nullptr)
    return cudaErrorInvalidValue;
  sample_kernel<<<static_cast<unsigned>(params.batch), kThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace layerweave
