import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { open, readFile, stat } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { Diagnostics, fail } from "../core/diagnostics.js";
import { manifestDiagnostics, manifestFile, parseManifest, type Manifest } from "../core/manifest.js";
import type { Backend } from "./backends/backend.js";
import { portable } from "./backends/portable.js";
import { runtimeDiagnostics } from "./diagnostics.js";
import { Model } from "./model.js";
import { Tokenizer } from "./tokenizer.js";

export interface LoadOptions {
  /** Threads that compute one operator together. Default: as many as this process may use. */
  readonly threads?: number;
}

const backend: Backend = portable;

/**
 * Opens a folder that `layerweave compile` wrote, after checking that its files are the ones that were compiled.
 * @throws LayerweaveError `manifest/…` when the folder is damaged, `runtime/no-weights`, `runtime/bad-tokenizer`,
 *   `runtime/load-failed`, `runtime/unsupported-state`, `runtime/bad-option`
 */
export async function load(folder: string, { threads = availableParallelism() }: LoadOptions = {}): Promise<Model> {
  if (!Number.isInteger(threads) || threads < 1) fail(runtimeDiagnostics["bad-option"], { option: "threads", expected: "a positive integer", found: String(threads) });
  const manifest = await readManifest(folder);
  const absent = manifest.weights.filter((weight) => weight.origin.from === "absent").length;
  if (absent > 0) fail(runtimeDiagnostics["no-weights"], { folder, weights: absent });
  await checkFiles(folder, manifest);
  const tokenizer = manifest.tokenizer && (await Tokenizer.open(folder, manifest.tokenizer));
  return new Model(folder, manifest, await backend.open({ folder, manifest, threads }), tokenizer);
}

async function readManifest(folder: string): Promise<Manifest> {
  let text: string;
  try {
    text = await readFile(join(folder, manifestFile), "utf8");
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") fail(manifestDiagnostics.missing, { folder });
    fail(manifestDiagnostics.damaged, { folder, problem: message });
  }
  return parseManifest(text, folder);
}

async function checkFiles(folder: string, manifest: Manifest): Promise<void> {
  const found = new Diagnostics();
  const check = async (file: string, bytes: number | undefined, digest?: { readonly expected: string; readonly of: () => Promise<string>; readonly name: string }): Promise<void> => {
    const info = await stat(join(folder, file)).catch(() => undefined);
    if (!info?.isFile()) return found.report(manifestDiagnostics["missing-file"], { folder, file });
    if (bytes !== undefined && info.size !== bytes)
      return found.report(manifestDiagnostics["changed-file"], { folder, file, expected: `${bytes} bytes`, found: `${info.size} bytes` });
    if (!digest) return;
    const sha256 = await digest.of();
    if (sha256 !== digest.expected)
      found.report(manifestDiagnostics["changed-file"], { folder, file, expected: `${digest.name} ${digest.expected}`, found: sha256 });
  };
  const { graph, tokenizer } = manifest;
  await check(graph.file, graph.bytes, { expected: graph.sha256, of: () => sha256(join(folder, graph.file)), name: "SHA-256" });
  for (const { file, bytes, headerSha256 } of manifest.files)
    await check(file, bytes, { expected: headerSha256, of: async () => sha256(join(folder, file), await headerBytes(join(folder, file))), name: "header SHA-256" });
  for (const file of [tokenizer?.file, tokenizer?.config, tokenizer?.chatTemplate]) if (file !== undefined) await check(file, undefined);
  found.throwIfErrors();
}

/** Length of a safetensors header with the eight bytes before it that give its length. */
async function headerBytes(path: string): Promise<number> {
  const file = await open(path);
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(8), 0, 8, 0);
    return bytesRead === 8 ? 8 + Number(buffer.readBigUInt64LE()) : bytesRead;
  } finally {
    await file.close();
  }
}

/** SHA-256 of a file, or of its first `bytes` bytes, in hex. */
async function sha256(path: string, bytes = Infinity): Promise<string> {
  const hash = createHash("sha256");
  if (bytes > 0) for await (const chunk of createReadStream(path, { end: bytes - 1 })) hash.update(chunk as Buffer);
  return hash.digest("hex");
}
