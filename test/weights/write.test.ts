import { createHash } from "node:crypto";
import { mkdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, describe, expect, test, vi } from "vitest";
import type { Dtype } from "../../core/dtype.js";
import { convertedParts } from "../../compiler/weights/convert.js";
import { PartMakers } from "../../compiler/weights/part-makers.js";
import type { Part } from "../../compiler/weights/pieces.js";
import { openSafetensors } from "../../compiler/weights/safetensors.js";
import { linkOrCopy, planSafetensors, writeSafetensors, type WrittenTensor } from "../../compiler/weights/write.js";
import { converted, initialized } from "./elements.js";
import { bytesOfTensor, codesOf, diagnosticsOf, emptyFolder } from "./folder.js";

/** Errors that the next calls of these functions of node:fs/promises end with; the real ones run where there is none. */
const failures = vi.hoisted(() => ({ open: "", write: "", link: "", clone: "", copy: "" }));
afterEach(() => Object.assign(failures, { open: "", write: "", link: "", clone: "", copy: "" }));

vi.mock("node:fs/promises", async (load) => {
  const real = await load<typeof import("node:fs/promises")>();
  const failing = (code: string, syscall: string): Promise<never> => Promise.reject(Object.assign(new Error(`${code}: made to fail, ${syscall}`), { code, syscall }));
  return {
    ...real,
    open: async (...args: Parameters<typeof real.open>) => {
      if (failures.open) return failing(failures.open, "open");
      const handle = await real.open(...args);
      if (failures.write) handle.write = () => failing(failures.write, "write");
      return handle;
    },
    link: (...args: Parameters<typeof real.link>) => (failures.link ? failing(failures.link, "link") : real.link(...args)),
    copyFile: (source: string, target: string, mode = 0) => {
      const code = mode & real.constants.COPYFILE_FICLONE_FORCE ? failures.clone : failures.copy;
      return code ? failing(code, "copyfile") : real.copyFile(source, target, mode);
    },
  };
});

const tensor = (name: string, dtype: Dtype, shape: readonly number[], chunks: readonly Uint8Array[]): WrittenTensor => ({
  name,
  dtype,
  shape,
  bytes: chunks.reduce((sum, { length }) => sum + length, 0),
  data: () => chunks,
});
const count = (length: number, from = 0): Uint8Array => Uint8Array.from({ length }, (_, i) => from + i);
/** Makes parts on this thread. */
const here = new PartMakers(0);
const sound: readonly WrittenTensor[] = [
  tensor("half", "bfloat16", [3], [count(6)]),
  tensor("whole", "float32", [2, 2], [count(10, 50), count(6, 60)]),
  tensor("flags", "bool", [5], [count(5, 100)]),
  tensor("ids", "int64", [1], [count(8, 200)]),
  tensor("none", "float16", [0, 7], []),
  tensor("scalar", "float16", [], [count(2, 30)]),
];

describe("writeSafetensors", () => {
  /** A tensor of parts of one byte each. */
  const parts = (length: number): WrittenTensor => ({
    name: "parts",
    dtype: "uint8",
    shape: [length],
    bytes: length,
    data: () => Array.from({ length }, () => ({ piece: { inputs: [], bytes: 1, transform: "convert", parameters: { to: "float32" } } })),
  });

  test("what is written is what is read, at the planned offsets", async () => {
    const folder = await emptyFolder();
    const path = join(folder, "weights.safetensors");
    const progress: [number, number][] = [];
    const written = await writeSafetensors(path, sound, here, (done, total) => progress.push([done, total]));
    expect(written).toEqual(planSafetensors(sound));

    const file = await readFile(path);
    expect(file.length).toBe(written.fileBytes);
    expect(written.headerBytes % 64).toBe(0);
    expect(written.headerSha256).toBe(createHash("sha256").update(file.subarray(0, written.headerBytes)).digest("hex"));
    const checkpoint = await openSafetensors(path);
    expect(checkpoint.files[0]).toMatchObject({ bytes: written.fileBytes, headerBytes: written.headerBytes, headerSha256: written.headerSha256 });
    expect(checkpoint.tensors.size).toBe(sound.length);
    for (const { name, shape, data } of sound) {
      const read = checkpoint.tensors.get(name);
      if (!read) throw new Error(`no ${name}`);
      expect(read.shape).toEqual(shape);
      expect(read.offset).toBe(written.offsets.get(name));
      expect(await bytesOfTensor(checkpoint, name)).toEqual(Buffer.concat([...(data() as Iterable<Uint8Array>)]));
    }
    expect(progress.at(-1)).toEqual([written.fileBytes, written.fileBytes]);
    expect(progress.map(([done]) => done)).toEqual([...progress.map(([done]) => done)].sort((a, b) => a - b));
  });

  test("each tensor is aligned to its element", () => {
    const { offsets } = planSafetensors(sound);
    expect([(offsets.get("ids") ?? 1) % 64, (offsets.get("whole") ?? 1) % 4, (offsets.get("half") ?? 1) % 2]).toEqual([0, 0, 0]);
  });

  test("parts are made as their turn comes, in memory that is used again", async () => {
    const path = join(await emptyFolder(), "weights.safetensors");
    const of = { name: "w", shape: [7000, 1000], initializer: { kind: "uniform", std: 0.02 } } as const;
    const whole = converted(new Uint8Array(initialized(of, 1).buffer), "float32", "float16");
    const memory = new Set<ArrayBufferLike>();
    const makers = {
      ahead: 2,
      make: (part: Part, into: Uint8Array) => {
        memory.add(into.buffer);
        return here.make(part, into);
      },
    };
    const parts = () => convertedParts({ from: "initializer", tensor: of, seed: 1 }, 7_000_000, "float16");
    await writeSafetensors(path, [tensor("first", "uint8", [3], [count(3)]), { name: "w", dtype: "float16", shape: of.shape, bytes: whole.length, data: parts }], makers);
    expect(memory.size).toBe(3);
    const checkpoint = await openSafetensors(path);
    expect(Buffer.compare(await bytesOfTensor(checkpoint, "w"), whole)).toBe(0);
    expect(await bytesOfTensor(checkpoint, "first")).toEqual(Buffer.from(count(3)));
  });

  test("parts that are made in another order are written in theirs, the next ones of later tensors meanwhile", async () => {
    const path = join(await emptyFolder(), "weights.safetensors");
    const part = (id: number): Part => ({ piece: { inputs: [], bytes: 2, transform: "convert", parameters: { to: "float32" } }, scales: Float32Array.of(id) });
    const started: number[] = [];
    let under = 0;
    const makers = {
      ahead: 3,
      make: async ({ scales }: Part, into: Uint8Array) => {
        const id = scales?.[0] ?? NaN;
        started.push(id);
        expect(++under).toBeLessThanOrEqual(4);
        await new Promise((done) => setTimeout(done, (7 - id) * 5));
        under--;
        return into.fill(id);
      },
    };
    const tensors = [0, 1, 2].map((t): WrittenTensor => ({ name: `${t}`, dtype: "uint8", shape: [4], bytes: 4, data: () => [part(2 * t), part(2 * t + 1)] }));
    await writeSafetensors(path, tensors, makers);
    expect(started).toEqual([0, 1, 2, 3, 4, 5]);
    expect([...(await readFile(path)).subarray(-12)]).toEqual([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
  });

  test("no tensors at all", async () => {
    const path = join(await emptyFolder(), "weights.safetensors");
    expect(await writeSafetensors(path, [], here)).toMatchObject({ fileBytes: 64, headerBytes: 64 });
    expect((await openSafetensors(path)).tensors.size).toBe(0);
  });

  test("an existing file is never overwritten", async () => {
    const path = join(await emptyFolder(), "weights.safetensors");
    await writeFile(path, "mine");
    expect(await codesOf(writeSafetensors(path, sound, here))).toEqual(["weights/not-writable"]);
    expect(await readFile(path, "utf8")).toBe("mine");
  });

  test("a folder that is missing or is a file", async () => {
    const folder = await emptyFolder();
    await writeFile(join(folder, "file"), "");
    for (const place of ["missing", "file"]) expect(await codesOf(writeSafetensors(join(folder, place, "weights.safetensors"), sound, here))).toEqual(["weights/not-writable"]);
  });

  test.each(["EACCES", "EROFS", "EPERM"])("%s on opening", async (code) => {
    failures.open = code;
    const [found] = await diagnosticsOf(writeSafetensors(join(await emptyFolder(), "w.safetensors"), sound, here));
    expect(found).toMatchObject({ code: "weights/not-writable", exitCode: 1 });
    expect(found?.message).toContain(code);
  });

  test.each(["ENOSPC", "EDQUOT"])("%s on writing, noticed while slow parts are awaited", async (code) => {
    failures.write = code;
    const makers = { ahead: 3, make: (_: Part, into: Uint8Array) => new Promise<Uint8Array>((resolve) => setTimeout(() => resolve(into), 10)) };
    expect(await codesOf(writeSafetensors(join(await emptyFolder(), "w.safetensors"), [parts(3)], makers))).toEqual(["weights/disk-full"]);
  });

  test("what the data, a part or the progress throws comes through; no part is begun after it", async () => {
    const folder = await emptyFolder();
    const broken: WrittenTensor = {
      ...parts(3),
      *data() {
        yield count(1);
        throw new Error("from the data");
      },
    };
    await expect(writeSafetensors(join(folder, "data"), [broken], here)).rejects.toThrow("from the data");
    let made = 0;
    const makers = {
      ahead: 1,
      make: async (_: Part, into: Uint8Array) => {
        if (++made === 3) throw new Error("from a part");
        return into;
      },
    };
    await expect(writeSafetensors(join(folder, "part"), [parts(100)], makers)).rejects.toThrow("from a part");
    expect(made).toBeLessThanOrEqual(4);
    const aborted = writeSafetensors(join(folder, "progress"), [parts(100)], { ahead: 1, make: async (_, into) => into }, (written) => {
      if (written > 200) throw new Error("from the progress");
    });
    await expect(aborted).rejects.toThrow("from the progress");
    expect((await stat(join(folder, "progress"))).size).toBeLessThan(210);
  });

  test("too few or too many bytes are a bug of the caller", async () => {
    const folder = await emptyFolder();
    await expect(writeSafetensors(join(folder, "few"), [{ ...tensor("a", "uint8", [4], [count(4)]), data: () => [count(3)] }], here)).rejects.toThrow("internal error: a yields 1 fewer");
    await expect(writeSafetensors(join(folder, "many"), [{ ...tensor("a", "uint8", [4], [count(4)]), data: () => [count(3), count(2)] }], here)).rejects.toThrow("internal error: a yields more");
    expect(() => planSafetensors([{ name: "a", dtype: "float32", shape: [4], bytes: 8 }])).toThrow("of 16 bytes, not 8");
    expect(() => planSafetensors([tensor("a", "uint8", [1], [count(1)]), tensor("a", "uint8", [1], [count(1)])])).toThrow("share a name");
  });
});

describe("linkOrCopy", () => {
  async function source(): Promise<{ folder: string; from: string; to: string }> {
    const folder = await emptyFolder();
    await writeFile(join(folder, "blob"), "weights");
    return { folder, from: join(folder, "blob"), to: join(folder, "target") };
  }

  test("hard link", async () => {
    const { from, to } = await source();
    expect(await linkOrCopy(from, to)).toBe("hard-link");
    expect((await stat(to)).ino).toBe((await stat(from)).ino);
  });

  test("a symbolic link is resolved first", async () => {
    const { folder, from, to } = await source();
    await mkdir(join(folder, "snapshot"));
    await symlink("../blob", join(folder, "snapshot", "model.safetensors"));
    expect(await linkOrCopy(join(folder, "snapshot", "model.safetensors"), to)).toBe("hard-link");
    expect((await stat(to)).ino).toBe((await stat(from)).ino);
  });

  test.each(["EXDEV", "EPERM", "EMLINK", "ENOTSUP"])("%s: a copy, told apart from a reflink", async (code) => {
    const { from, to } = await source();
    failures.link = code;
    failures.clone = "ENOTSUP";
    expect(await linkOrCopy(from, to)).toBe("copy");
    expect(await readFile(to, "utf8")).toBe("weights");
    expect((await stat(to)).ino).not.toBe((await stat(from)).ino);
  });

  test("whatever this disk can do in place of a link, the answer says", async () => {
    const { from, to } = await source();
    failures.link = "EXDEV";
    failures.copy = "EIO";
    const kind = await linkOrCopy(from, to).catch(() => "no reflink here");
    if (kind === "reflink") expect(await readFile(to, "utf8")).toBe("weights");
    else {
      expect(kind).toBe("no reflink here");
      await expect(stat(to)).rejects.toThrow("ENOENT");
    }
  });

  test("failures are diagnostics", async () => {
    const { folder, from, to } = await source();
    expect(await codesOf(linkOrCopy(join(folder, "missing"), to))).toEqual(["weights/not-found"]);
    expect(await codesOf(linkOrCopy(from, join(folder, "missing", "target")))).toEqual(["weights/not-writable"]);
    await writeFile(to, "mine");
    expect(await codesOf(linkOrCopy(from, to))).toEqual(["weights/not-writable"]);
    expect(await readFile(to, "utf8")).toBe("mine");
    await rm(to);
    Object.assign(failures, { link: "EXDEV", clone: "ENOTSUP", copy: "ENOSPC" });
    expect(await codesOf(linkOrCopy(from, to))).toEqual(["weights/disk-full"]);
  });
});
