// What compile leaves behind: a whole folder, or nothing.
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { attention, block, mlp, model, rmsNorm, rope } from "layerweave";
import { checkedLayout, compile, importCheckpoint, readCompiledLayout } from "layerweave/compiler";
import { inRepository, temporaryFolder } from "../support/folders.js";

const out = await temporaryFolder();
const layout = checkedLayout(
  model({
    name: "small",
    vocabSize: 11,
    dModel: 8,
    norm: rmsNorm({ eps: 1e-6 }),
    blocks: 1,
    block: block({ layers: 1, mixer: attention({ nHeads: 2, position: rope() }), channelMixer: mlp({ dFf: 12 }) }),
  }),
);
const random = { from: "random", seed: 7 } as const;
const contents = (folder: string) => Object.fromEntries((readdirSync(folder) as string[]).sort().map((file) => [file, readFileSync(join(folder, file), "base64")]));

test("equal input gives equal bytes, and a compiled folder is replaced as a whole", async () => {
  const [first, second] = [join(out, "first"), join(out, "second")];
  await compile(layout, { out: first, weights: random });
  await compile(layout, { out: second, weights: random });
  expect(contents(second)).toEqual(contents(first));
  writeFileSync(join(second, "stray"), "x");
  await compile(layout, { out: second, weights: { from: "random", seed: 8 } });
  expect(Object.keys(contents(second))).toEqual(Object.keys(contents(first)));
  expect(contents(second)["weights.safetensors"]).not.toBe(contents(first)["weights.safetensors"]);
});

test("a folder that holds something else is refused and untouched", async () => {
  const folder = join(out, "precious");
  mkdirSync(folder);
  writeFileSync(join(folder, "thesis.txt"), "…");
  await expect(compile(layout, { out: folder, weights: random })).rejects.toMatchObject({ diagnostics: [{ code: "compile/output-exists" }] });
  expect(readdirSync(folder)).toEqual(["thesis.txt"]);
});

test("a failure while writing leaves neither the folder nor a temporary one, nor its new parents", async () => {
  const before = readdirSync(out);
  const stop = new AbortController();
  const attempt = compile(layout, { out: join(out, "a", "b", "c"), weights: random, signal: stop.signal, onProgress: () => stop.abort(new Error("enough")) });
  await expect(attempt).rejects.toThrow("enough");
  expect(readdirSync(out)).toEqual(before);
});

test("a failure leaves the folder that was there before", async () => {
  const folder = join(out, "kept");
  await compile(layout, { out: folder, weights: random });
  const before = contents(folder);
  const stop = new AbortController();
  await expect(compile(layout, { out: folder, weights: { from: "random", seed: 9 }, signal: stop.signal, onProgress: () => stop.abort(new Error("enough")) })).rejects.toThrow("enough");
  expect(contents(folder)).toEqual(before);
});

test("the compiled folder keeps its layout", async () => {
  const folder = join(out, "layout");
  const { manifest } = await compile(layout, { out: folder, weights: { from: "none" } });
  expect(await readCompiledLayout(folder, manifest)).toEqual(layout);
  writeFileSync(join(folder, "layout.json"), "{}");
  await expect(readCompiledLayout(folder, manifest)).rejects.toMatchObject({ diagnostics: [{ code: "compile/not-compiled" }] });
});

test("--dtype converts matrices and leaves the rest; unchanged weights are linked", async () => {
  const checkpoint = await importCheckpoint(inRepository("test/fixtures/hf/jamba-block"));
  const imported = checkedLayout(checkpoint.spec);
  const asIs = await compile(imported, { out: join(out, "as-is"), weights: { from: "checkpoint", checkpoint } });
  expect(asIs.manifest.files).toEqual([expect.objectContaining({ file: "weights/model.safetensors" })]);
  expect(statSync(join(out, "as-is", "weights", "model.safetensors")).size).toBe(statSync(inRepository("test/fixtures/hf/jamba-block/model.safetensors")).size);

  const half = await compile(imported, { out: join(out, "half"), weights: { from: "checkpoint", checkpoint }, dtype: "bfloat16" });
  const dtypes = (part: string) => new Set(half.manifest.weights.filter((w) => w.name.includes(part)).map((w) => w.dtype));
  expect(dtypes("_proj.weight")).toEqual(new Set(["bfloat16"]));
  expect(dtypes("experts")).toEqual(new Set(["bfloat16"]));
  expect([...dtypes("norm"), ...dtypes("A_log"), ...dtypes("router"), ...dtypes("dt_proj.bias")]).toEqual(["float32", "float32", "float32", "float32"]);
  expect(existsSync(join(out, "half", "weights"))).toBe(false);
});

test("a checkpoint that does not fit the layout is refused with every difference, before anything is written", async () => {
  const checkpoint = await importCheckpoint(inRepository("test/fixtures/hf/llama"));
  const other = checkedLayout(
    model({ name: "other", vocabSize: 320, dModel: 64, norm: rmsNorm(), blocks: 2, block: block({ layers: 1, mixer: attention({ nHeads: 4, nKvHeads: 2, qkvBias: true }), channelMixer: mlp({ dFf: 96 }) }) }),
  );
  const attempt = compile(other, { out: join(out, "misfit"), weights: { from: "checkpoint", checkpoint } });
  const error = (await attempt.catch((e: unknown) => e)) as { diagnostics: { code: string }[] };
  expect(new Set(error.diagnostics.map((d) => d.code))).toEqual(new Set(["weights/tensor-missing", "weights/tensor-shape", "weights/tensor-unused"]));
  expect(error.diagnostics.length).toBeGreaterThan(6);
  expect(existsSync(join(out, "misfit"))).toBe(false);
});
