import { describe, expect, test } from "vitest";
import fc from "fast-check";
import { checkedLayout } from "../../compiler/lower.js";
import type { Manifest } from "../../core/manifest.js";
import { load, type State } from "#dist/runtime/index.js";
import { mulberry32, withCompiled } from "../properties/graph-session.js";
import { validModels } from "../properties/layouts.js";
import { relativeError } from "../reference/compare.js";
import { evaluate } from "../reference/evaluate.js";
import { noNative } from "../support/backends.js";

/** Change it to look elsewhere; a failure prints it with the path of the smallest failing layout. */
const seed = 20260102;
const tolerance = 1e-5;
/** Below this distance, float32 and float64 may choose different experts: then both are right, and nothing can be compared. */
const leastRoutingMargin = 1e-4;

/** Row b of every slot, as the float64 evaluator writes it: of a KV cache the positions that count. */
async function rowState(state: State, slots: Manifest["state"], b: number): Promise<Map<string, Float32Array>> {
  const rows = new Map<string, Float32Array>();
  for (const { layer, role, growth } of slots) {
    const { shape, data } = await state.read(layer, role);
    const perRow = shape.slice(1).reduce((n, d) => n * d, 1);
    const row = data.subarray(b * perRow, (b + 1) * perRow);
    if (growth === "constant") rows.set(`${layer}.${role}`, row);
    else {
      const [, heads, positions, headDim] = shape as [number, number, number, number];
      const counted = state.lengths[b]! * headDim;
      const kept = Array.from({ length: heads }, (_, g) => [...row.subarray(g * positions * headDim, g * positions * headDim + counted)]);
      rows.set(`${layer}.${role}`, Float32Array.from(kept.flat()));
    }
  }
  return rows;
}

describe.skipIf(noNative !== undefined)("any valid layout on the native backend", () => {
  test("ragged rows fed in any pieces get the logits and the state that each gets alone and whole", { timeout: 240_000 }, async () => {
    let [compared, skipped] = [0, 0];
    const drawn = fc.record({
      model: validModels,
      weights: fc.nat(1000),
      /** Per run, the tokens of each of two rows. */
      runs: fc.array(fc.tuple(fc.integer({ min: 0, max: 5 }), fc.integer({ min: 1, max: 5 })), { minLength: 1, maxLength: 4 }),
    });
    await fc.assert(
      fc.asyncProperty(drawn, async ({ model: spec, weights: weightSeed, runs }) => {
        // Every run holds a token somewhere, and every row one in some run.
        const sizes = [...runs, [1, 0] as const];
        const layout = checkedLayout(spec);
        await withCompiled(layout, { seed: weightSeed }, async (folder, weights) => {
          const random = mulberry32(weightSeed);
          const rows = [0, 1].map((b) => Array.from({ length: sizes.reduce((n, size) => n + size[b]!, 0) }, () => Math.floor(random() * layout.vocabSize)));
          const references = rows.map((row) => evaluate(layout, weights, row));
          if (references.some(({ routingMargin }) => routingMargin < leastRoutingMargin)) {
            skipped++;
            return;
          }
          compared++;
          await using model = await load(folder, { backend: "native", threads: 1 });
          await using state = await model.createState({ batch: 2 });
          const logits: number[][] = [[], []];
          for (const size of sizes) {
            const fed = rows.map((row, b) => row.slice(state.lengths[b], state.lengths[b]! + size[b]!));
            const ran = await state.advance(fed, "all");
            ran.forEach((row, b) => logits[b]!.push(...row));
          }
          for (const [b, reference] of references.entries()) {
            expect(relativeError(Float32Array.from(logits[b]!), reference.logits.flatMap((l) => [...l]))).toBeLessThan(tolerance);
            const found = await rowState(state, model.manifest.state, b);
            expect([...found.keys()].sort()).toEqual([...reference.state.keys()].sort());
            for (const [slot, values] of found) expect(relativeError(values, reference.state.get(slot)!), slot).toBeLessThan(tolerance);
          }
        });
      }),
      { seed, numRuns: 60 },
    );
    expect(skipped / (skipped + compared)).toBeLessThan(0.1);
  });
});
