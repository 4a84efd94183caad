import { moe, softmaxThenTopK } from "../../../dsl/channel-mixers/moe.js";
import { layer, model, repeat } from "../../../dsl/model.js";
import { rmsNorm } from "../../../dsl/norms.js";
import type { Importer } from "../importer.js";
import { readActivation, readAttention, readLibraryKeys, readRope, readTopK } from "./common.js";
import { decoderTensors } from "./llama.js";
import { ignoredTensors, sourcesFrom } from "./sources.js";

export const mixtral: Importer = {
  modelTypes: ["mixtral"],

  toModel: (config) => {
    readLibraryKeys(config);
    readActivation(config);
    config.ignore("only training uses it", "router_jitter_noise");
    const dModel = config.count("hidden_size");
    const contextLength = config.count("max_position_embeddings", 131_072);
    const window = config.optionalCount("sliding_window");
    const mixer = readAttention(config, dModel, { position: readRope(config, { theta: 1_000_000, contextLength }), ...(window === undefined ? {} : { window }) });
    const nExperts = config.count("num_local_experts");
    const channelMixer = moe({
      nExperts,
      topK: readTopK(config, "num_local_experts", nExperts),
      dFf: config.count("intermediate_size"),
      router: softmaxThenTopK({ renormalise: true }),
    });
    return model({
      name: config.modelName,
      vocabSize: config.count("vocab_size"),
      dModel,
      contextLength,
      norm: rmsNorm({ eps: config.positive("rms_norm_eps", 1e-5) }),
      tieEmbeddings: config.boolean("tie_word_embeddings", false),
      layers: [repeat(config.count("num_hidden_layers"), layer({ mixer, channelMixer }))],
    });
  },

  // The first spelling is the published one; Transformers 5 renames the block and packs the experts when it saves.
  sources: sourcesFrom({
    ...decoderTensors,
    "layers.{n}.moe.router.weight": ["model.layers.{n}.block_sparse_moe.gate.weight", "model.layers.{n}.mlp.gate.weight"],
    "layers.{n}.moe.experts.{e}.gate_proj.weight": [
      "model.layers.{n}.block_sparse_moe.experts.{e}.w1.weight",
      { tensor: "model.layers.{n}.mlp.experts.gate_up_proj", part: "gate" },
    ],
    "layers.{n}.moe.experts.{e}.up_proj.weight": [
      "model.layers.{n}.block_sparse_moe.experts.{e}.w3.weight",
      { tensor: "model.layers.{n}.mlp.experts.gate_up_proj", part: "up" },
    ],
    "layers.{n}.moe.experts.{e}.down_proj.weight": [
      "model.layers.{n}.block_sparse_moe.experts.{e}.w2.weight",
      { tensor: "model.layers.{n}.mlp.experts.down_proj", part: "down" },
    ],
  }),
  ignoredTensors,
};
