import type { Value } from "../../ir/graph.js";
import type { GraphBuilder } from "../../ir/builder.js";

/** 0, 1, … T - 1, where T is the extent of `x` along `axis` → [T] int64 */
export function tokenPositions(b: GraphBuilder, label: string, x: Value, axis: number): Value {
  const shape = b.op("Shape", `${label}_shape`, [x]);
  const extent = b.op("Gather", `${label}_extent`, [shape, b.scalar("int64", axis)], { axis: 0 }); // []
  return b.op("Range", label, [b.scalar("int64", 0), extent, b.scalar("int64", 1)]);
}

/** An int8 weight times its scales, one per row → [out, in] float */
export function dequantized(b: GraphBuilder, label: string, weight: Value, scale: Value): Value {
  return b.op("DequantizeLinear", label, [weight, scale], { axis: 0 });
}

/** lengths[b] + 0 … count - 1 → [B, count] int64: where the last `count` inputs before lengths[b] stand behind a history of `count`. */
export function rowLengthIndices(b: GraphBuilder, lengths: Value, count: number): Value {
  const column = b.op("Unsqueeze", "lengths_column", [lengths, b.ints(1)]); // [B, 1]
  return b.op("Add", "last_inputs", [column, b.ints(...Array.from({ length: count }, (_, i) => i))]); // [B, count]
}
