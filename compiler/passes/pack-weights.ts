import { invariant } from "../../core/diagnostics.js";
import type { Attributes, GraphWeight, Module, Node, Value } from "../ir/graph.js";
import { scaleName } from "../ir/parameter.js";
import { firstParameter, parametersOf, type Recipe, scalesOf } from "../ir/recipe.js";
import { int } from "../ops/definition.js";
import { packedPairShape, packedShape } from "../weights/panels.js";

/**
 * Gives the matrices of our own ops the layout in which their kernels stream them, and the ops the names that take it: int8
 * QuantizedLinear → PackedLinear, MoE and GatedMlp → PackedMoE, MambaInner → PackedMambaInner.
 */
export function packWeights(module: Module): Module {
  const weights = new Weights(module.graph.weights);
  const nodes = module.graph.nodes.map((node) => {
    const pack = rewrites[node.op];
    return pack ? { ...node, ...pack(node, weights) } : node;
  });
  return { ...module, graph: { ...module.graph, nodes, weights: weights.all() } };
}

type Rewrite = (node: Node, weights: Weights) => Pick<Node, "op" | "inputs" | "attributes">;

const rewrites: Readonly<Record<string, Rewrite>> = {
  "ai.layerweave::QuantizedLinear": ({ inputs: [x = null, weight, , bias = null] }, weights) => {
    const packed = weights.panels([weight]);
    return { op: "ai.layerweave::PackedLinear", inputs: [x, ...packed, bias], attributes: { rows: weight?.shape[0] as number } };
  },
  "ai.layerweave::MambaInner": ({ inputs, attributes }, weights) => {
    const packed = [...inputs];
    for (const at of [3, 8]) packed.splice(at, 2, ...weights.panels([inputs[at]]));
    return { op: "ai.layerweave::PackedMambaInner", inputs: packed, attributes };
  },
  "ai.layerweave::MoE": ({ inputs: [x = null, router = null, ...experts], attributes }, weights) => {
    const matrices = experts.slice(0, 3 * int(attributes, "n_experts"));
    return packedExperts(x, router, matrices, attributes, weights);
  },
  "ai.layerweave::GatedMlp": ({ inputs: [x = null, ...matrices] }, weights) =>
    packedExperts(x, null, matrices.slice(0, 3), { n_experts: 1, top_k: 1, router: "softmax-then-top-k", renormalise: 0 }, weights),
};

/** `matrices`: gate, up and down of each expert in turn. */
function packedExperts(x: Value | null, router: Value | null, matrices: readonly (Value | null)[], attributes: Attributes, weights: Weights): ReturnType<Rewrite> {
  const every = (place: number) => matrices.filter((_, i) => i % 3 === place);
  const [gates, ups] = [every(0), every(1)];
  const gateUp = weights.gatedPanels(gates, ups);
  return { op: "ai.layerweave::PackedMoE", inputs: [x, router, ...gateUp, ...weights.panels(every(2), true)], attributes: { ...attributes, d_ff: gates[0]?.shape[0] as number } };
}

/** The weights of a graph, of which some are replaced by packed ones. */
class Weights {
  readonly #plain: ReadonlyMap<string, GraphWeight>;
  /** Name of a weight that was packed → what took its place. */
  readonly #packed = new Map<string, readonly GraphWeight[]>();

  constructor(weights: readonly GraphWeight[]) {
    this.#plain = new Map(weights.map((weight) => [weight.value.name, weight]));
  }

  /** Matrices of one shape, packed; behind each other, if they are a `stack` → [packed, its scales or null] */
  panels(values: readonly (Value | null | undefined)[], stack = false): readonly [Value, Value | null] {
    const plain = values.map((value) => this.#weight(value));
    const shape = packedShape(this.#shape(plain[0]));
    return this.#replace(plain, plain.map(({ recipe }) => parametersOf(recipe)), "panels", stack ? [plain.length, ...shape] : shape);
  }

  /** The pairs of a gate and an up matrix, packed behind each other → [packed, its scales or null] */
  gatedPanels(gates: readonly (Value | null)[], ups: readonly (Value | null)[]): readonly [Value, Value | null] {
    const pairs = gates.map((gate, i) => [this.#weight(gate), this.#weight(ups[i])] as const);
    const shape = packedPairShape(this.#shape(pairs[0]?.[0]));
    const matrices = pairs.map(([gate, up]) => [firstParameter(gate.recipe), firstParameter(up.recipe)]);
    return this.#replace(pairs.flat(), matrices, "gated-panels", [pairs.length, ...shape]);
  }

  /** In the order of what they took the place of. */
  all(): readonly GraphWeight[] {
    return [...new Set([...this.#plain].flatMap(([name, weight]) => this.#packed.get(name) ?? [weight]))];
  }

  #weight(value: Value | null | undefined): GraphWeight {
    const weight = value && this.#plain.get(value.name);
    invariant(weight, `${value?.name ?? "nothing"} is no weight of the graph`);
    return weight;
  }

  #shape(weight: GraphWeight | undefined): readonly number[] {
    return (weight?.value.shape ?? []) as readonly number[];
  }

  #replace(plain: readonly GraphWeight[], matrices: Recipe["matrices"], packing: NonNullable<Recipe["packing"]>, shape: readonly number[]): readonly [Value, Value | null] {
    const recipe: Recipe = { matrices, part: "elements", packing };
    const [first] = plain;
    invariant(first, "nothing to pack");
    const { dtype } = first.value;
    const name = packedName(plain.map(({ value }) => value.name));
    const value: Value = { name, dtype, shape };
    const scale: Value | null = dtype === "int8" ? { name: scaleName(name), dtype: "float32", shape: shape.slice(0, -1) } : null;
    const replacement = [{ value, recipe }, ...(scale ? [{ value: scale, recipe: scalesOf(recipe) }] : [])];
    for (const { value } of plain) for (const old of dtype === "int8" ? [value.name, scaleName(value.name)] : [value.name]) this.#packed.set(old, replacement);
    return [value, scale];
  }
}

/** `experts.0.gate_proj.weight`, `experts.0.up_proj.weight`, `experts.1.gate_proj.weight`, … → `experts.gate_up_proj.weight` */
function packedName(names: readonly string[]): string {
  const matrices = new Set(names.map((name) => name.replace(/\.experts\.\d+\./, ".experts.")));
  const [first, second] = [...matrices];
  invariant(first && matrices.size <= 2, `no name for ${[...matrices].join()}`);
  return second === undefined ? first : first.replace("gate_proj", "gate_up_proj");
}
