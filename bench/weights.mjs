// How fast weights are made and written: random ones, and stored ones in other types, by numbers of workers, beside dd on the same
// disk in the same run. Stored weights are read from the disk, not from the system's cache; every time includes fsync.
//   npm run build && node bench/weights.mjs [--gib 2] [--workers 0,2,16] [--folder /somewhere] [--json]
import { execFileSync } from "node:child_process";
import { mkdtemp, open, rm, stat } from "node:fs/promises";
import { availableParallelism, cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { convertedParts } from "#dist/compiler/weights/convert.js";
import { PartMakers, workersFor } from "#dist/compiler/weights/part-makers.js";
import { quantizedParts } from "#dist/compiler/weights/quantize.js";
import { writeSafetensors } from "#dist/compiler/weights/write.js";

const { values: options } = parseArgs({
  options: { gib: { type: "string", default: "2" }, workers: { type: "string", default: `0,1,${availableParallelism()}` }, folder: { type: "string", default: tmpdir() }, json: { type: "boolean", default: false } },
});
const width = 4096;
/** Rows of one matrix: an expert of a large model. */
const rows = 14_336;
const sizes = { float32: 4, bfloat16: 2, float16: 2, int8: 1 };
const out = await mkdtemp(join(options.folder, "layerweave-bench-"));

async function timed(run) {
  const started = performance.now();
  await run();
  return (performance.now() - started) / 1000;
}

async function synced(path) {
  const file = await open(path, "r+");
  await file.sync();
  await file.close();
}

/** Of this process and its workers, reads and writes included. */
function processorNanoseconds(since) {
  const { user, system } = process.cpuUsage(since);
  return (user + system) * 1000;
}

const dd = (...args) => execFileSync("dd", [...args, "bs=4M"], { stdio: "ignore" });
/** Tells the system to forget what it holds of a file. */
const evict = (path) => execFileSync("dd", [`if=${path}`, "iflag=nocache", "count=0"], { stdio: "ignore" });

/** Writes as many matrices as make `bytes` of type `to`; `from` is a file of elements, or nothing for random ones. */
async function write(path, from, to, bytes, workers) {
  const count = Math.ceil(bytes / (rows * width * sizes[to]));
  const matrices = Array.from({ length: count }, (_, i) => {
    const name = `matrices.${i}`;
    const shape = [rows, width];
    const source = from ? { from: "file", path: from.path, offset: i * rows * width * sizes[from.dtype], dtype: from.dtype } : { from: "initializer", seed: 1, tensor: { name, shape, initializer: { kind: "uniform", std: 0.02 } } };
    const data = () => (to === "int8" ? quantizedParts(source, name, shape, new Float32Array(rows)) : convertedParts(source, rows * width, to));
    return { name, dtype: to, shape, bytes: rows * width * sizes[to], data };
  });
  const makers = new PartMakers(workers);
  try {
    await writeSafetensors(path, matrices, makers);
  } finally {
    await makers[Symbol.asyncDispose]();
  }
  await synced(path);
  return count * rows * width;
}

const results = [];
const report = (result) => {
  results.push(result);
  if (!options.json) console.error(`${result.weights}, ${result.workers} workers: ${result.seconds.toFixed(2)} s`);
};
try {
  const bytes = Number(options.gib) * 2 ** 30;
  const workers = options.workers.split(",").map(Number);
  for (const [dtype, to] of [[undefined, "int8"], [undefined, "bfloat16"], ["bfloat16", "int8"], ["float32", "int8"], ["float32", "bfloat16"]]) {
    const source = dtype && { path: join(out, dtype), dtype };
    // Whatever its elements are, they are finite: the transforms take as long for some as for others.
    if (source) await write(source.path, undefined, dtype, bytes, workersFor(Infinity));
    const target = join(out, "written");
    for (const count of workers) {
      if (source) evict(source.path);
      let elements = 0;
      const before = process.cpuUsage();
      const seconds = await timed(async () => (elements = await write(target, source, to, source ? (bytes / sizes[dtype]) * sizes[to] - 1 : bytes, count)));
      report({ weights: `${dtype ?? "random"} → ${to}`, workers: count, inputBytes: source ? elements * sizes[dtype] : 0, outputBytes: (await stat(target)).size, seconds, processorNanosecondsPerElement: processorNanoseconds(before) / elements });
      await rm(target);
    }
    const [blocks, outputBytes] = [Math.ceil(bytes / (4 << 20)), results.at(-1).outputBytes];
    if (source) {
      evict(source.path);
      report({ weights: `dd: read ${dtype}`, workers: 0, inputBytes: bytes, outputBytes: 0, seconds: await timed(() => dd(`if=${source.path}`, "of=/dev/null", `count=${blocks}`)) });
    }
    report({ weights: `dd: write as many bytes as ${to}`, workers: 0, inputBytes: 0, outputBytes, seconds: await timed(() => dd("if=/dev/zero", `of=${target}`, "conv=fsync", `count=${Math.ceil(outputBytes / (4 << 20))}`)) });
    await rm(target);
    if (source) await rm(source.path);
  }
} finally {
  await rm(out, { recursive: true, force: true });
}
const rates = results.map((r) => ({ ...r, inputBytesPerSecond: r.inputBytes / r.seconds, outputBytesPerSecond: r.outputBytes / r.seconds }));
if (options.json) console.log(JSON.stringify({ benchmark: "weights", node: process.version, cpu: cpus()[0]?.model, processors: availableParallelism(), peakMemoryBytes: process.resourceUsage().maxRSS * 1024, rows: rates }, null, 1));
else {
  const rate = (perSecond) => (perSecond ? (perSecond / 1e9).toFixed(2) : "");
  console.table(rates.map((r) => ({ weights: r.weights, workers: r.workers || "", seconds: r.seconds.toFixed(2), "read, GB/s": rate(r.inputBytesPerSecond), "written, GB/s": rate(r.outputBytesPerSecond), "processor ns/element": r.processorNanosecondsPerElement?.toFixed(2) ?? "" })));
  console.log(`peak memory ${(process.resourceUsage().maxRSS / 1024).toFixed(0)} MiB`);
}
