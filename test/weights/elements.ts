// The transforms of compiler/weights as functions from arrays to arrays.
import { bytesPerElement, type StorageDtype } from "../../core/dtype.js";
import { convertElements, widen } from "../../compiler/weights/convert.js";
import { initialize, type InitializedTensor } from "../../compiler/weights/random.js";

export function converted(bytes: Uint8Array, from: StorageDtype, to: StorageDtype): Uint8Array {
  const result = new Uint8Array((bytes.length / bytesPerElement[from]) * bytesPerElement[to]);
  convertElements({ dtype: from, bytes }, to, result);
  return result;
}

export function widened(bytes: Uint8Array, from: StorageDtype): Float32Array {
  const wide = new Float32Array(bytes.length / bytesPerElement[from]);
  widen({ dtype: from, bytes }, wide);
  return wide;
}

/** A tensor that is made up, whole. */
export function initialized(tensor: InitializedTensor, seed: number): Float32Array {
  const values = new Float32Array(tensor.shape.reduce((product, extent) => product * extent, 1));
  initialize(tensor, seed, values, 0);
  return values;
}
