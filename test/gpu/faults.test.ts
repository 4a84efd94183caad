import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { LayerweaveError, load } from "layerweave/runtime";
import { cards, compiled, onCard, only, open, relativeError, tokens } from "./machine.js";

const codesOf = (error: unknown): readonly string[] => (error instanceof LayerweaveError ? error.diagnostics.map(({ code }) => code) : [String(error)]);

async function codes(work: Promise<unknown>): Promise<readonly string[]> {
  try {
    await work;
  } catch (error) {
    return codesOf(error);
  }
  return [];
}

describe("on a card", onCard, () => {
  test("a card that is not there, a place the folder was not compiled for", async () => {
    assert.deepEqual(await codes(open("llama", "bfloat16", { device: `cuda:${cards.length}` })), ["runtime/cuda-no-device"]);
    assert.deepEqual(await codes(open("llama", "bfloat16", { device: "cpu" })), ["runtime/wrong-target"]);
    assert.deepEqual(await codes(load(compiled("llama", "bfloat16"), { backend: "native" })), ["runtime/wrong-target"]);
  });

  test("what runs the model, and the bytes of everything", async (t) => {
    await using model = await open("jamba-block", "bfloat16");
    assert.equal(model.backend.name, "cuda");
    assert.match(model.backend.why, /cuda:0 \(.*\) with ONNX Runtime 1\.29/);
    const weights = model.manifest.weights.reduce((n, { bytes }) => n + bytes, 0);
    await using state = await model.createState();
    await model.prefill(state, [tokens(64)]);
    const memory = await model.session.memory();
    t.diagnostic(JSON.stringify(memory));
    assert.ok(memory?.card);
    assert.ok(memory.card.weights >= weights && memory.card.weights < weights + 256 * model.manifest.weights.length);
    assert.ok(memory.card.usedNow - memory.card.usedBefore >= memory.card.weights + memory.state);
    assert.ok(memory.arenaPeak > 0 && memory.arenaPeak < 100e6);
  });

  test("a prefill that is aborted leaves whole chunks, and goes on as if nothing had happened", async () => {
    await using model = await open("jamba-block", "bfloat16", { context: 4096, batch: 2 });
    const ids = tokens(4000);
    await using whole = await model.createState();
    const expected = only(await model.prefill(whole, [ids], { chunk: 4 }));
    await using state = await model.createState();
    const controller = new AbortController();
    const aborted = assert.rejects(model.prefill(state, [ids], { chunk: 4, signal: controller.signal }), { name: "AbortError" });
    while ((state.lengths[0] ?? 0) < 8) await new Promise(setImmediate);
    controller.abort();
    await aborted;
    await using snapshot = await state.snapshot();
    const fed = snapshot.lengths[0] ?? NaN;
    assert.ok(fed % 4 === 0 && fed < 4000, String(fed));
    assert.ok(relativeError(only(await model.prefill(state, [ids.slice(fed)], { chunk: 4 })), expected) === 0);
  });

  test("more than the card has is refused, and by force an error that the process survives", async () => {
    assert.deepEqual(await codes(open("llama", "bfloat16", { budget: 1000 })), ["plan/over-budget"]);
    await using model = await open("llama", "bfloat16", { budget: 1000, force: true });
    assert.deepEqual(await codes(model.session.createState(2 ** 24, 1024)), ["runtime/out-of-memory"]);
    await using state = await model.createState();
    assert.ok(only(await model.forward(state, [[1, 2, 3]])).every(Number.isFinite));
  });

  test("closing gives the card its memory back", async () => {
    const model = await open("jamba-block", "bfloat16");
    await using other = await open("llama", "bfloat16");
    await using state = await model.createState();
    await model.prefill(state, [tokens(64)]);
    const before = (await other.session.memory())?.card?.usedNow ?? NaN;
    await model.close();
    const after = (await other.session.memory())?.card?.usedNow ?? NaN;
    assert.ok(after < before, `${after} < ${before}`);
  });
});
