import type { Dim, Shape } from "../../core/dim.js";
import type { Dtype } from "../../core/dtype.js";
import type { StateSlot } from "../../core/manifest.js";
import type { Origin } from "../../core/origin.js";
import type { Recipe } from "./recipe.js";

export interface Type {
  readonly dtype: Dtype;
  readonly shape: Shape;
}

/** One tensor, defined once: a graph input, a weight, a constant, or a node's output. */
export interface Value extends Type {
  readonly name: string;
  /** Elements of a constant, in row-major order. */
  readonly constant?: readonly number[];
  /** What a shape-like int64 vector is known to hold, so that Reshape can be inferred. */
  readonly content?: readonly Dim[];
  /** Of an int8 weight [out, in]: float32 [out], times which each row is the weight it stands for. */
  readonly scale?: Value;
}

export type Attribute = number | string | readonly number[] | Graph;
export type Attributes = Readonly<Record<string, Attribute>>;

export interface Node {
  /** `Gemm`, or `ai.layerweave::SelectiveScan`. */
  readonly op: string;
  /** For an op of ours with a body: which variant of the body this node means. */
  readonly overload?: string;
  /** Path of the layer it belongs to: `/layers.4/attention/q_proj`. */
  readonly name: string;
  readonly inputs: readonly (Value | null)[];
  readonly outputs: readonly Value[];
  readonly attributes: Attributes;
  readonly origin: Origin;
}

/** A weight of the graph: a tensor in its storage type, and what it holds of which parameters. */
export interface GraphWeight {
  readonly value: Value;
  readonly recipe: Recipe;
}

/** Tensor IR: ONNX-like nodes in execution order, with a type on every value. Never changed in place. */
export interface Graph {
  readonly name: string;
  readonly inputs: readonly Value[];
  readonly outputs: readonly Value[];
  readonly weights: readonly GraphWeight[];
  readonly nodes: readonly Node[];
}

/** A model-local function: what one of our ops computes, in standard ops, for one set of attributes and static extents. */
export interface FunctionBody {
  /** `ai.layerweave::MoE` */
  readonly op: string;
  /** Tells the variants of an op apart. */
  readonly overload: string;
  /** Formal inputs, in order; one that this variant does without is not among the body's inputs. */
  readonly inputNames: readonly string[];
  readonly attributeNames: readonly string[];
  readonly body: Graph;
}

/** A whole model in tensor IR. */
export interface Module {
  readonly graph: Graph;
  readonly functions: readonly FunctionBody[];
  readonly state: readonly StateSlot[];
}
