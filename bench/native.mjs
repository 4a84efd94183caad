// A Jamba layout of 0.96B parameters with random weights: native prefill against the portable graph's, in turns, and native decode
// against the weights' bytes at the rate this machine reads memory. Prints a table; JSON with --json.
//   npm run build && node scripts/build-native.mjs
//   cmake -S kernels/cpu -B build/cpu-kernels -DORT_INCLUDE_DIR=build/ort-include && cmake --build build/cpu-kernels
//   node bench/native.mjs [--quantize int8] [--prompt 512] [--tokens 64] [--rounds 5] [--json]
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { availableParallelism, cpus, loadavg } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { alternate, prompt } from "./models/alternate.mjs";
import { compiled, experts, layouts } from "./models/jamba.mjs";

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
  const chosen = experts.topK / experts.nExperts;
  return manifest.weights.reduce((sum, { name, bytes }) => sum + bytes * (name.startsWith("embedding.") ? 0 : name.includes(".experts.") ? chosen : 1), 0);
}

const readRate = (n) => JSON.parse(execFileSync(join(import.meta.dirname, "..", "build", "cpu-kernels", "op_bench"), ["limits", n], { encoding: "utf8" })).readBytesPerSecond;
const before = loadavg()[0];
// One thread's rate before and after, since other work takes its share of the memory.
const rates = [readRate("1")];
const times = await alternate(sides, prompt(Number(options.prompt)), Number(options.rounds));
rates.push(readRate("1"));
const rows = times.map((time, i) => ({ ...time, threads: sides[i].threads }));
const best = (name, of) => Math.min(...rows.filter((row) => row.name === name).map(of));
const bytes = bytesPerToken();
const roofline = (ms, rate) => (1e3 * bytes) / rate / ms;
const summary = {
  prefillSpeedUp: best("portable", (row) => row.prefillMs) / best("native", (row) => row.prefillMs),
  leastPrefillSpeedUp: best("portable", (row) => row.least.prefillMs) / best("native", (row) => row.least.prefillMs),
  bytesPerToken: bytes,
  readBytesPerSecond: rates,
  decodeOfRoofline: roofline(best("native", (row) => row.decodeMs), Math.max(...rates)),
  leastDecodeOfRoofline: roofline(best("native", (row) => row.least.decodeMs), Math.max(...rates)),
};

if (options.json) console.log(JSON.stringify({ cpu: cpus()[0]?.model, load: [before, loadavg()[0]], ...options, rows, ...summary }, null, 1));
else {
  console.log(`${cpus()[0]?.model}, load ${before.toFixed(1)} to ${loadavg()[0].toFixed(1)}; ${options.quantize}, prompt ${options.prompt}; medians of ${options.rounds} rounds (the best)`);
  console.log("| | threads | prefill ms | decode ms a token |\n| --- | --- | --- | --- |");
  for (const { name, threads: n, prefillMs, decodeMs, least } of rows) console.log(`| ${name} | ${n} | ${prefillMs.toFixed(0)} (${least.prefillMs.toFixed(0)}) | ${decodeMs.toFixed(2)} (${least.decodeMs.toFixed(2)}) |`);
  console.log(`prefill ${summary.prefillSpeedUp.toFixed(2)} times the portable graph's (${summary.leastPrefillSpeedUp.toFixed(2)})`);
  console.log(`decode: ${(bytes / 1e6).toFixed(0)} MB a token, one thread reads ${rates.map((r) => (r / 1e9).toFixed(1)).join(" and ")} GB/s: ${(100 * summary.decodeOfRoofline).toFixed(0)} % of the roofline (${(100 * summary.leastDecodeOfRoofline).toFixed(0)} %)`);
}
