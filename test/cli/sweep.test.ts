// Sweeps over the knobs of a layout: every combination, the invalid ones named, as a table, CSV, JSON and a picture.
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { sweepPoints } from "#dist/cli/sweep-points.js";
import { codesOf, example, smallLayout, Workplace } from "./cli.js";

const place = await Workplace.create({
  "plain.ts": smallLayout,
  "knobs.ts": `import { attention, block, every, mamba, mlp, model, moe, ratio, rmsNorm } from "layerweave";

export default ({ period = 2, nExperts = 2, topK = 1 }: { period?: number; nExperts?: number; topK?: number }) => {
  if (period > 8) throw new RangeError("that is no period");
  return model({
    name: "knobs",
    vocabSize: 64,
    dModel: 32,
    norm: rmsNorm(),
    contextLength: 512,
    blocks: 2,
    block: block({
      layers: 4,
      mixer: ratio({ attention: 1, mamba: 3 }, { at: 1, attention: attention({ nHeads: 4 }), mamba: mamba({ dState: 4 }) }),
      channelMixer: every(period, moe({ nExperts, topK, dFf: 64 }), { otherwise: mlp({ dFf: 64 }) }),
    }),
  });
};
`,
});

interface SweepJson {
  readonly points: readonly { readonly knobs: Readonly<Record<string, number>>; readonly context: number; readonly batch: number; readonly parameters: { readonly total: number }; readonly bytes: { readonly total: number } }[];
  readonly invalid: readonly { readonly knobs: object; readonly diagnostics: readonly { readonly code: string }[] }[];
}

test("every combination is a layout of its own; invalid ones are named and end nothing", () => {
  const run = place.run(["sweep", "knobs.ts", "--knob", "nExperts=1,2,4", "--knob", "topK=1,2", "--context", "128,1K", "--batch", "1,3", "--svg", "picture.svg", "--json"]);
  expect(run.code).toBe(0);
  expect(run.stderr).toContain("One combination is no valid layout:\n  nExperts=1 topK=2: dsl/top-k-above-experts: topK 2 exceeds nExperts 1.\nWrote picture.svg.");
  const { points, invalid } = JSON.parse(run.stdout) as SweepJson;
  expect(points).toHaveLength(5 * 2 * 2);
  expect(invalid).toMatchObject([{ knobs: { nExperts: 1, topK: 2 }, diagnostics: [{ code: "dsl/top-k-above-experts" }] }]);
  const sizes = points.filter(({ knobs, context, batch }) => knobs["topK"] === 1 && context === 128 && batch === 1).map(({ parameters }) => parameters.total);
  // Four layers with experts, each of three matrices and a row of the router.
  expect(sizes[1]).toBe((sizes[0] ?? 0) + 4 * (3 * 32 * 64 + 32));
  expect(sizes[2]).toBe((sizes[1] ?? 0) + 2 * 4 * (3 * 32 * 64 + 32));

  const picture = readFileSync(place.path("picture.svg"), "utf8");
  expect(picture.match(/<circle class="point"/g)).toHaveLength(points.length);
  expect(picture).toContain("prefers-color-scheme:dark");
  expect(picture).not.toMatch(/NaN|undefined|Infinity/);
});

test("a point of a sweep is what plan says of it", () => {
  const [{ knobs, ...point } = { knobs: undefined }] = (JSON.parse(place.run(["sweep", "plain.ts", "--json"]).stdout) as SweepJson).points;
  const plan = JSON.parse(place.run(["plan", "plain.ts", "--json"]).stdout) as object;
  expect(knobs).toEqual({});
  expect(plan).toMatchObject(point);
});

test("a table and CSV have a line for each point", () => {
  const args = ["sweep", "knobs.ts", "--knob", "period=1,2,4"];
  const table = place.run(args).stdout.trimEnd().split("\n");
  expect(table).toHaveLength(2 + 3);
  expect(table[0]).toBe("h100-80gb, budget 80.0 GB (GB = 10⁹); decode and prefill at best");
  const csv = place.run([...args, "--csv"]).stdout.trimEnd().split("\n");
  expect(csv[0]).toMatch(/^period,context,batch,parameters,activeParameters,weightBytes,kvCacheBytes,stateBytes,activationBytes,totalBytes,fits,/);
  expect(csv.slice(1).map((line) => line.split(",").slice(0, 3))).toEqual(["1", "2", "4"].map((period) => [period, "512", "1"]));
});

test.each([
  ["a knob that the layout does not read", ["--knob", "experts=1,2"], "cli/unused-knob", 2, "does not read experts; its knobs are period, nExperts, topK"],
  ["a knob without values", ["--knob", "topK="], "cli/bad-knob", 2, "must be numbers"],
  ["a knob without a name", ["--knob", "4"], "cli/bad-knob", 2, "no name"],
  ["a value that is no number", ["--knob", "topK=1,two"], "cli/bad-knob", 2, "must be numbers"],
  ["a value twice", ["--knob", "topK=1,1"], "cli/bad-knob", 2, "occurs twice"],
  ["a knob twice", ["--knob", "topK=1", "--knob", "topK=2"], "cli/bad-knob", 2, "was given before"],
  ["too many points", ["--knob", `topK=${Array.from({ length: 201 }, (_, i) => i)}`, "--context", Array(100).fill("1K").join(",")], "cli/too-many-points", 2, "at most 20000"],
  ["a context that is none", ["--context", "8K,0"], "plan/bad-count", 2, "--context"],
  ["a batch that is none", ["--batch", "1,"], "plan/bad-count", 2, "--batch"],
  ["a picture of another kind", ["--svg", "knobs.ts"], "cli/wrong-extension", 2, "must end in .svg"],
  ["nothing but invalid layouts", ["--knob", "topK=3,4"], "dsl/top-k-above-experts", 3, "topK 3 exceeds nExperts 2"],
  ["a layout that throws", ["--knob", "period=9"], "layout/threw", 3, "that is no period"],
])("%s", (_, args, code, exitCode, message) => {
  const before = place.entries();
  const run = place.run(["sweep", "knobs.ts", ...args, "--json"]);
  expect(new Set(codesOf(run))).toEqual(new Set([code]));
  expect(run.code).toBe(exitCode);
  expect(run.stderr).toContain(message);
  expect(place.entries()).toEqual(before);
});

test("a plain model has no knobs", () => {
  expect(place.run(["sweep", "plain.ts", "--knob", "topK=1"]).stderr).toContain("it reads no knobs");
});

// Of one processor, so that a busy machine does not decide.
test("500 points take less than ten seconds", async () => {
  const knob = ["blockLayers=1,2,4,8,16", "moePeriod=1,2", "nExperts=4,8,12,16,32", "topK=1,2"];
  const before = process.cpuUsage();
  const { points, invalid } = await sweepPoints(example("jamba-knobs.ts"), { knob, context: "8K,32K,64K,128K,256K", batch: "1", quantize: "none", device: "h100-80gb" });
  const { user, system } = process.cpuUsage(before);
  expect([points.length, invalid.length]).toEqual([500, 0]);
  expect((user + system) / 1e6).toBeLessThan(10);
});
