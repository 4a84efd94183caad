import { mkdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { invariant } from "../../core/diagnostics.js";
import { bytesPerElement, type Dtype, type StorageDtype } from "../../core/dtype.js";
import type { Manifest, ManifestWeight, ParameterOrigin, WeightPacking } from "../../core/manifest.js";
import type { ImportedCheckpoint } from "../importers/index.js";
import type { GraphWeight } from "../ir/graph.js";
import { type Parameter, scaledName, scaleName, type WeightDtype } from "../ir/parameter.js";
import { firstParameter, matrixRows, parametersOf, type Recipe } from "../ir/recipe.js";
import type { Placement } from "../onnx/encode.js";
import type { Binding } from "./bind.js";
import { convertedParts } from "./convert.js";
import type { ElementSource } from "./elements.js";
import { packedParts } from "./pack.js";
import { PartMakers, workersFor } from "./part-makers.js";
import type { Part } from "./pieces.js";
import { quantizedParts } from "./quantize.js";
import type { Checkpoint } from "./safetensors.js";
import { linkOrCopy, planSafetensors, type WrittenTensor, writeSafetensors } from "./write.js";

/** Where the weights come from; `none` compiles the graph and the manifest alone. */
export type WeightSource =
  | { readonly from: "checkpoint"; readonly checkpoint: ImportedCheckpoint }
  | { readonly from: "random"; readonly seed: number }
  | { readonly from: "none" };

const ownWeightsFile = "weights.safetensors";
const scalesFile = "scales.safetensors";

export interface OpenCheckpoint {
  readonly checkpoint: Checkpoint;
  readonly binding: Binding;
}

export interface WriteOptions {
  /** Worker threads that convert, quantise, pack and initialise weights. Default: one per core, none where there is little to do. */
  readonly workers?: number;
  readonly onProgress?: (progress: { readonly written: number; readonly total: number }) => void;
  readonly signal?: AbortSignal;
}

export interface FilePlan {
  readonly weights: ManifestWeight[];
  readonly placement: (weight: string) => Placement;
  readonly write: (into: string, options: WriteOptions) => Promise<Manifest["files"]>;
}

/**
 * Decides where every weight lies. A checkpoint's shard is linked when a matrix in it is used as it is; what is converted,
 * quantised, merged, packed, random, or left over from shards that are not linked goes into a file of our own. Scales are known
 * when their weights are written, and go into another: 4 bytes per row wait in memory, a thousandth of what they belong to.
 */
export function planFiles(all: readonly GraphWeight[], source: WeightSource, open: OpenCheckpoint | undefined): FilePlan {
  const bound = (parameter: Parameter) => open?.binding.tensors.get(parameter.name);
  /** Where a weight is in the checkpoint as it is stored. */
  const unchanged = ({ value, recipe }: GraphWeight) => {
    const [parameter, ...more] = parametersOf(recipe);
    const found = parameter && more.length === 0 && !recipe.packing && recipe.part === "elements" ? bound(parameter) : undefined;
    return found?.dtype === value.dtype ? found : undefined;
  };
  const linked = new Set(all.filter(({ recipe }) => firstParameter(recipe).matrix).flatMap((weight) => unchanged(weight)?.tensor.file ?? []));
  const inPlace = (weight: GraphWeight) => {
    const found = unchanged(weight);
    return found && linked.has(found.tensor.file) ? found : undefined;
  };

  /** Of the int8 weights written so far, by the name of the tensor that they are written to. */
  const scales = new Map<string, Float32Array>();
  const written = (weight: GraphWeight): WrittenTensor => {
    const { name, dtype } = weight.value;
    const shape = weight.value.shape as readonly number[];
    const data = () => {
      if (weight.recipe.part === "scales") {
        const ofRows = scales.get(name);
        invariant(ofRows, `what ${name} scales is not written yet`);
        return [new Uint8Array(ofRows.buffer)];
      }
      const ofRows = dtype === "int8" ? new Float32Array(countOf(shape.slice(0, -1))) : undefined;
      if (ofRows) scales.set(scaleName(name), ofRows);
      return partsOf(weight, (parameter) => elementsOf(parameter, source, open), ofRows);
    };
    return { name, dtype, shape, bytes: bytesOf(shape, dtype), data };
  };
  const moved = all.filter((weight) => !inPlace(weight));
  const own = moved.filter(({ recipe }) => recipe.part === "elements");
  const ownFiles = [
    { file: ownWeightsFile, tensors: own.map(written) },
    { file: scalesFile, tensors: moved.filter(({ recipe }) => recipe.part === "scales").map(written) },
  ]
    .filter(({ tensors }) => tensors.length > 0)
    .map((file) => ({ ...file, plan: planSafetensors(file.tensors) }));
  const places = new Map(ownFiles.flatMap(({ file, plan }) => [...plan.offsets].map(([name, offset]) => [name, { file, offset }] as const)));

  const originOf = (parameter: Parameter, dtype: Dtype): ParameterOrigin => {
    const from = bound(parameter);
    if (from) return { from: "checkpoint", tensor: from.tensor.name, ...(from.slice ? { slice: from.slice } : {}), ...(from.dtype === dtype ? {} : { cast: from.dtype }) };
    return source.from === "random" ? { from: "random", seed: source.seed } : { from: "absent" };
  };
  const dtypeOf = new Map(all.map(({ value }) => [value.name, value.dtype]));
  const weights = all.map((weight): ManifestWeight => {
    const { value, recipe } = weight;
    const first = firstParameter(recipe);
    const parameters = parametersOf(recipe);
    const isScale = recipe.part === "scales";
    const scaled = isScale ? scaledName(value.name) : undefined;
    // The origin of scales is that of the elements they belong to.
    const stored = (scaled === undefined ? value.dtype : dtypeOf.get(scaled)) as Dtype;
    const absent = open === undefined && source.from !== "random";
    const common = {
      name: value.name,
      kind: first.kind,
      ...(first.layer === undefined ? {} : { layer: first.layer }),
      dtype: value.dtype,
      shape: value.shape.map(Number),
      matrix: first.matrix && !isScale,
      ...(scaled === undefined ? {} : { scalesOf: scaled }),
      ...(recipe.packing && !isScale ? { packing: packingOf(recipe, recipe.packing) } : {}),
    };
    const origin: ManifestWeight["origin"] =
      parameters.length === 1 || absent
        ? originOf(first, stored)
        : { from: "parameters", parameters: parameters.map((p) => ({ name: p.name, rows: p.shape[0] ?? 1, origin: originOf(p, stored) })) };
    const found = inPlace(weight);
    if (found) return { ...common, file: `weights/${found.tensor.file}`, offset: found.offset, bytes: found.bytes, origin };
    const place = places.get(value.name);
    invariant(place, `${value.name} has no place`);
    return { ...common, ...place, bytes: bytesOf(common.shape, value.dtype), origin };
  });
  const byName = new Map(weights.map((w) => [w.name, w]));

  return {
    weights,
    placement: (name) => {
      const weight = byName.get(name);
      invariant(weight, `${name} has no place`);
      return weight;
    },
    write: async (into, { onProgress, signal, workers = workersFor(own.reduce((sum, { value }) => sum + countOf(value.shape as readonly number[]), 0)) }) => {
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

/** The bytes of a weight, from the elements of its parameters; fills the scales of an int8 one. */
function* partsOf({ value: { dtype }, recipe }: GraphWeight, elementsOf: (parameter: Parameter) => ElementSource, scales: Float32Array | undefined): Generator<Part, void, undefined> {
  const { packing } = recipe;
  const stored = dtype as WeightDtype;
  let row = 0;
  const nextScales = (rows: number) => scales?.subarray(row, (row += rows));
  for (const parameters of recipe.matrices) {
    if (packing) {
      const sources = parameters.map((p) => ({ name: p.name, rows: p.shape[0] ?? 0, source: elementsOf(p) }));
      yield* packedParts(sources, parameters[0]?.shape[1] ?? 0, stored, packing, nextScales((scales?.length ?? 0) / recipe.matrices.length));
      continue;
    }
    for (const p of parameters) {
      const ofRows = nextScales(p.shape[0] ?? 0);
      if (ofRows) yield* quantizedParts(elementsOf(p), p.name, p.shape, ofRows);
      else yield* convertedParts(elementsOf(p), countOf(p.shape), stored as StorageDtype);
    }
  }
}

function packingOf(recipe: Recipe, layout: WeightPacking["layout"]): WeightPacking {
  const rows = layout === "panels" ? matrixRows(recipe) : matrixRows(recipe) / 2;
  return { layout, rows, columns: firstParameter(recipe).shape[1] ?? 0 };
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
