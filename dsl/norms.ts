import { inheritCallSite } from "../core/origin.js";
import { given, made } from "./spec.js";

/** y = x / sqrt(mean(x²) + eps) · weight, over the last axis (Zhang & Sennrich 2019, arXiv 1910.07467). */
export interface RmsNormSpec {
  readonly kind: "rms-norm";
  /** Absent: the model's eps. */
  readonly eps?: number;
  /** false: no learned scale (falcon_mamba's norms of dt, B and C). */
  readonly weight: boolean;
}

/** A norm whose eps is settled. */
export interface RmsNorm {
  readonly kind: "rms-norm";
  readonly eps: number;
  readonly weight: boolean;
}

export function rmsNorm(options: { readonly eps?: number; readonly weight?: boolean } = {}): RmsNormSpec {
  return made({ kind: "rms-norm", weight: true, ...given(options) }, rmsNorm);
}

export function resolveNorm(spec: RmsNormSpec, modelEps: number): RmsNorm {
  return inheritCallSite({ kind: spec.kind, eps: spec.eps ?? modelEps, weight: spec.weight }, spec);
}
