import { invariant } from "../diagnostics.js";
import { type Dim, termsOf } from "../dim.js";
import { bytesPerElement } from "../dtype.js";
import type { LiveSet } from "./profile.js";

/** Values of B, T, S and L. */
export interface Sizes {
  readonly B: number;
  readonly T: number;
  readonly S: number;
  readonly L: number;
}

/** The moment of a run at which most is held. */
export interface Peak {
  /** The node that runs then. */
  readonly at: string;
  readonly activations: number;
  readonly workspace: number;
  readonly logits: number;
  /** What rounding each tensor up to the allocator's granularity adds. */
  readonly rounding: number;
  /** All of it. */
  readonly total: number;
  /** The peak when routers spread tokens evenly over experts; `total` has them all at the same few. */
  readonly spread: number;
}

type Compiled = (sizes: Sizes) => number;

/** Finds the peak among a phase's moments, which are parsed once. */
export function peakFinder(sets: readonly LiveSet[]): (sizes: Sizes, computeBytes: number, granularity: number) => Peak {
  const compiled = sets.map(({ at, tensors }) => ({
    at,
    tensors: tensors.map(({ count, elements, spread, dtype, use }) => {
      const most = compile(elements);
      return { count, most, spread: spread === undefined ? most : compile(spread), bytes: dtype === "compute" ? undefined : bytesPerElement[dtype], use };
    }),
  }));
  return (sizes, computeBytes, granularity) => {
    let peak: Peak | undefined;
    let spread = 0;
    for (const { at, tensors } of compiled) {
      const sums = { activation: 0, workspace: 0, logits: 0 };
      let rounded = 0;
      let even = 0;
      for (const tensor of tensors) {
        const size = tensor.bytes ?? computeBytes;
        const bytes = tensor.most(sizes) * size;
        sums[tensor.use] += tensor.count * bytes;
        rounded += tensor.count * roundUp(bytes, granularity);
        even += tensor.count * roundUp(Math.ceil(tensor.spread(sizes)) * size, granularity);
      }
      spread = Math.max(spread, even);
      if (!peak || rounded > peak.total)
        peak = { at, activations: sums.activation, workspace: sums.workspace, logits: sums.logits, rounding: rounded - sums.activation - sums.workspace - sums.logits, total: rounded, spread };
    }
    invariant(peak, "a run without a moment");
    return { ...peak, spread };
  };
}

export const roundUp = (bytes: number, granularity: number) => Math.ceil(bytes / granularity) * granularity;

function compile(dim: Dim): Compiled {
  const terms = termsOf(dim).map(({ coefficient, symbols }) => {
    const power = (symbol: string) => symbols.filter((s) => s === symbol).length;
    return { coefficient, b: power("B"), t: power("T"), s: power("S"), l: power("L") };
  });
  return ({ B, T, S, L }) => {
    let sum = 0;
    for (const { coefficient, b, t, s, l } of terms) sum += coefficient * B ** b * T ** t * S ** s * L ** l;
    return sum;
  };
}
