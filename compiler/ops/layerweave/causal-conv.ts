import { sameShape } from "../../../core/dim.js";
import type { CustomOpDefinition } from "../definition.js";
import { rowLengthIndices } from "./shared.js";

/**
 * Depthwise causal convolution over tokens with carried state, then SiLU.
 *
 * y[b,t,i] = silu(bias[i] + Σ_k weight[i,0,k] · x̂[b,t+k,i]), x̂ = the state's K - 1 inputs followed by x.
 * The new state is the last K - 1 inputs before position lengths[b].
 */
export const causalConv: CustomOpDefinition = {
  inputs: [5, 5],
  inputNames: ["x", "weight", "bias", "past_state", "lengths"],
  outputNames: ["y", "present_state"],
  attributes: { activation: "string" },
  infer: (inputs) => {
    const [x, weight, state] = [inputs.at(0), inputs.at(1), inputs.at(3)]; // [B, T, I], [I, 1, K], [B, I, K - 1]
    inputs.expect(weight.shape[0] === x.shape[2] && sameShape(state.shape, [x.shape[0] ?? 0, x.shape[2] ?? 0, Number(weight.shape[2]) - 1]), "x [B, T, I], weight [I, 1, K], state [B, I, K - 1]");
    return [
      { dtype: x.dtype, shape: x.shape },
      { dtype: state.dtype, shape: state.shape },
    ];
  },
  overload: (inputs) => `i${inputs.at(1).shape[0]}_k${inputs.at(1).shape[2]}${inputs.optional(2) ? "_bias" : ""}`,
  body: (b, inputs) => {
    const [x, weight, bias, state, lengths] = [inputs.at(0), inputs.at(1), inputs.optional(2), inputs.at(3), inputs.at(4)];
    const [channels, , width] = weight.shape as readonly number[];
    const history = (width as number) - 1;
    const channelsFirst = b.op("Transpose", "channels_first", [x], { perm: [0, 2, 1] }); // [B, I, T]
    const extended = b.op("Concat", "extended", [state, channelsFirst], { axis: 2 }); // [B, I, T + K - 1]
    const convolved = b.op("Conv", "convolved", bias ? [extended, weight, bias] : [extended, weight], { group: channels as number }); // [B, I, T]
    const y = b.op("Transpose", "y", [b.silu("activated", convolved)], { perm: [0, 2, 1] }); // [B, T, I]
    const last = rowLengthIndices(b, lengths, history); // [B, K - 1]
    const everyChannel = b.op("Expand", "every_channel", [b.op("Unsqueeze", "last_column", [last, b.ints(1)]), b.op("Shape", "state_shape", [state])]); // [B, I, K - 1]
    const present = b.op("GatherElements", "present_state", [extended, everyChannel], { axis: 2 }); // [B, I, K - 1]
    return [y, present];
  },
};
