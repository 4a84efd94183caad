import { given, made } from "../spec.js";

/** Softmax over all experts, then the k largest; `renormalise` divides their weights by their sum (Mixtral does, Jamba does not). */
export interface SoftmaxThenTopK {
  readonly kind: "softmax-then-top-k";
  readonly renormalise: boolean;
}

/** The k largest logits, then a softmax over those. */
export interface TopKThenSoftmax {
  readonly kind: "top-k-then-softmax";
}

export type Router = SoftmaxThenTopK | TopKThenSoftmax;

/** Mixture of gated MLPs: each token goes to topK of nExperts (Shazeer et al. 2017, arXiv 1701.06538). */
export interface MoeSpec {
  readonly kind: "moe";
  readonly nExperts: number;
  readonly topK: number;
  /** Inner width of one expert. */
  readonly dFf: number;
  readonly router: Router;
  /** Experts every token visits: reserved, none yet. */
  readonly nSharedExperts: 0;
}

export type Moe = MoeSpec;

export interface MoeOptions {
  readonly nExperts: number;
  readonly topK: number;
  readonly dFf: number;
  /** Default: softmaxThenTopK({ renormalise: false }), as Jamba. */
  readonly router?: Router;
  readonly nSharedExperts?: 0;
}

export function softmaxThenTopK(options: { readonly renormalise: boolean }): SoftmaxThenTopK {
  return made({ kind: "softmax-then-top-k", ...options }, softmaxThenTopK);
}

export function topKThenSoftmax(): TopKThenSoftmax {
  return made({ kind: "top-k-then-softmax" }, topKThenSoftmax);
}

// Not made by its constructor, whose call would be taken for the user's.
const jambaRouter: SoftmaxThenTopK = { kind: "softmax-then-top-k", renormalise: false };

export function moe(options: MoeOptions): MoeSpec {
  return made({ kind: "moe", router: jambaRouter, nSharedExperts: 0, ...given(options) }, moe);
}

export function resolveMoe(spec: MoeSpec): Moe {
  return { kind: spec.kind, nExperts: spec.nExperts, topK: spec.topK, dFf: spec.dFf, router: spec.router, nSharedExperts: spec.nSharedExperts };
}
