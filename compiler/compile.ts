import { createHash, randomUUID } from "node:crypto";
import { copyFile, mkdir, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { type Diagnostic, fail, invariant } from "../core/diagnostics.js";
import { bytesPerElement, type Dtype, type StorageDtype } from "../core/dtype.js";
import { type Manifest, manifestFile, manifestVersion, type ManifestWeight, parseManifest } from "../core/manifest.js";
import { isQuantized, type Quantization } from "../core/plan/weights.js";
import type { Layout } from "../dsl/resolve.js";
import { compileDiagnostics } from "./diagnostics.js";
import type { ImportedCheckpoint } from "./importers/index.js";
import type { BlockModel } from "./ir/block.js";
import { allParameters } from "./ir/block.js";
import type { Module } from "./ir/graph.js";
import { type Parameter, parameterCounts, scaleName, type WeightDtype } from "./ir/parameter.js";
import { lower, type Trace } from "./lower.js";
import { encodeOnnx, type Placement } from "./onnx/encode.js";
import { profileLayout } from "./passes/profile-model.js";
import { portable } from "./targets/portable.js";
import type { Target } from "./targets/target.js";
import { type Binding, bindCheckpoint } from "./weights/bind.js";
import { convertedParts } from "./weights/convert.js";
import type { ElementSource } from "./weights/elements.js";
import { PartMakers, workersFor } from "./weights/part-makers.js";
import { quantizedParts } from "./weights/quantize.js";
import { type Checkpoint, openSafetensors } from "./weights/safetensors.js";
import { isSystemError } from "./weights/system-errors.js";
import { linkOrCopy, planSafetensors, type WrittenTensor, writeSafetensors } from "./weights/write.js";
import { producer } from "./producer.js";

/** Where the weights come from; `none` compiles the graph and the manifest alone. */
export type WeightSource =
  | { readonly from: "checkpoint"; readonly checkpoint: ImportedCheckpoint }
  | { readonly from: "random"; readonly seed: number }
  | { readonly from: "none" };

export interface CompileOptions {
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
  readonly onProgress?: (progress: { readonly written: number; readonly total: number }) => void;
  readonly signal?: AbortSignal;
}

export interface Compiled {
  readonly folder: string;
  readonly manifest: Manifest;
  readonly warnings: readonly Diagnostic[];
}

const graphFile = "model.onnx";
const layoutFileName = "layout.json";
const ownWeightsFile = "weights.safetensors";
const scalesFile = "scales.safetensors";

/**
 * Compiles a checked layout into a folder: graph, manifest, layout, weights and tokenizer.
 * The folder appears as a whole or not at all.
 * @throws LayerweaveError when the weights don't fit the layout or the folder can't be written.
 */
export async function compile(layout: Layout, options: CompileOptions): Promise<Compiled> {
  const { weights, dtype, quantize = "none", target = portable } = options;
  const source = weights.from === "checkpoint" ? await openCheckpoint(weights.checkpoint, layout, target) : undefined;
  const storage = (parameter: Parameter): WeightDtype => {
    if (isQuantized(parameter, quantize)) return "int8";
    const found = source?.binding.tensors.get(parameter.name)?.dtype ?? "float32";
    return parameter.matrix ? (dtype ?? found) : found;
  };
  const { blocks, module } = lower(layout, target, storage, options.trace);
  const files = planFiles(allParameters(blocks), weights, storage, source);

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

interface OpenCheckpoint {
  readonly checkpoint: Checkpoint;
  readonly binding: Binding;
}

async function openCheckpoint(imported: ImportedCheckpoint, layout: Layout, target: Target): Promise<OpenCheckpoint> {
  const checkpoint = await openSafetensors(imported.folder);
  const { blocks } = lower(layout, target, () => "float32");
  return { checkpoint, binding: bindCheckpoint(allParameters(blocks), checkpoint, imported.importer, layout) };
}

interface FilePlan {
  readonly weights: ManifestWeight[];
  readonly placement: (weight: string) => Placement;
  readonly write: (into: string, options: CompileOptions) => Promise<Manifest["files"]>;
}

/**
 * Decides where every weight lies. A checkpoint's shard is linked when a matrix in it is used as it is; what is converted,
 * quantised, random, or left over from shards that are not linked goes into a file of our own. Scales are known when their
 * weights are written, and go into another: 4 bytes per row wait in memory, a thousandth of what they belong to.
 */
function planFiles(parameters: readonly Parameter[], source: WeightSource, storage: (parameter: Parameter) => WeightDtype, open: OpenCheckpoint | undefined): FilePlan {
  const bound = (parameter: Parameter) => open?.binding.tensors.get(parameter.name);
  const unchanged = (parameter: Parameter) => bound(parameter)?.dtype === storage(parameter);
  const linked = new Set(parameters.filter((p) => p.matrix && unchanged(p)).map((p) => bound(p)?.tensor.file as string));
  const inPlace = (parameter: Parameter) => unchanged(parameter) && linked.has(bound(parameter)?.tensor.file as string);

  /** Of the int8 weights written so far. */
  const scales = new Map<string, Float32Array>();
  const own: WrittenTensor[] = parameters
    .filter((p) => !inPlace(p))
    .map((p) => {
      const dtype = storage(p);
      const data = () => {
        const elements = elementsOf(p, source, open);
        if (dtype !== "int8") return convertedParts(elements, countOf(p.shape), dtype);
        const ofRows = new Float32Array(p.shape[0] ?? 0);
        scales.set(p.name, ofRows);
        return quantizedParts(elements, p.name, p.shape, ofRows);
      };
      return { name: p.name, dtype, shape: p.shape, bytes: bytesOf(p.shape, dtype), data };
    });
  const ownScales: WrittenTensor[] = parameters
    .filter((p) => storage(p) === "int8")
    .map((p) => {
      const shape = p.shape.slice(0, 1);
      const data = () => {
        const ofRows = scales.get(p.name);
        invariant(ofRows, `${p.name} is not written yet`);
        return [new Uint8Array(ofRows.buffer)];
      };
      return { name: scaleName(p.name), dtype: "float32", shape, bytes: bytesOf(shape, "float32"), data };
    });
  const ownFiles = [
    { file: ownWeightsFile, tensors: own },
    { file: scalesFile, tensors: ownScales },
  ]
    .filter(({ tensors }) => tensors.length > 0)
    .map((written) => ({ ...written, plan: planSafetensors(written.tensors) }));
  const places = new Map(ownFiles.flatMap(({ file, plan }) => [...plan.offsets].map(([name, offset]) => [name, { file, offset }] as const)));
  const placeOf = (name: string) => {
    const place = places.get(name);
    invariant(place, `${name} has no place`);
    return place;
  };

  const weights = parameters.flatMap((p): ManifestWeight[] => {
    const from = bound(p);
    const dtype = storage(p);
    const common = { name: p.name, kind: p.kind, ...(p.layer === undefined ? {} : { layer: p.layer }), dtype, shape: [...p.shape], matrix: p.matrix };
    const origin: ManifestWeight["origin"] = from
      ? { from: "checkpoint", tensor: from.tensor.name, ...(from.slice ? { slice: from.slice } : {}), ...(from.dtype === dtype ? {} : { cast: from.dtype }) }
      : source.from === "random"
        ? { from: "random", seed: source.seed }
        : { from: "absent" };
    if (from && inPlace(p)) return [{ ...common, file: `weights/${from.tensor.file}`, offset: from.offset, bytes: from.bytes, origin }];
    const weight = { ...common, ...placeOf(p.name), bytes: bytesOf(p.shape, dtype), origin };
    if (dtype !== "int8") return [weight];
    const [name, shape] = [scaleName(p.name), p.shape.slice(0, 1)];
    return [weight, { ...common, name, dtype: "float32", shape, matrix: false, scalesOf: p.name, ...placeOf(name), bytes: bytesOf(shape, "float32"), origin }];
  });
  const byName = new Map(weights.map((w) => [w.name, w]));

  return {
    weights,
    placement: (name) => {
      const weight = byName.get(name);
      invariant(weight, `${name} has no place`);
      return weight;
    },
    write: async (into, { onProgress, signal, workers = workersFor(own.reduce((sum, { shape }) => sum + countOf(shape), 0)) }) => {
      if (source.from === "none") return [];
      const files: Manifest["files"] = [];
      for (const file of open?.checkpoint.files ?? []) {
        if (!linked.has(file.file)) continue;
        const target = join(into, "weights", file.file);
        await mkdir(dirname(target), { recursive: true });
        files.push({ file: `weights/${file.file}`, bytes: file.bytes, headerSha256: file.headerSha256, from: await linkOrCopy(file.path, target) });
      }
      const total = ownFiles.reduce((sum, { plan }) => sum + plan.fileBytes, 0);
      let before = 0;
      await using makers = new PartMakers(workers);
      for (const { file, tensors } of ownFiles) {
        const written = await writeSafetensors(join(into, file), tensors, makers, (done) => {
          signal?.throwIfAborted();
          onProgress?.({ written: before + done, total });
        });
        before += written.fileBytes;
        files.push({ file, bytes: written.fileBytes, headerSha256: written.headerSha256, from: "written" });
      }
      return files;
    },
  };
}

const countOf = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);
const bytesOf = (shape: readonly number[], dtype: Dtype) => countOf(shape) * bytesPerElement[dtype];

function elementsOf({ name, shape, init }: Parameter, source: WeightSource, open: OpenCheckpoint | undefined): ElementSource {
  const bound = open?.binding.tensors.get(name);
  if (bound) {
    const file = open?.checkpoint.files.find(({ file }) => file === bound.tensor.file);
    invariant(file, `${name} is in no file of the checkpoint`);
    return { from: "file", path: file.path, offset: bound.offset, dtype: bound.dtype };
  }
  invariant(source.from === "random", `${name} has no source`);
  return { from: "initializer", tensor: { name, shape, initializer: init }, seed: source.seed };
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
