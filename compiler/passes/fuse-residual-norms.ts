import type { Module, Node } from "../ir/graph.js";

/** Each norm whose input is a residual sum becomes one op of ours with it, whose second output is the sum; the others ONNX Runtime's own op. */
export function fuseResidualNorms(module: Module): Module {
  const sums = new Map(module.graph.nodes.filter(({ op }) => op === "Add").map((node) => [node.outputs[0]?.name, node]));
  const fused = new Set<Node>();
  const rewritten = module.graph.nodes.map((node): Node => {
    if (node.op !== "RMSNormalization") return node;
    const [x, scale] = node.inputs;
    const sum = sums.get(x?.name);
    if (!sum || !x || !scale) return { ...node, op: "SimplifiedLayerNormalization" };
    fused.add(sum);
    return {
      op: "ai.layerweave::ResidualNorm",
      name: sum.name,
      inputs: [...sum.inputs, scale],
      outputs: [...node.outputs, x],
      attributes: { epsilon: node.attributes.epsilon as number },
      origin: sum.origin,
    };
  });
  return { ...module, graph: { ...module.graph, nodes: rewritten.filter((node) => !fused.has(node)) } };
}
