import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import type { StorageDtype } from "../../core/dtype.js";
import { compile } from "../../compiler/compile.js";
import { checkedLayout, type PassName } from "../../compiler/lower.js";
import { cuda } from "../../compiler/targets/cuda.js";
import type { Target } from "../../compiler/targets/target.js";
import type { Quantization } from "../../core/plan/weights.js";
import type { ModelSpec } from "../../dsl/index.js";
import cudaHybrid from "./cuda-hybrid/layout.js";
import halfLayers from "./half-layers/layout.js";
import jambaBlock from "./jamba-block/layout.js";
import mambaWeightlessNorms from "./mamba-weightless-norms/layout.js";
import { onnxText } from "./onnx-text.js";
import slidingWindow from "./sliding-window/layout.js";
import topKThenSoftmax from "./top-k-then-softmax/layout.js";

interface Case {
  readonly idea: string;
  readonly model: ModelSpec;
  readonly dtype?: StorageDtype;
  readonly target?: Target;
  readonly quantize?: Quantization;
}

const cases: readonly Case[] = [
  { idea: "jamba-block", model: jambaBlock },
  { idea: "mamba-weightless-norms", model: mambaWeightlessNorms },
  { idea: "sliding-window", model: slidingWindow },
  { idea: "top-k-then-softmax", model: topKThenSoftmax, dtype: "bfloat16" },
  { idea: "half-layers", model: halfLayers },
  { idea: "cuda-hybrid", model: cudaHybrid, target: cuda("bfloat16"), quantize: "experts-int8" },
];

/** The stages that are kept; the others lie between them. */
const printed: readonly PassName[] = ["resolve-layout", "plan-state", "pack-weights", "attach-bodies"];

const update = process.env.UPDATE_GOLDEN === "1";
if (update && process.env.CI) throw new Error("golden files are not rewritten in CI: a change of them is to be seen in the diff of a commit");

describe("golden files (rewrite them with UPDATE_GOLDEN=1)", () => {
  it.each(cases)("$idea", async ({ idea, ...golden }) => {
    const folder = fileURLToPath(new URL(idea, import.meta.url));
    for (const [file, text] of Object.entries(await compiledTexts(join(folder, "layout.ts"), golden))) {
      const path = join(folder, file);
      if (update) await writeFile(path, text);
      expect(text, `${idea}/${file}`).toBe(await readFile(path, "utf8"));
    }
  });
});

async function compiledTexts(layoutFile: string, { model, ...options }: Omit<Case, "idea">): Promise<Readonly<Record<string, string>>> {
  const parent = await mkdtemp(join(tmpdir(), "layerweave-test-"));
  try {
    const out = join(parent, "compiled");
    const ir: string[] = [];
    const { manifest } = await compile(checkedLayout(model), {
      out,
      weights: { from: "random", seed: 0 },
      layoutFile,
      ...options,
      trace: (pass, text) => {
        if (printed.includes(pass)) ir.push(`# after ${pass}\n${text()}`);
      },
    });
    // What changes with the release and not with the model is left out.
    const stable = { ...manifest, producer: { name: manifest.producer.name }, graph: { ...manifest.graph, bytes: undefined, sha256: undefined } };
    return { "ir.txt": ir.join("\n"), "onnx.txt": onnxText(await readFile(join(out, "model.onnx"))), "manifest.json": `${manifestText(stable)}\n` };
  } finally {
    await rm(parent, { recursive: true, force: true });
  }
}

/** JSON in which whatever fits into a line stands in one. */
function manifestText(value: unknown, indent = ""): string {
  const line = JSON.stringify(value);
  if (typeof value !== "object" || value === null || line.length <= 240) return line;
  const inner = `${indent}  `;
  if (Array.isArray(value)) return `[\n${value.map((entry) => `${inner}${manifestText(entry, inner)}`).join(",\n")}\n${indent}]`;
  const entries = Object.entries(value).filter(([, entry]) => entry !== undefined);
  return `{\n${entries.map(([key, entry]) => `${inner}${JSON.stringify(key)}: ${manifestText(entry, inner)}`).join(",\n")}\n${indent}}`;
}
