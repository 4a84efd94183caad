// Run by itself, before the other tests, since it measures time.
// What compiling costs: the graph of a 52B model in seconds, and a checkpoint the same whether it is small or large.
import { spawnSync } from "node:child_process";
import { cpSync, openSync, readFileSync, readSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { inRepository, temporaryFolder } from "../support/folders.js";

const out = await temporaryFolder();

function layerweave(...args: string[]): { seconds: number; peakBytes: number; stderr: string; status: number | null } {
  const before = performance.now();
  const { status, stderr } = spawnSync(process.execPath, ["--import", inRepository("test/support/report-memory.mjs"), inRepository("dist/cli/main.js"), ...args], { encoding: "utf8" });
  return { seconds: (performance.now() - before) / 1000, peakBytes: Number(/peak memory (\d+)/.exec(stderr)?.[1]), stderr, status };
}

// Seconds differ from machine to machine (bench/compile.mjs prints them), so they are held against another command's in the same run.
test("jamba-v0.1 without weights: little more than checking it, below 1 GB, 5 MB of graph", () => {
  const folder = join(out, "jamba");
  const layout = inRepository("examples/jamba-v0.1.ts");
  const runs = [1, 2, 3].map(() => ({ check: layerweave("check", layout), compile: layerweave("compile", layout, "-o", folder) }));
  expect(runs.map((run) => [run.check.status, run.compile.status])).toEqual([[0, 0], [0, 0], [0, 0]]);
  const fastest = (command: "check" | "compile") => Math.min(...runs.map((run) => run[command].seconds));
  expect(fastest("compile")).toBeLessThan(2.5 * fastest("check"));
  expect(Math.max(...runs.map((run) => run.compile.peakBytes))).toBeLessThan(1e9);
  expect(statSync(join(folder, "model.onnx")).size).toBeLessThan(5e6);
});

/** A llama checkpoint of the given width whose tensors are holes in a sparse file. */
function sparseCheckpoint(folder: string, hidden: number): number {
  cpSync(inRepository("test/fixtures/hf/llama"), folder, { recursive: true });
  const config = JSON.parse(readFileSync(join(folder, "config.json"), "utf8")) as Record<string, unknown>;
  const scaled = (extent: number) => (extent === 320 ? extent : (extent / 64) * hidden);
  writeFileSync(
    join(folder, "config.json"),
    JSON.stringify({ ...config, hidden_size: hidden, intermediate_size: scaled(112), head_dim: scaled(16) }),
  );
  const path = join(folder, "model.safetensors");
  const file = openSync(path, "r");
  const length = Buffer.alloc(8);
  readSync(file, length, 0, 8, 0);
  const header = Buffer.alloc(Number(length.readBigUInt64LE()));
  readSync(file, header, 0, header.length, 8);
  const tensors = JSON.parse(header.toString()) as Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>;
  let at = 0;
  for (const [name, tensor] of Object.entries(tensors)) {
    if (name === "__metadata__") continue;
    tensor.shape = tensor.shape.map(scaled);
    tensor.data_offsets = [at, (at += tensor.shape.reduce((a, b) => a * b, 4))];
  }
  const text = Buffer.from(JSON.stringify(tensors));
  length.writeBigUInt64LE(BigInt(text.length));
  writeFileSync(path, Buffer.concat([length, text]));
  truncateSync(path, 8 + text.length + at);
  return at;
}

test("a checkpoint of 20 GB costs what one of 20 MB costs", () => {
  const [small, large] = [join(out, "small"), join(out, "large")];
  expect(sparseCheckpoint(small, 384)).toBeLessThan(30e6);
  expect(sparseCheckpoint(large, 14_336)).toBeGreaterThan(18e9);
  const cost = (folder: string) => {
    const runs = [1, 2, 3].map(() => layerweave("compile", folder, "-o", `${folder}-compiled`));
    expect(runs.map((run) => [run.status, run.status === 0 ? "" : run.stderr])).toEqual([[0, ""], [0, ""], [0, ""]]);
    return { seconds: Math.min(...runs.map((run) => run.seconds)), peakBytes: Math.min(...runs.map((run) => run.peakBytes)) };
  };
  const [cheap, dear] = [cost(small), cost(large)];
  expect(statSync(join(`${large}-compiled`, "weights", "model.safetensors")).ino).toBe(statSync(join(large, "model.safetensors")).ino);
  expect(dear.seconds).toBeLessThan(cheap.seconds * 2 + 0.5);
  expect(dear.peakBytes).toBeLessThan(cheap.peakBytes * 1.5);
});
