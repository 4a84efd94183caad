#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace layerweave {

// Early launch (programmatic dependent launch): a kernel's blocks may start when
// every block of the kernel before it in the stream has called
// let_next_kernel_start or ended, so while that one is at work. Hence, for every
// kernel that goes through launch_early:
//
// - Each thread calls wait_for_kernels_before, also in blocks without work, before
//   it writes anything and before it reads what a kernel writes. It returns when
//   the kernel before has completed, hence all those before that, as that one
//   waited as well. Until then it may touch constants: weights.
// - An exception is a second kernel of one function that reads, before it waits,
//   what came from before the first: the first then has to call
//   let_next_kernel_start behind its own wait, and the second to read past the L1
//   (__ldcg), which its start may not have cleared.
// - Blocks that come early take no room that the kernel before needs, whichever
//   point it lets them start from: all of its own blocks have room by then.

#if LAYERWEAVE_EARLY_LAUNCH && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900)
inline constexpr bool kEarlyLaunch = true;
#else
inline constexpr bool kEarlyLaunch = false;
#endif

__device__ __forceinline__ void wait_for_kernels_before() {
#if LAYERWEAVE_EARLY_LAUNCH && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_kernel_start() {
#if LAYERWEAVE_EARLY_LAUNCH && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// `bytes` of memory on their way to the L2, by `threads` threads.
__device__ __forceinline__ void prefetch(const void* from, int64_t bytes, int64_t thread, int64_t threads) {
  for (int64_t line = thread; line < (bytes + 127) / 128; line += threads) asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(from) + line * 128));
}

/// The same by one thread and one instruction, which keeps no load waiting behind
/// it; a multiple of 16 bytes. Nothing on cards before 9.0.
__device__ __forceinline__ void prefetch_bulk(const void* from, unsigned bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#endif
}

/// Launches a kernel that keeps the rules above. Cards before 9.0 run it behind
/// the others, as any launch.
template <typename... Params, typename... Args>
cudaError_t launch_early(void (*kernel)(Params...), dim3 grid, unsigned threads, int64_t shared_bytes, cudaStream_t stream, const Args&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early;
  if constexpr (kEarlyLaunch) {
    int device = 0, major = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (status != cudaSuccess) return status;
    config.numAttrs = major >= 9 ? 1 : 0;
  }
  return cudaLaunchKernelEx(&config, kernel, args...);
}

}  // namespace layerweave
