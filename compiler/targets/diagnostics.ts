import { catalogue, define } from "../../core/diagnostics.js";

const otherTarget = "or compile for the portable target, which takes any layout";

export const targetDiagnostics = catalogue("target", {
  "odd-width": define<{ field: string; value: number; multiple: number }>({
    severity: "error",
    exitCode: 3,
    message: ({ field, value, multiple }) => `${field} ${value} is no multiple of ${multiple}, as the target's kernels need it.`,
    help: ({ field, value, multiple }) => `Make ${field} ${Math.ceil(value / multiple) * multiple}, ${otherTarget}.`,
    explain: "CUDA kernels read rows of activations 16 bytes at a time, so every width that they see is a multiple of 8 elements of 16 bits.",
  }),
  "too-large": define<{ field: string; value: number; most: number }>({
    severity: "error",
    exitCode: 3,
    message: ({ field, value, most }) => `${field} ${value} is more than the ${most} that the target's kernels take.`,
    help: ({ field, most }) => `Make ${field} at most ${most}, ${otherTarget}.`,
    explain: "CUDA kernels keep a channel's state, a head or a router's choices in registers and shared memory, whose size limits dConv, dState, headDim, nExperts and topK.",
  }),
  "mlp-bias": define<Record<string, never>>({
    severity: "error",
    exitCode: 3,
    message: () => "the target's kernels take no biases in an MLP.",
    help: () => `Leave bias out, ${otherTarget}.`,
    explain: "On CUDA a gated MLP is one op whose kernels know no biases. Biases of attention and Mamba projections are supported.",
  }),
  dtype: define<{ target: string; dtype: string; known: readonly string[] }>({
    severity: "error",
    exitCode: 2,
    message: ({ target, dtype }) => `the ${target} target does not compute in ${dtype}.`,
    help: ({ known }) => `Use --dtype ${known.join(" or --dtype ")}.`,
    explain: "The kernels of a target exist for certain element types. What it does not compute in, it does not store either: nothing is converted while a compiled folder is loaded.",
  }),
});
