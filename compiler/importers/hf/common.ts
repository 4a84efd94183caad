import { type AttentionSpec, attention } from "../../../dsl/mixers/attention.js";
import { mamba, type MambaOptions, type MambaSpec } from "../../../dsl/mixers/mamba.js";
import { type Position, type RopeScaling, linearScaling, llama3Scaling, rope, yarnScaling } from "../../../dsl/positions.js";
import type { ConfigReader } from "../config-reader.js";

/** Accounts for the keys that every config of the Transformers library may carry, and checks that it is a language model's. */
export function readLibraryKeys(config: ConfigReader): void {
  const classes = config.optionalStrings("architectures");
  if (classes && !classes.some((name) => name.endsWith("ForCausalLM"))) config.unsupported("architectures", classes, ["…ForCausalLM"]);
  config.oneOf("quantization_config", [null]);
  config.ignore("already used to choose the importer", "model_type");
  config.ignore("names the model", "_name_or_path");
  config.ignore("read with generation_config.json", "bos_token_id", "eos_token_id", "pad_token_id");
  config.ignore("the weight files say their own types", "torch_dtype", "dtype");
  config.ignore("says what wrote the file", "transformers_version", "auto_map", "unsloth_version", "unsloth_fixed", "_commit_hash", "_attn_implementation_autoset", "_flash_attn_2_enabled", "attn_implementation");
  config.ignore("only training uses it", "initializer_range", "attention_dropout", "gradient_checkpointing", "router_aux_loss_coef", "output_router_logits", "rescale_prenorm_residual");
  config.ignore("says what a Python call returns", "use_cache", "output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "torchscript", "num_logits_to_keep", "calc_logits_for_entire_prompt");
  config.ignore("cuts one matrix product into several of the same sum", "pretraining_tp");
}

interface Heads {
  /** Heads of keys and values when the config does not say; absent: it must. */
  readonly nKvHeads?: (nHeads: number) => number;
  readonly position: Position;
  readonly window?: number;
  readonly bias?: boolean;
}

/** Attention from hidden_size, num_attention_heads, num_key_value_heads and head_dim. */
export function readAttention(config: ConfigReader, dModel: number, { nKvHeads: otherwise, position, window, bias = false }: Heads): AttentionSpec {
  const nHeads = config.count("num_attention_heads");
  const nKvHeads = config.count("num_key_value_heads", otherwise?.(nHeads));
  const ownHeadDim = config.optionalCount("head_dim");
  const headDim = ownHeadDim ?? dModel / nHeads;
  if (!Number.isInteger(headDim))
    config.contradicts(["hidden_size", "num_attention_heads"], `${dModel} is not divisible by ${nHeads}, and head_dim is not given`, "Give head_dim, or a number of heads that divides hidden_size.");
  else if (position.kind === "rope" && headDim % 2 !== 0)
    config.contradicts(ownHeadDim === undefined ? ["hidden_size", "num_attention_heads"] : ["head_dim"], `rotary embedding needs an even head_dim, not ${headDim}`, "Check hidden_size, num_attention_heads and head_dim against the weights.");
  if (nHeads % nKvHeads !== 0)
    config.contradicts(["num_attention_heads", "num_key_value_heads"], `${nHeads} is not divisible by ${nKvHeads}`, "num_key_value_heads must divide num_attention_heads.");
  return attention({
    nHeads,
    nKvHeads,
    position,
    qkvBias: bias,
    outBias: bias,
    ...(ownHeadDim === undefined || ownHeadDim === dModel / nHeads ? {} : { headDim: ownHeadDim }),
    ...(window === undefined ? {} : { window }),
  });
}

/** The gate's activation; all supported families use SiLU (also called swish). */
export function readActivation(config: ConfigReader): void {
  config.oneOf("hidden_act", ["silu", "swish"]);
}

/**
 * Rotary embedding from `rope_parameters` (Transformers 5) or `rope_theta` and `rope_scaling` (before), read as
 * `modeling_rope_utils.py` reads them.
 */
export function readRope(config: ConfigReader, defaults: { readonly theta: number; readonly contextLength: number }): Position {
  const parameters = config.section("rope_parameters");
  const scaling = config.section("rope_scaling");
  if (parameters && scaling) config.contradicts(["rope_parameters", "rope_scaling"], "both are given", "Keep one of the two; they mean the same.");
  for (const reader of [config, parameters, scaling]) reader?.oneOf("partial_rotary_factor", [1]);
  const theta = config.optionalPositive("rope_theta");
  const inner = parameters?.optionalPositive("rope_theta");
  if (theta !== undefined && inner !== undefined && theta !== inner)
    config.contradicts(["rope_theta", "rope_parameters.rope_theta"], `${theta} is not ${inner}`, "Keep one of the two.");
  const [read] = [parameters, scaling].flatMap((section) => readScaling(section, defaults.contextLength) ?? []);
  return rope({ theta: inner ?? theta ?? defaults.theta, ...(read ? { scaling: read } : {}) });
}

const ropeTypes = ["default", "linear", "llama3", "yarn"] as const;

function readScaling(section: ConfigReader | undefined, contextLength: number): RopeScaling | undefined {
  if (!section) return undefined;
  // "type" is the older name.
  const older = section.oneOf("type", [null, ...ropeTypes]);
  const type = section.oneOf("rope_type", [null, ...ropeTypes]) ?? older ?? "default";
  if (older !== null && older !== type) section.contradicts(["type", "rope_type"], `"${older}" is not "${type}"`, "Keep rope_type.");
  switch (type) {
    case "default":
      section.ignore("unused without scaling", "factor", "original_max_position_embeddings");
      return undefined;
    case "linear":
      section.ignore("unused by linear scaling", "original_max_position_embeddings");
      return linearScaling({ factor: section.positive("factor") });
    case "llama3": {
      const lowFreqFactor = section.positive("low_freq_factor");
      const highFreqFactor = section.positive("high_freq_factor");
      if (lowFreqFactor >= highFreqFactor)
        section.contradicts(["low_freq_factor", "high_freq_factor"], `${lowFreqFactor} is not below ${highFreqFactor}`, "Llama 3.1 uses 1 and 4.");
      return llama3Scaling({ factor: section.positive("factor"), lowFreqFactor, highFreqFactor, originalContext: section.count("original_max_position_embeddings", contextLength) });
    }
    case "yarn":
      return readYarn(section, contextLength);
  }
}

function readYarn(section: ConfigReader, contextLength: number): RopeScaling {
  // false moves the ramp's ends to fractional dimensions, which the compiled frequencies don't.
  section.oneOf("truncate", [true]);
  const originalContext = section.count("original_max_position_embeddings", contextLength);
  const factor = section.positive("factor", contextLength / originalContext);
  const mscale = section.optionalPositive("mscale");
  const mscaleAllDim = section.optionalPositive("mscale_all_dim");
  const strength = (m: number) => (factor <= 1 ? 1 : 0.1 * m * Math.log(factor) + 1);
  const attentionFactor = section.optionalPositive("attention_factor") ?? (mscale && mscaleAllDim ? strength(mscale) / strength(mscaleAllDim) : undefined);
  return yarnScaling({
    factor,
    originalContext,
    betaFast: section.positive("beta_fast", 32),
    betaSlow: section.positive("beta_slow", 1),
    ...(attentionFactor === undefined ? {} : { attentionFactor }),
  });
}

/** Experts per token; `expertsKey` says of how many. */
export function readTopK(config: ConfigReader, expertsKey: string, nExperts: number): number {
  const topK = config.count("num_experts_per_tok");
  // A single expert is an MLP: the number is not used then.
  if (topK > nExperts && nExperts > 1)
    config.contradicts(["num_experts_per_tok", expertsKey], `${topK} of ${nExperts} experts can't be chosen`, `Choose num_experts_per_tok from 1 to ${nExperts}.`);
  return topK;
}

/** What each family calls the options of its Mamba mixer. */
interface MambaKeys {
  readonly dState: string;
  readonly dConv: string;
  readonly dtRank: string;
  readonly convBias: string;
}

/** A Mamba-1 mixer, with Transformers' defaults for what the config leaves out. */
export function readMamba(config: ConfigReader, dModel: number, keys: MambaKeys, rest: Required<Pick<MambaOptions, "expand" | "projBias">> & Pick<MambaOptions, "innerNorm">): MambaSpec {
  const dConv = config.count(keys.dConv, 4);
  if (dConv === 1) config.unsupported(keys.dConv, dConv, ["2 and more"]);
  const dtRank = config.countOrAuto(keys.dtRank);
  const dInner = rest.expand * dModel;
  if (dtRank !== "auto" && dtRank > dInner)
    config.contradicts([keys.dtRank, "hidden_size"], `a rank of ${dtRank} exceeds the mixer's ${dInner} channels`, `Set ${keys.dtRank} to "auto", or to a number up to ${dInner}.`);
  return mamba({ dState: config.count(keys.dState, 16), dConv, dtRank, convBias: config.boolean(keys.convBias, true), ...rest });
}
