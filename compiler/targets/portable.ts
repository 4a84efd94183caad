import type { Target } from "./target.js";

/** Stock ONNX Runtime, on the CPU or in WebAssembly: every op of ours runs as its function body. */
export const portable: Target = {
  name: "portable",
  irVersion: 11,
  opset: 24,
  computeDtype: "float32",
  stateDtype: "float32",
  stateUpdate: "swap",
};
