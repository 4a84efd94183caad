import { mlp } from "../../../dsl/channel-mixers/mlp.js";
import { layer, model, repeat } from "../../../dsl/model.js";
import { rmsNorm } from "../../../dsl/norms.js";
import type { Importer } from "../importer.js";
import { readActivation, readAttention, readLibraryKeys, readRope } from "./common.js";
import { decoderTensors, mlpTensors } from "./llama.js";
import { ignoredTensors, sourcesFrom } from "./sources.js";

export const mistral: Importer = {
  modelTypes: ["mistral"],

  toModel: (config) => {
    readLibraryKeys(config);
    readActivation(config);
    const dModel = config.count("hidden_size");
    const contextLength = config.count("max_position_embeddings", 131_072);
    // A window of w: a token attends to itself and the w - 1 before it. Absent it is 4096; null says that there is none.
    const window = config.has("sliding_window") ? config.optionalCount("sliding_window") : 4096;
    const mixer = readAttention(config, dModel, { position: readRope(config, { theta: 10_000, contextLength }), ...(window === undefined ? {} : { window }) });
    const channelMixer = mlp({ dFf: config.count("intermediate_size") });
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
