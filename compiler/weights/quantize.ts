import { fail, invariant } from "../../core/diagnostics.js";
import { bytesPerElement } from "../../core/dtype.js";
import { widen } from "./convert.js";
import { weightsDiagnostics } from "./diagnostics.js";
import type { Elements, ElementSource } from "./elements.js";
import { type Part, pieceElements } from "./pieces.js";

/** Largest code; -128 is not used, so that codes are symmetric. */
const largestCode = 127;

/** Elements that are quantised at a time, where a row is no longer: what they are in between stays in the cache. */
const blockElements = 1 << 14;

/** A float32 this large has no room for a fraction: a code added to it is rounded to the nearest whole number, ties to even. */
const roundingShift = 1.5 * 2 ** 23;

const smallestNormal = 2 ** -126;

/** Rows of a matrix. */
export interface QuantizedRows {
  readonly weight: string;
  readonly width: number;
  /** Index in the matrix of the first of them. */
  readonly firstRow: number;
}

/** The int8 codes of a matrix [out, in], in pieces of whole rows; its scales go to `scales` [out]. */
export function* quantizedParts(source: ElementSource, weight: string, [rows = 1, width = 1]: readonly number[], scales: Float32Array): Generator<Part, void, undefined> {
  if (width === 0) return;
  const rowsPerPiece = Math.max(1, Math.floor(pieceElements / width));
  for (let firstRow = 0; firstRow < rows; firstRow += rowsPerPiece) {
    const ofPiece = scales.subarray(firstRow, firstRow + rowsPerPiece);
    const count = ofPiece.length * width;
    yield { piece: { inputs: [{ source, first: firstRow * width, count }], bytes: count, transform: "quantize", parameters: { weight, width, firstRow } }, scales: ofPiece };
  }
}

/**
 * The transform `quantize`: writes the int8 codes of whole rows to `into`, and returns their scales.
 *
 * Each row has its own scale, the float32 nearest to max|w| / 127, and codes q = w / scale rounded to nearest, ties to even, in
 * -127 … 127, so that q · scale is within half a scale of w. The scale of a row of zeros, or of numbers so small that its scale
 * would be 0, is 1.
 * @throws LayerweaveError `weights/not-finite`
 */
export function quantize([elements]: readonly Elements[], { weight, width, firstRow }: QuantizedRows, into: Uint8Array): Float32Array {
  invariant(elements, "nothing to quantise");
  const size = bytesPerElement[elements.dtype];
  const scales = new Float32Array(into.length / width);
  const block = new Float32Array(Math.min(into.length, Math.max(1, Math.floor(blockElements / width)) * width));
  for (let at = 0; at < into.length; at += block.length) {
    const values = block.subarray(0, into.length - at);
    widen({ dtype: elements.dtype, bytes: elements.bytes.subarray(at * size, (at + values.length) * size) }, values);
    for (let from = 0; from < values.length; from += width) {
      const row = (at + from) / width;
      const scale = quantizeRow(values.subarray(from, from + width));
      if (scale === undefined) fail(weightsDiagnostics["not-finite"], { weight, row: firstRow + row });
      scales[row] = scale;
    }
    takeCodes(new Int32Array(values.buffer, 0, values.length), into.subarray(at, at + values.length));
  }
  return scales;
}

/** Turns the elements of a row into codes plus `roundingShift`. @returns the scale; undefined when an element is not finite. */
function quantizeRow(values: Float32Array): number | undefined {
  const largestBits = largestMagnitude(new Int32Array(values.buffer, values.byteOffset, values.length));
  if (largestBits >= 0x7f800000) return undefined;
  const largest = new Float32Array(Int32Array.of(largestBits).buffer)[0] as number;
  const scale = Math.fround(largest / largestCode) || 1;
  if (scale < smallestNormal) {
    // Rounded to few bits, it may be well below max|w| / 127.
    for (let i = 0; i < values.length; i++) values[i] = Math.max(-largestCode * scale, Math.min(largestCode * scale, values[i] as number));
  }
  shiftedCodes(values, 1 / scale);
  return scale;
}

// The loops below do four elements at a time, since half of the time would go into the loop.

/** Bits of the largest magnitude: magnitudes are ordered as their bits are, NaN above infinity above all else. */
function largestMagnitude(bits: Int32Array): number {
  const whole = bits.length & ~3;
  let a = 0;
  let b = 0;
  let c = 0;
  let d = 0;
  for (let i = 0; i < whole; i += 4) {
    const w = (bits[i] as number) & 0x7fffffff;
    const x = (bits[i + 1] as number) & 0x7fffffff;
    const y = (bits[i + 2] as number) & 0x7fffffff;
    const z = (bits[i + 3] as number) & 0x7fffffff;
    a = w > a ? w : a;
    b = x > b ? x : b;
    c = y > c ? y : c;
    d = z > d ? z : d;
  }
  for (let i = whole; i < bits.length; i++) a = Math.max(a, (bits[i] as number) & 0x7fffffff);
  return Math.max(a, b, c, d);
}

/**
 * Multiplying by the reciprocal in double gives the code that dividing gives. A quotient of float32s in that range is a tie
 * or at least 2⁻²⁶ away from one; the sum with the shift is a double, whose last place is worth 2⁻²⁹, far more than what product
 * and quotient differ by, so that both end on the same side, and on a tie exactly.
 */
function shiftedCodes(values: Float32Array, perScale: number): void {
  const whole = values.length & ~3;
  for (let i = 0; i < whole; i += 4) {
    values[i] = (values[i] as number) * perScale + roundingShift;
    values[i + 1] = (values[i + 1] as number) * perScale + roundingShift;
    values[i + 2] = (values[i + 2] as number) * perScale + roundingShift;
    values[i + 3] = (values[i + 3] as number) * perScale + roundingShift;
  }
  for (let i = whole; i < values.length; i++) values[i] = (values[i] as number) * perScale + roundingShift;
}

/** Codes are the last bytes of the float32 that hold them: V8 is slow at turning a double into a byte. */
function takeCodes(shifted: Int32Array, codes: Uint8Array): void {
  const words = codes.byteOffset % 4 === 0 ? new Int32Array(codes.buffer, codes.byteOffset, codes.length >> 2) : new Int32Array(0);
  for (let i = 0, at = 0; i < words.length; i++, at += 4)
    words[i] = ((shifted[at] as number) & 255) | (((shifted[at + 1] as number) & 255) << 8) | (((shifted[at + 2] as number) & 255) << 16) | ((shifted[at + 3] as number) << 24);
  for (let i = 4 * words.length; i < codes.length; i++) codes[i] = shifted[i] as number;
}
