import { given, made } from "./spec.js";

/** No positional encoding: the recurrent layers know the order (Jamba). */
export interface NoPosition {
  readonly kind: "none";
}

/** Positions divided by `factor`. */
export interface LinearScaling {
  readonly kind: "linear";
  readonly factor: number;
}

/** Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between (transformers `_compute_llama3_parameters`). */
export interface Llama3Scaling {
  readonly kind: "llama3";
  readonly factor: number;
  readonly lowFreqFactor: number;
  readonly highFreqFactor: number;
  /** Context the model was first trained for, in tokens. */
  readonly originalContext: number;
}

/** YaRN (Peng et al. 2023, arXiv 2309.00071). */
export interface YarnScaling {
  readonly kind: "yarn";
  readonly factor: number;
  /** Context the model was first trained for, in tokens. */
  readonly originalContext: number;
  readonly betaFast: number;
  readonly betaSlow: number;
  /** Factor on cos and sin; absent: 0.1 · ln(factor) + 1. */
  readonly attentionFactor?: number;
}

export type RopeScaling = LinearScaling | Llama3Scaling | YarnScaling;

/** Rotary embedding of queries and keys, halves rotated against each other (Su et al. 2021, arXiv 2104.09864). */
export interface Rope {
  readonly kind: "rope";
  readonly theta: number;
  readonly scaling?: RopeScaling;
}

export type Position = NoPosition | Rope;

export function none(): NoPosition {
  return made({ kind: "none" }, none);
}

export function rope(options: { readonly theta?: number; readonly scaling?: RopeScaling } = {}): Rope {
  return made({ kind: "rope", theta: 10_000, ...given(options) }, rope);
}

export function linearScaling(options: { readonly factor: number }): LinearScaling {
  return made({ kind: "linear", ...options }, linearScaling);
}

export function llama3Scaling(options: Omit<Llama3Scaling, "kind">): Llama3Scaling {
  return made({ kind: "llama3", ...options }, llama3Scaling);
}

export function yarnScaling(
  options: Pick<YarnScaling, "factor" | "originalContext"> & Partial<Pick<YarnScaling, "betaFast" | "betaSlow" | "attentionFactor">>,
): YarnScaling {
  return made({ kind: "yarn", betaFast: 32, betaSlow: 1, ...given(options) }, yarnScaling);
}
