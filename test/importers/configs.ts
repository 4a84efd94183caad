import { readFileSync } from "node:fs";
import { type Diagnostic, Diagnostics, LayerweaveError } from "../../core/diagnostics.js";
import { importConfig } from "../../compiler/importers/index.js";
import type { ModelSpec } from "../../dsl/model.js";

export type Config = Readonly<Record<string, unknown>>;

export const fixtureNames = ["jamba-block", "jamba-two-blocks", "jamba-dense", "mixtral", "llama", "mistral-swa", "mamba", "falcon-mamba", "tiny-jamba"] as const;

export function fixtureConfig(name: (typeof fixtureNames)[number]): Config {
  return JSON.parse(readFileSync(new URL(name === "tiny-jamba" ? "../../examples/tiny-jamba/config.json" : `../fixtures/hf/${name}/config.json`, import.meta.url), "utf8")) as Config;
}

/** ai21labs/Jamba-v0.1, its first revision: before the library knew the family. */
export const jambaV01: Config = {
  architectures: ["JambaForCausalLM"],
  attention_dropout: 0.0,
  attn_layer_offset: 4,
  attn_layer_period: 8,
  auto_map: { AutoConfig: "configuration_jamba.JambaConfig" },
  bos_token_id: 1,
  calc_logits_for_entire_prompt: false,
  eos_token_id: 2,
  expert_layer_offset: 1,
  expert_layer_period: 2,
  hidden_act: "silu",
  hidden_size: 4096,
  initializer_range: 0.02,
  intermediate_size: 14336,
  mamba_conv_bias: true,
  mamba_d_conv: 4,
  mamba_d_state: 16,
  mamba_dt_rank: 256,
  mamba_expand: 2,
  mamba_inner_layernorms: true,
  mamba_proj_bias: false,
  model_type: "jamba",
  n_ctx: 262144,
  num_attention_heads: 32,
  num_experts: 16,
  num_experts_per_tok: 2,
  num_hidden_layers: 32,
  num_key_value_heads: 8,
  output_router_logits: false,
  pad_token_id: 0,
  rms_norm_eps: 1e-6,
  router_aux_loss_coef: 0.001,
  sliding_window: null,
  tie_word_embeddings: false,
  torch_dtype: "bfloat16",
  transformers_version: "4.38.2",
  use_cache: true,
  use_mamba_kernels: true,
  vocab_size: 65536,
};

/** meta-llama/Llama-3.1-8B */
export const llama31: Config = {
  architectures: ["LlamaForCausalLM"],
  attention_bias: false,
  attention_dropout: 0.0,
  bos_token_id: 128000,
  eos_token_id: [128001, 128008, 128009],
  hidden_act: "silu",
  hidden_size: 4096,
  initializer_range: 0.02,
  intermediate_size: 14336,
  max_position_embeddings: 131072,
  mlp_bias: false,
  model_type: "llama",
  num_attention_heads: 32,
  num_hidden_layers: 32,
  num_key_value_heads: 8,
  pretraining_tp: 1,
  rms_norm_eps: 1e-5,
  rope_scaling: { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position_embeddings: 8192, rope_type: "llama3" },
  rope_theta: 500000.0,
  tie_word_embeddings: false,
  torch_dtype: "bfloat16",
  transformers_version: "4.43.0.dev0",
  use_cache: true,
  vocab_size: 128256,
};

/** state-spaces/mamba-130m-hf, with the keys of the original implementation that it kept. */
export const mamba130m: Config = {
  _name_or_path: "state-spaces/mamba-130m-hf",
  architectures: ["MambaForCausalLM"],
  bos_token_id: 0,
  conv_kernel: 4,
  d_inner: 1536,
  d_model: 768,
  eos_token_id: 0,
  expand: 2,
  fused_add_norm: true,
  hidden_act: "silu",
  hidden_size: 768,
  initializer_range: 0.1,
  intermediate_size: 1536,
  layer_norm_epsilon: 1e-5,
  model_type: "mamba",
  n_layer: 24,
  num_hidden_layers: 24,
  pad_token_id: 0,
  pad_vocab_size_multiple: 8,
  rescale_prenorm_residual: false,
  residual_in_fp32: true,
  rms_norm: true,
  ssm_cfg: {},
  state_size: 16,
  time_step_floor: 0.0001,
  time_step_init_scheme: "random",
  time_step_max: 0.1,
  time_step_min: 0.001,
  time_step_rank: 48,
  time_step_scale: 1.0,
  torch_dtype: "float32",
  transformers_version: "4.39.0.dev0",
  use_bias: false,
  use_cache: true,
  use_conv_bias: true,
  vocab_size: 50280,
};

/** tiiuae/falcon-mamba-7b: its expand is not what its weights have. */
export const falconMamba7b: Config = {
  _name_or_path: "./",
  architectures: ["FalconMambaForCausalLM"],
  bos_token_id: 0,
  conv_kernel: 4,
  eos_token_id: 11,
  expand: 16,
  hidden_act: "silu",
  hidden_size: 4096,
  initializer_range: 0.1,
  intermediate_size: 8192,
  layer_norm_epsilon: 1e-5,
  model_type: "falcon_mamba",
  num_hidden_layers: 64,
  pad_token_id: 11,
  rescale_prenorm_residual: false,
  residual_in_fp32: true,
  state_size: 16,
  tie_word_embeddings: false,
  time_step_floor: 0.0001,
  time_step_init_scheme: "random",
  time_step_max: 0.1,
  time_step_min: 0.001,
  time_step_rank: 256,
  time_step_scale: 1.0,
  torch_dtype: "bfloat16",
  transformers_version: "4.43.0.dev0",
  use_bias: false,
  use_cache: true,
  use_conv_bias: true,
  vocab_size: 65024,
};

export const without = (config: Config, key: string): Config => Object.fromEntries(Object.entries(config).filter(([name]) => name !== key));

export function imported(config: Config, name = "test", allowUnknownKeys = false): { readonly spec: ModelSpec; readonly warnings: readonly Diagnostic[] } {
  const found = new Diagnostics();
  const { spec } = importConfig(config, name, found, allowUnknownKeys);
  return { spec, warnings: found.all };
}

/** What importing a bad config reports. */
export function problemsOf(config: Config): readonly Diagnostic[] {
  try {
    imported(config);
  } catch (error) {
    if (error instanceof LayerweaveError) return error.diagnostics;
    throw error;
  }
  throw new Error("the config was accepted");
}
