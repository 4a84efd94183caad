// Several models on one card: each has a thread and a stream of its own, and the plan counts them together.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { LayerweaveError } from "layerweave/runtime";
import { type GpuDtype, onCard, open, tokens } from "./machine.js";

const models: readonly (readonly [string, GpuDtype])[] = [
  ["jamba-block", "bfloat16"],
  ["llama", "float16"],
  ["mixtral", "bfloat16"],
];

/** Opened, prefilled, and as many steps as leave most of them to a captured graph. */
async function decoded([name, dtype]: readonly [string, GpuDtype]): Promise<Buffer> {
  await using model = await open(name, dtype);
  await using state = await model.createState();
  const logits = [...(await model.prefill(state, [tokens(100)], { chunk: 32 }))];
  for (const id of tokens(60)) logits.push(...(await model.forward(state, [[id]])));
  return Buffer.concat(logits.map((row) => Buffer.from(row.buffer, row.byteOffset, row.byteLength)));
}

describe("on one card", onCard, () => {
  test("models that load, capture and run at once give what each gives alone", async () => {
    const alone: Buffer[] = [];
    for (const model of models) alone.push(await decoded(model));
    // Each twice: one captures while others load and run.
    const together = await Promise.all([...models, ...models].map(decoded));
    together.forEach((logits, i) => assert.ok(logits.equals(alone[i % models.length] ?? Buffer.alloc(0)), `${models[i % models.length]?.join(" ")} among others`));
  });

  test("the plan has room for what the open ones were not promised, and for the runtime once", async () => {
    const refusedWith = async (budget: number): Promise<readonly string[]> => {
      try {
        await (await open("llama", "float16", { budget })).close();
        return [];
      } catch (error) {
        return error instanceof LayerweaveError ? error.diagnostics.map(({ code }) => code) : [String(error)];
      }
    };
    const room = async (name: string, dtype: GpuDtype) => {
      await using model = await open(name, dtype);
      return model.reservation.plan.bytes;
    };
    const [first, second] = [await room("jamba-block", "bfloat16"), await room("llama", "float16")];
    const both = first.total + second.total - second.runtime;
    await using model = await open("jamba-block", "bfloat16", { budget: both });
    assert.deepEqual(await refusedWith(both - 1e6), ["plan/over-budget"]);
    assert.deepEqual(await refusedWith(both), []);
    await using state = await model.createState();
    assert.ok((await model.forward(state, [[1, 2, 3]])).every((row) => row.every(Number.isFinite)));
  });
});
