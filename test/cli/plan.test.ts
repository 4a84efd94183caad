// What `layerweave plan` says: verdicts, JSON, several models side by side, and every mistake it can be given.
import { expect, test } from "vitest";
import { codesOf, example, type Finished, fixture, smallLayout, Workplace } from "./cli.js";

interface PlanJson {
  readonly schemaVersion: number;
  readonly model: string;
  readonly context: number;
  readonly chunk: number;
  readonly parameters: { readonly total: number; readonly active: number };
  readonly bytes: Readonly<Record<string, number>>;
  readonly weights: readonly { readonly kind: string; readonly dtype: string }[];
  readonly budget: { readonly bytes: number; readonly fits: boolean; readonly maxContext: number; readonly maxBatch: number };
  readonly roofline: { readonly decodeTokensPerSecond: number; readonly prefillSeconds: number };
  readonly unchunkedPrefill: { readonly total: number; readonly fits: boolean } | null;
  readonly diagnostics: readonly { readonly code: string }[];
}

const device = {
  name: "desk",
  execution: "kernels",
  computeDtype: "float16",
  memory: { value: 24e9, source: "its box" },
  bandwidth: { value: 1e12, source: "its box" },
  matrixRates: { float16: { value: 1e14, source: "its box" } },
  vectorRate: { value: 4e13, source: "its box" },
  runtime: { value: 5e8, source: "a guess" },
  allocator: { granularity: { value: 256, source: "a guess" }, growth: "exact" },
};
const place = await Workplace.create({
  "small.ts": smallLayout,
  "endless.ts": smallLayout.replace("  contextLength: 128,\n", ""),
  "invalid.ts": smallLayout.replace("nHeads: 4", "nHeads: 5"),
  "desk.json": JSON.stringify(device),
  "bare.json": JSON.stringify({ ...device, bandwidth: undefined, memory: { value: 24e9 } }),
  "broken.json": "{",
});
const json = (run: Finished): PlanJson => JSON.parse(run.stdout) as PlanJson;

test("Jamba-v0.1 on one 80 GB card: too large in bf16, fits with int8 experts and MLPs", () => {
  const bf16 = place.run(["plan", example("jamba-v0.1.ts"), "--json"]);
  expect(bf16.code).toBe(4);
  expect(json(bf16)).toMatchObject({
    schemaVersion: 1,
    model: "jamba-v0.1",
    context: 262_144,
    chunk: 8192,
    parameters: { total: 51_570_323_328, active: 12_110_311_296 },
    bytes: { kvCache: 4 * 2 ** 30, ssmState: 14 * 2 ** 20, convState: 28 * 8192 * 3 * 2 },
    budget: { bytes: 80e9, fits: false, maxContext: 0, maxBatch: 0 },
    diagnostics: [{ code: "plan/over-budget" }],
  });
  expect(bf16.stderr).toContain("help: It fits with int8 experts and MLPs");

  const int8 = place.run(["plan", example("jamba-v0.1.ts"), "--quantize", "experts-int8", "--json"]);
  expect(int8.code).toBe(0);
  const plan = json(int8);
  const { total, ...items } = plan.bytes;
  expect(Object.values(items).reduce((a, b) => a + b, 0)).toBe(total);
  expect(plan.budget.fits).toBe(true);
  expect(plan.budget.maxContext).toBeGreaterThan(262_144);
  expect(plan.unchunkedPrefill).toMatchObject({ fits: false });
  expect(plan.roofline.decodeTokensPerSecond).toBeGreaterThan(0);
  expect(plan.roofline.prefillSeconds).toBeGreaterThan(0);
  for (const field of ["weights", "kvCache", "convState", "ssmState", "activations", "workspace", "runtime", "total"]) expect(plan.bytes).toHaveProperty(field, expect.any(Number));
});

test("several models side by side, in one unit that is named", () => {
  const run = place.run(["plan", example("mistral-7b.ts"), example("llama-2-7b.ts"), "--context", "256K"]);
  expect(run.code).toBe(4);
  expect(run.stdout).toMatch(/^on h100-80gb, GB = 10⁹ +mistral-7b +llama-2-7b$/m);
  expect(run.stdout).toMatch(/^KV cache +34\.4 GB +137\.4 GB$/m);
  expect(run.stdout).toContain("mistral-7b: 256K (as asked, beyond the 32K tokens that the model was made for)");
  expect(run.stdout).toContain("what would have to give in llama-2-7b");
  const both = JSON.parse(place.run(["plan", "small.ts", "endless.ts", "--json"]).stdout) as { model?: string; plans: PlanJson[] };
  expect(both.model).toBeUndefined();
  expect(both.plans.map(({ context }) => context)).toEqual([128, 8192]);
});

test("one model in both units, with what was assumed", () => {
  const { stdout, code } = place.run(["plan", "small.ts"]);
  expect(code).toBe(0);
  expect(stdout).toMatch(/^small on h100-80gb +GB = 10⁹ +GiB = 2³⁰$/m);
  expect(stdout).toMatch(/^budget +80\.0 GB +74\.5 GiB$/m);
  expect(stdout).toMatch(/^verdict +fits, /m);
  expect(stdout).toMatch(/^ {2}context +128 \(the model's context length\)$/m);
  expect(stdout).toMatch(/^ {2}weights +bfloat16, which h100-80gb computes in$/m);
  expect(place.run(["plan", "endless.ts"]).stdout).toContain("8K (assumed; the model states no context length)");
});

test("weights count as they are stored", () => {
  expect(place.run(["compile", "small.ts", "-o", "compiled", "--random", "1", "--dtype", "float16"]).code).toBe(0);
  const files = (folder: string) => JSON.parse(place.run(["inspect", folder, "--json"]).stdout) as { parameters: { total: number } };
  const compiled = json(place.run(["plan", "compiled", "--json"]));
  expect(new Set(compiled.weights.map(({ dtype }) => dtype))).toEqual(new Set(["float16", "float32"]));
  expect(compiled.parameters.total).toBe(files("compiled").parameters.total);
  expect(json(place.run(["plan", "small.ts", "--dtype", "float16", "--json"])).bytes["weights"]).toBe(compiled.bytes["weights"]);
  expect(json(place.run(["plan", "compiled", "--dtype", "float32", "--json"])).bytes["weights"]).toBe(4 * compiled.parameters.total);
  const checkpoint = json(place.run(["plan", fixture("jamba-block"), "--json"]));
  expect(checkpoint.bytes["weights"]).toBe(4 * checkpoint.parameters.total);
});

test("a device of one's own, a budget, types of state", () => {
  const desk = json(place.run(["plan", "small.ts", "--device", "desk.json", "--json"]));
  expect(desk).toMatchObject({ device: "desk", budget: { bytes: 24e9 }, bytes: { runtime: 5e8, kvCache: 2 * 128 * 32 * 2 } });
  const options = ["--budget", "16GiB", "--kv-dtype", "float32", "--state-dtype", "bfloat16", "--batch", "2", "--json"];
  expect(json(place.run(["plan", "small.ts", "--device", "desk.json", ...options]))).toMatchObject({ budget: { bytes: 16 * 2 ** 30 }, bytes: { kvCache: 2 * 2 * 128 * 32 * 4, ssmState: 2 * 64 * 4 * 2 } });
});

test.each([
  ["a context of 0", ["--context", "0"], "plan/bad-count", 2],
  ["a context of 2³¹", ["--context", "2147483648"], "plan/bad-count", 2],
  ["a context in words", ["--context", "long"], "plan/bad-count", 2],
  ["half a batch", ["--batch", "1.5"], "plan/bad-count", 2],
  ["an empty chunk", ["--chunk", ""], "plan/bad-count", 2],
  ["a budget in gigs", ["--budget", "80 gigs"], "plan/bad-bytes", 2],
  ["a budget without a unit", ["--budget", "80"], "plan/bad-bytes", 2],
  ["an unknown device", ["--device", "abacus"], "plan/unknown-device", 2],
  ["a device without memory", ["--device", "cpu"], "plan/no-budget", 2],
  ["the other one", ["--device", "cpu-native"], "plan/no-budget", 2],
  ["a profile with missing fields", ["--device", "bare.json"], "plan/bad-device-profile", 2],
  ["a profile that is no JSON", ["--device", "broken.json"], "plan/bad-device-profile", 2],
  ["a profile that is not there", ["--device", "absent.json"], "cli/source-unreadable", 1],
  ["a quantisation that is none", ["--quantize", "int1"], "cli/usage", 2],
  ["a source that is not there", ["absent.ts"], "cli/source-not-found", 2],
  ["an invalid layout beside a valid one", ["invalid.ts"], "dsl/heads-do-not-divide", 3],
])("%s", (_, args, code, exitCode) => {
  const run = place.run(["plan", "small.ts", ...args, "--json"]);
  expect(codesOf(run)).toEqual([code]);
  expect(run.code).toBe(exitCode);
});

test("run refuses what does not fit with the same account, and goes on by force", () => {
  const run = (...args: string[]) => place.run(["run", "compiled", "--token-ids", "1,2", "-n", "2", ...args]);
  const refused = run("--budget", "1KB");
  expect(refused).toMatchObject({ code: 4, stdout: "" });
  expect(refused.stderr).toMatch(/^error plan\/over-budget: small needs .* than the budget of 1\.00 KB: .*weights/);
  const forced = run("--budget", "1KB", "--force");
  expect(forced.code).toBe(0);
  expect(forced.stdout).toMatch(/^\d+ \d+\n$/);
  expect(forced.stderr).toMatch(/^warning plan\/over-budget: [^]*\nRunning it all the same \(--force\)\.\n/);
  expect(codesOf(run("--context", "129", "--json"))).toEqual(["runtime/bad-option"]);
});
