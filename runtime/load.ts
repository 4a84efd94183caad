import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { open, readFile, stat } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { Diagnostics, fail } from "../core/diagnostics.js";
import { manifestDiagnostics, manifestFile, parseManifest, type Manifest } from "../core/manifest.js";
import { backendFor, backendNames, type BackendName } from "./backends/choose.js";
import { MemoryReservation } from "./budget.js";
import { runtimeDiagnostics } from "./diagnostics.js";
import { Model } from "./model.js";
import { Tokenizer } from "./tokenizer.js";

const weightPlaces = ["copied", "mapped"] as const;
export type WeightPlace = (typeof weightPlaces)[number];

export interface LoadOptions {
  /** Threads that compute one operator together. Default: as many as this process may use. */
  readonly threads?: number;
  /** What runs the model. Default `auto`: the native runtime where it is there, else the portable one; `model.backend` says which. */
  readonly backend?: BackendName;
  /** `cpu`, or `cuda:0` and so on. Default: what the folder was compiled for, and its first card. */
  readonly device?: string;
  /** Repeats decode steps as captured CUDA graphs, which changes no result. Default true; for folders compiled for CUDA only. */
  readonly cudaGraphs?: boolean;
  /**
   * Where int8 weights lie for the native runtime's CPU kernels. `copied`, the default: in memory of the process, in large pages
   * where the system has them, from which a token is decoded about twice as fast. `mapped`: in their files, in pages that processes
   * share and the system can take back; a file that is cut short while it is mapped ends the process (SIGBUS). Both count alike.
   */
  readonly weights?: WeightPlace;
  /** Told of the bytes of weights loaded so far and of those in all, where they go to a card. */
  readonly onProgress?: (loaded: number, total: number) => void;
  /** Bytes that all models of this process may use together. Default: what was available before the first of them was opened. */
  readonly budget?: number;
  /** Tokens that each sequence may grow to, for which memory is reserved. Default: the model's context length, or 8192 where it states none. */
  readonly context?: number;
  /** Sequences at once for which memory is reserved; more states, larger ones and snapshots reserve more when they are made. Default 1. */
  readonly batch?: number;
  /** Tokens of one prefill run for which memory is reserved. Default 512 on the CPU, 8192 on a card. */
  readonly chunk?: number;
  /** Loads a model that the plan says does not fit; `model.reservation.refusal` then says by how much. */
  readonly force?: boolean;
}

/** Tokens of one prefill run: what saturates the device, at a moderate price in memory. */
export const usualChunk = { cpu: 512, card: 8192 };

/** Context for which memory is reserved when neither the caller nor the model says one. */
const usualContext = 8192;

/**
 * Opens a folder that `layerweave compile` wrote, after checking that its files are the ones that were compiled and that
 * the model fits in memory.
 * @throws LayerweaveError `manifest/…` when the folder is damaged, `runtime/no-weights`, `runtime/bad-tokenizer`,
 *   `runtime/load-failed`, `runtime/unsupported-state`, `runtime/bad-option`, `runtime/native-unavailable`,
 *   `runtime/wrong-target`, `runtime/cuda-…` saying what a card can't be used for, `plan/over-budget`, `plan/bad-count`
 */
export async function load(folder: string, options: LoadOptions = {}): Promise<Model> {
  const { threads = availableParallelism(), backend: wanted = "auto", device, cudaGraphs = true, weights = "copied", onProgress, budget, batch = 1, force = false } = options;
  if (!Number.isInteger(threads) || threads < 1) fail(runtimeDiagnostics["bad-option"], { option: "threads", expected: "a positive integer", found: String(threads) });
  if (!backendNames.includes(wanted)) fail(runtimeDiagnostics["bad-option"], { option: "backend", expected: `one of ${backendNames.join(", ")}`, found: String(wanted) });
  if (!weightPlaces.includes(weights)) fail(runtimeDiagnostics["bad-option"], { option: "weights", expected: `one of ${weightPlaces.join(", ")}`, found: String(weights) });
  if (budget !== undefined && !(budget > 0)) fail(runtimeDiagnostics["bad-option"], { option: "budget", expected: "a positive number of bytes", found: String(budget) });
  const manifest = await readManifest(folder);
  const { backend, choice } = await backendFor(manifest.target, folder, wanted, device);
  const chunk = options.chunk ?? (choice.card ? usualChunk.card : usualChunk.cpu);
  const absent = manifest.weights.filter((weight) => weight.origin.from === "absent").length;
  if (absent > 0) fail(runtimeDiagnostics["no-weights"], { folder, weights: absent });
  await checkFiles(folder, manifest);
  const tokenizer = manifest.tokenizer && (await Tokenizer.open(folder, manifest.tokenizer));
  const limited = withContext(manifest, options.context);
  const reservation = new MemoryReservation(manifest, { budget, context: limited.model.contextLength ?? usualContext, batch, chunk, force }, choice);
  try {
    const session = await backend.open({ folder, manifest: limited, threads, cudaGraphs, mappedWeights: weights === "mapped", arenaBytes: reservation.plan.holders.arena, onProgress });
    return new Model(folder, limited, session, tokenizer, choice, reservation);
  } catch (error) {
    reservation[Symbol.dispose]();
    throw error;
  }
}

/** A model for which memory was reserved up to a context takes no longer one, unless its state is of the same size for any. */
function withContext(manifest: Manifest, context: number | undefined): Manifest {
  const { contextLength } = manifest.model;
  if (context === undefined) {
    if (contextLength !== null || manifest.state.every((slot) => slot.growth === "constant")) return manifest;
    return { ...manifest, model: { ...manifest.model, contextLength: usualContext } };
  }
  if (contextLength !== null && context > contextLength)
    fail(runtimeDiagnostics["bad-option"], { option: "context", expected: `at most ${contextLength}, the model's context length`, found: String(context) });
  return { ...manifest, model: { ...manifest.model, contextLength: context } };
}

/** @throws LayerweaveError `manifest/missing`, `manifest/damaged`, `manifest/other-version` */
export async function readManifest(folder: string): Promise<Manifest> {
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
