import type { Target } from "./target.js";

/** Types that the CUDA kernels compute in. */
export type CudaDtype = "bfloat16" | "float16";

/** ONNX Runtime's CUDA provider with our kernels (kernels/cuda): few coarse ops, nothing left to rewrite or convert while loading. */
export const cuda = (dtype: CudaDtype): Target => ({
  name: "cuda",
  // The provider has kernels for versions of operators it knows, and leaves a newer one to the CPU, between copies.
  irVersion: 10,
  opset: 18,
  computeDtype: dtype,
  // A recurrent state takes up rounding with every token; 16 bits of it are not enough.
  stateDtypes: { key: dtype, value: dtype, conv_state: dtype, ssm_state: "float32" },
  // Our kernels read a row's state before they write it.
  stateUpdate: { "per-token": "in-place", constant: "in-place" },
  weightStorage: "as-used",
  fusedMixers: true,
  fusedInt8: true,
  fusedNorms: true,
  packedWeights: true,
  functionBodies: false,
  optimisedWhenLoaded: false,
  limits: { widthMultiple: 8, dConv: 4, dState: 128, headDim: 256, nExperts: 64, topK: 8 },
});
