// What of the CUDA backend shows without a card: which folder runs where, what is said when something is missing, and how
// 16-bit state crosses over. Drivers and libraries are stood in for by ones written here. The rest is in test/gpu.
import { execFileSync } from "node:child_process";
import { mkdir, readFile, symlink, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import type { Manifest } from "#dist/core/manifest.js";
import { loadNativeRuntime, type AddonSessionOptions } from "#dist/runtime/backends/native-addon.js";
import { load } from "#dist/runtime/index.js";
import { rejection } from "../runtime/diagnostics.js";
import { fakeModel, removeFakes } from "../runtime/fake-model.js";
import { noNative } from "../support/backends.js";
import { temporaryFolder } from "../support/folders.js";
import { runScript } from "./scripts.js";

const root = join(import.meta.dirname, "..", "..");
const out = await temporaryFolder();
afterAll(removeFakes);

async function folderForCuda(): Promise<string> {
  const folder = await fakeModel();
  const path = join(folder, "manifest.json");
  const manifest = JSON.parse(await readFile(path, "utf8")) as Manifest;
  await writeFile(path, JSON.stringify({ ...manifest, target: "cuda" }));
  return folder;
}

test.each([
  ["a portable folder on a card", fakeModel, { device: "cuda:0" }, "runtime/wrong-target", /compiled for the CPU, so it can't be run on cuda:0/],
  ["a CUDA folder on the CPU", folderForCuda, { device: "cpu" }, "runtime/wrong-target", /compiled for CUDA, so it can't be run on cpu/],
  ["a CUDA folder by the portable backend", folderForCuda, { backend: "portable" }, "runtime/wrong-target", /can't be run on the portable backend/],
  ["a CUDA folder by the native backend", folderForCuda, { backend: "native", device: "cuda:1" }, "runtime/wrong-target", /can't be run on the native backend on cuda:1/],
  ["a device of no such name", fakeModel, { device: "gpu" }, "runtime/bad-option", /device must be cpu, or cuda:0 and so on, not gpu/],
] as const)("%s is refused", async (_, folder, options, code, message) => {
  expect(await rejection(load(await folder(), options))).toMatchObject([{ code, message: expect.stringMatching(message) }]);
});

/** Libraries that answer as CUDA's do, where memory of the card is the system's. */
const standIns = {
  "libcuda.so.1": `
    #include <stdlib.h>
    #include <string.h>
    static int cards(void) { return atoi(getenv("STAND_IN_CARDS")); }
    int cuInit(unsigned flags) { (void)flags; return cards() == 0 ? 100 : cards() < 0 ? 3 : 0; }
    int cuDeviceGetCount(int* count) { *count = cards(); return 0; }
    int cuDeviceGetName(char* name, int size, int card) { strncpy(name, card ? "Stand-in B" : "Stand-in A", size); return 0; }
    int cuDeviceTotalMem_v2(size_t* bytes, int card) { (void)card; *bytes = (size_t)64 << 30; return 0; }
    int cuDeviceGetAttribute(int* value, int attribute, int card) { (void)card; *value = attribute == 75 ? 9 : 0; return 0; }
    int cuGetErrorName(int status, const char** name) { (void)status; *name = "CUDA_ERROR_NOT_INITIALIZED"; return 0; }`,
  "libcudart.so.13": `
    #include <stdlib.h>
    #include <string.h>
    typedef void* stream;
    int cudaSetDevice(int card) { (void)card; return 0; }
    int cudaMalloc(void** memory, size_t bytes) { *memory = malloc(bytes); return *memory ? 0 : 2; }
    int cudaFree(void* memory) { free(memory); return 0; }
    int cudaMemsetAsync(void* to, int value, size_t bytes, stream s) { (void)s; memset(to, value, bytes); return 0; }
    int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int kind, stream s) { (void)kind; (void)s; memcpy(to, from, bytes); return 0; }
    int cudaMemcpy2DAsync(void* to, size_t tp, const void* from, size_t fp, size_t w, size_t h, int k, stream s)
      { (void)k; (void)s; for (size_t i = 0; i < h; i++) memcpy((char*)to + i * tp, (const char*)from + i * fp, w); return 0; }
    int cudaStreamCreateWithFlags(stream* s, unsigned flags) { (void)flags; *s = malloc(1); return 0; }
    int cudaStreamDestroy(stream s) { free(s); return 0; }
    int cudaStreamSynchronize(stream s) { (void)s; return 0; }
    int cudaStreamBeginCapture(stream s, int mode) { (void)s; (void)mode; return 900; }
    int cudaStreamEndCapture(stream s, void** graph) { (void)s; (void)graph; return 900; }
    int cudaGraphGetNodes(void* graph, void** nodes, size_t* count) { (void)graph; (void)nodes; (void)count; return 900; }
    int cudaGraphNodeGetType(void* node, int* type) { (void)node; (void)type; return 900; }
    int cudaGraphDestroy(void* graph) { (void)graph; return 900; }
    int cudaGetLastError(void) { return 0; }
    const char* cudaGetErrorName(int status) { return status == 2 ? "cudaErrorMemoryAllocation" : "cudaErrorUnknown"; }
    const char* cudaGetErrorString(int status) { (void)status; return "in words"; }
    int cudaMemGetInfo(size_t* free, size_t* total) { const char* f = getenv("STAND_IN_FREE"); *free = f ? strtoull(f, 0, 10) : (size_t)60 << 30; *total = (size_t)64 << 30; return 0; }
    int cudaHostAlloc(void** memory, size_t bytes, unsigned flags) { (void)flags; *memory = malloc(bytes); return 0; }
    int cudaFreeHost(void* memory) { free(memory); return 0; }`,
  "libcublasLt.so.13": "int cublas_lt;",
  "libcublas.so.13": "int cublas;",
  "libcurand.so.10": "int curand;",
  "libonnxruntime_providers_shared.so": "int shared;",
  "libonnxruntime_providers_cuda.so": `const char provider_release[] = "1.29.0";`,
  // Its sampler gives the best token, and 1000 for each draw of its row and each unit of its seed.
  "liblayerweave_ops_cuda.so": `
    #include <string.h>
    #include "layerweave_cuda.h"
    void* RegisterCustomOps(void* options, const void* base) { (void)options; (void)base; return 0; }
    int64_t layerweave_sample_workspace(int64_t batch, int64_t vocabulary) { return batch * vocabulary * 8; }
    void layerweave_seed_sampler(uint64_t seed, uint32_t* state) { state[0] = (uint32_t)seed; state[1] = (uint32_t)(seed >> 32); state[2] = state[3] = 0; }
    const char* layerweave_sample(int64_t batch, int64_t vocabulary, const float* logits, int64_t stride, struct LayerweaveSampleRow* rows, int64_t* tokens, void* workspace, void* stream) {
      if (!workspace || !stream || rows->temperature < 0) return "what CUDA says";
      for (int64_t b = 0; b < batch; b++, logits += stride) {
        tokens[b] = 0;
        for (int64_t i = 0; i < vocabulary; i++) if (logits[i] > logits[tokens[b]]) tokens[b] = i;
        if (rows[b].temperature == 0) continue;
        memset((char*)workspace + b * vocabulary * 8, 1, vocabulary * 8);
        tokens[b] += 1000 * (int64_t)++rows[b].state[0] + (rows[b].state[1] == 1 << 20 ? 100 : 0) + rows[b].top_k;
      }
      return 0;
    }`,
};
type StandIn = keyof typeof standIns;

const libraries = new Map<string, string>();

/** The file of a library made from C, once. */
async function built(library: StandIn, source: string): Promise<string> {
  const known = libraries.get(source);
  if (known !== undefined) return known;
  const file = join(out, `built-${libraries.size}`);
  libraries.set(source, file);
  await writeFile(`${file}.c`, source);
  execFileSync("cc", ["-shared", "-fPIC", "-I", join(root, "kernels", "include"), `-Wl,-soname,${library}`, "-o", file, `${file}.c`]);
  return file;
}

/** A folder with some of the stand-ins, ONNX Runtime and the addon, and the environment in which a process takes them. */
async function machine(name: string, libraries: readonly StandIn[], sources: Partial<Record<StandIn, string>> = {}): Promise<Readonly<Record<string, string>>> {
  const runtime = loadNativeRuntime();
  if ("reason" in runtime) throw new Error(runtime.reason);
  const folder = join(out, name);
  await mkdir(folder);
  await symlink(runtime.library, join(folder, "libonnxruntime.so.1"));
  await symlink(join(dirname(runtime.cudaKernels), "layerweave_native.node"), join(folder, "layerweave_native.node"));
  for (const library of libraries) await symlink(await built(library, sources[library] ?? standIns[library]), join(folder, library));
  return { LD_LIBRARY_PATH: folder, LAYERWEAVE_ORT_DIR: folder, LAYERWEAVE_NATIVE_DIR: folder, STAND_IN_CARDS: "2" };
}

const all = Object.keys(standIns) as StandIn[];
const without = (...left: StandIn[]): StandIn[] => all.filter((library) => !left.includes(library));

describe.skipIf(noNative !== undefined)("what is missing is named, with the fix", () => {
  // Where CUDA is installed its libraries would be found beside those that a test leaves out.
  test.each<[string, StandIn[], Readonly<Record<string, string>>, string, RegExp]>([
    ["no driver", without("libcuda.so.1"), {}, "runtime/cuda-no-driver", /libcuda\.so\.1/],
    ["a driver that does not start", all, { STAND_IN_CARDS: "-1" }, "runtime/cuda-no-driver", /cuInit says CUDA_ERROR_NOT_INITIALIZED/],
    ["no card at all", all, { STAND_IN_CARDS: "0" }, "runtime/cuda-no-device", /the driver offers none/],
    ["not the card", all, { device: "cuda:2" }, "runtime/cuda-no-device", /no card cuda:2; the driver offers cuda:0 \(Stand-in A\), cuda:1 \(Stand-in B\)/],
    ["no cuRAND", without("libcurand.so.10"), {}, "runtime/cuda-no-libraries", /libcurand\.so\.10/],
    ["no provider", without("libonnxruntime_providers_cuda.so"), {}, "runtime/cuda-no-provider", /libonnxruntime_providers_cuda\.so is not in/],
    ["not the provider's other half", without("libonnxruntime_providers_shared.so"), {}, "runtime/cuda-no-provider", /libonnxruntime_providers_shared\.so is not in/],
    ["no kernels", without("liblayerweave_ops_cuda.so"), {}, "runtime/cuda-no-kernels", /liblayerweave_ops_cuda\.so can't be used: it is not there/],
    ["too little memory", all, { STAND_IN_FREE: "1000" }, "plan/over-budget", /more than the budget of 552\.0 MB/],
  ])("%s", async (name, libraries, { device = "cuda:0", ...environment }, code, message) => {
    const folder = JSON.stringify(await folderForCuda());
    const { stdout, stderr } = await runScript(
      `const [problem] = await load(${folder}, { device: "${device}" }).then(() => [{}], (error) => error.diagnostics ?? [{ code: String(error) }]); console.log(JSON.stringify(problem));`,
      { ...(await machine(name, libraries)), ...environment },
    );
    expect(stderr).toBe("");
    expect(JSON.parse(stdout)).toMatchObject({ code, message: expect.stringMatching(message), help: expect.stringMatching(/./) });
  });

  test("a provider of another release, kernels that are none", async () => {
    const folder = JSON.stringify(await folderForCuda());
    const script = `const [problem] = await load(${folder}).then(() => [{}], (error) => error.diagnostics); console.log(JSON.stringify(problem));`;
    const provider = await machine("release", all, { "libonnxruntime_providers_cuda.so": `const char provider_release[] = "1.30.0";` });
    expect(JSON.parse((await runScript(script, provider)).stdout)).toMatchObject({ code: "runtime/cuda-other-provider", message: expect.stringMatching(/is not of release 1\.29\.0/) });
    const kernels = await machine("symbol", all, { "liblayerweave_ops_cuda.so": "int unrelated;" });
    expect(JSON.parse((await runScript(script, kernels)).stdout)).toMatchObject({ code: "runtime/cuda-no-kernels", message: expect.stringMatching(/RegisterCustomOps/) });
    const older = await machine("older", all, { "liblayerweave_ops_cuda.so": "void* RegisterCustomOps(void* options, const void* base) { (void)options; (void)base; return 0; }" });
    expect(JSON.parse((await runScript(script, older)).stdout)).toMatchObject({ code: "runtime/cuda-no-kernels", message: expect.stringMatching(/it lacks layerweave_sample_workspace/) });
  });
});

describe.skipIf(noNative !== undefined)("weights on their way to a card", () => {
  const script = (folder: string): string => `
    const seen = [];
    const [problem] = await load(${JSON.stringify(folder)}, { onProgress: (loaded, total) => seen.push([loaded, total]) }).then(() => [{}], (error) => error.diagnostics);
    console.log(JSON.stringify({ problem, seen }));`;

  test("are read whole and reported; then it is ONNX Runtime that finds no provider in the stand-in", async () => {
    const folder = await folderForCuda();
    const { weights } = JSON.parse(await readFile(join(folder, "manifest.json"), "utf8")) as Manifest;
    const bytes = weights.reduce((n, w) => n + w.bytes, 0);
    const { stdout, stderr, status } = await runScript(script(folder), await machine("weights", all));
    expect({ stderr, status }).toEqual({ stderr: "", status: 0 });
    const { problem, seen } = JSON.parse(stdout) as { problem: { code: string; message: string }; seen: [number, number][] };
    expect(problem.code).toBe("runtime/load-failed");
    expect(problem.message).toMatch(/provider/i);
    expect(seen.at(-1)).toEqual([bytes, bytes]);
    expect(seen.map(([loaded]) => loaded)).toEqual(seen.map(([loaded]) => loaded).toSorted((a, b) => a - b));
  });
});

const native = join(root, "runtime", "native");
const ortHeaders = (): string => execFileSync(process.execPath, [join(root, "scripts", "fetch-ort-headers.mjs")], { encoding: "utf8" }).trim();

test.skipIf(noNative !== undefined)("samplers on a card draw for the rows that are chosen and no others, within their memory", async () => {
  const probe = join(out, "sampler_probe");
  const sources = ["device_sampler", "cuda_device", "cuda_library", "ort_library"].map((name) => join(native, `${name}.cpp`));
  const include = [native, join(root, "kernels", "include"), ortHeaders()].flatMap((folder) => ["-I", folder]);
  execFileSync("c++", ["-std=c++17", "-fsanitize=address", ...include, join(root, "test", "native", "sampler_probe.cc"), ...sources, "-o", probe, "-ldl", "-pthread"]);
  const environment = await machine("sampler", all);
  const folder = environment["LAYERWEAVE_ORT_DIR"] ?? "";
  const said = execFileSync(probe, [join(folder, "libonnxruntime.so.1"), join(folder, "liblayerweave_ops_cuda.so")], { encoding: "utf8", env: { ...process.env, ...environment, ASAN_OPTIONS: "detect_leaks=0" } });
  expect(said.split("\n")).toEqual([
    "0 21041 31002 41103",
    "-9 22041 -9 42103",
    "0 -9 32002 43103",
    "0 23041 33002 44103",
    "-9 -9 2 3",
    // The best token takes no workspace: 16 bytes in place of 4 · 5 · 8.
    `${4 * 5 * 8 - 16} ${4 * 48 + 4 * 8 + 16}`,
    "CUDA failed at choosing tokens (what CUDA says)",
    "",
  ]);
});

test.skipIf(noNative !== undefined)("steps in one call feed what was chosen, and each row leaves on its own", () => {
  const probe = join(out, "decode_probe");
  execFileSync("c++", ["-std=c++17", "-fsanitize=address", "-I", native, "-I", ortHeaders(), join(root, "test", "native", "decode_probe.cc"), join(native, "decode_steps.cpp"), "-o", probe]);
  expect(execFileSync(probe, { encoding: "utf8", env: { ...process.env, ASAN_OPTIONS: "detect_leaks=0" } }).split("\n")).toEqual([
    ...["feed 1 5 3 0", "past 10 20 98 4", "take 1 1 1 0"],
    // Told while the next step runs.
    ...["feed 11 25 101 0", "past 11 21 99 4", "take 1 1 1 0", "told 11 25 101 -2"],
    // 11 + 11 is a stop token, the second row has its two, and the third has no finite logits.
    ...["told 22 46 -1 -2", "end"],
    ...["feed 1", "past 10", "take 1", "feed 11", "past 11", "take 1", "told 11", "told 22", "end"],
    ...["feed 1", "past 10", "take 1", "told 11", "failed"],
    "end",
    "decoding takes B token ids, B past lengths and B limits",
    "",
  ]);
});

describe.skipIf(noNative !== undefined)("16-bit state", () => {
  /** The number of a pattern of 16 bits. */
  const decode = { bfloat16: (bits: number) => new Float32Array(Uint32Array.of(bits << 16).buffer)[0] as number, float16: half };
  function half(bits: number): number {
    const [sign, exponent, mantissa] = [bits & 0x8000 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
    if (exponent === 31) return mantissa ? NaN : sign * Infinity;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + mantissa / 1024) : mantissa * 2 ** -24);
  }
  const patterns = Array.from({ length: 65536 }, (_, bits) => bits);

  async function slot(dtype: "bfloat16" | "float16", length: number) {
    const runtime = loadNativeRuntime();
    if ("reason" in runtime) throw new Error(runtime.reason);
    const folder = await fakeModel();
    const { graph, inputs, outputs } = JSON.parse(await readFile(join(folder, "manifest.json"), "utf8")) as Manifest;
    const options: AddonSessionOptions = {
      library: runtime.library,
      graph: join(folder, graph.file),
      kernels: "",
      copied: [],
      threads: 1,
      vocabSize: 259,
      contextLength: 0,
      inputIds: inputs.inputIds.name,
      pastLengths: inputs.pastLengths.name,
      lengths: inputs.lengths.name,
      logitIndices: inputs.logitIndices.name,
      logits: outputs.logits.name,
      state: [{ past: "p", present: "q", dtype, shape: ["B", length, "S", 2], inPlace: true }],
    };
    const session = await runtime.addon.openSession(options);
    const state = await session.createState(1, 4);
    return { session, state };
  }

  test.each(["bfloat16", "float16"] as const)("%s crosses over and back bit for bit, whatever its bits", async (dtype) => {
    const { session, state } = await slot(dtype, 32768);
    const stored = new Uint8Array(Uint16Array.from(patterns).buffer);
    await session.writeBytes(state, 0, BigInt64Array.of(1n), 0, stored);
    // Any NaN does for one that is compared as bits afterwards.
    const { shape, data } = await session.readState(state, 0, 1);
    expect(shape).toEqual([1, 32768, 1, 2]);
    expect(data).toEqual(Float32Array.from(patterns, decode[dtype]));
    const back = new Uint8Array(stored.length);
    await session.readBytes(state, 0, BigInt64Array.of(1n), 0, back);
    expect(Buffer.from(back).equals(stored)).toBe(true);
    expect((await session.readState(state, 0)).shape).toEqual([1, 32768, 4, 2]);
    await session.close();
  });
});

test.skipIf(noNative !== undefined)("weights that end early are an error and not a wait", async () => {
  const folder = await folderForCuda();
  const path = join(folder, "manifest.json");
  const manifest = JSON.parse(await readFile(path, "utf8")) as Manifest;
  // As if the file shrank after it was checked: a weight that claims more than there is.
  const weights = manifest.weights.map((w, i) => (i === 0 ? { ...w, bytes: w.bytes + 1e6 } : w));
  await writeFile(path, JSON.stringify({ ...manifest, weights }));
  const { stdout } = await runScript(
    `const [problem] = await load(${JSON.stringify(folder)}).then(() => [{}], (error) => error.diagnostics); console.log(JSON.stringify(problem));`,
    await machine("short", all),
  );
  expect(JSON.parse(stdout)).toMatchObject({ code: "runtime/load-failed", message: expect.stringMatching(/ends before its weights do/) });
});
