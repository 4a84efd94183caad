import { invariant } from "../../core/diagnostics.js";
import { printShape } from "../../core/dim.js";
import type { Attributes, Type, Value } from "../ir/graph.js";
import type { GraphBuilder } from "../ir/builder.js";

export type AttributeType = "int" | "float" | "ints" | "string" | "graph";

/** An output's type, and its elements where they are known. */
export type Inferred = Type & Pick<Value, "content">;

/** What the IR knows of an op: arity, attributes, and the rule for its outputs' types. */
export interface OpDefinition {
  /** Fewest and most inputs; the most may be infinite. */
  readonly inputs: readonly [number, number];
  readonly attributes: Readonly<Record<string, AttributeType>>;
  readonly infer: (inputs: Inputs, attributes: Attributes) => readonly Inferred[];
}

/** One of our ops, which is one node for a kernel to take. */
export interface KernelOpDefinition extends OpDefinition {
  /** Names of the inputs, in order; the last may stand for many (`experts...`). */
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
}

/** One of our ops that has a body in standard ops for where there is no kernel. */
export interface CustomOpDefinition extends KernelOpDefinition {
  /** Names the variant of the body that these inputs and attributes need. */
  readonly overload: (inputs: Inputs, attributes: Attributes) => string;
  readonly body: (b: GraphBuilder, inputs: Inputs, attributes: Attributes) => readonly Value[];
}

/** The inputs of a node, with checks for the rules. */
export class Inputs {
  constructor(
    private readonly op: string,
    readonly values: readonly (Value | null)[],
  ) {}

  get count(): number {
    return this.values.length;
  }

  at(index: number): Value {
    const value = this.values[index];
    invariant(value, `${this.op}: input ${index} is missing`);
    return value;
  }

  optional(index: number): Value | null {
    return this.values[index] ?? null;
  }

  rest(from: number): readonly Value[] {
    return this.values.slice(from).map((_, i) => this.at(from + i));
  }

  /** The elements of an input that must be known while compiling. */
  ints(index: number): readonly number[] {
    const { constant } = this.at(index);
    invariant(constant, `${this.op}: input ${index} must be a constant`);
    return constant;
  }

  expect(condition: boolean, what: string): void {
    invariant(condition, () => `${this.op}: ${what}; inputs are ${this.values.map((v) => (v ? `${v.dtype}${printShape(v.shape)}` : "absent")).join(", ")}`);
  }
}

export function int(attributes: Attributes, name: string, fallback?: number): number {
  const value = attributes[name] ?? fallback;
  invariant(typeof value === "number", `attribute ${name} is missing`);
  return value;
}

/** An attribute that is a number of any kind. */
export const float = int;

export function ints(attributes: Attributes, name: string): readonly number[] {
  const value = attributes[name];
  invariant(Array.isArray(value), `attribute ${name} is missing`);
  return value as readonly number[];
}

export function text(attributes: Attributes, name: string, fallback: string): string {
  const value = attributes[name] ?? fallback;
  invariant(typeof value === "string", `attribute ${name} is no text`);
  return value;
}
