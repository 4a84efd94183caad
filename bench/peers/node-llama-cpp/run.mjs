// Prefill and decode of the 0.43B layout with int8 weights, against node-llama-cpp on a GGUF of the same shapes in Q8_0, both in
// turns, each with 1 thread and with all. Prints a table; JSON with --json.
//   npm run build
//   node bench/peers/node-llama-cpp/run.mjs --installation <folder where npm i node-llama-cpp@3 was run> --gguf <file>
//     [--prompt 512] [--tokens 64] [--rounds 7] [--json]
import { availableParallelism, cpus, loadavg } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { alternate, prompt } from "../../models/alternate.mjs";
import { compiled, layouts } from "../../models/jamba.mjs";

const { values: options } = parseArgs({
  options: { installation: { type: "string" }, gguf: { type: "string" }, prompt: { type: "string", default: "512" }, tokens: { type: "string", default: "64" }, rounds: { type: "string", default: "7" }, json: { type: "boolean", default: false } },
});
if (!options.installation || !options.gguf) throw new Error("--installation and --gguf are needed");
const folder = await compiled(layouts.small, "int8");
const threads = [...new Set([1, availableParallelism()])];
const ours = threads.map((n) => ({ name: "layerweave", threads: n, script: join(import.meta.dirname, "..", "..", "models", "generate.mjs"), args: [folder, "native", n] }));
const theirs = threads.map((n) => ({ name: "node-llama-cpp", threads: n, script: join(import.meta.dirname, "generate.mjs"), args: [options.installation, options.gguf, n] }));
const sides = ours.flatMap((side, i) => [side, theirs[i]]).map((side) => ({ ...side, tokens: Number(options.tokens) }));

const before = loadavg()[0];
const times = await alternate(sides, prompt(Number(options.prompt)), Number(options.rounds));
const rows = times.map((time, i) => ({ ...time, threads: sides[i].threads }));
/** How many times faster ours is, each with its best number of threads. */
const ratio = (of) => {
  const best = (name) => Math.min(...rows.filter((row) => row.name === name).map(of));
  return best("node-llama-cpp") / best("layerweave");
};
const ratios = { prefill: ratio((row) => row.prefillMs), decode: ratio((row) => row.decodeMs), leastPrefill: ratio((row) => row.least.prefillMs), leastDecode: ratio((row) => row.least.decodeMs) };

if (options.json) console.log(JSON.stringify({ cpu: cpus()[0]?.model, load: [before, loadavg()[0]], prompt: Number(options.prompt), tokens: Number(options.tokens), rounds: Number(options.rounds), rows, ratios }, null, 1));
else {
  const rate = (ms, tokens) => ((1e3 * tokens) / ms).toFixed(1);
  console.log(`${cpus()[0]?.model}, load ${before.toFixed(1)} to ${loadavg()[0].toFixed(1)}; tokens/s, the median of ${options.rounds} rounds (the best)`);
  console.log("| | threads | prefill | decode |\n| --- | --- | --- | --- |");
  for (const { name, threads: n, prefillMs, decodeMs, least } of rows)
    console.log(`| ${name} | ${n} | ${rate(prefillMs, options.prompt)} (${rate(least.prefillMs, options.prompt)}) | ${rate(decodeMs, 1)} (${rate(least.decodeMs, 1)}) |`);
  console.log(`best threads of each: prefill ${ratios.prefill.toFixed(2)} times, decode ${ratios.decode.toFixed(2)} times (of the best rounds ${ratios.leastPrefill.toFixed(2)} and ${ratios.leastDecode.toFixed(2)})`);
}
