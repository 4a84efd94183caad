import { createHash } from "node:crypto";
import { constants } from "node:fs";
import { copyFile, type FileHandle, link, open, realpath } from "node:fs/promises";
import { invariant } from "../../core/diagnostics.js";
import { bytesPerElement, type Dtype } from "../../core/dtype.js";
import type { PartMakers } from "./part-makers.js";
import type { Part } from "./pieces.js";
import { safetensorsDtype } from "./safetensors.js";
import { isSystemError, reading, writing } from "./system-errors.js";

/** A tensor as the header of a safetensors file describes it. */
export interface PlannedTensor {
  readonly name: string;
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  readonly bytes: number;
}

/** A tensor to be written; `data` yields its bytes in order: as they are, or as parts that are made when there is memory for them. */
export interface WrittenTensor extends PlannedTensor {
  readonly data: () => Iterable<Uint8Array | Part>;
}

export interface SafetensorsPlan {
  /** Bytes from the start of the file to each tensor, by name. */
  readonly offsets: ReadonlyMap<string, number>;
  readonly fileBytes: number;
  /** Where the data starts, a multiple of 64: 8 bytes of length, then the JSON. */
  readonly headerBytes: number;
  /** SHA-256 of the first `headerBytes` bytes, in hex. */
  readonly headerSha256: string;
}

/** Cache lines, and the widest vectors of any kernel. */
const dataAlignment = 64;

/** Where `writeSafetensors` will put each tensor, without its data. */
export function planSafetensors(tensors: readonly PlannedTensor[]): SafetensorsPlan {
  return layOut(tensors).plan;
}

/**
 * Writes a new safetensors file, tensor after tensor; `onProgress` is told the bytes written and those in all. While a part is
 * written the next `makers.ahead` are made, of the same tensor or of those after it.
 * Never overwrites: an existing file may be a hard link to somebody's checkpoint. What is written when an error occurs stays
 * there, so write into a folder that is removed on failure.
 * @throws LayerweaveError `weights/disk-full`, `weights/not-writable`, and whatever `data`, the transforms and `onProgress` throw.
 */
export async function writeSafetensors(path: string, tensors: readonly WrittenTensor[], makers: Pick<PartMakers, "ahead" | "make">, onProgress?: (written: number, total: number) => void): Promise<SafetensorsPlan> {
  const { header, inOrder, plan } = layOut(tensors);
  const handle = await writing(path, open(path, "wx"));
  const memory = Array.from({ length: makers.ahead + 1 }, () => new SharedArrayBuffer(0));
  /** Writes that are to come, first to last: each waits for its bytes and for the write before it. */
  const pending: Promise<void>[] = [];
  let written = 0;
  const add = (bytes: Promise<Uint8Array> | Uint8Array): void => {
    const before = pending.at(-1);
    const write = (async () => {
      const made = await bytes;
      await before;
      await writing(path, writeAll(handle, made));
      written += made.length;
      onProgress?.(written, plan.fileBytes);
    })();
    // Awaited later, and so must not count as unhandled when it fails before.
    write.catch(() => undefined);
    pending.push(write);
  };
  try {
    add(header);
    let turn = 0;
    for (const { name, bytes, data } of inOrder) {
      let yielded = 0;
      for (const part of data()) {
        const length = part instanceof Uint8Array ? part.length : part.piece.bytes;
        yielded += length;
        invariant(yielded <= bytes, () => `${name} yields more than its ${bytes} bytes`);
        while (pending.length >= memory.length) {
          await pending[0];
          pending.shift();
        }
        if (part instanceof Uint8Array) add(part);
        else {
          const slot = turn++ % memory.length;
          if ((memory[slot] as SharedArrayBuffer).byteLength < length) memory[slot] = new SharedArrayBuffer(length);
          add(makers.make(part, new Uint8Array(memory[slot] as SharedArrayBuffer, 0, length)));
        }
      }
      invariant(yielded === bytes, () => `${name} yields ${bytes - yielded} fewer than its ${bytes} bytes`);
    }
    await pending.at(-1);
  } finally {
    // Waits even when one failed: closing a file under a running write is an error of its own.
    await Promise.allSettled(pending);
    // A network file system may report a full disk only here.
    await writing(path, handle.close());
  }
  return plan;
}

async function writeAll(handle: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let written = 0; written < bytes.length; ) written += (await handle.write(bytes, written)).bytesWritten;
}

function layOut<T extends PlannedTensor>(tensors: readonly T[]): { readonly header: Uint8Array; readonly inOrder: readonly T[]; readonly plan: SafetensorsPlan } {
  // Widest elements first, as the safetensors library orders them: holes are forbidden, and so each tensor is aligned to its element.
  const inOrder = [...tensors].sort((a, b) => bytesPerElement[b.dtype] - bytesPerElement[a.dtype]);
  const entries: [string, { dtype: string; shape: readonly number[]; data_offsets: [number, number] }][] = [];
  let end = 0;
  for (const { name, dtype, shape, bytes } of inOrder) {
    const expected = shape.reduce((product, extent) => product * extent, bytesPerElement[dtype]);
    invariant(bytes === expected, () => `${name} is ${dtype} [${shape.join(", ")}] of ${expected} bytes, not ${bytes}`);
    entries.push([name, { dtype: safetensorsDtype[dtype], shape, data_offsets: [end, end + bytes] }]);
    end += bytes;
  }
  const json = new TextEncoder().encode(JSON.stringify(Object.fromEntries(entries)));
  const headerBytes = Math.ceil((8 + json.length) / dataAlignment) * dataAlignment;
  const header = new Uint8Array(headerBytes).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(headerBytes - 8), true);
  header.set(json, 8);
  const offsets = new Map(entries.map(([name, { data_offsets: [begin] }]) => [name, headerBytes + begin])); // prettier-ignore
  invariant(offsets.size === tensors.length, "two tensors to be written share a name");
  return { header, inOrder, plan: { offsets, fileBytes: headerBytes + end, headerBytes, headerSha256: createHash("sha256").update(header).digest("hex") } };
}

export type LinkKind = "hard-link" | "reflink" | "copy";

/**
 * Makes `target` (which must not exist) the same file as `source`, or a copy of it that shares its blocks, or a full copy; whichever
 * the file systems allow first. A symbolic link is followed: ONNX Runtime refuses links that leave the model's folder.
 * @throws LayerweaveError `weights/not-found`, `weights/unreadable`, `weights/disk-full`, `weights/not-writable`.
 */
export async function linkOrCopy(source: string, target: string): Promise<LinkKind> {
  const file = await reading(source, realpath(source));
  // EXDEV, EPERM, EMLINK, ENOTSUP, …: what a failed attempt says depends on the file system, and the last attempt reports what matters.
  const attempts: [LinkKind, () => Promise<void>][] = [
    ["hard-link", () => link(file, target)],
    // COPYFILE_FICLONE copies in silence where blocks can't be shared; FORCE tells.
    ["reflink", () => copyFile(file, target, constants.COPYFILE_FICLONE_FORCE | constants.COPYFILE_EXCL)],
  ];
  for (const [kind, attempt] of attempts) if (await succeeds(attempt())) return kind;
  await writing(target, copyFile(file, target, constants.COPYFILE_EXCL));
  return "copy";
}

async function succeeds(operation: Promise<void>): Promise<boolean> {
  try {
    await operation;
    return true;
  } catch (error) {
    if (isSystemError(error)) return false;
    throw error;
  }
}
