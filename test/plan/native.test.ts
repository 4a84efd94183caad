// What the native runtime holds at most, as its allocators count it, against the plan: weights, allocator, state and logits.
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { compile } from "../../compiler/compile.js";
import { checkedLayout } from "../../compiler/lower.js";
import { load, type Model } from "#dist/runtime/index.js";
import { chooseBackend } from "#dist/runtime/backends/choose.js";
import { temporaryFolder } from "../support/folders.js";
import { small } from "./layouts.js";

const out = await temporaryFolder();
const kernels = chooseBackend("auto").choice.ops === "kernels";
if (!kernels) console.warn("The plan of the native runtime is not compared with it: it can't be used here.");

/** Feeds every row until the reserved context is full. */
async function fill(model: Model): Promise<void> {
  const { context, batch, chunk } = model.reservation.plan;
  await using state = await model.createState({ batch });
  const rows = Array.from({ length: batch }, (_, row) => Array.from({ length: context }, (_, i) => (i * 7919 + row * 31) % model.manifest.model.vocabSize));
  await model.prefill(state, rows, { chunk });
}

const settings = [
  ["prefill of 100 tokens", { context: 100, batch: 1, chunk: 512 }],
  ["prefill in chunks, three rows", { context: 700, batch: 3, chunk: 300 }],
  ["a chunk of few tokens", { context: 40, batch: 2, chunk: 4 }],
  ["decode", { context: 300, batch: 1, chunk: 1 }],
  ["decode of nine rows", { context: 40, batch: 9, chunk: 1 }],
] as const;

describe.skipIf(!kernels)("the native runtime", () => {
  const compiled = new Map<string, Promise<string>>();
  const compiledFolder = (name: string, quantize: "none" | "int8", dtype: "float32" | "bfloat16"): Promise<string> => {
    const key = `${name}-${quantize}-${dtype}`;
    const folder = compiled.get(key) ?? compile(checkedLayout(small[name] as (typeof small)[string]), { out: join(out, key), weights: { from: "random", seed: 3 }, quantize, dtype }).then((c) => c.folder);
    compiled.set(key, folder);
    return folder;
  };

  const cases = Object.keys(small).flatMap((name) => (["none", "int8"] as const).flatMap((quantize) => settings.map(([what, setting]) => [name, quantize, what, setting] as const)));
  test.each(cases)("%s, quantize %s, %s: measured within 2 % of the plan", async (name, quantize, _, setting) => {
    await using model = await load(await compiledFolder(name, quantize, "float32"), { backend: "native", threads: 1, ...setting });
    await fill(model);
    const { planned, measured } = await model.memory();
    expect(measured?.peak.state).toBe(planned.state);
    expect(measured?.peak.logits).toBe(planned.logits);
    // What is beyond the plan are the graph's constants, which loading copies.
    const beyond = (measured?.peak.arena ?? Infinity) - planned.arena;
    expect(beyond).toBeGreaterThanOrEqual(0);
    expect(beyond).toBeLessThan(256);
    expect(Math.abs((measured?.peak.total ?? 0) / planned.total - 1)).toBeLessThan(0.02);
  });

  test.each(["hybrid", "mixture", "window"])("%s in bfloat16: what loading packs", async (name) => {
    await using model = await load(await compiledFolder(name, "none", "bfloat16"), { backend: "native", threads: 1, context: 8, chunk: 1 });
    await fill(model);
    const { planned, measured } = await model.memory();
    expect(Math.abs((measured?.peak.arena ?? 0) - planned.arena)).toBeLessThan(256);
  });
});
