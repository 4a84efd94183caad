// The models that are measured: shapes of examples/ with random weights, or checkpoints where folders of them are given.
import { existsSync } from "node:fs";
import { mkdir, readdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { checkedLayout, compile, importCheckpoint, targetNamed } from "layerweave/compiler";

const root = join(import.meta.dirname, "..", "..");

/** Contexts are tried until the card is full: neither graph nor weights depend on how long a context is said to be. */
const longestContext = 2 ** 22;

export const models = {
  jamba: { layout: "jamba-v0.1", quantize: "int8", checkpoint: "jamba" },
  "jamba-experts-int8": { layout: "jamba-v0.1", quantize: "experts-int8", checkpoint: "jamba" },
  mixtral: { layout: "mixtral-8x7b", quantize: "int8", checkpoint: "mixtral" },
  "tiny-jamba": { layout: "tiny-jamba", quantize: "none", checkpoint: "tiny-jamba" },
};

/** For runs without a card: the same layers in the same order, a thousand times smaller. */
const shrunk = { vocabSize: 512, dModel: 64, dInner: 128, dtRank: 8, dFf: 96, nHeads: 8, nKvHeads: 2, headDim: 8 };

/** A resolved layout. pack.mjs brings those of examples/, since what reads TypeScript may be missing on a machine with a card. */
async function exampleLayout(name) {
  const resolved = join(root, "build", "layouts", `${name}.json`);
  if (existsSync(resolved)) return JSON.parse(await readFile(resolved, "utf8"));
  const { openSource } = await import("#dist/cli/source.js");
  return (await openSource(join(root, "examples", `${name}.ts`))).layout;
}

async function sourceOf(name, { checkpoints, scale }) {
  const { layout: example, checkpoint: key } = models[name];
  const folder = checkpoints[key] ?? (name === "tiny-jamba" ? join(root, "examples", "tiny-jamba") : undefined);
  if (folder !== undefined) {
    const checkpoint = await importCheckpoint(folder);
    return { layout: checkedLayout(checkpoint.spec), weights: { from: "checkpoint", checkpoint } };
  }
  const layout = await exampleLayout(example);
  return { layout: scale === "tiny" ? JSON.parse(JSON.stringify(layout, (key, value) => shrunk[key] ?? value)) : layout, weights: { from: "random", seed: 1 } };
}

/** Compiles a model into `folder`; the machine's memory has room for one of the large ones, so others there are removed. */
export async function build(name, { folder, device, keep, ...options }) {
  const { layout, weights } = await sourceOf(name, options);
  if (!keep && name !== "tiny-jamba")
    for (const other of await readdir(folder).catch(() => [])) if (other in models && other !== name) await rm(join(folder, other), { recursive: true });
  await mkdir(folder, { recursive: true });
  const [target, dtype] = device === "cpu" ? [targetNamed("portable"), "float32"] : [targetNamed("cuda", "bfloat16"), "bfloat16"];
  const start = performance.now();
  const { manifest } = await compile({ ...layout, contextLength: longestContext }, { out: join(folder, name), weights, target, dtype, quantize: models[name].quantize });
  const seconds = (performance.now() - start) / 1000;
  const bytes = manifest.files.reduce((sum, file) => sum + file.bytes, 0);
  return { weightsFrom: weights.from, bytes, seconds, bytesPerSecond: bytes / seconds, hostPeakBytes: process.resourceUsage().maxRSS * 1024, parameters: manifest.model.parameters };
}
