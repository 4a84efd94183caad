#pragma once

namespace layerweave::cpu {

/// Instruction sets that the kernels are built for. Results of two differ by rounding.
enum class Isa {
  kBaseline,  // what the compiler's target guarantees: SSE2 on x86-64, NEON on ARM
  kAvx2,      // with FMA
  kAvx512,    // F, BW, DQ, VL
  kAvx512Vnni,  // with VNNI too
};

/// The widest that this processor and operating system support and this library has.
Isa best_isa();

/// Whether kernels of `isa` can run here.
bool isa_available(Isa isa);

const char* isa_name(Isa isa);

}  // namespace layerweave::cpu
