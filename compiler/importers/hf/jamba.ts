import { mlp } from "../../../dsl/channel-mixers/mlp.js";
import { moe } from "../../../dsl/channel-mixers/moe.js";
import { block, type ChannelMixerPlan, every, type MixerPlan, model, ratio } from "../../../dsl/model.js";
import { rmsNorm } from "../../../dsl/norms.js";
import { none } from "../../../dsl/positions.js";
import type { ConfigReader } from "../config-reader.js";
import type { Importer } from "../importer.js";
import { readActivation, readAttention, readLibraryKeys, readMamba, readTopK } from "./common.js";
import { ignoredTensors, sourcesFrom } from "./sources.js";

/** Layer i is of the kind when i mod period = offset. */
interface Places {
  readonly period: number;
  readonly offset: number;
}

export const jamba: Importer = {
  modelTypes: ["jamba"],

  toModel: (config) => {
    readLibraryKeys(config);
    readActivation(config);
    config.ignore("chooses between implementations of one formula", "use_mamba_kernels", "use_mambapy", "use_associative_scan");
    config.oneOf("sliding_window", [null]);
    const dModel = config.count("hidden_size");
    // Early revisions of v0.1 say n_ctx.
    const oldContext = config.optionalCount("n_ctx");
    const contextLength = config.count("max_position_embeddings", oldContext ?? 262_144);
    const norm = rmsNorm({ eps: config.positive("rms_norm_eps", 1e-6) });

    const attention = readAttention(config, dModel, { position: none() });
    const mixer = readMamba(
      config,
      dModel,
      { dState: "mamba_d_state", dConv: "mamba_d_conv", dtRank: "mamba_dt_rank", convBias: "mamba_conv_bias" },
      {
        expand: config.count("mamba_expand", 2),
        projBias: config.boolean("mamba_proj_bias", false),
        ...(config.boolean("mamba_inner_layernorms", true) ? { innerNorm: rmsNorm() } : {}),
      },
    );
    const attentionPlaces = readPlaces(config, "attn_layer_period", "attn_layer_offset");

    const dFf = config.count("intermediate_size");
    const dense = mlp({ dFf });
    const nExperts = config.count("num_experts");
    const topK = readTopK(config, "num_experts", nExperts);
    const sparse = moe({ nExperts, topK, dFf });
    const expertPlaces = readPlaces(config, "expert_layer_period", "expert_layer_offset");
    const channelMixer: ChannelMixerPlan =
      nExperts === 1 ? dense : expertPlaces.period === 1 ? sparse : every(expertPlaces.period, sparse, { offset: expertPlaces.offset, otherwise: dense });

    const nLayers = config.count("num_hidden_layers");
    checkBlockTypes(config, nLayers, attentionPlaces);
    const repeats = leastCommonMultiple(attentionPlaces.period, nExperts === 1 ? 1 : expertPlaces.period);
    const layers = nLayers % repeats === 0 ? repeats : nLayers;
    const mixers: MixerPlan =
      attentionPlaces.period === 1
        ? attention
        : layers % attentionPlaces.period === 0
          ? ratio({ attention: 1, mamba: attentionPlaces.period - 1 }, { at: attentionPlaces.offset, attention, mamba: mixer })
          : every(attentionPlaces.period, attention, { offset: attentionPlaces.offset, otherwise: mixer });
    return model({
      name: config.modelName,
      vocabSize: config.count("vocab_size"),
      dModel,
      contextLength,
      norm,
      tieEmbeddings: config.boolean("tie_word_embeddings", false),
      blocks: nLayers / layers,
      block: block({ layers, mixer: mixers, channelMixer }),
    });
  },

  // Three generations of names: as the library saves them since 4.40, before Jamba was in it (every layer's channel mixer is a
  // `moe`, dense ones with one expert), and packed by Transformers 5.
  sources: sourcesFrom({
    "embedding.weight": ["model.embed_tokens.weight"],
    "final_norm.weight": ["model.final_layernorm.weight"],
    "lm_head.weight": ["lm_head.weight"],
    "layers.{n}.mixer_norm.weight": ["model.layers.{n}.input_layernorm.weight"],
    "layers.{n}.channel_mixer_norm.weight": ["model.layers.{n}.pre_ff_layernorm.weight", "model.layers.{n}.pre_moe_layernorm.weight"],
    "layers.{n}.attention.{rest}": ["model.layers.{n}.self_attn.{rest}"],
    "layers.{n}.mamba.dt_norm.weight": ["model.layers.{n}.mamba.dt_layernorm.weight"],
    "layers.{n}.mamba.b_norm.weight": ["model.layers.{n}.mamba.b_layernorm.weight", "model.layers.{n}.mamba.B_layernorm.weight"],
    "layers.{n}.mamba.c_norm.weight": ["model.layers.{n}.mamba.c_layernorm.weight", "model.layers.{n}.mamba.C_layernorm.weight"],
    "layers.{n}.mamba.{rest}": ["model.layers.{n}.mamba.{rest}"],
    "layers.{n}.mlp.{rest}": ["model.layers.{n}.feed_forward.{rest}", "model.layers.{n}.moe.experts.0.{rest}"],
    "layers.{n}.moe.router.weight": ["model.layers.{n}.feed_forward.router.weight", "model.layers.{n}.moe.router.weight"],
    "layers.{n}.moe.experts.{e}.gate_proj.weight": [
      "model.layers.{n}.feed_forward.experts.{e}.gate_proj.weight",
      "model.layers.{n}.moe.experts.{e}.gate_proj.weight",
      { tensor: "model.layers.{n}.feed_forward.experts.gate_up_proj", part: "gate" },
    ],
    "layers.{n}.moe.experts.{e}.up_proj.weight": [
      "model.layers.{n}.feed_forward.experts.{e}.up_proj.weight",
      "model.layers.{n}.moe.experts.{e}.up_proj.weight",
      { tensor: "model.layers.{n}.feed_forward.experts.gate_up_proj", part: "up" },
    ],
    "layers.{n}.moe.experts.{e}.down_proj.weight": [
      "model.layers.{n}.feed_forward.experts.{e}.down_proj.weight",
      "model.layers.{n}.moe.experts.{e}.down_proj.weight",
      { tensor: "model.layers.{n}.feed_forward.experts.down_proj", part: "down" },
    ],
  }),
  ignoredTensors,
};

function readPlaces(config: ConfigReader, periodKey: string, offsetKey: string): Places {
  const period = config.count(periodKey);
  const offset = config.index(offsetKey);
  if (offset < period) return { period, offset };
  config.contradicts([offsetKey, periodKey], `the offset ${offset} is not below the period ${period}`, `Choose ${offsetKey} from 0 to ${period - 1}.`);
  return { period, offset: 0 };
}

/** The list of kinds that some configs carry beside the period must say the same. */
function checkBlockTypes(config: ConfigReader, nLayers: number, { period, offset }: Places): void {
  const types = config.optionalStrings("layers_block_type");
  if (types && (types.length !== nLayers || types.some((type, i) => type !== (i % period === offset ? "attention" : "mamba"))))
    config.contradicts(["layers_block_type", "attn_layer_period", "attn_layer_offset"], "they place the attention layers differently", "Leave layers_block_type out, or make it agree.");
}

function leastCommonMultiple(a: number, b: number): number {
  let [x, y] = [a, b];
  while (y !== 0) [x, y] = [y, x % y];
  return (a / x) * b;
}
