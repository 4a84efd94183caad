// How the time of MoE follows top-k and the number of experts: our kernel, one token and many, float32 and int8 weights,
// all cases in one process and in turns. Times are of computing, one thread. Prints a table; JSON with --json.
//   npm run build && node scripts/build-native.mjs
//   cmake -S kernels/cpu -B build/cpu-kernels -DORT_INCLUDE_DIR=build/ort-include && cmake --build build/cpu-kernels
//   node bench/moe-top-k.mjs [--rounds 15] [--json]
import { execFileSync } from "node:child_process";
import { cpus, loadavg } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";

const { values: options } = parseArgs({ options: { rounds: { type: "string", default: "15" }, json: { type: "boolean", default: false } } });
const program = join(import.meta.dirname, "..", "build", "cpu-kernels", "moe_top_k");
const rows = JSON.parse(execFileSync(program, [options.rounds], { encoding: "utf8" }));
/** Against 8 experts and top-2 of the same weights and tokens. */
const reference = ({ dtype, tokens }) => rows.find((row) => row.dtype === dtype && row.tokens === tokens && row.experts === 8 && row.topK === 2).ms;
const results = rows.map((row) => ({ ...row, ratio: row.ms / reference(row) }));

if (options.json) console.log(JSON.stringify({ cpu: cpus()[0]?.model, load: loadavg()[0], dModel: 512, dFf: 1792, rounds: Number(options.rounds), results }, null, 1));
else {
  console.log(`${cpus()[0]?.model}, load ${loadavg()[0].toFixed(1)}; 512 → 1792, medians of ${options.rounds} rounds`);
  console.log("| weights | tokens | experts | top-k | ms | of 2 of 8 |\n| --- | --- | --- | --- | --- | --- |");
  for (const { dtype, tokens, experts, topK, ms, ratio } of results) console.log(`| ${dtype} | ${tokens} | ${experts} | ${topK} | ${ms.toFixed(3)} | ${ratio.toFixed(2)} |`);
}
