// The trained model writes what transformers writes with the same weights (test/fixtures/tiny-jamba/reference.json).
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { checkedLayout, compile, importCheckpoint } from "layerweave/compiler";
import { load, verify } from "layerweave/runtime";
import { backends } from "../support/backends.js";
import { inRepository, temporaryFolder } from "../support/folders.js";

const reference = JSON.parse(readFileSync(inRepository("test/fixtures/tiny-jamba/reference.json"), "utf8")) as {
  greedy: Record<string, { ids: number[]; text: string }>;
};
const folder = join(await temporaryFolder(), "tiny-jamba");
const checkpoint = await importCheckpoint(inRepository("examples/tiny-jamba"));
const { manifest } = await compile(checkedLayout(checkpoint.spec), { out: folder, weights: { from: "checkpoint", checkpoint } });

test("every weight lies in the checkpoint's own shards", () => {
  expect(new Set(manifest.weights.map((w) => w.file))).toEqual(new Set(["weights/model-00001-of-00002.safetensors", "weights/model-00002-of-00002.safetensors"]));
  expect(manifest.files.every((f) => f.from !== "written")).toBe(true);
});

describe.each(backends)("on the %s backend", async (backend) => {
  const model = await load(folder, { backend });
  afterAll(() => model.close());

  test.each(Object.entries(reference.greedy))("greedy text of %j", async (prompt, { ids, text }) => {
    const prompted = model.tokenizer?.encode(prompt) ?? [];
    expect(ids.slice(0, prompted.length)).toEqual(prompted);
    let written = prompt;
    for await (const piece of model.generate(prompt, { maxTokens: ids.length - prompted.length })) written += piece.text;
    expect(written).toBe(text);
  });

  test("logits of the first prompt", async () => {
    const result = await verify(model, inRepository("test/fixtures/tiny-jamba/reference.safetensors"));
    expect(result.relativeError).toBeLessThanOrEqual(1e-5);
    for (const error of Object.values(result.splits)) expect(error).toBeLessThanOrEqual(1e-5);
  });
});
