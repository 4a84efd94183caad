import type { StorageDtype } from "../../core/dtype.js";
import type { WeightKind } from "../../core/manifest.js";
import type { Origin } from "../../core/origin.js";
import type { Initializer } from "../weights/random.js";

/** A learned tensor as a rule declares it, named within its mixer: `q_proj.weight`. */
export interface ParameterSpec {
  readonly name: string;
  readonly shape: readonly number[];
  readonly kind: WeightKind;
  /** Matrices follow `--dtype`; what is not one (norms, A_log, D, dt bias, router) keeps the checkpoint's type, and float32 when random. */
  readonly matrix: boolean;
  readonly init: Initializer;
  /** Kernels read it in float32 whatever type activations have: router, A_log, D and dt bias are small, and rounding them costs accuracy. */
  readonly wide?: true;
  /** Share of its elements one token uses (topK / nExperts for an expert); absent: all. */
  readonly active?: number;
}

/** A learned tensor of the whole model: `layers.4.attention.q_proj.weight`. */
export interface Parameter extends ParameterSpec {
  readonly layer?: number;
  readonly origin: Origin;
}

/** How a weight is stored: in a float type, or as int8 with a float32 scale for each row. */
export type WeightDtype = StorageDtype | "int8";

const scaleSuffix = "_scale";

/** Name of the scales of an int8 weight. */
export const scaleName = (weight: string): string => weight + scaleSuffix;

/** Name of the int8 weight of these scales. */
export const scaledName = (scale: string): string => scale.slice(0, -scaleSuffix.length);

/** A linear layer's weight, [out, in], drawn so that unit-variance input gives output of variance `gain`². */
export function matrix(name: string, out: number, inner: number, kind: WeightKind, gain = 1): ParameterSpec {
  return { name, shape: [out, inner], kind, matrix: true, init: { kind: "uniform", std: gain / Math.sqrt(inner) } };
}

export function vector(name: string, shape: readonly number[], kind: WeightKind, value: number): ParameterSpec {
  return { name, shape, kind, matrix: false, init: { kind: "constant", value } };
}

export function parameterCounts(parameters: readonly ParameterSpec[]): { total: number; active: number } {
  let total = 0;
  let active = 0;
  for (const { shape, active: share } of parameters) {
    const elements = shape.reduce((a, b) => a * b, 1);
    total += elements;
    active += elements * (share ?? 1);
  }
  return { total, active: Math.round(active) };
}
