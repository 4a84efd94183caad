// Generation where the session can choose tokens itself. It is stood in for by one that does so with the host's sampler.
import { afterAll, describe, expect, test } from "vitest";
import type { BackendSession, DeviceSampling, DeviceSamplingOptions, SamplerId } from "#dist/runtime/backends/backend.js";
import { load } from "#dist/runtime/index.js";
import { Model } from "#dist/runtime/model.js";
import { Sampler } from "#dist/runtime/sampling.js";
import { rejection } from "./diagnostics.js";
import { eos, fakeModel, removeFakes, vocabSize } from "./fake-model.js";

afterAll(removeFakes);

/** What was asked of a session. */
interface Seen {
  readonly created: (readonly DeviceSamplingOptions[])[];
  readonly released: SamplerId[];
  /** Per sampler and row, the tokens drawn. */
  readonly draws: number[][];
  /** Runs from which logits crossed over. */
  logits: number;
  /** Limits of the steps that were to follow one another, as often as there were such. */
  readonly limits: (readonly number[])[];
}

/** The model with samplers in its session; `broken` are the row and draw, from 0, at which logits are not finite. */
function withSamplers(model: Model, broken?: { readonly row: number; readonly draw: number }): { readonly model: Model; readonly seen: Seen } {
  const { session } = model;
  const seen: Seen = { created: [], released: [], draws: [], logits: 0, limits: [] };
  const samplers: Sampler[][] = [];
  const own: Pick<BackendSession, "forward"> & { readonly sampling: DeviceSampling } = {
    forward: (request) => {
      if (request.logitIndices.length > 0) seen.logits++;
      return session.forward(request);
    },
    sampling: {
      async create(rows) {
        seen.draws.push(rows.map(() => 0));
        samplers.push(rows.map((row) => new Sampler({ ...row, repetitionPenalty: 1 }, [])));
        return seen.created.push(rows) - 1;
      },
      release: (sampler) => void seen.released.push(sampler),
      async forward(request, sampler, chosen) {
        const rows = samplers[sampler] ?? [];
        const draws = seen.draws[sampler] ?? [];
        expect([request.logitIndices.length, chosen.length]).toEqual([rows.length, rows.length]);
        const logits = await session.forward(request);
        return rows.map((row, b) => {
          // Not a token: nobody may look at it.
          if (!chosen[b]) return NaN;
          const draw = draws[b] ?? NaN;
          draws[b] = draw + 1;
          return broken?.row === b && broken.draw === draw ? -1 : row.next(logits.slice(b * vocabSize, (b + 1) * vocabSize), b, draw);
        });
      },
      decode({ state, inputIds, pastLengths, limits, stopTokenIds }, sampler, onTokens) {
        seen.limits.push(limits);
        let stopped = false;
        const run = async (): Promise<void> => {
          const [ids, past, left] = [[...inputIds], [...pastLengths], [...limits]];
          while (left.some((limit) => limit > 0) && !stopped) {
            const chosen = left.map((limit) => limit > 0);
            const request = { state, inputIds: BigInt64Array.from(ids, BigInt), pastLengths: [...past], lengths: chosen.map(Number), logitIndices: new BigInt64Array(ids.length) };
            const tokens = await own.sampling.forward(request, sampler, chosen);
            tokens.forEach((token, b) => {
              if (!chosen[b]) return;
              past[b] = (past[b] ?? NaN) + 1;
              const ends = token < 0 || stopTokenIds.includes(token);
              left[b] = ends ? 0 : (left[b] ?? NaN) - 1;
              if (!ends) ids[b] = token;
            });
            onTokens(tokens.map((token, b) => (chosen[b] ? token : undefined)));
          }
        };
        return { done: run(), stop: () => void (stopped = true) };
      },
    },
  };
  const sampled = new Proxy(session, {
    get: (target, key) => {
      const value: unknown = Reflect.get(key in own ? own : target, key);
      return typeof value === "function" ? value.bind(key in own ? own : target) : value;
    },
  });
  return { model: new Model(model.folder, model.manifest, sampled, model.tokenizer, model.backend, model.reservation), seen };
}

const prompts = ["a", "a longer prompt than the others", "mid size", [3, 9, 8, 7]];

describe("generation with tokens chosen on the device", () => {
  test.each([
    ["the best token", { temperature: 0 }, []],
    ["temperature", { temperature: 1.2 }, []],
    ["temperature, and strings that end it", { temperature: 1.2 }, ["z", "é"]],
    ["top-k, top-p and min-p", { temperature: 1.5, topK: 60, topP: 0.95, minP: 0.001 }, []],
  ])("ragged rows that end on their own are what the host makes of them: %s", async (_, sampling, stop) => {
    await using plain = await load(await fakeModel({ contextLength: 60 }));
    const { model, seen } = withSamplers(plain);
    const options = { maxTokens: 40, seed: 11, stopTokenIds: [eos, 65, 66, 67], stop, chunk: 5, ...sampling };
    const onHost = await plain.generateBatch(prompts, options);
    const onDevice = await model.generateBatch(prompts, { ...options, chooseOn: "device" });
    expect(onDevice.map(({ text, tokenIds, stats: { stopReason, chosenOn } }) => ({ text, tokenIds, stopReason, chosenOn }))).toEqual(
      onHost.map(({ text, tokenIds, stats: { stopReason } }) => ({ text, tokenIds, stopReason, chosenOn: "device" })),
    );
    expect(onHost.map(({ stats }) => stats.chosenOn)).toEqual(prompts.map(() => "host"));
    // A row draws for its tokens alone: not while others are still prefilled, nor after it has ended.
    expect(seen).toMatchObject({ draws: [onHost.map(({ tokenIds }) => tokenIds.length)], released: [0], logits: 0 });
    expect(seen.created).toMatchObject([prompts.map(() => ({ topK: 0, topP: 1, minP: 0, seed: 11, ...sampling }))]);
    // In few goes, unless the host has to look at each token's text.
    const given = onHost.map(({ tokenIds }) => tokenIds.length);
    if (stop.length === 0) expect(seen.limits).toHaveLength(Math.ceil((Math.max(...given) - 1) / 32));
    else expect(seen.limits).toEqual(Array.from({ length: Math.max(...given) - 1 }, (__, step) => given.map((tokens) => (tokens > step + 1 ? 1 : expect.any(Number)))));
  });

  test("a loop over a generation is never further ahead than it says", async () => {
    await using plain = await load(await fakeModel());
    const { model, seen } = withSamplers(plain);
    const options = { maxTokens: 100, seed: 3, stopTokenIds: [] };
    const [expected] = await plain.generateBatch(["ab"], options);
    const ids: number[] = [];
    let most = 0;
    for await (const { tokenId } of model.generate("ab", { ...options, chooseOn: "device" })) {
      ids.push(tokenId);
      await new Promise((resolve) => setTimeout(resolve, 1));
      most = Math.max(most, (seen.draws[0]?.[0] ?? NaN) - ids.length);
    }
    expect(ids).toEqual(expected?.tokenIds);
    expect(seen.limits).toEqual([[32], [32], [32], [3]]);
    expect(most).toBeGreaterThan(0);
    expect(most).toBeLessThanOrEqual(32);
  });

  test("begins no more steps once its loop is left or its signal fires", async () => {
    await using plain = await load(await fakeModel());
    const leave = async (signal?: AbortController): Promise<void> => {
      const { model, seen } = withSamplers(plain);
      let taken = 0;
      const run = async (): Promise<void> => {
        for await (const { tokenId } of model.generate("ab", { maxTokens: 1000, stopTokenIds: [], chooseOn: "device", ...(signal ? { signal: signal.signal } : {}) })) {
          expect(tokenId).toBeTypeOf("number");
          if (++taken < 5) continue;
          if (!signal) break;
          signal.abort();
        }
      };
      if (signal) await expect(run()).rejects.toMatchObject({ name: "AbortError" });
      else await run();
      expect([taken, seen.released]).toEqual([5, [0]]);
      const drawn = seen.draws[0]?.[0] ?? NaN;
      await new Promise((resolve) => setTimeout(resolve, 50));
      expect(seen.draws[0]?.[0] ?? NaN).toBeLessThanOrEqual(drawn + 1);
      expect(drawn).toBeLessThan(32);
    };
    await leave();
    await leave(new AbortController());
    expect((await plain.generateBatch(["ab"], { maxTokens: 3, stopTokenIds: [] }))[0]?.tokenIds).toHaveLength(3);
  });

  test("the host chooses unless the device is asked, which can't with a repetition penalty, or where it chooses nothing", async () => {
    await using plain = await load(await fakeModel());
    const { model, seen } = withSamplers(plain);
    const [byDefault] = await model.generateBatch(["x"], { maxTokens: 2 });
    expect(byDefault?.stats.chosenOn).toBe("host");
    const refused = { code: "runtime/bad-option", message: expect.stringMatching(/chooseOn/) };
    expect(await rejection(model.generateBatch(["x"], { repetitionPenalty: 1.3, chooseOn: "device" }))).toMatchObject([refused]);
    expect(await rejection(plain.generateBatch(["x"], { chooseOn: "device" }))).toMatchObject([refused]);
    expect(seen).toMatchObject({ created: [], draws: [] });
  });

  test("memory to draw with is claimed for as long as the generation runs, and refused where there is none", async () => {
    const folder = await fakeModel();
    const sized = { context: 64, chunk: 16 };
    const total = await (async () => {
      await using model = await load(folder, sized);
      return model.reservation.plan.bytes.total;
    })();
    const options = { maxTokens: 3, seed: 1, stopTokenIds: [], chooseOn: "device" as const };
    await using tight = await load(folder, { ...sized, budget: total + 8 * vocabSize - 1 });
    const { model, seen } = withSamplers(tight);
    expect(await rejection(model.generateBatch(["ab"], { ...options, temperature: 1 }))).toMatchObject([{ code: "plan/over-budget" }]);
    expect(seen.created).toEqual([]);
    expect((await model.generateBatch(["ab"], { ...options, temperature: 0 }))[0]?.tokenIds).toHaveLength(3);
    await using enough = await load(folder, { ...sized, budget: 2 * total + 8 * vocabSize });
    const roomy = withSamplers(enough).model;
    const claimed: number[] = [];
    for await (const { tokenId } of roomy.generate("ab", { ...options, temperature: 1 })) claimed.push(tokenId >= 0 ? roomy.reservation.beyondPlan : NaN);
    expect([...claimed, roomy.reservation.beyondPlan]).toEqual([8 * vocabSize, 8 * vocabSize, 8 * vocabSize, 0]);
  });

  test("logits that are not finite are the host's diagnostic, after the tokens before them", async () => {
    await using plain = await load(await fakeModel());
    const { model, seen } = withSamplers(plain, { row: 0, draw: 3 });
    const ids: number[] = [];
    const run = async (): Promise<void> => {
      for await (const { tokenId } of model.generate([5, 6], { maxTokens: 8, stopTokenIds: [], chooseOn: "device" })) ids.push(tokenId);
    };
    expect(await rejection(run())).toMatchObject([{ code: "runtime/not-finite", message: expect.stringMatching(/position 4 of row 0/) }]);
    expect(ids).toHaveLength(3);
    expect(seen.released).toEqual([0]);
    const second = withSamplers(plain, { row: 1, draw: 0 });
    expect(await rejection(second.model.generateBatch([[5], [6, 7]], { chooseOn: "device" }))).toMatchObject([{ code: "runtime/not-finite", message: expect.stringMatching(/position 1 of row 1/) }]);
  });

  test("its sampler is released when the loop is left, and when a prompt is refused", async () => {
    await using plain = await load(await fakeModel({ contextLength: 8 }));
    const { model, seen } = withSamplers(plain);
    for await (const { tokenId } of model.generate("x", { stopTokenIds: [], chooseOn: "device" })) {
      expect(tokenId).toBeTypeOf("number");
      break;
    }
    expect(await rejection(model.generateBatch(["12345678"], { chooseOn: "device" }))).toMatchObject([{ code: "runtime/context-exceeded" }]);
    expect(seen.released).toEqual([0, 1]);
  });
});
