import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { onTestFinished } from "vitest";
import { LayerweaveError } from "../../core/diagnostics.js";

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

export async function collect<T>(items: AsyncIterable<T> | Iterable<T>): Promise<readonly T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}
