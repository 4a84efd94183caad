import type { ElementRange } from "./elements.js";
import type { TransformCall } from "./transforms.js";

/** Elements in a piece, where a row is no longer: 4 MiB of float32. */
export const pieceElements = 1 << 20;

/** Bytes of a weight that are made by themselves, from the elements they depend on. Plain data, which crosses to a worker. */
export type Piece = TransformCall & {
  readonly inputs: readonly ElementRange[];
  /** What the transform makes of them. */
  readonly bytes: number;
};

/** A piece of a weight, and where the scales of its rows go if it has any. */
export interface Part {
  readonly piece: Piece;
  readonly scales?: Float32Array;
}
