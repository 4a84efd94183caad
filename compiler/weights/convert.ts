import { invariant } from "../../core/diagnostics.js";
import { bytesPerElement, type StorageDtype } from "../../core/dtype.js";

// Typed arrays have the byte order of the machine; every platform that ONNX Runtime ships for is little-endian, as safetensors is.

/**
 * Elements of `bytes` in another storage dtype, rounded to nearest even where it is narrower. Values beyond float16 become
 * infinite, NaN stays NaN (quiet, with its sign), subnormals are kept. The result may share memory with `bytes` when the dtypes are equal.
 */
export function convertElements(bytes: Uint8Array, from: StorageDtype, to: StorageDtype): Uint8Array {
  if (from === to) return bytes;
  const wide = toFloat32(bytes, from);
  if (to === "float32") return new Uint8Array(wide.buffer, wide.byteOffset, wide.byteLength);
  const bits = new Int32Array(wide.buffer, wide.byteOffset, wide.length);
  const narrow = new Uint16Array(bits.length);
  if (to === "bfloat16") narrowToBfloat16(bits, narrow);
  else narrowToFloat16(bits, narrow);
  return new Uint8Array(narrow.buffer);
}

/** `convertElements` chunk by chunk; each chunk holds whole elements. */
export async function* convertChunks(chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>, from: StorageDtype, to: StorageDtype): AsyncGenerator<Uint8Array, void, undefined> {
  for await (const chunk of chunks) yield convertElements(chunk, from, to);
}

/** Elements as float32, exactly (every float16 and bfloat16 value is one). May share memory with `bytes` when they are float32 already. */
export function toFloat32(bytes: Uint8Array, dtype: StorageDtype): Float32Array {
  const size = bytesPerElement[dtype];
  invariant(bytes.length % size === 0, () => `${bytes.length} bytes hold no whole number of ${dtype} elements`);
  const aligned = bytes.byteOffset % size === 0 ? bytes : bytes.slice();
  if (dtype === "float32") return new Float32Array(aligned.buffer, aligned.byteOffset, aligned.length / 4);
  const narrow = new Uint16Array(aligned.buffer, aligned.byteOffset, aligned.length / 2);
  const wide = new Float32Array(narrow.length);
  const bits = new Int32Array(wide.buffer);
  if (dtype === "bfloat16") for (let i = 0; i < bits.length; i++) bits[i] = (narrow[i] as number) << 16;
  else {
    const table = float16Table();
    for (let i = 0; i < bits.length; i++) bits[i] = table[narrow[i] as number] as number;
  }
  return wide;
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
  for (let i = 0; i < bits.length; i++) {
    const x = bits[i] as number;
    // The quiet bit keeps a NaN whose payload is all in the lost half from turning into infinity.
    if ((x & 0x7fffffff) > 0x7f800000) out[i] = (x >>> 16) | 0x40;
    else out[i] = (x + 0x7fff + ((x >>> 16) & 1)) >>> 16;
  }
}

function narrowToFloat16(bits: Int32Array, out: Uint16Array): void {
  for (let i = 0; i < bits.length; i++) {
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
