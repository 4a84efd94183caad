// The coarse ops of the CUDA target, in float32 and without packing, by their function bodies on stock ONNX Runtime.
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { checkedLayout, compile, importCheckpoint, portable, type Target } from "layerweave/compiler";
import { load, verify } from "layerweave/runtime";
import { inRepository, temporaryFolder } from "../support/folders.js";

const fused: Target = { ...portable, name: "fused", fusedMixers: true, fusedNorms: true };
const coarse = ["AttentionInner", "GatedMlp", "MambaInner", "MoE", "ResidualNorm", "SelectTokens"].map((op) => `ai.layerweave::${op}`);
const tolerance = 1e-5;
const out = await temporaryFolder();

const names = ["jamba-block", "mamba", "falcon-mamba", "mistral-swa", "llama", "mixtral"];

async function compiled(name: string, quantize: "none" | "int8", target: Target): Promise<string> {
  const checkpoint = await importCheckpoint(inRepository("test", "fixtures", "hf", name));
  const folder = join(out, `${name}-${target.name}-${quantize}`);
  const { manifest } = await compile(checkedLayout(checkpoint.spec), { out: folder, weights: { from: "checkpoint", checkpoint }, target, quantize });
  if (target === fused) expect(coarse).toEqual(expect.arrayContaining(manifest.graph.functions.filter((op) => op !== "ai.layerweave::QuantizedLinear")));
  return folder;
}

describe.each(names)("%s", (name) => {
  const reference = inRepository("test", "fixtures", "hf", name, "reference.safetensors");

  test("logits, greedy ids and splits agree with transformers", async () => {
    await using model = await load(await compiled(name, "none", fused), { backend: "portable" });
    const result = await verify(model, reference);
    expect(result.relativeError).toBeLessThanOrEqual(tolerance);
    expect(result.generatedIdsMatch).toBe(true);
    expect(Object.keys(result.splits)).toEqual(["1", "5", "16"]);
    for (const error of Object.values(result.splits)) expect(error).toBeLessThanOrEqual(tolerance);
  });
});

// Whoever reads the scales of a merged weight in another order sees other numbers than the plain lowering.
test.each(["jamba-block", "llama"])("%s in int8 is the plain lowering in int8", async (name) => {
  const reference = inRepository("test", "fixtures", "hf", name, "reference.safetensors");
  const errors = [];
  for (const target of [portable, fused]) {
    await using model = await load(await compiled(name, "int8", target), { backend: "portable" });
    errors.push((await verify(model, reference)).relativeError);
  }
  expect(errors[0]).toBeGreaterThan(1e-4);
  expect(Math.abs((errors[1] as number) - (errors[0] as number))).toBeLessThanOrEqual(tolerance);
});
