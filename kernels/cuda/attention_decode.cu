#include <algorithm>

#include "attention_tile.cuh"
#include "early_launch.cuh"

namespace layerweave {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
// Positions a warp has in one stage of its ring.
constexpr int kStep = 16;
constexpr int kStages = 2;
// Positions of the unit in which work is divided: one stage of every warp.
constexpr int kTile = kStep * kWarps;
constexpr int64_t kMostBlocks = 512;

template <int kDim>
constexpr int kStageBytes = 2 * kStep * kDim * 2;  // keys, values
template <int kDim>
constexpr int kSharedBytes = kRowTile * kDim * 2 + kStageBytes<kDim> + kWarps * kStages * kStageBytes<kDim>;
template <int kDim>
constexpr int kBlocksPerMultiprocessor = kDim > 128 ? 1 : 2;

int64_t tile_rows(const AttentionParams& p) { return std::min(rows_per_kv_head(p), int64_t{kRowTile}); }
int64_t items(const AttentionParams& p) { return p.batch * p.kv_heads * row_tiles(p); }
int64_t most_blocks(const AttentionParams& p) { return std::min(kMostBlocks, items(p) * ((p.capacity + kTile - 1) / kTile)); }

/// Cached positions of a row of the batch that its new tokens see, and their tiles.
struct Work {
  int past, first, tiles;

  __device__ __forceinline__ Work(const AttentionParams& p, int64_t batch) {
    past = past_of(p, batch);
    first = p.window == 0 ? 0 : static_cast<int>(max(past - p.window + 1, int64_t{0}));
    tiles = max((past - first + kTile - 1) / kTile, 1);  // the new tokens need a block
  }
};

/// An item is a row of the batch, a KV head and up to 16 rows of queries. All
/// items' tiles lie in one sequence of which each block takes an equal piece.
/// Where a piece ends within an item the block leaves its sums in the workspace,
/// and the last block of the item to arrive there adds them, in order.
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<kDim>) decode_kernel(const __grid_constant__ AttentionParams params) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ float largest_of[kWarps][kRowTile], total_of[kWarps][kRowTile];
  __shared__ bool last_to_arrive;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int head_dim = static_cast<int>(params.head_dim), group = static_cast<int>(params.heads / params.kv_heads);
  const int all_rows = group * static_cast<int>(params.tokens), tiles_of_rows = (all_rows + kRowTile - 1) / kRowTile;
  const int slot_rows = min(all_rows, kRowTile);
  const int64_t items_of_row = params.kv_heads * tiles_of_rows;

  // All that is read here changes with every token.
  let_next_kernel_start();
  wait_for_kernels_before();
  // Tiles of the rows of the batch before `batch`, and in all.
  int64_t total = 0;
  for (int64_t base = 0; base < params.batch; base += 32) total += base + lane < params.batch ? Work(params, base + lane).tiles : 0;
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) total += __shfl_xor_sync(~0u, total, offset);
  total *= items_of_row;
  const int64_t blocks = min(total, int64_t{gridDim.x}), block = blockIdx.x;
  if (block >= blocks) return;
  int64_t at = total * block / blocks;
  const int64_t end = total * (block + 1) / blocks;
  int64_t batch = 0, batch_begin = 0;
  for (int64_t base = 0;; base += 32) {
    const int64_t mine = base + lane < params.batch ? Work(params, base + lane).tiles * items_of_row : 0;
    int64_t sum = mine;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int64_t before = __shfl_up_sync(~0u, sum, offset);
      if (lane >= offset) sum += before;
    }
    const int within = __popc(__ballot_sync(~0u, batch_begin + sum <= at));
    if (within < 32) {
      batch = base + within;
      batch_begin += __shfl_sync(~0u, sum - mine, within);
      break;
    }
    batch_begin += __shfl_sync(~0u, sum, 31);
  }

  const unsigned queries = shared_address(shared), added = queries + kRowTile * kDim * 2, rings = added + kStageBytes<kDim>;
  const unsigned ring = rings + warp * kStages * kStageBytes<kDim>;
  float* const sums = reinterpret_cast<float*>(shared + (rings - queries));  // [kWarps][16][kDim], once the rings are spent
  static_assert(kRowTile * kDim * 4 <= kStages * kStageBytes<kDim>);
  const float scale = kLog2E * rsqrtf(static_cast<float>(head_dim));

  while (at < end) {
    const Work work(params, batch);
    const int64_t local = (at - batch_begin) / work.tiles, item = batch * items_of_row + local;
    const int64_t item_begin = batch_begin + local * work.tiles;
    const int64_t kv_head = local / tiles_of_rows;
    const int first_row = static_cast<int>(local % tiles_of_rows) * kRowTile, rows = min(all_rows - first_row, kRowTile);
    const int tile_begin = static_cast<int>(at - item_begin), tile_end = static_cast<int>(min(end - item_begin, int64_t{work.tiles}));
    const int64_t cache = (batch * params.kv_heads + kv_head) * params.capacity * head_dim;
    T* const keys = static_cast<T*>(params.key_out) + cache;
    T* const values = static_cast<T*>(params.value_out) + cache;

    // Step i of this warp is 16 positions, of which none from `past` on are read.
    const int steps = tile_end - tile_begin, first = work.first + tile_begin * kTile + warp * kStep;
    const auto load = [&](int step) {
      const int position = first + step * kTile;
      if (step < steps && position < work.past) {
        const unsigned stage = ring + step % kStages * kStageBytes<kDim>;
#pragma unroll
        for (int i = lane; i < kStep * kDim / 8; i += 32) {
          const int row = i / (kDim / 8), unit = i % (kDim / 8);
          const bool live = position + row < work.past && unit * 8 < head_dim;
          const int64_t from = live ? int64_t{position + row} * head_dim + unit * 8 : 0;
          copy_async(stage + unit_byte<kDim>(row, unit), keys + from, live);
          copy_async(stage + kStep * kDim * 2 + unit_byte<kDim>(row, unit), values + from, live);
        }
      }
      copy_commit();
    };
#pragma unroll
    for (int step = 0; step < kStages; ++step) load(step);

    for (int i = threadIdx.x; i < kRowTile * kDim / 8; i += kThreads) *reinterpret_cast<uint4*>(shared + i * 16) = uint4{};
    const bool appends = tile_end == work.tiles;
    unsigned char* const new_tile = shared + (added - queries);
    if (appends)
      for (int i = threadIdx.x; i < kStageBytes<kDim> / 16; i += kThreads) *reinterpret_cast<uint4*>(new_tile + i * 16) = uint4{};
    __syncthreads();
    load_queries<T>(params, batch, kv_head, first_row, rows, work.past, threadIdx.x, kThreads, [&](int row, int column, uint2 four) {
      *reinterpret_cast<uint2*>(shared + unit_byte<kDim>(row, column / 8) + column % 8 * 2) = four;
    });
    if (appends) {
      const int quads = head_dim / 8;
      for (int i = threadIdx.x; i < static_cast<int>(params.tokens) * quads; i += kThreads) {
        const int token = i / quads, quad = i % quads, half = head_dim / 2;
        const T* k = static_cast<const T*>(params.qkv) + (batch * params.tokens + token) * params.qkv_row_stride + (params.heads + kv_head) * head_dim;
        const uint4 v = *reinterpret_cast<const uint4*>(k + params.kv_heads * head_dim + quad * 8);
        uint2 low = *reinterpret_cast<const uint2*>(k + quad * 4), high = *reinterpret_cast<const uint2*>(k + quad * 4 + half);
        if (params.inverse_frequencies != nullptr) Rotation(params, quad, work.past + token).apply(low, high, T{});
        const auto shared_unit = [&](int column) { return new_tile + unit_byte<kDim>(token, column / 8) + column % 8 * 2; };
        *reinterpret_cast<uint2*>(shared_unit(quad * 4)) = low;
        *reinterpret_cast<uint2*>(shared_unit(quad * 4 + half)) = high;
        *reinterpret_cast<uint4*>(shared_unit(quad * 8) + kStep * kDim * 2) = v;
        if (first_row == 0) {  // one item of the KV head writes the cache; none reads these positions there
          const int64_t to = int64_t{work.past + token} * head_dim;
          *reinterpret_cast<uint2*>(keys + to + quad * 4) = low;
          *reinterpret_cast<uint2*>(keys + to + quad * 4 + half) = high;
          *reinterpret_cast<uint4*>(values + to + quad * 8) = v;
        }
      }
    }
    __syncthreads();

    RowState<kDim> state;
    Span cached, fresh;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane / 4 + half * 8, position = work.past + (first_row + row) / group;
      cached.first[half] = fresh.first[half] = params.window == 0 ? 0 : static_cast<int>(max(position - params.window + 1, int64_t{0}));
      cached.end[half] = row < rows ? work.past : 0;
      fresh.end[half] = row < rows ? position + 1 : 0;
    }
    for (int step = 0; step < steps; ++step) {
      copy_wait<kStages - 1>();
      __syncwarp();
      const unsigned stage = ring + step % kStages * kStageBytes<kDim>;
      const int position = first + step * kTile;
      if (position < work.past) attend<T, kDim, kStep>(state, queries, stage, stage + kStep * kDim * 2, position, cached, scale);
      __syncwarp();
      load(step + kStages);
    }
    // The warp that the shortest remainder of a tile leaves idle.
    if (appends && warp == kWarps - 1) attend<T, kDim, kStep>(state, queries, added, added + kStep * kDim * 2, work.past, fresh, scale);
    copy_wait<0>();
    state.reduce();
    __syncthreads();

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane / 4 + half * 8;
      if (row >= rows) continue;
      if (lane % 4 == 0) {
        largest_of[warp][row] = state.largest[half];
        total_of[warp][row] = state.total[half];
      }
#pragma unroll
      for (int d = 0; d < kDim / 8; ++d)
        *reinterpret_cast<float2*>(sums + (warp * kRowTile + row) * kDim + d * 8 + lane % 4 * 2) =
            make_float2(state.values[d][half * 2], state.values[d][half * 2 + 1]);
    }
    __syncthreads();

    const int quads = head_dim / 4;
    const auto write_y = [&](int row, int quad, float4 sum, float whole) {
      const T four[4] = {from_float<T>(sum.x / whole), from_float<T>(sum.y / whole), from_float<T>(sum.z / whole), from_float<T>(sum.w / whole)};
      uint2 packed;
      __builtin_memcpy(&packed, four, 8);
      const int token = (first_row + row) / group, head = (first_row + row) % group;
      *reinterpret_cast<uint2*>(static_cast<T*>(params.y) + ((batch * params.tokens + token) * params.heads + kv_head * group + head) * head_dim + quad * 4) = packed;
    };
    const auto add_scaled = [](float4& sum, float4 more, float weight) {
      sum.x = fmaf(more.x, weight, sum.x);
      sum.y = fmaf(more.y, weight, sum.y);
      sum.z = fmaf(more.z, weight, sum.z);
      sum.w = fmaf(more.w, weight, sum.w);
    };
    // A slot holds sums [rows][P], the largest scores [16] and the totals [16]. A block
    // has at most one item that began before its piece and one that ends behind it.
    const int64_t slot_floats = int64_t{slot_rows} * head_dim + 2 * kRowTile;
    float* const slots = static_cast<float*>(params.workspace);
    const bool whole_item = tile_begin == 0 && tile_end == work.tiles;
    float* const slot = slots + (2 * block + (tile_begin == 0)) * slot_floats;
    for (int i = threadIdx.x; i < rows * quads; i += kThreads) {
      const int row = i / quads, quad = i % quads;
      float largest = -INFINITY, whole = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, largest_of[w][row]);
      const float base = largest == -INFINITY ? 0.f : largest;
      float4 sum{};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float weight = exp2_fast(largest_of[w][row] - base);
        whole = fmaf(total_of[w][row], weight, whole);
        add_scaled(sum, *reinterpret_cast<const float4*>(sums + (w * kRowTile + row) * kDim + quad * 4), weight);
      }
      if (whole_item) {
        write_y(row, quad, sum, whole);
      } else {
        *reinterpret_cast<float4*>(slot + row * head_dim + quad * 4) = sum;
        if (quad == 0) {
          slot[slot_rows * head_dim + row] = largest;
          slot[slot_rows * head_dim + kRowTile + row] = whole;
        }
      }
    }
    if (!whole_item) {
      // The blocks of an item, by the piece that its first and its last tile lie in.
      const auto block_of = [&](int64_t tile) { return ((tile + 1) * blocks - 1) / total; };
      const int64_t from = block_of(item_begin), to = block_of(item_begin + work.tiles - 1);
      __threadfence();
      __syncthreads();
      if (threadIdx.x == 0) {
        last_to_arrive = atomicAdd(params.arrivals + item, 1u) == static_cast<unsigned>(to - from);
        if (last_to_arrive) params.arrivals[item] = 0;
      }
      __syncthreads();
      if (last_to_arrive) {
        __threadfence();
        const auto slot_of = [&](int64_t b) { return slots + (2 * b + (b == from)) * slot_floats; };
        for (int i = threadIdx.x; i < rows * quads; i += kThreads) {
          const int row = i / quads, quad = i % quads;
          float largest = -INFINITY, whole = 0;
#pragma unroll 8
          for (int64_t b = from; b <= to; ++b) largest = fmaxf(largest, __ldcg(slot_of(b) + slot_rows * head_dim + row));
          float4 sum{};
#pragma unroll 8
          for (int64_t b = from; b <= to; ++b) {
            const float* part = slot_of(b);
            const float weight = exp2_fast(__ldcg(part + slot_rows * head_dim + row) - largest);
            whole = fmaf(__ldcg(part + slot_rows * head_dim + kRowTile + row), weight, whole);
            add_scaled(sum, __ldcg(reinterpret_cast<const float4*>(part + row * head_dim + quad * 4)), weight);
          }
          write_y(row, quad, sum, whole);
        }
      }
    }
    at = item_begin + tile_end;
    if (at == batch_begin + work.tiles * items_of_row) {
      ++batch;
      batch_begin = at;
    }
    __syncthreads();  // the rings are filled anew
  }
}

template <typename T, int kDim>
cudaError_t launch(const AttentionParams& params, int multiprocessors, cudaStream_t stream) {
  const cudaError_t status = cudaFuncSetAttribute(decode_kernel<T, kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes<kDim>);
  if (status != cudaSuccess) return status;
  const int64_t blocks = std::min(most_blocks(params), int64_t{multiprocessors} * kBlocksPerMultiprocessor<kDim>);
  return launch_early(decode_kernel<T, kDim>, dim3(static_cast<unsigned>(blocks)), kThreads, kSharedBytes<kDim>, stream, params);
}

template <typename T>
cudaError_t launch(const AttentionParams& params, int multiprocessors, cudaStream_t stream) {
  if (params.head_dim <= 64) return launch<T, 64>(params, multiprocessors, stream);
  if (params.head_dim <= 128) return launch<T, 128>(params, multiprocessors, stream);
  return launch<T, 256>(params, multiprocessors, stream);
}

}  // namespace

int64_t attention_workspace(const AttentionParams& params) {
  if (!decodes(params)) return params.batch * params.tokens * params.head_dim / 8 * int64_t{sizeof(Rotation)};
  return most_blocks(params) * 2 * (tile_rows(params) * params.head_dim + 2 * kRowTile) * int64_t{sizeof(float)};
}

int64_t attention_arrivals(const AttentionParams& params) { return decodes(params) ? items(params) : 0; }

cudaError_t attention_decode(const AttentionParams& params, DType dtype, int multiprocessors, cudaStream_t stream) {
  return dtype == DType::kBFloat16 ? launch<__nv_bfloat16>(params, multiprocessors, stream) : launch<__half>(params, multiprocessors, stream);
}

}  // namespace layerweave
