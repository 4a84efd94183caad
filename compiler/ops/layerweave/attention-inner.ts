import { sameShape } from "../../../core/dim.js";
import type { GraphBuilder } from "../../ir/builder.js";
import type { Value } from "../../ir/graph.js";
import { type CustomOpDefinition, float, Inputs, int } from "../definition.js";
import { cachedAttention } from "./cached-attention.js";
import { byRow, flattened, tokenPositions } from "./shared.js";

/**
 * All of an attention mixer between its packed projection and o_proj: query and key heads rotated by their position, then
 * CachedAttention. qkv holds the query heads, the key heads and the value heads.
 *
 * Element i of a head is rotated with element i + P/2 by position · inverse_frequencies[i], cos and sin times rope_scale
 * (Su et al. 2021, arXiv 2104.09864, in the arrangement of GPT-NeoX). Without inverse_frequencies nothing is rotated.
 */
export const attentionInner: CustomOpDefinition = {
  inputs: [5, 5],
  inputNames: ["qkv", "past_key", "past_value", "past_lengths", "inverse_frequencies"],
  outputNames: ["y", "present_key", "present_value"],
  /** window 0: no window. */
  attributes: { n_heads: "int", n_kv_heads: "int", window: "int", rope_scale: "float" },
  infer: (inputs, attributes) => {
    const [qkv, pastKey, pastValue, frequencies] = [inputs.at(0), inputs.at(1), inputs.at(2), inputs.optional(4)]; // [M, (H + 2G)·P], [B, G, S, P] twice, [P / 2]
    const [nHeads, nKvHeads, headDim] = [int(attributes, "n_heads"), int(attributes, "n_kv_heads"), Number(pastKey.shape[3])];
    inputs.expect(qkv.shape.length === 2 && qkv.shape[1] === (nHeads + 2 * nKvHeads) * headDim, "qkv [M, (H + 2G)·P]");
    inputs.expect(pastKey.shape[1] === nKvHeads && sameShape(pastKey.shape, pastValue.shape), "past key and value [B, G, S, P]");
    inputs.expect(!frequencies || sameShape(frequencies.shape, [headDim / 2]), "a frequency for each pair of elements");
    return [
      { dtype: qkv.dtype, shape: [qkv.shape[0] ?? 0, nHeads * headDim] },
      { dtype: pastKey.dtype, shape: pastKey.shape },
      { dtype: pastValue.dtype, shape: pastValue.shape },
    ];
  },
  overload: (inputs, a) =>
    `h${int(a, "n_heads")}_g${int(a, "n_kv_heads")}_p${inputs.at(1).shape[3]}${int(a, "window") ? `_w${int(a, "window")}` : ""}${inputs.optional(4) ? `_rope${float(a, "rope_scale")}` : ""}`,
  body: (b, inputs, attributes) => {
    const [pastKey, pastValue, pastLengths, frequencies] = [inputs.at(1), inputs.at(2), inputs.at(3), inputs.optional(4)];
    const [nHeads, nKvHeads, headDim] = [int(attributes, "n_heads"), int(attributes, "n_kv_heads"), Number(pastKey.shape[3])];
    const widths = b.ints(nHeads * headDim, nKvHeads * headDim, nKvHeads * headDim);
    const [query, key, value] = b.ops("Split", "heads", [byRow(b, "qkv_rows", inputs.at(0), pastLengths), widths], { axis: 2 }) as [Value, Value, Value]; // [B, T, H·P], [B, T, G·P] twice
    const rotated = frequencies ? rotation(b, query, pastLengths, frequencies, float(attributes, "rope_scale")) : (_: string, x: Value) => x;
    const attended = new Inputs("CachedAttention", [rotated("query", query, nHeads), rotated("key", key, nKvHeads), value, pastKey, pastValue, pastLengths]);
    const [y, presentKey, presentValue] = b.scope("attention", () => cachedAttention.body(b, attended, attributes)) as [Value, Value, Value]; // [B, T, H·P], [B, G, S, P] twice
    return [flattened(b, "y", y), presentKey, presentValue]; // [M, H·P]
  },
};

/** How heads [B, T, n·P] are turned by the position of their token. */
function rotation(b: GraphBuilder, query: Value, pastLengths: Value, frequencies: Value, scale: number): (label: string, x: Value, heads: number) => Value {
  const ids = b.op("Add", "position_ids", [b.op("Unsqueeze", "past_lengths_column", [pastLengths, b.ints(1)]), tokenPositions(b, "token", query, 1)]); // [B, T]
  const positions = b.op("Unsqueeze", "positions", [b.op("Cast", "position_numbers", [ids], { to: frequencies.dtype }), b.ints(2)]); // [B, T, 1]
  const angles = b.op("Mul", "angles", [positions, frequencies]); // [B, T, P / 2]
  const [cos, sin] = (["Cos", "Sin"] as const).map((wave) => b.op("Mul", `scaled_${wave}`, [b.op(wave, wave, [angles]), b.scalar("float32", scale)])) as [Value, Value]; // [B, T, P / 2] twice
  return (label, x, heads) => b.op("RotaryEmbedding", `${label}_rotated`, [x, cos, sin], { num_heads: heads }); // [B, T, n·P]
}
