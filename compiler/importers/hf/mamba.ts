import type { MambaOptions } from "../../../dsl/mixers/mamba.js";
import { layer, model, type ModelSpec, repeat } from "../../../dsl/model.js";
import { rmsNorm } from "../../../dsl/norms.js";
import type { ConfigReader } from "../config-reader.js";
import type { Importer } from "../importer.js";
import { readActivation, readLibraryKeys, readMamba } from "./common.js";
import { ignoredTensors, type SourceTable, sourcesFrom } from "./sources.js";

/** The second spelling of the embedding is the one of the original mamba_ssm checkpoints. */
export const mambaTensors: SourceTable = {
  "embedding.weight": ["backbone.embeddings.weight", "backbone.embedding.weight"],
  "final_norm.weight": ["backbone.norm_f.weight"],
  "lm_head.weight": ["lm_head.weight"],
  "layers.{n}.mixer_norm.weight": ["backbone.layers.{n}.norm.weight"],
  "layers.{n}.mamba.{rest}": ["backbone.layers.{n}.mixer.{rest}"],
};

export const mamba: Importer = {
  modelTypes: ["mamba"],

  toModel: (config) => {
    const dModel = config.count("hidden_size");
    const expand = config.count("expand", 2);
    config.agrees("intermediate_size", expand * dModel, "expand", "hidden_size");
    return readMambaStack(config, { dModel, expand });
  },

  sources: sourcesFrom(mambaTensors),
  ignoredTensors,
};

/** What mamba and falcon_mamba share: a stack of Mamba-1 layers without channel mixers. */
export function readMambaStack(config: ConfigReader, { dModel, expand, innerNorm }: { readonly dModel: number; readonly expand: number } & Pick<MambaOptions, "innerNorm">): ModelSpec {
  readLibraryKeys(config);
  readActivation(config);
  config.ignore("initialises dt_proj before training", "time_step_scale", "time_step_min", "time_step_max", "time_step_init_scheme", "time_step_floor");
  config.ignore("chooses between implementations of one formula", "use_mambapy", "use_falcon_mambapy", "use_associative_scan", "fused_add_norm");
  config.ignore("activations are float32 here, the residual among them", "residual_in_fp32");
  config.ignore("of the original mamba_ssm config; vocab_size is already padded", "pad_vocab_size_multiple", "ssm_cfg", "rms_norm");
  config.agrees("d_model", dModel, "hidden_size");
  config.agrees("d_inner", expand * dModel, "expand", "hidden_size");
  const nLayers = config.count("num_hidden_layers");
  config.agrees("n_layer", nLayers, "num_hidden_layers");
  const mixer = readMamba(
    config,
    dModel,
    { dState: "state_size", dConv: "conv_kernel", dtRank: "time_step_rank", convBias: "use_conv_bias" },
    // Releases of Transformers differ in the default of use_bias, so that it must be there.
    { expand, projBias: config.boolean("use_bias"), ...(innerNorm === undefined ? {} : { innerNorm }) },
  );
  return model({
    name: config.modelName,
    vocabSize: config.count("vocab_size"),
    dModel,
    norm: rmsNorm({ eps: config.positive("layer_norm_epsilon", 1e-5) }),
    tieEmbeddings: config.boolean("tie_word_embeddings", true),
    layers: [repeat(nLayers, layer({ mixer }))],
  });
}
