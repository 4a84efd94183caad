import type { Layout } from "../../../dsl/resolve.js";
import type { Importer, TensorSource } from "../importer.js";

/** One expert's matrix inside a tensor that packs a layer's experts, as Transformers 5 saves them. */
export interface Packed {
  /** gate_up_proj [E, 2F, D]: an expert's gate rows, then its up rows. down_proj [E, D, F]. */
  readonly tensor: string;
  readonly part: "gate" | "up" | "down";
}

/**
 * Where a family keeps its parameters: parameter pattern → tensor patterns, best first. In both, `{n}` is the layer, `{e}` the
 * expert and `{rest}` what remains of the name. The first pattern that fits a parameter counts.
 */
export type SourceTable = Readonly<Record<string, readonly (string | Packed)[]>>;

export function sourcesFrom(table: SourceTable): Importer["sources"] {
  const rows = Object.entries(table).map(([parameter, tensors]) => ({ pattern: patternOf(parameter), tensors }));
  return (parameter, layout) => {
    for (const { pattern, tensors } of rows) {
      const places = pattern.exec(parameter)?.groups;
      if (places) return tensors.flatMap((tensor) => (typeof tensor === "string" ? [{ tensor: fill(tensor, places) }] : slice(tensor, places, layout)));
    }
    return [];
  };
}

function patternOf(parameter: string): RegExp {
  const body = parameter.replaceAll(".", "\\.").replace("{n}", "(?<n>\\d+)").replace("{e}", "(?<e>\\d+)").replace("{rest}", "(?<rest>.+)");
  // A named group that always takes part, so that `groups` is there for every match.
  return new RegExp(`^(?<whole>${body})$`);
}

type Places = Readonly<Record<string, string | undefined>>;

const fill = (tensor: string, places: Places): string => tensor.replace(/\{(\w+)\}/g, (_, place: string) => places[place] ?? "");

function slice({ tensor, part }: Packed, places: Places, layout: Layout): readonly TensorSource[] {
  const spec = layout.layers[Number(places["n"])]?.channelMixer;
  if (spec?.kind !== "moe") return [];
  const length = spec.dFf * layout.dModel;
  const expert = Number(places["e"]);
  const of = part === "down" ? [spec.nExperts, layout.dModel, spec.dFf] : [spec.nExperts, 2 * spec.dFf, layout.dModel];
  const start = part === "down" ? expert * length : (2 * expert + (part === "up" ? 1 : 0)) * length;
  return [{ tensor: fill(tensor, places), slice: { start, length, of } }];
}

/** Tensors that any of these families' checkpoints may carry without need. */
export const ignoredTensors: Importer["ignoredTensors"] = [
  { pattern: /\.rotary_emb\.inv_freq$/, reason: "the frequencies are computed from rope_theta" },
  { pattern: /^lm_head\.weight$/, reason: "a copy of the embedding, when the two are tied" },
];
