// Logits against transformers (float32, eager attention, no cache): test/fixtures/hf/*/reference.safetensors.
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { checkedLayout, compile, importCheckpoint } from "layerweave/compiler";
import { load, verify } from "layerweave/runtime";
import { backends } from "../support/backends.js";
import { inRepository, temporaryFolder } from "../support/folders.js";

const fixtures = inRepository("test", "fixtures", "hf");
const out = await temporaryFolder();

// Every fixture is held to this; none needs more.
const tolerance = 1e-5;

const names = ["jamba-block", "jamba-two-blocks", "jamba-dense", "mixtral", "llama", "mistral-swa", "mamba", "falcon-mamba"];

describe.each(names)("%s", async (name) => {
  const checkpoint = await importCheckpoint(join(fixtures, name));
  const folder = join(out, name);
  await compile(checkedLayout(checkpoint.spec), { out: folder, weights: { from: "checkpoint", checkpoint } });

  test.each(backends)("logits, greedy ids and splits agree with transformers on the %s backend", async (backend) => {
    await using model = await load(folder, { backend });
    const result = await verify(model, join(fixtures, name, "reference.safetensors"));
    expect(result.relativeError).toBeLessThanOrEqual(tolerance);
    expect(result.generatedIdsMatch).toBe(true);
    for (const error of Object.values(result.splits)) expect(error).toBeLessThanOrEqual(tolerance);
    expect(Object.keys(result.splits)).toEqual(["1", "5", "16"]);
  });
});
