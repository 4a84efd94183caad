import { convert } from "./convert.js";
import { type Elements, rangeBytes, readElements } from "./elements.js";
import type { Piece } from "./pieces.js";
import { quantize } from "./quantize.js";

/**
 * Makes the bytes of a piece from its inputs: fills `into`, and returns the scales of its rows if they have any. Depends on
 * nothing else and keeps nothing; the inputs are its own to overwrite. `into` is aligned to 8 bytes.
 */
type Transform<Parameters> = (inputs: readonly Elements[], parameters: Parameters, into: Uint8Array) => Float32Array | undefined;

/** By the name that a piece calls it. */
const transforms = { convert, quantize };

type Transforms = typeof transforms;

export type TransformCall = { [Name in keyof Transforms]: { readonly transform: Name; readonly parameters: Parameters<Transforms[Name]>[1] } }[keyof Transforms];

/** Makes pieces in `into`, one after another, and returns the scales of each. Keeps the memory of the inputs for the next. */
export function pieceMaker(): (piece: Piece, into: Uint8Array) => Float32Array | undefined {
  const memory: Uint8Array[] = [];
  const memoryOf = (input: number, bytes: number): Uint8Array => {
    const kept = memory[input];
    const enough = kept && kept.length >= bytes ? kept : (memory[input] = new Uint8Array(bytes));
    return enough.subarray(0, bytes);
  };
  return ({ inputs, transform, parameters }, into) => {
    const elements = inputs.map((range, i) => readElements(range, memoryOf(i, rangeBytes(range))));
    return (transforms[transform] as Transform<typeof parameters>)(elements, parameters, into);
  };
}
