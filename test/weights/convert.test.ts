import { describe, expect, test } from "vitest";
import { bytesPerElement, storageDtypes } from "../../core/dtype.js";
import { convertElements, convertedParts } from "../../compiler/weights/convert.js";
import { converted, widened } from "./elements.js";

/** The value of a 16-bit pattern, from the definition of its format. */
function valueOf(pattern: number, exponentBits: number): number {
  const fractionBits = 15 - exponentBits;
  const bias = 2 ** (exponentBits - 1) - 1;
  const sign = pattern >= 0x8000 ? -1 : 1;
  const exponent = Math.floor(pattern / 2 ** fractionBits) % 2 ** exponentBits;
  const fraction = (pattern % 2 ** fractionBits) / 2 ** fractionBits;
  if (exponent === 2 ** exponentBits - 1) return fraction === 0 ? sign * Infinity : NaN;
  return exponent === 0 ? sign * fraction * 2 ** (1 - bias) : sign * (1 + fraction) * 2 ** (exponent - bias);
}

const exponentBits = { float16: 5, bfloat16: 8 } as const;
const formats = ["float16", "bfloat16"] as const;

/** Nearest pattern by bisection over all finite values of the format, ties to the even pattern. */
function nearest(value: number, format: "float16" | "bfloat16"): number {
  const bits = exponentBits[format];
  const infinity = (2 ** bits - 1) * 2 ** (15 - bits);
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const magnitude = Math.abs(value);
  // The value that the pattern of infinity would have if exponents went on decides what rounds to infinity.
  const at = (pattern: number): number => (pattern === infinity ? 2 ** 2 ** (bits - 1) : valueOf(pattern, bits));
  let low = 0;
  let high = infinity;
  if (magnitude >= at(high)) return sign + infinity;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (at(middle) <= magnitude) low = middle;
    else high = middle;
  }
  const [below, above] = [magnitude - at(low), at(high) - magnitude];
  return sign + (below < above || (below === above && low % 2 === 0) ? low : high);
}

const asBytes = (array: Uint16Array | Float32Array): Uint8Array => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
const patterns = (bytes: Uint8Array): Uint16Array => new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2);
const all16 = Uint16Array.from({ length: 0x10000 }, (_, i) => i);

describe.each(formats)("%s", (format) => {
  test("all 65,536 patterns widen to the value they stand for", () => {
    const wide = widened(asBytes(all16), format);
    const wrong = [...all16].filter((pattern) => !Object.is(wide[pattern], valueOf(pattern, exponentBits[format])));
    expect(wrong).toEqual([]);
  });

  test("all patterns survive the way to float32 and back; a NaN stays NaN with its sign", () => {
    const back = patterns(converted(converted(asBytes(all16), format, "float32"), "float32", format));
    const wrong = [...all16].filter((pattern) => {
      const result = back[pattern] ?? 0;
      return Number.isNaN(valueOf(pattern, exponentBits[format])) ? !Number.isNaN(valueOf(result, exponentBits[format])) || result >> 15 !== pattern >> 15 : result !== pattern;
    });
    expect(wrong).toEqual([]);
  });

  test("every midpoint between neighbours, and the float32 on each side of it, rounds to nearest even", () => {
    const values: number[] = [];
    const bits = new Uint32Array(1);
    const float = new Float32Array(bits.buffer);
    for (let pattern = 0; pattern < 0x7fff; pattern++) {
      const [low, high] = [valueOf(pattern, exponentBits[format]), valueOf(pattern + 1, exponentBits[format])];
      if (!Number.isFinite(low) || Number.isNaN(high)) continue;
      const middle = Number.isFinite(high) ? (low + high) / 2 : low + (low - valueOf(pattern - 1, exponentBits[format])) / 2;
      float[0] = middle;
      const middleBits = bits[0] ?? 0;
      for (const neighbour of [middleBits - 1, middleBits, middleBits + 1]) {
        if (neighbour < 0) continue;
        bits[0] = neighbour;
        values.push(float[0], -float[0]);
      }
    }
    check(values, format);
  });

  test("random float32 patterns of every exponent, and the edges", () => {
    let state = 12345;
    const random = Uint32Array.from({ length: 200_000 }, () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0));
    // The low bits of a linear congruential generator have short periods: mix them.
    random.forEach((value, i) => (random[i] = value ^ (value >>> 15) ^ (value << 13)));
    const edges = [0, -0, Infinity, -Infinity, 65504, 65519.99609375, 65520, 65536, 2 ** -14, 2 ** -24, 2 ** -25, 1.0000001 * 2 ** -25, 3 * 2 ** -26, 2 ** -126, 2 ** -133, 2 ** -134, 2 ** -149, (2 - 2 ** -23) * 2 ** 127, (2 - 2 ** -8) * 2 ** 127];
    check([...new Float32Array(random.buffer), ...edges, ...edges.map((x) => -x)], format);
  });

  function check(values: readonly number[], to: "float16" | "bfloat16"): void {
    const floats = Float32Array.from(values);
    const result = patterns(converted(asBytes(floats), "float32", to));
    const wrong = [...floats].flatMap((value, i) => {
      const pattern = result[i] ?? -1;
      if (Number.isNaN(value)) return Number.isNaN(valueOf(pattern, exponentBits[to])) ? [] : [value];
      return pattern === nearest(value, to) ? [] : [value];
    });
    expect(wrong.slice(0, 10)).toEqual([]);
  }
});

test("between the two 16-bit formats, one rounding", () => {
  for (const [from, to] of [["float16", "bfloat16"], ["bfloat16", "float16"]] as const) {
    const result = patterns(converted(asBytes(all16), from, to));
    const wrong = [...all16].filter((pattern) => {
      const value = valueOf(pattern, exponentBits[from]);
      return !Number.isNaN(value) && result[pattern] !== nearest(value, to);
    });
    expect(wrong).toEqual([]);
  }
});

test("NaNs whose payload is only in the lost bits stay NaN", () => {
  const nan = new Float32Array(Uint32Array.of(0x7f800001, 0xff800001, 0x7fffffff, 0xffffffff).buffer);
  for (const format of formats) {
    const result = [...patterns(converted(asBytes(nan), "float32", format))];
    expect(result.map((pattern) => Number.isNaN(valueOf(pattern, exponentBits[format])))).toEqual([true, true, true, true]);
    expect(result.map((pattern) => pattern >> 15)).toEqual([0, 1, 0, 1]);
  }
});

test("bytes at an odd place in their buffer", () => {
  const floats = Float32Array.of(1, -2.5, 3);
  for (const from of storageDtypes)
    for (const by of [1, 2, 3]) {
      const source = converted(asBytes(floats), "float32", from);
      const shifted = new Uint8Array(source.length + by).subarray(by);
      shifted.set(source);
      expect([...widened(shifted, from)]).toEqual([...floats]);
    }
});

test("half an element, or one too few, is refused", () => {
  for (const bytes of [5, 2]) expect(() => convertElements({ dtype: "float16", bytes: new Uint8Array(bytes) }, "float32", new Uint8Array(8))).toThrow(`${bytes} bytes are not 2 elements`);
});

test("more elements than are converted at a time, and any remainder of them", () => {
  for (const elements of [(1 << 14) - 1, (1 << 14) + 1, 100_003]) {
    const floats = Float32Array.from({ length: elements }, (_, i) => Math.fround((i - 50_000) / 7));
    for (const from of storageDtypes)
      for (const to of storageDtypes) {
        const given = converted(asBytes(floats), "float32", from);
        const whole = converted(given, from, to);
        for (const i of [0, 1, 2, 3, elements >> 1, elements - 2, elements - 1]) {
          const [a, b] = [given, whole].map((bytes, side) => ((size) => bytes.slice(i * size, (i + 1) * size))(bytesPerElement[side ? to : from]));
          expect(converted(a as Uint8Array, from, to)).toEqual(b);
        }
      }
  }
});

test("parts cover a weight from its first element to its last, a whole number of them in each", () => {
  const source = { from: "file", path: "w", offset: 64, dtype: "bfloat16" } as const;
  const parts = [...convertedParts(source, (2 << 20) + 3, "float32")].map(({ piece, scales }) => ({ ...piece.inputs[0], bytes: piece.bytes, scales }));
  expect(parts).toEqual([
    { source, first: 0, count: 1 << 20, bytes: 4 << 20 },
    { source, first: 1 << 20, count: 1 << 20, bytes: 4 << 20 },
    { source, first: 2 << 20, count: 3, bytes: 12 },
  ]);
  expect([...convertedParts(source, 0, "float32")]).toEqual([]);
});
