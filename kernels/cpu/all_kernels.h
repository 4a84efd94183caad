// Included once by each instruction set's unit, after its four macros.
#include "kernels.h"
#include "vector.h"

#include "attention_kernel.h"
#include "conv_kernel.h"
#include "linear_kernel.h"
#include "route_kernel.h"
#include "scan_kernel.h"

namespace layerweave::cpu::LAYERWEAVE_ISA {

template <Floats (*function)(Floats)>
void map(const float* x, float* out, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t lanes = smaller(kLanes, count - i);
    store(out + i, function(load(x + i, lanes)), lanes);
  }
}

extern const KernelTable kKernels;
const KernelTable kKernels = {
    kPanel,       scan_channels, conv_channels, dot_rows,          multiply_panels, gate_in_place, route,
    attend_panel, attend_split,  merge_splits,  map<exp>, map<exp2_of_small>, map<softplus>,   map<silu>,
};

}  // namespace layerweave::cpu::LAYERWEAVE_ISA
