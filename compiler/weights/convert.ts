import { invariant } from "../../core/diagnostics.js";
import { bytesPerElement, type StorageDtype } from "../../core/dtype.js";
import type { Elements, ElementSource } from "./elements.js";
import { type Part, pieceElements } from "./pieces.js";

// Typed arrays have the byte order of the machine; every platform that ONNX Runtime ships for is little-endian, as safetensors is.

/** Elements that are converted at a time: what they are in between stays in the cache. */
const blockElements = 1 << 14;

/**
 * Writes elements to `into` in another storage dtype, rounded to nearest even where it is narrower. Values beyond float16 become
 * infinite, NaN stays NaN (quiet, with its sign), subnormals are kept. `into` is aligned to its elements.
 */
export function convertElements({ dtype: from, bytes }: Elements, to: StorageDtype, into: Uint8Array): void {
  if (from === to) return into.set(bytes);
  if (to === "float32") return widen({ dtype: from, bytes }, new Float32Array(into.buffer, into.byteOffset, into.length / 4));
  const narrow = new Uint16Array(into.buffer, into.byteOffset, into.length / 2);
  const block = new Float32Array(Math.min(blockElements, narrow.length));
  const bits = new Int32Array(block.buffer);
  const size = bytesPerElement[from];
  for (let at = 0; at < narrow.length; at += block.length) {
    const out = narrow.subarray(at, at + block.length);
    widen({ dtype: from, bytes: bytes.subarray(at * size, (at + out.length) * size) }, block.subarray(0, out.length));
    if (to === "bfloat16") narrowToBfloat16(bits, out);
    else narrowToFloat16(bits, out);
  }
}

/** Writes elements to `wide` as float32, exactly: every float16 and bfloat16 value is one. */
export function widen({ dtype, bytes }: Elements, wide: Float32Array): void {
  const size = bytesPerElement[dtype];
  invariant(bytes.length === wide.length * size, () => `${bytes.length} bytes are not ${wide.length} elements of ${dtype}`);
  const aligned = bytes.byteOffset % size === 0 ? bytes : bytes.slice();
  if (dtype === "float32") return wide.set(new Float32Array(aligned.buffer, aligned.byteOffset, wide.length));
  const narrow = new Uint16Array(aligned.buffer, aligned.byteOffset, wide.length);
  const bits = new Int32Array(wide.buffer, wide.byteOffset, wide.length);
  if (dtype === "bfloat16") widenBfloat16(narrow, bits);
  else {
    const table = float16Table();
    for (let i = 0; i < bits.length; i++) bits[i] = table[narrow[i] as number] as number;
  }
}

/** Two at a time where they are aligned to that. */
function widenBfloat16(narrow: Uint16Array, bits: Int32Array): void {
  const pairs = narrow.byteOffset % 4 === 0 ? new Int32Array(narrow.buffer, narrow.byteOffset, narrow.length >> 1) : new Int32Array(0);
  for (let i = 0, at = 0; i < pairs.length; i++, at += 2) {
    const pair = pairs[i] as number;
    bits[at] = pair << 16;
    bits[at + 1] = pair & 0xffff0000;
  }
  for (let i = 2 * pairs.length; i < bits.length; i++) bits[i] = (narrow[i] as number) << 16;
}

let float16Bits: Int32Array | undefined;

/** float32 bits of each float16 pattern; made once, since two thirds of the work per element is telling the cases apart. */
function float16Table(): Int32Array {
  if (float16Bits) return float16Bits;
  const table = new Int32Array(0x10000);
  for (let half = 0; half < 0x10000; half++) {
    const sign = (half & 0x8000) << 16;
    const exponent = (half >>> 10) & 0x1f;
    const fraction = half & 0x3ff;
    if (exponent === 0x1f) table[half] = sign | 0x7f800000 | (fraction << 13);
    else if (exponent > 0) table[half] = sign | ((exponent + 112) << 23) | (fraction << 13);
    else if (fraction > 0) {
      // Subnormal: fraction · 2⁻²⁴, normalised so that its leading one becomes the implicit bit.
      const shift = Math.clz32(fraction) - 21;
      table[half] = sign | ((113 - shift) << 23) | (((fraction << shift) & 0x3ff) << 13);
    } else table[half] = sign;
  }
  return (float16Bits = table);
}

function narrowToBfloat16(bits: Int32Array, out: Uint16Array): void {
  for (let i = 0; i < out.length; i++) {
    const x = bits[i] as number;
    // The quiet bit keeps a NaN whose payload is all in the lost half from turning into infinity.
    if ((x & 0x7fffffff) > 0x7f800000) out[i] = (x >>> 16) | 0x40;
    else out[i] = (x + 0x7fff + ((x >>> 16) & 1)) >>> 16;
  }
}

function narrowToFloat16(bits: Int32Array, out: Uint16Array): void {
  for (let i = 0; i < out.length; i++) {
    const x = bits[i] as number;
    const sign = (x >>> 16) & 0x8000;
    const magnitude = x & 0x7fffffff;
    if (magnitude > 0x7f800000) out[i] = sign | 0x7e00 | ((magnitude >>> 13) & 0x1ff);
    else if (magnitude >= 0x47800000) out[i] = sign | 0x7c00;
    // Rebias the exponent by 15 - 127; a carry out of the fraction moves to the next exponent, up to infinity from 65520 on.
    else if (magnitude >= 0x38800000) out[i] = sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
    else if (magnitude < 0x33000000) out[i] = sign;
    else {
      // Subnormal: count units of 2⁻²⁴ in the significand.
      const significand = (magnitude & 0x7fffff) | 0x800000;
      const shift = 126 - (magnitude >>> 23);
      const units = significand >>> shift;
      const rest = significand & ((1 << shift) - 1);
      const tie = 1 << (shift - 1);
      out[i] = sign | (units + (rest > tie || (rest === tie && units & 1) ? 1 : 0));
    }
  }
}

/** A weight of so many elements in another storage dtype, or in its own. */
export function* convertedParts(source: ElementSource, elements: number, to: StorageDtype): Generator<Part, void, undefined> {
  for (let first = 0; first < elements; first += pieceElements) {
    const count = Math.min(pieceElements, elements - first);
    yield { piece: { inputs: [{ source, first, count }], bytes: count * bytesPerElement[to], transform: "convert", parameters: { to } } };
  }
}

/** The transform `convert`. */
export function convert([elements]: readonly Elements[], { to }: { readonly to: StorageDtype }, into: Uint8Array): undefined {
  invariant(elements, "nothing to convert");
  convertElements(elements, to, into);
}
