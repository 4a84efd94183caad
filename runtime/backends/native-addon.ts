import { existsSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import type { Dtype } from "../../core/dtype.js";
import type { Card, Decoding, DeviceRates, DeviceSamplingOptions, SamplerId, SessionMemory, SlotContent, StateId, StepTimes } from "./backend.js";

/** An initializer of the graph, stored as it takes it. */
export interface AddonWeight {
  readonly name: string;
  readonly file: string;
  readonly offset: number;
  readonly bytes: number;
  readonly dtype: Dtype;
  readonly shape: readonly number[];
}

/** What a session is opened with; names are those of the graph's inputs and outputs. */
export interface AddonSessionOptions {
  /** Paths of ONNX Runtime's core library, of the graph, and of the kernels ("": our ops run as their function bodies). */
  readonly library: string;
  readonly graph: string;
  readonly kernels: string;
  readonly threads: number;
  readonly vocabSize: number;
  /** 0: no limit is known. */
  readonly contextLength: number;
  readonly inputIds: string;
  readonly pastLengths: string;
  readonly lengths: string;
  readonly logitIndices: string;
  readonly logits: string;
  readonly state: readonly {
    readonly past: string;
    readonly present: string;
    readonly dtype: Dtype;
    readonly shape: readonly (number | "B" | "S")[];
    readonly inPlace: boolean;
  }[];
  /** Absent: on the CPU. */
  readonly cuda?: {
    readonly ordinal: number;
    readonly graphs: boolean;
    readonly arenaBytes: number;
    readonly weights: readonly AddonWeight[];
  };
  /** Weights to be copied into memory, on the CPU; the others' files are mapped. */
  readonly copied: readonly AddonWeight[];
  readonly onProgress?: ((loaded: number, total: number) => void) | undefined;
}

/** A session of the addon. Methods reject, or throw once it was closed, with an `Error` in ONNX Runtime's words. */
export interface AddonSession {
  createState(batch: number, capacity: number): Promise<StateId>;
  copyState(state: StateId): Promise<StateId>;
  releaseState(state: StateId): Promise<void>;
  /** Ids [B, T], past lengths [B], lengths [B], logit indices [B, L] → logits [B, L, V] */
  forward(state: StateId, inputIds: BigInt64Array, pastLengths: BigInt64Array, lengths: BigInt64Array, logitIndices: BigInt64Array): Promise<Float32Array>;
  /** As `forward`, to the beginning of `into`, which must be kept until this is settled → how many logits there are */
  forwardInto(state: StateId, inputIds: BigInt64Array, pastLengths: BigInt64Array, lengths: BigInt64Array, logitIndices: BigInt64Array, into: Float32Array): Promise<number>;
  /** The following on a card only, up to `decode`. Page-locked memory for logits. */
  pinnedLogits(count: number): Promise<Float32Array>;
  createSampler(rows: readonly DeviceSamplingOptions[]): Promise<SamplerId>;
  releaseSampler(sampler: SamplerId): Promise<void>;
  /** As `forward` with L = 1; `chosen` [B] is 0 or 1 → token ids [B] */
  forwardSampled(
    state: StateId,
    inputIds: BigInt64Array,
    pastLengths: BigInt64Array,
    lengths: BigInt64Array,
    logitIndices: BigInt64Array,
    sampler: SamplerId,
    chosen: Uint8Array,
  ): Promise<BigInt64Array>;
  /** First ids [B], past lengths [B], limits [B], stop tokens; `onTokens` is given those of each step [B], -2 for rows that took no part. */
  decode(
    state: StateId,
    inputIds: BigInt64Array,
    pastLengths: BigInt64Array,
    limits: BigInt64Array,
    stopTokens: BigInt64Array,
    sampler: SamplerId,
    onTokens: (tokens: BigInt64Array) => void,
  ): Decoding;
  readState(state: StateId, slot: number, positions?: number): Promise<SlotContent>;
  /** As `BackendSession` says of them; the memory must be kept until they are settled. */
  readBytes(state: StateId, slot: number, lengths: BigInt64Array, from: number, into: Uint8Array): Promise<void>;
  writeBytes(state: StateId, slot: number, lengths: BigInt64Array, from: number, bytes: Uint8Array): Promise<void>;
  copyRow(from: StateId, fromRow: number, tokens: number, to: StateId, toRow: number): Promise<void>;
  memory(): Promise<Omit<SessionMemory, "logitsPeak">>;
  /** On a card only. */
  measureDevice(): Promise<DeviceRates>;
  stepTimes(state: StateId): Promise<StepTimes>;
  close(): Promise<void>;
}

interface Addon {
  openSession(options: AddonSessionOptions): Promise<AddonSession>;
  /** The version of ONNX Runtime. @throws Error saying why the library or the kernels can't be used */
  probe(library: string, kernels: string): string;
  /** @throws Error saying why the kernels can't choose tokens */
  probeSampler(kernels: string): void;
  /** The cards, and what is free of one (0: there is no such). Rejects with a `CudaProblem`'s code where CUDA can't be used. */
  probeCuda(library: string, ordinal: number): Promise<{
    readonly cards: readonly Omit<Card, "ordinal" | "freeBytes">[];
    /** File of the CUDA runtime. */
    readonly runtime: string;
    readonly freeBytes: number;
  }>;
}

/** What an error of `probeCuda` carries as its `code`. */
export type CudaProblem = "no-driver" | "no-libraries" | "no-provider" | "other-provider" | "failed";

/** The native runtime with everything it needs. */
export interface NativeRuntime {
  readonly addon: Addon;
  readonly library: string;
  readonly version: string;
  /** The library of kernels for our ops, or why there is none; the ops then run as their function bodies. */
  readonly kernels: { readonly path: string } | { readonly reason: string };
  /** Where the kernels for CUDA are, if they were built. */
  readonly cudaKernels: string;
}

const require = createRequire(import.meta.url);
const packageRoot = dirname(require.resolve("layerweave/package.json"));
const prebuiltPackage = `@layerweave/${process.platform}-${process.arch}`;
const addonFile = "layerweave_native.node";
const kernelsFile = process.platform === "darwin" ? "liblayerweave_ops.dylib" : "liblayerweave_ops.so";
const cudaKernelsFile = "liblayerweave_ops_cuda.so";

let loaded: NativeRuntime | { readonly reason: string } | undefined;

/** Loads the native runtime once; where that fails, says why, in words that can follow "because". */
export function loadNativeRuntime(): NativeRuntime | { readonly reason: string } {
  loaded ??= tryToLoad();
  return loaded;
}

function tryToLoad(): NativeRuntime | { readonly reason: string } {
  const folder = folderOfAddon();
  if (folder === undefined) return { reason: `it was not built, and ${prebuiltPackage} is not installed` };
  try {
    const addon = require(join(folder, addonFile)) as Addon;
    const library = coreLibrary();
    const version = addon.probe(library, "");
    return { addon, library, version, kernels: kernelsIn(folder, addon, library), cudaKernels: join(folder, cudaKernelsFile) };
  } catch (error) {
    return { reason: messageOf(error) };
  }
}

/** The folder in LAYERWEAVE_NATIVE_DIR, what was built here, or the package for this platform. */
function folderOfAddon(): string | undefined {
  const given = process.env["LAYERWEAVE_NATIVE_DIR"];
  if (given !== undefined) return given;
  const built = join(packageRoot, "build", "native");
  if (existsSync(join(built, addonFile))) return built;
  try {
    return dirname(require.resolve(`${prebuiltPackage}/package.json`));
  } catch {
    return undefined;
  }
}

function kernelsIn(folder: string, addon: Addon, library: string): NativeRuntime["kernels"] {
  const path = join(folder, kernelsFile);
  if (!existsSync(path)) return { reason: `${kernelsFile} is not built` };
  try {
    addon.probe(library, path);
    return { path };
  } catch (error) {
    return { reason: messageOf(error) };
  }
}

/** ONNX Runtime's core library: onnxruntime-node's own, so that a process holds one copy, or the one in LAYERWEAVE_ORT_DIR. */
function coreLibrary(): string {
  const folder = process.env["LAYERWEAVE_ORT_DIR"] ?? join(dirname(require.resolve("onnxruntime-node/package.json")), "bin", "napi-v6", process.platform, process.arch);
  const file = readdirSync(folder).find((name) => /^libonnxruntime\.(so\.1|so|(\d+\.)*dylib)$/.test(name));
  if (file === undefined) throw new Error(`${folder} holds no libonnxruntime`);
  return join(folder, file);
}

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error)).trim().split("\n")[0] ?? "";
