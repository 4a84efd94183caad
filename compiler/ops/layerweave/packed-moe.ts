import { sameShape } from "../../../core/dim.js";
import { packedPairShape, packedShape } from "../../weights/panels.js";
import { int, type KernelOpDefinition } from "../definition.js";

/**
 * MoE with the experts' weights in packed panels, gate and up of an expert as one matrix. Without a router it is GatedMlp: one
 * expert, whose weight is 1. `d_ff` counts the features without padding.
 */
export const packedMoe: KernelOpDefinition = {
  inputs: [6, 6],
  inputNames: ["x", "router", "gate_up", "gate_up_scale", "down", "down_scale"],
  outputNames: ["y"],
  attributes: { n_experts: "int", top_k: "int", router: "string", renormalise: "int", d_ff: "int" },
  infer: (inputs, attributes) => {
    const [x, router, gateUp, down] = [inputs.at(0), inputs.optional(1), inputs.at(2), inputs.at(4)]; // [M, D], [E, D], packed [E, 2F, D], packed [E, D, F]
    const [experts, dFf, dModel] = [int(attributes, "n_experts"), int(attributes, "d_ff"), x.shape[1] as number];
    const [pairs, outs] = [[experts, ...packedPairShape([dFf, dModel])], [experts, ...packedShape([dModel, dFf])]];
    inputs.expect(router ? sameShape(router.shape, [experts, dModel]) : experts === 1, "a router row for each expert");
    inputs.expect(sameShape(gateUp.shape, pairs) && sameShape(down.shape, outs), "packed gate and up, and down, of each expert");
    for (const [scale, shape] of [[inputs.optional(3), pairs], [inputs.optional(5), outs]] as const) // prettier-ignore
      inputs.expect(gateUp.dtype === "int8" ? sameShape(scale?.shape ?? [], shape.slice(0, 2)) : !scale, "a scale for each row of int8 weights");
    return [{ dtype: x.dtype, shape: x.shape }];
  },
};
