import { sameShape } from "../../../core/dim.js";
import { GraphBuilder } from "../../ir/builder.js";
import type { Value } from "../../ir/graph.js";
import type { CustomOpDefinition } from "../definition.js";
import { tokenPositions } from "./shared.js";

/**
 * The selective scan of Mamba-1 (Gu & Dao 2023, arXiv 2312.00752, algorithm 2) with carried state and output gate.
 *
 * Δ = softplus(delta + delta_bias), A = -exp(A_log), and per token t < lengths[b]
 * h ← exp(Δ·A) ⊙ h + (Δ·u) ⊗ B, y = (h·C + D ⊙ u) ⊙ silu(z).
 */
export const selectiveScan: CustomOpDefinition = {
  inputs: [10, 10],
  inputNames: ["u", "delta", "A_log", "B", "C", "D", "delta_bias", "z", "past_state", "lengths"],
  outputNames: ["y", "present_state"],
  attributes: {},
  infer: (inputs) => {
    const [u, state] = [inputs.at(0), inputs.at(8)]; // [B, T, I], [B, I, N]
    const [batch, tokens, channels] = u.shape;
    const dState = state.shape[2] ?? 0;
    inputs.expect(sameShape(inputs.at(1).shape, u.shape) && sameShape(inputs.at(7).shape, u.shape), "u, delta and z are [B, T, I]");
    inputs.expect(sameShape(inputs.at(3).shape, [batch ?? 0, tokens ?? 0, dState]) && sameShape(inputs.at(4).shape, inputs.at(3).shape), "B and C are [B, T, N]");
    inputs.expect(sameShape(inputs.at(2).shape, [channels ?? 0, dState]) && sameShape(state.shape, [batch ?? 0, channels ?? 0, dState]), "A_log is [I, N], the state [B, I, N]");
    return [
      { dtype: u.dtype, shape: u.shape },
      { dtype: state.dtype, shape: state.shape },
    ];
  },
  overload: (inputs) => `i${inputs.at(2).shape[0]}_n${inputs.at(2).shape[1]}`,
  body: (b, inputs) => {
    const [u, delta, aLog, inB, outC, skip] = [inputs.at(0), inputs.at(1), inputs.at(2), inputs.at(3), inputs.at(4), inputs.at(5)];
    const [deltaBias, z, past, lengths] = [inputs.at(6), inputs.at(7), inputs.at(8), inputs.at(9)];
    const [batch, , channels] = u.shape;
    const dState = aLog.shape[1] ?? 0;

    const positive = b.op("Softplus", "positive_delta", [b.op("Add", "biased_delta", [delta, deltaBias])]); // [B, T, I]
    // Δ = 0 makes a step the identity: exp(0)·h + 0, which is how padding leaves the state alone.
    const counts = b.op("Less", "counts", [tokenPositions(b, "token", u, 1), b.op("Unsqueeze", "lengths_column", [lengths, b.ints(1)])]); // [B, T]
    const mask = b.op("Unsqueeze", "mask", [b.op("Cast", "counts_as_number", [counts], { to: u.dtype }), b.ints(2)]); // [B, T, 1]
    const step = b.op("Mul", "step", [positive, mask]); // [B, T, I]
    const driven = b.op("Mul", "driven", [step, u]); // [B, T, I]
    const a = b.op("Neg", "A", [b.op("Exp", "A_magnitude", [aLog])]); // [I, N]

    const token = new GraphBuilder("scan_step", { path: "" });
    const h = token.input("h", past.dtype, past.shape); // [B, I, N]
    const stepT = token.input("step_t", u.dtype, [batch ?? 0, channels ?? 0]);
    const drivenT = token.input("driven_t", u.dtype, [batch ?? 0, channels ?? 0]);
    const bT = token.input("B_t", u.dtype, [batch ?? 0, dState]);
    const cT = token.input("C_t", u.dtype, [batch ?? 0, dState]);
    const decay = token.op("Exp", "decay", [token.op("Mul", "exponent", [token.op("Unsqueeze", "step_column", [stepT, token.ints(2)]), a])]); // [B, I, N]
    const kept = token.op("Mul", "kept", [decay, h]); // [B, I, N]
    const added = token.op("Mul", "added", [token.op("Unsqueeze", "driven_column", [drivenT, token.ints(2)]), token.op("Unsqueeze", "B_row", [bT, token.ints(1)])]); // [B, I, N]
    const next = token.op("Add", "h_next", [kept, added]); // [B, I, N]
    const read = token.op("Squeeze", "y_t", [token.op("MatMul", "read", [next, token.op("Unsqueeze", "C_column", [cT, token.ints(2)])]), token.ints(2)]); // [B, I]

    const [present, scanned] = b.ops("Scan", "scan", [past, step, driven, inB, outC], {
      body: token.finish([next, read]),
      num_scan_inputs: 4,
      scan_input_axes: [1, 1, 1, 1],
      scan_output_axes: [1],
    }) as [Value, Value]; // [B, I, N], [B, T, I]
    const y = b.op("Add", "with_skip", [scanned, b.op("Mul", "skip", [u, skip])]); // [B, T, I]
    return [b.op("Mul", "y", [y, b.silu("gate", z)]), present];
  },
};
