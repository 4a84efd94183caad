// Tokens chosen on the card are those that the host would choose from the same logits.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Model, State } from "layerweave/runtime";
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

interface Loop {
  readonly limits: readonly number[];
  readonly stopTokenIds?: readonly number[];
  /** Steps after which its signal fires. */
  readonly abortAfter?: number;
}

/** Prefills as `onDevice` and lets the card go on by itself. @returns the tokens of each row, and the state that holds all but the last */
async function inLoop(model: Model, rows: readonly ResolvedSampling[], { limits, stopTokenIds = [], abortAfter = Infinity }: Loop, check: (chosen: readonly (readonly number[])[], state: State, goOn: (limits: readonly number[]) => Promise<void>) => Promise<void>): Promise<void> {
  const { sampling } = model.session;
  assert.ok(sampling);
  const sampler = await sampling.create(rows);
  const chosen = rows.map((): number[] => []);
  await using state = await model.createState({ batch: rows.length });
  await model.feedInChunks(state, prompts, { chunk }, async (fed, ends) => {
    if (ends.includes(true)) (await state.advanceSampled(fed, sampling, sampler, ends)).forEach((token, b) => ends[b] && chosen[b]?.push(token));
    else await state.advance(fed, "none");
  });
  const controller = new AbortController();
  let steps = 0;
  // What led to the tokens is in the state as soon as they are told.
  const disagreements: string[] = [];
  const decode = (limits: readonly number[], signal: AbortSignal): Promise<void> =>
    state.decode(chosen.map((row) => row.at(-1)), {
      limits,
      stopTokenIds,
      sampling,
      sampler,
      signal,
      onTokens: (given) => {
        given.forEach((token, b) => token !== undefined && chosen[b]?.push(token));
        const [held, told] = [state.lengths.join(), chosen.map((row, b) => (prompts[b]?.length ?? NaN) + row.length - 1).join()];
        if (held !== told) disagreements.push(`${held} after ${told}`);
        if (++steps === abortAfter) controller.abort();
      },
    });
  await decode(limits.map((limit) => limit - 1), controller.signal);
  await check(chosen, state, (more) => decode(more, new AbortController().signal));
  assert.deepEqual(disagreements, []);
  sampling.release(sampler);
}

/** A row up to the first of `stops`, or its limit; its first token is no stop, for nobody looks at that. */
const until = (row: readonly number[], stops: readonly number[], limit: number): readonly number[] => {
  const at = row.findIndex((token, i) => i > 0 && stops.includes(token));
  return row.slice(0, at < 0 ? limit : Math.min(at + 1, limit));
};

describe("sampling on a card", onCard, () => {
  for (const dtype of dtypes)
    for (const cudaGraphs of [true, false])
      test(`ragged rows with seeds of their own are given the host's tokens (${dtype}, ${cudaGraphs ? "captured" : "plain"} steps)`, async (t) => {
        await using model = await open("tiny-jamba", dtype, { cudaGraphs, batch: 3 });
        for (const [way, rows] of Object.entries(ways)) {
          const expected = await onHost(model, rows);
          assert.deepEqual(expected.map(({ length }) => length), counts);
          assert.deepEqual(await onDevice(model, rows), expected, way);
          await inLoop(model, rows, { limits: counts }, async (chosen) => assert.deepEqual(chosen, expected, `${way}, in one call`));
          t.diagnostic(`${way}: ${expected.map((row) => `${new Set(row).size} different in ${row.length}`).join(", ")}`);
        }
      });

  for (const cudaGraphs of [true, false]) {
    const each: readonly ResolvedSampling[] = [3, 4, 5].map((seed) => ({ ...best, temperature: 0.9, topK: 40, seed }));

    test(`steps in one call end at stop tokens, and leave the state of single steps (${cudaGraphs ? "captured" : "plain"} steps)`, async () => {
      await using model = await open("tiny-jamba", "bfloat16", { cudaGraphs, batch: 3 });
      const expected = await onHost(model, each);
      const stops = [expected[0]?.[20] ?? NaN, expected[1]?.[50] ?? NaN];
      const ended = expected.map((row, b) => until(row, stops, counts[b] ?? NaN));
      await inLoop(model, each, { limits: counts, stopTokenIds: stops }, async (chosen, state) => {
        assert.deepEqual(chosen, ended);
        await using single = await model.createState({ batch: 3 });
        await model.prefill(single, prompts, { chunk });
        for (let i = 0; i < Math.max(...ended.map(({ length }) => length)) - 1; i++) await single.advance(ended.map((row) => (i < row.length - 1 ? row.slice(i, i + 1) : [])), "last");
        assert.deepEqual(state.lengths, single.lengths);
        const next = ended.map((row) => row.slice(-1));
        assert.deepEqual(await model.forward(state, next), await model.forward(single, next));
      });
    });

    test(`steps in one call are stopped by a signal, and go on from where they were (${cudaGraphs ? "captured" : "plain"} steps)`, async (t) => {
      await using model = await open("tiny-jamba", "bfloat16", { cudaGraphs, batch: 3 });
      const expected = await onHost(model, each);
      for (const abortAfter of [1, 2, 10]) {
        await inLoop(model, each, { limits: [60, 60, 60], abortAfter }, async (chosen, _, goOn) => {
          const [given = NaN] = chosen.map(({ length }) => length);
          t.diagnostic(`told after ${abortAfter} steps, ${given - 1} were made`);
          assert.ok(given > abortAfter && given < 60);
          assert.deepEqual(chosen, expected.map((row) => row.slice(0, given)));
          await goOn(counts.map((count) => Math.min(count, 60) - given));
          assert.deepEqual(chosen, expected.map((row) => row.slice(0, 60)));
        });
      }
    });

    test(`a loop over a generation is left in the middle, and the model goes on (${cudaGraphs ? "captured" : "plain"} steps)`, async () => {
      await using model = await open("tiny-jamba", "bfloat16", { cudaGraphs });
      const options = { maxTokens: 500, stopTokenIds: [], chooseOn: "device" as const, temperature: 0.9, seed: 8 };
      const [whole] = await model.generateBatch([tokens(20)], options);
      const ids: number[] = [];
      for await (const { tokenId } of model.generate(tokens(20), options)) if (ids.push(tokenId) === 70) break;
      assert.deepEqual(ids, whole?.tokenIds.slice(0, 70));
      const controller = new AbortController();
      const aborted = (async () => {
        for await (const { tokenId } of model.generate(tokens(20), { ...options, signal: controller.signal })) if (ids.push(tokenId) === 75) controller.abort();
      })();
      await assert.rejects(aborted, { name: "AbortError" });
      assert.deepEqual((await model.generateBatch([tokens(20)], { ...options, maxTokens: 70 }))[0]?.tokenIds, ids.slice(0, 70));
    });
  }

  test("logits are the same in memory that is used again", async () => {
    await using model = await open("tiny-jamba", "bfloat16", { batch: 3 });
    await using state = await model.createState({ batch: 3 });
    await using lent = await model.createState({ batch: 3 });
    let address: ArrayBufferLike | undefined;
    for (let i = 0; i < 6; i++) {
      const rows = [[i], [i + 1], i === 3 ? [] : [7]];
      const expected = await state.advance(rows, "last");
      const logits = await lent.advance(rows, "last", { transient: true });
      assert.deepEqual(logits, expected);
      address ??= logits[0]?.buffer;
      assert.equal(logits[0]?.buffer, address);
      assert.notEqual(expected[0]?.buffer, address);
    }
    const [all] = await lent.advance([[1, 2, 3], [4], [5]], "all", { transient: true });
    assert.deepEqual(all, (await state.advance([[1, 2, 3], [4], [5]], "all"))[0]);
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
