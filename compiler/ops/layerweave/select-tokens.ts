import { mulDims } from "../../../core/dim.js";
import type { CustomOpDefinition } from "../definition.js";
import { byRow } from "./shared.js";

/** The tokens of each row whose logits are wanted: y[b·L + l] = x[b·T + indices[b, l]]. */
export const selectTokens: CustomOpDefinition = {
  inputs: [2, 2],
  inputNames: ["x", "indices"],
  outputNames: ["y"],
  attributes: {},
  infer: (inputs) => {
    const [x, indices] = [inputs.at(0), inputs.at(1)]; // [M, D], [B, L]
    inputs.expect(x.shape.length === 2 && indices.shape.length === 2, "x [M, D] and indices [B, L]");
    return [{ dtype: x.dtype, shape: [mulDims(...indices.shape), x.shape[1] ?? 0] }];
  },
  overload: (inputs) => `d${inputs.at(0).shape[1]}`,
  body: (b, inputs) => {
    const [x, indices] = [inputs.at(0), inputs.at(1)];
    const tokens = byRow(b, "tokens", x, indices); // [B, T, D]
    const selected = b.op("GatherND", "selected", [tokens, b.op("Unsqueeze", "index_column", [indices, b.ints(2)])], { batch_dims: 1 }); // [B, L, D]
    return [b.reshape("y", selected, [-1, x.shape[1] as number])]; // [B·L, D]
  },
};
