import type { Position } from "../positions.js";
import type { ResolveContext } from "../resolve.js";
import { given, made } from "../spec.js";

/** Causal softmax attention with grouped queries: nHeads / nKvHeads query heads share one key/value head. */
export interface AttentionSpec {
  readonly kind: "attention";
  readonly nHeads: number;
  /** Absent: nHeads (no grouping). */
  readonly nKvHeads?: number;
  /** Absent: dModel / nHeads. */
  readonly headDim?: number;
  readonly position: Position;
  /** Positions looked back, the current one included; absent: all. */
  readonly window?: number;
  /** Bias on the q, k and v projections. */
  readonly qkvBias: boolean;
  /** Bias on the output projection. */
  readonly outBias: boolean;
}

export interface Attention {
  readonly kind: "attention";
  readonly nHeads: number;
  readonly nKvHeads: number;
  readonly headDim: number;
  readonly position: Position;
  readonly window: number | null;
  readonly qkvBias: boolean;
  readonly outBias: boolean;
}

export interface AttentionOptions {
  readonly nHeads: number;
  readonly nKvHeads?: number;
  readonly headDim?: number;
  /** Default: none(). */
  readonly position?: Position;
  readonly window?: number;
  readonly qkvBias?: boolean;
  readonly outBias?: boolean;
}

export function attention(options: AttentionOptions): AttentionSpec {
  return made({ kind: "attention", position: { kind: "none" }, qkvBias: false, outBias: false, ...given(options) }, attention);
}

export function resolveAttention(spec: AttentionSpec, { dModel }: ResolveContext): Attention {
  return {
    kind: spec.kind,
    nHeads: spec.nHeads,
    nKvHeads: spec.nKvHeads ?? spec.nHeads,
    headDim: spec.headDim ?? dModel / spec.nHeads,
    position: spec.position,
    window: spec.window ?? null,
    qkvBias: spec.qkvBias,
    outBias: spec.outBias,
  };
}
