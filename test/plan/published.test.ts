import { describe, expect, test } from "vitest";
import { overBudget } from "../../core/plan/plan.js";
import { cuda } from "../../compiler/targets/cuda.js";
import { type Example, exampleModel as modelFor, planned } from "./layouts.js";

/** As `layerweave plan` has it for a card. */
const exampleModel = (name: Example) => modelFor(name, "bfloat16", cuda("bfloat16"));

const GiB = 2 ** 30;
const MiB = 2 ** 20;

describe("published numbers", () => {
  test.each<[Example, number]>([
    ["llama-2-7b", 128],
    ["mistral-7b", 32],
    ["mixtral-8x7b", 32],
    ["jamba-v0.1", 4],
    ["jamba-1.5-large", 9],
    ["llama-2-70b", 80],
  ])("%s has a KV cache of %i GiB at 256K in 16 bits", async (name, gib) => {
    expect(planned(await exampleModel(name)).bytes.kvCache).toBe(gib * GiB);
  });

  test.each<[Example, number, number]>([
    ["jamba-v0.1", 51.57, 12.11],
    ["jamba-1.5-large", 398.56, 94.15],
    ["mixtral-8x7b", 46.7, 12.9],
  ])("%s has %fB parameters, %fB of them active", async (name, total, active) => {
    const { parameters } = planned(await exampleModel(name));
    const digits = (n: number, like: number) => Number((n / 1e9).toFixed(`${like}`.split(".")[1]?.length ?? 0));
    expect([digits(parameters.total, total), digits(parameters.active, active)]).toEqual([total, active]);
  });

  test("Jamba-v0.1 carries 14.0 MiB of SSM state in float32 and 1.31 MiB of conv state in bfloat16 per sequence", async () => {
    const { bytes } = planned(await exampleModel("jamba-v0.1"));
    expect(bytes.ssmState).toBe(14 * MiB);
    expect(bytes.convState).toBe(28 * 8192 * 3 * 2);
    expect((bytes.convState / MiB).toFixed(2)).toBe("1.31");
  });

  test("state grows with the batch, the cache with the context, and both follow their types", async () => {
    const jamba = await exampleModel("jamba-v0.1");
    const [one, four] = [planned(jamba, { context: 4096 }), planned(jamba, { context: 16_384, batch: 4 })];
    expect(four.bytes.kvCache).toBe(16 * one.bytes.kvCache);
    expect(four.bytes.ssmState).toBe(4 * one.bytes.ssmState);
    expect(planned(jamba, { kvDtype: "float32" }).bytes.kvCache).toBe(8 * GiB);
    expect(planned(jamba, { stateDtype: "bfloat16" }).bytes.ssmState).toBe(7 * MiB);
  });

  test("a window leaves the cache whole, because the runtime stores the whole", async () => {
    expect(planned(await exampleModel("mistral-7b")).bytes.kvCache).toBe(32 * GiB);
  });

  test("operations of Jamba-v0.1: 23.14 GFLOP per token, and 65,536 per visible position", async () => {
    const { operations } = (await exampleModel("jamba-v0.1")).profile;
    expect((operations.gemmPerToken / 1e9).toFixed(2)).toBe("23.14");
    expect((operations.expertsPerToken / operations.gemmPerToken).toFixed(3)).toBe("0.487");
    expect(operations.attention.reduce((sum, a) => sum + a.layers * a.perPosition, 0)).toBe(65_536);
  });

  test("bytes of a decode step of Jamba-v0.1, by hand", async () => {
    const jamba = await exampleModel("jamba-v0.1");
    const { decode } = planned(jamba).roofline;
    // Mamba 5.90 GB, attention, dense MLPs and head 6.51 GB, two of sixteen experts 11.27 GB, 28 MB of float32 vectors and routers less what rounds away.
    expect(decode.bytes.weights / 1e9).toBeCloseTo(5.9 + 6.51 + 11.27, 1);
    expect(decode.bytes.kvCache / 1e9).toBeCloseTo(4.29, 2);
    expect(decode.bytes.state).toBe(2 * (14 * MiB + 28 * 8192 * 3 * 2));
    expect(decode.binds).toBe("memory");
  });
});

describe("one 80 GB card", () => {
  const budget = 80e9;

  test("Jamba-v0.1 in bfloat16 does not fit, and the plan says what would make it", async () => {
    const whole = planned(await exampleModel("jamba-v0.1"), { budget });
    expect(whole.budget).toMatchObject({ fits: false, maxContext: 0, maxBatch: 0 });
    expect(whole.reliefs).toContainEqual(expect.objectContaining({ change: "int8 experts and MLPs", fits: true }));
    const refusal = overBudget(whole);
    expect(refusal).toMatchObject({ code: "plan/over-budget", exitCode: 4 });
    expect(refusal?.message).toMatch(/jamba-v0\.1 needs 109\.\d GB, 29\.\d GB more than the budget of 80\.0 GB: weights 103\.2 GB, KV cache 4\.29 GB/);
    expect(refusal?.help).toContain("int8 experts and MLPs");
  });

  test("with int8 experts and MLPs it fits at 256K in chunks, and beyond", async () => {
    const jamba = await exampleModel("jamba-v0.1");
    const fitting = planned(jamba, { budget, quantize: "experts-int8" });
    expect(fitting.budget.fits).toBe(true);
    expect(overBudget(fitting)).toBeUndefined();
    expect(fitting.budget.maxContext).toBeGreaterThan(1_000_000);
    const scales = fitting.weights.find((w) => w.kind === "scales");
    // A scale per output channel: sixteen layers of sixteen experts and sixteen MLPs, two of 14336 rows and one of 4096.
    expect(scales?.elements).toBe((16 * 16 + 16) * (2 * 14_336 + 4096));
    const experts = fitting.weights.find((w) => w.kind === "experts");
    expect(experts).toMatchObject({ dtype: "int8", bytes: 16 * 16 * 3 * 4096 * 14_336 });
  });

  test("unchunked, the same prefill needs far more than the card", async () => {
    const jamba = await exampleModel("jamba-v0.1");
    const whole = planned(jamba, { budget, quantize: "experts-int8", chunk: 262_144 });
    expect(whole.budget.fits).toBe(false);
    expect(whole.bytes.activations + whole.bytes.workspace + whole.bytes.allocator).toBeGreaterThan(35e9);
    expect(whole.reliefs).toContainEqual(expect.objectContaining({ change: "prefill in chunks of 8K instead of 256K", fits: true }));
  });

  test("the largest contexts of Mixtral and Llama-2-70B beside Jamba's", async () => {
    const largest = async (name: Example, quantize: "none" | "experts-int8" | "int8") => planned(await exampleModel(name), { budget, quantize }).budget.maxContext;
    const [jamba, mixtral, llama] = [await largest("jamba-v0.1", "experts-int8"), await largest("mixtral-8x7b", "experts-int8"), await largest("llama-2-70b", "int8")];
    expect(await largest("mixtral-8x7b", "none")).toBe(0);
    expect(await largest("llama-2-70b", "none")).toBe(0);
    expect(await largest("llama-2-70b", "experts-int8")).toBe(0);
    expect(jamba).toBeGreaterThan(6 * mixtral);
    expect(mixtral).toBeGreaterThan(200_000);
    expect(llama).toBeLessThan(30_000);
    expect(jamba).toBeGreaterThan(50 * llama);
  });
});
