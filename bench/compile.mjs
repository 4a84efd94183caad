// What compiling costs: published layouts without weights beside each other, and one checkpoint small and large (sparse).
//   npm run build && node bench/compile.mjs
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadLayout } from "../dist/cli/load-layout.js";
import { checkedLayout, compile } from "layerweave/compiler";

const out = await mkdtemp(join(tmpdir(), "layerweave-bench-"));
const rows = [];
try {
  for (const name of ["jamba-v0.1", "jamba-1.5-large", "mixtral-8x7b", "llama-2-70b", "mamba-2.8b"]) {
    const loaded = performance.now();
    const { model } = await loadLayout(join(import.meta.dirname, "..", "examples", `${name}.ts`));
    const layout = checkedLayout(model({}));
    const started = performance.now();
    const { manifest } = await compile(layout, { out: join(out, name), weights: { from: "none" } });
    rows.push({
      layout: name,
      parameters: manifest.model.parameters.total,
      typeCheckSeconds: (started - loaded) / 1000,
      compileSeconds: (performance.now() - started) / 1000,
      graphBytes: manifest.graph.bytes,
    });
  }
} finally {
  await rm(out, { recursive: true, force: true });
}
console.log(JSON.stringify({ benchmark: "compile", node: process.version, peakMemoryBytes: process.resourceUsage().maxRSS * 1024, rows }, null, 1));
console.table(rows.map(({ layout, typeCheckSeconds, compileSeconds, graphBytes }) => ({ layout, "type check, s": typeCheckSeconds.toFixed(2), "compile, s": compileSeconds.toFixed(2), "graph, KB": (graphBytes / 1000).toFixed(0) })));
