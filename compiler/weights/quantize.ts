import { fail } from "../../core/diagnostics.js";
import { toFloat32 } from "./convert.js";
import { weightsDiagnostics } from "./diagnostics.js";

/** Largest code; -128 is not used, so that codes are symmetric. */
const largestCode = 127;

/** Elements that are quantised at a time, where a row is no longer. */
const blockElements = 1 << 20;

/** A float32 this large has no room for a fraction: a code added to it is rounded to the nearest whole number, ties to even. */
const roundingShift = 1.5 * 2 ** 23;

const smallestNormal = 2 ** -126;

/** A matrix [out, in] to be quantised; `chunks` yields its elements as float32 in order, whole elements in each. */
export interface QuantizedSource {
  readonly name: string;
  readonly shape: readonly number[];
  readonly chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>;
}

/**
 * The int8 codes of a matrix, block of rows by block of rows; fills `scales` [out] as it goes.
 *
 * Each row has its own scale, the float32 nearest to max|w| / 127, and codes q = w / scale rounded to nearest, ties to even, in
 * -127 … 127, so that q · scale is within half a scale of w. The scale of a row of zeros, or of numbers so small that its scale
 * would be 0, is 1.
 *
 * Holds 4 MiB of the matrix, or one row.
 * @throws LayerweaveError `weights/not-finite`
 */
export async function* quantizeRows({ name, shape, chunks }: QuantizedSource, scales: Float32Array): AsyncGenerator<Uint8Array, void, undefined> {
  const width = shape[1] ?? 1;
  const block = new Float32Array(Math.max(1, Math.floor(blockElements / width)) * width);
  let filled = 0;
  let row = 0;
  const flush = (): Uint8Array => {
    const codes = new Int8Array(filled);
    for (let at = 0; at < filled; at += width) {
      const scale = quantizeRow(block.subarray(at, at + width), codes.subarray(at, at + width));
      if (scale === undefined) fail(weightsDiagnostics["not-finite"], { weight: name, row });
      scales[row++] = scale;
    }
    filled = 0;
    return new Uint8Array(codes.buffer);
  };
  for await (const chunk of chunks) {
    const values = toFloat32(chunk, "float32");
    for (let at = 0; at < values.length; ) {
      const part = values.subarray(at, at + block.length - filled);
      block.set(part, filled);
      filled += part.length;
      at += part.length;
      if (filled === block.length) yield flush();
    }
  }
  if (filled > 0) yield flush();
}

/** Fills `codes`. @returns the scale; undefined when an element is not finite. */
function quantizeRow(values: Float32Array, codes: Int8Array): number | undefined {
  // Magnitudes are ordered as their bits are, NaN above infinity above all else.
  const bits = new Int32Array(values.buffer, values.byteOffset, values.length);
  let largestBits = 0;
  for (let i = 0; i < bits.length; i++) {
    const magnitude = (bits[i] as number) & 0x7fffffff;
    if (magnitude > largestBits) largestBits = magnitude;
  }
  if (largestBits >= 0x7f800000) return undefined;
  const largest = new Float32Array(Int32Array.of(largestBits).buffer)[0] as number;
  const scale = Math.fround(largest / largestCode) || 1;
  if (scale < smallestNormal) {
    // Rounded to few bits, it may be well below max|w| / 127.
    for (let i = 0; i < values.length; i++) values[i] = Math.max(-largestCode * scale, Math.min(largestCode * scale, values[i] as number));
  }
  // The float32 holds the code in its last bits, which is all that an Int8Array takes of it: V8 is slow at turning a double into a byte.
  for (let i = 0; i < values.length; i++) values[i] = (values[i] as number) / scale + roundingShift;
  for (let i = 0; i < bits.length; i++) codes[i] = bits[i] as number;
  return scale;
}
