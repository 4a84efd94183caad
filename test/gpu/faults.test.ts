import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { describe, test } from "node:test";
import { type Diagnostic, LayerweaveError, load } from "layerweave/runtime";
import { cards, compiled, inRepository, onCard, only, open, relativeError, tokens } from "./machine.js";

async function diagnostics(work: Promise<unknown>): Promise<readonly Diagnostic[]> {
  try {
    await work;
  } catch (error) {
    if (error instanceof LayerweaveError) return error.diagnostics;
    throw error;
  }
  return [];
}

const codes = async (work: Promise<unknown>): Promise<readonly string[]> => (await diagnostics(work)).map(({ code }) => code);

/** Runs `work` while another process holds all of the card's memory but so many bytes. */
async function whileHeld(leave: number, work: (left: string) => Promise<void>): Promise<void> {
  const other = spawn(process.execPath, [inRepository("test", "gpu", "hold-memory.mjs"), compiled("llama", "bfloat16"), String(leave)], { stdio: ["pipe", "pipe", "inherit"] });
  const ended = once(other, "exit");
  try {
    const said = await Promise.race([once(other.stdout, "data"), ended.then(([code]) => Promise.reject(new Error(`the process that was to hold memory ended with ${code}`)))]);
    await work(String(said[0]).trim());
  } finally {
    other.stdin.end();
    await ended;
  }
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

  test("memory that another process holds is refused in the plan, and by force an error that the process survives", async (t) => {
    // More than is left for its 1.2 GB of weights.
    const opened = (force: boolean) => open("memory-dense", "bfloat16", { force });
    await whileHeld(1e9, async (left) => {
      t.diagnostic(left);
      const [refusal, ...others] = await diagnostics(opened(false));
      t.diagnostic(refusal?.message ?? "not refused");
      assert.deepEqual([refusal?.code, others], ["plan/over-budget", []]);
      const [failure] = await diagnostics(opened(true));
      t.diagnostic(failure?.message ?? "loaded");
      assert.equal(failure?.code, "runtime/out-of-memory");
      assert.match(failure.message, /The card has no memory to load the model/);
      await using small = await open("llama", "bfloat16");
      await using state = await small.createState();
      assert.ok(only(await small.forward(state, [[1, 2, 3]])).every(Number.isFinite));
    });
    await using model = await opened(false);
    assert.equal(model.reservation.refusal, undefined);
  });

  test("what a kernel refuses names its op and the place in the layout, and the model goes on", async (t) => {
    await using model = await open("llama", "bfloat16");
    // One row more than attention takes.
    const rows = 65_536;
    const state = await model.session.createState(rows, 2);
    const each = (value: number): number[] => new Array<number>(rows).fill(value);
    const [failure] = await diagnostics(model.session.forward({ state, inputIds: new BigInt64Array(rows), pastLengths: each(0), lengths: each(1), logitIndices: new BigInt64Array(0) }));
    model.session.releaseState(state);
    t.diagnostic(JSON.stringify(failure));
    assert.equal(failure?.code, "runtime/run-failed");
    assert.match(failure.message, /AttentionInner/);
    assert.match(failure.message, /layers\.0/);
    assert.match(failure.message, /cudaErrorInvalidValue/);
    assert.match(JSON.stringify(failure), /layers\[0\]/);
    await using small = await model.createState();
    assert.ok(only(await model.forward(small, [[1, 2, 3]])).every(Number.isFinite));
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
