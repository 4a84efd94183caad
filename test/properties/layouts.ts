import fc from "fast-check";
import { Diagnostics } from "../../core/diagnostics.js";
import {
  attention,
  type BlockSpec,
  block,
  type ChannelMixerPlan,
  type ChannelMixerSpec,
  every,
  type LayerSpec,
  layer,
  linearScaling,
  llama3Scaling,
  mamba,
  type MixerPlan,
  type MixerSpec,
  mlp,
  type ModelOptions,
  type ModelSpec,
  model,
  moe,
  none,
  type PatternSpec,
  pattern,
  ratio,
  repeat,
  type RmsNormSpec,
  rmsNorm,
  rope,
  softmaxThenTopK,
  topKThenSoftmax,
  yarnScaling,
} from "../../dsl/index.js";
import { resolveLayout } from "../../dsl/resolve.js";

// Every constructor is called from this file, so that a diagnostic's call site can be told from fast-check's own code.
// Every extent is drawn from a set of its own, so that two axes confused with each other do not fit by chance.
const dims = {
  dModel: fc.constantFrom(36, 40, 48),
  vocabSize: fc.constantFrom(29, 31, 37),
  dFf: fc.constantFrom(19, 23, 26),
  headDim: fc.constantFrom(2, 6, 8, 10),
  kvHeads: fc.integer({ min: 1, max: 3 }),
  headsPerKvHead: fc.integer({ min: 1, max: 3 }),
  dState: fc.constantFrom(7, 9, 11),
  dConv: fc.integer({ min: 2, max: 5 }),
  dtRank: fc.constantFrom(5, 13),
  nExperts: fc.constantFrom(2, 4, 5),
};

const given = <T>(arb: fc.Arbitrary<T>) => fc.option(arb, { nil: undefined });

const eps = fc.constantFrom(1e-6, 1e-5, 1e-3);
/** With a learned scale or without. */
const norm: fc.Arbitrary<RmsNormSpec> = fc.record({ eps, weight: fc.boolean() }, { requiredKeys: [] }).map((options) => rmsNorm(options));
/** Without an eps of its own the model's counts, which is tested too. */
const modelNorm = fc.record({ eps, weight: fc.boolean() }, { requiredKeys: [] }).map((options) => rmsNorm(options));

const factor = fc.constantFrom(1, 1.5, 2, 4);
const scaling = fc.oneof(
  factor.map((f) => linearScaling({ factor: f })),
  fc.record({ factor, originalContext: fc.constantFrom(8, 32, 256) }).map((o) => llama3Scaling({ ...o, lowFreqFactor: 1, highFreqFactor: 4 })),
  fc
    .record(
      { factor, originalContext: fc.constantFrom(8, 32, 256), betaFast: fc.constantFrom(8, 32), betaSlow: fc.constantFrom(0.5, 1), attentionFactor: fc.constantFrom(0.75, 1.25) },
      { requiredKeys: ["factor", "originalContext"] },
    )
    .map((options) => yarnScaling(options)),
);
const position = fc.oneof(
  { weight: 1, arbitrary: fc.constant(none()) },
  { weight: 3, arbitrary: fc.record({ theta: fc.constantFrom(100, 10_000, 1e6), scaling: given(scaling) }, { requiredKeys: ["scaling"] }).map((options) => rope(defined(options))) },
);

/** headDim left out only where the heads divide dModel. */
const attentions = (dModel: number): fc.Arbitrary<Extract<MixerSpec, { kind: "attention" }>> =>
  fc
    .record({
      nKvHeads: given(dims.kvHeads),
      group: dims.headsPerKvHead,
      headDim: given(dims.headDim),
      position: given(position),
      window: given(fc.integer({ min: 1, max: 6 })),
      qkvBias: given(fc.boolean()),
      outBias: given(fc.boolean()),
    })
    .map(({ nKvHeads, group, headDim, ...rest }) => {
      const nHeads = (nKvHeads ?? 1) * group;
      const derived = dModel / nHeads;
      return attention({ nHeads, ...defined({ nKvHeads, headDim: headDim ?? (derived % 2 === 0 ? undefined : 4), ...rest }) });
    });

const mambas: fc.Arbitrary<Extract<MixerSpec, { kind: "mamba" }>> = fc
  .record(
    {
      dState: dims.dState,
      dConv: dims.dConv,
      expand: fc.constantFrom(1, 1.5, 2),
      dtRank: fc.oneof(dims.dtRank, fc.constant("auto" as const)),
      innerNorm: fc.oneof(norm, fc.record({ dt: norm, b: norm, c: norm })),
      convBias: fc.boolean(),
      projBias: fc.boolean(),
    },
    { requiredKeys: [] },
  )
  .map((options) => mamba(options));

const mixers = (dModel: number): fc.Arbitrary<MixerSpec> => fc.oneof(attentions(dModel), mambas);

const mlps = fc.record({ dFf: dims.dFf, bias: fc.boolean() }, { requiredKeys: ["dFf"] }).map((options) => mlp(options));
const router = fc.oneof(fc.boolean().map((renormalise) => softmaxThenTopK({ renormalise })), fc.constant(topKThenSoftmax()));
const moes = dims.nExperts.chain((nExperts) =>
  fc.record({ nExperts: fc.constant(nExperts), topK: fc.integer({ min: 1, max: nExperts }), dFf: dims.dFf, router }, { requiredKeys: ["nExperts", "topK", "dFf"] }).map((options) => moe(options)),
);
const channelMixers: fc.Arbitrary<ChannelMixerSpec> = fc.oneof(mlps, moes);

const layers = (dModel: number): fc.Arbitrary<LayerSpec> =>
  fc
    .record({ mixer: given(mixers(dModel)), channelMixer: given(channelMixers), norm: given(norm) })
    .filter(({ mixer, channelMixer }) => mixer !== undefined || channelMixer !== undefined)
    .map((options) => layer(defined(options)));

/** A ratio and the period it needs. */
const ratios = (dModel: number): fc.Arbitrary<{ readonly plan: MixerPlan; readonly period: number }> =>
  fc
    .record({ attention: attentions(dModel), mamba: mambas, counts: fc.tuple(fc.integer({ min: 1, max: 2 }), fc.integer({ min: 1, max: 2 })), attentionFirst: fc.boolean() })
    .chain(({ attention, mamba, counts: [first, second], attentionFirst }) => {
      const period = first + second;
      const places = fc.shuffledSubarray(Array.from({ length: period }, (_, i) => i), { minLength: first, maxLength: first });
      return places.map((at) => ({
        plan: attentionFirst
          ? ratio({ attention: first, mamba: second }, { at: at.length === 1 ? at[0]! : at, attention, mamba })
          : ratio({ mamba: first, attention: second }, { at, attention, mamba }),
        period,
      }));
    });

const everyMixer = (dModel: number): fc.Arbitrary<MixerPlan> =>
  fc
    .tuple(fc.integer({ min: 1, max: 3 }), mixers(dModel), mixers(dModel))
    .chain(([period, spec, otherwise]) => fc.integer({ min: 0, max: period - 1 }).map((offset) => every(period, spec, { offset, otherwise })));

const everyChannelMixer: fc.Arbitrary<ChannelMixerPlan> = fc
  .tuple(fc.integer({ min: 1, max: 3 }), channelMixers, channelMixers)
  .chain(([period, spec, otherwise]) => fc.integer({ min: 0, max: period - 1 }).map((offset) => every(period, spec, { offset, otherwise })));

const plannedBlocks = (dModel: number): fc.Arbitrary<BlockSpec> =>
  fc
    .record({
      mixer: fc.oneof(
        fc.tuple(fc.oneof(mixers(dModel), everyMixer(dModel)), fc.integer({ min: 1, max: 3 })).map(([plan, count]) => ({ plan: plan as MixerPlan, period: count })),
        ratios(dModel),
      ),
      channelMixer: given(fc.oneof(channelMixers, everyChannelMixer)),
      norm: given(norm),
    })
    .map(({ mixer: { plan, period }, ...rest }) => block({ layers: period, mixer: plan, ...defined(rest) }));

const patterns = (dModel: number): fc.Arbitrary<PatternSpec> =>
  fc
    .record({ M: mambas, attention: attentions(dModel), mlp: mlps, E: moes, L: layers(dModel), letters: fc.array(fc.constantFrom("M", "*", "-", "E", "L"), { minLength: 1, maxLength: 4 }) })
    .map(({ letters, attention, mlp, ...legend }) => pattern(letters.join(""), { ...legend, "*": attention, "-": mlp }));

const blocks = (dModel: number): fc.Arbitrary<BlockSpec> =>
  fc.oneof({ weight: 3, arbitrary: plannedBlocks(dModel) }, { weight: 1, arbitrary: fc.oneof(fc.array(layers(dModel), { minLength: 1, maxLength: 2 }), patterns(dModel)).map((list) => block({ layers: list })) });

const stackItems = (dModel: number) =>
  fc.oneof(
    layers(dModel),
    blocks(dModel),
    blocks(dModel),
    patterns(dModel),
    fc.tuple(fc.integer({ min: 1, max: 3 }), fc.oneof(layers(dModel), blocks(dModel), patterns(dModel))).map(([times, of]) => repeat(times, of)),
  );

const stacks = (dModel: number): fc.Arbitrary<Pick<ModelOptions, "blocks" | "block"> | Pick<ModelOptions, "layers">> =>
  fc.oneof(
    fc.record({ blocks: fc.integer({ min: 1, max: 2 }), block: blocks(dModel) }),
    fc.oneof({ weight: 3, arbitrary: fc.array(stackItems(dModel), { minLength: 1, maxLength: 3 }) }, { weight: 1, arbitrary: patterns(dModel) }).map((list) => ({ layers: list })),
  );

const mostLayers = 6;

/** Valid layouts over everything the DSL can say, small enough to run. */
export const validModels: fc.Arbitrary<ModelSpec> = dims.dModel
  .chain((dModel) =>
    fc.record({
      stack: stacks(dModel),
      dModel: fc.constant(dModel),
      vocabSize: dims.vocabSize,
      norm: modelNorm,
      finalNorm: given(norm),
      tieEmbeddings: given(fc.boolean()),
      overrides: fc.oneof(fc.constant<[number, LayerSpec][]>([]), fc.array(fc.tuple(fc.nat(), layers(dModel)), { maxLength: 2 })),
    }),
  )
  .map(({ stack, overrides, ...rest }) => {
    const options = { name: "drawn", ...stack, ...defined(rest) } as ModelOptions;
    const count = resolveLayout(model(options), new Diagnostics()).layers.length;
    const entries = overrides.map(([at, { mixer, channelMixer, norm }]) => [at % count, defined({ mixer, channelMixer, norm })] as const);
    return model(entries.length === 0 ? options : { ...options, overrides: Object.fromEntries(entries) });
  })
  .filter((spec) => resolveLayout(spec, new Diagnostics()).layers.length <= mostLayers);

type Defined<T> = { [K in keyof T as undefined extends T[K] ? never : K]: T[K] } & { [K in keyof T as undefined extends T[K] ? K : never]?: Exclude<T[K], undefined> };

/** Without the fields that are undefined, which the DSL's types do not allow. */
function defined<T extends object>(options: T): Defined<T> {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as Defined<T>;
}
