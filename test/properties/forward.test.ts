import fc from "fast-check";
import { describe, it } from "vitest";
import { storageDtypes } from "../../core/dtype.js";
import { checkedLayout } from "../../compiler/lower.js";
import { evaluate } from "../reference/evaluate.js";
import { drawTokens, expectEqualTo, RoutingTies, seed } from "./draws.js";
import { GraphSession, withCompiled } from "./graph-session.js";
import { validModels } from "./layouts.js";

describe("any valid layout", () => {
  it("compiles to a graph that computes what the float64 evaluator does", { timeout: 300_000 }, async () => {
    const ties = new RoutingTies();
    const drawn = fc.record({ model: validModels, weights: fc.nat(1000), dtype: fc.constantFrom(...storageDtypes), count: fc.integer({ min: 1, max: 9 }) });
    await fc.assert(
      fc.asyncProperty(drawn, async ({ model, weights: weightSeed, dtype, count }) => {
        const layout = checkedLayout(model);
        await withCompiled(layout, { seed: weightSeed, dtype }, async (folder, weights) => {
          const tokens = drawTokens(layout.vocabSize, count, weightSeed);
          const reference = evaluate(layout, weights, tokens);
          if (!ties.comparable(reference)) return;
          await using session = await GraphSession.open(folder);
          const { logits, state } = await session.run(session.empty(1, count), [tokens]);
          expectEqualTo(reference, logits[0]!, session.rowState(state, 0));
        });
      }),
      { seed, numRuns: 120 },
    );
    ties.expectFew();
  });

  it("gives the same logits and states however a prompt is split", { timeout: 300_000 }, async () => {
    const ties = new RoutingTies();
    const drawn = fc.record({ model: validModels, weights: fc.nat(1000), chunks: fc.array(fc.integer({ min: 1, max: 5 }), { minLength: 2, maxLength: 5 }), slack: fc.nat(3) });
    await fc.assert(
      fc.asyncProperty(drawn, async ({ model, weights: weightSeed, chunks, slack }) => {
        const layout = checkedLayout(model);
        await withCompiled(layout, { seed: weightSeed }, async (folder, weights) => {
          const count = chunks.reduce((a, b) => a + b, 0);
          const tokens = drawTokens(layout.vocabSize, count, weightSeed);
          const reference = evaluate(layout, weights, tokens);
          if (!ties.comparable(reference)) return;
          await using session = await GraphSession.open(folder);
          for (const sizes of [chunks, new Array<number>(count).fill(1)]) {
            let state = session.empty(1, count + slack);
            const logits: number[] = [];
            for (const size of sizes) {
              const from = state.lengths[0]!;
              const ran = await session.run(state, [tokens.slice(from, from + size)]);
              logits.push(...ran.logits[0]!);
              state = ran.state;
            }
            expectEqualTo(reference, logits, session.rowState(state, 0));
          }
        });
      }),
      { seed, numRuns: 50 },
    );
    ties.expectFew();
  });

  it("gives each row of a ragged batch what it gets alone", { timeout: 300_000 }, async () => {
    const ties = new RoutingTies();
    const lengths = fc.array(fc.integer({ min: 0, max: 6 }), { minLength: 2, maxLength: 3 });
    const drawn = fc.record({ model: validModels, weights: fc.nat(1000), prompts: lengths, more: lengths, padding: fc.nat(28) });
    await fc.assert(
      fc.asyncProperty(drawn, async ({ model, weights: weightSeed, prompts, more, padding }) => {
        const layout = checkedLayout(model);
        await withCompiled(layout, { seed: weightSeed }, async (folder, weights) => {
          // A second run on the state of the first, in which other rows are the short ones.
          const rows = prompts.map((first, b) => ({ first: first + 1, tokens: drawTokens(layout.vocabSize, first + 1 + (more[b] ?? 1), weightSeed + b) }));
          const references = rows.map(({ tokens }) => evaluate(layout, weights, tokens));
          if (!ties.comparable(...references)) return;
          await using session = await GraphSession.open(folder);
          const rests = rows.map(({ first, tokens }) => tokens.slice(first));
          const capacity = Math.max(...rows.map(({ first }) => first)) + Math.max(...rests.map((rest) => rest.length));
          const prefilled = await session.run(session.empty(rows.length, capacity), rows.map(({ first, tokens }) => tokens.slice(0, first)), padding);
          const continued = rests.every((rest) => rest.length === 0) ? undefined : await session.run(prefilled.state, rests, padding);
          references.forEach((reference, b) => {
            expectEqualTo(reference, [...prefilled.logits[b]!, ...(continued?.logits[b] ?? [])], session.rowState((continued ?? prefilled).state, b));
          });
        });
      }),
      { seed, numRuns: 60 },
    );
    ties.expectFew();
  });
});
