import { bytesPerElement } from "../../core/dtype.js";
import type { WeightPacking } from "../../core/manifest.js";
import type { WeightDtype } from "../ir/parameter.js";
import { convertElements } from "./convert.js";
import type { ElementRange, Elements, ElementSource } from "./elements.js";
import { chunkColumns, packedShape, panelRows } from "./panels.js";
import { type Part, pieceElements } from "./pieces.js";
import { quantize } from "./quantize.js";

/** Rows of a panel that lie together: those of one operand of the matrix units. */
const halfRows = panelRows / 2;

/** A matrix [rows, columns] whose elements are to be packed. */
export interface PackedSource {
  readonly name: string;
  readonly rows: number;
  readonly source: ElementSource;
}

export interface PackParameters {
  readonly dtype: WeightDtype;
  readonly layout: WeightPacking["layout"];
  readonly columns: number;
  /** Which rows of which weight each input holds. */
  readonly inputs: readonly { readonly weight: string; readonly firstRow: number }[];
}

/**
 * One packed matrix, in pieces of whole panels. `panels`: the rows of the sources one after the other. `gated-panels`: of two
 * sources alike, 16 rows of either to a panel. `scales`, of int8 weights, are in the order of the packed rows, those of padding 0.
 */
export function* packedParts(sources: readonly PackedSource[], columns: number, dtype: WeightDtype, layout: WeightPacking["layout"], scales: Float32Array | undefined): Generator<Part, void, undefined> {
  const rowsPerPanel = layout === "panels" ? panelRows : halfRows;
  const rows = layout === "panels" ? sources.reduce((sum, source) => sum + source.rows, 0) : (sources[0]?.rows ?? 0);
  const [, packedColumns] = packedShape([rows, columns]);
  const panelsPerPiece = Math.max(1, Math.floor(pieceElements / (panelRows * packedColumns)));
  for (let first = 0; first < rows; first += panelsPerPiece * rowsPerPanel) {
    const end = Math.min(first + panelsPerPiece * rowsPerPanel, rows);
    const panels = Math.ceil((end - first) / rowsPerPanel);
    const ranges = layout === "panels" ? rangesOf(sources, first, end) : sources.map((source) => ({ ...source, first, count: end - first }));
    const inputs: ElementRange[] = ranges.map(({ source, first, count }) => ({ source, first: first * columns, count: count * columns }));
    const parameters: PackParameters = { dtype, layout, columns, inputs: ranges.map(({ name, first }) => ({ weight: name, firstRow: first })) };
    const firstPanel = first / rowsPerPanel;
    yield {
      piece: { inputs, bytes: panels * panelRows * packedColumns * bytesPerElement[dtype], transform: "pack", parameters },
      ...(scales ? { scales: scales.subarray(firstPanel * panelRows, (firstPanel + panels) * panelRows) } : {}),
    };
  }
}

interface RowRange extends PackedSource {
  readonly first: number;
  readonly count: number;
}

/** Rows `first` to `end` of the sources one after the other. */
function rangesOf(sources: readonly PackedSource[], first: number, end: number): readonly RowRange[] {
  let before = 0;
  return sources.flatMap((source) => {
    const [from, to] = [Math.max(first - before, 0), Math.min(end - before, source.rows)];
    before += source.rows;
    return from < to ? [{ ...source, first: from, count: to - from }] : [];
  });
}

/** Rows in the type they are stored in, with their scales if they are int8. */
interface Rows {
  readonly bytes: Uint8Array;
  readonly count: number;
  readonly scales?: Float32Array;
}

/** The transform `pack`: writes whole panels to `into`, and returns the scales of their rows if they are int8. */
export function pack(inputs: readonly Elements[], { dtype, layout, columns, inputs: origins }: PackParameters, into: Uint8Array): Float32Array | undefined {
  const stored = inputs.map((elements, i) => storedRows(elements, columns, dtype, origins[i] as PackParameters["inputs"][number]));
  const [, packedColumns] = packedShape([0, columns]);
  const rowBytes = columns * bytesPerElement[dtype];
  const packedRowBytes = packedColumns * bytesPerElement[dtype];
  const halves = into.length / (halfRows * packedRowBytes);
  const scales = dtype === "int8" ? new Float32Array(halves * halfRows) : undefined;
  const to = new Int32Array(into.buffer, into.byteOffset, into.length >> 2);
  const permute = dtype === "int8" ? permuteCodes : permutePairs;
  const offsets = (dtype === "int8" ? codeOffsets : pairOffsets)(packedRowBytes >> 2);
  const gathered = new Uint8Array(halfRows * packedRowBytes);
  const gatheredWords = new Int32Array(gathered.buffer);
  for (let half = 0; half < halves; half++) {
    const from = layout === "panels" ? stored : [stored[half % 2] as Rows];
    const first = layout === "panels" ? half * halfRows : (half >> 1) * halfRows;
    const outAt = (half >> 1) * 2 * halfRows * (packedRowBytes >> 2) + (half % 2) * offsets.length;
    const [only] = from;
    if (from.length === 1 && only && rowBytes === packedRowBytes && first + halfRows <= only.count) {
      if (scales && only.scales) scales.set(only.scales.subarray(first, first + halfRows), half * halfRows);
      permute(new Int32Array(only.bytes.buffer, only.bytes.byteOffset, only.bytes.length >> 2), first * (rowBytes >> 2), offsets, to, outAt, packedColumns);
      continue;
    }
    gathered.fill(0);
    for (let i = 0; i < halfRows; i++) {
      const [rows, row] = rowAt(from, first + i);
      if (!rows) continue;
      gathered.set(rows.bytes.subarray(row * rowBytes, (row + 1) * rowBytes), i * packedRowBytes);
      if (scales && rows.scales) scales[half * halfRows + i] = rows.scales[row] as number;
    }
    permute(gatheredWords, 0, offsets, to, outAt, packedColumns);
  }
  return scales;
}

function storedRows(elements: Elements, columns: number, dtype: WeightDtype, { weight, firstRow }: PackParameters["inputs"][number]): Rows {
  const total = elements.bytes.length / bytesPerElement[elements.dtype];
  const count = total / columns;
  if (elements.dtype === dtype) return { bytes: elements.bytes, count };
  const bytes = new Uint8Array(total * bytesPerElement[dtype]);
  if (dtype === "int8") return { bytes, count, scales: quantize([elements], { weight, width: columns, firstRow }, bytes) };
  convertElements(elements, dtype, bytes);
  return { bytes, count };
}

/** Row `row` of several blocks of rows: the block and its row in it; no block for a row beyond the last. */
function rowAt(blocks: readonly Rows[], row: number): readonly [Rows | undefined, number] {
  let before = 0;
  for (const rows of blocks) {
    if (row < before + rows.count) return [rows, row - before];
    before += rows.count;
  }
  return [undefined, 0];
}

// A chunk of a half is 16 rows by 32 columns; lane 4g + t holds columns 8t … 8t + 7 of rows g and g + 8. Elements are moved four
// bytes at a time: `offsets` says where each such word of a packed chunk stands, in words from the first row's part of the chunk.

const lanes = Array.from({ length: 32 }, (_, lane) => ({ row: lane >> 2, column: (lane & 3) * 8 }));

/** int8, a lane's [lower row 2][column / 4] words of four codes. */
function codeOffsets(rowWords: number): Int32Array {
  return Int32Array.from(lanes.flatMap(({ row, column }) => [0, 8].flatMap((lower) => [0, 4].map((c) => (row + lower) * rowWords + ((column + c) >> 2)))));
}

/** 16 bits, in two steps of four columns, a lane's [column / 2][lower row 2] words of two elements. */
function pairOffsets(rowWords: number): Int32Array {
  return Int32Array.from([0, 4].flatMap((step) => lanes.flatMap(({ row, column }) => [0, 2].flatMap((c) => [0, 8].map((lower) => (row + lower) * rowWords + ((column + step + c) >> 1))))));
}

type Permute = (from: Int32Array, first: number, offsets: Int32Array, to: Int32Array, at: number, columns: number) => void;

// The loops below do four words at a time, since half of the time would go into the loop.

const permuteCodes: Permute = (from, first, offsets, to, at, columns) => {
  const [chunks, words] = [columns / chunkColumns, offsets.length];
  for (let chunk = 0; chunk < chunks; chunk++) {
    const base = first + chunk * (chunkColumns / 4);
    const out = at + chunk * 2 * words;
    for (let i = 0; i < words; i += 4) {
      to[out + i] = spread(from[base + (offsets[i] as number)] as number);
      to[out + i + 1] = spread(from[base + (offsets[i + 1] as number)] as number);
      to[out + i + 2] = spread(from[base + (offsets[i + 2] as number)] as number);
      to[out + i + 3] = spread(from[base + (offsets[i + 3] as number)] as number);
    }
  }
};

/** Codes 0, 1, 2, 3 of a word go to bytes 0, 2, 1, 3: neighbours stand 16 bits apart, as in the register of two 16-bit values that they become. */
const spread = (word: number): number => (word & 0xff0000ff) | ((word & 0xff00) << 8) | ((word >>> 8) & 0xff00);

const permutePairs: Permute = (from, first, offsets, to, at, columns) => {
  const [chunks, words] = [columns / chunkColumns, offsets.length];
  for (let chunk = 0; chunk < chunks; chunk++) {
    const base = first + chunk * (chunkColumns / 2);
    const out = at + chunk * 2 * words;
    for (let i = 0; i < words; i += 4) {
      to[out + i] = from[base + (offsets[i] as number)] as number;
      to[out + i + 1] = from[base + (offsets[i + 1] as number)] as number;
      to[out + i + 2] = from[base + (offsets[i + 2] as number)] as number;
      to[out + i + 3] = from[base + (offsets[i + 3] as number)] as number;
    }
  }
};
