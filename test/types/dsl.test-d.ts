import {
  attention,
  block,
  type ChannelMixerPlan,
  type ChannelMixerSpec,
  every,
  layer,
  type LayerSpec,
  linearScaling,
  llama3Scaling,
  mamba,
  type MambaSpec,
  type MixerPlan,
  type MixerSpec,
  mlp,
  model,
  type ModelOptions,
  type ModelSpec,
  moe,
  type MoeSpec,
  none,
  pattern,
  ratio,
  repeat,
  rmsNorm,
  rope,
  softmaxThenTopK,
  topKThenSoftmax,
  yarnScaling,
} from "../../dsl/index.js";

// Compiled, never run: `tsc -p tsconfig.test.json` fails when an error that is expected here does not come, or another does.

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
type Expect<T extends true> = T;

const norm = rmsNorm({ eps: 1e-6 });
const heads = attention({ nHeads: 4, nKvHeads: 2, position: none() });
const common = { name: "m", vocabSize: 64, dModel: 32, norm };
const dense = block({ layers: 2, mixer: mamba(), channelMixer: mlp({ dFf: 64 }) });

// What is inferred.
const interleaved = every(2, moe({ nExperts: 4, topK: 2, dFf: 64 }), { offset: 1, otherwise: mlp({ dFf: 64 }) });
const alternating = every(2, heads, { otherwise: mamba() });
const built = model({ ...common, blocks: 1, block: dense });
export type Inferred = [
  Expect<Equal<typeof interleaved extends ChannelMixerPlan ? true : false, true>>,
  Expect<Equal<typeof interleaved extends MixerPlan ? true : false, false>>,
  Expect<Equal<typeof alternating extends MixerPlan ? true : false, true>>,
  Expect<Equal<typeof alternating extends ChannelMixerPlan ? true : false, false>>,
  Expect<Equal<typeof built, ModelSpec>>,
  Expect<Equal<MixerSpec["kind"], "attention" | "mamba">>,
  Expect<Equal<ChannelMixerSpec["kind"], "mlp" | "moe">>,
  Expect<Equal<MambaSpec["dtRank"], number | "auto">>,
  Expect<Equal<MoeSpec["nSharedExperts"], 0>>,
  Expect<Equal<LayerSpec["mixer"], MixerSpec | undefined>>,
  Expect<Equal<Parameters<typeof model>, [options: ModelOptions]>>,
];

// What is accepted.
export const accepted = [
  ratio({ attention: 1, mamba: 7 }, { at: 4, attention: heads, mamba: mamba() }),
  ratio({ mamba: 3, attention: 2 }, { at: [0, 2, 4], attention: heads, mamba: mamba() }),
  ratio({ mamba: 2 }, { at: [0, 1], mamba: mamba() }),
  every(4, moe({ nExperts: 4, topK: 2, dFf: 64 }), { otherwise: interleaved }),
  pattern("M*-E", { M: mamba(), "*": heads, "-": mlp({ dFf: 64 }), E: moe({ nExperts: 4, topK: 2, dFf: 64 }) }),
  pattern("MM", { M: layer({ mixer: mamba(), channelMixer: mlp({ dFf: 64 }) }) }),
  pattern("M*".repeat(3), { M: mamba(), "*": heads }),
  model({ ...common, layers: [layer({ mixer: heads }), repeat(3, dense), pattern("M", { M: mamba() })] }),
  model({ ...common, layers: pattern("M", { M: mamba() }), overrides: { 0: { norm: rmsNorm({ weight: false }) } } }),
  mamba({ innerNorm: { dt: norm, b: norm, c: norm } }),
  attention({ nHeads: 4, position: rope({ theta: 500_000, scaling: llama3Scaling({ factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalContext: 8192 }) }) }),
  attention({ nHeads: 4, position: rope({ scaling: yarnScaling({ factor: 4, originalContext: 4096 }) }) }),
];

// A ratio names a mixer for each of its kinds, and for no other.
// @ts-expect-error: no mamba mixer
ratio({ attention: 1, mamba: 7 }, { at: 4, attention: heads });
// @ts-expect-error: no place for the attention
ratio({ attention: 1, mamba: 7 }, { attention: heads, mamba: mamba() });
// @ts-expect-error: an attention that the ratio does not count
ratio({ mamba: 2 }, { at: [0, 1], mamba: mamba(), attention: heads });
// @ts-expect-error: an unknown mixer
ratio({ attention: 1, rwkv: 7 }, { at: 0, attention: heads, rwkv: mamba() });
// @ts-expect-error: a mamba where the attention belongs
ratio({ attention: 1, mamba: 7 }, { at: 4, attention: mamba(), mamba: mamba() });
// @ts-expect-error: an MLP is no mixer
ratio({ attention: 1, mamba: 7 }, { at: 4, attention: heads, mamba: mlp({ dFf: 64 }) });
// @ts-expect-error: counts are numbers
ratio({ attention: "1", mamba: 7 }, { at: 4, attention: heads, mamba: mamba() });

// Mixers and channel mixers are not exchanged.
// @ts-expect-error: an MLP is no mixer
layer({ mixer: mlp({ dFf: 64 }) });
// @ts-expect-error: a mamba is no channel mixer
layer({ channelMixer: mamba() });
// @ts-expect-error: an MLP is no mixer
block({ layers: 2, mixer: mlp({ dFf: 64 }) });
// @ts-expect-error: experts are no mixer
block({ layers: 2, mixer: interleaved });
// @ts-expect-error: an alternation of mixers is no channel mixer
block({ layers: 2, mixer: mamba(), channelMixer: alternating });
// @ts-expect-error: a ratio is one of mixers
block({ layers: 2, mixer: mamba(), channelMixer: ratio({ mamba: 2 }, { at: [0, 1], mamba: mamba() }) });
// @ts-expect-error: a mixer and a channel mixer
every(2, moe({ nExperts: 4, topK: 2, dFf: 64 }), { otherwise: mamba() });
// @ts-expect-error: a channel mixer and a mixer
every(2, mamba(), { otherwise: mlp({ dFf: 64 }) });
// @ts-expect-error: nothing stands in the other layers
every(2, mamba(), { offset: 1 });

// A model has blocks or layers.
// @ts-expect-error: both
model({ ...common, blocks: 1, block: dense, layers: [dense] });
// @ts-expect-error: neither
model(common);
// @ts-expect-error: blocks of what
model({ ...common, blocks: 4 });
// @ts-expect-error: how many
model({ ...common, block: dense });
// @ts-expect-error: a mixer is no layer
model({ ...common, layers: [mamba()] });
// @ts-expect-error: a norm is needed
model({ name: "m", vocabSize: 64, dModel: 32, blocks: 1, block: dense });
// @ts-expect-error: a number is no norm
model({ ...common, norm: 1e-6, blocks: 1, block: dense });
// @ts-expect-error: vocab_size is spelled vocabSize
model({ ...common, vocab_size: 64, blocks: 1, block: dense });
// @ts-expect-error: overrides are keyed by the layer's index
model({ ...common, blocks: 1, block: dense, overrides: { last: { mixer: mamba() } } });
// @ts-expect-error: a model is no part of a model
model({ ...common, layers: [built] });
// @ts-expect-error: repeats do not nest
repeat(2, repeat(2, dense));

// A block has plans or layers.
// @ts-expect-error: both
block({ layers: [layer({ mixer: mamba() })], mixer: mamba() });
// @ts-expect-error: no mixer for its two layers
block({ layers: 2 });

// Letters of a literal pattern are explained.
// @ts-expect-error: what E is
pattern("M*-E", { M: mamba(), "*": heads, "-": mlp({ dFf: 64 }) });
// @ts-expect-error: a letter that does not occur
pattern("MM", { M: mamba(), E: moe({ nExperts: 4, topK: 2, dFf: 64 }) });
// @ts-expect-error: a letter stands for a mixer, a channel mixer or a layer
pattern("M", { M: dense });

// Mixers.
// @ts-expect-error: how many heads
attention({ nKvHeads: 2 });
// @ts-expect-error: num_heads is spelled nHeads
attention({ num_heads: 4 });
// @ts-expect-error: a position is none() or rope(…)
attention({ nHeads: 4, position: "rope" });
// @ts-expect-error: a scaling is no position
attention({ nHeads: 4, position: linearScaling({ factor: 2 }) });
// @ts-expect-error: theta is a number
rope({ theta: "10000" });
// @ts-expect-error: what the model was trained for
yarnScaling({ factor: 4 });
// @ts-expect-error: where the ramp lies
llama3Scaling({ factor: 8, originalContext: 8192 });
// @ts-expect-error: by how much
linearScaling({});
// @ts-expect-error: a rank is a number or "auto"
mamba({ dtRank: "full" });
// @ts-expect-error: d_state is spelled dState
mamba({ d_state: 16 });
// @ts-expect-error: all three inner norms, or one for all
mamba({ innerNorm: { dt: norm, b: norm } });

// Channel mixers.
// @ts-expect-error: how wide
mlp({});
// @ts-expect-error: how many are chosen
moe({ nExperts: 4, dFf: 64 });
// @ts-expect-error: shared experts are reserved
moe({ nExperts: 4, topK: 2, dFf: 64, nSharedExperts: 1 });
// @ts-expect-error: renormalised or not
softmaxThenTopK({});
// @ts-expect-error: a softmax over the chosen is normalised already
topKThenSoftmax({ renormalise: true });
// @ts-expect-error: a router is made by its constructor
moe({ nExperts: 4, topK: 2, dFf: 64, router: "softmax" });

// Layouts are not changed.
// @ts-expect-error: read-only
built.vocabSize = 128;
// @ts-expect-error: read-only
heads.nHeads = 8;
