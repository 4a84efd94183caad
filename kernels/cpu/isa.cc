#include "cpu/isa.h"

#include <initializer_list>

#include "kernels.h"

namespace layerweave::cpu {

namespace baseline {
extern const KernelTable kKernels;
}
#ifdef __x86_64__
namespace avx2 {
extern const KernelTable kKernels;
}
namespace avx512 {
extern const KernelTable kKernels;
}
namespace avx512vnni {
extern const KernelTable kKernels;
}
#endif

bool isa_available(Isa isa) {
#ifdef __x86_64__
  switch (isa) {
    case Isa::kBaseline:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::kAvx512Vnni:
      return isa_available(Isa::kAvx512) && __builtin_cpu_supports("avx512vnni");
  }
#endif
  return isa == Isa::kBaseline;
}

Isa best_isa() {
  static const Isa best = [] {
    for (Isa isa : {Isa::kAvx512Vnni, Isa::kAvx512, Isa::kAvx2})
      if (isa_available(isa)) return isa;
    return Isa::kBaseline;
  }();
  return best;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return "baseline";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Vnni:
      return "avx512 with VNNI";
  }
  return "";
}

const KernelTable& kernel_table(Isa isa) {
#ifdef __x86_64__
  if (isa == Isa::kAvx512Vnni) return avx512vnni::kKernels;
  if (isa == Isa::kAvx512) return avx512::kKernels;
  if (isa == Isa::kAvx2) return avx2::kKernels;
#endif
  (void)isa;
  return baseline::kKernels;
}

}  // namespace layerweave::cpu
