import type { WeightPacking } from "../../core/manifest.js";

/** Where element [row, column] of a packed matrix lies, in elements: `packed_index` of kernels/include/packed_weights.h, as it is written there. */
function packedIndex(isInt8: boolean, row: number, column: number, columns: number): number {
  const half = (Math.floor(row / 32) * Math.ceil(columns / 32) + Math.floor(column / 32)) * 2 + Math.floor((row % 32) / 16);
  const lane = (row % 8) * 4 + Math.floor((column % 32) / 8);
  const lower = Math.floor((row % 16) / 8);
  const i = column % 8;
  if (isInt8) return (half * 32 + lane) * 16 + lower * 8 + Math.floor(i / 4) * 4 + [0, 2, 1, 3][i % 4]!;
  return ((half * 2 + Math.floor(i / 4)) * 32 + lane) * 8 + Math.floor((i % 4) / 2) * 4 + lower * 2 + (i % 2);
}

/** Packed row of a row of each of a weight's sources: the gate and the up matrix of a pair, or the rows as they come. */
export const packedRow = (layout: WeightPacking["layout"], row: number, source: number): number =>
  layout === "panels" ? row : Math.floor(row / 16) * 32 + (row % 16) + source * 16;

/** The matrices [rows, columns] that one packed matrix holds: one, or gate and up. */
export function unpacked<T extends Int8Array | Uint16Array>(packed: T, { layout, rows, columns }: WeightPacking): readonly number[][] {
  const isInt8 = packed instanceof Int8Array;
  return Array.from({ length: layout === "panels" ? 1 : 2 }, (_, source) =>
    Array.from({ length: rows * columns }, (_, i) => packed[packedIndex(isInt8, packedRow(layout, Math.floor(i / columns), source), i % columns, columns)] as number),
  );
}

/** Elements that are padding must be 0: the sum of magnitudes tells. */
export const magnitude = (elements: Iterable<number>): number => Array.from(elements).reduce((sum, x) => sum + Math.abs(x), 0);
