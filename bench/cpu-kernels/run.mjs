// Kernels against function bodies and against the limits of this machine. Prints a table; JSON with --json.
//   npm run build && node scripts/build-native.mjs
//   cmake -S kernels/cpu -B build/cpu-kernels -DORT_INCLUDE_DIR=build/ort-include && cmake --build build/cpu-kernels
//   node bench/cpu-kernels/run.mjs [--json] [--threads 2] [--only scan]
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism, cpus, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { parseArgs } from "node:util";
import { GraphBuilder } from "#dist/compiler/ir/builder.js";
import { whole } from "#dist/compiler/ir/recipe.js";
import { encodeOnnx } from "#dist/compiler/onnx/encode.js";
import { attachBodies } from "#dist/compiler/passes/attach-bodies.js";
import { portable } from "#dist/compiler/targets/portable.js";

const { values: options } = parseArgs({ options: { json: { type: "boolean", default: false }, threads: { type: "string" }, only: { type: "string", default: "" }, seconds: { type: "string", default: "4" } } });
const threads = options.threads ?? String(availableParallelism());
const root = join(import.meta.dirname, "..", "..");
const built = (name) => join(root, "build", "cpu-kernels", name);
const ort = join(dirname(createRequire(import.meta.url).resolve("onnxruntime-node/package.json")), "bin", "napi-v6", process.platform, process.arch, "libonnxruntime.so.1");

const out = mkdtempSync(join(tmpdir(), "layerweave-bench-"));
process.on("exit", () => rmSync(out, { recursive: true, force: true }));

/** One file of small random weights, of which each weight takes a piece. */
const weightBytes = 48 << 20;
const random = new Float32Array(weightBytes / 4);
let seed = 1;
for (let i = 0; i < random.length; i++) random[i] = ((seed = (seed * 1103515245 + 12345) & 0x7fffffff) / 0x7fffffff - 0.5) / 10;
writeFileSync(join(out, "weights.bin"), random);

/** Writes the model that `build` makes and returns its path. */
function model(name, build) {
  const b = new GraphBuilder(name, { path: "" });
  let next = 0;
  const placements = new Map();
  const weight = (label, shape) => {
    const bytes = shape.reduce((n, extent) => n * extent, 4);
    if (next + bytes > weightBytes) next = 0;
    placements.set(label, { file: "weights.bin", offset: next, bytes });
    next += Math.ceil(bytes / 4096) * 4096;
    return b.weight(label, whole({ name: label, shape }), "float32");
  };
  const outputs = build(b, weight);
  const module = attachBodies({ graph: b.finish(outputs), functions: [], state: [] });
  const path = join(out, `${name}.onnx`);
  writeFileSync(path, encodeOnnx(module, { target: portable, producer: { name: "bench", version: "1" }, placement: (w) => placements.get(w), metadata: {} }));
  return path;
}

/** Outputs under the names that the benchmark finds state by. */
const renamed = (b, values, names) => values.map((value, i) => b.output(names[i], value));

const scan = (T, I, N) =>
  model(`scan_${T}`, (b) => {
    const f = (name, ...shape) => b.input(name, "float32", shape);
    return renamed(
      b,
      b.ops("ai.layerweave::SelectiveScan", "scan", [f("u", 1, T, I), f("delta", 1, T, I), f("A_log", I, N), f("B", 1, T, N), f("C", 1, T, N), f("D", I), f("delta_bias", I), f("z", 1, T, I), f("past_state", 1, I, N), b.input("lengths", "int64", [1])]),
      ["y", "present_state"],
    );
  });

const conv = (T, I) =>
  model(`conv_${T}`, (b) => {
    const f = (name, ...shape) => b.input(name, "float32", shape);
    return renamed(b, b.ops("ai.layerweave::CausalConv", "conv", [f("x", 1, T, I), f("weight", I, 1, 4), f("bias", I), f("past_state", 1, I, 3), b.input("lengths", "int64", [1])], { activation: "silu" }), ["y", "present_state"]);
  });

const attention = (T, H, G, P, S) =>
  model(`attention_${T}`, (b) => {
    const f = (name, ...shape) => b.input(name, "float32", shape);
    return renamed(
      b,
      b.ops("ai.layerweave::CachedAttention", "attention", [f("query", 1, T, H * P), f("key", 1, T, G * P), f("value", 1, T, G * P), f("past_key", 1, G, S, P), f("past_value", 1, G, S, P), b.input("past_lengths", "int64", [1])], { n_heads: H, n_kv_heads: G, window: 0 }),
      ["y", "present_key", "present_value"],
    );
  });

const moe = (M, D, F, E, K) =>
  model(`moe_${M}_${E}`, (b, weight) => {
    const experts = Array.from({ length: E }, (_, e) => [weight(`gate.${e}`, [F, D]), weight(`up.${e}`, [F, D]), weight(`down.${e}`, [D, F])]).flat();
    const y = b.op("ai.layerweave::MoE", "moe", [b.input("x", "float32", [M, D]), b.input("router", "float32", [E, D]), ...experts], { n_experts: E, top_k: K, router: "softmax-then-top-k", renormalise: 0 });
    return renamed(b, [y], ["y"]);
  });

const matmul = (M, D, F) => model(`gemm_${M}`, (b, weight) => renamed(b, [b.linear("gemm", b.input("x", "float32", [M, D]), weight("w", [F, D]))], ["y"]));

const tokens = 2048;
const cases = [
  { name: "scan, 2048 tokens, 4096 channels, 16 states", path: () => scan(tokens, 4096, 16), with: [`lengths=${tokens}`], work: { updates: tokens * 4096 * 16 } },
  { name: "scan, 1 token, 4096 channels, 16 states", path: () => scan(1, 4096, 16), with: ["lengths=1"], work: { bytes: 4096 * 16 * 4 * 3 } },
  { name: "conv, 2048 tokens, 4096 channels", path: () => conv(tokens, 4096), with: [`lengths=${tokens}`], work: { bytes: tokens * 4096 * 4 * 2 } },
  { name: "conv, 1 token, 4096 channels", path: () => conv(1, 4096), with: ["lengths=1"], work: { bytes: 4096 * 4 * (2 + 4 + 1 + 6) } },
  { name: "attention, 1024 tokens, 16 heads of 128, 4 kv heads", path: () => attention(1024, 16, 4, 128, 1024), with: [], work: { products: 16 * 128 * 1024 * 1025 } },
  { name: "attention, 1 token behind 16383, 32 heads of 128, 8 kv heads", path: () => attention(1, 32, 8, 128, 16384), with: ["past_lengths=16383"], work: { bytes: 2 * 8 * 16384 * 128 * 4 } },
  { name: "MoE, 512 tokens, 1024 → 2048, 2 of 8 experts", path: () => moe(512, 1024, 2048, 8, 2), with: [], work: { products: 512 * 2 * 3 * 1024 * 2048 } },
  { name: "MoE, 1 token, 1024 → 2048, 2 of 8 experts", path: () => moe(1, 1024, 2048, 8, 2), with: [], work: { bytes: 2 * 3 * 1024 * 2048 * 4 } },
  { name: "MoE, 1 token, 1024 → 2048, 2 of 32 experts", path: () => moe(1, 1024, 2048, 32, 2), with: [], work: { bytes: 2 * 3 * 1024 * 2048 * 4 } },
  { name: "ONNX Runtime's Gemm, 512 × 1024 → 2048", path: () => matmul(512, 1024, 2048), with: [], work: { products: 512 * 1024 * 2048 } },
];

const answer = (...args) => JSON.parse(execFileSync(built("op_bench"), args, { encoding: "utf8" }));
const limits = answer("limits", threads);
const rows = cases
  .filter(({ name }) => name.includes(options.only))
  .map(({ name, path, with: integers, work }) => {
    const times = answer(ort, built("liblayerweave_ops.so"), path(), threads, options.seconds, ...integers);
    const limitMs = work.bytes ? (1e3 * work.bytes) / limits.readBytesPerSecond : work.products ? (1e3 * work.products) / limits.multiplyAddsPerSecond : undefined;
    // One thread's computing is not disturbed by what else runs; of several threads only the clock tells when they are done.
    const [body, kernel] = threads === "1" ? [times.bodyCpuMs, times.kernelCpuMs] : [times.bodyMs, times.kernelMs];
    return { name, ...times, body, kernel, speedup: body / kernel, limitMs, ...work };
  });

if (options.json) console.log(JSON.stringify({ cpu: cpus()[0]?.model, threads: Number(threads), ...limits, rows }, null, 1));
else {
  console.log(`${cpus()[0]?.model}, ${threads} threads: copy ${(limits.copyBytesPerSecond / 1e9).toFixed(1)} GB/s, read ${(limits.readBytesPerSecond / 1e9).toFixed(1)} GB/s, ${(limits.multiplyAddsPerSecond / 1e9).toFixed(0)} G multiply-adds/s`);
  console.log("| | body ms | kernel ms | speed-up | limit ms | of the limit |\n| --- | --- | --- | --- | --- | --- |");
  for (const { name, body, kernel, speedup, limitMs } of rows)
    console.log(`| ${name} | ${body.toFixed(3)} | ${kernel.toFixed(3)} | ${speedup.toFixed(1)} | ${limitMs?.toFixed(3) ?? ""} | ${limitMs ? `${((100 * limitMs) / kernel).toFixed(0)} %` : ""} |`);
}
