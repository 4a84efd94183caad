// A process of its own that continues a prompt with a compiled model whenever it is told to, and answers with the times.
//   fork(…, [folder, backend, threads])   { prompt, tokens } → { prefillMs, decodeMs } for the prompt and for one token
import { load } from "layerweave/runtime";

const [folder, backend, threads] = process.argv.slice(2);
const model = await load(folder, { backend, threads: Number(threads), context: 4096 });
process.on("message", async ({ prompt, tokens }) => {
  const generation = model.generate(prompt, { maxTokens: tokens + 1, stopTokenIds: [] });
  const steps = generation[Symbol.asyncIterator]();
  while (!(await steps.next()).done);
  const { prefillSeconds, decodeSeconds } = generation.stats;
  process.send({ prefillMs: 1e3 * prefillSeconds, decodeMs: (1e3 * decodeSeconds) / tokens });
});
process.send("ready");
