import { invariant } from "../diagnostics.js";
import { type Dim, termsOf } from "../dim.js";
import { bytesPerElement } from "../dtype.js";
import type { Device } from "./devices.js";
import type { LiveSet } from "./profile.js";
import { workspaceOf } from "./workspace.js";

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

/**
 * Finds the peak among a phase's moments, which are parsed once. The native runtime makes the logits' buffer before a run, outside
 * of ONNX Runtime's allocator, and on a card another for captured steps; elsewhere it is there from the node that fills it.
 */
export function peakFinder(sets: readonly LiveSet[], execution: Device["execution"]): (sizes: Sizes, computeBytes: number, granularity: number) => Peak {
  const compiled = sets.map(({ at, tensors, kernel }) => ({
    at,
    kernel: kernel && { call: kernel, rows: compile("rows" in kernel ? kernel.rows : 0) },
    tensors: tensors
      .filter(({ use }) => use !== "logits" || execution === "bodies")
      .map(({ count, elements, spread, dtype, use }) => {
        const most = compile(elements);
        return { count, most, spread: spread === undefined ? most : compile(spread), bytes: dtype === "compute" ? undefined : bytesPerElement[dtype], use };
      }),
  }));
  const bound = execution !== "bodies" ? sets.flatMap(({ tensors }) => tensors.filter(({ use }) => use === "logits").map(({ elements }) => compile(elements))) : [];
  const buffers = execution === "kernels" ? 2 : 1;
  return (sizes, computeBytes, granularity) => {
    let peak: Peak | undefined;
    let spread = 0;
    const logits = buffers * Math.max(0, ...bound.map((elements) => elements(sizes) * bytesPerElement.float32));
    for (const { at, tensors, kernel } of compiled) {
      const sums = { activation: 0, workspace: 0, logits };
      let [rounded, even] = [logits, logits];
      for (const tensor of tensors) {
        const size = tensor.bytes ?? computeBytes;
        const bytes = tensor.most(sizes) * size;
        sums[tensor.use] += tensor.count * bytes;
        rounded += tensor.count * roundUp(bytes, granularity);
        even += tensor.count * roundUp(Math.ceil(tensor.spread(sizes)) * size, granularity);
      }
      if (kernel)
        for (const bytes of workspaceOf(kernel.call, kernel.rows(sizes), sizes, execution, computeBytes)) {
          sums.workspace += bytes;
          rounded += roundUp(bytes, granularity);
          even += roundUp(bytes, granularity);
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
