import { execFileSync } from "node:child_process";
import { copyFile, mkdir, open, readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { checkedLayout, compile } from "layerweave/compiler";
import * as dsl from "layerweave/dsl";
import type { Manifest } from "#dist/core/manifest.js";
import { load } from "#dist/runtime/index.js";
import { loadNativeRuntime } from "#dist/runtime/backends/native-addon.js";
import { rejection } from "../runtime/diagnostics.js";
import { fakeModel, removeFakes } from "../runtime/fake-model.js";
import { noNative } from "../support/backends.js";
import { inRepository, temporaryFolder } from "../support/folders.js";
import { runScript } from "./scripts.js";

const out = await temporaryFolder();
afterAll(removeFakes);

/** A folder with one file in it. */
async function folderWith(name: string, file: string, content: string): Promise<string> {
  const folder = join(out, name);
  await mkdir(folder);
  await writeFile(join(folder, file), content);
  return folder;
}

/** A folder with a shared library made from C. */
async function folderWithLibrary(name: string, file: string, source: string): Promise<string> {
  const folder = await folderWith(name, "source.c", source);
  execFileSync("cc", ["-shared", "-fPIC", `-Wl,-soname,${file}`, "-o", join(folder, file), join(folder, "source.c")]);
  return folder;
}

/** What asking for the native backend by name is refused with, and what `auto` does instead. */
async function refusal(environment: Readonly<Record<string, string>>): Promise<{ code: string; message: string; auto: string; logits: number }> {
  const folder = JSON.stringify(await fakeModel());
  const { status, stdout, stderr } = await runScript(
    `
    const [problem] = await load(${folder}, { backend: "native" }).then(() => [{}], (error) => error.diagnostics);
    const model = await load(${folder});
    const [logits] = await model.forward(await model.createState(), [[1]]);
    console.log(JSON.stringify({ code: problem.code, message: problem.message, auto: model.backend.name + " because " + model.backend.why, logits: logits.length }));
    await model.close();
  `,
    environment,
  );
  expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
  return JSON.parse(stdout) as Awaited<ReturnType<typeof refusal>>;
}

describe.skipIf(noNative !== undefined)("a native runtime that can't be used is refused by name and replaced by auto", () => {
  const library = "libonnxruntime.so.1";
  const otherVersion = `
    static const char* version(void) { return "1.18.0"; }
    static const void* api(unsigned wanted) { return wanted <= 18 ? (const void*)version : 0; }
    static const struct { const void* (*api)(unsigned); const char* (*version)(void); } base = { api, version };
    const void* OrtGetApiBase(void) { return &base; }`;

  test.each<[string, RegExp, () => Promise<Readonly<Record<string, string>>>]>([
    ["a library of another ONNX Runtime", /is ONNX Runtime 1\.18\.0, which does not offer version 29 of the C API/, async () => ({ LAYERWEAVE_ORT_DIR: await folderWithLibrary("other", library, otherVersion) })],
    ["a library that lacks its one symbol", /lacks the symbol OrtGetApiBase/, async () => ({ LAYERWEAVE_ORT_DIR: await folderWithLibrary("symbol", library, "int unrelated;") })],
    ["a library that is none", /libonnxruntime\.so\.1: (file too short|invalid ELF header)/, async () => ({ LAYERWEAVE_ORT_DIR: await folderWith("text", library, "no library") })],
    ["a folder without a library", /holds no libonnxruntime/, async () => ({ LAYERWEAVE_ORT_DIR: await folderWith("empty", "readme", "") })],
    ["an addon that is none", /layerweave_native\.node: (file too short|invalid ELF header)/, async () => ({ LAYERWEAVE_NATIVE_DIR: await folderWith("addon", "layerweave_native.node", "no addon") })],
    ["a folder without an addon", /layerweave_native\.node/, async () => ({ LAYERWEAVE_NATIVE_DIR: await folderWith("none", "readme", "") })],
  ])("%s", async (_, message, environment) => {
    const { code, message: found, auto, logits } = await refusal(await environment());
    expect(code).toBe("runtime/native-unavailable");
    expect(found).toMatch(message);
    expect(auto).toMatch(/^portable because the native runtime can't be used: /);
    expect(auto).toMatch(message);
    expect(logits).toBe(259);
  });

  test.each([
    ["lacks its one symbol", "int unrelated;", /RegisterCustomOps/],
    ["refuses", "static const char message[] = \"\"; void* RegisterCustomOps(void* options, const void* base) { (void)options; (void)base; return 0; }", undefined],
  ])("kernels: a library that %s", async (name, source, reason) => {
    const folder = await folderWithLibrary(`kernels-${name}`, "liblayerweave_ops.so", source);
    await copyFile(inRepository("build", "native", "layerweave_native.node"), join(folder, "layerweave_native.node"));
    const model = JSON.stringify(await fakeModel());
    const { stdout } = await runScript(`const model = await load(${model}, { backend: "native" }); console.log(JSON.stringify(model.backend)); await model.close();`, { LAYERWEAVE_NATIVE_DIR: folder });
    const backend = JSON.parse(stdout) as { name: string; ops: string; why: string };
    expect(backend).toMatchObject({ name: "native", ops: reason ? "function-bodies" : "kernels" });
    if (reason) expect(backend.why).toMatch(reason);
  });
});

describe.skipIf(noNative !== undefined)("the native backend", () => {
  test("says what runs a model, and why", async () => {
    const runtime = loadNativeRuntime();
    if ("reason" in runtime) throw new Error(runtime.reason);
    await using model = await load(await fakeModel(), { backend: "native" });
    expect(model.backend).toMatchObject({ name: "native", ops: "path" in runtime.kernels ? "kernels" : "function-bodies" });
    expect(model.backend.why).toMatch(/^it was asked for, with ONNX Runtime 1\.29\.0/);
    await using portable = await load(await fakeModel(), { backend: "portable" });
    expect(portable.backend).toEqual({ name: "portable", ops: "function-bodies", why: "it was asked for" });
    expect((await portable.memory()).measured).toBeNull();
  });

  test("a state too large for memory is refused, and the model goes on", async () => {
    await using model = await load(await fakeModel(), { backend: "native" });
    expect(await rejection(model.session.createState(2 ** 40, 256))).toMatchObject([{ code: "runtime/out-of-memory", message: expect.stringMatching(/no memory for a state buffer of \d+ bytes/) }]);
    expect(await rejection(model.session.createState(2 ** 60, 256))).toMatchObject([{ code: "runtime/state-failed", message: expect.stringMatching(/a state buffer would be too large/) }]);
    await using state = await model.createState();
    expect((await model.forward(state, [[1, 2]]))[0]).toHaveLength(259);
  });

  test("weights that kernels read as they are stored stay where the file is mapped", async () => {
    const folder = join(out, "experts");
    const block = dsl.block({ layers: 1, mixer: dsl.mamba(), channelMixer: dsl.moe({ nExperts: 16, topK: 2, dFf: 1024 }) });
    const spec = dsl.model({ name: "experts", vocabSize: 64, dModel: 128, norm: dsl.rmsNorm({ eps: 1e-6 }), blocks: 1, block });
    await compile(checkedLayout(spec), { out: folder, weights: { from: "random", seed: 1 } });
    await using loaded = await load(folder, { backend: "native" });
    const experts = loaded.manifest.weights.filter(({ kind }) => kind === "experts").reduce((n, { bytes }) => n + bytes, 0);
    await using state = await loaded.createState();
    await loaded.forward(state, [[1, 2, 3]]);
    const memory = await loaded.memory();
    expect(experts).toBeGreaterThan(20e6);
    if (loaded.backend.ops === "kernels") expect(memory.measured?.peak.arena).toBeLessThan(experts / 4);
  });

  test("int8 weights lie in memory or in their mapped file, as asked: the plan and the logits are the same", async () => {
    const folder = join(out, "places");
    const block = dsl.block({ layers: 1, mixer: dsl.mamba(), channelMixer: dsl.moe({ nExperts: 16, topK: 2, dFf: 1024 }) });
    const spec = dsl.model({ name: "places", vocabSize: 64, dModel: 128, norm: dsl.rmsNorm({ eps: 1e-6 }), blocks: 1, block });
    await compile(checkedLayout(spec), { out: folder, weights: { from: "random", seed: 1 }, quantize: "int8" });
    const seen = [];
    for (const weights of ["copied", "mapped"] as const) {
      await using loaded = await load(folder, { backend: "native", weights });
      const int8 = loaded.manifest.weights.filter(({ dtype }) => dtype === "int8").reduce((n, { bytes }) => n + bytes, 0);
      await using state = await loaded.createState();
      const [logits] = await loaded.forward(state, [[1, 2, 3]]);
      const { planned, measured } = await loaded.memory();
      seen.push({ planned, logits, arena: measured?.peak.arena });
      if (loaded.backend.ops !== "kernels" || process.platform !== "linux") continue;
      const mapped = (await readFile("/proc/self/maps", "utf8")).matchAll(new RegExp(`^(\\w+)-(\\w+) .*${folder}/weights`, "gm"));
      const bytes = [...mapped].reduce((n, [, from, to]) => n + Number(`0x${to}`) - Number(`0x${from}`), 0);
      if (weights === "mapped") expect(bytes).toBeGreaterThanOrEqual(int8);
      else expect(bytes).toBeLessThan(int8 / 4);
    }
    expect(seen[1]).toEqual(seen[0]);
    expect(await rejection(load(folder, { weights: "elsewhere" as "mapped" }))).toMatchObject([{ code: "runtime/bad-option", values: { option: "weights" } }]);
  });

  test.each(["copied", "mapped"] as const)("a weights file that was cut short is refused before it is %s", async (weights) => {
    const folder = await fakeModel();
    await truncate(join(folder, "weights.safetensors"), 500);
    expect(await rejection(load(folder, { backend: "native", weights }))).toMatchObject([{ code: "manifest/changed-file", values: { file: "weights.safetensors" } }]);
  });

  test("counts the bytes of states: two buffers of recurrent state, one of a KV cache, shared by snapshots until they part", async () => {
    await using model = await load(await fakeModel(), { backend: "native", context: 256 });
    const measured = async (): Promise<number> => (await model.memory()).measured?.now.state ?? NaN;
    expect(await measured()).toBe(0);
    const slots = model.manifest.state.map(({ shape, growth }) => ({ growth, bytes: shape.reduce<number>((n, d) => n * (d === "B" ? 2 : d === "S" ? 256 : Number(d)), 4) }));
    const bytes = (growth: string): number => slots.filter((slot) => slot.growth === growth).reduce((n, slot) => n + slot.bytes, 0);
    const state = await model.createState({ batch: 2 });
    expect(await measured()).toBe(bytes("per-token") + bytes("constant"));
    await model.forward(state, [[1, 2], [3]]);
    expect(await measured()).toBe(bytes("per-token") + 2 * bytes("constant"));
    const snapshot = await state.snapshot();
    expect(await measured()).toBe(bytes("per-token") + 2 * bytes("constant"));
    await model.forward(state, [[1], [3]]);
    const parted = await measured();
    expect(parted).toBeGreaterThan(2 * bytes("per-token") + bytes("constant"));
    expect(parted).toBeLessThanOrEqual(2 * bytes("per-token") + 3 * bytes("constant"));
    await snapshot[Symbol.asyncDispose]();
    await state[Symbol.asyncDispose]();
    expect(await measured()).toBe(0);
    const memory = await model.memory();
    expect(memory.measured?.peak.state).toBe(parted);
    expect(memory.measured?.peak.arena).toBeGreaterThan(0);
  });

  test("a prefill that is aborted leaves the chunks it fed, and goes on as if nothing had happened", async () => {
    await using model = await load(await fakeModel({ ballast: 600 }), { backend: "native" });
    const ids = Array.from({ length: 48 }, (_, i) => (i * 7) % 250);
    await using whole = await model.createState();
    const [expected] = await model.prefill(whole, [ids], { chunk: 4 });
    await using state = await model.createState();
    const controller = new AbortController();
    const aborted = expect(model.prefill(state, [ids], { chunk: 4, signal: controller.signal })).rejects.toMatchObject({ name: "AbortError" });
    while ((state.lengths[0] ?? 0) < 8) await new Promise(setImmediate);
    controller.abort();
    await aborted;
    // The chunk under way when the signal fired still ends.
    await using snapshot = await state.snapshot();
    const fed = snapshot.lengths[0] ?? NaN;
    expect(fed % 4).toBe(0);
    expect(fed).toBeLessThan(48);
    const [logits] = await model.prefill(state, [ids.slice(fed)], { chunk: 4 });
    expect(logits).toEqual(expected);
  });

  test("a weight that was damaged where no header says so is found in the logits, and other tokens go on", async () => {
    const folder = await fakeModel();
    const { weights } = JSON.parse(await readFile(join(folder, "manifest.json"), "utf8")) as Manifest;
    const embedding = weights.find(({ name }) => name.includes("embedding"));
    if (!embedding) throw new Error("the model has no embedding");
    const file = await open(join(folder, embedding.file), "r+");
    await file.write(Buffer.from(Float32Array.of(Number.NaN).buffer), 0, 4, embedding.offset + 7 * (embedding.bytes / (embedding.shape[0] as number)));
    await file.close();
    await using model = await load(folder, { backend: "native" });
    const generated = async (prompt: readonly number[]) => {
      const tokens: number[] = [];
      for await (const { tokenId } of model.generate(prompt, { maxTokens: 3, stopTokenIds: [] })) tokens.push(tokenId);
      return tokens.length;
    };
    expect(await rejection(generated([5, 7]))).toMatchObject([{ code: "runtime/not-finite" }]);
    expect(await generated([5, 6])).toBe(3);
  });
});
