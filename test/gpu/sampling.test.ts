// Tokens chosen on the card are those that the host would choose from the same logits.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Model } from "layerweave/runtime";
import { Sampler, type ResolvedSampling } from "#dist/runtime/sampling.js";
import { dtypes, onCard, open, tokens } from "./machine.js";

const prompts = [tokens(5, 256), tokens(40, 256), tokens(17, 256)];
/** In the middle of it one row's prompt ends and the others' go on. */
const chunk = 8;
/** Tokens of each row: they end one after another. */
const counts = [64, 100, 71];

const best: ResolvedSampling = { repetitionPenalty: 1, temperature: 0, topK: 0, topP: 1, minP: 0, seed: 1 };
const ways: Readonly<Record<string, readonly ResolvedSampling[]>> = {
  "the best token": [best, best, best],
  temperature: [3, 2 ** 32 + 5, Number.MAX_SAFE_INTEGER].map((seed) => ({ ...best, temperature: 0.8, seed })),
  "top-k": [3, 4, 5].map((seed) => ({ ...best, temperature: 1.2, topK: 20, seed })),
  "top-p": [3, 4, 5].map((seed) => ({ ...best, temperature: 1.2, topP: 0.9, seed })),
  "min-p": [3, 4, 5].map((seed) => ({ ...best, temperature: 1.2, minP: 0.05, seed })),
  "each row its own": [
    { ...best, temperature: 1.5, topK: 50, topP: 0.95, minP: 0.01, seed: 6 },
    best,
    { ...best, temperature: 0.7, topP: 0.8, seed: 7 },
  ],
};

/** Per row, whether it is to go on, and its last token if so. */
const pending = (chosen: readonly (readonly number[])[]): number[][] => chosen.map((row, b) => (row.length < (counts[b] ?? 0) ? row.slice(-1) : []));

async function onHost(model: Model, rows: readonly ResolvedSampling[]): Promise<number[][]> {
  const samplers = rows.map((row) => new Sampler(row, []));
  const chosen = rows.map((): number[] => []);
  const choose = (logits: readonly Float32Array[]): void => {
    // A row that was fed nothing has no logits.
    for (const [b, row] of logits.entries()) if (row.length > 0) chosen[b]?.push(samplers[b]?.next(row, b, 0) ?? NaN);
  };
  await using state = await model.createState({ batch: rows.length });
  choose(await model.prefill(state, prompts, { chunk }));
  for (let fed = pending(chosen); fed.some((row) => row.length > 0); fed = pending(chosen)) choose(await state.advance(fed, "last"));
  return chosen;
}

async function onDevice(model: Model, rows: readonly ResolvedSampling[]): Promise<number[][]> {
  const { sampling } = model.session;
  assert.ok(sampling);
  const sampler = await sampling.create(rows);
  const chosen = rows.map((): number[] => []);
  const keep = (tokens: readonly number[], ends: readonly boolean[]): void => tokens.forEach((token, b) => ends[b] && chosen[b]?.push(token));
  await using state = await model.createState({ batch: rows.length });
  await model.feedInChunks(state, prompts, { chunk }, async (fed, ends) => {
    if (ends.includes(true)) keep(await state.advanceSampled(fed, sampling, sampler, ends), ends);
    else await state.advance(fed, "none");
  });
  for (let fed = pending(chosen); fed.some((row) => row.length > 0); fed = pending(chosen)) {
    const ends = fed.map((row) => row.length > 0);
    keep(await state.advanceSampled(fed, sampling, sampler, ends), ends);
  }
  sampling.release(sampler);
  return chosen;
}

describe("sampling on a card", onCard, () => {
  for (const dtype of dtypes)
    for (const cudaGraphs of [true, false])
      test(`ragged rows with seeds of their own are given the host's tokens (${dtype}, ${cudaGraphs ? "captured" : "plain"} steps)`, async (t) => {
        await using model = await open("tiny-jamba", dtype, { cudaGraphs, batch: 3 });
        for (const [way, rows] of Object.entries(ways)) {
          const expected = await onHost(model, rows);
          assert.deepEqual(expected.map(({ length }) => length), counts);
          assert.deepEqual(await onDevice(model, rows), expected, way);
          t.diagnostic(`${way}: ${expected.map((row) => `${new Set(row).size} different in ${row.length}`).join(", ")}`);
        }
      });

  for (const cudaGraphs of [true, false])
    test(`generation chooses there when asked (${cudaGraphs ? "captured" : "plain"} steps)`, async () => {
      await using model = await open("tiny-jamba", "bfloat16", { cudaGraphs, batch: 3 });
      const sampling = { ...best, temperature: 1, topP: 0.95, seed: 12 };
      const expected = (await onHost(model, prompts.map(() => sampling))).map((row) => row.slice(0, 64));
      const options = { ...sampling, maxTokens: 64, chunk, stopTokenIds: [], chooseOn: "device" as const };
      const generated = await model.generateBatch(prompts, options);
      assert.deepEqual(generated.map(({ tokenIds }) => tokenIds), expected);
      assert.deepEqual(generated.map(({ stats }) => stats.chosenOn), ["device", "device", "device"]);
    });

  test("samplers are memory that comes back", async () => {
    await using model = await open("tiny-jamba", "bfloat16");
    const { sampling } = model.session;
    assert.ok(sampling);
    const exchange = async (): Promise<number> => (await model.session.memory())?.card?.exchange ?? NaN;
    const before = await exchange();
    const sampler = await sampling.create([{ ...best, temperature: 1 }]);
    const { vocabSize } = model.manifest.model;
    assert.equal((await exchange()) - before, 48 + 16 + 8 * vocabSize);
    sampling.release(sampler);
    assert.equal(await exchange(), before);
  });
});
