import { printShape } from "../../core/dim.js";
import type { Layout } from "../../dsl/resolve.js";
import type { BlockModel } from "./block.js";
import type { Attribute, Graph, Module, Value } from "./graph.js";
import { parameterCounts } from "./parameter.js";

/** A resolved layout, one line per layer. */
export function printLayout(layout: Layout): string {
  const { layers, ...model } = layout;
  return [`layout ${JSON.stringify(model)}`, ...layers.map((layer, i) => `  layers[${i}] ${JSON.stringify(layer)}`), ""].join("\n");
}

export function printBlocks(model: BlockModel): string {
  const lines = [`model ${JSON.stringify(model.name)}  D = ${model.dModel}  V = ${model.vocabSize}${model.tieEmbeddings ? "  tied embeddings" : ""}`, "  x = embedding(input_ids)"];
  for (const op of model.ops) {
    lines.push(`  x = x + ${op.spec.kind}(norm(x))  # ${op.name}, ${parameterCounts(op.parameters).total} parameters`);
    lines.push(`      ${JSON.stringify(op.spec)}`);
    for (const p of op.parameters) lines.push(`      parameter ${p.name} ${printShape(p.shape)} ${p.kind}`);
    for (const s of op.state) lines.push(`      state ${s.past} -> ${s.present} ${s.dtype}${printShape(s.shape)} ${s.growth}, rewind by ${s.rewind}, ${s.update}`);
  }
  lines.push(`  logits = lm_head(norm(x))`);
  for (const p of model.parameters) lines.push(`  parameter ${p.name} ${printShape(p.shape)} ${p.kind}`);
  return `${lines.join("\n")}\n`;
}

export function printModule({ graph, functions, state }: Module): string {
  return [
    printGraph(graph, ""),
    ...functions.map(({ op, overload, body }) => printGraph({ ...body, name: `${op} ${overload}` }, "")),
    ...state.map((s) => `state layer ${s.layer} ${s.role}: ${s.past} -> ${s.present}`),
    "",
  ].join("\n");
}

function printGraph(graph: Graph, indent: string): string {
  const lines = [`${indent}graph ${graph.name}`];
  for (const value of graph.inputs) lines.push(`${indent}  input ${printValue(value)}`);
  for (const { value } of graph.weights) lines.push(`${indent}  weight ${printValue(value)}`);
  for (const node of graph.nodes) {
    const attributes = Object.entries(node.attributes);
    const plain = attributes.filter(([, a]) => !isGraph(a)).map(([name, a]) => `${name}=${JSON.stringify(a)}`);
    lines.push(
      `${indent}  ${node.outputs.map((v) => v.name).join(", ")} = ${node.op}(${node.inputs.map(printOperand).join(", ")})${plain.length ? ` {${plain.join(", ")}}` : ""}  # ${node.outputs.map((v) => `${v.dtype}${printShape(v.shape)}`).join(", ")}`,
    );
    for (const [, attribute] of attributes) if (isGraph(attribute)) lines.push(printGraph(attribute, `${indent}    `));
  }
  for (const value of graph.outputs) lines.push(`${indent}  output ${printValue(value)}`);
  return lines.join("\n");
}

const isGraph = (attribute: Attribute): attribute is Graph => typeof attribute === "object" && "nodes" in attribute;
const printValue = (value: Value) => `${value.name} ${value.dtype}${printShape(value.shape)}`;

function printOperand(value: Value | null): string {
  if (!value) return "-";
  if (!value.constant) return value.name;
  const shown = value.constant.length > 8 ? `${value.constant.slice(0, 6).join(", ")}, …` : value.constant.join(", ");
  return value.shape.length === 0 ? `${shown}` : `${value.dtype}[${shown}]`;
}
