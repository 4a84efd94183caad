import { type Dim, sameShape } from "../../../core/dim.js";
import { packedShape } from "../../weights/panels.js";
import type { GraphBuilder } from "../../ir/builder.js";
import type { Attributes, Value } from "../../ir/graph.js";
import { type CustomOpDefinition, float, Inputs, int, type Inferred, type KernelOpDefinition } from "../definition.js";
import { causalConv } from "./causal-conv.js";
import { selectiveScan } from "./selective-scan.js";
import { byRow, dequantized, flattened } from "./shared.js";

const inputNames = ["xz", "conv_weight", "conv_bias", "x_proj", "x_proj_scale", "dt_norm", "b_norm", "c_norm", "dt_proj", "dt_proj_scale", "dt_bias", "A_log", "D", "past_conv", "past_ssm", "lengths"];

const common = {
  inputs: [16, 16],
  inputNames,
  outputNames: ["y", "present_conv", "present_ssm"],
  /** The eps of a norm that is absent is 1. */
  attributes: { dt_rank: "int", d_state: "int", dt_eps: "float", b_eps: "float", c_eps: "float" },
} as const;

/**
 * All of a Mamba-1 mixer between in_proj and out_proj (Gu & Dao 2023, arXiv 2312.00752; with Jamba's norms of dt, B and C):
 * x, z = xz; u = CausalConv(x); dt, B, C = x_proj(u), each normalised where its norm is given; Δ = dt_proj(dt);
 * y = SelectiveScan(u, Δ, B, C, z).
 */
export const mambaInner: CustomOpDefinition = {
  ...common,
  infer: (inputs, attributes) => infer(inputs, attributes, (shape) => shape),
  overload: (inputs, a) => {
    const [channels, , width] = inputs.at(1).shape;
    const norms = [5, 6, 7].some((i) => inputs.optional(i)) ? `_norms${float(a, "dt_eps")}_${float(a, "b_eps")}_${float(a, "c_eps")}` : "";
    return `i${channels}_k${width}_n${int(a, "d_state")}_r${int(a, "dt_rank")}${norms}${inputs.optional(2) ? "_bias" : ""}${inputs.optional(4) ? "_int8" : ""}`;
  },
  body: (b, inputs, attributes) => {
    const [xz, lengths] = [inputs.at(0), inputs.at(15)]; // [M, 2I], [B]
    const [dInner, dState, dtRank] = [inputs.at(1).shape[0] as number, int(attributes, "d_state"), int(attributes, "dt_rank")];
    const [inner, gate] = b.ops("Split", "x_and_gate", [byRow(b, "xz_rows", xz, lengths), b.ints(dInner, dInner)], { axis: 2 }) as [Value, Value]; // [B, T, I] twice
    const convInputs = new Inputs("CausalConv", [inner, inputs.at(1), inputs.optional(2), inputs.at(13), lengths]);
    const [u, presentConv] = b.scope("conv1d", () => causalConv.body(b, convInputs, { activation: "silu" })) as [Value, Value]; // [B, T, I], [B, I, K - 1]

    const projected = project(b, "x_proj", flattened(b, "conv_flat", u), inputs, 3); // [M, R + 2N]
    const [dtLow, inB, outC] = b.ops("Split", "dt_B_C", [projected, b.ints(dtRank, dState, dState)], { axis: 1 }) as [Value, Value, Value]; // [M, R], [M, N], [M, N]
    const normed = (label: "dt" | "b" | "c", value: Value) => {
      const scale = inputs.optional(inputNames.indexOf(`${label}_norm`));
      return scale ? b.op("RMSNormalization", `${label}_norm`, [value, scale], { epsilon: float(attributes, `${label}_eps`), axis: -1 }) : value;
    };
    const delta = project(b, "dt_proj", normed("dt", dtLow), inputs, 8); // [M, I]
    const perRow = (label: string, value: Value) => byRow(b, label, value, lengths); // [B, T, ·]
    const scanInputs = [u, perRow("delta", delta), inputs.at(11), perRow("B", normed("b", inB)), perRow("C", normed("c", outC)), inputs.at(12), inputs.at(10), gate, inputs.at(14), lengths];
    const [y, presentSsm] = b.scope("selective_scan", () => selectiveScan.body(b, new Inputs("SelectiveScan", scanInputs), {})) as [Value, Value]; // [B, T, I], [B, I, N]
    return [flattened(b, "y", y), presentConv, presentSsm]; // [M, I]
  },
};

/** MambaInner with x_proj and dt_proj in packed panels. */
export const packedMambaInner: KernelOpDefinition = {
  ...common,
  infer: (inputs, attributes) => infer(inputs, attributes, packedShape),
};

/** x times the weight at `index`, which is int8 if the scale after it is given. */
function project(b: GraphBuilder, label: string, x: Value, inputs: Inputs, index: number): Value {
  const scale = inputs.optional(index + 1);
  return b.linear(label, x, scale ? dequantized(b, `${label}_weight`, inputs.at(index), scale, x) : inputs.at(index));
}

function infer(inputs: Inputs, attributes: Attributes, stored: (shape: readonly number[]) => readonly number[]): readonly Inferred[] {
  const [xz, conv, xProj, dtProj, aLog, pastConv, pastSsm] = [inputs.at(0), inputs.at(1), inputs.at(3), inputs.at(8), inputs.at(11), inputs.at(13), inputs.at(14)];
  const [dState, dtRank] = [int(attributes, "d_state"), int(attributes, "dt_rank")];
  const [channels, , width] = conv.shape as readonly number[]; // [I, 1, K]
  const dInner = channels as number;
  const rows: Dim = pastConv.shape[0] ?? 0;
  inputs.expect(xz.shape.length === 2 && xz.shape[1] === 2 * dInner && sameShape(aLog.shape, [dInner, dState]), "xz [M, 2I] and A_log [I, N]");
  inputs.expect(sameShape(xProj.shape, stored([dtRank + 2 * dState, dInner])) && sameShape(dtProj.shape, stored([dInner, dtRank])), "x_proj [R + 2N, I] and dt_proj [I, R]");
  inputs.expect(sameShape(pastConv.shape, [rows, dInner, (width as number) - 1]) && sameShape(pastSsm.shape, [rows, dInner, dState]), "past_conv [B, I, K - 1] and past_ssm [B, I, N]");
  return [
    { dtype: xz.dtype, shape: [xz.shape[0] ?? 0, dInner] },
    { dtype: pastConv.dtype, shape: pastConv.shape },
    { dtype: pastSsm.dtype, shape: pastSsm.shape },
  ];
}
