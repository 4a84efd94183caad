import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import type { WeightPacking } from "../../core/manifest.js";
import { pack, packedParts, type PackedSource } from "../../compiler/weights/pack.js";
import type { Elements } from "../../compiler/weights/elements.js";
import { magnitude, packedRow, unpacked } from "./unpack.js";

interface Case {
  readonly dtype: "int8" | "bfloat16";
  readonly layout: WeightPacking["layout"];
  readonly rows: number;
  readonly columns: number;
  readonly fnv1a: string;
}

/** Made by the header itself: packed-vectors.cc. */
const cases = JSON.parse(readFileSync(new URL("packed-vectors.json", import.meta.url), "utf8")) as readonly Case[];

/** As in packed-vectors.cc. Each row's largest code is 127, so that quantising gives back the codes. */
const code = (row: number, column: number) => (column === 0 ? 127 : ((row * 31 + column * 17) % 255) - 127);
const bits = (row: number, column: number) => (row * 1031 + column * 7 + 1) & 0xffff;
const firstUpRow = 1000;
const scaleOf = (row: number) => 2 ** -(row % 7);

const sourcesOf = ({ layout, rows }: Case) => (layout === "panels" ? [{ first: 0, rows }] : [0, firstUpRow].map((first) => ({ first, rows })));

/** Rows `first` on of a matrix: bfloat16 by its bits, or what quantising turns into the codes. */
function elements({ dtype, columns }: Case, first: number, rows: number): Elements {
  const at = <T>(of: (row: number, column: number) => T) => Array.from({ length: rows * columns }, (_, i) => of(first + Math.floor(i / columns), i % columns));
  if (dtype === "bfloat16") return { dtype, bytes: new Uint8Array(Uint16Array.from(at(bits)).buffer) };
  return { dtype: "float32", bytes: new Uint8Array(Float32Array.from(at((row, column) => code(row, column) * scaleOf(row))).buffer) };
}

/** The packed bytes and scales, made piece by piece as a worker makes them; `split` cuts the rows of the first source in two weights. */
function packed(packing: Case, split = 0): { readonly bytes: Uint8Array; readonly scales: Float32Array | undefined } {
  const { dtype, layout, columns } = packing;
  const wholes = sourcesOf(packing);
  const cut = split > 0 ? wholes.flatMap(({ first, rows }) => [{ first, rows: split }, { first: first + split, rows: rows - split }]) : wholes;
  // The generator passes the source on without looking at it: its first row stands in for it here.
  const sources: PackedSource[] = cut.map(({ first, rows }) => ({ name: `w${first}`, rows, source: { from: "file", path: "", offset: first, dtype: "float32" } }));
  const paddedRows = layout === "panels" ? Math.ceil(packing.rows / 32) * 32 : Math.ceil(packing.rows / 16) * 32;
  const scales = dtype === "int8" ? new Float32Array(paddedRows).fill(Number.NaN) : undefined;
  const made: Uint8Array[] = [];
  for (const { piece, scales: ofPart } of packedParts(sources, columns, dtype, layout, scales)) {
    if (piece.transform !== "pack") throw new Error(piece.transform);
    const inputs = piece.inputs.map(({ source, first, count }) => elements(packing, (source as { offset: number }).offset + first / columns, count / columns));
    const into = new Uint8Array(piece.bytes).fill(0xee);
    const ofRows = pack(inputs, piece.parameters, into);
    if (ofRows) ofPart?.set(ofRows);
    made.push(into);
  }
  return { bytes: Uint8Array.from(made.flatMap((bytes) => Array.from(bytes))), scales };
}

function fnv1a(bytes: Uint8Array): string {
  let hash = 0xcbf29ce484222325n;
  for (const byte of bytes) hash = ((hash ^ BigInt(byte)) * 0x100000001b3n) & 0xffffffffffffffffn;
  return hash.toString(16).padStart(16, "0");
}

describe.each(cases)("$layout of $dtype [$rows, $columns]", (packing) => {
  const { dtype, layout, rows, columns } = packing;
  const { bytes, scales } = packed(packing);

  test("are the bytes that the kernels' header makes", () => {
    expect(fnv1a(bytes)).toBe(packing.fnv1a);
  });

  test("hold every element once and zeros besides", () => {
    const typed = dtype === "int8" ? new Int8Array(bytes.buffer) : new Uint16Array(bytes.buffer);
    const matrices = unpacked(typed, packing);
    sourcesOf(packing).forEach(({ first }, source) => {
      const of = dtype === "int8" ? code : bits;
      expect(matrices[source]).toEqual(Array.from({ length: rows * columns }, (_, i) => of(first + Math.floor(i / columns), i % columns)));
    });
    expect(magnitude(typed)).toBe(magnitude(matrices.flat()));
  });

  if (dtype === "int8") test("have each row's scale at its packed row, and 0 for padding", () => {
    const expected = new Float32Array(scales!.length);
    sourcesOf(packing).forEach(({ first }, source) => {
      for (let row = 0; row < rows; row++) expected[packedRow(layout, row, source)] = scaleOf(first + row);
    });
    expect(scales).toEqual(expected);
  });

  if (layout === "panels" && rows > 2) test("are the same when the rows come from two weights", () => {
    expect(packed(packing, Math.floor(rows / 3)).bytes).toEqual(bytes);
  });
});

test("large matrices come in several pieces of whole panels", () => {
  const source: PackedSource = { name: "w", rows: 100, source: { from: "file", path: "", offset: 0, dtype: "bfloat16" } };
  const pieces = [...packedParts([source], 16_384, "bfloat16", "panels", undefined)].map(({ piece }) => piece);
  expect(pieces.map(({ bytes }) => bytes)).toEqual([64, 64].map((rows) => rows * 16_384 * 2));
  expect(pieces.map(({ inputs }) => inputs.map(({ first, count }) => [first / 16_384, count / 16_384]))).toEqual([[[0, 64]], [[64, 36]]]);
});
