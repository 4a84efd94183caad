import { describe, expect, test } from "vitest";
import { importCheckpoint } from "../../compiler/importers/index.js";
import { parametersOf } from "../../compiler/ir/recipe.js";
import { checkedLayout, lower } from "../../compiler/lower.js";
import { profileLayout } from "../../compiler/passes/profile-model.js";
import { cuda } from "../../compiler/targets/cuda.js";
import { portable } from "../../compiler/targets/portable.js";
import { storageFor } from "../../compiler/weights/storage.js";
import { inRepository } from "../support/folders.js";

const ours = ["AttentionInner", "PackedLinear", "PackedMambaInner", "PackedMoE", "ResidualNorm", "SelectTokens"].map((op) => `ai.layerweave::${op}`);
/** Kernels of ONNX Runtime's CUDA provider, and the shape of the logits. */
const provided = ["Add", "Cast", "Concat", "Gather", "Gemm", "Reshape", "Shape", "SimplifiedLayerNormalization"];

describe.each(["jamba-two-blocks", "falcon-mamba", "mistral-swa", "mixtral"])("%s", async (name) => {
  const layout = checkedLayout((await importCheckpoint(inRepository("test", "fixtures", "hf", name))).spec);
  const target = cuda("bfloat16");

  describe.each(["none", "experts-int8", "int8"] as const)("quantised: %s", (quantize) => {
    const { module } = lower(layout, target, storageFor(target, quantize, () => "float32"));
    const { nodes, weights } = module.graph;

    test("has ops that have kernels, and nothing between the projections but one of them", () => {
      const used = new Set(nodes.map(({ op }) => op));
      expect([...ours, ...provided]).toEqual(expect.arrayContaining([...used]));
      expect(module.functions).toEqual([]);
      // Norm, projection, inner op, projection; norm, experts or MLP. At the ends: ids, embedding, last sum, tokens, norm, logits and their type and shape.
      const layers = layout.layers.reduce((sum, { mixer, channelMixer }) => sum + (mixer ? 4 : 0) + (channelMixer ? 2 : 0), 0);
      expect(nodes).toHaveLength(layers + 10);
    });

    test("converts nothing but the logits", () => {
      expect(nodes.filter(({ op }) => op === "Cast").map(({ name }) => name)).toEqual(["/wide_logits"]);
      const fromWeights = new Set(weights.map(({ value }) => value.name));
      for (const { op, inputs } of nodes) if (op === "Reshape" || op === "Shape" || op === "Concat") expect(inputs.some((v) => v && fromWeights.has(v.name))).toBe(false);
    });

    test("holds the elements of every parameter once", () => {
      const held = weights.filter(({ recipe }) => recipe.part === "elements").flatMap(({ recipe }) => parametersOf(recipe).map((p) => p.name));
      expect(new Set(held).size).toBe(held.length);
      const scaled = weights.filter(({ recipe }) => recipe.part === "scales").flatMap(({ recipe }) => parametersOf(recipe).map((p) => p.name));
      const int8 = weights.filter(({ value }) => value.dtype === "int8").flatMap(({ recipe }) => parametersOf(recipe).map((p) => p.name));
      expect(scaled).toEqual(int8);
    });
  });

  test("does as many operations as the portable graph, and plans for tensors of its own types", () => {
    const [ofCuda, ofPortable] = [profileLayout(layout, target), profileLayout(layout, portable)];
    expect(ofCuda.operations).toEqual(ofPortable.operations);
    expect(ofCuda.routed).toEqual(ofPortable.routed);
    expect(ofCuda.bodies).toBeUndefined();
    for (const { tensors } of ofCuda.kernels.prefill) expect(tensors.every(({ dtype }) => dtype === "compute" || dtype === "float32" || dtype === "int32" || dtype === "int64")).toBe(true);
  });
});
