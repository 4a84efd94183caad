export { type AttentionOptions, type AttentionSpec, attention } from "./mixers/attention.js";
export { type InnerNorms, type MambaOptions, type MambaSpec, mamba } from "./mixers/mamba.js";
export { type MlpSpec, mlp } from "./channel-mixers/mlp.js";
export { type MoeOptions, type MoeSpec, moe, type Router, softmaxThenTopK, topKThenSoftmax } from "./channel-mixers/moe.js";
export type { MixerKind, MixerSpec } from "./mixers/index.js";
export type { ChannelMixerKind, ChannelMixerSpec } from "./channel-mixers/index.js";
export { type RmsNormSpec, rmsNorm } from "./norms.js";
export { linearScaling, llama3Scaling, none, type Position, type RopeScaling, rope, yarnScaling } from "./positions.js";
export {
  type BlockSpec,
  block,
  type ChannelMixerPlan,
  every,
  type LayerSpec,
  layer,
  type MixerPlan,
  type ModelOptions,
  type ModelSpec,
  model,
  type PatternSpec,
  pattern,
  ratio,
  repeat,
} from "./model.js";
