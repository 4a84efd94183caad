import { afterAll, describe, expect, test } from "vitest";
import * as fc from "fast-check";
import { load, type Model, type State } from "#dist/runtime/index.js";
import { backends } from "../support/backends.js";
import { codes, rejection, relativeError } from "./diagnostics.js";
import { fakeModel, referenceLogits, removeFakes, vocabSize } from "./fake-model.js";

afterAll(removeFakes);

const tokens = (length: number, seed = 7): number[] => Array.from({ length }, (_, i) => (i * 31 + seed * 17 + ((i * i) % 13)) % 256);
const lastRow = (logits: ArrayLike<number>): number[] => Array.from(logits).slice(-vocabSize);

async function contents(state: State): Promise<number[][]> {
  const slots = [await state.read(0, "key"), await state.read(1, "conv_state"), await state.read(2, "ssm_state")];
  return slots.map(({ data }) => Array.from(data));
}

describe.each(backends)("forward on the %s backend", (backend) => {
  test("gives the logits of the definition, for all positions and for the last", async () => {
    await using model = await load(await fakeModel(), { backend });
    const ids = tokens(20);
    await using all = await model.createState();
    const [logits] = await model.forward(all, [ids], { logits: "all" });
    expect(relativeError(logits ?? [], referenceLogits(ids))).toBeLessThan(1e-6);
    expect(all.lengths).toEqual([20]);
    await using last = await model.createState();
    expect(Array.from((await model.forward(last, [ids]))[0] ?? [])).toEqual(lastRow(logits ?? []));
    await using none = await model.createState();
    expect((await model.forward(none, [ids], { logits: "none" })).map((row) => row.length)).toEqual([0]);
    expect(await contents(none)).toEqual(await contents(all));
  });

  test("transient logits are the same, in memory that the state's next run may use again; others keep theirs", async () => {
    await using model = await load(await fakeModel(), { backend });
    const ids = tokens(6);
    const expected = referenceLogits(ids);
    await using state = await model.createState();
    const [all] = await model.forward(state, [ids.slice(0, 3)], { logits: "all", transient: true });
    expect(relativeError(all ?? [], expected.slice(0, 3 * vocabSize))).toBeLessThan(1e-6);
    const [kept] = await model.forward(state, [ids.slice(3, 4)]);
    const [one] = await model.forward(state, [ids.slice(4, 5)], { transient: true });
    expect(relativeError(one ?? [], expected.slice(4 * vocabSize, 5 * vocabSize))).toBeLessThan(1e-6);
    await model.forward(state, [ids.slice(5)], { logits: "none", transient: true });
    expect(relativeError(kept ?? [], expected.slice(3 * vocabSize, 4 * vocabSize))).toBeLessThan(1e-6);
    expect(one?.buffer === all?.buffer).toBe(backend === "native");
  });

  test("any split of a prompt gives the same logits and the same state", async () => {
    await using model = await load(await fakeModel(), { backend });
    const ids = tokens(40);
    const expected = referenceLogits(ids);
    await using whole = await model.createState();
    await model.forward(whole, [ids]);
    const wholeState = await contents(whole);
    await fc.assert(
      fc.asyncProperty(fc.array(fc.integer({ min: 1, max: 12 }), { minLength: 4, maxLength: 40 }), async (pieces) => {
        await using state = await model.createState();
        const logits: number[] = [];
        for (let at = 0, i = 0; at < ids.length; i++) {
          const next = Math.min(ids.length, at + (pieces[i % pieces.length] ?? 1));
          logits.push(...((await model.forward(state, [ids.slice(at, next)], { logits: "all" }))[0] ?? []));
          at = next;
        }
        expect(relativeError(logits, expected)).toBeLessThan(1e-6);
        (await contents(state)).forEach((slot, i) => expect(relativeError(slot, wholeState[i] ?? [])).toBeLessThan(1e-6));
      }),
      { numRuns: 15 },
    );
  });

  test("rows of different lengths are what each would be alone", async () => {
    await using model = await load(await fakeModel(), { backend });
    const prompts = [tokens(1, 1), tokens(23, 2), tokens(9, 3)];
    await using state = await model.createState({ batch: 3 });
    const logits = await model.forward(state, prompts, { logits: "all" });
    expect(state.lengths).toEqual([1, 23, 9]);
    const again = await model.forward(state, prompts.toReversed(), { logits: "last" });
    prompts.forEach((prompt, b) => {
      expect(relativeError(logits[b] ?? [], referenceLogits(prompt))).toBeLessThan(1e-6);
      const both = [...prompt, ...(prompts.toReversed()[b] ?? [])];
      expect(relativeError(again[b] ?? [], lastRow(referenceLogits(both)))).toBeLessThan(1e-6);
    });
  });

  test("a KV cache grows beyond its first capacity, token by token and at once, up to the context", async () => {
    await using model = await load(await fakeModel({ contextLength: 700 }), { backend });
    const ids = tokens(700);
    const expected = lastRow(referenceLogits(ids));
    await using steps = await model.createState();
    await model.forward(steps, [ids.slice(0, 250)], { logits: "none" });
    for (let at = 250; at < 260; at++) await model.forward(steps, [ids.slice(at, at + 1)], { logits: "none" });
    const [logits] = await model.forward(steps, [ids.slice(260)]);
    expect(relativeError(logits ?? [], expected)).toBeLessThan(1e-6);
    expect((await steps.read(0, "key")).shape).toEqual([1, 1, 700, 4]);
    await using once = await model.createState();
    expect(relativeError((await model.forward(once, [ids]))[0] ?? [], expected)).toBeLessThan(1e-6);
  });

  test("bad rows are diagnostics, and leave the state as it was", async () => {
    await using model = await load(await fakeModel({ contextLength: 30 }), { backend });
    await using state = await model.createState({ batch: 2 });
    await model.forward(state, [tokens(5), tokens(6)]);
    const before = await contents(state);
    expect(await codes(model.forward(state, [[1]]))).toEqual(["runtime/row-count"]);
    expect(await codes(model.forward(state, [[1], []]))).toEqual(["runtime/empty-prompt"]);
    expect(await codes(model.forward(state, [[1, 259], [-1]]))).toEqual(["runtime/bad-token", "runtime/bad-token"]);
    expect(await codes(model.forward(state, [[1.5], [NaN]]))).toEqual(["runtime/bad-token", "runtime/bad-token"]);
    expect(await codes(model.forward(state, [tokens(26), tokens(24)]))).toEqual(["runtime/context-exceeded"]);
    expect(await codes(model.prefill(state, [tokens(26), [300]]))).toEqual(["runtime/context-exceeded", "runtime/bad-token"]);
    expect(await codes(model.prefill(state, [[], [1]]))).toEqual(["runtime/empty-prompt"]);
    expect(await codes(model.prefill(state, [[1], [1]], { chunk: 0 }))).toEqual(["runtime/bad-option"]);
    expect(await codes(model.createState({ batch: 0 }))).toEqual(["runtime/bad-option"]);
    expect(state.lengths).toEqual([5, 6]);
    expect(await contents(state)).toEqual(before);
  });

  test("a run that fails names the place in the layout and leaves the state as it was", async () => {
    await using model = await load(await fakeModel({ failsOnToken13: true }), { backend });
    await using state = await model.createState();
    const ids = [1, 2, 3];
    await model.forward(state, [ids]);
    const before = await contents(state);
    const [problem] = await rejection(model.forward(state, [[7, 13]]));
    expect(problem).toMatchObject({ code: "runtime/run-failed", path: "layers[0].mixer", at: { file: "fake.ts", line: 3, column: 7 } });
    expect(state.lengths).toEqual([3]);
    expect(await contents(state)).toEqual(before);
    const [logits] = await model.forward(state, [[4]]);
    expect(relativeError(logits ?? [], lastRow(referenceLogits([...ids, 4])))).toBeLessThan(1e-6);
  });

  test("operations on one state run in the order they were called", async () => {
    await using model = await load(await fakeModel(), { backend });
    const ids = tokens(12);
    await using state = await model.createState();
    const logits = await Promise.all(ids.map((id) => model.forward(state, [[id]])));
    expect(relativeError(logits.at(-1)?.[0] ?? [], lastRow(referenceLogits(ids)))).toBeLessThan(1e-6);
  });
});

describe.each(backends)("prefill on the %s backend", (backend) => {
  test.each([1, 3, 7, 512])("in chunks of %i gives each row the logits of its own last token", async (chunk) => {
    await using model = await load(await fakeModel(), { backend });
    const prompts = [tokens(14, 1), tokens(1, 2), tokens(7, 3), tokens(8, 4)];
    await using state = await model.createState({ batch: 4 });
    const logits = await model.prefill(state, prompts, { chunk });
    expect(state.lengths).toEqual([14, 1, 7, 8]);
    prompts.forEach((prompt, b) => expect(relativeError(logits[b] ?? [], lastRow(referenceLogits(prompt)))).toBeLessThan(1e-6));
  });
});

describe.each(backends)("snapshots on the %s backend", (backend) => {
  async function continueWith(model: Model, state: State, ids: readonly number[]): Promise<number[]> {
    return Array.from((await model.forward(state, [ids], { logits: "all" }))[0] ?? []);
  }

  test("restoring equals replaying, bit for bit, as often as one likes", async () => {
    await using model = await load(await fakeModel(), { backend });
    await using state = await model.createState();
    await model.forward(state, [tokens(10)]);
    await using snapshot = await state.snapshot();
    const first = await continueWith(model, state, tokens(300, 5));
    const firstState = await contents(state);
    for (let i = 0; i < 2; i++) {
      await state.restore(snapshot);
      expect(state.lengths).toEqual([10]);
      await continueWith(model, state, tokens(3, 9));
      await state.restore(snapshot);
      expect(await continueWith(model, state, tokens(300, 5))).toEqual(first);
      expect(await contents(state)).toEqual(firstState);
    }
  });

  test("two states restored from one snapshot don't disturb each other", async () => {
    await using model = await load(await fakeModel(), { backend });
    await using a = await model.createState();
    await using b = await model.createState();
    await model.forward(a, [tokens(10)]);
    await using snapshot = await a.snapshot();
    await b.restore(snapshot);
    for (let i = 0; i < 6; i++) {
      await model.forward(a, [[i]]);
      await model.forward(b, [[100 + i]]);
    }
    const ofA = await continueWith(model, a, [1]);
    const ofB = await continueWith(model, b, [1]);
    expect(relativeError(ofA, lastRow(referenceLogits([...tokens(10), 0, 1, 2, 3, 4, 5, 1])))).toBeLessThan(1e-6);
    expect(relativeError(ofB, lastRow(referenceLogits([...tokens(10), 100, 101, 102, 103, 104, 105, 1])))).toBeLessThan(1e-6);
  });

  test("a model with recurrent state can't rewind; one without rewinds exactly", async () => {
    await using hybrid = await load(await fakeModel(), { backend });
    await using recurrent = await hybrid.createState();
    await hybrid.forward(recurrent, [tokens(5)]);
    const [problem] = await rejection(recurrent.rewind(1));
    expect(problem?.code).toBe("runtime/rewind-needs-snapshot");

    await using model = await load(await fakeModel({ recurrent: false }), { backend });
    await using state = await model.createState({ batch: 2 });
    await model.forward(state, [tokens(5), tokens(9)]);
    await model.forward(state, [[1, 2, 3], [4, 5, 6]]);
    await state.rewind(3);
    expect(state.lengths).toEqual([5, 9]);
    const [, logits] = await model.forward(state, [[7], [8]]);
    expect(relativeError(logits ?? [], lastRow(referenceLogits([...tokens(9), 8], { recurrent: false })))).toBeLessThan(1e-6);
    expect(await codes(state.rewind(7))).toEqual(["runtime/rewind-too-far"]);
    expect(await codes(state.rewind(-1))).toEqual(["runtime/rewind-too-far", "runtime/rewind-too-far"]);
  });

  test("what belongs elsewhere or was closed is refused", async () => {
    await using model = await load(await fakeModel(), { backend });
    await using other = await load(await fakeModel(), { backend });
    await using state = await model.createState();
    await using wide = await model.createState({ batch: 2 });
    await using foreign = await other.createState();
    const snapshot = await state.snapshot();
    expect(await codes(foreign.restore(snapshot))).toEqual(["runtime/foreign-state"]);
    expect(await codes(wide.restore(snapshot))).toEqual(["runtime/foreign-state"]);
    expect(await codes(model.forward(foreign, [[1]]))).toEqual(["runtime/foreign-state"]);
    expect(await codes(state.read(0, "ssm_state"))).toEqual(["runtime/unknown-slot"]);
    await snapshot[Symbol.asyncDispose]();
    await snapshot[Symbol.asyncDispose]();
    expect(await codes(state.restore(snapshot))).toEqual(["runtime/closed"]);
    await wide[Symbol.asyncDispose]();
    expect(await codes(model.forward(wide, [[1], [1]]))).toEqual(["runtime/closed"]);
    await other.close();
    await other.close();
    expect(await codes(foreign.snapshot())).toEqual(["runtime/closed"]);
    expect(await codes(other.createState())).toEqual(["runtime/closed"]);
  });
});
