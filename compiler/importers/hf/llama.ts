import { mlp } from "../../../dsl/channel-mixers/mlp.js";
import { layer, model, repeat } from "../../../dsl/model.js";
import { rmsNorm } from "../../../dsl/norms.js";
import type { Importer } from "../importer.js";
import { readActivation, readAttention, readLibraryKeys, readRope } from "./common.js";
import { ignoredTensors, type SourceTable, sourcesFrom } from "./sources.js";

/** What Llama, Mistral and Mixtral call everything but their channel mixer. */
export const decoderTensors: SourceTable = {
  "embedding.weight": ["model.embed_tokens.weight"],
  "final_norm.weight": ["model.norm.weight"],
  "lm_head.weight": ["lm_head.weight"],
  "layers.{n}.mixer_norm.weight": ["model.layers.{n}.input_layernorm.weight"],
  "layers.{n}.channel_mixer_norm.weight": ["model.layers.{n}.post_attention_layernorm.weight"],
  "layers.{n}.attention.{rest}": ["model.layers.{n}.self_attn.{rest}"],
};

export const mlpTensors: SourceTable = { "layers.{n}.mlp.{rest}": ["model.layers.{n}.mlp.{rest}"] };

export const llama: Importer = {
  modelTypes: ["llama"],

  toModel: (config) => {
    readLibraryKeys(config);
    readActivation(config);
    config.ignore("an old name of a limit that nothing enforces", "max_sequence_length");
    const dModel = config.count("hidden_size");
    const contextLength = config.count("max_position_embeddings", 2048);
    const mixer = readAttention(config, dModel, {
      nKvHeads: (nHeads) => nHeads,
      position: readRope(config, { theta: 10_000, contextLength }),
      bias: config.boolean("attention_bias", false),
    });
    const channelMixer = mlp({ dFf: config.count("intermediate_size"), bias: config.boolean("mlp_bias", false) });
    return model({
      name: config.modelName,
      vocabSize: config.count("vocab_size"),
      dModel,
      contextLength,
      norm: rmsNorm({ eps: config.positive("rms_norm_eps", 1e-6) }),
      tieEmbeddings: config.boolean("tie_word_embeddings", false),
      layers: [repeat(config.count("num_hidden_layers"), layer({ mixer, channelMixer }))],
    });
  },

  sources: sourcesFrom({ ...decoderTensors, ...mlpTensors }),
  ignoredTensors,
};
