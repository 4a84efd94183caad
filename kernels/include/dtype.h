#pragma once

namespace layerweave {

/// Element type of the activations a kernel reads and writes.
enum class DType { kFloat32, kFloat16, kBFloat16 };

}  // namespace layerweave
