import { createHash } from "node:crypto";
import { appendFile, mkdtemp, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import type { Manifest } from "#dist/core/manifest.js";
import { load } from "#dist/runtime/index.js";
import { codes, rejection } from "./diagnostics.js";
import { fakeModel, removeFakes } from "./fake-model.js";

afterAll(removeFakes);

async function editManifest(folder: string, edit: (manifest: Manifest) => object): Promise<void> {
  const path = join(folder, "manifest.json");
  await writeFile(path, JSON.stringify(edit(JSON.parse(await readFile(path, "utf8")) as Manifest)));
}

describe("load", () => {
  test.each<[string, string, (folder: string) => Promise<void>]>([
    ["no manifest", "manifest/missing", (f) => rm(join(f, "manifest.json"))],
    ["a truncated manifest", "manifest/damaged", (f) => truncate(join(f, "manifest.json"), 300)],
    ["a manifest that lacks a field", "manifest/damaged", (f) => editManifest(f, ({ state: _, ...rest }) => rest)],
    ["a manifest with a path out of the folder", "manifest/damaged", (f) => editManifest(f, (m) => ({ ...m, graph: { ...m.graph, file: "../model.onnx" } }))],
    ["a manifest of another version", "manifest/other-version", (f) => editManifest(f, (m) => ({ ...m, version: 2 }))],
    ["no graph", "manifest/missing-file", (f) => rm(join(f, "model.onnx"))],
    ["no weights file", "manifest/missing-file", (f) => rm(join(f, "weights.safetensors"))],
    ["no tokenizer", "manifest/missing-file", (f) => rm(join(f, "tokenizer.json"))],
    ["a truncated weights file", "manifest/changed-file", (f) => truncate(join(f, "weights.safetensors"), 500)],
    ["a weights file with another header", "manifest/changed-file", async (f) => {
      const path = join(f, "weights.safetensors");
      const bytes = await readFile(path);
      bytes.write("E", bytes.indexOf("embedding"));
      await writeFile(path, bytes);
    }],
    ["an appended graph", "manifest/changed-file", (f) => appendFile(join(f, "model.onnx"), "x")],
    ["a changed graph", "manifest/changed-file", async (f) => {
      const path = join(f, "model.onnx");
      const bytes = await readFile(path);
      bytes[bytes.length - 1] = (bytes.at(-1) ?? 0) ^ 1;
      await writeFile(path, bytes);
    }],
    ["a tokenizer that is not JSON", "runtime/bad-tokenizer", (f) => writeFile(join(f, "tokenizer.json"), "{")],
    ["a tokenizer of another kind", "runtime/bad-tokenizer", (f) => writeFile(join(f, "tokenizer.json"), JSON.stringify({ decoder: { type: "WordPiece" } }))],
    ["a model compiled without weights", "runtime/no-weights", (f) => editManifest(f, (m) => ({ ...m, weights: m.weights.map((w) => ({ ...w, origin: { from: "absent" } })) }))],
    ["state this backend can't carry", "runtime/unsupported-state", (f) => editManifest(f, (m) => ({ ...m, state: m.state.map((s) => ({ ...s, dtype: "bfloat16" })) }))],
  ])("%s is a diagnostic", async (_, code, damage) => {
    const folder = await fakeModel();
    await damage(folder);
    expect(await codes(load(folder))).toEqual([code]);
  });

  test("several missing files are reported at once", async () => {
    const folder = await fakeModel();
    await rm(join(folder, "model.onnx"));
    await rm(join(folder, "weights.safetensors"));
    await rm(join(folder, "tokenizer_config.json"));
    expect(await codes(load(folder))).toEqual(["manifest/missing-file", "manifest/missing-file", "manifest/missing-file"]);
  });

  test("a folder that is not there, an empty one, a file", async () => {
    const empty = await mkdtemp(join(tmpdir(), "layerweave-empty-"));
    expect(await codes(load(empty))).toEqual(["manifest/missing"]);
    await rm(empty, { recursive: true });
    expect(await codes(load(empty))).toEqual(["manifest/missing"]);
    expect(await codes(load(import.meta.filename))).toEqual(["manifest/missing"]);
  });

  test("a graph that ONNX Runtime refuses names the folder, and the thread is gone", async () => {
    const folder = await fakeModel();
    const graph = Buffer.from("no model");
    await writeFile(join(folder, "model.onnx"), graph);
    await editManifest(folder, (m) => ({ ...m, graph: { ...m.graph, bytes: graph.length, sha256: createHash("sha256").update(graph).digest("hex") } }));
    const [problem] = await rejection(load(folder));
    expect(problem).toMatchObject({ code: "runtime/load-failed" });
    expect(problem?.message).toContain(folder);
  });

  test.each([0, 1.5, NaN])("%d threads are refused", async (threads) => {
    expect(await codes(load(await fakeModel(), { threads }))).toEqual(["runtime/bad-option"]);
  });

  test("loading and closing again and again works, and ends every thread", async () => {
    const folder = await fakeModel();
    const before = process.listenerCount("exit");
    for (let i = 0; i < 20; i++) {
      await using model = await load(folder, { threads: 1 });
      await using state = await model.createState();
      await model.forward(state, [[1, 2]]);
    }
    expect(process.listenerCount("exit")).toBe(before);
  });
});
