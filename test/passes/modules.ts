import { checkedLayout, lower } from "../../compiler/lower.js";
import type { Graph, Module, Node } from "../../compiler/ir/graph.js";
import { portable } from "../../compiler/targets/portable.js";
import { lowerBlocks } from "../../compiler/passes/lower-blocks.js";
import { toBlocks } from "../../compiler/lower.js";
import type { ModelSpec } from "../../dsl/index.js";

/** Lowered, before our ops have their bodies. */
export const loweredModule = (model: ModelSpec): Module => lowerBlocks(toBlocks(checkedLayout(model), portable), portable, () => "float32");

export const completeModule = (model: ModelSpec): Module => lower(checkedLayout(model), portable, () => "float32").module;

export const withGraph = (module: Module, changes: Partial<Graph>): Module => ({ ...module, graph: { ...module.graph, ...changes } });

/** The module with one node of its graph changed. */
export function withNode(module: Module, index: number, change: (node: Node) => Node): Module {
  return withGraph(module, { nodes: module.graph.nodes.map((node, i) => (i === index ? change(node) : node)) });
}
