import { sameShape } from "../../../core/dim.js";
import { type CustomOpDefinition, float } from "../definition.js";

/** A residual sum and its RMS norm. */
export const residualNorm: CustomOpDefinition = {
  inputs: [3, 3],
  inputNames: ["x", "residual", "scale"],
  outputNames: ["y", "sum"],
  attributes: { epsilon: "float" },
  infer: (inputs) => {
    const [x, residual, scale] = [inputs.at(0), inputs.at(1), inputs.at(2)]; // [M, D] twice, [D]
    inputs.expect(x.shape.length === 2 && sameShape(residual.shape, x.shape) && sameShape(scale.shape, x.shape.slice(1)), "x and residual [M, D], and a scale [D]");
    const { dtype, shape } = x;
    return [{ dtype, shape }, { dtype, shape }];
  },
  overload: (inputs, attributes) => `d${inputs.at(0).shape[1]}_${float(attributes, "epsilon")}`,
  body: (b, inputs, attributes) => {
    const sum = b.op("Add", "sum", [inputs.at(0), inputs.at(1)]); // [M, D]
    return [b.op("RMSNormalization", "y", [sum, inputs.at(2)], { epsilon: float(attributes, "epsilon"), axis: -1 }), sum];
  },
};
