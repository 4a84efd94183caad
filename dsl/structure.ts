import type { Coded, Diagnostics, Values } from "../core/diagnostics.js";
import { callSiteOf, originOf } from "../core/origin.js";
import type { ChannelMixerKind } from "./channel-mixers/index.js";
import type { MlpSpec } from "./channel-mixers/mlp.js";
import type { MoeSpec, SoftmaxThenTopK, TopKThenSoftmax } from "./channel-mixers/moe.js";
import { dslDiagnostics } from "./diagnostics.js";
import type { AttentionSpec } from "./mixers/attention.js";
import type { MixerKind } from "./mixers/index.js";
import type { InnerNorms, MambaSpec } from "./mixers/mamba.js";
import type { BlockSpec, Every, LayerOverride, LayerSpec, ModelSpec, PatternSpec, Ratio, RepeatSpec } from "./model.js";
import type { RmsNormSpec } from "./norms.js";
import type { Llama3Scaling, LinearScaling, NoPosition, Rope, YarnScaling } from "./positions.js";
import { describeValue } from "./spec.js";

// What the DSL's types say, said once more for layouts that no type-checker saw: built from data, or from JavaScript.
// The bounds of numbers are left to the checks that know them.

/** A value's place: its path, and the nearest object whose call site is known. */
class Place {
  constructor(
    readonly path: string,
    readonly near: object,
    private readonly found: Diagnostics,
  ) {}

  field(name: string, of: object): Place {
    return new Place(this.path ? `${this.path}${name.startsWith("[") ? "" : "."}${name}` : name, callSiteOf(of) ? of : this.near, this.found);
  }

  report<P extends Values>(definition: Coded<P>, values: P): void {
    this.found.report(definition, values, originOf(this.near, this.path || "model"));
  }

  reportType(expected: string, value: unknown): void {
    this.report(dslDiagnostics["wrong-type"], { field: this.path || "the model", expected, found: describeValue(value) });
  }
}

type Check = (value: unknown, place: Place) => void;
/** A check for every field of `S`, whichever member of the union has it. */
type Fields<S> = { readonly [K in S extends unknown ? Exclude<keyof S, "kind"> : never]-?: Check };

const isObject = (value: unknown): value is Readonly<Record<string, unknown>> => typeof value === "object" && value !== null && !Array.isArray(value);

const of =
  (type: "number" | "boolean" | "string", expected: string): Check =>
  (value, place) => {
    if (typeof value !== type) place.reportType(expected, value);
  };
const number = of("number", "a number");
const flag = of("boolean", "true or false");
const text = of("string", "text");
const positive: Check = (value, place) => {
  if (typeof value !== "number") number(value, place);
  else if (!Number.isFinite(value) || value <= 0) place.report(dslDiagnostics["not-a-positive-number"], { field: place.path.split(".").at(-1) ?? place.path, found: value });
};
const rank: Check = (value, place) => {
  if (value !== "auto") number(value, place);
};
const noSharedExperts: Check = (value, place) => {
  if (value !== 0) place.report(dslDiagnostics["shared-experts"], { nSharedExperts: describeValue(value) });
};
const optional =
  (check: Check): Check =>
  (value, place) => {
    if (value !== undefined) check(value, place);
  };
const listOf =
  (check: Check): Check =>
  (value, place) => {
    if (!Array.isArray(value)) return place.reportType("a list", value);
    value.forEach((entry, i) => check(entry, place.field(`[${i}]`, place.near)));
  };
const entriesOf =
  (check: Check): Check =>
  (value, place) => {
    if (!isObject(value)) return place.reportType("an object", value);
    for (const [key, entry] of Object.entries(value)) check(entry, place.field(key, place.near));
  };
const fieldsOf =
  (fields: Readonly<Record<string, Check>>): Check =>
  (value, place) => {
    if (!isObject(value)) return place.reportType("an object", value);
    for (const [name, check] of Object.entries(fields)) check(value[name], place.field(name, value));
    for (const name of Object.keys(value))
      if (name !== "kind" && !Object.hasOwn(fields, name)) place.field(name, value).report(dslDiagnostics["unknown-field"], { field: name, known: Object.keys(fields) });
  };

/** The constructor of each kind, and what its value holds. */
interface Kind {
  readonly constructor: string;
  readonly check: Check;
}
type Kinds = Readonly<Record<string, Kind>>;

const kind = <S>(constructor: string, fields: Fields<S>): Kind => ({ constructor, check: fieldsOf(fields) });

const oneOf =
  (kinds: Kinds): Check =>
  (value, place) => {
    const known = isObject(value) && typeof value.kind === "string" && Object.hasOwn(kinds, value.kind) ? kinds[value.kind] : undefined;
    if (known) return known.check(value, place);
    const expected = Object.values(kinds).map(({ constructor }) => `${constructor}(…)`);
    place.report(dslDiagnostics["not-a-spec"], { expected: expected.join(" or "), found: describeValue(value) });
  };

const norm = oneOf({ "rms-norm": kind<RmsNormSpec>("rmsNorm", { eps: optional(number), weight: flag }) });

const scaling = oneOf({
  linear: kind<LinearScaling>("linearScaling", { factor: number }),
  llama3: kind<Llama3Scaling>("llama3Scaling", { factor: number, lowFreqFactor: number, highFreqFactor: number, originalContext: number }),
  yarn: kind<YarnScaling>("yarnScaling", { factor: number, originalContext: number, betaFast: number, betaSlow: number, attentionFactor: optional(number) }),
});

const position = oneOf({
  none: kind<NoPosition>("none", {}),
  rope: kind<Rope>("rope", { theta: number, scaling: optional(scaling) }),
});

const innerNorms: Check = fieldsOf({ dt: norm, b: norm, c: norm } satisfies Fields<InnerNorms<RmsNormSpec>>);

const mixers: Readonly<Record<MixerKind, Kind>> = {
  attention: kind<AttentionSpec>("attention", { nHeads: number, nKvHeads: optional(number), headDim: optional(number), position, window: optional(number), qkvBias: flag, outBias: flag }),
  mamba: kind<MambaSpec>("mamba", {
    dState: number,
    dConv: number,
    expand: positive,
    dtRank: rank,
    innerNorm: optional((value, place) => (isObject(value) && !("kind" in value) ? innerNorms : norm)(value, place)),
    convBias: flag,
    projBias: flag,
  }),
};

const router = oneOf({
  "softmax-then-top-k": kind<SoftmaxThenTopK>("softmaxThenTopK", { renormalise: flag }),
  "top-k-then-softmax": kind<TopKThenSoftmax>("topKThenSoftmax", {}),
});

const channelMixers: Readonly<Record<ChannelMixerKind, Kind>> = {
  mlp: kind<MlpSpec>("mlp", { dFf: number, bias: flag }),
  moe: kind<MoeSpec>("moe", { nExperts: number, topK: number, dFf: number, router, nSharedExperts: noSharedExperts }),
};

const half = { mixer: optional(oneOf(mixers)), channelMixer: optional(oneOf(channelMixers)), norm: optional(norm) } satisfies Fields<LayerOverride>;
const layer: Kinds = { layer: kind<LayerSpec>("layer", half) };

/** One spec for all layers, or a way to choose among them; `otherwise` may be a choice again. */
function planOf(specs: Kinds, more: Kinds): Check {
  const plan: Check = (value, place) => chosen(value, place);
  const chosen = oneOf({ ...specs, ...more, every: kind<Every<unknown>>("every", { period: number, offset: number, spec: oneOf(specs), otherwise: plan }) });
  return plan;
}
const ratio: Kinds = { ratio: kind<Ratio>("ratio", { counts: entriesOf(number), at: listOf(number), mixers: entriesOf(oneOf(mixers)) }) };
const mixerPlan = planOf(mixers, ratio);
const channelMixerPlan = planOf(channelMixers, {});

const pattern: Kinds = { pattern: kind<PatternSpec>("pattern", { letters: text, legend: entriesOf(oneOf({ ...mixers, ...channelMixers, ...layer })) }) };

const plannedBlock = fieldsOf({ layers: number, mixer: mixerPlan, channelMixer: optional(channelMixerPlan), norm: optional(norm) } satisfies Fields<BlockSpec>);
const block: Kinds = {
  block: {
    constructor: "block",
    check: (value, place) => (isObject(value) && "mixer" in value ? plannedBlock : fieldsOf({ layers: stack }))(value, place),
  },
};
const repeat: Kinds = { repeat: kind<RepeatSpec>("repeat", { times: number, of: oneOf({ ...layer, ...block, ...pattern }) }) };

function stack(value: unknown, place: Place): void {
  const items = oneOf({ ...layer, ...block, ...pattern, ...repeat });
  if (isObject(value)) oneOf(pattern)(value, place);
  else listOf(items)(value, place);
}

const common = {
  name: text,
  vocabSize: number,
  dModel: number,
  norm,
  finalNorm: optional(norm),
  tieEmbeddings: flag,
  contextLength: optional(number),
  overrides: optional(entriesOf(fieldsOf(half))),
};
const ofBlocks = fieldsOf({ ...common, blocks: number, block: oneOf(block) } satisfies Omit<Fields<ModelSpec>, "layers">);
const ofLayers = fieldsOf({ ...common, layers: stack } satisfies Omit<Fields<ModelSpec>, "blocks" | "block">);

/** Reports every part of a model that is not what the DSL's types ask for. */
export function checkStructure(model: ModelSpec, found: Diagnostics): void {
  ("layers" in model ? ofLayers : ofBlocks)(model, new Place("", model, found));
}
