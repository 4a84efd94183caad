import { truncate, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { type ElementRange, rangeBytes, readElements } from "../../compiler/weights/elements.js";
import { codesOf, diagnosticsOf, emptyFolder } from "./folder.js";

const read = (range: ElementRange) => readElements(range, new Uint8Array(rangeBytes(range)));

/** A file whose bytes are counted from 0. */
async function counted(length: number): Promise<string> {
  const path = join(await emptyFolder(), "weights");
  await writeFile(path, Uint8Array.from({ length }, (_, i) => i));
  return path;
}

test("a range of a file, in elements from where its tensor starts", async () => {
  const path = await counted(40);
  for (const [dtype, size] of [["float32", 4], ["bfloat16", 2], ["float16", 2]] as const) {
    const { dtype: found, bytes } = read({ source: { from: "file", path, offset: 6, dtype }, first: 3, count: 2 });
    expect(found).toBe(dtype);
    expect([...bytes]).toEqual(Array.from({ length: 2 * size }, (_, i) => 6 + 3 * size + i));
  }
});

test("a range of a tensor that is made up, in float32", () => {
  const source = { from: "initializer", seed: 1, tensor: { name: "a", shape: [4, 3], initializer: { kind: "s4d" } } } as const;
  const { dtype, bytes } = read({ source, first: 2, count: 3 });
  expect(dtype).toBe("float32");
  expect(bytes).toEqual(new Uint8Array(Float32Array.of(Math.log(3), 0, Math.log(2)).buffer));
});

test("a file that shrinks after it was opened, and one that is gone", async () => {
  const path = await counted(40);
  const range = { source: { from: "file", path, offset: 8, dtype: "float32" }, first: 2, count: 4 } as const;
  const attempt = async () => read(range);
  await truncate(path, 24);
  expect(await diagnosticsOf(attempt())).toMatchObject([{ code: "weights/truncated", values: { file: path, expectedBytes: 32, foundBytes: 24 } }]);
  await truncate(path, 4);
  expect(await diagnosticsOf(attempt())).toMatchObject([{ code: "weights/truncated", values: { expectedBytes: 32, foundBytes: 4 } }]);
  await unlink(path);
  expect(await codesOf(attempt())).toEqual(["weights/not-found"]);
});

test("a folder in place of the file", async () => {
  const path = await emptyFolder();
  expect(await codesOf((async () => read({ source: { from: "file", path, offset: 0, dtype: "float32" }, first: 0, count: 1 }))())).toEqual(["weights/unreadable"]);
});
