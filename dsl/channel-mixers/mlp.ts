import { given, made } from "../spec.js";

/** Gated MLP: down(silu(gate(x)) · up(x)) (SwiGLU, Shazeer 2020, arXiv 2002.05202). */
export interface MlpSpec {
  readonly kind: "mlp";
  readonly dFf: number;
  /** Bias on the three projections. */
  readonly bias: boolean;
}

export type Mlp = MlpSpec;

export function mlp(options: { readonly dFf: number; readonly bias?: boolean }): MlpSpec {
  return made({ kind: "mlp", bias: false, ...given(options) }, mlp);
}

export function resolveMlp(spec: MlpSpec): Mlp {
  return { kind: spec.kind, dFf: spec.dFf, bias: spec.bias };
}
