import assert from "node:assert/strict";
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { describe, test } from "node:test";
import { dtypes, onCard, only, open, relativeError, temporaryFolder, tokens } from "./machine.js";

/** What rounding 16-bit activations in another order makes of logits, when a product has more rows than alone. */
const rounding = { bfloat16: 3e-2, float16: 4e-3 };

describe("state on a card", onCard, () => {
  for (const dtype of dtypes) {
    test(`comes back from a file bit for bit (${dtype})`, async () => {
      const file = join(await temporaryFolder(), `${dtype}.state`);
      await using model = await open("jamba-block", dtype, { batch: 4 });
      await using state = await model.createState({ batch: 2 });
      await model.prefill(state, [tokens(33), tokens(7)]);
      await state.save(file);
      // As it is on the card: a header, and 2 bytes for each number of 16 bits.
      const { size } = await stat(file);
      assert.ok(size >= state.compactBytes && size < state.compactBytes + 2 ** 16, `${size} bytes of ${state.compactBytes}`);
      const next = [[1], [2]];
      const expected = await model.forward(state, next);
      await using loaded = await model.loadState(file);
      assert.deepEqual(loaded.lengths, [33, 7]);
      assert.deepEqual(await model.forward(loaded, next), expected);
    });

    test(`is read as the numbers that are there (${dtype})`, async () => {
      await using model = await open("jamba-block", dtype);
      await using state = await model.createState();
      await model.prefill(state, [tokens(20)]);
      for (const { layer, role, dtype: stored } of model.manifest.state) {
        const { shape, data } = await state.read(layer, role);
        assert.equal(shape.reduce((n, d) => n * d, 1), data.length);
        assert.ok(data.every(Number.isFinite) && data.some((x) => x !== 0), `${layer}.${role}`);
        const bits = new Uint32Array(data.buffer, data.byteOffset, data.length);
        // What 16 bits can't hold is not there.
        if (stored === "bfloat16") assert.ok(bits.every((b) => (b & 0xffff) === 0));
        if (stored === "float16") assert.ok(bits.every((b) => (b & 0x1fff) === 0 || (b & 0x7f800000) <= 0x38000000));
      }
    });

    test(`of ragged rows is what each would be alone (${dtype})`, async (t) => {
      await using model = await open("jamba-block", dtype, { batch: 4 });
      const rows = [tokens(3), tokens(50), tokens(17)];
      await using batch = await model.createState({ batch: rows.length });
      const together = await model.forward(batch, rows, { logits: "all" });
      for (const [b, row] of rows.entries()) {
        await using alone = await model.createState();
        const error = relativeError(together[b] as Float32Array, only(await model.forward(alone, [row], { logits: "all" })));
        t.diagnostic(`row of ${row.length}: ${error.toExponential(2)}`);
        assert.ok(error <= rounding[dtype]);
      }
    });
  }

  test("restored and fed again gives the same, as often as one likes", async () => {
    await using model = await open("jamba-block", "bfloat16", { batch: 4 });
    await using state = await model.createState();
    await model.prefill(state, [tokens(40)]);
    await using snapshot = await state.snapshot();
    const expected = await model.forward(state, [[3, 1, 4, 1, 5]], { logits: "all" });
    for (let i = 0; i < 3; i++) {
      await state.restore(snapshot);
      assert.deepEqual(await model.forward(state, [[3, 1, 4, 1, 5]], { logits: "all" }), expected);
    }
  });

  test("of 4.3 GB is kept and restored on the card", async (t) => {
    await using model = await open("llama", "bfloat16");
    const { session, manifest } = model;
    // As many bytes as 262,144 tokens of Jamba-v0.1.
    const perToken = manifest.state.reduce((sum, { shape }) => sum + shape.reduce<number>((n, d) => n * (typeof d === "number" ? d : 1), 2), 0);
    const length = Math.floor(2 ** 32 / perToken);
    const state = await session.createState(1, length);
    const slotBytes = (length * perToken) / manifest.state.length;
    const pattern = Uint8Array.from({ length: 4096 }, (_, i) => i % 97);
    const places = [0, 2 ** 29 - 2048, slotBytes - pattern.length];
    for (const slot of manifest.state.keys()) for (const from of places) await session.writeBytes(state, slot, [length], from, pattern);
    const timed = async <T>(name: string, work: () => Promise<T>): Promise<T> => {
      const start = performance.now();
      const result = await work();
      const seconds = (performance.now() - start) / 1000;
      t.diagnostic(`${name}: ${(1000 * seconds).toFixed(1)} ms`);
      assert.ok(seconds < 0.5, `${name} took ${seconds} s`);
      return result;
    };
    const step = (of: number) => session.forward({ state: of, inputIds: BigInt64Array.of(5n), pastLengths: [length - 1], lengths: [1], logitIndices: BigInt64Array.of(0n) });
    const logits = await step(state);
    const kept = await timed("kept", async () => {
      const copy = await session.createState(1, length);
      await session.copyRow(state, 0, length, copy, 0);
      await session.readBytes(copy, 0, [length], 0, 64);
      return copy;
    });
    session.releaseState(state);
    // The first run after it copies what is shared.
    const restored = await timed("restored, and a step", async () => {
      const copy = await session.copyState(kept);
      assert.deepEqual(await step(copy), logits);
      return copy;
    });
    for (const of of [kept, restored])
      for (const slot of manifest.state.keys()) for (const from of places.slice(0, 2)) assert.deepEqual(Uint8Array.from(await session.readBytes(of, slot, [length], from, pattern.length)), pattern);
  });

  test("of attention alone is rewound exactly", async () => {
    await using model = await open("llama", "bfloat16");
    await using state = await model.createState();
    await model.prefill(state, [tokens(40)]);
    const expected = await model.forward(state, [[3, 1, 4]], { logits: "all" });
    await state.rewind(3);
    await model.forward(state, [[9, 9, 9]]);
    await state.rewind(3);
    assert.deepEqual(await model.forward(state, [[3, 1, 4]], { logits: "all" }), expected);
  });

  test("a row joins a batch that runs, and leaves it", async () => {
    await using model = await open("jamba-block", "bfloat16", { batch: 4 });
    await using alone = await model.createState();
    await model.prefill(alone, [tokens(25)]);
    await using batch = await model.createState({ batch: 2 });
    await model.prefill(batch, [tokens(5), tokens(9)]);
    await batch.setRow(1, alone);
    const [, joined] = await model.forward(batch, [[7], [7]]);
    assert.ok(relativeError(joined as Float32Array, only(await model.forward(alone, [[7]]))) <= rounding.bfloat16);
    await batch.clearRow(1);
    assert.deepEqual(batch.lengths, [6, 0]);
  });
});
