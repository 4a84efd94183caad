import { invariant } from "../../core/diagnostics.js";
import { sameShape } from "../../core/dim.js";
import { inferNode } from "../ops/index.js";
import { allParameters, type BlockModel } from "./block.js";
import type { Graph, Module, Value } from "./graph.js";

/** Every value is defined once and before its use, and every output has the type its op's rule gives. */
export function verifyGraph(graph: Graph, outer: ReadonlySet<string> = new Set()): void {
  const defined = new Set(outer);
  const define = (value: Value) => {
    invariant(!defined.has(value.name), `${graph.name}: ${value.name} is defined twice`);
    defined.add(value.name);
  };
  graph.inputs.forEach(define);
  for (const { value } of graph.weights) define(value);
  for (const node of graph.nodes) {
    for (const input of node.inputs) invariant(!input || input.constant || defined.has(input.name), `${graph.name}: ${node.name} uses ${input?.name} before it is defined`);
    const types = inferNode(node.op, node.name, node.inputs, node.attributes);
    invariant(types.length === node.outputs.length, `${graph.name}: ${node.name} has ${node.outputs.length} outputs, its rule ${types.length}`);
    types.forEach((type, i) => {
      const output = node.outputs[i] as Value;
      invariant(type.dtype === output.dtype && sameShape(type.shape, output.shape), `${graph.name}: ${output.name} does not have the type its rule gives`);
    });
    for (const attribute of Object.values(node.attributes)) if (typeof attribute === "object" && "nodes" in attribute) verifyGraph(attribute, defined);
    node.outputs.forEach(define);
  }
  for (const output of graph.outputs) invariant(defined.has(output.name), `${graph.name}: output ${output.name} is not defined`);
}

export function verifyModule({ graph, functions, state }: Module): void {
  verifyGraph(graph);
  for (const slot of state)
    for (const [name, values] of [[slot.past, graph.inputs], [slot.present, graph.outputs]] as const) {
      const value = values.find((v) => v.name === name);
      invariant(value && value.dtype === slot.dtype && sameShape(value.shape, slot.shape), `state ${name} is no graph ${values === graph.inputs ? "input" : "output"} of its type`);
    }
  for (const { op, overload, body } of functions) {
    verifyGraph(body);
    invariant(body.weights.length === 0, `the body of ${op} (${overload}) has weights`);
  }
}

export function verifyBlocks(model: BlockModel): void {
  const names = new Set<string>();
  for (const { name } of allParameters(model)) {
    invariant(!names.has(name), `parameter ${name} is declared twice`);
    names.add(name);
  }
  for (const op of model.ops) invariant(op.state.every((slot) => slot.layer === op.layer), `${op.name} holds another layer's state`);
}
