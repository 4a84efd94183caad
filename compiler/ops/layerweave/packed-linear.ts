import { sameShape } from "../../../core/dim.js";
import { packedShape } from "../../weights/panels.js";
import { int, type KernelOpDefinition } from "../definition.js";

/** QuantizedLinear with its weight in packed panels; `rows` counts the outputs without padding. */
export const packedLinear: KernelOpDefinition = {
  inputs: [4, 4],
  inputNames: ["x", "weight", "scale", "bias"],
  outputNames: ["y"],
  attributes: { rows: "int" },
  infer: (inputs, attributes) => {
    const [x, weight, scale, bias] = [inputs.at(0), inputs.at(1), inputs.at(2), inputs.optional(3)]; // [M, K], packed [N, K], packed [N], [N]
    const rows = int(attributes, "rows");
    const packed = packedShape([rows, x.shape[1] as number]);
    inputs.expect(weight.dtype === "int8" && sameShape(weight.shape, packed) && sameShape(scale.shape, packed.slice(0, 1)), "a packed int8 weight [N, K] and a scale for each of its rows");
    inputs.expect(!bias || sameShape(bias.shape, [rows]), "bias [N]");
    return [{ dtype: x.dtype, shape: [x.shape[0] ?? 0, rows] }];
  },
};
