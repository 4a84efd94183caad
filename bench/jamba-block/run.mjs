// One Jamba-v0.1 block with random int8 weights on a card: compiled into a folder, then measured with `layerweave bench`, a
// process for each case.
//   npm run build && node bench/jamba-block/run.mjs <folder for the model> <result.json> [commit]
// The folder takes 13.4 GB; in /dev/shm, or read before, loading it is from memory.
import { execFileSync } from "node:child_process";
import { readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { checkedLayout, compile, targetNamed } from "layerweave/compiler";
import layout from "./layout.mjs";

const [folder, file, commit = "unknown"] = process.argv.slice(2);
if (folder === undefined || file === undefined) throw new Error("usage: node bench/jamba-block/run.mjs <folder for the model> <result.json> [commit]");
const main = join(import.meta.dirname, "..", "..", "dist", "cli", "main.js");

/** What llama.cpp does with this block on this kind of card, Q8_0. */
const llamaCpp = { release: "0.5.0", decodeTokensPerSecond: 548, prefill2048TokensPerSecond: 19_983, prefill8192TokensPerSecond: 24_560 };

const cases = [
  { name: "batch 1, graphs", options: ["--prompt", "2048", "--tokens", "256"] },
  { name: "batch 1, no graphs", options: ["--prompt", "2048", "--tokens", "256", "--no-cuda-graphs"] },
  { name: "batch 4", options: ["--prompt", "512", "--tokens", "128", "--batch", "4"] },
  { name: "batch 16", options: ["--prompt", "512", "--tokens", "128", "--batch", "16"] },
  { name: "prompt of 8192", options: ["--prompt", "8192", "--tokens", "32", "--repeat", "5"] },
];

let compiled;
const existing = await readFile(join(folder, "manifest.json"), "utf8").catch(() => undefined);
if (existing === undefined) {
  await rm(folder, { recursive: true, force: true });
  const start = performance.now();
  const { manifest } = await compile(checkedLayout(layout), { out: folder, weights: { from: "random", seed: 1 }, target: targetNamed("cuda", "bfloat16"), dtype: "bfloat16", quantize: "int8" });
  compiled = { seconds: (performance.now() - start) / 1000, bytes: manifest.files.reduce((sum, { bytes }) => sum + bytes, 0) };
  console.log(`compiled ${(compiled.bytes / 1e9).toFixed(2)} GB in ${compiled.seconds.toFixed(1)} s`);
}

const runs = cases.map(({ name, options }) => {
  const run = JSON.parse(execFileSync(process.execPath, [main, "bench", folder, "--device", "cuda:0", "--json", ...options], { encoding: "utf8", stdio: ["ignore", "pipe", "inherit"], maxBuffer: 1 << 26 }));
  console.log(`${name}: decode ${run.decode.tokensPerSecond.mean.toFixed(1)}/s, prefill ${run.prefill.tokensPerSecond.mean.toFixed(0)}/s`);
  return { name, ...run };
});
const [card, driver] = execFileSync("nvidia-smi", ["--query-gpu=name,driver_version", "--format=csv,noheader"], { encoding: "utf8" }).trim().split("\n")[0].split(", ");
const result = { benchmark: "jamba-block", card, driver, date: new Date().toISOString(), commit, node: process.version, ...(compiled ? { compiled } : {}), llamaCpp, runs };
await writeFile(file, `${JSON.stringify(result, null, 1)}\n`);
console.table(
  runs.map(({ name, prefill, decode, decodeWithLogits, card: steps, memory, plan }) => ({
    case: name,
    "decode, tokens/s": decode.tokensPerSecond.mean.toFixed(1),
    "of copy": `${(100 * decode.rooflineFraction).toFixed(1)} %`,
    "with logits": decodeWithLogits.tokensPerSecond.mean.toFixed(1),
    "prefill, tokens/s": prefill.tokensPerSecond.mean.toFixed(0),
    "of bf16": `${(100 * prefill.rooflineFraction).toFixed(1)} %`,
    launches: steps.launches,
    "host, us/step": (1e6 * steps.hostSeconds).toFixed(0),
    "load, GB/s": (memory.card.weights / memory.card.loadSeconds / 1e9).toFixed(2),
    "plan/driver": (plan.total / memory.card.usedNow).toFixed(3),
  })),
);
