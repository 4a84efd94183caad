import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { fail } from "../../core/diagnostics.js";
import { bytesPerElement, type StorageDtype } from "../../core/dtype.js";
import { weightsDiagnostics } from "./diagnostics.js";
import { initialize, type InitializedTensor } from "./random.js";
import { readingNow } from "./system-errors.js";

/** Elements of a weight, in the byte order of the machine. */
export interface Elements {
  readonly dtype: StorageDtype;
  readonly bytes: Uint8Array;
}

/** Where the elements of a weight come from. Plain data, which crosses to a worker. */
export type ElementSource =
  /** A file of theirs, `offset` bytes from its start. */
  | { readonly from: "file"; readonly path: string; readonly offset: number; readonly dtype: StorageDtype }
  /** Nowhere: float32, made up. */
  | { readonly from: "initializer"; readonly tensor: InitializedTensor; readonly seed: number };

/** `count` elements of a source from index `first` on. */
export interface ElementRange {
  readonly source: ElementSource;
  readonly first: number;
  readonly count: number;
}

export const rangeBytes = ({ source, count }: ElementRange): number => count * bytesPerElement[dtypeOfSource(source)];

const dtypeOfSource = (source: ElementSource): StorageDtype => (source.from === "file" ? source.dtype : "float32");

/**
 * The elements of a range, in `memory`, which has `rangeBytes` bytes and is aligned to float32. Blocks the thread.
 * @throws LayerweaveError `weights/not-found`, `weights/unreadable`, `weights/truncated` when the file changed since it was opened.
 */
export function readElements({ source, first, count }: ElementRange, memory: Uint8Array): Elements {
  if (source.from === "file") readFile(source.path, source.offset + first * bytesPerElement[source.dtype], memory);
  else initialize(source.tensor, source.seed, new Float32Array(memory.buffer, memory.byteOffset, count), first);
  return { dtype: dtypeOfSource(source), bytes: memory };
}

function readFile(path: string, position: number, into: Uint8Array): void {
  readingNow(path, () => {
    const file = openSync(path, "r");
    try {
      let filled = 0;
      while (filled < into.length) {
        const read = readSync(file, into, filled, into.length - filled, position + filled);
        if (read === 0) fail(weightsDiagnostics.truncated, { file: path, expectedBytes: position + into.length, foundBytes: fstatSync(file).size });
        filled += read;
      }
    } finally {
      closeSync(file);
    }
  });
}
