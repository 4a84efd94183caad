import { expect, test } from "vitest";
import * as fc from "fast-check";
import { quantize, quantizedParts } from "../../compiler/weights/quantize.js";
import { widened } from "./elements.js";

/** Quantises a matrix. */
function quantized(values: readonly number[] | Float32Array, width: number) {
  const codes = new Int8Array(values.length);
  const elements = { dtype: "float32", bytes: new Uint8Array(Float32Array.from(values).buffer) } as const;
  const scales = quantize([elements], { weight: "w", width, firstRow: 0 }, new Uint8Array(codes.buffer));
  return { codes: [...codes], scales: [...scales] };
}

test("the largest magnitude of a row is 127, whatever its sign", () => {
  expect(quantized([-2, 1, 0, 0.5, 0.25, 0.125], 3)).toEqual({ codes: [-127, 64, 0, 127, 64, 32], scales: [Math.fround(2 / 127), Math.fround(0.5 / 127)] });
});

test("halves go to the even code", async () => {
  const { codes, scales } = quantized([127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -125.5], 9);
  expect(scales).toEqual([1]);
  expect(codes.map((code) => code + 0)).toEqual([127, 0, 2, 2, 0, -2, -2, 126, -126]);
});

test("a row of zeros has scale 1, as has a row whose scale would be 0", () => {
  expect(quantized([0, -0, 0], 3)).toEqual({ codes: [0, 0, 0], scales: [1] });
  expect(quantized([2 ** -149, -(2 ** -149), 2 ** -145], 3)).toEqual({ codes: [0, 0, 0], scales: [1] });
});

test("a subnormal scale is rounded so far that codes are held at 127", async () => {
  const { codes, scales } = quantized([(1.4 * 127) * 2 ** -149, 0], 2);
  expect(scales).toEqual([2 ** -149]);
  expect(codes).toEqual([127, 0]);
});

test("the largest float32 is quantised like any other", async () => {
  const largest = (2 - 2 ** -23) * 2 ** 127;
  expect((quantized([largest, -largest], 2)).codes).toEqual([127, -127]);
});

test.each([["NaN", Number.NaN], ["an infinity", Number.NEGATIVE_INFINITY]])("%s is refused, with its row", async (_, value) => {
  await expect((async () => quantized([1, 2, 3, 4, value, 6, 7, 8], 4))()).rejects.toMatchObject({ diagnostics: [{ code: "weights/not-finite", values: { weight: "w", row: 1 } }] });
});

test("each element is within half a scale, and each row is quantised as it is alone", () => {
  const matrix = fc.integer({ min: 1, max: 7 }).chain((width) =>
    fc.array(fc.array(fc.float({ noNaN: true, noDefaultInfinity: true, min: Math.fround(-1e30), max: Math.fround(1e30) }), { minLength: width, maxLength: width }), { maxLength: 6 }).map((rows) => ({ width, rows })),
  );
  fc.assert(
    fc.property(matrix, ({ width, rows }) => {
      const values = Float32Array.from(rows.flat());
      const { codes, scales } = quantized(values, width);
      const alone = rows.map((row) => quantized(row, width));
      expect({ codes, scales }).toEqual({ codes: alone.flatMap((row) => row.codes), scales: alone.flatMap((row) => row.scales) });
      values.forEach((value, i) => {
        const [code, scale] = [codes[i] as number, scales[Math.floor(i / width)] as number];
        expect(Math.abs(code)).toBeLessThanOrEqual(127);
        // The scale itself is rounded to float32.
        if (Math.abs(value) > 1e-30) expect(Math.abs(value - code * scale)).toBeLessThanOrEqual(scale * (0.5 + 127 * 2 ** -23));
      });
    }),
  );
});

test("codes are the quotients rounded to nearest even, ties and their neighbours included", () => {
  const [float, bits] = ((buffer) => [new Float32Array(buffer), new Int32Array(buffer)] as const)(new ArrayBuffer(4));
  const quotientsRounded = fc.property(fc.float({ noNaN: true, noDefaultInfinity: true, min: 2 ** -100, max: 2 ** 100 }), (largest) => {
    const scale = Math.fround(largest / 127);
    const values = [largest];
    for (let k = 0; k < 127; k++)
      for (const step of [-1, 0, 1]) {
        float[0] = (k + 0.5) * scale;
        bits[0] = (bits[0] as number) + step;
        if (float[0] < largest) values.push(float[0]);
      }
    const expected = values.map((value) => {
      const quotient = value / scale;
      const below = Math.floor(quotient);
      return quotient - below === 0.5 ? below + (below % 2) : Math.round(quotient);
    });
    expect(quantized(values, values.length).codes).toEqual(expected);
  });
  fc.assert(quotientsRounded, { numRuns: 50 });
});

test("16-bit elements get the codes of the same values in float32", () => {
  const patterns = Uint16Array.from({ length: 3 * 20_001 }, (_, i) => (i * 40503) & 0xbbff);
  for (const dtype of ["bfloat16", "float16"] as const) {
    const codes = new Int8Array(patterns.length);
    const bytes = new Uint8Array(patterns.buffer);
    const scales = quantize([{ dtype, bytes }], { weight: "w", width: 20_001, firstRow: 0 }, new Uint8Array(codes.buffer));
    expect({ codes: [...codes], scales: [...scales] }).toEqual(quantized(widened(bytes, dtype), 20_001));
  }
});

test("parts are whole rows, with the places of their scales; a row is never cut", () => {
  const source = { from: "file", path: "w", offset: 64, dtype: "bfloat16" } as const;
  const partsOf = (rows: number, width: number) => {
    const scales = new Float32Array(rows);
    return [...quantizedParts(source, "w", [rows, width], scales)].map((part) => ({
      ...part.piece.inputs[0],
      ...part.piece.parameters,
      bytes: part.piece.bytes,
      scales: [(part.scales?.byteOffset ?? NaN) / 4, part.scales?.length],
    }));
  };
  const common = { source, weight: "w" };
  expect(partsOf(300, 10_000)).toEqual([
    { ...common, width: 10_000, first: 0, count: 1_040_000, firstRow: 0, bytes: 1_040_000, scales: [0, 104] },
    { ...common, width: 10_000, first: 1_040_000, count: 1_040_000, firstRow: 104, bytes: 1_040_000, scales: [104, 104] },
    { ...common, width: 10_000, first: 2_080_000, count: 920_000, firstRow: 208, bytes: 920_000, scales: [208, 92] },
  ]);
  expect(partsOf(2, (1 << 20) + 1).map(({ first, count }) => [first, count])).toEqual([[0, (1 << 20) + 1], [(1 << 20) + 1, (1 << 20) + 1]]);
  expect(partsOf(0, 5)).toEqual([]);
  expect(partsOf(5, 0)).toEqual([]);
});

test("rows of more and of fewer elements than are quantised at a time", () => {
  for (const [rows, width] of [[3, 20_001], [1000, 33], [5, 16_384]] as const) {
    const matrix = Float32Array.from({ length: rows * width }, (_, i) => ((i * 2654435761) % 4093) - 2000);
    const whole = quantized(matrix, width);
    for (const row of [0, 1, rows - 1]) {
      const alone = quantized(matrix.subarray(row * width, (row + 1) * width), width);
      expect(whole.codes.slice(row * width, (row + 1) * width)).toEqual(alone.codes);
      expect(whole.scales[row]).toBe(alone.scales[0]);
    }
  }
});
