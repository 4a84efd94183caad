import { describe, expect, it } from "vitest";
import type { ModelSpec } from "../../dsl/index.js";
import { attachBodies } from "../../compiler/passes/attach-bodies.js";
import halfLayers from "../golden/half-layers/layout.js";
import jambaBlock from "../golden/jamba-block/layout.js";
import mambaWeightlessNorms from "../golden/mamba-weightless-norms/layout.js";
import slidingWindow from "../golden/sliding-window/layout.js";
import topKThenSoftmax from "../golden/top-k-then-softmax/layout.js";
import { loweredModule } from "./modules.js";

const isOurs = (op: string) => op.startsWith("ai.layerweave::");

describe.each<ModelSpec>([halfLayers, jambaBlock, mambaWeightlessNorms, slidingWindow, topKThenSoftmax])("attach-bodies on $name", (model) => {
  const before = loweredModule(model);
  const after = attachBodies(before);

  it("changes nothing in the graph but the overloads of our ops", () => {
    const unnamed = after.graph.nodes.map(({ overload: _, ...node }) => node);
    expect({ ...after, graph: { ...after.graph, nodes: unnamed }, functions: [] }).toEqual(before);
    for (const node of after.graph.nodes) expect(node.overload !== undefined, node.name).toBe(isOurs(node.op));
  });

  it("is idempotent", () => expect(attachBodies(after)).toEqual(after));

  it("gives each variant of an op one body, in standard ops alone", () => {
    const key = ({ op, overload }: { readonly op: string; readonly overload?: string }) => `${op} ${overload}`;
    const wanted = new Set(after.graph.nodes.filter(({ op }) => isOurs(op)).map(key));
    expect(after.functions.map(key).sort()).toEqual([...wanted].sort());
    for (const { body } of after.functions) for (const { op } of body.nodes) expect(isOurs(op)).toBe(false);
  });

  it("gives each node a body that takes and returns what the node does", () => {
    for (const node of after.graph.nodes.filter(({ op }) => isOurs(op))) {
      const f = after.functions.find(({ op, overload }) => op === node.op && overload === node.overload)!;
      expect(f.inputNames).toHaveLength(node.inputs.length);
      expect(f.body.inputs.map(({ name }) => name)).toEqual(f.inputNames.filter((_, i) => node.inputs[i] !== null));
      expect(f.body.inputs.map(({ shape, dtype }) => ({ shape, dtype }))).toEqual(node.inputs.filter((v) => v !== null).map(({ shape, dtype }) => ({ shape, dtype })));
      expect(f.body.outputs.map(({ shape, dtype }) => ({ shape, dtype }))).toEqual(node.outputs.map(({ shape, dtype }) => ({ shape, dtype })));
      expect(f.attributeNames).toEqual(Object.keys(node.attributes));
    }
  });
});
