import { describe, expect, it } from "vitest";
import { checkedLayout, toBlocks } from "../../compiler/lower.js";
import { lowerBlocks } from "../../compiler/passes/lower-blocks.js";
import { portable } from "../../compiler/targets/portable.js";
import { storageFor } from "../../compiler/weights/storage.js";
import halfLayers from "../golden/half-layers/layout.js";
import jambaBlock from "../golden/jamba-block/layout.js";
import { loweredModule } from "./modules.js";

describe.each([halfLayers, jambaBlock])("lower-blocks on $name", (model) => {
  const { graph, state } = loweredModule(model);

  it("names every node once, those of a layer by the layer", () => {
    const names = graph.nodes.map(({ name }) => name);
    expect(new Set(names).size).toBe(names.length);
    for (const { name, origin } of graph.nodes) {
      const layer = /^layers\[(\d+)\]/.exec(origin.path)?.[1];
      if (layer !== undefined && !name.startsWith("/shared/")) expect(name).toMatch(new RegExp(`^/layers\\.${layer}/`));
    }
  });

  it("makes one node of each mixer's scan, convolution, attention and experts", () => {
    const count = (op: string) => graph.nodes.filter((node) => node.op === `ai.layerweave::${op}`).length;
    const halves = graph.nodes.filter(({ name }) => /_residual$/.test(name)).length;
    expect(count("SelectiveScan")).toBe(count("CausalConv"));
    expect(state.filter(({ role }) => role === "ssm_state")).toHaveLength(count("SelectiveScan"));
    expect(state.filter(({ role }) => role === "key")).toHaveLength(count("CachedAttention"));
    expect(count("MoE")).toBeGreaterThan(0);
    expect(halves).toBeGreaterThanOrEqual(count("SelectiveScan") + count("CachedAttention") + count("MoE"));
  });

  it("makes one node of all between a Mamba's projections, and of a dense MLP, where they are int8", () => {
    const blocks = toBlocks(checkedLayout(model), portable);
    const { graph: quantized } = lowerBlocks(blocks, portable, storageFor(portable, "int8", () => "float32"));
    const count = (op: string) => quantized.nodes.filter((node) => node.op === `ai.layerweave::${op}`).length;
    expect(count("MambaInner")).toBe(state.filter(({ role }) => role === "ssm_state").length);
    expect(count("CausalConv") + count("SelectiveScan")).toBe(0);
    expect(count("GatedMlp")).toBe(blocks.ops.filter(({ spec }) => spec.kind === "mlp").length);
    expect(quantized.nodes.filter(({ name, op }) => name.includes("/mlp/") && !op.endsWith("GatedMlp"))).toEqual([]);
  });

  it("takes the tokens and the state, and returns logits and the state", () => {
    expect(graph.inputs.map(({ name }) => name)).toEqual(["input_ids", "past_lengths", "lengths", "logit_indices", ...state.map(({ past }) => past)]);
    expect(graph.outputs.map(({ name }) => name)).toEqual(["logits", ...state.map(({ present }) => present)]);
  });
});
