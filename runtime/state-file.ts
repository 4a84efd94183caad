import { createHash, randomUUID } from "node:crypto";
import { open, rename, rm, type FileHandle } from "node:fs/promises";
import * as z from "zod";
import { fail, invariant } from "../core/diagnostics.js";
import { bytesPerElement } from "../core/dtype.js";
import type { Manifest } from "../core/manifest.js";
import { runtimeDiagnostics } from "./diagnostics.js";

/** Identifies the graph and the weights it was compiled with, short of reading all of them. */
function fingerprint({ model, graph, files, weights }: Manifest): string {
  const identity = [model.layout.sha256, graph.sha256, files.map((file) => file.headerSha256), weights];
  return createHash("sha256").update(JSON.stringify(identity)).digest("hex");
}

/** Bytes read and written at once: a slot may be larger than one buffer can be, or one call of the system takes. */
const usualPiece = 2 ** 25;

const safetensorsTypes: Partial<Record<Manifest["state"][number]["dtype"], string>> = { float32: "F32", float16: "F16", bfloat16: "BF16" };

interface Entry {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly begin: number;
  readonly end: number;
}

/** Where each slot of a state stands in the file: KV caches hold the positions of the longest row. */
function entriesOf(manifest: Manifest, lengths: readonly number[]): readonly Entry[] {
  let at = 0;
  return manifest.state.map(({ past, dtype, shape }) => {
    const type = safetensorsTypes[dtype];
    invariant(type, `no state is of ${dtype}`);
    const extents = shape.map((dim) => {
      invariant(dim !== "T" && dim !== "L", `state is not shaped by ${dim}`);
      return dim === "B" ? lengths.length : dim === "S" ? Math.max(...lengths) : dim;
    });
    const begin = at;
    at += extents.reduce((n, d) => n * d, bytesPerElement[dtype]);
    return { name: past, dtype: type, shape: extents, begin, end: at };
  });
}

/** The eight bytes of the header's length and the header, a multiple of eight in all; its size doesn't depend on the checksum. */
function headerOf(manifest: Manifest, lengths: readonly number[], sha256: string): Buffer {
  const metadata = { format: "layerweave-state", version: "2", model: fingerprint(manifest), lengths: JSON.stringify(lengths), sha256 };
  const tensors = entriesOf(manifest, lengths).map(({ name, dtype, shape, begin, end }) => [name, { dtype, shape, data_offsets: [begin, end] }] as const);
  const json = JSON.stringify({ __metadata__: metadata, ...Object.fromEntries(tensors) });
  const text = Buffer.from(json + " ".repeat((8 - (Buffer.byteLength(json) % 8)) % 8));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text]);
}

/** The pieces of `count` bytes: where each begins, and its size. */
function* piecesOf(count: number, piece: number): Generator<{ readonly from: number; readonly count: number }> {
  for (let from = 0; from < count; from += piece) yield { from, count: Math.min(piece, count - from) };
}

/** One call of the system may take less than it was given. */
async function writeWhole(file: FileHandle, bytes: Uint8Array, at: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) done += (await file.write(bytes, done, bytes.length - done, at + done)).bytesWritten;
}

/**
 * Writes a state piece by piece, so that little of it is in memory.
 * @param read gives `count` bytes of a slot as the file has them
 * @throws LayerweaveError `runtime/state-file-unwritable`, and what `read` does
 */
export async function writeStateFile(path: string, manifest: Manifest, lengths: readonly number[], read: (slot: number, from: number, count: number) => Promise<Uint8Array>, piece = usualPiece): Promise<void> {
  const written = async <T>(work: Promise<T>): Promise<T> =>
    work.catch((error: unknown) => fail(runtimeDiagnostics["state-file-unwritable"], { file: path, problem: error instanceof Error ? error.message : String(error) }));
  const temporary = `${path}.${randomUUID()}`;
  const file = await written(open(temporary, "wx"));
  try {
    try {
      const hash = createHash("sha256");
      const start = headerOf(manifest, lengths, "0".repeat(64)).length;
      for (const [slot, { begin, end }] of entriesOf(manifest, lengths).entries())
        for (const { from, count } of piecesOf(end - begin, piece)) {
          const bytes = await read(slot, from, count);
          invariant(bytes.length === count, "as many bytes as were asked for");
          hash.update(bytes);
          await written(writeWhole(file, bytes, start + begin + from));
        }
      await written(writeWhole(file, headerOf(manifest, lengths, hash.digest("hex")), 0));
      await written(file.sync());
    } finally {
      await file.close();
    }
    await written(rename(temporary, path));
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

const headerSchema = z.looseObject({
  __metadata__: z.object({ format: z.literal("layerweave-state"), version: z.literal("2"), model: z.string(), lengths: z.string(), sha256: z.string() }),
});
const lengthsSchema = z.array(z.int().nonnegative()).min(1);

/** A saved state that was found whole and made by this model. */
export class StateFile implements AsyncDisposable {
  private constructor(
    private readonly path: string,
    private readonly file: FileHandle,
    readonly lengths: readonly number[],
    private readonly entries: readonly Entry[],
    private readonly dataStart: number,
  ) {}

  /** @throws LayerweaveError `runtime/bad-state-file`, `runtime/other-model-state` */
  static async open(path: string, manifest: Manifest): Promise<StateFile> {
    const bad = (problem: string): never => fail(runtimeDiagnostics["bad-state-file"], { file: path, problem });
    const file = await open(path).catch((error: unknown) => bad(error instanceof Error ? error.message : String(error)));
    try {
      const { size } = await file.stat();
      const start = Buffer.alloc(8);
      await file.read(start, 0, 8, 0);
      const headerBytes = Number(start.readBigUInt64LE());
      if (8 + headerBytes > size) return bad("it ends before its header does");
      const header = Buffer.alloc(headerBytes);
      await file.read(header, 0, headerBytes, 8);
      const { __metadata__: metadata } = parsed(header.toString("utf8"), headerSchema) ?? bad("it is no saved state");
      if (metadata.model !== fingerprint(manifest)) fail(runtimeDiagnostics["other-model-state"], { file: path });
      const lengths = parsed(metadata.lengths, lengthsSchema) ?? bad("its lengths are damaged");
      // What else the header says follows from the manifest and the lengths.
      if (!headerOf(manifest, lengths, metadata.sha256).equals(Buffer.concat([start, header]))) return bad("its header is damaged");
      const entries = entriesOf(manifest, lengths);
      const expected = 8 + headerBytes + (entries.at(-1)?.end ?? 0);
      if (size !== expected) return bad(`it holds ${size} bytes, not ${expected}`);
      const hash = createHash("sha256");
      for await (const chunk of file.createReadStream({ start: 8 + headerBytes, autoClose: false })) hash.update(chunk as Buffer);
      if (hash.digest("hex") !== metadata.sha256) return bad("its numbers don't match their checksum");
      return new StateFile(path, file, lengths, entries, 8 + headerBytes);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** A slot's bytes, one piece after another. */
  async *pieces(slot: number, piece = usualPiece): AsyncGenerator<{ readonly from: number; readonly bytes: Uint8Array }, void, undefined> {
    const entry = this.entries[slot];
    invariant(entry, `no slot ${slot}`);
    for (const { from, count } of piecesOf(entry.end - entry.begin, piece)) {
      const bytes = Buffer.allocUnsafeSlow(count);
      for (let done = 0; done < count; ) {
        const { bytesRead } = await this.file.read(bytes, done, count - done, this.dataStart + entry.begin + from + done);
        if (bytesRead === 0) fail(runtimeDiagnostics["bad-state-file"], { file: this.path, problem: "it became shorter while it was read" });
        done += bytesRead;
      }
      yield { from, bytes };
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.file.close();
  }
}

function parsed<T>(text: string, schema: z.ZodType<T>): T | undefined {
  try {
    return schema.safeParse(JSON.parse(text)).data;
  } catch {
    return undefined;
  }
}
