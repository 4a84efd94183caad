import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import * as dsl from "../../dsl/index.js";
import { checkedLayout, compile } from "../../compiler/index.js";
import { convertedParts } from "../../compiler/weights/convert.js";
import { PartMakers, workersFor } from "../../compiler/weights/part-makers.js";
import type { Part, Piece } from "../../compiler/weights/pieces.js";
import { quantizedParts } from "../../compiler/weights/quantize.js";
import { writeSafetensors } from "../../compiler/weights/write.js";
import { runScript } from "../native/scripts.js";
import { bytesOfTensor, diagnosticsOf, emptyFolder } from "./folder.js";
import { openSafetensors } from "../../compiler/weights/safetensors.js";

const shared = (bytes: number) => new Uint8Array(new SharedArrayBuffer(bytes));
const rows = { name: "w", shape: [500, 3001], initializer: { kind: "uniform", std: 0.02 } } as const;

test("one worker and three make the bytes and the scales that are made without any", async () => {
  const path = join(await emptyFolder(), "stored");
  const bits = Uint16Array.from({ length: 500 * 3001 }, (_, i) => (i * 40503) & 0xbbff);
  await writeFile(path, bits);
  const sources = [
    { from: "initializer", tensor: rows, seed: 5 },
    { from: "file", path, offset: 0, dtype: "bfloat16" },
  ] as const;
  const made = async (workers: number) => {
    await using makers = new PartMakers(workers);
    const results: { bytes: Uint8Array; scales: Float32Array }[] = [];
    for (const source of sources)
      for (const to of ["int8", "float32"] as const) {
        const scales = new Float32Array(500);
        const file = join(await emptyFolder(), "w.safetensors");
        const size = { int8: 1, float32: 4 }[to];
        const data = () => (to === "int8" ? quantizedParts(source, "w", rows.shape, scales) : convertedParts(source, 500 * 3001, to));
        await writeSafetensors(file, [{ name: "w", dtype: to, shape: rows.shape, bytes: 500 * 3001 * size, data }], makers);
        results.push({ bytes: await bytesOfTensor(await openSafetensors(file), "w"), scales });
      }
    return results;
  };
  const expected = await made(0);
  expect(expected[0]?.scales.every((scale) => scale > 0)).toBe(true);
  for (const workers of [1, 3])
    (await made(workers)).forEach(({ bytes, scales }, i) => {
      expect(Buffer.compare(bytes, expected[i]?.bytes as Uint8Array), `${workers} workers, ${i}`).toBe(0);
      expect(scales).toEqual(expected[i]?.scales);
    });
});

test.each([0, 2])("%i workers: what a transform refuses is the diagnostic it refuses it with, and the next part is made", async (workers) => {
  await using makers = new PartMakers(workers);
  const path = join(await emptyFolder(), "stored");
  await writeFile(path, Float32Array.of(1, 2, Number.NaN, 4));
  const scales = new Float32Array(2);
  const parts = (file: string) => [...quantizedParts({ from: "file", path: file, offset: 0, dtype: "float32" }, "w", [2, 2], scales)];
  const make = async (part: Part | undefined) => makers.make(part as Part, shared(4));
  expect(await diagnosticsOf(make(parts(path)[0]))).toMatchObject([{ code: "weights/not-finite", values: { weight: "w", row: 1 } }]);
  expect(await diagnosticsOf(make(parts(`${path}-missing`)[0]))).toMatchObject([{ code: "weights/not-found" }]);
  await writeFile(path, Float32Array.of(1, 2, 3, 4));
  expect([...new Int8Array((await make(parts(path)[0])).buffer)]).toEqual([64, 127, 95, 127]);
  expect(scales).toEqual(Float32Array.of(2 / 127, 4 / 127));
});

test.each([0, 2])("%i workers: any other error comes through as it is", async (workers) => {
  await using makers = new PartMakers(workers);
  const piece = { inputs: [], bytes: 4, transform: "unknown", parameters: {} } as unknown as Piece;
  await expect(makers.make({ piece }, shared(4))).rejects.toThrow(TypeError);
});

test("a worker that ends fails its parts, and those that are asked for later", async () => {
  const makers = new PartMakers(1);
  const [part] = convertedParts({ from: "initializer", tensor: rows, seed: 1 }, 1 << 20, "float32");
  const under = [makers.make(part as Part, shared(4 << 20)), makers.make(part as Part, shared(4 << 20))];
  const failed = Promise.all(under.map((making) => expect(making).rejects.toThrow("internal error: a worker that makes weights exited with code")));
  await makers[Symbol.asyncDispose]();
  await failed;
  await expect(makers.make(part as Part, shared(4 << 20))).rejects.toThrow("exited with code");
});

test("few elements are worth no worker, many no more than there are processors", () => {
  expect(workersFor(0)).toBe(0);
  expect(workersFor(50e6)).toBe(0);
  expect(workersFor(1e12)).toBeLessThanOrEqual(16);
});

const layout = checkedLayout(
  dsl.model({
    name: "wide",
    vocabSize: 64,
    dModel: 512,
    norm: dsl.rmsNorm({ eps: 1e-6 }),
    blocks: 2,
    block: dsl.block({ layers: 1, mixer: dsl.mamba(), channelMixer: dsl.mlp({ dFf: 3000 }) }),
  }),
);
const random = { from: "random", seed: 3 } as const;

test("a folder is compiled to the same bytes with workers and without", async () => {
  const out = await emptyFolder();
  const folders = [join(out, "none"), join(out, "three")] as const;
  await compile(layout, { out: folders[0], weights: random, quantize: "experts-int8", dtype: "bfloat16", workers: 0 });
  await compile(layout, { out: folders[1], weights: random, quantize: "experts-int8", dtype: "bfloat16", workers: 3 });
  const files = await readdir(folders[0]);
  expect(files).toContain("scales.safetensors");
  for (const file of files) expect(Buffer.compare(await readFile(join(folders[1], file)), await readFile(join(folders[0], file))), file).toBe(0);
});

test("compiling that is aborted under way leaves nothing, and no worker that would keep the process", async () => {
  const out = await emptyFolder();
  const aborted = await runScript(`
    const { checkedLayout, compile } = await import("layerweave/compiler");
    const stop = new AbortController();
    const onProgress = ({ written, total }) => {
      if (written > 0.3 * total) stop.abort(new Error("enough at " + (written < 0.9 * total)));
    };
    const options = { out: ${JSON.stringify(join(out, "deep", "folder"))}, weights: { from: "random", seed: 3 }, quantize: "int8", workers: 2, onProgress, signal: stop.signal };
    await compile(${JSON.stringify(layout)}, options).catch(({ message }) => console.log(message));
  `);
  expect(aborted).toEqual({ status: 0, signal: null, stdout: "enough at true\n", stderr: "" });
  expect(await readdir(out)).toEqual([]);
});
