import { GraphBuilder } from "../ir/builder.js";
import type { FunctionBody, Module } from "../ir/graph.js";
import { customOps } from "../ops/index.js";
import { Inputs } from "../ops/definition.js";

/** Gives every op of ours its body in standard ops, once for each variant that occurs. */
export function attachBodies(module: Module): Module {
  const functions = new Map<string, FunctionBody>();
  const nodes = module.graph.nodes.map((node) => {
    const definition = customOps[node.op];
    if (!definition) return node;
    const inputs = new Inputs(node.op, node.inputs);
    const overload = definition.overload(inputs, node.attributes);
    const key = `${node.op} ${overload}`;
    const chosen = { ...node, overload };
    if (functions.has(key)) return chosen;
    const b = new GraphBuilder(key, { path: "" });
    const inputNames = node.inputs.map((_, i) => inputName(definition.inputNames, i));
    const parameters = node.inputs.map((value, i) => value && b.input(inputNames[i] as string, value.dtype, value.shape));
    const results = definition.body(b, new Inputs(node.op, parameters), node.attributes);
    functions.set(key, { op: node.op, overload, inputNames, attributeNames: Object.keys(node.attributes), body: b.finish(results) });
    return chosen;
  });
  return { ...module, graph: { ...module.graph, nodes }, functions: [...functions.values()] };
}

/** The name of input i; a last name that ends in `...` stands for all that follow. */
function inputName(names: readonly string[], i: number): string {
  const last = names.length - 1;
  const name = names[Math.min(i, last)] ?? `input_${i}`;
  return name.endsWith("...") ? `${name.slice(0, -3)}.${i - last}` : name;
}
