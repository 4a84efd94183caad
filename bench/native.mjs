// Jamba in little, 1.0B parameters with random weights: native prefill against the portable graph's, in turns, and native decode
// against the weights' bytes at the rates at which as many threads copy and read memory. Prints a table; JSON with --json.
//   npm run build && node scripts/build-native.mjs
//   cmake -S kernels/cpu -B build/cpu-kernels -DORT_INCLUDE_DIR=build/ort-include && cmake --build build/cpu-kernels
//   node bench/native.mjs [--quantize int8] [--prompt 512] [--tokens 64] [--rounds 5] [--json]
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { availableParallelism, cpus, loadavg } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { alternate, median, prompt } from "./models/alternate.mjs";
import { compiled, layouts, topK } from "./models/jamba.mjs";

const { values: options } = parseArgs({
  options: { quantize: { type: "string", default: "int8" }, prompt: { type: "string", default: "512" }, tokens: { type: "string", default: "64" }, rounds: { type: "string", default: "5" }, json: { type: "boolean", default: false } },
});
const folder = await compiled(layouts.large, options.quantize);
const script = join(import.meta.dirname, "models", "generate.mjs");
const threads = [...new Set([1, availableParallelism()])];
const sides = ["native", "portable"].flatMap((backend) => threads.map((n) => ({ name: backend, threads: n, script, args: [folder, backend, n], tokens: backend === "native" ? Number(options.tokens) : 1 })));

/** Bytes of weights that one token reads: all of them but the embedding's other rows and the experts not chosen. */
function bytesPerToken() {
  const manifest = JSON.parse(readFileSync(join(folder, "manifest.json"), "utf8"));
  const experts = new Set(manifest.weights.flatMap(({ name }) => /\.experts\.(\d+)\./.exec(name)?.[1] ?? []));
  const chosen = topK / experts.size;
  return manifest.weights.reduce((sum, { name, bytes }) => sum + bytes * (name.startsWith("embedding.") ? 0 : name.includes(".experts.") ? chosen : 1), 0);
}

const limits = (n) => JSON.parse(execFileSync(join(import.meta.dirname, "..", "build", "cpu-kernels", "op_bench"), ["limits", String(n)], { encoding: "utf8" }));
const load = [loadavg()[0]];
// In each round, since other work takes its share of the memory.
const rates = threads.map(() => []);
const times = await alternate(sides, prompt(Number(options.prompt)), Number(options.rounds), () => threads.forEach((n, i) => rates[i].push(limits(n))));
load.push(loadavg()[0]);
const rows = times.map((time, i) => ({ ...time, threads: sides[i].threads }));
const best = (name, of) => Math.min(...rows.filter((row) => row.name === name).map(of));
const bytes = bytesPerToken();
const decode = threads.map((n, i) => {
  const row = rows.find((one) => one.name === "native" && one.threads === n);
  const [copies, reads] = [rates[i].map((r) => r.copyBytesPerSecond), rates[i].map((r) => r.readBytesPerSecond)];
  const [copy, read] = [median(copies), median(reads)];
  const [reached, most] = [(1e3 * bytes) / row.decodeMs, (1e3 * bytes) / row.least.decodeMs];
  return { threads: n, copyBytesPerSecond: copy, readBytesPerSecond: read, bytesPerSecond: reached, ofCopy: reached / copy, ofRead: reached / read, mostOfCopy: most / Math.max(...copies), mostOfRead: most / Math.max(...reads) };
});
const summary = {
  prefillSpeedUp: best("portable", (row) => row.prefillMs) / best("native", (row) => row.prefillMs),
  leastPrefillSpeedUp: best("portable", (row) => row.least.prefillMs) / best("native", (row) => row.least.prefillMs),
  bytesPerToken: bytes,
  decode,
};

if (options.json) console.log(JSON.stringify({ cpu: cpus()[0]?.model, load, ...options, rows, ...summary }, null, 1));
else {
  console.log(`${cpus()[0]?.model}, load ${load.map((l) => l.toFixed(1)).join(" to ")}; ${options.quantize}, prompt ${options.prompt}; medians of ${options.rounds} rounds (the best)`);
  console.log("| | threads | prefill ms | decode ms a token |\n| --- | --- | --- | --- |");
  for (const { name, threads: n, prefillMs, decodeMs, least } of rows) console.log(`| ${name} | ${n} | ${prefillMs.toFixed(0)} (${least.prefillMs.toFixed(0)}) | ${decodeMs.toFixed(2)} (${least.decodeMs.toFixed(2)}) |`);
  console.log(`prefill ${summary.prefillSpeedUp.toFixed(2)} times the portable graph's (${summary.leastPrefillSpeedUp.toFixed(2)})`);
  const gb = (rate) => (rate / 1e9).toFixed(1);
  const percent = (share) => `${(100 * share).toFixed(0)} %`;
  console.log(`decode: ${(bytes / 1e6).toFixed(0)} MB of weights a token\n| threads | GB/s | copy, read + written | of that (the best of the best) | read | of that |\n| --- | --- | --- | --- | --- | --- |`);
  for (const one of decode) console.log(`| ${one.threads} | ${gb(one.bytesPerSecond)} | ${gb(one.copyBytesPerSecond)} | ${percent(one.ofCopy)} (${percent(one.mostOfCopy)}) | ${gb(one.readBytesPerSecond)} | ${percent(one.ofRead)} (${percent(one.mostOfRead)}) |`);
}
