import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { attention, block, every, layer, mamba, mlp, type ModelSpec, model, moe, none, ratio, repeat, rmsNorm, rope, softmaxThenTopK } from "../../dsl/index.js";
import type { Weights } from "./evaluate.js";
import { readTensors, type Tensor } from "./safetensors.js";

// The committed Hugging Face checkpoints, described by hand from their config.json and from transformers' modelling code.
// The importers are tested elsewhere; here they would hide their own mistakes.

export interface HandWrittenCheckpoint {
  readonly layout: ModelSpec;
  /** Our name of a tensor, from transformers'. */
  readonly rename: (tensor: string) => string;
}

const common = { vocabSize: 320, dModel: 64 };
const jambaMamba = mamba({ dState: 16, dConv: 4, expand: 2, dtRank: 8, innerNorm: rmsNorm() });
const jambaAttention = attention({ nHeads: 4, nKvHeads: 2, position: none() });
const jambaExperts = (nExperts: number) =>
  every(2, moe({ nExperts, topK: 2, dFf: 112, router: softmaxThenTopK({ renormalise: false }) }), { offset: 1, otherwise: mlp({ dFf: 112 }) });
const jambaNorm = rmsNorm({ eps: 1e-6 });

const transformerLayers = (window?: number) =>
  repeat(3, layer({ mixer: attention({ nHeads: 4, nKvHeads: 2, position: rope({ theta: 10_000 }), ...(window ? { window } : {}) }), channelMixer: mlp({ dFf: 112 }) }));

function renamer(rules: readonly (readonly [string | RegExp, string])[]): (tensor: string) => string {
  return (tensor) => rules.reduce((name, [from, to]) => name.replace(from, to), tensor);
}

const jamba = renamer([
  [/^model\./, ""],
  ["embed_tokens", "embedding"],
  ["final_layernorm", "final_norm"],
  ["input_layernorm", "mixer_norm"],
  ["pre_ff_layernorm", "channel_mixer_norm"],
  ["self_attn", "attention"],
  [/(dt|b|c)_layernorm/, "$1_norm"],
  [/feed_forward\.(router|experts)/, "moe.$1"],
  ["feed_forward", "mlp"],
]);
const llama = renamer([
  [/^model\./, ""],
  ["embed_tokens", "embedding"],
  [/^norm\./, "final_norm."],
  ["input_layernorm", "mixer_norm"],
  ["post_attention_layernorm", "channel_mixer_norm"],
  ["self_attn", "attention"],
  ["block_sparse_moe.gate.", "moe.router."],
  ["block_sparse_moe.", "moe."],
  [".w1.", ".gate_proj."],
  [".w2.", ".down_proj."],
  [".w3.", ".up_proj."],
]);
const ssm = renamer([
  [/^backbone\./, ""],
  ["embeddings", "embedding"],
  ["norm_f", "final_norm"],
  [/(layers\.\d+)\.norm/, "$1.mixer_norm"],
  ["mixer.", "mamba."],
]);

export const checkpoints: Readonly<Record<string, HandWrittenCheckpoint>> = {
  "jamba-block": {
    layout: model({
      ...common,
      name: "jamba-block",
      norm: jambaNorm,
      blocks: 1,
      block: block({ layers: 8, mixer: ratio({ attention: 1, mamba: 7 }, { at: 4, attention: jambaAttention, mamba: jambaMamba }), channelMixer: jambaExperts(4) }),
    }),
    rename: jamba,
  },
  "jamba-two-blocks": {
    layout: model({
      ...common,
      name: "jamba-two-blocks",
      norm: jambaNorm,
      blocks: 2,
      block: block({ layers: 4, mixer: ratio({ attention: 1, mamba: 3 }, { at: 2, attention: jambaAttention, mamba: jambaMamba }), channelMixer: jambaExperts(8) }),
    }),
    rename: jamba,
  },
  "jamba-dense": {
    layout: model({
      ...common,
      name: "jamba-dense",
      norm: jambaNorm,
      tieEmbeddings: true,
      blocks: 1,
      block: block({ layers: 4, mixer: ratio({ attention: 1, mamba: 3 }, { at: 1, attention: jambaAttention, mamba: jambaMamba }), channelMixer: mlp({ dFf: 112 }) }),
    }),
    rename: jamba,
  },
  mixtral: {
    layout: model({
      ...common,
      name: "mixtral",
      norm: rmsNorm({ eps: 1e-5 }),
      layers: [
        repeat(
          3,
          layer({
            mixer: attention({ nHeads: 4, nKvHeads: 2, position: rope({ theta: 1e6 }) }),
            channelMixer: moe({ nExperts: 4, topK: 2, dFf: 112, router: softmaxThenTopK({ renormalise: true }) }),
          }),
        ),
      ],
    }),
    rename: llama,
  },
  "mistral-swa": { layout: model({ ...common, name: "mistral-swa", norm: rmsNorm({ eps: 1e-6 }), layers: [transformerLayers(16)] }), rename: llama },
  llama: { layout: model({ ...common, name: "llama", norm: rmsNorm({ eps: 1e-6 }), layers: [transformerLayers()] }), rename: llama },
  mamba: {
    layout: model({ ...common, name: "mamba", norm: rmsNorm({ eps: 1e-5 }), tieEmbeddings: true, layers: [repeat(3, layer({ mixer: mamba({ dtRank: 8 }) }))] }),
    rename: ssm,
  },
  "falcon-mamba": {
    layout: model({
      ...common,
      name: "falcon-mamba",
      norm: rmsNorm({ eps: 1e-5 }),
      tieEmbeddings: true,
      layers: [repeat(3, layer({ mixer: mamba({ dtRank: 8, innerNorm: rmsNorm({ eps: 1e-6, weight: false }) }) }))],
    }),
    rename: ssm,
  },
};

export const fixtureFolder = (name: string): string => fileURLToPath(new URL(`../fixtures/hf/${name}`, import.meta.url));

export function checkpointWeights(name: string, { rename }: HandWrittenCheckpoint): Weights {
  return new Map([...readTensors(join(fixtureFolder(name), "model.safetensors"))].map(([tensor, { values }]) => [rename(tensor), values]));
}

/** Logits and greedy continuation that transformers computed in float32, without a cache. */
export function checkpointReference(name: string): Readonly<Record<"input_ids" | "logits" | "generated_ids" | "step_logits", Tensor>> {
  const tensors = readTensors(join(fixtureFolder(name), "reference.safetensors"));
  const get = (key: string): Tensor => {
    const tensor = tensors.get(key);
    if (!tensor) throw new Error(`the reference of ${name} lacks ${key}`);
    return tensor;
  };
  return { input_ids: get("input_ids"), logits: get("logits"), generated_ids: get("generated_ids"), step_logits: get("step_logits") };
}
