import { type RmsNorm, type RmsNormSpec, resolveNorm } from "../norms.js";
import type { ResolveContext } from "../resolve.js";
import { given, made } from "../spec.js";

/** Norms on the three outputs of x_proj, before dt_proj and the scan (Jamba §"inner RMSNorm", arXiv 2403.19887). */
export interface InnerNorms<Norm> {
  readonly dt: Norm;
  readonly b: Norm;
  readonly c: Norm;
}

/** Mamba-1: a depthwise causal convolution, then a selective scan (Gu & Dao 2023, arXiv 2312.00752). */
export interface MambaSpec {
  readonly kind: "mamba";
  readonly dState: number;
  readonly dConv: number;
  /** dInner = expand · dModel. */
  readonly expand: number;
  /** "auto": ceil(dModel / 16). */
  readonly dtRank: number | "auto";
  readonly innerNorm?: RmsNormSpec | InnerNorms<RmsNormSpec>;
  readonly convBias: boolean;
  /** Bias on in_proj and out_proj. */
  readonly projBias: boolean;
}

export interface Mamba {
  readonly kind: "mamba";
  readonly dInner: number;
  readonly dState: number;
  readonly dConv: number;
  readonly dtRank: number;
  readonly innerNorm: InnerNorms<RmsNorm> | null;
  readonly convBias: boolean;
  readonly projBias: boolean;
}

export type MambaOptions = Partial<Omit<MambaSpec, "kind">>;

export function mamba(options: MambaOptions = {}): MambaSpec {
  return made(
    { kind: "mamba", dState: 16, dConv: 4, expand: 2, dtRank: "auto", convBias: true, projBias: false, ...given(options) },
    mamba,
  );
}

export function resolveMamba(spec: MambaSpec, { dModel, eps }: ResolveContext): Mamba {
  const inner = spec.innerNorm;
  const norms = inner === undefined ? null : "kind" in inner ? { dt: inner, b: inner, c: inner } : inner;
  return {
    kind: spec.kind,
    dInner: spec.expand * dModel,
    dState: spec.dState,
    dConv: spec.dConv,
    dtRank: spec.dtRank === "auto" ? Math.ceil(dModel / 16) : spec.dtRank,
    innerNorm: norms && { dt: resolveNorm(norms.dt, eps), b: resolveNorm(norms.b, eps), c: resolveNorm(norms.c, eps) },
    convBias: spec.convBias,
    projBias: spec.projBias,
  };
}
