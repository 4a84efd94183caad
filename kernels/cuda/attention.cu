#include "attention.cuh"

#include <algorithm>
#include <initializer_list>

#include "attention_tile.cuh"

namespace layerweave {
namespace {

constexpr int kCopyThreads = 256;
constexpr int64_t kCopyBlocks = 264;

/// Positions that count, of one tensor. blockIdx.y: row and KV head.
__global__ void __launch_bounds__(kCopyThreads) copy_kernel(const __grid_constant__ AttentionParams params, const uint4* from, uint4* to) {
  const int64_t units = params.head_dim / 8;
  for (int64_t head = blockIdx.y; head < params.batch * params.kv_heads; head += gridDim.y) {
    const int64_t at = head * params.capacity * units, count = past_of(params, head / params.kv_heads) * units;
    for (int64_t i = int64_t{blockIdx.x} * kCopyThreads + threadIdx.x; i < count; i += int64_t{gridDim.x} * kCopyThreads)
      to[at + i] = from[at + i];
  }
}

cudaError_t copy(const AttentionParams& p, const void* from, void* to, cudaStream_t stream) {
  const int64_t heads = std::min(p.batch * p.kv_heads, int64_t{65535});
  const int64_t most = (p.capacity * p.head_dim / 8 + kCopyThreads - 1) / kCopyThreads;
  const dim3 grid(static_cast<unsigned>(std::min(most, std::max(int64_t{1}, kCopyBlocks * 4 / heads))), static_cast<unsigned>(heads));
  copy_kernel<<<grid, kCopyThreads, 0, stream>>>(p, static_cast<const uint4*>(from), static_cast<uint4*>(to));
  return cudaGetLastError();
}

bool valid(const AttentionParams& p, DType dtype) {
  if (dtype == DType::kFloat32 || p.batch < 1 || p.batch > 65535 || p.capacity < 1 || p.capacity > 0x7fffffff || p.tokens < 1 ||
      p.tokens > p.capacity || p.heads < 1 || p.heads > 65535 || p.kv_heads < 1 || p.heads % p.kv_heads != 0 || p.head_dim < 8 ||
      p.head_dim > kAttentionMaxHeadDim || p.head_dim % 8 != 0 || p.window < 0 || p.qkv_row_stride % 8 != 0 ||
      p.qkv_row_stride < (p.heads + 2 * p.kv_heads) * p.head_dim || p.past_lengths == nullptr)
    return false;
  // Row numbers of a tile are int.
  if (p.tokens > 0x7fffff00 / p.heads) return false;
  for (const void* tensor : {p.qkv, p.key_in, p.value_in, static_cast<const void*>(p.key_out), static_cast<const void*>(p.value_out),
                             static_cast<const void*>(p.y)})
    if (tensor == nullptr || !aligned16(tensor)) return false;
  return p.workspace != nullptr && aligned16(p.workspace) && (p.arrivals != nullptr || attention_arrivals(p) == 0);
}

}  // namespace

cudaError_t attention(const AttentionParams& params, DType dtype, cudaStream_t stream) {
  if (!valid(params, dtype)) return cudaErrorInvalidValue;
  int device = 0, major = 0, minor = 0, multiprocessors = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (status == cudaSuccess && params.key_in != params.key_out) status = copy(params, params.key_in, params.key_out, stream);
  if (status == cudaSuccess && params.value_in != params.value_out) status = copy(params, params.value_in, params.value_out, stream);
  if (status != cudaSuccess) return status;
  if (decodes(params)) return attention_decode(params, dtype, multiprocessors, stream);
  status = attention_append(params, dtype, stream);
  if (status != cudaSuccess) return status;
  return major == 9 && minor == 0 && (params.head_dim == 64 || params.head_dim == 128) ? attention_prefill_wgmma(params, dtype, stream)
                                                                                       : attention_prefill(params, dtype, stream);
}

}  // namespace layerweave
