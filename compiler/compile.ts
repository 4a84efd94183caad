import { createHash, randomUUID } from "node:crypto";
import { copyFile, mkdir, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { type Diagnostic, fail, invariant } from "../core/diagnostics.js";
import type { StorageDtype } from "../core/dtype.js";
import { type Manifest, manifestFile, manifestVersion, parseManifest } from "../core/manifest.js";
import type { Quantization } from "../core/plan/weights.js";
import type { Layout } from "../dsl/resolve.js";
import { compileDiagnostics } from "./diagnostics.js";
import type { ImportedCheckpoint } from "./importers/index.js";
import type { BlockModel } from "./ir/block.js";
import { allParameters } from "./ir/block.js";
import type { Module } from "./ir/graph.js";
import { parameterCounts } from "./ir/parameter.js";
import { lower, toBlocks, type Trace } from "./lower.js";
import { encodeOnnx } from "./onnx/encode.js";
import { customDomain } from "./ops/index.js";
import { profileLayout } from "./passes/profile-model.js";
import { targetDiagnostics } from "./targets/diagnostics.js";
import { portable } from "./targets/portable.js";
import type { Target } from "./targets/target.js";
import { bindCheckpoint } from "./weights/bind.js";
import { type OpenCheckpoint, planFiles, type WeightSource, type WriteOptions } from "./weights/place.js";
import { openSafetensors } from "./weights/safetensors.js";
import { storageFor } from "./weights/storage.js";
import { isSystemError } from "./weights/system-errors.js";
import { producer } from "./producer.js";

export interface CompileOptions extends WriteOptions {
  /** Folder to write; a compiled folder there is replaced, anything else is refused. */
  readonly out: string;
  readonly weights: WeightSource;
  /** Storage type of matrices. Default: the checkpoint's own; float32 for random weights. */
  readonly dtype?: StorageDtype;
  /** What is stored as int8 with a float32 scale per output channel, whatever `dtype` says. Default: none. */
  readonly quantize?: Quantization;
  readonly target?: Target;
  /** Worker threads that convert, quantise and initialise weights. Default: one per core, none where there is little to do. */
  readonly workers?: number;
  /** File the layout was written in: calls in it are recorded as the nodes' origins, as `file:line:column`. */
  readonly layoutFile?: string;
  readonly trace?: Trace;
}

export interface Compiled {
  readonly folder: string;
  readonly manifest: Manifest;
  readonly warnings: readonly Diagnostic[];
}

const graphFile = "model.onnx";
const layoutFileName = "layout.json";

/**
 * Compiles a checked layout into a folder: graph, manifest, layout, weights and tokenizer.
 * The folder appears as a whole or not at all.
 * @throws LayerweaveError when the weights don't fit the layout or the folder can't be written.
 */
export async function compile(layout: Layout, options: CompileOptions): Promise<Compiled> {
  const { weights, dtype, quantize = "none", target = portable } = options;
  if (dtype !== undefined && target.weightStorage === "as-used" && dtype !== target.computeDtype) fail(targetDiagnostics.dtype, { target: target.name, dtype, known: [target.computeDtype] });
  const source = weights.from === "checkpoint" ? await openCheckpoint(weights.checkpoint, layout, target) : undefined;
  const storage = storageFor(target, quantize, (parameter) => {
    const found = source?.binding.tensors.get(parameter.name)?.dtype ?? "float32";
    return parameter.matrix ? (dtype ?? found) : found;
  });
  const { blocks, module } = lower(layout, target, storage, options.trace);
  const files = planFiles(module.graph.weights, weights, source);

  const folder = resolve(options.out);
  const manifest = await writeFolder(folder, async (into) => {
    const written = await files.write(into, options);
    const layoutText = canonicalJson(layout);
    const layoutHash = sha256(layoutText);
    const onnx = encodeOnnx(module, { target, producer, placement: files.placement, metadata: { "layerweave.layout.sha256": layoutHash, "layerweave.model": layout.name } });
    await writeFile(join(into, graphFile), onnx);
    await writeFile(join(into, layoutFileName), layoutText);
    const tokenizer = weights.from === "checkpoint" ? await copyTokenizer(weights.checkpoint, into) : null;
    const manifest: Manifest = {
      format: "layerweave",
      version: manifestVersion,
      producer,
      target: target.name,
      model: {
        name: layout.name,
        layout: { file: layoutFileName, sha256: layoutHash },
        vocabSize: layout.vocabSize,
        dModel: layout.dModel,
        nLayers: layout.layers.length,
        contextLength: layout.contextLength,
        parameters: parameterCounts(allParameters(blocks)),
      },
      graph: {
        file: graphFile,
        bytes: onnx.byteLength,
        sha256: sha256(onnx),
        irVersion: target.irVersion,
        opset: target.opset,
        computeDtype: target.computeDtype,
        functions: [...new Set(module.functions.map((f) => f.op))].sort(),
        kernels: [...new Set(module.graph.nodes.filter(({ op, overload }) => op.startsWith(`${customDomain}::`) && overload === undefined).map(({ op }) => op))].sort(),
      },
      ...graphInterface(module),
      state: [...module.state],
      profile: profileLayout(layout, target, quantize),
      files: written,
      weights: files.weights,
      origins: nodeOrigins(module, blocks, options.layoutFile),
      tokenizer,
      generation: weights.from === "checkpoint" ? weights.checkpoint.generation : { bosTokenId: null, eosTokenIds: [], padTokenId: null },
    };
    // Read back as the runtime will, so that a folder it would refuse is never finished.
    const text = `${JSON.stringify(manifest, null, 1)}\n`;
    parseManifest(text, folder);
    await writeFile(join(into, manifestFile), text);
    return manifest;
  });
  return { folder, manifest, warnings: [...(weights.from === "checkpoint" ? weights.checkpoint.warnings : []), ...(source?.binding.warnings ?? [])] };
}

async function openCheckpoint(imported: ImportedCheckpoint, layout: Layout, target: Target): Promise<OpenCheckpoint> {
  const checkpoint = await openSafetensors(imported.folder);
  return { checkpoint, binding: bindCheckpoint(allParameters(toBlocks(layout, target)), checkpoint, imported.importer, layout) };
}

/** Builds the folder under a temporary name beside its own, and puts it in place when it is whole. */
async function writeFolder<T>(folder: string, fill: (into: string) => Promise<T>): Promise<T> {
  const replaced = await existing(folder);
  let made: string | undefined;
  const temporary = join(dirname(folder), `.${basename(folder)}.${randomUUID().slice(0, 8)}`);
  try {
    made = await mkdir(dirname(folder), { recursive: true });
    await mkdir(temporary);
    const result = await fill(temporary);
    if (replaced) {
      const old = `${temporary}.old`;
      await rename(folder, old);
      await rename(temporary, folder);
      await rm(old, { recursive: true, force: true });
    } else await rename(temporary, folder);
    return result;
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    if (made) await rm(made, { recursive: true, force: true });
    if (isSystemError(error)) fail(compileDiagnostics["not-writable"], { folder, problem: error.message });
    throw error;
  }
}

/** Whether a compiled folder is there to be replaced. */
async function existing(folder: string): Promise<boolean> {
  let entries: string[];
  try {
    entries = await readdir(folder);
  } catch (error) {
    if (isSystemError(error) && error.code === "ENOENT") return false;
    if (isSystemError(error) && error.code === "ENOTDIR") fail(compileDiagnostics["output-exists"], { folder });
    if (isSystemError(error)) fail(compileDiagnostics["not-writable"], { folder, problem: error.message });
    throw error;
  }
  if (entries.length > 0 && !entries.includes(manifestFile)) fail(compileDiagnostics["output-exists"], { folder });
  return true;
}

function graphInterface({ graph }: Module): Pick<Manifest, "inputs" | "outputs"> {
  const tensor = (name: string) => {
    const value = [...graph.inputs, ...graph.outputs].find((v) => v.name === name);
    invariant(value, `the graph has no ${name}`);
    return { name, dtype: value.dtype, shape: value.shape.map((d) => d as number | "B" | "T" | "S" | "L") };
  };
  return {
    inputs: { inputIds: tensor("input_ids"), pastLengths: tensor("past_lengths"), lengths: tensor("lengths"), logitIndices: tensor("logit_indices") },
    outputs: { logits: tensor("logits") },
  };
}

/** Where in the layout each node comes from; calls in other files than the layout's own are left out. */
function nodeOrigins({ graph }: Module, { origin: model }: BlockModel, layoutFile: string | undefined): Manifest["origins"] {
  const file = layoutFile && resolve(layoutFile);
  return Object.fromEntries(
    graph.nodes
      .filter((node) => node.origin.path !== model.path)
      .map((node) => {
        const at = node.origin.at;
        return [node.name, { path: node.origin.path, ...(at && file && resolve(at.file) === file ? { at: { ...at, file: basename(file) } } : {}) }];
      }),
  );
}

async function copyTokenizer({ folder, tokenizer }: ImportedCheckpoint, into: string): Promise<Manifest["tokenizer"]> {
  if (!tokenizer) return null;
  for (const file of Object.values(tokenizer)) if (file !== undefined) await copyFile(join(folder, file), join(into, file));
  return tokenizer;
}

/**
 * The resolved layout of a compiled folder.
 * @throws LayerweaveError when the folder is no compiled one, or its layout was changed.
 */
export async function readCompiledLayout(folder: string, manifest: Manifest): Promise<Layout> {
  const text = await readFile(join(folder, manifest.model.layout.file), "utf8").catch((error: Error) => fail(compileDiagnostics["not-compiled"], { folder, problem: error.message }));
  if (sha256(text) !== manifest.model.layout.sha256) fail(compileDiagnostics["not-compiled"], { folder, problem: "it is not the one the manifest names" });
  return JSON.parse(text) as Layout;
}

const sha256 = (data: string | Uint8Array) => createHash("sha256").update(data).digest("hex");

/** JSON with sorted keys, so that equal layouts have equal hashes. */
function canonicalJson(value: unknown): string {
  const sorted = (_: string, inner: unknown): unknown =>
    typeof inner === "object" && inner !== null && !Array.isArray(inner) ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1))) : inner;
  return `${JSON.stringify(value, sorted, 1)}\n`;
}
