import { sameShape } from "../../../core/dim.js";
import { type CustomOpDefinition, int } from "../definition.js";
import { tokenPositions } from "./shared.js";

/**
 * Causal attention of T new tokens over a KV cache that holds S positions, of which the first past_lengths[b] count.
 *
 * Token t of row b stands at position past_lengths[b] + t. Its key and value are written there, and it sees the positions
 * up to its own, or only the last `window` of them. Query head h reads key/value head h / (n_heads / n_kv_heads).
 */
export const cachedAttention: CustomOpDefinition = {
  inputs: [6, 6],
  inputNames: ["query", "key", "value", "past_key", "past_value", "past_lengths"],
  outputNames: ["y", "present_key", "present_value"],
  /** window 0: no window. */
  attributes: { n_heads: "int", n_kv_heads: "int", window: "int" },
  infer: (inputs, attributes) => {
    const [q, k, pastKey, pastValue] = [inputs.at(0), inputs.at(1), inputs.at(3), inputs.at(4)]; // [B, T, H·P], [B, T, G·P], [B, G, S, P]
    const headDim = Number(pastKey.shape[3]);
    inputs.expect(q.shape[2] === int(attributes, "n_heads") * headDim && k.shape[2] === int(attributes, "n_kv_heads") * headDim, "query [B, T, H·P], key [B, T, G·P]");
    inputs.expect(sameShape(k.shape, inputs.at(2).shape) && sameShape(pastKey.shape, pastValue.shape), "key and value alike");
    return [
      { dtype: q.dtype, shape: q.shape },
      { dtype: pastKey.dtype, shape: pastKey.shape },
      { dtype: pastValue.dtype, shape: pastValue.shape },
    ];
  },
  overload: (inputs, a) => `h${int(a, "n_heads")}_g${int(a, "n_kv_heads")}_p${inputs.at(3).shape[3]}${int(a, "window") ? `_w${int(a, "window")}` : ""}`,
  body: (b, inputs, attributes) => {
    const [query, key, value, pastKey, pastValue, pastLengths] = [inputs.at(0), inputs.at(1), inputs.at(2), inputs.at(3), inputs.at(4), inputs.at(5)];
    const [nHeads, nKvHeads, window] = [int(attributes, "n_heads"), int(attributes, "n_kv_heads"), int(attributes, "window")];
    const headDim = Number(pastKey.shape[3]);
    const heads = (label: string, x: typeof query, n: number) =>
      b.op("Transpose", label, [b.reshape(`${label}_split`, x, [0, 0, n, headDim])], { perm: [0, 2, 1, 3] }); // [B, n, T, P]
    const presentKey = b.op("TensorScatter", "present_key", [pastKey, heads("key_heads", key, nKvHeads), pastLengths], { axis: 2 }); // [B, G, S, P]
    const presentValue = b.op("TensorScatter", "present_value", [pastValue, heads("value_heads", value, nKvHeads), pastLengths], { axis: 2 }); // [B, G, S, P]

    const lengthsColumn = b.op("Unsqueeze", "past_lengths_column", [pastLengths, b.ints(1)]); // [B, 1]
    const queryPosition = b.op("Unsqueeze", "query_position", [b.op("Add", "position", [lengthsColumn, tokenPositions(b, "token", query, 1)]), b.ints(1, 3)]); // [B, 1, T, 1]
    const keyPosition = tokenPositions(b, "key_position", pastKey, 2); // [S]
    const causal = b.op("LessOrEqual", "causal", [keyPosition, queryPosition]); // [B, 1, T, S]
    const visible = window
      ? b.op("And", "visible", [causal, b.op("Greater", "in_window", [keyPosition, b.op("Sub", "window_start", [queryPosition, b.scalar("int64", window)])])]) // [B, 1, T, S]
      : causal;

    const attended = b.op("Attention", "attention", [heads("query_heads", query, nHeads), presentKey, presentValue, visible], { scale: 1 / Math.sqrt(headDim) }); // [B, H, T, P]
    const y = b.reshape("y", b.op("Transpose", "tokens_first", [attended], { perm: [0, 2, 1, 3] }), [0, 0, nHeads * headDim]); // [B, T, H·P]
    return [y, presentKey, presentValue];
  },
};
