// Captured steps are the steps themselves: the same logits bit for bit, whatever happens to the state in between.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Model, State } from "layerweave/runtime";
import { dtypes, onCard, only, open, relativeError, tokens } from "./machine.js";

/** Logits of a step for each of `ids`, one row. */
async function steps(model: Model, state: State, ids: readonly number[]): Promise<Float32Array[]> {
  const logits: Float32Array[] = [];
  for (const id of ids) logits.push(only(await model.forward(state, [[id]])));
  return logits;
}

function assertSame(actual: readonly Float32Array[], expected: readonly Float32Array[], what: string): void {
  assert.equal(actual.length, expected.length);
  actual.forEach((row, i) => assert.ok(Buffer.from(row.buffer, row.byteOffset, row.byteLength).equals(Buffer.from(expected[i]?.buffer ?? new ArrayBuffer(0), expected[i]?.byteOffset, expected[i]?.byteLength)), `${what}: step ${i}`));
}

describe("captured graphs", onCard, () => {
  for (const name of ["jamba-block", "llama", "mixtral"])
    for (const dtype of dtypes)
      test(`512 steps of ${name} in ${dtype} as without them`, async () => {
        const prompt = tokens(100);
        const ids = tokens(512).toReversed();
        const decode = async (cudaGraphs: boolean): Promise<Float32Array[]> => {
          await using model = await open(name, dtype, { cudaGraphs });
          await using state = await model.createState();
          return [...(await model.prefill(state, [prompt], { chunk: 64 })), ...(await steps(model, state, ids))];
        };
        const plain = await decode(false);
        assert.ok(plain.every((row) => row.every(Number.isFinite)));
        assert.equal(new Set(plain.map((row) => row[0])).size > 400, true, "logits differ from step to step");
        assertSame(await decode(true), plain, "with graphs");
      });

  test("through a snapshot, a prefill between steps, a restored state and a state beside it", async () => {
    const run = async (cudaGraphs: boolean): Promise<Float32Array[]> => {
      await using model = await open("jamba-block", "bfloat16", { cudaGraphs, batch: 4 });
      await using state = await model.createState();
      await using beside = await model.createState();
      const all: Float32Array[] = [];
      const feed = async (to: State, count: number): Promise<void> => void all.push(...(await steps(model, to, tokens(count))));
      await feed(state, 8);
      await feed(beside, 6);
      await using snapshot = await state.snapshot();
      await feed(state, 8);
      all.push(...(await model.prefill(state, [tokens(30)])));
      await feed(state, 8);
      await state.restore(snapshot);
      await feed(state, 8);
      await feed(beside, 6);
      return all;
    };
    const plain = await run(false);
    assertSame(await run(true), plain, "with graphs");
    // After the restored state was fed what followed the snapshot: that again.
    assertSame(plain.slice(31, 39), plain.slice(14, 22), "restored");
  });

  // Nothing was reserved, so the cache begins with 256 positions and doubles; each size is captured anew.
  test("while the KV cache grows, in a model that the plan refused and force loaded", async () => {
    const run = async (cudaGraphs: boolean) => {
      await using model = await open("jamba-block", "bfloat16", { cudaGraphs, budget: 1, force: true });
      await using state = await model.createState();
      const held = async (): Promise<number> => (await model.memory()).measured?.now.state ?? 0;
      const before = await held();
      const logits = [...(await model.prefill(state, [tokens(100)])), ...(await steps(model, state, tokens(600)))];
      return { logits, grown: (await held()) - before };
    };
    const plain = await run(false);
    assertSame((await run(true)).logits, plain.logits, "with graphs");
    await using reserved = await open("jamba-block", "bfloat16");
    await using state = await reserved.createState();
    const perPosition = reserved.manifest.state.filter(({ growth }) => growth === "per-token").reduce((sum, { shape }) => sum + shape.reduce<number>((n, d) => n * (typeof d === "number" ? d : 1), 2), 0);
    assert.ok(plain.grown >= 768 * perPosition, `grew by ${plain.grown} bytes, of ${perPosition} a position`);
    const whole = [...(await reserved.prefill(state, [tokens(100)])), ...(await steps(reserved, state, tokens(600)))];
    // A larger cache is split among blocks elsewhere, whose bfloat16 results are rounded and added in another order.
    whole.forEach((row, i) => assert.ok(relativeError(plain.logits[i] ?? new Float32Array(), row) < 0.02, `step ${i} beside a cache that was there from the beginning`));
  });

  test("of a batch", async () => {
    const run = async (cudaGraphs: boolean): Promise<Float32Array[]> => {
      await using model = await open("jamba-block", "bfloat16", { cudaGraphs, batch: 3 });
      await using state = await model.createState({ batch: 3 });
      const all = await model.prefill(state, [tokens(5), tokens(40), tokens(17)]);
      for (let i = 0; i < 40; i++) all.push(...(await model.forward(state, [[i], [i + 1], [i + 2]])));
      return all;
    };
    assertSame(await run(true), await run(false), "with graphs");
  });
});
