import { invariant } from "../../core/diagnostics.js";
import type { WeightPacking } from "../../core/manifest.js";
import type { Parameter } from "./parameter.js";

/** How the elements of a weight of the graph come from parameters. */
export interface Recipe {
  /**
   * Matrices that follow each other in the weight, each the rows of its parameters one after the other. Most weights are one
   * matrix of one parameter. Vectors are matrices of one column.
   */
  readonly matrices: readonly (readonly Parameter[])[];
  /** What is stored of them: their elements, or the scales of their rows, which int8 elements are to be multiplied with. */
  readonly part: "elements" | "scales";
  /** The order in which kernels stream the elements; absent: row by row. */
  readonly packing?: WeightPacking["layout"];
}

export const whole = (...parameters: readonly Parameter[]): Recipe => ({ matrices: [parameters], part: "elements" });

export const scalesOf = (recipe: Recipe): Recipe => ({ ...recipe, part: "scales" });

/** Every parameter of a recipe, in the order of their rows. */
export const parametersOf = ({ matrices }: Recipe): readonly Parameter[] => matrices.flat();

/** The parameter that stands for the weight: all of a recipe are of one kind, layer and width. */
export function firstParameter({ matrices }: Recipe): Parameter {
  const parameter = matrices[0]?.[0];
  invariant(parameter, "a weight of no parameter");
  return parameter;
}

const rowsOf = ({ shape }: Parameter): number => shape[0] ?? 1;

/** Rows of each matrix of a recipe. */
export function matrixRows({ matrices }: Recipe): number {
  const [first = [], ...rest] = matrices.map((parameters) => parameters.reduce((sum, p) => sum + rowsOf(p), 0));
  invariant(rest.every((rows) => rows === first), "the matrices of one weight differ in their rows");
  return first as number;
}
