import type { ChannelMixerSpec } from "./channel-mixers/index.js";
import type { MixerKind, MixerSpec } from "./mixers/index.js";
import type { RmsNormSpec } from "./norms.js";
import { given, made } from "./spec.js";

/** `spec` in every layer i of its block with i mod period = offset, `otherwise` in the rest. */
export interface Every<S> {
  readonly kind: "every";
  readonly period: number;
  readonly offset: number;
  readonly spec: S;
  readonly otherwise: Plan<S>;
}

/** Mixers in a fixed proportion: the first-named stands at `at` in each period, the others fill the rest in their order. */
export interface Ratio {
  readonly kind: "ratio";
  readonly counts: Readonly<Partial<Record<MixerKind, number>>>;
  readonly at: readonly number[];
  readonly mixers: Readonly<Partial<Record<MixerKind, MixerSpec>>>;
}

/** Which spec stands in which layer of a block. */
export type Plan<S> = S | Every<S> | (MixerSpec extends S ? Ratio : never);
export type MixerPlan = Plan<MixerSpec>;
export type ChannelMixerPlan = Plan<ChannelMixerSpec>;

/** One layer: x + mixer(norm(x)), then x + channelMixer(norm(x)); either half may be absent. */
export interface LayerSpec {
  readonly kind: "layer";
  readonly mixer?: MixerSpec;
  readonly channelMixer?: ChannelMixerSpec;
  /** Pre-norm of both halves; absent: the model's norm. */
  readonly norm?: RmsNormSpec;
}

/** One layer per letter; see `pattern`. */
export interface PatternSpec {
  readonly kind: "pattern";
  readonly letters: string;
  readonly legend: Readonly<Record<string, MixerSpec | ChannelMixerSpec | LayerSpec>>;
}

export type BlockSpec =
  | { readonly kind: "block"; readonly layers: number; readonly mixer: MixerPlan; readonly channelMixer?: ChannelMixerPlan; readonly norm?: RmsNormSpec }
  | { readonly kind: "block"; readonly layers: Layers };

export interface RepeatSpec {
  readonly kind: "repeat";
  readonly times: number;
  readonly of: LayerSpec | BlockSpec | PatternSpec;
}

export type StackItem = LayerSpec | BlockSpec | PatternSpec | RepeatSpec;
export type Layers = readonly StackItem[] | PatternSpec;

/** What one layer has instead of what its block says. */
export type LayerOverride = Readonly<Pick<LayerSpec, "mixer" | "channelMixer" | "norm">>;

interface ModelCommon {
  readonly name: string;
  readonly vocabSize: number;
  readonly dModel: number;
  /** Pre-norm of every layer and the final norm; its eps is the default of every norm in the layout. */
  readonly norm: RmsNormSpec & { readonly eps?: number };
  /** Absent: `norm`. */
  readonly finalNorm?: RmsNormSpec;
  /** The output projection is the embedding. */
  readonly tieEmbeddings: boolean;
  /** Longest context the model is made for, in tokens. */
  readonly contextLength?: number;
  /** Layer index in the whole model → what is different there. */
  readonly overrides?: Readonly<Record<number, LayerOverride>>;
}

interface BlockStack {
  readonly blocks: number;
  readonly block: BlockSpec;
}
interface LayerStack {
  readonly layers: Layers;
}

export type ModelSpec = { readonly kind: "model" } & ModelCommon & (BlockStack | LayerStack);

type OptionalTie = Omit<ModelCommon, "tieEmbeddings"> & Partial<Pick<ModelCommon, "tieEmbeddings">>;
/** Either `blocks` and `block`, or `layers`. */
export type ModelOptions = OptionalTie & ((BlockStack & { readonly layers?: never }) | (LayerStack & { readonly blocks?: never; readonly block?: never }));

/** A whole model: embedding, a stack of layers, a final norm, an output projection. */
export function model(options: ModelOptions): ModelSpec {
  return made({ kind: "model", tieEmbeddings: false, ...given(options) } as ModelSpec, model);
}

type BlockOptions =
  | { readonly layers: number; readonly mixer: MixerPlan; readonly channelMixer?: ChannelMixerPlan; readonly norm?: RmsNormSpec }
  | { readonly layers: Layers; readonly mixer?: never; readonly channelMixer?: never; readonly norm?: never };

/** Layers that are repeated together: a number of them with plans, or a list. */
export function block(options: BlockOptions): BlockSpec {
  return made({ kind: "block", ...given(options) } as BlockSpec, block);
}

export function layer(options: LayerOverride): LayerSpec {
  return made({ kind: "layer", ...given(options) }, layer);
}

export function repeat(times: number, of: RepeatSpec["of"]): RepeatSpec {
  return made({ kind: "repeat", times, of }, repeat);
}

/** `spec` every `period` layers, first at `offset` (default 0). Indices count from the start of the block. */
export function every<S extends MixerSpec | ChannelMixerSpec>(
  period: number,
  spec: S,
  options: { readonly offset?: number; readonly otherwise: Plan<S extends MixerSpec ? MixerSpec : ChannelMixerSpec> },
): Every<S extends MixerSpec ? MixerSpec : ChannelMixerSpec> {
  return made({ kind: "every", period, spec, offset: options.offset ?? 0, otherwise: options.otherwise }, every) as unknown as Every<
    S extends MixerSpec ? MixerSpec : ChannelMixerSpec
  >;
}

type Counts = Readonly<Partial<Record<MixerKind, number>>>;

/** Mixers in a proportion, e.g. one attention to seven Mamba layers with the attention at place 4 of each eight. */
export function ratio<const C extends Counts>(
  counts: C & { readonly [K in Exclude<keyof C, MixerKind>]: never },
  options: { readonly at: number | readonly number[] } & { readonly [K in keyof C & MixerKind]: Extract<MixerSpec, { kind: K }> },
): Ratio {
  const { at, ...mixers } = options;
  return made({ kind: "ratio", counts, at: typeof at === "number" ? [at] : at, mixers: mixers as Ratio["mixers"] }, ratio);
}

/** The letters of a literal string, as a union. */
type LettersOf<P extends string> = P extends `${infer First}${infer Rest}` ? First | LettersOf<Rest> : never;

/**
 * One layer per letter, as Nemotron-H writes its stacks (`"M*-E"`): the legend says what each letter stands for.
 * Letters of a literal pattern that the legend lacks are type errors; `check` finds them in computed ones.
 */
export function pattern<const P extends string>(
  letters: P,
  legend: Readonly<Record<string extends P ? string : LettersOf<P>, MixerSpec | ChannelMixerSpec | LayerSpec>>,
): PatternSpec {
  return made({ kind: "pattern", letters, legend }, pattern);
}
