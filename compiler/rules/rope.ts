import type { Diagnostics } from "../../core/diagnostics.js";
import { originOf } from "../../core/origin.js";
import { dslDiagnostics } from "../../dsl/diagnostics.js";
import type { Attention } from "../../dsl/mixers/attention.js";
import type { Rope } from "../../dsl/positions.js";
import { checkPositive } from "./definition.js";

export function checkRope(spec: Attention, path: string, found: Diagnostics): void {
  const { position } = spec;
  if (position.kind === "none") return;
  if (spec.headDim % 2 !== 0) found.report(dslDiagnostics["rope-odd-head"], { headDim: spec.headDim }, originOf(spec, `${path}.headDim`));
  checkPositive(position, ["theta"], `${path}.position`, found);
  const { scaling } = position;
  if (!scaling) return;
  const at = `${path}.position.scaling`;
  checkPositive(scaling, ["factor"], at, found);
  if (scaling.kind === "llama3") {
    checkPositive(scaling, ["lowFreqFactor", "highFreqFactor", "originalContext"], at, found);
    if (scaling.lowFreqFactor >= scaling.highFreqFactor)
      found.report(dslDiagnostics["llama3-frequencies"], { lowFreqFactor: scaling.lowFreqFactor, highFreqFactor: scaling.highFreqFactor }, originOf(scaling, at));
  }
  if (scaling.kind === "yarn") {
    checkPositive(scaling, ["originalContext", "betaFast", "betaSlow", ...(scaling.attentionFactor === undefined ? [] : (["attentionFactor"] as const))], at, found);
    if (scaling.betaFast <= scaling.betaSlow || position.theta <= 1)
      found.report(dslDiagnostics["yarn-range"], { betaFast: scaling.betaFast, betaSlow: scaling.betaSlow, theta: position.theta }, originOf(scaling, at));
  }
}

/**
 * Inverse frequencies [P / 2] in float32, and the factor on cos and sin.
 * Each step is rounded to float32 where transformers rounds (`modeling_rope_utils.py`), so that long contexts agree with it.
 */
export function ropeFrequencies({ theta, scaling }: Rope, headDim: number): { inverse: readonly number[]; scale: number } {
  const f = Math.fround;
  const plain = Array.from({ length: headDim / 2 }, (_, i) => f(1 / f(theta ** f((2 * i) / headDim))));
  if (!scaling) return { inverse: plain, scale: 1 };
  if (scaling.kind === "linear") return { inverse: plain.map((w) => f(w / scaling.factor)), scale: 1 };
  if (scaling.kind === "llama3") {
    const { factor, lowFreqFactor, highFreqFactor, originalContext } = scaling;
    const inverse = plain.map((w) => {
      const wavelength = (2 * Math.PI) / w;
      if (wavelength < originalContext / highFreqFactor) return w;
      if (wavelength > originalContext / lowFreqFactor) return f(w / factor);
      const smooth = (originalContext / wavelength - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
      return f(((1 - smooth) * w) / factor + smooth * w);
    });
    return { inverse, scale: 1 };
  }
  const { factor, originalContext, betaFast, betaSlow, attentionFactor } = scaling;
  const dimOfRotations = (rotations: number) => (headDim * Math.log(originalContext / (rotations * 2 * Math.PI))) / (2 * Math.log(theta));
  const low = Math.max(Math.floor(dimOfRotations(betaFast)), 0);
  const high = Math.min(Math.ceil(dimOfRotations(betaSlow)), headDim - 1);
  const inverse = plain.map((w, i) => {
    const ramp = Math.min(Math.max((i - low) / (high === low ? 0.001 : high - low), 0), 1);
    const kept = 1 - ramp;
    return f((w / factor) * (1 - kept) + w * kept);
  });
  return { inverse, scale: attentionFactor ?? (factor <= 1 ? 1 : 0.1 * Math.log(factor) + 1) };
}
