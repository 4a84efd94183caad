// Sequences that join and leave a batch, states in files, and the cache of beginnings; on every backend.
import { readFile, readdir, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import * as fc from "fast-check";
import { StateFile, writeStateFile } from "#dist/runtime/state-file.js";
import { PrefixCache, load, type Model, type State } from "#dist/runtime/index.js";
import { codes, relativeError } from "../runtime/diagnostics.js";
import { fakeModel, referenceLogits, removeFakes, vocabSize } from "../runtime/fake-model.js";
import { backends } from "../support/backends.js";
import { temporaryFolder } from "../support/folders.js";

const out = await temporaryFolder();
afterAll(removeFakes);

const tokens = (length: number, seed = 7): number[] => Array.from({ length }, (_, i) => (i * 31 + seed * 17 + ((i * i) % 13)) % 256);
const lastOf = (ids: readonly number[]): number[] => Array.from(referenceLogits(ids)).slice(-vocabSize);

async function contents(state: State): Promise<unknown[]> {
  return Promise.all([state.read(0, "key"), state.read(1, "conv_state"), state.read(2, "ssm_state")]);
}

describe.each(backends)("sequences on the %s backend", (backend) => {
  test("joining and leaving a batch at any time, each gets the logits it would get alone", async () => {
    await using model = await load(await fakeModel({ contextLength: 900 }), { backend });
    const event = fc.record({
      row: fc.nat(2),
      prompt: fc.integer({ min: 1, max: 400 }),
      /** Tokens fed afterwards to every row that holds a sequence. */
      steps: fc.nat(3),
      leaves: fc.boolean(),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(event, { minLength: 1, maxLength: 8 }), async (events) => {
        await using batch = await model.createState({ batch: 3 });
        const sequences: (number[] | undefined)[] = [undefined, undefined, undefined];
        for (const [i, { row, prompt, steps, leaves }] of events.entries()) {
          if (leaves) {
            sequences[row] = undefined;
            await batch.clearRow(row);
          } else {
            const ids = tokens(prompt, i);
            await using alone = await model.createState();
            await model.prefill(alone, [ids]);
            await batch.setRow(row, alone);
            sequences[row] = ids;
          }
          expect(batch.lengths).toEqual(sequences.map((ids) => ids?.length ?? 0));
          for (let step = 0; step < steps && sequences.some((ids) => ids !== undefined); step++) {
            sequences.forEach((ids, b) => ids?.push((7 * step + 11 * b + i) % 256));
            const logits = await batch.advance(sequences.map((ids) => (ids ? [ids.at(-1)!] : [])), "last");
            sequences.forEach((ids, b) => expect(ids ? relativeError(logits[b]!, lastOf(ids)) : logits[b]!.length).toBeLessThan(1e-6));
          }
        }
      }),
      { seed: 20260103, numRuns: 25 },
    );
  });

  test("a row joins with what the other state holds when it is called, and leaves that state alone", async () => {
    await using model = await load(await fakeModel(), { backend });
    await using batch = await model.createState({ batch: 2 });
    await using alone = await model.createState();
    await model.forward(alone, [tokens(5)]);
    await using snapshot = await alone.snapshot();
    // Nothing here is awaited before the next call, and yet each acts on what the calls before it made.
    const fed = model.forward(alone, [[50]]);
    const joined = batch.setRow(0, alone);
    const fedOn = model.forward(alone, [[51]]);
    const back = alone.setRow(0, batch, 1);
    const [logits] = await Promise.all([batch.advance([[60], [61]], "last"), fed, joined, fedOn, back]);
    expect(relativeError(logits[0]!, lastOf([...tokens(5), 50, 60]))).toBeLessThan(1e-6);
    expect(relativeError(logits[1]!, lastOf([61]))).toBeLessThan(1e-6);
    expect(alone.lengths).toEqual([0]);
    await alone.restore(snapshot);
    expect(relativeError((await model.forward(alone, [[9]]))[0]!, lastOf([...tokens(5), 9]))).toBeLessThan(1e-6);
  });

  test("rows that don't exist and states of another model are refused", async () => {
    await using model = await load(await fakeModel(), { backend });
    await using other = await load(await fakeModel(), { backend });
    await using batch = await model.createState({ batch: 2 });
    await using foreign = await other.createState();
    const closed = await model.createState();
    await closed[Symbol.asyncDispose]();
    expect(await codes(batch.setRow(2, batch))).toEqual(["runtime/unknown-row"]);
    expect(await codes(batch.setRow(0, batch, -1))).toEqual(["runtime/unknown-row"]);
    expect(await codes(batch.clearRow(0.5))).toEqual(["runtime/unknown-row"]);
    expect(await codes(batch.setRow(0, foreign))).toEqual(["runtime/foreign-state"]);
    expect(await codes(batch.setRow(0, closed))).toEqual(["runtime/closed"]);
  });
});

describe.each(backends)("a saved state on the %s backend", (backend) => {
  test("is what it was, bit for bit, on this backend and on the others", async () => {
    const folder = await fakeModel();
    const file = join(out, `${backend}.state`);
    await using model = await load(folder, { backend });
    await using state = await model.createState({ batch: 3 });
    await model.forward(state, [tokens(300, 1), tokens(1, 2), tokens(9, 3)]);
    await state.save(file);
    const saved = await contents(state);
    const [expected] = await model.forward(state, [[1], [2], [3]]);
    for (const other of backends) {
      await using another = await load(folder, { backend: other });
      await using loaded = await another.loadState(file);
      expect(loaded.lengths).toEqual([300, 1, 9]);
      expect(await contents(loaded)).toEqual(saved);
      const [logits] = await another.forward(loaded, [[1], [2], [3]]);
      if (other === backend) expect(logits).toEqual(expected);
      else expect(relativeError(logits!, expected!)).toBeLessThan(1e-6);
    }
  });

  test("goes in pieces of any size, without what padding left behind", async () => {
    await using model = await load(await fakeModel(), { backend });
    const { session, manifest } = model;
    const lengths = [30, 1, 9];
    const state = await session.createState(3, 40);
    await session.forward({ state, inputIds: BigInt64Array.from(tokens(90), BigInt), pastLengths: [0, 0, 0], lengths, logitIndices: new BigInt64Array(0) });
    const read = (slot: number, from: number, count: number): Promise<Uint8Array> => session.readBytes(state, slot, lengths, from, count);
    const [whole, file] = [join(out, "whole.state"), join(out, "pieces.state")];
    await writeStateFile(whole, manifest, lengths, read);
    const bytesOfKeys = 3 * 30 * 4 * 4;
    const keys = await read(0, 0, bytesOfKeys);
    lengths.forEach((length, row) => {
      const own = keys.subarray(row * 480, (row + 1) * 480);
      expect([own.subarray(0, length * 16).some((byte) => byte !== 0), own.subarray(length * 16).every((byte) => byte === 0)]).toEqual([true, true]);
    });
    for (const piece of [1, 7, 52, 1000]) {
      await writeStateFile(file, manifest, lengths, read, piece);
      expect((await readFile(file)).equals(await readFile(whole)), `pieces of ${piece}`).toBe(true);
      await using opened = await StateFile.open(file, manifest);
      const copy = await session.createState(3, 33);
      for (const slot of manifest.state.keys()) for await (const { from, bytes } of opened.pieces(slot, piece)) await session.writeBytes(copy, slot, lengths, from, bytes);
      await writeStateFile(file, manifest, lengths, (slot, from, count) => session.readBytes(copy, slot, lengths, from, count));
      expect((await readFile(file)).equals(await readFile(whole)), `pieces of ${piece}, read again`).toBe(true);
    }
    await expect(read(0, bytesOfKeys - 1, 2)).rejects.toThrow();
    const shared = await session.copyState(state);
    await expect(session.writeBytes(shared, 0, lengths, 0, keys)).rejects.toThrow();
  });

  test("an empty one is too", async () => {
    await using model = await load(await fakeModel(), { backend });
    await using state = await model.createState({ batch: 2 });
    await state.save(join(out, "empty.state"));
    await using loaded = await model.loadState(join(out, "empty.state"));
    expect(relativeError((await model.forward(loaded, [[5], [6]]))[1]!, lastOf([6]))).toBeLessThan(1e-6);
  });

  test("that is damaged, or another model's, is refused; one that can't be written leaves nothing", async () => {
    await using model = await load(await fakeModel(), { backend });
    await using other = await load(await fakeModel({ recurrent: false }), { backend });
    await using state = await model.createState();
    await model.forward(state, [tokens(20)]);
    const file = join(out, "damaged.state");
    await state.save(file);
    expect(await codes(other.loadState(file))).toEqual(["runtime/other-model-state"]);
    const whole = await readFile(file);
    for (const at of [0, 20, whole.indexOf("data_offsets"), whole.indexOf("lengths") + 12, whole.length - 1]) {
      const bytes = Buffer.from(whole);
      bytes[at]! ^= 1;
      await writeFile(file, bytes);
      expect(await codes(model.loadState(file)), `byte ${at}`).toEqual(["runtime/bad-state-file"]);
    }
    for (const size of [0, 7, 100, whole.length - 4]) {
      await writeFile(file, whole);
      await truncate(file, size);
      expect(await codes(model.loadState(file)), `${size} bytes`).toEqual(["runtime/bad-state-file"]);
    }
    expect(await codes(model.loadState(join(out, "missing.state")))).toEqual(["runtime/bad-state-file"]);
    expect(await codes(state.save(join(out, "no", "folder.state")))).toEqual(["runtime/state-file-unwritable"]);
    expect(await codes(state.save(out))).toEqual(["runtime/state-file-unwritable"]);
    expect((await readdir(join(out, ".."))).filter((name) => name.startsWith(`${out.split("/").at(-1)}.`))).toEqual([]);
  });
});

describe.each(backends)("a prefix cache on the %s backend", (backend) => {
  const system = tokens(40, 1);
  const prompt = (seed: number, length = 10): number[] => [...system, ...tokens(length, seed)];

  async function feed(cache: PrefixCache, ids: readonly number[], boundaries: readonly number[]) {
    const { state, logits, report } = await cache.prefill(ids, { boundaries, chunk: 16 });
    expect(relativeError(logits, lastOf(ids))).toBeLessThan(1e-6);
    expect(state.lengths).toEqual([ids.length]);
    await state[Symbol.asyncDispose]();
    return report;
  }
  const bytesOf = async (model: Model, length: number): Promise<number> => {
    await using state = await model.createState();
    await model.prefill(state, [tokens(length)]);
    return state.compactBytes;
  };

  test("computes what prompts have in common once, and says why it could not", async () => {
    await using model = await load(await fakeModel(), { backend });
    await using cache = new PrefixCache(model, 1e6);
    expect(await feed(cache, prompt(2), [40])).toEqual({ reused: 0, outcome: "empty", shared: 0, notKept: [] });
    expect(await feed(cache, prompt(3), [40, 50])).toEqual({ reused: 40, outcome: "hit", shared: 40, notKept: [] });
    expect(await feed(cache, [...prompt(3), 1, 2], [40, 50])).toMatchObject({ reused: 50, outcome: "hit" });
    // A recurrent state can't be cut back to what is shared.
    expect(await feed(cache, [...system.slice(0, 30), 255, 254], [])).toEqual({ reused: 0, outcome: "no-match", shared: 30, notKept: [] });
    // Nothing is left to feed, so what is kept at 40 can't give the logits.
    expect(await feed(cache, system, [40])).toMatchObject({ outcome: "no-match", shared: 40 });
    const bytes = (await bytesOf(model, 40)) + (await bytesOf(model, 50));
    expect(cache.stats).toEqual({ hits: 2, misses: 3, reusedTokens: 90, entries: 2, bytes });
  });

  test("keeps to its budget: what was not used for longest goes, and what alone is too much is not kept", async () => {
    await using model = await load(await fakeModel(), { backend });
    const two = 2 * (await bytesOf(model, 40));
    await using cache = new PrefixCache(model, two);
    const first = [...tokens(40, 5), 1];
    const second = [...tokens(40, 6), 1];
    const third = [...tokens(40, 7), 1];
    await feed(cache, first, [40]);
    await feed(cache, second, [40]);
    expect(await feed(cache, first, [40])).toMatchObject({ outcome: "hit" });
    await feed(cache, third, [40]);
    expect(cache.stats).toMatchObject({ entries: 2, bytes: two });
    expect(await feed(cache, first, [])).toMatchObject({ outcome: "hit" });
    expect(await feed(cache, second, [40])).toMatchObject({ outcome: "evicted", notKept: [] });
    expect(await feed(cache, [...tokens(300, 8), 1], [300])).toMatchObject({ outcome: "no-match", notKept: [300] });
    expect(cache.stats.bytes).toBeLessThanOrEqual(two);
  });

  test("prompts fed at the same time don't exceed the budget together, and all are right", async () => {
    await using model = await load(await fakeModel(), { backend });
    const two = 2 * (await bytesOf(model, 40));
    await using cache = new PrefixCache(model, two);
    const reports = await Promise.all(Array.from({ length: 12 }, (_, i) => feed(cache, [...tokens(40, i % 4), i], [40])));
    expect(reports).toHaveLength(12);
    expect(cache.stats.bytes).toBeLessThanOrEqual(two);
    await cache[Symbol.asyncDispose]();
    const { measured } = await model.memory();
    if (measured) expect(measured.now.state).toBe(0);
  });

  test("boundaries outside the prompt are refused", async () => {
    await using model = await load(await fakeModel(), { backend });
    await using cache = new PrefixCache(model, 1e6);
    for (const boundary of [0, 11, 1.5]) expect(await codes(cache.prefill(tokens(10), { boundaries: [boundary] }))).toEqual(["runtime/bad-option"]);
    expect(() => new PrefixCache(model, NaN)).toThrow(/budget/);
  });
});
