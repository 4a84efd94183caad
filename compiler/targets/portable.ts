import type { Target } from "./target.js";

/** Stock ONNX Runtime, on the CPU or in WebAssembly: every op of ours runs as its function body. */
export const portable: Target = {
  name: "portable",
  irVersion: 11,
  opset: 24,
  computeDtype: "float32",
  stateDtypes: { key: "float32", value: "float32", conv_state: "float32", ssm_state: "float32" },
  // The KV cache goes through TensorScatter alone, which writes in place where past and present are one buffer, and what it
  // writes lies beyond the positions that count: a failed run changes nothing. Recurrent state is read after it is written.
  stateUpdate: { "per-token": "in-place", constant: "swap" },
  weightStorage: "as-given",
  fusedMixers: false,
  // The CPU kernels compute int8 products themselves, and a token is short of time between them. float32 ones are ONNX Runtime's.
  fusedInt8: true,
  fusedNorms: false,
  packedWeights: false,
  functionBodies: true,
  optimisedWhenLoaded: true,
};
