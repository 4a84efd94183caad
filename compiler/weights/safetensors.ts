import { createHash } from "node:crypto";
import { type FileHandle, open, readdir, readFile, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import * as z from "zod";
import { type Diagnostic, Diagnostics, fail } from "../../core/diagnostics.js";
import type { Dtype } from "../../core/dtype.js";
import { weightsDiagnostics } from "./diagnostics.js";
import { isMissing, reading, readFailure } from "./system-errors.js";

/** Element types of the safetensors format that fill whole bytes: size, and the type they are in a graph, if any. */
const elementTypes = {
  F64: { bytes: 8, dtype: undefined },
  F32: { bytes: 4, dtype: "float32" },
  F16: { bytes: 2, dtype: "float16" },
  BF16: { bytes: 2, dtype: "bfloat16" },
  F8_E4M3: { bytes: 1, dtype: undefined },
  F8_E5M2: { bytes: 1, dtype: undefined },
  I64: { bytes: 8, dtype: "int64" },
  I32: { bytes: 4, dtype: "int32" },
  I16: { bytes: 2, dtype: undefined },
  I8: { bytes: 1, dtype: "int8" },
  U64: { bytes: 8, dtype: undefined },
  U32: { bytes: 4, dtype: undefined },
  U16: { bytes: 2, dtype: undefined },
  U8: { bytes: 1, dtype: "uint8" },
  BOOL: { bytes: 1, dtype: "bool" },
} as const satisfies Record<string, { bytes: number; dtype: Dtype | undefined }>;

export type SafetensorsDtype = keyof typeof elementTypes;

const isKnown = (dtype: string): dtype is SafetensorsDtype => Object.hasOwn(elementTypes, dtype);

/** The type a graph has for these elements; undefined where it has none (float64, float8, …). */
export const dtypeOf = (dtype: SafetensorsDtype): Dtype | undefined => elementTypes[dtype].dtype;

/** The safetensors name of each dtype. */
export const safetensorsDtype: Readonly<Record<Dtype, SafetensorsDtype>> = {
  float32: "F32",
  float16: "F16",
  bfloat16: "BF16",
  int64: "I64",
  int32: "I32",
  int8: "I8",
  uint8: "U8",
  bool: "BOOL",
};

/** One safetensors file. */
export interface CheckpointFile {
  /** Name inside the checkpoint's folder, with forward slashes. */
  readonly file: string;
  readonly path: string;
  readonly bytes: number;
  /** Where the data starts: 8 bytes of length, then the JSON. */
  readonly headerBytes: number;
  /** SHA-256 of the first `headerBytes` bytes, in hex. */
  readonly headerSha256: string;
}

export interface CheckpointTensor {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  readonly file: string;
  /** Bytes from the start of the file. */
  readonly offset: number;
  readonly bytes: number;
}

/** The safetensors library refuses longer headers too. */
const maxHeaderBytes = 100_000_000;
const singleFile = "model.safetensors";
const indexFile = "model.safetensors.index.json";

const natural = z.int().nonnegative();
const entrySchema = z.object({ dtype: z.string(), shape: z.array(natural), data_offsets: z.tuple([natural, natural]) });
const indexSchema = z.object({ weight_map: z.record(z.string(), z.string()) });

/** The headers of a checkpoint. The weights stay on disk until they are read. */
export interface Checkpoint {
  readonly files: readonly CheckpointFile[];
  readonly tensors: ReadonlyMap<string, CheckpointTensor>;
  readonly warnings: readonly Diagnostic[];
}

/**
 * Reads the headers of a checkpoint: a `.safetensors` file, an `….index.json` with its shards, or a folder with either
 * (`model.safetensors` wins, as in Transformers). Costs the same whatever the size of the weights.
 *
 * Format: https://github.com/huggingface/safetensors#format, including its rule that tensors leave no holes.
 * @throws LayerweaveError with everything found wrong (`weights/…`). Warnings are on the checkpoint.
 */
export async function openSafetensors(path: string): Promise<Checkpoint> {
  const { folder, entry, sharded } = await locate(path);
  const found = new Diagnostics();
  const shardOf = sharded ? await readIndex(join(folder, entry), entry, found) : undefined;
  const names = shardOf ? [...new Set(shardOf.values())].filter(isSafeShardName).sort() : [entry];

  const shards = await Promise.all(names.map((file) => readShard(join(folder, file), file, sharded)));
  const files: CheckpointFile[] = [];
  const tensors = new Map<string, CheckpointTensor>();
  const holders = new Map<string, string[]>();
  for (const shard of shards) {
    if (shard.file) files.push(shard.file);
    if (shard.missing !== undefined && shardOf) {
      const tensors = [...shardOf.values()].filter((name) => name === shard.missing).length;
      found.report(weightsDiagnostics["shard-missing"], { shard: shard.missing, index: entry, tensors });
    }
    found.add(shard.found.all);
    for (const tensor of shard.tensors) {
      tensors.set(tensor.name, tensor);
      holders.set(tensor.name, [...(holders.get(tensor.name) ?? []), tensor.file]);
    }
  }
  for (const [tensor, holding] of holders) if (holding.length > 1) found.report(weightsDiagnostics["duplicate-tensor"], { tensor, files: holding });
  if (shardOf) compareWithIndex(entry, shardOf, holders, new Set(shards.filter(isSound).map(({ file }) => file.file)), found);
  found.throwIfErrors();
  return { files, tensors, warnings: found.all };
}

interface Source {
  readonly folder: string;
  /** The checkpoint's only file, or the index of its shards. */
  readonly entry: string;
  readonly sharded: boolean;
}

async function locate(path: string): Promise<Source> {
  const info = await reading(path, stat(path));
  if (!info.isDirectory()) return { folder: dirname(path), entry: basename(path), sharded: path.endsWith(".index.json") };
  const names = (await reading(path, readdir(path))).sort();
  if (names.includes(singleFile)) return { folder: path, entry: singleFile, sharded: false };
  if (names.includes(indexFile)) return { folder: path, entry: indexFile, sharded: true };
  fail(weightsDiagnostics["no-safetensors"], { folder: path, found: names.filter((name) => /\.(safetensors|bin|pt|pth|ckpt|gguf)$/.test(name)).slice(0, 3) });
}

/** Shard of each tensor, by the index. */
async function readIndex(path: string, file: string, found: Diagnostics): Promise<ReadonlyMap<string, string>> {
  const text = await reading(path, readFile(path, "utf8"));
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    fail(weightsDiagnostics["index-damaged"], { file, problem: `it is not JSON (${(error as Error).message})` });
  }
  const parsed = indexSchema.safeParse(json);
  if (!parsed.success) fail(weightsDiagnostics["index-damaged"], { file, problem: describe(parsed.error) });
  const shardOf = new Map(Object.entries(parsed.data.weight_map));
  if (shardOf.size === 0) fail(weightsDiagnostics["index-damaged"], { file, problem: "its weight_map is empty" });
  for (const shard of new Set(shardOf.values())) if (!isSafeShardName(shard)) found.report(weightsDiagnostics["unsafe-shard-name"], { shard, index: file });
  return shardOf;
}

function isSafeShardName(name: string): boolean {
  return !/[\\\0]|^[A-Za-z]:/.test(name) && name.split("/").every((part) => part !== "" && part !== "." && part !== "..");
}

interface Shard {
  readonly file?: CheckpointFile;
  readonly tensors: readonly CheckpointTensor[];
  readonly found: Diagnostics;
  /** Set when the index names the shard and it is not there. */
  readonly missing?: string;
}

const isSound = (shard: Shard): shard is Shard & { readonly file: CheckpointFile } => shard.file !== undefined && !shard.found.hasErrors;

async function readShard(path: string, file: string, sharded: boolean): Promise<Shard> {
  const found = new Diagnostics();
  let handle: FileHandle | undefined;
  try {
    handle = await open(path, "r");
    const { size } = await handle.stat();
    const header = await readHeader(handle, file, size, found);
    if (!header) return { tensors: [], found };
    const headerBytes = header.length;
    const tensors = parseHeader(header.subarray(8), file, found).map((tensor) => ({ ...tensor, offset: tensor.offset + headerBytes }));
    if (!found.hasErrors) checkLayout(tensors, { file, headerBytes, bytes: size }, found);
    return { file: { file, path, bytes: size, headerBytes, headerSha256: createHash("sha256").update(header).digest("hex") }, tensors, found };
  } catch (error) {
    if (sharded && isMissing(error)) return { tensors: [], found, missing: file };
    found.add([readFailure(path, error)]);
    return { tensors: [], found };
  } finally {
    await handle?.close();
  }
}

/** The length and the JSON, as they are in the file. */
async function readHeader(handle: FileHandle, file: string, fileBytes: number, found: Diagnostics): Promise<Uint8Array | undefined> {
  const length = await readAt(handle, 0, 8);
  if (length.length < 8) {
    found.report(weightsDiagnostics.truncated, { file, expectedBytes: 8, foundBytes: length.length });
    return undefined;
  }
  const headerBytes = Number(new DataView(length.buffer).getBigUint64(0, true));
  const problem = headerBytes > maxHeaderBytes ? "more than the 100 MB the format allows" : headerBytes > fileBytes - 8 ? `more than the file's ${fileBytes}` : undefined;
  if (problem) {
    found.report(weightsDiagnostics["header-length"], { file, headerBytes, fileBytes, problem });
    return undefined;
  }
  return readAt(handle, 0, 8 + headerBytes);
}

/** The tensors that a header describes soundly, each by itself; offsets count from the end of the header. */
function parseHeader(json: Uint8Array, file: string, found: Diagnostics): readonly CheckpointTensor[] {
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(json));
  } catch (error) {
    found.report(weightsDiagnostics["header-damaged"], { file, problem: `it is not JSON (${(error as Error).message})` });
    return [];
  }
  if (typeof header !== "object" || header === null || Array.isArray(header)) {
    found.report(weightsDiagnostics["header-damaged"], { file, problem: "it is not a JSON object" });
    return [];
  }
  const tensors: CheckpointTensor[] = [];
  for (const [name, value] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const entry = entrySchema.safeParse(value);
    if (!entry.success) {
      found.report(weightsDiagnostics["header-damaged"], { file, problem: `the entry of ${name} is wrong at ${describe(entry.error)}` });
      continue;
    }
    const { dtype, shape } = entry.data;
    const [begin, end] = entry.data.data_offsets;
    if (!isKnown(dtype)) {
      found.report(weightsDiagnostics["unknown-dtype"], { file, tensor: name, dtype, known: Object.keys(elementTypes) });
      continue;
    }
    if (end < begin) {
      found.report(weightsDiagnostics["offsets-out-of-range"], { file, tensor: name, begin, end });
      continue;
    }
    const expectedBytes = shape.reduce((product, extent) => product * extent, elementTypes[dtype].bytes);
    if (expectedBytes !== end - begin) {
      found.report(weightsDiagnostics["wrong-size"], { file, tensor: name, dtype, shape, expectedBytes, foundBytes: end - begin });
      continue;
    }
    tensors.push({ name, dtype, shape, file, offset: begin, bytes: end - begin });
  }
  return tensors;
}

/** Tensors must fill the file from the header to its end: no overlap, no hole. */
function checkLayout(tensors: readonly CheckpointTensor[], { file, headerBytes, bytes }: Pick<CheckpointFile, "file" | "headerBytes" | "bytes">, found: Diagnostics): void {
  let end = headerBytes;
  let last = "";
  for (const tensor of [...tensors].sort((a, b) => a.offset - b.offset || a.bytes - b.bytes)) {
    if (tensor.offset < end) found.report(weightsDiagnostics.overlap, { file, tensor: tensor.name, other: last });
    if (tensor.offset > end) found.report(weightsDiagnostics["unclaimed-bytes"], { file, begin: end - headerBytes, end: tensor.offset - headerBytes });
    if (tensor.offset + tensor.bytes > end) {
      end = tensor.offset + tensor.bytes;
      last = tensor.name;
    }
  }
  if (end > bytes) found.report(weightsDiagnostics.truncated, { file, expectedBytes: end, foundBytes: bytes });
  if (end < bytes) found.report(weightsDiagnostics["unclaimed-bytes"], { file, begin: end - headerBytes, end: bytes - headerBytes });
}

function compareWithIndex(index: string, shardOf: ReadonlyMap<string, string>, holders: ReadonlyMap<string, readonly string[]>, sound: ReadonlySet<string>, found: Diagnostics): void {
  for (const [tensor, shard] of shardOf)
    if (sound.has(shard) && !holders.get(tensor)?.includes(shard)) found.report(weightsDiagnostics["tensor-not-in-shard"], { tensor, shard, index });
  for (const [tensor, [shard]] of holders)
    if (shard !== undefined && !shardOf.has(tensor)) found.report(weightsDiagnostics["tensor-not-in-index"], { tensor, shard, index });
}

/** Up to `length` bytes from `position`; fewer only at the end of the file. */
async function readAt(handle: FileHandle, position: number, length: number): Promise<Uint8Array> {
  const buffer = new Uint8Array(length);
  let filled = 0;
  while (filled < length) {
    const { bytesRead } = await handle.read(buffer, filled, length - filled, position + filled);
    if (bytesRead === 0) break;
    filled += bytesRead;
  }
  return buffer.subarray(0, filled);
}

function describe(error: z.ZodError): string {
  const [issue] = error.issues;
  return `${issue?.path.join(".") || "the top level"}: ${issue?.message ?? "invalid"}`;
}
