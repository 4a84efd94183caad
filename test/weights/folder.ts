import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { onTestFinished } from "vitest";
import { LayerweaveError } from "../../core/diagnostics.js";
import type { Checkpoint } from "../../compiler/weights/safetensors.js";

/** An empty folder that is gone when the test ends. */
export async function emptyFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "layerweave-weights-"));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

export interface HeaderEntry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data_offsets: readonly [number, number];
}

/** A safetensors file byte by byte, so that it can be wrong in any way. */
export function safetensorsBytes(header: Readonly<Record<string, unknown>> | string, data: Uint8Array): Uint8Array {
  const json = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const bytes = new Uint8Array(8 + json.length + data.length);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(json.length), true);
  bytes.set(json, 8);
  bytes.set(data, 8 + json.length);
  return bytes;
}

/** The diagnostics that a rejected promise carries. */
export async function diagnosticsOf(promise: Promise<unknown>): Promise<LayerweaveError["diagnostics"]> {
  const error: unknown = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (!(error instanceof LayerweaveError)) throw new Error(`expected diagnostics, got ${String(error)}`);
  return error.diagnostics;
}

export async function codesOf(promise: Promise<unknown>): Promise<readonly string[]> {
  return (await diagnosticsOf(promise)).map(({ code }) => code);
}

/** The bytes of a tensor, which its file is read whole for. */
export async function bytesOfTensor({ files, tensors }: Checkpoint, name: string): Promise<Buffer> {
  const tensor = tensors.get(name);
  const file = files.find(({ file }) => file === tensor?.file);
  if (!tensor || !file) throw new Error(`no ${name}`);
  return (await readFile(file.path)).subarray(tensor.offset, tensor.offset + tensor.bytes);
}
