import type { Diagnostics } from "../../core/diagnostics.js";
import type { StateSlot } from "../../core/manifest.js";
import type { RmsNorm } from "../../dsl/norms.js";
import { dslDiagnostics } from "../../dsl/diagnostics.js";
import { originOf } from "../../core/origin.js";
import type { Dtype } from "../../core/dtype.js";
import type { GraphBuilder } from "../ir/builder.js";
import type { Value } from "../ir/graph.js";
import type { ParameterSpec } from "../ir/parameter.js";
import { targetDiagnostics } from "../targets/diagnostics.js";
import type { KernelLimits, Target } from "../targets/target.js";

/** What a rule knows of the model around its mixer. */
export interface ModelContext {
  readonly dModel: number;
  readonly nLayers: number;
}

/** A piece of state as a rule declares it; `plan-state` gives it names. */
export type StateSpec = Pick<StateSlot, "role" | "shape" | "growth" | "rewind"> & { readonly window?: number };

/** Graph inputs and values that every mixer may use. */
export interface LowerContext {
  readonly b: GraphBuilder;
  readonly target: Target;
  /** [B, T] int64 */
  readonly inputIds: Value;
  /** [B] int64 */
  readonly pastLengths: Value;
  /** [B] int64 */
  readonly lengths: Value;
  /** The mixer's parameter of this local name, in the type it is used in or int8 with its scales. */
  readonly parameter: (name: string) => Value;
  readonly optionalParameter: (name: string) => Value | undefined;
  /** Parameters for an op that widens bfloat16 itself: as they are stored, if all are bfloat16; else as `parameter` gives them. */
  readonly unwidened: (names: readonly string[]) => readonly Value[];
  /** The rows of several of its parameters as one weight; undefined when it has none of them. */
  readonly merged: (name: string, parts: readonly string[]) => Value | undefined;
  readonly past: (role: StateSlot["role"]) => Value;
}

export interface Lowered {
  /** [M, D], M = B·T */
  readonly y: Value;
  readonly present: Readonly<Partial<Record<StateSlot["role"], Value>>>;
}

/** All the compiler knows of one kind of mixer or channel mixer. */
export interface Rules<S> {
  readonly parameters: (spec: S, model: ModelContext) => readonly ParameterSpec[];
  readonly state: (spec: S) => readonly StateSpec[];
  /** Reports what the types of the DSL can't rule out; `path` is the mixer's place in the layout. */
  readonly check: (spec: S, path: string, model: ModelContext, found: Diagnostics) => void;
  /** Reports what the kernels of a target do not take. */
  readonly checkLimits: (spec: S, path: string, limits: KernelLimits, found: Diagnostics) => void;
  /** x [M, D] → y [M, D] */
  readonly lower: (spec: S, x: Value, context: LowerContext) => Lowered;
}

/** [M, C] → [B, T, C] */
export function perToken({ b, inputIds }: LowerContext, label: string, x: Value): Value {
  const width = x.shape[1] as number;
  const shape = b.shared(`token_shape_${width}`, () =>
    b.op("Concat", `token_shape_${width}`, [b.shared("ids_shape", () => b.op("Shape", "ids_shape", [inputIds])), b.ints(width)], { axis: 0 }),
  ); // [3]
  return b.op("Reshape", label, [x, shape]); // [B, T, C]
}

/** [B, T, C] → [M, C] */
export function flat({ b }: Pick<LowerContext, "b">, label: string, x: Value): Value {
  return b.reshape(label, x, [-1, x.shape.at(-1) as number]); // [M, C]
}

/** x [M, C] → [M, C]; without a learned scale the scale is 1. */
export function normalise(b: GraphBuilder, label: string, x: Value, norm: RmsNorm, weight: Value | undefined): Value {
  const scale = weight ?? ones(b, x.shape.at(-1) as number, x.dtype); // [C]
  return b.op("RMSNormalization", label, [x, scale], { epsilon: norm.eps, axis: -1 });
}

/** The scale of a norm that has none. */
export function ones(b: GraphBuilder, width: number, dtype: Dtype): Value {
  return b.floats([width], new Array<number>(width).fill(1), dtype);
}

/** Reports every field of `spec` that is not a positive whole number. */
export function checkCounts<S extends object>(spec: S, fields: readonly (keyof S & string)[], path: string, found: Diagnostics): boolean {
  const bad = fields.filter((field) => !isCount(spec[field]));
  for (const field of bad) found.report(dslDiagnostics["not-a-count"], { field, found: Number(spec[field]) }, originOf(spec, `${path}.${field}`));
  return bad.length === 0;
}

function isCount(value: unknown): boolean {
  return typeof value === "number" && Number.isInteger(value) && value >= 1 && value < 2 ** 31;
}

/** Reports every field of `spec` that is not a positive finite number. */
export function checkPositive<S extends object>(spec: S, fields: readonly (keyof S & string)[], path: string, found: Diagnostics): void {
  for (const field of fields) {
    const value = Number(spec[field]);
    if (!Number.isFinite(value) || value <= 0) found.report(dslDiagnostics["not-a-positive-number"], { field, found: value }, originOf(spec, `${path}.${field}`));
  }
}

/** Reports every field of `spec` that is no multiple of what the kernels read at a time. */
export function checkWidths<S extends object>(spec: S, fields: readonly (keyof S & string)[], path: string, { widthMultiple }: KernelLimits, found: Diagnostics): void {
  for (const field of fields)
    if (Number(spec[field]) % widthMultiple !== 0) found.report(targetDiagnostics["odd-width"], { field, value: Number(spec[field]), multiple: widthMultiple }, originOf(spec, `${path}.${field}`));
}

/** Reports every field of `spec` that is larger than the kernels take. */
export function checkMost<S extends object>(spec: S, fields: readonly (keyof S & keyof KernelLimits)[], path: string, limits: KernelLimits, found: Diagnostics): void {
  for (const field of fields)
    if (Number(spec[field]) > limits[field]) found.report(targetDiagnostics["too-large"], { field, value: Number(spec[field]), most: limits[field] }, originOf(spec, `${path}.${field}`));
}
