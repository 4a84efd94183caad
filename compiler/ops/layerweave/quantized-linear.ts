import { sameShape } from "../../../core/dim.js";
import type { CustomOpDefinition } from "../definition.js";
import { dequantized } from "./shared.js";

/** A linear layer with int8 weights and one scale per output channel: y[m,n] = scale[n] · Σ_k x[m,k] · weight[n,k] + bias[n]. */
export const quantizedLinear: CustomOpDefinition = {
  inputs: [4, 4],
  inputNames: ["x", "weight", "scale", "bias"],
  outputNames: ["y"],
  attributes: {},
  infer: (inputs) => {
    const [x, weight, scale, bias] = [inputs.at(0), inputs.at(1), inputs.at(2), inputs.optional(3)]; // [M, in], [out, in], [out], [out]
    const out = weight.shape.slice(0, 1);
    inputs.expect(weight.dtype === "int8" && x.shape.length === 2 && weight.shape.length === 2 && weight.shape[1] === x.shape[1], "x [M, in] and an int8 weight [out, in]");
    inputs.expect(sameShape(scale.shape, out) && (!bias || sameShape(bias.shape, out)), "scale and bias [out]");
    return [{ dtype: x.dtype, shape: [x.shape[0] ?? 0, ...out] }];
  },
  // Whether it projects tokens or the positions whose logits are wanted tells the planner how many rows it has.
  overload: (inputs) => `n${inputs.at(1).shape[0]}_k${inputs.at(1).shape[1]}_${inputs.at(0).shape[0] === "B*T" ? "tokens" : "logits"}${inputs.optional(3) ? "_bias" : ""}`,
  body: (b, inputs) => {
    const wide = dequantized(b, "wide_weight", inputs.at(1), inputs.at(2), inputs.at(0)); // [out, in]
    return [b.linear("y", inputs.at(0), wide, inputs.optional(3) ?? undefined)]; // [M, out]
  },
};
