import { expect, test } from "vitest";
import * as fc from "fast-check";
import { quantizeRows } from "../../compiler/weights/quantize.js";

/** Quantises a matrix that arrives in chunks of so many elements. */
async function quantize(values: readonly number[] | Float32Array, width: number, chunk = values.length || 1) {
  const matrix = Float32Array.from(values);
  const scales = new Float32Array(matrix.length / width);
  const chunks = function* () {
    for (let at = 0; at < matrix.length; at += chunk) yield new Uint8Array(matrix.slice(at, at + chunk).buffer);
  };
  const codes: number[] = [];
  for await (const block of quantizeRows({ name: "w", shape: [scales.length, width], chunks: chunks() }, scales)) codes.push(...new Int8Array(block.buffer, block.byteOffset, block.length));
  return { codes, scales: [...scales] };
}

test("the largest magnitude of a row is 127, whatever its sign", async () => {
  expect(await quantize([-2, 1, 0, 0.5, 0.25, 0.125], 3)).toEqual({ codes: [-127, 64, 0, 127, 64, 32], scales: [Math.fround(2 / 127), Math.fround(0.5 / 127)] });
});

test("halves go to the even code", async () => {
  const { codes, scales } = await quantize([127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -125.5], 9);
  expect(scales).toEqual([1]);
  expect(codes.map((code) => code + 0)).toEqual([127, 0, 2, 2, 0, -2, -2, 126, -126]);
});

test("a row of zeros has scale 1, as has a row whose scale would be 0", async () => {
  expect(await quantize([0, -0, 0], 3)).toEqual({ codes: [0, 0, 0], scales: [1] });
  expect(await quantize([2 ** -149, -(2 ** -149), 2 ** -145], 3)).toEqual({ codes: [0, 0, 0], scales: [1] });
});

test("a subnormal scale is rounded so far that codes are held at 127", async () => {
  const { codes, scales } = await quantize([(1.4 * 127) * 2 ** -149, 0], 2);
  expect(scales).toEqual([2 ** -149]);
  expect(codes).toEqual([127, 0]);
});

test("the largest float32 is quantised like any other", async () => {
  const largest = (2 - 2 ** -23) * 2 ** 127;
  expect((await quantize([largest, -largest], 2)).codes).toEqual([127, -127]);
});

test.each([["NaN", Number.NaN], ["an infinity", Number.NEGATIVE_INFINITY]])("%s is refused, with its row", async (_, value) => {
  await expect(quantize([1, 2, 3, 4, value, 6, 7, 8], 4)).rejects.toMatchObject({ diagnostics: [{ code: "weights/not-finite", values: { weight: "w", row: 1 } }] });
});

test("each element is within half a scale, and how the matrix is cut into chunks changes nothing", async () => {
  const matrix = fc.integer({ min: 1, max: 7 }).chain((width) =>
    fc.array(fc.array(fc.float({ noNaN: true, noDefaultInfinity: true, min: Math.fround(-1e30), max: Math.fround(1e30) }), { minLength: width, maxLength: width }), { maxLength: 6 }).map((rows) => ({ width, rows })),
  );
  await fc.assert(
    fc.asyncProperty(matrix, fc.integer({ min: 1, max: 11 }), async ({ width, rows }, chunk) => {
      const values = Float32Array.from(rows.flat());
      const { codes, scales } = await quantize(values, width);
      expect(await quantize(values, width, chunk)).toEqual({ codes, scales });
      values.forEach((value, i) => {
        const [code, scale] = [codes[i] as number, scales[Math.floor(i / width)] as number];
        expect(Math.abs(code)).toBeLessThanOrEqual(127);
        // The scale itself is rounded to float32.
        if (Math.abs(value) > 1e-30) expect(Math.abs(value - code * scale)).toBeLessThanOrEqual(scale * (0.5 + 127 * 2 ** -23));
      });
    }),
  );
});

test("a matrix of many blocks is read once, a block at a time", async () => {
  const [rows, width] = [300, 10_000];
  const scales = new Float32Array(rows);
  let given = 0;
  const chunks = function* () {
    for (let row = 0; row < rows; row++) {
      given++;
      yield new Uint8Array(new Float32Array(width).fill(row + 1).buffer);
    }
  };
  let taken = 0;
  for await (const block of quantizeRows({ name: "w", shape: [rows, width], chunks: chunks() }, scales)) {
    taken += block.length / width;
    expect(given).toBe(taken);
    expect(block.length).toBeLessThanOrEqual(1 << 20);
    expect(new Int8Array(block.buffer).every((code) => code === 127)).toBe(true);
  }
  expect(taken).toBe(rows);
  expect([...scales]).toEqual(Array.from({ length: rows }, (_, row) => Math.fround((row + 1) / 127)));
});
