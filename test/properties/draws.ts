import { expect } from "vitest";
import { relativeError } from "../reference/compare.js";
import type { Evaluation } from "../reference/evaluate.js";
import { mulberry32 } from "./graph-session.js";

/** The same layouts in every run; change it to look elsewhere. A failure prints it with the path of the smallest failing layout. */
export const seed = 20260101;

/** ‖Δ‖ / ‖reference‖ of float32 against float64. */
export const tolerance = 1e-5;

/** Below this distance between logits, float32 and float64 may choose different experts: both are right, and nothing can be compared. */
const leastRoutingMargin = 1e-4;

export function drawTokens(vocab: number, count: number, from: number): number[] {
  const random = mulberry32(from);
  return Array.from({ length: count }, () => Math.floor(random() * vocab));
}

/** Counts layouts whose routing is too close to call; too many would mean that a test looks away. */
export class RoutingTies {
  #compared = 0;
  #skipped = 0;

  comparable(...evaluations: readonly Evaluation[]): boolean {
    const ok = evaluations.every(({ routingMargin }) => routingMargin >= leastRoutingMargin);
    if (ok) this.#compared++;
    else this.#skipped++;
    return ok;
  }

  expectFew(): void {
    expect(this.#compared).toBeGreaterThan(0);
    expect(this.#skipped / (this.#compared + this.#skipped)).toBeLessThan(0.1);
  }
}

/** Compares one sequence's logits and state, by `layer.role`, with the evaluator's. */
export function expectEqualTo(reference: Evaluation, logits: ArrayLike<number>, state: ReadonlyMap<string, ArrayLike<number>>, tokens = reference.logits.length): void {
  expect(relativeError(logits, reference.logits.slice(-tokens).flatMap((l) => [...l]))).toBeLessThan(tolerance);
  expect([...state.keys()].sort()).toEqual([...reference.state.keys()].sort());
  for (const [slot, values] of state) expect(relativeError(values, reference.state.get(slot)!), slot).toBeLessThan(tolerance);
}
