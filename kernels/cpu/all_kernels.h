// Included once by each instruction set's unit, after its four macros.
#include "kernels.h"
#include "vector.h"

#include "attention_kernel.h"
#include "conv_kernel.h"
#include "linear_kernel.h"
#include "rounded_kernel.h"
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
    .panel = kPanel,
    .scan_channels = scan_channels,
    .conv_channels = conv_channels,
    .dot_rows = dot_rows,
    .multiply_panels = multiply_panels,
    .pack_panel = pack_panel,
    .unpack_panel = unpack_panel,
    .add_panel = add_panel,
    .round_row = round_row,
    .round_panel = round_panel,
    .dot_rounded = dot_rounded,
    .multiply_rounded = multiply_rounded,
    .gate_in_place = gate_in_place,
    .route = route,
    .attend_panel = attend_panel,
    .attend_split = attend_split,
    .merge_splits = merge_splits,
    .exp = map<exp>,
    .exp2 = map<exp2_of_small>,
    .softplus = map<softplus>,
    .silu = map<silu>,
};

}  // namespace layerweave::cpu::LAYERWEAVE_ISA
