import { Diagnostics } from "../core/diagnostics.js";
import { inheritCallSite, originOf } from "../core/origin.js";
import { type ChannelMixer, type ChannelMixerSpec, resolveChannelMixer } from "./channel-mixers/index.js";
import { dslDiagnostics } from "./diagnostics.js";
import { type Mixer, type MixerSpec, mixerKinds, resolveMixer } from "./mixers/index.js";
import type { Layers, LayerSpec, ModelSpec, Plan, Ratio, StackItem } from "./model.js";
import { type RmsNorm, type RmsNormSpec, resolveNorm } from "./norms.js";
import { describeValue } from "./spec.js";

/** What the defaults of a mixer depend on. */
export interface ResolveContext {
  readonly dModel: number;
  /** The model's norm epsilon. */
  readonly eps: number;
}

/** One layer with every default filled in. */
export interface ResolvedLayer {
  readonly norm: RmsNorm;
  readonly mixer: Mixer | null;
  readonly channelMixer: ChannelMixer | null;
}

/** A layout with blocks, ratios, patterns and overrides expanded and every default filled in: what the compiler compiles. */
export interface Layout {
  readonly name: string;
  readonly vocabSize: number;
  readonly dModel: number;
  readonly tieEmbeddings: boolean;
  readonly contextLength: number | null;
  readonly finalNorm: RmsNorm;
  readonly layers: readonly ResolvedLayer[];
}

const mostLayers = 10_000;
const defaultEps = 1e-6;

/**
 * Expands a model whose structure is sound (`checkStructure`) into layers. Problems of the expansion are collected in `found`; what can be expanded is returned.
 * Paths of the result count layers in the whole model: `layers[3].mixer`.
 */
export function resolveLayout(spec: ModelSpec, found: Diagnostics): Layout {
  const expand = new Expansion(found);
  const unexpanded =
    "layers" in spec
      ? expand.stack(spec.layers, "layers")
      : expand.repeated(spec.blocks, () => expand.item(spec.block, "block"), "blocks", spec);
  const layers = unexpanded.map((layer, i) => {
    const override = spec.overrides?.[i];
    return override ? inheritCallSite({ ...layer, ...override }, layer) : layer;
  });
  for (const index of Object.keys(spec.overrides ?? {}))
    if (!(Number(index) in layers)) found.report(dslDiagnostics["override-out-of-range"], { index, layers: layers.length }, originOf(spec, `overrides[${index}]`));
  if (layers.length === 0 && !found.hasErrors) found.report(dslDiagnostics["no-layers"], {}, originOf(spec, "layers"));

  const eps = spec.norm.eps ?? defaultEps;
  const context = { dModel: spec.dModel, eps };
  const norm = (own: RmsNormSpec | undefined) => resolveNorm(own ?? spec.norm, eps);
  return inheritCallSite(
    {
      name: spec.name,
      vocabSize: spec.vocabSize,
      dModel: spec.dModel,
      tieEmbeddings: spec.tieEmbeddings,
      contextLength: spec.contextLength ?? null,
      finalNorm: norm(spec.finalNorm),
      layers: layers.map((layer, i) => {
        const { mixer, channelMixer } = layer;
        if (!mixer && !channelMixer) found.report(dslDiagnostics["empty-layer"], {}, originOf(layer, `layers[${i}]`));
        return inheritCallSite(
          {
            norm: norm(layer.norm),
            mixer: mixer ? inheritCallSite(resolveMixer(mixer, context), mixer) : null,
            channelMixer: channelMixer ? inheritCallSite(resolveChannelMixer(channelMixer), channelMixer) : null,
          },
          layer,
        );
      }),
    },
    spec,
  );
}

type AnySpec = MixerSpec | ChannelMixerSpec;

class Expansion {
  constructor(private readonly found: Diagnostics) {}

  stack(layers: Layers, path: string): LayerSpec[] {
    if ("kind" in layers) return this.item(layers, path);
    return layers.flatMap((item, i) => this.item(item, `${path}[${i}]`));
  }

  repeated(times: number, make: () => LayerSpec[], path: string, near: object): LayerSpec[] {
    if (!this.count(times, path, near)) return [];
    const once = make();
    if (once.length * times > mostLayers) {
      this.found.report(dslDiagnostics["too-many-layers"], { layers: once.length * times, most: mostLayers }, originOf(near, path));
      return once;
    }
    return Array.from({ length: times }, () => once).flat();
  }

  item(item: StackItem, path: string): LayerSpec[] {
    switch (item.kind) {
      case "layer":
        return [item];
      case "repeat":
        return this.repeated(item.times, () => this.item(item.of, path), `${path}.times`, item);
      case "pattern":
        return [...item.letters].flatMap((letter) => {
          const meaning = Object.hasOwn(item.legend, letter) ? item.legend[letter] : undefined;
          if (!meaning) {
            this.found.report(dslDiagnostics["unknown-letter"], { letter, letters: item.letters, known: Object.keys(item.legend) }, originOf(item, path));
            return [];
          }
          return [asLayer(meaning)];
        });
      case "block": {
        if (!("mixer" in item)) return this.stack(item.layers, `${path}.layers`);
        if (!this.count(item.layers, `${path}.layers`, item)) return [];
        if (item.layers > mostLayers) {
          this.found.report(dslDiagnostics["too-many-layers"], { layers: item.layers, most: mostLayers }, originOf(item, `${path}.layers`));
          return [];
        }
        const mixers = this.plan<MixerSpec>(item.mixer, item.layers, `${path}.mixer`);
        const channelMixers = item.channelMixer && this.plan<ChannelMixerSpec>(item.channelMixer, item.layers, `${path}.channelMixer`);
        return Array.from({ length: item.layers }, (_, i) =>
          inheritCallSite(
            {
              kind: "layer" as const,
              ...(mixers[i] ? { mixer: mixers[i] } : {}),
              ...(channelMixers?.[i] ? { channelMixer: channelMixers[i] } : {}),
              ...(item.norm ? { norm: item.norm } : {}),
            },
            item,
          ),
        );
      }
    }
  }

  /** The spec of each layer of a block; [] when the plan is invalid, which was then reported. */
  plan<S extends AnySpec>(plan: Plan<S>, layers: number, path: string): readonly S[] {
    if (plan.kind === "every") {
      if (!this.count(plan.period, `${path}.period`, plan)) return [];
      if (!Number.isInteger(plan.offset) || plan.offset < 0 || plan.offset >= plan.period) {
        this.found.report(dslDiagnostics["offset-beyond-period"], { offset: plan.offset, period: plan.period }, originOf(plan, `${path}.offset`));
        return [];
      }
      const otherwise = this.plan<S>(plan.otherwise as Plan<S>, layers, `${path}.otherwise`);
      return Array.from({ length: layers }, (_, i) => (i % plan.period === plan.offset ? plan.spec : otherwise[i])).filter((s) => s !== undefined) as S[];
    }
    if (plan.kind === "ratio") return this.ratio(plan, layers, path) as readonly S[];
    return Array.from({ length: layers }, () => plan as S);
  }

  ratio(ratio: Ratio, layers: number, path: string): readonly MixerSpec[] {
    const entries = Object.entries(ratio.counts);
    if (!entries.map(([kind, count]) => this.count(count, `${path}.${kind}`, ratio)).every(Boolean)) return [];
    const [first, ...rest] = entries as [string, number][];
    if (!first) {
      this.found.report(dslDiagnostics["not-a-count"], { field: "ratio", found: "empty" }, originOf(ratio, path));
      return [];
    }
    const period = first[1] + rest.reduce((sum, [, count]) => sum + count, 0);
    const places = new Set(ratio.at.filter((at) => Number.isInteger(at) && at >= 0 && at < period));
    if (places.size !== first[1] || ratio.at.length !== first[1]) {
      this.found.report(dslDiagnostics["ratio-at"], { first: first[0], count: first[1], at: ratio.at, period }, originOf(ratio, `${path}.at`));
      return [];
    }
    if (layers % period !== 0) {
      this.found.report(dslDiagnostics["ratio-does-not-divide"], { period, layers }, originOf(ratio, path));
      return [];
    }
    const mixers = ratio.mixers as Readonly<Record<string, MixerSpec | undefined>>;
    for (const [kind] of entries)
      if (!mixers[kind]) this.found.report(dslDiagnostics["not-a-spec"], { expected: `${kind}(…)`, found: describeValue(mixers[kind]) }, originOf(ratio, `${path}.${kind}`));
    const others = rest.flatMap(([kind, count]) => Array.from({ length: count }, () => kind));
    let next = 0;
    const kinds = Array.from({ length: period }, (_, i) => (places.has(i) ? first[0] : (others[next++] as string)));
    return Array.from({ length: layers }, (_, i) => mixers[kinds[i % period] as string] as MixerSpec);
  }

  count(value: number, path: string, near: object): boolean {
    const ok = Number.isInteger(value) && value >= 1 && value < 2 ** 31;
    if (!ok) {
      const field = path.split(".").at(-1) ?? path;
      this.found.report(dslDiagnostics["not-a-count"], { field, found: value }, originOf(near, path));
    }
    return ok;
  }
}

function asLayer(meaning: MixerSpec | ChannelMixerSpec | LayerSpec): LayerSpec {
  if (meaning.kind === "layer") return meaning;
  const half = (mixerKinds as readonly string[]).includes(meaning.kind) ? { mixer: meaning as MixerSpec } : { channelMixer: meaning as ChannelMixerSpec };
  return inheritCallSite({ kind: "layer", ...half }, meaning);
}
