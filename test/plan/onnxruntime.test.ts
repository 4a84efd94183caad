import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { importCheckpoint } from "../../compiler/importers/index.js";
import { inRepository } from "../support/folders.js";
import { compile, type Compiled } from "../../compiler/compile.js";
import { checkedLayout } from "../../compiler/lower.js";
import { planModelOf } from "../../core/plan/model.js";
import { peakFinder, type Peak, type Sizes } from "../../core/plan/peak.js";
import { cpuWeightMemory } from "../../core/plan/weights.js";
import { small } from "./layouts.js";
import { account } from "./ort-accounting.js";

const granularity = 256;

function peak({ manifest }: Compiled, sizes: Sizes): Peak {
  const { prefill, decode } = manifest.profile.bodies!;
  return peakFinder(sizes.T === 1 ? decode : prefill, "bodies")(sizes, 4, granularity);
}

const runs: readonly [string, Sizes, number][] = [
  ["prefill of 100 tokens", { B: 1, T: 100, S: 200, L: 1 }, 0],
  ["a chunk behind 50 tokens, three rows, logits of five", { B: 3, T: 33, S: 90, L: 5 }, 50],
  ["prefill without logits", { B: 2, T: 40, S: 40, L: 0 }, 0],
  ["decode", { B: 1, T: 1, S: 300, L: 1 }, 150],
  ["decode of five rows", { B: 5, T: 1, S: 64, L: 1 }, 20],
];

describe("activations against ONNX Runtime's arena", () => {
  let out: string;
  const compiled = new Map<string, Compiled>();
  beforeAll(async () => {
    out = await mkdtemp(join(tmpdir(), "layerweave-plan-"));
    for (const [name, spec] of Object.entries(small)) compiled.set(name, await compile(checkedLayout(spec), { out: join(out, name), weights: { from: "random", seed: 3 } }));
  });
  afterAll(() => rm(out, { recursive: true, force: true }));

  // In `mixture` the peak depends on routing; in all others the layout decides it, and the plan is exact to the byte.
  const decided = Object.keys(small).filter((name) => name !== "mixture");
  for (const name of decided)
    test.each(runs)(`${name}: %s`, (_, sizes, past) => {
      const model = compiled.get(name) as Compiled;
      const { activationPeak } = account(model.folder, model.manifest, sizes, past);
      const planned = peak(model, sizes);
      expect(planned.spread).toBe(planned.total);
      expect(activationPeak).toBe(planned.total);
    });

  test.each(runs)("mixture: %s lies between an even and the worst routing", (_, sizes, past) => {
    const model = compiled.get("mixture") as Compiled;
    const { activationPeak } = account(model.folder, model.manifest, sizes, past);
    const planned = peak(model, sizes);
    expect(activationPeak).toBeGreaterThanOrEqual(planned.spread * 0.98);
    expect(activationPeak).toBeLessThanOrEqual(planned.total);
  });

  test("what loading keeps beside the files", () => {
    for (const name of ["dense", "mamba-wide", "all-experts"]) {
      const model = compiled.get(name) as Compiled;
      const { loaded } = account(model.folder, model.manifest, { B: 1, T: 1, S: 1, L: 1 }, 0);
      const planned = cpuWeightMemory(planModelOf(model.manifest), "none", "bodies");
      expect(Math.abs(loaded / planned.packed - 1)).toBeLessThan(0.05);
    }
  });
});

describe("activations of real checkpoints against ONNX Runtime's arena", () => {
  // Where tokens are routed, the measured peak must lie between the planned even spread and the planned worst case.
  const routed = new Set(["jamba-block", "jamba-two-blocks", "mixtral"]);
  const two: readonly [string, Sizes, number][] = [
    ["prefill", { B: 2, T: 37, S: 64, L: 1 }, 0],
    ["decode", { B: 2, T: 1, S: 64, L: 1 }, 37],
  ];
  let out: string;
  beforeAll(async () => {
    out = await mkdtemp(join(tmpdir(), "layerweave-plan-"));
  });
  afterAll(() => rm(out, { recursive: true, force: true }));

  test.each(["llama", "mistral-swa", "mamba", "falcon-mamba", "jamba-dense", "jamba-block", "jamba-two-blocks", "mixtral"])("%s, within 2 %", async (name) => {
    const checkpoint = await importCheckpoint(inRepository("test/fixtures/hf", name));
    const model = await compile(checkedLayout(checkpoint.spec), { out: join(out, name), weights: { from: "checkpoint", checkpoint } });
    for (const [, sizes, past] of two) {
      const { activationPeak } = account(model.folder, model.manifest, sizes, past);
      const planned = peak(model, sizes);
      const least = routed.has(name) ? planned.spread : planned.total;
      expect(activationPeak).toBeGreaterThanOrEqual(least * 0.98);
      expect(activationPeak).toBeLessThanOrEqual(planned.total * 1.02);
    }
  });
});
