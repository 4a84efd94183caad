import { createRequire } from "node:module";
import { arch, availableParallelism, freemem, platform, totalmem } from "node:os";
import { dirname, join } from "node:path";
import { checkedLayout, compile } from "../../compiler/index.js";
import { producer } from "../../compiler/producer.js";
import { attention, block, every, mamba, mlp, model, moe, ratio, rmsNorm } from "../../dsl/index.js";
import { targetNamed } from "../../compiler/targets/index.js";
import { type Card, cudaCards, LayerweaveError, load } from "../../runtime/index.js";
import { formatBytes, formatTable } from "../format.js";
import { withTemporaryFolder } from "../temporary-folder.js";
import type { Terminal } from "../terminal.js";

interface Finding {
  readonly name: string;
  readonly ok: boolean;
  readonly found: string;
}

/** Tries out what compiling and running need. @returns whether all of it works. */
export async function doctor(terminal: Terminal): Promise<boolean> {
  const findings: Finding[] = [
    { name: producer.name, ok: true, found: producer.version },
    nodeVersion(),
    { name: "platform", ok: true, found: `${platform()} ${arch()}, ${availableParallelism()} threads` },
    { name: "memory", ok: true, found: `${formatBytes(freemem())} free of ${formatBytes(totalmem())}` },
    await attempt("onnxruntime-node", () => Promise.resolve(onnxRuntimeVersion())),
    ...(await tryModel("portable")),
    ...(await tryCards()),
  ];
  const ok = findings.every((finding) => finding.ok);
  terminal.write(formatTable(findings.map((f) => [f.ok ? "ok" : "FAILED", f.name, f.found])));
  terminal.result({ ok, findings });
  return ok;
}

function nodeVersion(): Finding {
  const wanted = (createRequire(import.meta.url)("layerweave/package.json") as { readonly engines: { readonly node: string } }).engines.node;
  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  const [needMajor = 0, needMinor = 0] = wanted.replace(/^>=/, "").split(".").map(Number);
  const ok = major > needMajor || (major === needMajor && minor >= needMinor);
  return { name: "node", ok, found: `${process.version} (needs ${wanted})` };
}

function onnxRuntimeVersion(): string {
  return (createRequire(import.meta.url)("onnxruntime-node/package.json") as { readonly version: string }).version;
}

/** A model with one of everything, small enough to be made, compiled and run while somebody waits. */
const tiny = () =>
  model({
    name: "doctor",
    vocabSize: 32,
    dModel: 16,
    norm: rmsNorm(),
    blocks: 1,
    block: block({
      layers: 2,
      mixer: ratio({ attention: 1, mamba: 1 }, { at: 1, attention: attention({ nHeads: 2 }), mamba: mamba({ dState: 4 }) }),
      channelMixer: every(2, moe({ nExperts: 2, topK: 1, dFf: 16 }), { offset: 1, otherwise: mlp({ dFf: 16 }) }),
    }),
  });

/** That no card can be used is no fault of a machine; what is missing, and the fix, are said all the same. */
async function tryCards(): Promise<Finding[]> {
  let cards: readonly Card[];
  try {
    cards = await cudaCards();
  } catch (error) {
    if (!(error instanceof LayerweaveError)) throw error;
    return [{ name: "CUDA", ok: true, found: `not used: ${error.diagnostics.map(({ message, help }) => `${message} ${help}`).join(" ")}` }];
  }
  const found = cards.map(({ ordinal, name, computeCapability, freeBytes, bytes }) => ({
    name: `cuda:${ordinal}`,
    ok: true,
    found: `${name}, compute capability ${computeCapability}, ${formatBytes(freeBytes)} free of ${formatBytes(bytes)}`,
  }));
  return [...found, ...(await tryModel("cuda"))];
}

async function tryModel(target: "portable" | "cuda"): Promise<Finding[]> {
  const folderFinding = "temporary folder";
  try {
    return await withTemporaryFolder(async (temporary) => {
      const folder = join(temporary, "model");
      const suffix = target === "cuda" ? " for CUDA" : "";
      const compiled = await attempt(`compiling${suffix}`, async () => {
        await compile(checkedLayout(tiny()), { out: folder, weights: { from: "random", seed: 1 }, target: targetNamed(target) });
        return "a small hybrid model";
      });
      const kernels: Finding[] = [];
      const ran = await attempt(`running${suffix}`, async () => {
        await using loaded = await load(folder);
        await using state = await loaded.createState();
        const [logits] = await loaded.forward(state, [[1, 2, 3, 4]]);
        if (!logits?.every(Number.isFinite)) throw new Error("its logits are not finite");
        const { name, ops, why } = loaded.backend;
        const functions = loaded.manifest.graph.functions.map((f) => f.split("::")[1]).join(", ");
        if (target === "portable") kernels.push({ name: "native kernels", ok: true, found: ops === "kernels" ? `run ${functions}` : `none: ${functions} run as function bodies of standard ops` });
        return `${logits.length} finite logits, ${name} backend (${why})`;
      });
      return [...(target === "portable" ? [{ name: folderFinding, ok: true, found: dirname(temporary) }] : []), compiled, ran, ...kernels];
    });
  } catch (error) {
    return [{ name: folderFinding, ok: false, found: (error as Error).message }];
  }
}

async function attempt(name: string, work: () => Promise<string>): Promise<Finding> {
  try {
    return { name, ok: true, found: await work() };
  } catch (error) {
    return { name, ok: false, found: (error as Error).message };
  }
}
