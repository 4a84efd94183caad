import { describe, expect, it } from "vitest";
import { InternalError } from "../../core/diagnostics.js";
import type { Module, Node, Value } from "../../compiler/ir/graph.js";
import { verifyBlocks, verifyModule } from "../../compiler/ir/verify.js";
import { checkedLayout, toBlocks } from "../../compiler/lower.js";
import { portable } from "../../compiler/targets/portable.js";
import halfLayers from "../golden/half-layers/layout.js";
import { completeModule, withGraph, withNode } from "./modules.js";

const module = completeModule(halfLayers);
const { nodes, outputs, inputs } = module.graph;
const indexOf = (op: string) => nodes.findIndex((node) => node.op === op);
const firstOutput = (node: Node, change: Partial<Value>): Node => ({ ...node, outputs: node.outputs.map((value, i) => (i === 0 ? { ...value, ...change } : value)) });
const slot = module.state[0]!;

const broken: readonly (readonly [string, Module, RegExp])[] = [
  ["a value is used before it is defined", withGraph(module, { nodes: nodes.toReversed() }), /uses .* before it is defined/],
  ["a value is used that nothing defines", withGraph(module, { nodes: nodes.slice(1) }), /uses \/flat_ids before it is defined/],
  ["a weight is used that the graph lacks", withGraph(module, { weights: module.graph.weights.slice(1) }), /uses embedding\.weight before/],
  ["a node stands twice", withGraph(module, { nodes: [...nodes, nodes[0]!] }), /\/flat_ids is defined twice/],
  ["a node takes an input's name", withNode(module, 0, (node) => firstOutput(node, { name: "input_ids" })), /input_ids is defined twice/],
  ["an output has another shape than its rule gives", withNode(module, indexOf("Gemm"), (node) => firstOutput(node, { shape: ["B", "T", 5] })), /does not have the type its rule gives/],
  ["an output has another element type", withNode(module, indexOf("Gemm"), (node) => firstOutput(node, { dtype: "float16" })), /does not have the type its rule gives/],
  ["an output is missing", withNode(module, indexOf("Split"), (node) => ({ ...node, outputs: node.outputs.slice(1) })), /has 1 outputs, its rule 2/],
  ["an input is missing", withNode(module, indexOf("Gemm"), (node) => ({ ...node, inputs: node.inputs.slice(1) })), /Gemm with 1 inputs/],
  ["inputs do not fit", withNode(module, indexOf("Gemm"), (node) => ({ ...node, inputs: [node.inputs[0]!, inputs.find(({ name }) => name === slot.past)!] })), /inner extents differ/],
  ["inputs are exchanged", withNode(module, indexOf("Gemm"), (node) => ({ ...node, inputs: node.inputs.toReversed() })), /does not have the type its rule gives/],
  ["an op is unknown", withNode(module, indexOf("Gemm"), (node) => ({ ...node, op: "Gemn" })), /no op is called Gemn/],
  ["an attribute is unknown", withNode(module, indexOf("Gemm"), (node) => ({ ...node, attributes: { ...node.attributes, transC: 1 } })), /Gemm has no attribute transC/],
  ["a graph output is not defined", withGraph(module, { outputs: [...outputs, { name: "nowhere", dtype: "float32", shape: [] }] }), /output nowhere is not defined/],
  ["state has no graph output", withGraph(module, { outputs: outputs.filter(({ name }) => name !== slot.present) }), new RegExp(`state ${slot.present} is no graph output`)],
  ["state has no graph input", { ...module, state: [{ ...slot, past: "past_key_values.9.key" }] }, /state past_key_values\.9\.key is no graph input/],
  ["state comes in by an output", { ...module, state: [{ ...slot, past: slot.present }] }, /is no graph input of its type/],
  ["state goes out by an input", { ...module, state: [{ ...slot, present: slot.past }] }, /is no graph output of its type/],
  ["state has another shape than its input", withGraph(module, { inputs: inputs.map((value) => (value.name === slot.past ? { ...value, shape: ["B", 1] } : value)) }), /./],
  ["state has another type than its output", { ...module, state: [{ ...slot, dtype: "float16" }] }, /is no graph input of its type/],
  [
    "a body uses what it is not given",
    { ...module, functions: module.functions.map((f) => ({ ...f, body: { ...f.body, inputs: f.body.inputs.slice(1) } })) },
    /before it is defined/,
  ],
  [
    "a body has weights",
    { ...module, functions: module.functions.map((f) => ({ ...f, body: { ...f.body, weights: [{ ...module.graph.weights[0]!, value: { name: "w", dtype: "float32", shape: [] } }] } })) },
    /has weights/,
  ],
];

describe("verifyModule", () => {
  it("accepts what the lowering makes", () => expect(() => verifyModule(module)).not.toThrow());

  it.each(broken)("refuses a module in which %s", (_, changed, message) => {
    expect(() => verifyModule(changed)).toThrow(InternalError);
    expect(() => verifyModule(changed)).toThrow(message);
  });

  it("looks into the bodies of Scan", () => {
    const at = module.functions.findIndex(({ op }) => op === "ai.layerweave::SelectiveScan");
    const changed: Module = {
      ...module,
      functions: module.functions.map((f, i) => {
        if (i !== at) return f;
        const scans = f.body.nodes.map((node) => {
          const { body } = node.attributes;
          if (typeof body !== "object" || !("nodes" in body)) return node;
          return { ...node, attributes: { ...node.attributes, body: { ...body, nodes: body.nodes.toReversed() } } };
        });
        return { ...f, body: { ...f.body, nodes: scans } };
      }),
    };
    expect(at).toBeGreaterThanOrEqual(0);
    expect(() => verifyModule(changed)).toThrow(/scan_step: .* before it is defined/);
  });
});

describe("verifyBlocks", () => {
  const blocks = toBlocks(checkedLayout(halfLayers), portable);

  it("accepts what is built", () => expect(() => verifyBlocks(blocks)).not.toThrow());

  it("refuses two parameters of one name", () => {
    expect(() => verifyBlocks({ ...blocks, parameters: [...blocks.parameters, blocks.parameters[0]!] })).toThrow(/embedding\.weight is declared twice/);
  });

  it("refuses state of another layer", () => {
    const ops = blocks.ops.map((op) => ({ ...op, state: op.state.map((s) => ({ ...s, layer: s.layer + 1 })) }));
    expect(() => verifyBlocks({ ...blocks, ops })).toThrow(/another layer's state/);
  });
});
