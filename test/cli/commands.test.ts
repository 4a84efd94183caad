// Each command, as a user types it.
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import type { Manifest } from "#dist/core/manifest.js";
import { example, type Finished, fixture, smallLayout, Workplace } from "./cli.js";

const place = await Workplace.create({ "small.ts": smallLayout });
const json = <T>({ stdout, stderr, code }: Finished): T => {
  if (code !== 0 && code !== 5) throw new Error(`exit code ${code}: ${stderr}`);
  const value = JSON.parse(stdout) as T & { schemaVersion: number };
  expect(value.schemaVersion).toBe(1);
  return value;
};
const manifestOf = (folder: string): Manifest => JSON.parse(readFileSync(place.path(folder, "manifest.json"), "utf8")) as Manifest;

test("inspect: Jamba's published parameter counts, and the state of one sequence", () => {
  const { stdout, stderr, code } = place.run(["inspect", example("jamba-v0.1.ts")]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  expect(stdout).toContain("these 8 layers, 4 times over:\n");
  expect(stdout).toMatch(/^4 +attention 32 heads × 128, 8 KV heads, no positions +mlp dFf 14336/m);
  expect(stdout).toMatch(/^all +51,570,323,328 +12,110,311,296$/m);
  // 4 attention layers · 2 · 8 heads · 128 · 4 bytes; 28 Mamba layers · 8192 · (3 or 16) · 4 bytes.
  expect(stdout).toMatch(/^KV cache, per token +32\.0 KiB$/m);
  expect(stdout).toMatch(/^conv state +2\.63 MiB$/m);
  expect(stdout).toMatch(/^SSM state +14\.0 MiB$/m);
});

test("inspect --json of a checkpoint", () => {
  const found = json<{ kind: string; parameters: { total: number }; state: object; layers: object[] }>(place.run(["inspect", fixture("jamba-block"), "--json"]));
  expect(found).toMatchObject({
    kind: "checkpoint",
    parameters: { total: 721_368, active: 549_336 },
    state: { dtype: "float32", kvCacheBytesPerToken: 2 * 2 * 16 * 4, convStateBytes: 7 * 128 * 3 * 4, ssmStateBytes: 7 * 128 * 16 * 4 },
  });
  expect(found.layers).toHaveLength(8);
});

test("check of a checkpoint covers its tensors", () => {
  const { stdout, code } = place.run(["check", fixture("llama")]);
  expect(code).toBe(0);
  expect(stdout).toMatch(/30 tensors in place\n$/);
});

test("import, compile, verify: the imported file compiles to the graph of the checkpoint", () => {
  const { stdout } = place.run(["import", fixture("jamba-block")]);
  expect(stdout).toContain('from "layerweave";');
  expect(place.run(["import", fixture("jamba-block"), "-o", "imported.ts"])).toEqual({ code: 0, stdout: "", stderr: "Wrote imported.ts.\n" });
  expect(readFileSync(place.path("imported.ts"), "utf8")).toBe(stdout);

  const direct = place.run(["compile", fixture("jamba-block"), "-o", "direct"]);
  expect(direct).toMatchObject({ code: 0, stderr: "" });
  expect(direct.stdout).toContain("weights/model.safetensors");
  const { graph } = json<{ graph: Manifest["graph"] }>(place.run(["compile", "imported.ts", "--weights", fixture("jamba-block"), "-o", "by-file", "--json"]));
  expect(graph.sha256).toBe(manifestOf("direct").graph.sha256);
  expect(manifestOf("by-file").origins["/layers.4/attention/q_proj"]).toMatchObject({ path: "layers[4].mixer", at: { file: "imported.ts" } });

  const reference = ["--reference", fixture("jamba-block", "reference.safetensors")];
  const table = place.run(["verify", "by-file", ...reference]);
  expect(table.code).toBe(0);
  expect(table.stdout).toMatch(/^greedy tokens +equal +ok$/m);
  const strict = place.run(["verify", "by-file", ...reference, "--tolerance", "0", "--json"]);
  expect(strict.code).toBe(5);
  expect(json(strict)).toMatchObject({ passed: false, tolerance: 0, generatedIdsMatch: true, splits: { "1": expect.any(Number), "5": expect.any(Number), "16": expect.any(Number) } });
});

test("compile: IR on request, and a compiled folder as a source", () => {
  const compiled = place.run(["compile", "small.ts", "-o", "planned", "--print-ir-after", "build-blocks"]);
  expect(compiled.code).toBe(0);
  expect(compiled.stdout).toMatch(/^model "small"/);
  expect(compiled.stderr).toContain("No weights: only the graph and the manifest are written");
  expect(place.entries("planned")).toEqual(["layout.json", "manifest.json", "model.onnx"]);

  expect(json(place.run(["compile", "planned", "-o", "again", "--random", "7", "--dtype", "bfloat16", "--print-ir-after", "all", "--json"]))).toMatchObject({
    model: { name: "small", layout: manifestOf("planned").model.layout },
    ir: { "resolve-layout": expect.any(String), "attach-bodies": expect.any(String) },
    files: [{ file: "weights.safetensors", from: "written" }],
  });
  // Without a tokenizer a model is spoken to in token ids.
  const ids = place.run(["run", "again", "--token-ids", "1,2,3", "-n", "4"]);
  expect(ids.code).toBe(0);
  expect(ids.stdout).toMatch(/^\d+( \d+){3}\n$/);
});

test("run: text, standard input, JSON, stop strings", () => {
  expect(place.run(["compile", example("tiny-jamba"), "-o", "tiny"]).code).toBe(0);
  const text = place.run(["run", "tiny", "--prompt", "In the beginning", "-n", "12"]);
  expect(text.code).toBe(0);
  expect(text.stdout).toMatch(/^ .{8,}\n$/);
  expect(text.stderr).toMatch(/^prompt \d+ tokens at [\d.]+ tokens\/s, decode 12 tokens at [\d.]+ tokens\/s \(length\), peak memory \d+ MiB, seed \d+, (native|portable) backend\nmodel memory: .* planned.*\n$/);

  const piped = json<{ text: string; tokenIds: number[]; peakMemoryBytes: number }>(place.run(["run", "tiny", "-n", "12", "--json"], { input: "In the beginning\n" }));
  expect(`${piped.text}\n`).toBe(text.stdout);
  expect(piped.tokenIds).toHaveLength(12);
  expect(piped.peakMemoryBytes).toBeGreaterThan(2 ** 20);
  expect(piped).toHaveProperty("memory.planned.total", expect.any(Number));

  const stop = piped.text.slice(6, 9);
  const stopped = json(place.run(["run", "tiny", "--prompt", "-", "-n", "12", "--stop", stop, "--json"], { input: "In the beginning" }));
  expect(stopped).toMatchObject({ text: piped.text.slice(0, piped.text.indexOf(stop)), stopReason: "stop-string" });
});

test("explain", () => {
  const { stdout, code } = place.run(["explain", "dsl/top-k-above-experts"]);
  expect({ code, stdout }).toEqual({ code: 0, stdout: "error dsl/top-k-above-experts\n\nEach token is sent to topK different experts.\n" });
  const { diagnostics } = json<{ diagnostics: { code: string; explain: string }[] }>(place.run(["explain", "--json"]));
  const areas = new Set(diagnostics.map((d) => d.code.split("/")[0]));
  expect([...areas]).toEqual(expect.arrayContaining(["cli", "compile", "dsl", "import", "layout", "manifest", "runtime", "weights"]));
  expect(diagnostics.every((d) => d.explain.length > 20)).toBe(true);
});

test("doctor compiles and runs a model", () => {
  const { ok, findings } = json<{ ok: boolean; findings: { name: string; ok: boolean }[] }>(place.run(["doctor", "--json"]));
  expect(findings.filter((finding) => !finding.ok)).toEqual([]);
  expect(ok).toBe(true);
  expect(findings.map(({ name }) => name)).toEqual(expect.arrayContaining(["node", "onnxruntime-node", "compiling", "running", "native kernels"]));
  place.entries();
});

test("help and version", () => {
  const { version } = JSON.parse(readFileSync(example("..", "package.json"), "utf8")) as { version: string };
  expect(place.run(["--version"])).toEqual({ code: 0, stdout: `${version}\n`, stderr: "" });
  const help = place.run(["compile", "--help"]);
  expect(help).toMatchObject({ code: 0, stderr: "" });
  expect(help.stdout).toContain("--print-ir-after <pass>");
});
