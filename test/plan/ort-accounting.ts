import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import koffi from "koffi";
import type { Manifest } from "../../core/manifest.js";
import type { Sizes } from "../../core/plan/peak.js";

// ONNX Runtime's JavaScript API shows no allocator statistics, so its C API is called here, in the very library that runs models.

const library = join(dirname(createRequire(import.meta.url).resolve("onnxruntime-node/package.json")), `bin/napi-v6/${process.platform}/${process.arch}`, { linux: "libonnxruntime.so.1", darwin: "libonnxruntime.1.29.0.dylib", win32: "onnxruntime.dll" }[process.platform as string] ?? "");

/** Places in `struct OrtApi` (onnxruntime_c_api.h 1.29), which only ever grows at its end, and the prototypes behind them. */
const functions = {
  GetErrorMessage: [2, "const char *(void *)"],
  CreateEnv: [3, "void *(int, const char *, _Out_ void **)"],
  CreateSession: [7, "void *(void *, const char *, void *, _Out_ void **)"],
  Run: [9, "void *(void *, void *, const char **, void **, size_t, const char **, size_t, void **)"],
  CreateSessionOptions: [10, "void *(_Out_ void **)"],
  DisableMemPattern: [17, "void *(void *)"],
  SetSessionLogSeverityLevel: [22, "void *(void *, int)"],
  SetIntraOpNumThreads: [24, "void *(void *, int)"],
  CreateTensorWithDataAsOrtValue: [49, "void *(void *, void *, size_t, int64_t *, size_t, int, _Out_ void **)"],
  CreateCpuMemoryInfo: [69, "void *(int, int, _Out_ void **)"],
  ReleaseSession: [95, "void (void *)"],
  ReleaseValue: [96, "void (void *)"],
  ReleaseSessionOptions: [100, "void (void *)"],
  AddSessionConfigEntry: [130, "void *(void *, const char *, const char *)"],
  CreateAllocator: [131, "void *(void *, void *, _Out_ void **)"],
  ReleaseAllocator: [132, "void (void *)"],
  CreateAndRegisterAllocator: [144, "void *(void *, void *, void *)"],
  CreateArenaCfgV2: [164, "void *(const char **, size_t *, size_t, _Out_ void **)"],
  UnregisterAllocator: [177, "void *(void *, void *)"],
  GetKeyValuePairs: [298, "void (void *, _Out_ void **, _Out_ void **, _Out_ size_t *)"],
  AllocatorGetStats: [319, "void *(void *, _Out_ void **)"],
} as const;

type Pointer = bigint | null;
const apiVersion = 29;
const elementTypes = { float32: 1, int64: 7 } as const;

function open(): (name: keyof typeof functions, ...args: unknown[]) => unknown {
  const lib = koffi.load(library);
  const base: unknown = lib.func("void *OrtGetApiBase()")();
  const [getApi] = koffi.decode(base, koffi.array("void *", 1)) as unknown[];
  const api: unknown = koffi.call(getApi, koffi.proto("void *(uint32_t)"), apiVersion);
  const table = koffi.decode(api, koffi.array("void *", 320)) as unknown[];
  const call = (name: keyof typeof functions, ...args: unknown[]): unknown => {
    const [place, prototype] = functions[name];
    return koffi.call(table[place], koffi.proto(prototype), ...args);
  };
  return (name, ...args) => {
    const result = call(name, ...args);
    const fails = functions[name][1].startsWith("void *(");
    if (fails && result !== null) throw new Error(`${name}: ${String(call("GetErrorMessage", result))}`);
    return result;
  };
}

let ort: ReturnType<typeof open> | undefined;
let env: Pointer = null;

/** Runs `create`, which fills a pointer. */
function made(name: keyof typeof functions, ...args: unknown[]): Pointer {
  const out: [Pointer] = [null];
  (ort as ReturnType<typeof open>)(name, ...args, out);
  return out[0];
}

export interface Accounting {
  /** Most bytes in use during the run beyond those in use after loading, as ONNX Runtime's arena counts them. */
  readonly activationPeak: number;
  /** Bytes in use after loading: weights that were widened or packed. */
  readonly loaded: number;
}

/**
 * Loads a compiled folder, runs it once and reads the statistics of ONNX Runtime's arena.
 *
 * State goes in and out through buffers of ours, as in the runtime; logits are ONNX Runtime's. Memory patterns are off, so each
 * tensor is allocated by itself; the arena splits every chunk it hands out, so that "in use" is what was asked for, rounded up to
 * 256 bytes, and not what a chunk happened to leave over.
 */
export function account(folder: string, manifest: Manifest, sizes: Sizes, past: number): Accounting {
  ort ??= open();
  const api = ort;
  env ??= made("CreateEnv", 3, "layerweave");
  const memory = made("CreateCpuMemoryInfo", 1, 0);
  const arena = made("CreateArenaCfgV2", ["arena_extend_strategy", "max_dead_bytes_per_chunk", "initial_chunk_size_bytes"], [1, 1, 256], 3);
  api("CreateAndRegisterAllocator", env, memory, arena);
  const options = made("CreateSessionOptions");
  api("SetSessionLogSeverityLevel", options, 3);
  api("SetIntraOpNumThreads", options, 1);
  api("DisableMemPattern", options);
  api("AddSessionConfigEntry", options, "session.use_env_allocators", "1");
  const session = made("CreateSession", env, join(folder, manifest.graph.file), options);
  const allocator = made("CreateAllocator", session, memory);
  const loaded = statistics(allocator);

  const buffers: ArrayBufferView[] = [];
  const tensor = (dtype: "float32" | "int64", shape: readonly number[], fill: (i: number) => number): Pointer => {
    const elements = shape.reduce((a, b) => a * b, 1);
    const data = dtype === "float32" ? Float32Array.from({ length: elements }, (_, i) => fill(i)) : BigInt64Array.from({ length: elements }, (_, i) => BigInt(fill(i)));
    buffers.push(data);
    return made("CreateTensorWithDataAsOrtValue", memory, data, data.byteLength, shape, shape.length, elementTypes[dtype]);
  };
  const { B, T, L } = sizes;
  const feeds: [string, Pointer][] = [
    [manifest.inputs.inputIds.name, tensor("int64", [B, T], (i) => (i * 7919) % manifest.model.vocabSize)],
    [manifest.inputs.pastLengths.name, tensor("int64", [B], () => past)],
    [manifest.inputs.lengths.name, tensor("int64", [B], () => T)],
    [manifest.inputs.logitIndices.name, tensor("int64", [B, L], () => T - 1)],
  ];
  const fetches: [string, Pointer][] = [[manifest.outputs.logits.name, null]];
  for (const slot of manifest.state) {
    const shape = slot.shape.map((dim) => (typeof dim === "number" ? dim : sizes[dim]));
    feeds.push([slot.past, tensor("float32", shape, () => 0)]);
    fetches.push([slot.present, tensor("float32", shape, () => 0)]);
  }
  const results = fetches.map(([, value]) => value);
  const resultMemory = koffi.alloc("void *", results.length) as unknown;
  koffi.encode(resultMemory, koffi.array("void *", results.length), results);
  api("Run", session, null, feeds.map(([name]) => name), feeds.map(([, value]) => value), feeds.length, fetches.map(([name]) => name), fetches.length, resultMemory);
  const ran = statistics(allocator);

  for (const value of koffi.decode(resultMemory, koffi.array("void *", results.length)) as Pointer[]) api("ReleaseValue", value);
  for (const [, value] of feeds) api("ReleaseValue", value);
  api("ReleaseAllocator", allocator);
  api("ReleaseSession", session);
  api("ReleaseSessionOptions", options);
  api("UnregisterAllocator", env, memory);
  if (loaded.MaxInUse !== loaded.InUse) throw new Error("loading held more than it kept, which would hide a smaller peak of the run");
  return { activationPeak: ran.MaxInUse - loaded.InUse, loaded: loaded.InUse };
}

function statistics(allocator: Pointer): { readonly InUse: number; readonly MaxInUse: number } {
  const pairs = made("AllocatorGetStats", allocator);
  const [keys, values, count]: [Pointer[], Pointer[], number[]] = [[null], [null], [0]];
  (ort as ReturnType<typeof open>)("GetKeyValuePairs", pairs, keys, values, count);
  const texts = (at: Pointer[]) => koffi.decode(at[0], koffi.array("const char *", Number(count[0]))) as string[];
  const found = new Map(texts(keys).map((key, i) => [key, Number(texts(values)[i])]));
  return { InUse: found.get("InUse") ?? Number.NaN, MaxInUse: found.get("MaxInUse") ?? Number.NaN };
}
