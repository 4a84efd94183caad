import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { checkedLayout } from "../../compiler/lower.js";
import { planModel } from "../../compiler/passes/profile-model.js";
import { portable } from "../../compiler/targets/portable.js";
import { deviceNamed } from "../../core/plan/devices.js";
import type { PlanOptions } from "../../core/plan/plan.js";
import { exampleModel, examples, planned, small } from "./layouts.js";

const quantizations = ["none", "experts-int8", "int8"] as const;
const point = fc.record({
  name: fc.constantFrom(...examples),
  device: fc.constantFrom("h100-80gb", "cpu"),
  context: fc.integer({ min: 1, max: 2 ** 20 }),
  batch: fc.integer({ min: 1, max: 64 }),
  chunk: fc.integer({ min: 1, max: 2 ** 15 }),
  quantize: fc.constantFrom(...quantizations),
});
type Point = typeof point extends fc.Arbitrary<infer T> ? T : never;

const planOf = async ({ name, device, ...options }: Point, over: Partial<PlanOptions> = {}) => planned(await exampleModel(name), { ...options, device: deviceNamed(device), budget: 80e9, ...over });

describe("any plan", () => {
  test("its items add up, and the verdict is the sum against the budget", () =>
    fc.assert(
      fc.asyncProperty(point, async (p) => {
        const { bytes, budget, prefill, decode } = await planOf(p);
        const { total, ...items } = bytes;
        expect(Object.values(items).every((n) => Number.isFinite(n) && n >= 0)).toBe(true);
        expect(Object.values(items).reduce((a, b) => a + b, 0)).toBe(total);
        expect(budget.fits).toBe(total <= budget.bytes);
        expect(prefill.spread).toBeLessThanOrEqual(prefill.total);
        expect(bytes.activations + bytes.workspace + bytes.logits).toBeLessThanOrEqual(Math.max(prefill.total, decode.total));
      }),
      { numRuns: 40 },
    ));

  test("more context, more rows, longer chunks and wider weights never need less", () =>
    fc.assert(
      fc.asyncProperty(point, fc.nat({ max: 5000 }), async (p, more) => {
        const { bytes } = await planOf(p);
        for (const larger of [{ context: p.context + more }, { batch: p.batch + more }, { chunk: p.chunk + more }]) expect((await planOf({ ...p, ...larger })).bytes.total).toBeGreaterThanOrEqual(bytes.total);
        const [none, experts, all] = await Promise.all(quantizations.map(async (quantize) => (await planOf({ ...p, quantize })).bytes.weights));
        expect(none).toBeGreaterThanOrEqual(experts as number);
        expect(experts).toBeGreaterThanOrEqual(all as number);
      }),
      { numRuns: 30 },
    ));

  test("the largest context and batch fit, and one more does not", () =>
    fc.assert(
      fc.asyncProperty(point, fc.integer({ min: 1, max: 200 }), async (p, gigabytes) => {
        const budget = gigabytes * 1e9;
        const { budget: found } = await planOf(p, { budget });
        const fits = async (over: Partial<PlanOptions>) => (await planOf(p, { ...over, budget })).budget.fits;
        if (found.maxContext > 0) expect(await fits({ context: found.maxContext })).toBe(true);
        if (found.maxContext < 2 ** 31 - 1) expect(await fits({ context: found.maxContext + 1 })).toBe(false);
        if (found.maxBatch > 0) expect(await fits({ batch: found.maxBatch })).toBe(true);
        if (found.maxBatch < 2 ** 31 - 1) expect(await fits({ batch: found.maxBatch + 1 })).toBe(false);
      }),
      { numRuns: 25 },
    ));

  test("rooflines are positive, and memory that is read is memory that is held", () =>
    fc.assert(
      fc.asyncProperty(point, async (p) => {
        const { roofline, bytes } = await planOf(p);
        expect(roofline.decodeTokensPerSecond).toBeGreaterThan(0);
        expect(roofline.prefillSeconds).toBeGreaterThan(0);
        expect(roofline.decode.bytes.kvCache).toBeLessThanOrEqual(bytes.kvCache * (1 + 1 / p.context) + 1);
        expect(roofline.decode.bytes.weights).toBeLessThanOrEqual(bytes.weights * (1 + p.batch / 32_000) + 1);
      }),
      { numRuns: 40 },
    ));
});

describe("equal layers", () => {
  // Norm epsilons make layers different to the planner and change nothing else, so each is then lowered by itself.
  test.each(Object.keys(small))("%s: counting them is as good as lowering each", (name) => {
    const layout = checkedLayout(small[name] as (typeof small)[string]);
    const apart = { ...layout, layers: layout.layers.map((layer, i) => ({ ...layer, norm: { ...layer.norm, eps: 1e-6 * (i + 1) } })) };
    const [together, each] = [planModel(layout, portable, "float32"), planModel(apart, portable, "float32")];
    expect(together.profile.operations).toEqual(each.profile.operations);
    for (const device of ["cpu", "h100-80gb"])
      for (const [context, chunk, batch] of [
        [100, 100, 1],
        [300, 20, 3],
        [50, 1, 2],
      ] as const) {
        const options = { device: deviceNamed(device), budget: 1e9, context, chunk, batch };
        expect(planned(together, options).bytes).toEqual(planned(each, options).bytes);
      }
  });
});

describe("time", () => {
  test("a plan takes under 50 ms, and one of a new layout under half a second", async () => {
    const jamba = await exampleModel("jamba-v0.1");
    planned(jamba);
    const plans = fastest(5, () => planned(jamba, { quantize: "experts-int8" }));
    expect(plans).toBeLessThan(50);
  });

  test("500 points take under 10 s", async () => {
    const models = await Promise.all(examples.map((name) => exampleModel(name)));
    const started = process.cpuUsage();
    for (let i = 0; i < 500; i++) planned(models[i % models.length] as (typeof models)[number], { context: 1024 * (i + 1), batch: 1 + (i % 7) });
    const { user, system } = process.cpuUsage(started);
    expect((user + system) / 1e6).toBeLessThan(10);
  });
});

/** Processor milliseconds of the fastest of several runs. */
function fastest(times: number, run: () => void): number {
  return Math.min(
    ...Array.from({ length: times }, () => {
      const started = process.cpuUsage();
      run();
      const { user, system } = process.cpuUsage(started);
      return (user + system) / 1000;
    }),
  );
}
