#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

// Barriers, tensor copies and warpgroup products: machine code for sm_90a alone.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL

namespace layerweave::hopper {

__device__ __forceinline__ unsigned address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ void barrier_init(uint64_t* barrier, unsigned count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(barrier)), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address(barrier)) : "memory");
}
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(barrier)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, unsigned parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(address(barrier)),
      "r"(parity)
      : "memory");
}
/// Makes ordinary writes to shared memory visible to the copy engine and the tensor cores.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Starts the copy of a box of a tensor map of rank 3; `barrier` counts its bytes.
__device__ __forceinline__ void copy_box(void* to, const void* map, int x, int y, int z, uint64_t* barrier) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(address(to)),
               "l"(map), "r"(x), "r"(y), "r"(z), "r"(address(barrier))
               : "memory");
}

/// Barriers among `threads` threads, of which some only arrive.
__device__ __forceinline__ void named_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
__device__ __forceinline__ void named_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

/// Operands in rows of 128 bytes, in the 128-byte swizzle, 8 rows (1024 bytes)
/// being a group. Rows run along M or N, groups follow one another.
__device__ __forceinline__ uint64_t rows_descriptor(const void* p) {
  return (uint64_t{1} << 62) | (uint64_t{1024 >> 4} << 32) | (uint64_t{1} << 16) | (address(p) >> 4);
}
/// Rows run along K; the next 64 elements of N lie `block` bytes further.
__device__ __forceinline__ uint64_t transposed_descriptor(const void* p, unsigned block) {
  return (uint64_t{1} << 62) | (uint64_t{1024 >> 4} << 32) | (uint64_t{block >> 4} << 16) | (address(p) >> 4);
}

#define LAYERWEAVE_SUMS8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define LAYERWEAVE_SUMS32(d, i) LAYERWEAVE_SUMS8(d, i), LAYERWEAVE_SUMS8(d, i + 8), LAYERWEAVE_SUMS8(d, i + 16), LAYERWEAVE_SUMS8(d, i + 24)
#define LAYERWEAVE_NAMES32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define LAYERWEAVE_NAMES64 \
  LAYERWEAVE_NAMES32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define LAYERWEAVE_WGMMA(type, tag)                                                                                                    \
  /** d = a b, added to d unless `fresh`: 64 rows of a, 128 of b, 16 columns of each. */                                               \
  __device__ __forceinline__ void product(float(&d)[64], uint64_t a, uint64_t b, bool fresh, tag) {                                    \
    asm volatile("{\n.reg .pred add;\nsetp.eq.b32 add, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type            \
                 " {" LAYERWEAVE_NAMES64 "}, %64, %65, add, 1, 1, 0, 0;\n}"                                                            \
                 : LAYERWEAVE_SUMS32(d, 0), LAYERWEAVE_SUMS32(d, 32)                                                                   \
                 : "l"(a), "l"(b), "r"(static_cast<int>(fresh)));                                                                      \
  }                                                                                                                                    \
  /** d += a b, a in registers, b [16][128 or 64] by transposed_descriptor. */                                                         \
  __device__ __forceinline__ void add_product(float(&d)[64], const unsigned(&a)[4], uint64_t b, tag) {                                 \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" LAYERWEAVE_NAMES64 "}, {%64,%65,%66,%67}, %68, 1, 1, 1, 1;" \
                 : LAYERWEAVE_SUMS32(d, 0), LAYERWEAVE_SUMS32(d, 32)                                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                                \
  }                                                                                                                                    \
  __device__ __forceinline__ void add_product(float(&d)[32], const unsigned(&a)[4], uint64_t b, tag) {                                 \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" LAYERWEAVE_NAMES32 "}, {%32,%33,%34,%35}, %36, 1, 1, 1, 1;" \
                 : LAYERWEAVE_SUMS32(d, 0)                                                                                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                                \
  }
LAYERWEAVE_WGMMA("bf16", __nv_bfloat16)
LAYERWEAVE_WGMMA("f16", __half)
#undef LAYERWEAVE_WGMMA
#undef LAYERWEAVE_NAMES64
#undef LAYERWEAVE_NAMES32
#undef LAYERWEAVE_SUMS32
#undef LAYERWEAVE_SUMS8

__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
/// Keeps what reads or replaces these registers behind the wait before it.
template <int kCount>
__device__ __forceinline__ void hold(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void hold(unsigned (&registers)[kCount][4]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) asm volatile("" : "+r"(registers[i][j])::"memory");
}

template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void leave_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace layerweave::hopper

#endif
