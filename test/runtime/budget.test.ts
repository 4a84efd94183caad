// Memory is reserved by plan before anything is allocated, and given back.
import { createHash } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import type { Manifest } from "#dist/core/manifest.js";
import type { Plan } from "#dist/core/plan/plan.js";
import { load, PrefixCache } from "#dist/runtime/index.js";
import { codes, rejection } from "./diagnostics.js";
import { fakeModel, removeFakes } from "./fake-model.js";

afterAll(removeFakes);

const folder = await fakeModel({ contextLength: 1024 });

async function measuredPlan(): Promise<Plan> {
  await using model = await load(folder, { threads: 1 });
  return model.reservation.plan;
}

/** What one load of it needs, and what of that is the runtime's own. */
const { total, runtime } = (await measuredPlan()).bytes;

describe("a budget", () => {
  test("that is just enough loads, one byte less is refused with every item", async () => {
    await using model = await load(folder, { budget: total });
    expect(model.reservation.refusal).toBeUndefined();
    expect(model.reservation.plan).toMatchObject({ context: 1024, batch: 1, chunk: 512, device: model.backend.ops === "kernels" ? "cpu-native" : "cpu" });
    await model.close();
    const [refusal] = await rejection(load(folder, { budget: total - 1 }));
    expect(refusal).toMatchObject({ code: "plan/over-budget", exitCode: 4 });
    expect(refusal?.message).toMatch(/^fake needs .*, 1 B more than the budget of .*: runtime .*KV cache .*weights .*SSM state/);
  });

  test("may be exceeded by force, which is remembered", async () => {
    await using model = await load(folder, { budget: 1000, force: true });
    expect(model.reservation.refusal).toMatchObject({ code: "plan/over-budget" });
    await using state = await model.createState({ batch: 3 });
    expect(await model.forward(state, [[1], [2], [3]])).toHaveLength(3);
  });

  test.each([0, -1, Number.NaN])("of %d bytes is no budget", async (budget) => {
    expect(await codes(load(folder, { budget }))).toEqual(["runtime/bad-option"]);
  });

  test.each([
    ["context 0", { context: 0 }, "plan/bad-count"],
    ["half a batch", { batch: 0.5 }, "plan/bad-count"],
    ["a chunk of 2³¹", { chunk: 2 ** 31 }, "plan/bad-count"],
    ["more context than the model has", { context: 1025 }, "runtime/bad-option"],
  ])("%s is refused", async (_, options, code) => {
    expect(await codes(load(folder, options))).toEqual([code]);
  });
});

describe("reservations", () => {
  test("of open models count, and closing gives them back", async () => {
    const budget = 2 * total - runtime;
    const first = await load(folder, { budget });
    const second = await load(folder, { budget });
    const [refusal] = await rejection(load(folder, { budget }));
    expect(refusal?.code).toBe("plan/over-budget");
    expect(refusal?.message).toContain("are reserved for models that are open.");
    await second.close();
    await (await load(folder, { budget })).close();
    await first.close();
    await first.close();
    await (await load(folder, { budget: total })).close();
  });

  test("of models that can't be opened are given back", async () => {
    const broken = await fakeModel({ contextLength: 1024 });
    const graph = Buffer.from("no model");
    await writeFile(join(broken, "model.onnx"), graph);
    const path = join(broken, "manifest.json");
    const manifest = JSON.parse(await readFile(path, "utf8")) as Manifest;
    await writeFile(path, JSON.stringify({ ...manifest, graph: { ...manifest.graph, bytes: graph.length, sha256: createHash("sha256").update(graph).digest("hex") } }));
    expect(await codes(load(broken))).toEqual(["runtime/load-failed"]);
    await (await load(folder, { budget: total })).close();
  });

  test("grow with the batch of a state, as far as the budget goes", async () => {
    await using model = await load(folder, { budget: total + 200_000 });
    await using two = await model.createState({ batch: 2 });
    expect(two.batch).toBe(2);
    expect(model.reservation.plan.batch).toBe(2);
    expect(await codes(model.createState({ batch: 1000 }))).toEqual(["plan/over-budget"]);
    expect(model.reservation.plan.batch).toBe(2);
  });

  test("count every state and snapshot, and closing gives them back", async () => {
    const { state: bytes } = (await measuredPlan()).holders;
    await using model = await load(folder, { budget: total + 1.5 * bytes });
    const planned = async (): Promise<number> => (await model.memory()).planned.state;
    const first = await model.createState();
    expect(await planned()).toBe(bytes);
    await using second = await model.createState();
    expect(await planned()).toBe(2 * bytes);
    const [refusal] = await rejection(model.createState());
    expect(refusal).toMatchObject({ code: "plan/over-budget", exitCode: 4 });
    expect(refusal?.message).toContain("are for states and snapshots beyond that plan.");
    await first[Symbol.asyncDispose]();
    await first[Symbol.asyncDispose]();
    expect(await planned()).toBe(bytes);
    await using third = await model.createState();
    await model.forward(third, [Array.from({ length: 1000 }, (_, i) => i % 250)]);
    // It holds nearly the whole context, of which half fits.
    expect(await codes(third.snapshot())).toEqual(["plan/over-budget"]);
    await model.forward(second, [[1, 2]]);
    const small = await second.snapshot();
    expect(await planned()).toBe(2 * bytes + second.compactBytes);
    await small[Symbol.asyncDispose]();
    expect(await planned()).toBe(2 * bytes);
  });

  test("a prefix cache keeps nothing that the model's budget has no room for", async () => {
    await using model = await load(folder, { budget: total });
    await using cache = new PrefixCache(model, 1e9);
    const prompt = Array.from({ length: 900 }, (_, i) => i % 250);
    const { state, report } = await cache.prefill(prompt, { boundaries: [10, 800] });
    expect(report.notKept).toEqual([10, 800]);
    await state[Symbol.asyncDispose]();
    expect(cache.stats).toMatchObject({ entries: 0, bytes: 0 });
  });

  test("a model that states no context length gets 8192 tokens, unless its state is of the same size for any", async () => {
    await using model = await load(await fakeModel({ contextLength: null }));
    await using state = await model.createState();
    expect(model.reservation.plan.context).toBe(8192);
    expect(await codes(model.forward(state, [new Array<number>(8193).fill(1)]))).toEqual(["runtime/context-exceeded"]);
  });

  test("a model takes no more tokens than memory was reserved for", async () => {
    await using model = await load(folder, { context: 4 });
    await using state = await model.createState();
    await model.forward(state, [[1, 2, 3]]);
    expect(await codes(model.forward(state, [[4, 5]]))).toEqual(["runtime/context-exceeded"]);
    expect(model.reservation.plan.context).toBe(4);
  });
});
