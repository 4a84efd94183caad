import { type Dim, type Shape } from "../../core/dim.js";
import { invariant } from "../../core/diagnostics.js";
import type { Dtype } from "../../core/dtype.js";
import type { Origin } from "../../core/origin.js";
import { inferNode } from "../ops/index.js";
import type { Attributes, Graph, GraphWeight, Node, Value } from "./graph.js";
import { scaleName, type WeightDtype } from "./parameter.js";
import { firstParameter, matrixRows, type Recipe, scalesOf } from "./recipe.js";

/** Builds a graph node by node, inferring the type of every output. Scopes give nodes their path. */
export class GraphBuilder {
  readonly #nodes: Node[] = [];
  readonly #inputs: Value[] = [];
  readonly #weights: GraphWeight[] = [];
  readonly #shared = new Map<string, Value>();
  readonly #taken = new Set<string>();
  #path = "";
  #origin: Origin;

  constructor(
    private readonly name: string,
    private readonly origin: Origin,
  ) {
    this.#origin = origin;
  }

  input(name: string, dtype: Dtype, shape: Shape): Value {
    const value = { name, dtype, shape };
    this.#inputs.push(value);
    return value;
  }

  /** A weight of one matrix, in its storage type; an int8 one comes with its scales. */
  weight(name: string, recipe: Recipe, dtype: WeightDtype): Value {
    const rows = matrixRows(recipe);
    const value = { name, dtype, shape: [rows, ...firstParameter(recipe).shape.slice(1)] };
    this.#weights.push({ value, recipe });
    if (dtype !== "int8") return value;
    const scale: Value = { name: scaleName(name), dtype: "float32", shape: [rows] };
    this.#weights.push({ value: scale, recipe: scalesOf(recipe) });
    return { ...value, scale };
  }

  /** Everything built by `build` is named below `label` and comes from `origin`. */
  scope<T>(label: string, build: () => T, origin = this.#origin): T {
    const outer = [this.#path, this.#origin] as const;
    this.#path = `${this.#path}/${label}`;
    this.#origin = origin;
    try {
      return build();
    } finally {
      [this.#path, this.#origin] = outer;
    }
  }

  /** A value that is built once for the whole graph, outside of any scope. */
  shared(key: string, build: () => Value): Value {
    const known = this.#shared.get(key);
    if (known) return known;
    const outer = [this.#path, this.#origin] as const;
    this.#path = "/shared";
    this.#origin = this.origin;
    try {
      const value = build();
      this.#shared.set(key, value);
      return value;
    } finally {
      [this.#path, this.#origin] = outer;
    }
  }

  ints(...elements: readonly number[]): Value {
    return constantValue("int64", [elements.length], elements);
  }

  scalar(dtype: Dtype, element: number): Value {
    return constantValue(dtype, [], [element]);
  }

  floats(shape: readonly number[], elements: readonly number[], dtype: Dtype = "float32"): Value {
    return constantValue(dtype, shape, elements);
  }

  op(op: string, label: string, inputs: readonly (Value | null)[], attributes: Attributes = {}): Value {
    const [value, ...rest] = this.ops(op, label, inputs, attributes);
    invariant(value && rest.length === 0, `${op} has ${rest.length + 1} outputs`);
    return value;
  }

  ops(op: string, label: string, inputs: readonly (Value | null)[], attributes: Attributes = {}): readonly Value[] {
    const name = `${this.#path}/${label}`;
    invariant(!this.#taken.has(name), `two nodes are named ${name}`);
    this.#taken.add(name);
    const types = inferNode(op, name, inputs, attributes);
    const outputs = types.map((type, i) => ({ name: types.length === 1 ? name : `${name}.${i}`, ...type }));
    this.#nodes.push({ op, name, inputs, outputs, attributes, origin: this.#origin });
    return outputs;
  }

  /** y = x · wᵀ (+ bias): x [M, in], w [out, in] → [M, out]; w may be int8 */
  linear(label: string, x: Value, w: Value, bias?: Value): Value {
    if (w.scale) return this.op("ai.layerweave::QuantizedLinear", label, [x, w, w.scale, bias ?? null]);
    return this.op("Gemm", label, bias ? [x, w, bias] : [x, w], { transB: 1 });
  }

  /** x with these extents: 0 keeps one, -1 is what is left. */
  reshape(label: string, x: Value, shape: readonly number[]): Value {
    return this.op("Reshape", label, [x, this.ints(...shape)]);
  }

  silu(label: string, x: Value): Value {
    return this.op("Mul", label, [x, this.op("Sigmoid", `${label}_sigmoid`, [x])]);
  }

  /** The value under the name it has outside: a graph output. */
  output(name: string, value: Value): Value {
    const index = this.#nodes.findIndex((node) => node.outputs.includes(value));
    const node = this.#nodes[index];
    invariant(node, `${name} is no node's output`);
    const renamed = { ...value, name };
    const rename = (v: Value) => (v === value ? renamed : v);
    this.#nodes[index] = { ...node, outputs: node.outputs.map(rename) };
    for (let i = index + 1; i < this.#nodes.length; i++) {
      const later = this.#nodes[i] as Node;
      if (later.inputs.includes(value)) this.#nodes[i] = { ...later, inputs: later.inputs.map((v) => v && rename(v)) };
    }
    return renamed;
  }

  finish(outputs: readonly Value[]): Graph {
    return { name: this.name, inputs: this.#inputs, outputs, weights: this.#weights, nodes: this.#nodes };
  }
}

function constantValue(dtype: Dtype, shape: readonly number[], elements: readonly number[]): Value {
  const name = `const_${dtype}_${shape.join("x")}_${fingerprint(elements)}`;
  const content: { content?: readonly Dim[] } = dtype === "int64" && shape.length <= 1 ? { content: elements } : {};
  return { name, dtype, shape, constant: elements, ...content };
}

/** Equal constants get equal names, so each is written once. */
function fingerprint(elements: readonly number[]): string {
  if (elements.length <= 4) return elements.join("_").replaceAll("-", "m").replaceAll(".", "p") || "empty";
  let hash = 0xcbf29ce484222325n;
  for (const byte of new Uint8Array(Float64Array.from(elements).buffer)) hash = ((hash ^ BigInt(byte)) * 0x100000001b3n) & 0xffffffffffffffffn;
  return hash.toString(16);
}
