import { createHash } from "node:crypto";
import { mkdir, open, symlink, truncate, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { openSafetensors } from "../../compiler/weights/safetensors.js";
import { bytesOfTensor, codesOf, diagnosticsOf, emptyFolder, type HeaderEntry, safetensorsBytes } from "./folder.js";

const bytes = (length: number, from = 0): Uint8Array => Uint8Array.from({ length }, (_, i) => (from + i) & 0xff);
const f32 = (begin: number, ...shape: number[]): HeaderEntry => ({ dtype: "F32", shape, data_offsets: [begin, begin + 4 * shape.reduce((a, b) => a * b, 1)] });

async function single(header: Readonly<Record<string, unknown>> | string, data: Uint8Array): Promise<string> {
  const folder = await emptyFolder();
  await writeFile(join(folder, "model.safetensors"), safetensorsBytes(header, data));
  return folder;
}

async function sharded(weightMap: Readonly<Record<string, string>>, shards: Readonly<Record<string, Readonly<Record<string, HeaderEntry>>>>): Promise<string> {
  const folder = await emptyFolder();
  await writeFile(join(folder, "model.safetensors.index.json"), JSON.stringify({ metadata: { total_size: 0 }, weight_map: weightMap }));
  for (const [name, header] of Object.entries(shards)) {
    const size = Math.max(0, ...Object.values(header).map((entry) => entry.data_offsets[1]));
    await writeFile(join(folder, name), safetensorsBytes(header, bytes(size, name.length)));
  }
  return folder;
}

describe("a sound checkpoint", () => {
  test("single file, given as folder or as file", async () => {
    const header = { __metadata__: { format: "pt" }, b: f32(8, 3), a: { dtype: "BF16", shape: [2, 2], data_offsets: [0, 8] }, empty: f32(8, 0, 5), scalar: f32(20) };
    const folder = await single(header, bytes(24));
    const file = safetensorsBytes(header, bytes(24));
    const headerBytes = file.length - 24;
    for (const path of [folder, join(folder, "model.safetensors")]) {
      const checkpoint = await openSafetensors(path);
      expect(checkpoint.warnings).toEqual([]);
      expect(checkpoint.files).toEqual([
        { file: "model.safetensors", path: join(folder, "model.safetensors"), bytes: file.length, headerBytes, headerSha256: createHash("sha256").update(file.subarray(0, headerBytes)).digest("hex") },
      ]);
      expect(Object.fromEntries(checkpoint.tensors)).toEqual({
        a: { name: "a", dtype: "BF16", shape: [2, 2], file: "model.safetensors", offset: headerBytes, bytes: 8 },
        b: { name: "b", dtype: "F32", shape: [3], file: "model.safetensors", offset: headerBytes + 8, bytes: 12 },
        empty: { name: "empty", dtype: "F32", shape: [0, 5], file: "model.safetensors", offset: headerBytes + 8, bytes: 0 },
        scalar: { name: "scalar", dtype: "F32", shape: [], file: "model.safetensors", offset: headerBytes + 20, bytes: 4 },
      });
    }
  });

  test("shards, with tensors read back", async () => {
    const folder = await sharded({ a: "x-1.safetensors", b: "x-1.safetensors", c: "x-22.safetensors" }, { "x-1.safetensors": { a: f32(0, 2), b: f32(8, 1) }, "x-22.safetensors": { c: f32(0, 3) } });
    const checkpoint = await openSafetensors(folder);
    expect(checkpoint.files.map(({ file }) => file)).toEqual(["x-1.safetensors", "x-22.safetensors"]);
    expect(await bytesOfTensor(checkpoint, "b")).toEqual(Buffer.from(bytes(4, 15 + 8)));
    expect(await bytesOfTensor(checkpoint, "c")).toEqual(Buffer.from(bytes(12, 16)));
    expect((await openSafetensors(join(folder, "model.safetensors.index.json"))).tensors).toEqual(checkpoint.tensors);
  });

  test("links, as in a download cache, are followed", async () => {
    const folder = await single({ a: f32(0, 1) }, bytes(4));
    const snapshot = await emptyFolder();
    await symlink(join(folder, "model.safetensors"), join(snapshot, "model.safetensors"));
    expect((await openSafetensors(snapshot)).tensors.has("a")).toBe(true);
    await unlink(join(folder, "model.safetensors"));
    expect(await codesOf(openSafetensors(snapshot))).toEqual(["weights/not-found"]);
  });

  test("20 GB open as fast as 20 MB: only the header is read", async () => {
    const elements = 5_000_000_000;
    const folder = await single({ big: f32(0, elements) }, new Uint8Array());
    const path = join(folder, "model.safetensors");
    const { size } = await open(path).then(async (handle) => [await handle.stat(), await handle.close()] as const).then(([info]) => info);
    await truncate(path, size + 4 * elements);
    await openSafetensors(await single({ small: f32(0, 1) }, bytes(4)));
    const start = performance.now();
    const checkpoint = await openSafetensors(folder);
    expect(performance.now() - start).toBeLessThan(100);
    expect(checkpoint.files[0]?.bytes).toBe(size + 20_000_000_000);
  });
});

describe("a place without a checkpoint", () => {
  test("nothing there", async () => {
    const folder = await emptyFolder();
    expect(await codesOf(openSafetensors(join(folder, "missing")))).toEqual(["weights/not-found"]);
    expect(await codesOf(openSafetensors(join(folder, "missing.safetensors")))).toEqual(["weights/not-found"]);
  });

  test("no safetensors: the help fits what is there", async () => {
    const folder = await emptyFolder();
    const help = async (): Promise<string> => {
      const [found] = await diagnosticsOf(openSafetensors(folder));
      expect(found?.code).toBe("weights/no-safetensors");
      return found?.help ?? "";
    };
    expect(await help()).toContain("Give the folder");
    await writeFile(join(folder, "pytorch_model.bin"), "");
    expect(await help()).toContain("safe_serialization");
    await writeFile(join(folder, "other.safetensors"), "");
    expect(await help()).toContain("path of the .safetensors file");
    await writeFile(join(folder, "model-00001-of-00002.safetensors"), "");
    expect(await help()).toContain("index.json");
  });

  test("a folder under a file's name can't be read", async () => {
    const folder = await emptyFolder();
    await mkdir(join(folder, "model.safetensors"));
    expect(await codesOf(openSafetensors(folder))).toEqual(["weights/unreadable"]);
  });
});

describe("a damaged file", () => {
  test.each<[string, Readonly<Record<string, unknown>> | string, number, readonly string[]]>([
    ["data cut off", { a: f32(0, 4), b: f32(16, 2) }, 20, ["weights/truncated"]],
    ["an offset far beyond the file", { a: f32(0, 4), b: f32(1e12, 1) }, 16, ["weights/unclaimed-bytes", "weights/truncated"]],
    ["bytes after the last tensor", { a: f32(0, 1) }, 8, ["weights/unclaimed-bytes"]],
    ["a hole", { a: f32(0, 1), b: f32(8, 1) }, 12, ["weights/unclaimed-bytes"]],
    ["a hole at the start", { a: f32(4, 1) }, 8, ["weights/unclaimed-bytes"]],
    ["data that no tensor names", {}, 4, ["weights/unclaimed-bytes"]],
    ["tensors that overlap", { a: f32(0, 2), b: f32(4, 2) }, 12, ["weights/overlap"]],
    ["a tensor within another", { a: f32(0, 4), b: f32(4, 1) }, 16, ["weights/overlap"]],
    ["the same bytes twice", { a: f32(0, 1), b: f32(0, 1) }, 4, ["weights/overlap"]],
    ["end before begin", { a: { dtype: "F32", shape: [1], data_offsets: [4, 0] } }, 4, ["weights/offsets-out-of-range"]],
    ["negative offset", { a: { dtype: "F32", shape: [1], data_offsets: [-4, 0] } }, 4, ["weights/header-damaged"]],
    ["size against shape and dtype", { a: { dtype: "F32", shape: [3], data_offsets: [0, 8] } }, 8, ["weights/wrong-size"]],
    ["a shape whose product overflows", { a: { dtype: "F32", shape: [2 ** 40, 2 ** 40], data_offsets: [0, 8] } }, 8, ["weights/wrong-size"]],
    ["unknown dtype", { a: { dtype: "F4", shape: [4], data_offsets: [0, 2] } }, 2, ["weights/unknown-dtype"]],
    ["a dtype that is a property of every object", { a: { dtype: "constructor", shape: [4], data_offsets: [0, 2] } }, 2, ["weights/unknown-dtype"]],
    ["fractional extent", { a: { dtype: "F32", shape: [0.5], data_offsets: [0, 2] } }, 2, ["weights/header-damaged"]],
    ["an entry that is no tensor", { a: "F32" }, 0, ["weights/header-damaged"]],
    ["header not JSON", "{oops", 0, ["weights/header-damaged"]],
    ["header not an object", "[]", 0, ["weights/header-damaged"]],
    ["everything at once", { a: { dtype: "X", shape: [], data_offsets: [0, 0] }, b: { dtype: "F32", shape: [1], data_offsets: [0, 8] }, c: 1 }, 8, ["weights/unknown-dtype", "weights/wrong-size", "weights/header-damaged"]],
  ])("%s", async (_, header, dataBytes, codes) => {
    const found = await diagnosticsOf(openSafetensors(await single(header, bytes(dataBytes))));
    expect(found.map(({ code }) => code)).toEqual(codes);
    for (const { message, help } of found) expect(`${message} ${help}`).not.toMatch(/undefined|NaN|\[object/);
  });

  test.each<[string, Uint8Array, string]>([
    ["shorter than the length field", bytes(5), "weights/truncated"],
    ["empty", bytes(0), "weights/truncated"],
    ["header longer than the file", safetensorsBytes("{}", bytes(0)).fill(200, 0, 1), "weights/header-length"],
    ["a Git LFS pointer", new TextEncoder().encode("version https://git-lfs.github.com/spec/v1\n"), "weights/header-length"],
    ["header not UTF-8", safetensorsBytes("{}", bytes(0)).fill(0xff, 8, 10), "weights/header-damaged"],
  ])("%s", async (_, file, code) => {
    const folder = await emptyFolder();
    await writeFile(join(folder, "model.safetensors"), file);
    expect(await codesOf(openSafetensors(folder))).toEqual([code]);
  });

  test("a header of more than 100 MB is refused before it is read", async () => {
    const folder = await emptyFolder();
    const path = join(folder, "model.safetensors");
    const length = new Uint8Array(8);
    new DataView(length.buffer).setBigUint64(0, 100_000_001n, true);
    await writeFile(path, length);
    await truncate(path, 200_000_000);
    const [found] = await diagnosticsOf(openSafetensors(folder));
    expect(found?.code).toBe("weights/header-length");
    expect(found?.message).toContain("100 MB");
  });
});

describe("a damaged set of shards", () => {
  const one = "model-00001-of-00002.safetensors";
  const two = "model-00002-of-00002.safetensors";

  test("shard missing, alone and beside other damage", async () => {
    const [found, ...others] = await diagnosticsOf(openSafetensors(await sharded({ a: one, b: two, c: two }, { [one]: { a: f32(0, 1) } })));
    expect(found).toMatchObject({ code: "weights/shard-missing", values: { shard: two, tensors: 2 } });
    expect(others).toEqual([]);
    expect(await codesOf(openSafetensors(await sharded({ a: one, b: two }, { [one]: { a: f32(4, 1) } })))).toEqual(["weights/unclaimed-bytes", "weights/shard-missing"]);
  });

  test("a shard that links to nothing", async () => {
    const folder = await sharded({ a: one, b: two }, { [one]: { a: f32(0, 1) } });
    await symlink(join(folder, "gone"), join(folder, two));
    expect(await codesOf(openSafetensors(folder))).toEqual(["weights/shard-missing"]);
  });

  test.each(["../secret.safetensors", "/etc/secret.safetensors", "a/../../b.safetensors", "..\\b.safetensors", "C:b.safetensors", "a//b", "./a", "", "a\0b"])("unsafe shard name %j", async (shard) => {
    expect(await codesOf(openSafetensors(await sharded({ a: one, b: shard }, { [one]: { a: f32(0, 1) } })))).toEqual(["weights/unsafe-shard-name"]);
  });

  test("duplicate tensor", async () => {
    const [found] = await diagnosticsOf(openSafetensors(await sharded({ a: one, b: two }, { [one]: { a: f32(0, 1) }, [two]: { b: f32(0, 1), a: f32(4, 1) } })));
    expect(found).toMatchObject({ code: "weights/duplicate-tensor", values: { tensor: "a", files: [one, two] } });
  });

  test("index and shard disagree", async () => {
    expect(await codesOf(openSafetensors(await sharded({ a: one, b: two, c: two }, { [one]: { a: f32(0, 1) }, [two]: { b: f32(0, 1) } })))).toEqual(["weights/tensor-not-in-shard"]);
    expect(await codesOf(openSafetensors(await sharded({ a: one, b: one }, { [one]: { a: f32(0, 1) }, [two]: { b: f32(0, 1) } })))).toEqual(["weights/tensor-not-in-shard"]);
  });

  test("a tensor the index does not name is a warning, and there", async () => {
    const checkpoint = await openSafetensors(await sharded({ a: one }, { [one]: { a: f32(0, 1), extra: f32(4, 1) } }));
    expect(checkpoint.warnings).toMatchObject([{ code: "weights/tensor-not-in-index", severity: "warning", values: { tensor: "extra" } }]);
    expect([...checkpoint.tensors.keys()]).toEqual(["a", "extra"]);
  });

  test.each(["{", "[]", "{}", '{"weight_map": {"a": 1}}', '{"weight_map": {}}'])("index %s", async (text) => {
    const folder = await emptyFolder();
    await writeFile(join(folder, "model.safetensors.index.json"), text);
    expect(await codesOf(openSafetensors(folder))).toEqual(["weights/index-damaged"]);
  });
});
