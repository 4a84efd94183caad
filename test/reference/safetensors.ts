import { readFileSync } from "node:fs";

/** A tensor of a safetensors file, its elements widened. */
export interface Tensor {
  readonly shape: readonly number[];
  readonly values: Float64Array;
}

/** All tensors of a small safetensors file (github.com/huggingface/safetensors, "Format"). Reads on its own, so that tests of the writer don't share its mistakes. */
export function readTensors(path: string): Map<string, Tensor> {
  const bytes = readFileSync(path);
  const headerEnd = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString("utf8", 8, headerEnd)) as Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>;
  return new Map(
    Object.entries(header)
      .filter(([name]) => name !== "__metadata__")
      .map(([name, { dtype, shape, data_offsets: [from, to] }]) => [name, { shape, values: widen(bytes.subarray(headerEnd + from, headerEnd + to), dtype) }]),
  );
}

/** Elements of a safetensors type as float64. */
export function widen(bytes: Buffer, dtype: string): Float64Array {
  const size = { F32: 4, I64: 8, BF16: 2, F16: 2, I8: 1 }[dtype];
  if (!size) throw new Error(`${dtype} is not read here`);
  return Float64Array.from({ length: bytes.length / size }, (_, i) => {
    const at = i * size;
    switch (dtype) {
      case "F32":
        return bytes.readFloatLE(at);
      case "I64":
        return Number(bytes.readBigInt64LE(at));
      case "I8":
        return bytes.readInt8(at);
      case "F16":
        return half(bytes.readUInt16LE(at));
      default: {
        const word = Buffer.alloc(4);
        word.writeUInt16LE(bytes.readUInt16LE(at), 2);
        return word.readFloatLE(0);
      }
    }
  });
}

/** IEEE 754 binary16 */
function half(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25));
}
