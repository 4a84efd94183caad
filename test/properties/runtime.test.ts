import fc from "fast-check";
import { expect, it } from "vitest";
import { checkedLayout } from "../../compiler/lower.js";
import { load } from "layerweave/runtime";
import { relativeError } from "../reference/compare.js";
import { evaluate } from "../reference/evaluate.js";
import { drawTokens, expectEqualTo, RoutingTies, seed, tolerance } from "./draws.js";
import { withCompiled } from "./graph-session.js";
import { validModels } from "./layouts.js";

it("the runtime prefills a ragged batch in chunks and goes on in steps as the float64 evaluator computes", { timeout: 300_000 }, async () => {
  const ties = new RoutingTies();
  const drawn = fc.record({
    model: validModels,
    weights: fc.nat(1000),
    prompts: fc.array(fc.integer({ min: 1, max: 7 }), { minLength: 1, maxLength: 3 }),
    chunk: fc.integer({ min: 1, max: 8 }),
    steps: fc.integer({ min: 1, max: 3 }),
  });
  await fc.assert(
    fc.asyncProperty(drawn, async ({ model: spec, weights: weightSeed, prompts, chunk, steps }) => {
      const layout = checkedLayout(spec);
      await withCompiled(layout, { seed: weightSeed }, async (folder, weights) => {
        const rows = prompts.map((length, b) => drawTokens(layout.vocabSize, length + steps, weightSeed + b));
        const references = rows.map((tokens) => evaluate(layout, weights, tokens));
        if (!ties.comparable(...references)) return;
        await using model = await load(folder, { threads: 1 });
        await using state = await model.createState({ batch: rows.length });
        const last = await model.prefill(state, rows.map((tokens) => tokens.slice(0, -steps)), { chunk });
        last.forEach((logits, b) => expect(relativeError(logits, references[b]!.logits.at(-steps - 1)!)).toBeLessThan(tolerance));
        const stepped: number[][] = rows.map(() => []);
        for (let step = steps; step > 0; step--) {
          const logits = await model.forward(state, rows.map((tokens) => [tokens.at(-step)!]));
          logits.forEach((values, b) => stepped[b]!.push(...values));
        }
        for (const [b, reference] of references.entries()) {
          const kept = new Map<string, Float32Array>();
          for (const { layer, role, growth } of model.manifest.state) {
            const { shape, data } = await state.read(layer, role);
            const row = data.subarray((b * data.length) / rows.length, ((b + 1) * data.length) / rows.length);
            kept.set(`${layer}.${role}`, growth === "constant" ? row : firstPositions(row, shape as [number, number, number, number], rows[b]!.length));
          }
          expectEqualTo(reference, stepped[b]!, kept, steps);
        }
      });
    }),
    { seed, numRuns: 40 },
  );
  ties.expectFew();
});

/** [G, T, P] of a row's [G, S, P] */
function firstPositions(row: Float32Array, [, heads, capacity, headDim]: readonly [number, number, number, number], tokens: number): Float32Array {
  const out = new Float32Array(heads * tokens * headDim);
  for (let g = 0; g < heads; g++) out.set(row.subarray(g * capacity * headDim, (g * capacity + tokens) * headDim), g * tokens * headDim);
  return out;
}
