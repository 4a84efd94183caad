import { sameShape } from "../../../core/dim.js";
import type { CustomOpDefinition } from "../definition.js";
import { dequantized } from "./shared.js";

/** A gated MLP: y = down(silu(gate(x)) · up(x)) (Shazeer 2020, arXiv 2002.05202), with int8 weights where scales are given. */
export const gatedMlp: CustomOpDefinition = {
  inputs: [7, 7],
  inputNames: ["x", "gate", "up", "down", "gate_scale", "up_scale", "down_scale"],
  outputNames: ["y"],
  attributes: {},
  infer: (inputs) => {
    const [x, gate, up, down] = [inputs.at(0), inputs.at(1), inputs.at(2), inputs.at(3)]; // [M, D], [F, D] twice, [D, F]
    const [dFf = 0, dModel = 0] = gate.shape;
    inputs.expect(x.shape[1] === dModel && sameShape(up.shape, gate.shape) && sameShape(down.shape, [dModel, dFf]), "x [M, D], gate and up [F, D], down [D, F]");
    inputs.expect([4, 5, 6].every((i) => (inputs.optional(i) !== null) === (gate.dtype === "int8")), "scales if weights are int8");
    return [{ dtype: x.dtype, shape: x.shape }];
  },
  overload: (inputs) => `d${inputs.at(1).shape[1]}_f${inputs.at(1).shape[0]}${inputs.optional(4) ? "_int8" : ""}`,
  body: (b, inputs) => {
    const project = (label: string, index: number, x: ReturnType<typeof inputs.at>) => {
      const scale = inputs.optional(index + 3);
      return b.linear(label, x, scale ? dequantized(b, `${label}_weight`, inputs.at(index), scale, x) : inputs.at(index));
    };
    const x = inputs.at(0);
    const hidden = b.op("Mul", "hidden", [b.silu("gate", project("gate_proj", 1, x)), project("up_proj", 2, x)]); // [M, F]
    return [project("down_proj", 3, hidden)]; // [M, D]
  },
};
