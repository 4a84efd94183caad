import { bytesPerElement, type Dtype } from "../dtype.js";
import type { WeightKind } from "../manifest.js";
import type { PlanModel, PlannedWeight } from "./model.js";
import { roundUp } from "./peak.js";

/** `experts-int8`: experts and dense MLPs (ExpertsInt8 of Jamba-1.5, arXiv 2408.12570). `int8`: every linear layer. */
export const quantizations = ["none", "experts-int8", "int8"] as const;
export type Quantization = (typeof quantizations)[number];

export interface WeightItem {
  readonly kind: WeightKind | "scales";
  readonly dtype: Dtype;
  readonly bytes: number;
  readonly elements: number;
}

const elementsOf = ({ shape }: PlannedWeight) => shape.reduce((a, b) => a * b, 1);

/** Each row of a matrix, or of a stack of them, has a scale when it is quantised. */
const rowsOf = ({ shape }: Pick<PlannedWeight, "shape">) => shape.slice(0, -1).reduce((a, b) => a * b, 1);

/** A matrix that only ever multiplies, or a stack of experts' ones: neither looked up, nor a convolution. */
function isLinear({ matrix, shape, kind }: Pick<PlannedWeight, "matrix" | "shape" | "kind">): boolean {
  return matrix && (shape.length === 2 || kind === "experts" || kind === "mlp") && kind !== "embedding";
}

/**
 * Symmetric int8 with one float32 scale per output channel, which is a row of the weight.
 * Router, norms, A_log, D and dt bias are no matrices to the compiler and stay; the embedding, also as tied output projection, stays too.
 */
export function isQuantized(weight: Pick<PlannedWeight, "matrix" | "shape" | "kind">, quantize: Quantization): boolean {
  return isLinear(weight) && (quantize === "int8" || (quantize === "experts-int8" && (weight.kind === "experts" || weight.kind === "mlp")));
}

/** Whether a plan quantises what is not stored so already. */
const becomesInt8 = (weight: PlannedWeight, quantize: Quantization) => weight.dtype !== "int8" && isQuantized(weight, quantize);

/** Weights by kind and element type, largest first. */
export function weightItems(weights: readonly PlannedWeight[], quantize: Quantization): readonly WeightItem[] {
  const items = new Map<WeightItem["kind"], Map<Dtype, number>>();
  const add = (kind: WeightItem["kind"], dtype: Dtype, elements: number) => {
    const ofKind = items.get(kind) ?? new Map<Dtype, number>();
    items.set(kind, ofKind.set(dtype, (ofKind.get(dtype) ?? 0) + elements));
  };
  for (const weight of weights) {
    const quantized = becomesInt8(weight, quantize);
    add(weight.scalesOf === undefined ? weight.kind : "scales", quantized ? "int8" : weight.dtype, elementsOf(weight));
    if (quantized) add("scales", "float32", rowsOf(weight));
  }
  return [...items].flatMap(([kind, dtypes]) => [...dtypes].map(([dtype, elements]) => ({ kind, dtype, elements, bytes: elements * bytesPerElement[dtype] }))).sort((a, b) => b.bytes - a.bytes);
}

/** Output channels that MLAS packs together (`MlasGemmPackBSize`). */
const packedColumns = 16;

/** Where the bytes of weights are while a model is loaded. */
export interface WeightMemory {
  /** Used as they are stored: in the mapped files, or copied from them into large pages (`HostWeights` of the native runtime). */
  readonly mapped: number;
  /** float32 copies that ONNX Runtime makes of others while loading, outside of its allocator. */
  readonly widened: number;
  /** Packed for matrix products, by its allocator. */
  readonly packed: number;
}

/**
 * Weights on the CPU: those that aren't float32 are widened while loading, and those of ONNX Runtime's matrix products are packed
 * anew, after which their mapped pages are given back, unless something else reads them too. Our kernels read experts and routers
 * in place. int8 weights stay as they are; function bodies widen them in each run, one at a time, which the profile of a compiled
 * folder counts among the activations.
 */
export function cpuWeightMemory({ weights, tiedEmbeddings }: PlanModel, quantize: Quantization, execution: "bodies" | "cpu-kernels"): WeightMemory {
  const held = { mapped: 0, widened: 0, packed: 0 };
  for (const weight of weights) {
    const isTable = weight.kind === "embedding";
    const [out = 0, inner = 0] = weight.shape;
    const wide = elementsOf(weight) * bytesPerElement.float32;
    const packed = roundUp(out, packedColumns) * inner * bytesPerElement.float32;
    const inPlace = execution === "cpu-kernels" && (weight.kind === "experts" || weight.kind === "router");
    if (becomesInt8(weight, quantize)) held.mapped += quantizedBytes(weight);
    else if (weight.dtype === "int8") held.mapped += weight.bytes;
    else if (inPlace && weight.kind === "experts" && weight.dtype === "bfloat16") held.mapped += weight.bytes;
    else if (!inPlace && (isLinear(weight) || weight.kind === "router")) held.packed += packed;
    else {
      if (isTable && tiedEmbeddings) held.packed += packed;
      if (weight.dtype === "float32" || (isTable && !tiedEmbeddings)) held.mapped += weight.bytes;
      else held.widened += wide;
    }
  }
  return held;
}

const quantizedBytes = (weight: PlannedWeight): number => elementsOf(weight) + rowsOf(weight) * bytesPerElement.float32;

/** What is lost where every tensor begins at a multiple of `granularity` bytes. */
export function paddingBetween(weights: readonly PlannedWeight[], quantize: Quantization, granularity: number): number {
  return weights
    .flatMap((weight) => (becomesInt8(weight, quantize) ? [elementsOf(weight), quantizedBytes(weight) - elementsOf(weight)] : [weight.bytes]))
    .reduce((sum, bytes) => sum + roundUp(bytes, granularity) - bytes, 0);
}

/** Bytes of weights that a step over `tokens` tokens reads: of the embedding only their rows, of experts those that some token chose. */
export function weightBytesRead(model: PlanModel, quantize: Quantization, tokens: number): number {
  const shares = expertShare(model, tokens);
  return model.weights.reduce((sum, weight) => {
    const quantized = becomesInt8(weight, quantize);
    const bytes = quantized ? quantizedBytes(weight) : weight.bytes;
    if (weight.kind === "embedding") return sum + (model.tiedEmbeddings ? bytes : 0) + (tokens * bytes) / (weight.shape[0] ?? 1);
    return sum + bytes * (weight.kind === "experts" ? shares : 1);
  }, 0);
}

/** Expected share of a layer's experts that `tokens` tokens choose among them, choices independent: 1 - (1 - k/E)^tokens. */
function expertShare({ profile: { routed } }: PlanModel, tokens: number): number {
  const layers = routed.reduce((sum, r) => sum + r.layers * r.nExperts, 0);
  return routed.reduce((sum, { layers: n, nExperts, topK }) => sum + n * nExperts * (1 - (1 - topK / nExperts) ** tokens), 0) / Math.max(layers, 1);
}
