import { invariant } from "../../core/diagnostics.js";
import type { Dim } from "../../core/dim.js";
import { int } from "../ops/definition.js";
import type { Attribute, Attributes, FunctionBody, Graph, Module, Node, Value } from "../ir/graph.js";

/** A node as ONNX Runtime executes it. */
export interface Step {
  /** Place in ONNX Runtime's node list, by which it breaks ties in the order. */
  readonly index: number;
  readonly op: string;
  readonly name: string;
  readonly inputs: readonly (Value | null)[];
  readonly outputs: readonly Value[];
  readonly attributes: Attributes;
  /** Values of the surrounding graph that a nested graph reads. */
  readonly captured: readonly string[];
}

export interface Schedule {
  /** In execution order. */
  readonly steps: readonly Step[];
  /** Values that exist before the run: inputs, weights, and what is computed from weights alone while loading. */
  readonly resident: ReadonlySet<string>;
  readonly outputs: readonly Value[];
  readonly routings: readonly Routing[];
}

/** How a router hands rows out: each row goes to topK experts, so the extents of all add up to topK · rows, and none exceeds rows. */
export interface Routing {
  readonly experts: readonly Dim[];
  readonly topK: number;
  readonly rows: Dim;
}

/**
 * The nodes of a module in the order in which ONNX Runtime 1.29 runs them, after the rewrites of its optimiser that change what is
 * alive when, if it runs. `inline`: our ops run as their bodies (`InlineFunctionsAOT`); otherwise each is one kernel.
 *
 * The order is `GraphViewer`'s default one: depth first from the last node whose results nothing reads, inputs with the highest
 * node index first (`Graph::ReverseDFSFrom` with `NodeCompare`).
 */
export function schedule(module: Module, { inline, optimise }: { readonly inline: boolean; readonly optimise: boolean }): Schedule {
  const { graph } = module;
  const resident = new Set([...graph.inputs.map((v) => v.name), ...graph.weights.map(({ value }) => value.name)]);
  const outputs = new Set(graph.outputs.map((v) => v.name));
  const routings: Routing[] = [];
  let steps = inline ? inlined(module, routings) : graph.nodes.map((node, index) => step(node, index));
  if (optimise) {
    steps = foldConstants(steps, resident, graph.weights.map(({ value }) => value.name));
    steps = shareEqual(inOrder(steps), outputs);
    steps = fuseQuickGelu(shapeBeforeTranspose(inOrder(steps)));
  }
  return { steps: inOrder(steps), resident, outputs: graph.outputs, routings };
}

const isGraph = (attribute: Attribute): attribute is Graph => typeof attribute === "object" && "nodes" in attribute;

function step({ op, name, inputs, outputs, attributes }: Node, index: number): Step {
  const captured = Object.values(attributes)
    .filter(isGraph)
    .flatMap((body) => {
      const own = new Set([...body.inputs, ...body.nodes.flatMap((n) => n.outputs)].map((v) => v.name));
      return body.nodes.flatMap((n) => n.inputs.flatMap((v) => (v && !v.constant && !own.has(v.name) ? [v.name] : [])));
    });
  return { index, op, name, inputs, outputs, attributes, captured };
}

/** Calls are replaced in the graph's order; the nodes of a body go to the end of the node list. */
function inlined({ graph, functions }: Module, routings: Routing[]): Step[] {
  const bodies = new Map(functions.map((f) => [`${f.op} ${f.overload}`, f]));
  const kept: Step[] = [];
  const added: Step[] = [];
  graph.nodes.forEach((node, index) => {
    const body = bodies.get(`${node.op} ${node.overload}`);
    if (!body) kept.push(step(node, index));
    else {
      const nodes = instantiate(body, node);
      for (const inner of nodes) added.push(step(inner, graph.nodes.length + added.length));
      const choices = nodes.filter((inner) => inner.op === "NonZero");
      const rows = choices[0]?.inputs[0]?.shape[0];
      if (rows !== undefined) routings.push({ experts: choices.map((inner) => inner.outputs[0]?.shape[1] as Dim), topK: int(node.attributes, "top_k"), rows });
    }
  });
  return [...kept, ...added];
}

/** The nodes of a body with the call's values in place of the formal ones, and everything else named below the call. */
function instantiate({ inputNames, body }: FunctionBody, call: Node): readonly Node[] {
  const names = new Map<string, string>();
  call.inputs.forEach((value, i) => value && names.set(inputNames[i] as string, value.name));
  body.outputs.forEach((value, i) => names.set(value.name, call.outputs[i]?.name as string));
  // Extents that only a run decides are named after the value that decides them.
  const renameDim = (dim: Dim): Dim => (typeof dim === "string" ? dim.replace("n(", `n(${call.name}`) : dim);
  const rename = (value: Value): Value => (value.constant ? value : { ...value, name: names.get(value.name) ?? `${call.name}${value.name}`, shape: value.shape.map(renameDim) });
  const renameNode = (node: Node): Node => ({
    ...node,
    name: `${call.name}${node.name}`,
    inputs: node.inputs.map((v) => v && rename(v)),
    outputs: node.outputs.map(rename),
    attributes: Object.fromEntries(Object.entries(node.attributes).map(([key, a]) => [key, isGraph(a) ? renameGraph(a) : a])),
  });
  const renameGraph = (graph: Graph): Graph => ({ ...graph, inputs: graph.inputs.map(rename), outputs: graph.outputs.map(rename), nodes: graph.nodes.map(renameNode) });
  return body.nodes.map(renameNode);
}

/**
 * What depends on weights and constants alone is computed while loading, but for the widening of int8 weights
 * (`ConstantFolding` leaves DequantizeLinear to kernels that take quantised input).
 */
function foldConstants(steps: readonly Step[], resident: Set<string>, weights: readonly string[]): Step[] {
  const known = new Set(weights);
  return steps.filter(({ op, inputs, captured, outputs }) => {
    const constant = op !== "DequantizeLinear" && captured.length === 0 && inputs.every((v) => !v || v.constant || known.has(v.name));
    if (constant)
      for (const { name } of outputs) {
        known.add(name);
        resident.add(name);
      }
    return !constant;
  });
}

/** Equal nodes are computed once: the first in order stays (`CommonSubexpressionElimination`). */
function shareEqual(steps: readonly Step[], outputs: ReadonlySet<string>): Step[] {
  const first = new Map<string, Step>();
  const renamed = new Map<string, Value>();
  const kept: Step[] = [];
  for (const original of steps) {
    const current = original.inputs.some((v) => v && renamed.has(v.name)) ? { ...original, inputs: original.inputs.map((v) => v && (renamed.get(v.name) ?? v)) } : original;
    if (current.captured.length > 0 || current.outputs.some((v) => outputs.has(v.name))) {
      kept.push(current);
      continue;
    }
    const key = `${current.op} ${current.inputs.map((v) => v?.name ?? "").join()} ${Object.keys(current.attributes).length > 0 ? JSON.stringify(current.attributes) : ""}`;
    const same = first.get(key);
    if (same) {
      current.outputs.forEach((v, i) => renamed.set(v.name, same.outputs[i] as Value));
      continue;
    }
    first.set(key, current);
    kept.push(current);
  }
  return kept;
}

/** Shape(Transpose(x)) becomes Gather(Shape(x), perm) (`TransposeOptimizer`), so x is needed for longer. */
function shapeBeforeTranspose(steps: readonly Step[]): Step[] {
  const producers = producersOf(steps);
  let next = nextIndex(steps);
  return steps.flatMap((current) => {
    const transposed = current.inputs[0] && producers.get(current.inputs[0].name);
    const [input] = transposed?.inputs ?? [];
    const [shape] = current.outputs;
    if (current.op !== "Shape" || transposed?.op !== "Transpose" || !input || !shape) return [current];
    const before = { ...shape, name: `${shape.name}/before` };
    const perm: Value = { name: `${shape.name}/perm`, dtype: "int64", shape: shape.shape, constant: transposed.attributes.perm as readonly number[] };
    return [
      { ...current, inputs: [input], outputs: [before] },
      { ...current, index: next++, op: "Gather", name: `${current.name}/permuted`, inputs: [before, perm], outputs: [shape], attributes: { axis: 0 } },
    ];
  });
}

/** x · sigmoid(x) is one kernel (`QuickGeluFusion`). */
function fuseQuickGelu(steps: readonly Step[]): Step[] {
  const producers = producersOf(steps);
  const uses = new Map<string, number>();
  for (const { inputs } of steps) for (const v of inputs) if (v) uses.set(v.name, (uses.get(v.name) ?? 0) + 1);
  const fused = new Set<Step>();
  let next = nextIndex(steps);
  const rewritten = steps.map((current) => {
    const [x, gate] = current.inputs;
    const sigmoid = current.op === "Mul" && gate ? producers.get(gate.name) : undefined;
    if (!x || !gate || sigmoid?.op !== "Sigmoid" || sigmoid.inputs[0]?.name !== x.name || uses.get(gate.name) !== 1) return current;
    fused.add(sigmoid);
    return { ...current, index: next++, op: "QuickGelu", inputs: [x] };
  });
  return rewritten.filter((s) => !fused.has(s));
}

const nextIndex = (steps: readonly Step[]) => Math.max(-1, ...steps.map((s) => s.index)) + 1;

function producersOf(steps: readonly Step[]): ReadonlyMap<string, Step> {
  return new Map(steps.flatMap((s) => s.outputs.map((v) => [v.name, s] as const)));
}

function inOrder(steps: readonly Step[]): Step[] {
  const position = new Map<string, number>();
  steps.forEach((s, i) => {
    for (const v of s.outputs) position.set(v.name, i);
  });
  const byIndex = (a: number, b: number) => (steps[a] as Step).index - (steps[b] as Step).index;
  const read = new Uint8Array(steps.length);
  const sources = steps.map(({ inputs, captured }) => {
    const found: number[] = [];
    const add = (name: string) => {
      const at = position.get(name);
      if (at === undefined) return;
      read[at] = 1;
      found.push(at);
    };
    for (const v of inputs) if (v && !v.constant) add(v.name);
    captured.forEach(add);
    return found.length > 1 ? found.sort(byIndex) : found;
  });
  // A step is on the stack once to be entered, and then, as its complement, to be left.
  const stack = steps.flatMap((_, i) => (read[i] ? [] : [i])).sort(byIndex);
  const visited = new Uint8Array(steps.length);
  const order: Step[] = [];
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    if (top < 0) order.push(steps[~top] as Step);
    else if (!visited[top]) {
      visited[top] = 1;
      stack.push(~top);
      for (const source of sources[top] as number[]) if (!visited[source]) stack.push(source);
    }
  }
  invariant(order.length === steps.length, "every node is reached from a leaf");
  return order;
}
