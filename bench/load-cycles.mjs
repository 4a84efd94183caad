// Whether memory stays flat when a model is loaded, run and closed again and again. Ends with 1 when it does not.
//   npm run build && node --expose-gc bench/load-cycles.mjs [cycles, 1000] [backend, native]
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { checkedLayout, compile } from "layerweave/compiler";
import * as dsl from "layerweave/dsl";
import { load } from "layerweave/runtime";

const cycles = Number(process.argv[2] ?? 1000);
const backend = process.argv[3] ?? "native";
const samplesInAll = 20;

const folder = await mkdtemp(join(tmpdir(), "layerweave-bench-"));
const samples = [];
const started = performance.now();
try {
  const layer = (mixer, channelMixer) => dsl.block({ layers: 1, mixer, channelMixer });
  const spec = dsl.model({ name: "small", vocabSize: 32, dModel: 16, norm: dsl.rmsNorm({ eps: 1e-6 }), blocks: 2, block: layer(dsl.mamba(), dsl.moe({ nExperts: 4, topK: 2, dFf: 16 })) });
  await compile(checkedLayout(spec), { out: join(folder, "small"), weights: { from: "random", seed: 1 } });
  const every = Math.ceil(cycles / samplesInAll);
  for (let i = 0; i < cycles; i++) {
    const model = await load(join(folder, "small"), { backend, threads: 2 });
    const state = await model.createState({ batch: 2 });
    await model.forward(state, [[1, 2, 3], [4]], { logits: "all" });
    const snapshot = await state.snapshot();
    await model.forward(state, [[1], [2]]);
    await state.restore(snapshot);
    await model.close();
    if ((i + 1) % every === 0) {
      globalThis.gc();
      samples.push({ cycles: i + 1, rss: process.memoryUsage.rss(), heapUsed: process.memoryUsage().heapUsed });
    }
  }
} finally {
  await rm(folder, { recursive: true, force: true });
}
// The first tenth fills caches and the allocator's arenas; after it a lasting session of a megabyte a cycle would be hundreds.
const lasting = samples.slice(samplesInAll / 10);
const middle = (part) => part.map(({ rss }) => rss).sort((a, b) => a - b)[Math.floor(part.length / 2)];
const growth = middle(lasting.slice(lasting.length / 2)) - middle(lasting.slice(0, lasting.length / 2));
console.log(JSON.stringify({ benchmark: "load-cycles", backend, cycles, seconds: (performance.now() - started) / 1000, growthBytes: growth, samples }, null, 1));
if (growth > 15e6) process.exitCode = 1;
