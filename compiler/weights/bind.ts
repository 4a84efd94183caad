import { type Diagnostic, Diagnostics } from "../../core/diagnostics.js";
import { bytesPerElement, type StorageDtype, storageDtypes } from "../../core/dtype.js";
import type { Layout } from "../../dsl/resolve.js";
import type { Importer, TensorSource } from "../importers/importer.js";
import type { Parameter } from "../ir/parameter.js";
import { weightsDiagnostics } from "./diagnostics.js";
import { type Checkpoint, type CheckpointTensor, dtypeOf } from "./safetensors.js";

/** A parameter's place in a checkpoint. */
export interface BoundTensor {
  readonly tensor: CheckpointTensor;
  readonly dtype: StorageDtype;
  readonly slice?: { readonly start: number; readonly length: number };
  /** Bytes from the start of the tensor's file. */
  readonly offset: number;
  readonly bytes: number;
}

export interface Binding {
  readonly tensors: ReadonlyMap<string, BoundTensor>;
  readonly warnings: readonly Diagnostic[];
}

/**
 * Finds every parameter in a checkpoint, and accounts for every tensor of it.
 * @throws LayerweaveError naming all tensors that are missing, of another shape or type, or unknown.
 */
export function bindCheckpoint(parameters: readonly Parameter[], checkpoint: Checkpoint, importer: Importer, layout: Layout): Binding {
  const found = new Diagnostics();
  const tensors = new Map<string, BoundTensor>();
  const used = new Set<string>();
  for (const parameter of parameters) {
    const sources = importer.sources(parameter.name, layout);
    const source = sources.find(({ tensor }) => checkpoint.tensors.has(tensor));
    const tensor = source && checkpoint.tensors.get(source.tensor);
    if (!source || !tensor) {
      found.report(weightsDiagnostics["tensor-missing"], { parameter: parameter.name, looked: sources.map((s) => s.tensor) }, parameter.origin);
      continue;
    }
    used.add(tensor.name);
    const bound = bind(parameter, source, tensor, found);
    if (bound) tensors.set(parameter.name, bound);
  }
  for (const name of checkpoint.tensors.keys())
    if (!used.has(name) && !importer.ignoredTensors.some(({ pattern }) => pattern.test(name))) found.report(weightsDiagnostics["tensor-unused"], { tensor: name });
  found.throwIfErrors();
  return { tensors, warnings: [...checkpoint.warnings, ...found.all] };
}

function bind(parameter: Parameter, { slice }: TensorSource, tensor: CheckpointTensor, found: Diagnostics): BoundTensor | undefined {
  const expected = slice?.of ?? parameter.shape;
  if (!sameExtents(tensor.shape, expected)) {
    found.report(weightsDiagnostics["tensor-shape"], { tensor: tensor.name, parameter: parameter.name, expected, found: tensor.shape }, parameter.origin);
    return undefined;
  }
  const dtype = storageDtypes.find((d) => d === dtypeOf(tensor.dtype));
  if (!dtype) {
    found.report(weightsDiagnostics["tensor-dtype"], { tensor: tensor.name, found: tensor.dtype, known: storageDtypes }, parameter.origin);
    return undefined;
  }
  const size = bytesPerElement[dtype];
  return slice
    ? { tensor, dtype, slice: { start: slice.start, length: slice.length }, offset: tensor.offset + slice.start * size, bytes: slice.length * size }
    : { tensor, dtype, offset: tensor.offset, bytes: tensor.bytes };
}

const sameExtents = (a: readonly number[], b: readonly number[]) => a.length === b.length && a.every((extent, i) => extent === b[i]);
