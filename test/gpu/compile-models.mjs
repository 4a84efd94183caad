// Compiles the models that the tests on a card run, for CUDA: fixtures in both element types, and larger ones of random weights
// (5.5 GB) whose memory is measured.
//   node test/gpu/compile-models.mjs [folder]      default: build/gpu-models
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { checkedLayout, compile, importCheckpoint, targetNamed } from "layerweave/compiler";
import { memoryLayouts } from "./memory-layouts.mjs";

const root = join(import.meta.dirname, "..", "..");
const into = process.argv[2] ?? join(root, "build", "gpu-models");
const fixtures = ["jamba-block", "jamba-two-blocks", "jamba-dense", "mixtral", "llama", "mistral-swa", "mamba", "falcon-mamba"].map((name) => [name, join(root, "test", "fixtures", "hf", name)]);

await rm(into, { recursive: true, force: true });
for (const [name, source] of [...fixtures, ["tiny-jamba", join(root, "examples", "tiny-jamba")]]) {
  const checkpoint = await importCheckpoint(source);
  for (const dtype of ["bfloat16", "float16"])
    await compile(checkedLayout(checkpoint.spec), { out: join(into, `${name}-${dtype}`), weights: { from: "checkpoint", checkpoint }, target: targetNamed("cuda", dtype), dtype });
}
for (const [name, { layout, quantize }] of Object.entries(memoryLayouts))
  await compile(checkedLayout(layout), { out: join(into, `${name}-bfloat16`), weights: { from: "random", seed: 1 }, target: targetNamed("cuda", "bfloat16"), dtype: "bfloat16", quantize });
