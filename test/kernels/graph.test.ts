// Compiled models give the same logits and states with the registered kernels as with the function bodies they carry, over
// ragged prefill and decode, states updated in place: kernels/cpu-test/graph_probe.cc.
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { checkedLayout, compile, importCheckpoint } from "layerweave/compiler";
import { inRepository, temporaryFolder } from "../support/folders.js";

/** Where the kernels were built: elsewhere with sanitizers. */
const elsewhere = process.env["LAYERWEAVE_CPU_KERNELS"];
const built = elsewhere ?? inRepository("build", "cpu-kernels");
/** A build with sanitizers is optimised less and rounds in other places; it is run for what it does to memory. */
const tolerance = elsewhere === undefined ? 1e-5 : 1.5e-5;
const probe = join(built, "graph_probe");
const ops = join(built, "liblayerweave_ops.so");
const ort = join(dirname(createRequire(import.meta.url).resolve("onnxruntime-node/package.json")), "bin", "napi-v6", process.platform, process.arch, "libonnxruntime.so.1");

const out = await temporaryFolder();
const names = ["jamba-block", "jamba-two-blocks", "jamba-dense", "mixtral", "llama", "mistral-swa", "mamba", "falcon-mamba"];

describe.skipIf(!existsSync(probe))("kernels against function bodies (skipped where build/cpu-kernels is not built)", () => {
  test.each(names)("%s", async (name) => {
    const checkpoint = await importCheckpoint(inRepository("test", "fixtures", "hf", name));
    const folder = join(out, name);
    const layout = checkedLayout(checkpoint.spec);
    await compile(layout, { out: folder, weights: { from: "checkpoint", checkpoint } });
    for (const chunk of ["1", "37", "300"]) {
      const printed = execFileSync(probe, [ort, ops, join(folder, "model.onnx"), String(layout.vocabSize), "2", chunk], { encoding: "utf8" });
      const { logits, states } = JSON.parse(printed) as { logits: number; states: number };
      expect(logits, `logits after a first chunk of ${chunk}`).toBeLessThanOrEqual(tolerance);
      expect(states, `states after a first chunk of ${chunk}`).toBeLessThanOrEqual(tolerance);
    }
  });
});
