import type { Value } from "../../ir/graph.js";
import type { GraphBuilder } from "../../ir/builder.js";

/** x [M, C] with the tokens of each row apart; `rows` is a tensor whose first extent is B → [B, T, C] */
export function byRow(b: GraphBuilder, label: string, x: Value, rows: Value): Value {
  const count = b.op("Gather", `${label}_count`, [b.op("Shape", `${label}_of`, [rows]), b.ints(0)], { axis: 0 }); // [1]
  return b.op("Reshape", label, [x, b.op("Concat", `${label}_shape`, [count, b.ints(-1, x.shape[1] as number)], { axis: 0 })]);
}

/** [B, T, C] → [M, C] */
export function flattened(b: GraphBuilder, label: string, x: Value): Value {
  return b.reshape(label, x, [-1, x.shape.at(-1) as number]);
}

/** 0, 1, … T - 1, where T is the extent of `x` along `axis` → [T] int64 */
export function tokenPositions(b: GraphBuilder, label: string, x: Value, axis: number): Value {
  const shape = b.op("Shape", `${label}_shape`, [x]);
  const extent = b.op("Gather", `${label}_extent`, [shape, b.scalar("int64", axis)], { axis: 0 }); // []
  return b.op("Range", label, [b.scalar("int64", 0), extent, b.scalar("int64", 1)]);
}

/**
 * An int8 weight [out, in] times its scales, one per row, to be multiplied with x [M, in] → [out, in] float
 *
 * A weight that depended on nothing but itself would be widened, with all the others, at the start of a run: ONNX Runtime goes
 * first for the input whose node was added last. Taking an extent from x has it widened after x is there, right before its use.
 */
export function dequantized(b: GraphBuilder, label: string, weight: Value, scale: Value, x: Value): Value {
  const inner = b.op("Gather", `${label}_inner`, [b.op("Shape", `${label}_x_shape`, [x]), b.ints(1)], { axis: 0 }); // [1]
  const shape = b.op("Concat", `${label}_shape`, [b.ints(-1), inner], { axis: 0 }); // [2]
  return b.op("DequantizeLinear", label, [b.op("Reshape", `${label}_codes`, [weight, shape]), scale], { axis: 0 });
}

/** lengths[b] + 0 … count - 1 → [B, count] int64: where the last `count` inputs before lengths[b] stand behind a history of `count`. */
export function rowLengthIndices(b: GraphBuilder, lengths: Value, count: number): Value {
  const column = b.op("Unsqueeze", "lengths_column", [lengths, b.ints(1)]); // [B, 1]
  return b.op("Add", "last_inputs", [column, b.ints(...Array.from({ length: count }, (_, i) => i))]); // [B, count]
}
