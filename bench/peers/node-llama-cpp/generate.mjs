// As bench/models/generate.mjs, with node-llama-cpp.   fork(…, [folder of its installation, GGUF, threads])
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [installation, file, threads] = process.argv.slice(2);
const { getLlama } = await import(pathToFileURL(join(installation, "node_modules", "node-llama-cpp", "dist", "index.js")).href);
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error" });
const model = await llama.loadModel({ modelPath: file });
const context = await model.createContext({ contextSize: 4096, batchSize: 512, flashAttention: true, threads: Number(threads) });
const sequence = context.getSequence();
process.on("message", async ({ prompt, tokens }) => {
  await sequence.clearHistory();
  const started = performance.now();
  let [generated, prefilled] = [0, started];
  const steps = sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true });
  for (; generated <= tokens; generated++) {
    await steps.next();
    if (generated === 0) prefilled = performance.now();
  }
  await steps.return();
  process.send({ prefillMs: prefilled - started, decodeMs: (performance.now() - prefilled) / tokens });
});
process.send("ready");
