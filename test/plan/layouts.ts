import { pathToFileURL } from "node:url";
import { planModel } from "../../compiler/passes/profile-model.js";
import { checkedLayout } from "../../compiler/lower.js";
import { portable } from "../../compiler/targets/portable.js";
import type { Target } from "../../compiler/targets/target.js";
import type { StorageDtype } from "../../core/dtype.js";
import { deviceNamed } from "../../core/plan/devices.js";
import type { PlanModel } from "../../core/plan/model.js";
import { plan, type Plan, type PlanOptions } from "../../core/plan/plan.js";
import type { ModelSpec } from "../../dsl/model.js";
import { attention, block, every, mamba, mlp, model, moe, none, ratio, rmsNorm, rope, softmaxThenTopK } from "../../dsl/index.js";
import type { Layout } from "../../dsl/resolve.js";

export const examples = ["jamba-v0.1", "jamba-1.5-large", "mixtral-8x7b", "mistral-7b", "llama-2-7b", "llama-2-70b", "mamba-2.8b", "lookout-1b"] as const;
export type Example = (typeof examples)[number];

export async function exampleLayout(name: Example): Promise<Layout> {
  const file = new URL(`../../examples/${name}.ts`, import.meta.url);
  const { default: spec } = (await import(pathToFileURL(file.pathname).href)) as { default: ModelSpec };
  return checkedLayout(spec);
}

const models = new Map<string, Promise<PlanModel>>();

export function exampleModel(name: Example, dtype: StorageDtype = "bfloat16", target: Target = portable): Promise<PlanModel> {
  const key = `${name} ${dtype} ${target.name}`;
  const known = models.get(key) ?? exampleLayout(name).then((layout) => planModel(layout, target, dtype));
  models.set(key, known);
  return known;
}

/** A plan for one 80 GB card, a batch of one, a context of 256K in chunks of 8K, unless said otherwise. */
export function planned(of: PlanModel, options: Partial<PlanOptions> = {}): Plan {
  return plan(of, { device: deviceNamed("h100-80gb"), context: 262_144, batch: 1, chunk: 8192, quantize: "none", ...options });
}

const heads = { nHeads: 4, nKvHeads: 2 };
const common = { vocabSize: 500, dModel: 64, norm: rmsNorm({ eps: 1e-6 }), contextLength: 4096 };

/** Small layouts, one for each thing that shapes memory. */
export const small: Readonly<Record<string, ModelSpec>> = {
  dense: model({ ...common, name: "dense", blocks: 4, block: block({ layers: 1, mixer: attention({ ...heads, position: rope() }), channelMixer: mlp({ dFf: 180 }) }) }),
  window: model({ ...common, name: "window", tieEmbeddings: true, blocks: 3, block: block({ layers: 1, mixer: attention({ ...heads, position: rope(), window: 16 }), channelMixer: mlp({ dFf: 180, bias: true }) }) }),
  mamba: model({ ...common, name: "mamba", tieEmbeddings: true, blocks: 5, block: block({ layers: 1, mixer: mamba() }) }),
  "mamba-wide": model({ ...common, name: "mamba-wide", blocks: 2, block: block({ layers: 1, mixer: mamba({ dState: 8, dConv: 3, expand: 3, projBias: true }) }) }),
  // Every expert sees every token, so that what routing decides is known.
  "all-experts": model({
    ...common,
    name: "all-experts",
    blocks: 4,
    block: block({ layers: 1, mixer: attention({ ...heads, position: none() }), channelMixer: moe({ nExperts: 3, topK: 3, dFf: 100, router: softmaxThenTopK({ renormalise: true }) }) }),
  }),
  mixture: model({ ...common, name: "mixture", blocks: 2, block: block({ layers: 1, mixer: attention({ ...heads, position: none() }), channelMixer: moe({ nExperts: 4, topK: 2, dFf: 200 }) }) }),
  hybrid: model({
    ...common,
    name: "hybrid",
    blocks: 2,
    block: block({
      layers: 8,
      mixer: ratio({ attention: 1, mamba: 7 }, { at: 4, attention: attention({ ...heads, position: none() }), mamba: mamba({ innerNorm: rmsNorm() }) }),
      channelMixer: every(2, moe({ nExperts: 4, topK: 2, dFf: 100 }), { offset: 1, otherwise: mlp({ dFf: 100 }) }),
    }),
  }),
  "hybrid-late": model({
    ...common,
    name: "hybrid-late",
    blocks: 3,
    block: block({ layers: 4, mixer: every(4, attention({ ...heads, position: rope() }), { offset: 3, otherwise: mamba() }), channelMixer: mlp({ dFf: 150 }) }),
  }),
};
