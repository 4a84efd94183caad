import * as z from "zod";
import { dtypes } from "../dtype.js";

// What a model costs as polynomials, worked out by the compiler from the lowered graph.
// Symbols: B rows · T tokens of this run · S positions the KV cache has room for · L positions per row that get logits.

/** A polynomial over B, T, S and L as `core/dim` writes it; coefficients may be fractions where a mean is meant. */
const polynomial = z.union([z.number(), z.string().regex(/^(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?\*?)?[BTSL*]*(?: \+ (?:\d+(?:\.\d+)?(?:e[+-]?\d+)?\*?)?[BTSL*]*)*$/)]);

const tensors = z.strictObject({
  /** How many tensors of this kind are alive at once. */
  count: z.int().positive(),
  /** Elements of one of them. Rows that a router hands out count as in the worst case: all to the same experts. */
  elements: polynomial,
  /** Elements when a router spreads its rows evenly; absent: the same. */
  spread: polynomial.optional(),
  /** `compute`: the type activations have on the device. */
  dtype: z.enum(["compute", ...dtypes]),
  /** Results of nodes, what a kernel needs beside them, or the logits. */
  use: z.enum(["activation", "workspace", "logits"]),
});

const extent = z.int().positive();

/** A node of one of our ops by what decides how much its kernel needs beside inputs and results (`workspaceOf`). */
const kernelCallSchema = z.discriminatedUnion("op", [
  z.strictObject({ op: z.literal("QuantizedLinear"), rows: polynomial, depth: extent }),
  z.strictObject({ op: z.literal("MambaInner"), rows: polynomial, dInner: extent, dState: extent, dtRank: extent }),
  z.strictObject({ op: z.literal("MoE"), int8: z.boolean(), rows: polynomial, nExperts: extent, topK: extent, dModel: extent, dFf: extent }),
  z.strictObject({ op: z.literal("CachedAttention"), nHeads: extent, nKvHeads: extent, headDim: extent, window: extent.optional() }),
]);
export type KernelCall = z.infer<typeof kernelCallSchema>;

/** Everything a run holds at one moment, beside weights and state. */
const liveSetSchema = z.strictObject({
  /** The node that runs. */
  at: z.string(),
  tensors: z.array(tensors),
  kernel: kernelCallSchema.optional(),
});
export type LiveSet = z.infer<typeof liveSetSchema>;

/** The moments of a run of which one is the peak, whatever the sizes: those that no other exceeds in every term. */
const executionSchema = z.strictObject({
  /** T > 1 */
  prefill: z.array(liveSetSchema).min(1),
  /** T = 1 */
  decode: z.array(liveSetSchema).min(1),
});

export const profileSchema = z.strictObject({
  /** Our ops as function bodies in standard ops, as stock ONNX Runtime runs them; absent: they have none. */
  bodies: executionSchema.optional(),
  /** Our ops as one kernel each. */
  kernels: executionSchema,
  operations: z.strictObject({
    /** Matrix products for each token: projections, dense MLPs, routers, and the topK experts a token visits. */
    gemmPerToken: z.number().nonnegative(),
    /** The part of those that the experts do. */
    expertsPerToken: z.number().nonnegative(),
    /** Output projection, for each position that gets logits. */
    gemmPerLogit: z.number().nonnegative(),
    /** Selective scans and causal convolutions, for each token. */
    scanPerToken: z.number().nonnegative(),
    /** Attention layers: operations per query and visible position, and how far each looks back. */
    attention: z.array(z.strictObject({ layers: z.int().positive(), perPosition: z.number().nonnegative(), window: z.int().positive().optional() })),
  }),
  /** Mixtures of experts: how many layers choose topK of nExperts. */
  routed: z.array(z.strictObject({ layers: z.int().positive(), nExperts: z.int().positive(), topK: z.int().positive() })),
});
export type Profile = z.infer<typeof profileSchema>;
export type Operations = Profile["operations"];
