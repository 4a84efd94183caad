import { portable } from "../../compiler/targets/portable.js";
import type { Layout } from "../../dsl/resolve.js";
import { describeChannelMixer, describeMixer } from "../describe-layer.js";
import { type Cost, costOf, type StateBytes } from "../cost.js";
import { formatBytes, formatCount, formatInteger, formatTable } from "../format.js";
import { openSource, type SourceOptions } from "../source.js";
import type { Terminal } from "../terminal.js";

export interface InspectOptions extends SourceOptions {
  /** One row per layer instead of one per run of equal layers. */
  readonly all?: boolean;
}

/** Prints the stack of layers, the parameters by kind, and the state that one sequence carries. */
export async function inspect(terminal: Terminal, path: string, options: InspectOptions): Promise<void> {
  const { layout, kind } = await openSource(path, options);
  const cost = costOf(layout);
  const { contextLength } = layout;
  terminal.write(header(layout));
  terminal.write(`\n${layerTable(layout, cost, options.all ?? false)}`);
  terminal.write(`\n${parameterTable(cost)}`);
  terminal.write(`\n${stateTable(cost.state, contextLength)}`);
  terminal.result({
    kind,
    name: layout.name,
    vocabSize: layout.vocabSize,
    dModel: layout.dModel,
    contextLength,
    tieEmbeddings: layout.tieEmbeddings,
    parameters: { ...cost.parameters, byKind: Object.fromEntries(cost.byKind) },
    state: {
      dtype: portable.stateDtypes.key,
      kvCacheBytesPerToken: cost.state.kvCachePerToken,
      kvCacheBytesAtContext: contextLength === null ? null : cost.state.kvCachePerToken * contextLength,
      convStateBytes: cost.state.convState,
      ssmStateBytes: cost.state.ssmState,
    },
    layers: layout.layers.map(({ mixer, channelMixer }, i) => ({ mixer, channelMixer, ...cost.layers[i] })),
  });
}

function header({ name, layers, dModel, vocabSize, contextLength, tieEmbeddings }: Layout): string {
  const context = contextLength === null ? "no stated context length" : `context ${formatInteger(contextLength)}`;
  return `${name}: ${layers.length} layers, dModel ${dModel}, vocabulary ${formatInteger(vocabSize)}${tieEmbeddings ? " (tied embeddings)" : ""}, ${context}\n`;
}

/** Consecutive layers that are shown as one row. */
interface Run {
  readonly first: number;
  readonly last: number;
}

function layerTable(layout: Layout, { layers }: Cost, all: boolean): string {
  const keys = layout.layers.map((layer) => JSON.stringify(layer));
  const shortest = shortestPeriod(keys);
  // Equal layers are one run already.
  const period = all || shortest === 1 ? keys.length : shortest;
  const runs = runsOf(keys.slice(0, period), all);
  const rows = runs.map(({ first, last }) => {
    const { mixer = null, channelMixer = null } = layout.layers[first] ?? {};
    const each = layers[first];
    return [first === last ? String(first) : `${first}–${last}`, describeMixer(mixer), describeChannelMixer(channelMixer), formatCount(each?.parameters.total ?? 0), formatCount(each?.parameters.active ?? 0)];
  });
  const repeated = period < keys.length ? `these ${period} layers, ${keys.length / period} times over:\n` : "";
  return repeated + formatTable([["layer", "mixer", "channel mixer", "parameters each", "active each"], ...rows], { right: [3, 4] });
}

/** The shortest stretch that, repeated, gives the whole list. */
function shortestPeriod(keys: readonly string[]): number {
  for (let period = 1; period < keys.length; period++) if (keys.length % period === 0 && keys.every((key, i) => key === keys[i % period])) return period;
  return keys.length;
}

function runsOf(keys: readonly string[], all: boolean): readonly Run[] {
  const runs: Run[] = [];
  keys.forEach((key, i) => {
    const previous = runs.at(-1);
    if (!all && previous && keys[previous.first] === key) runs[runs.length - 1] = { first: previous.first, last: i };
    else runs.push({ first: i, last: i });
  });
  return runs;
}

function parameterTable({ parameters, byKind }: Cost): string {
  const kinds = [...byKind].sort(([, a], [, b]) => b.total - a.total);
  const share = (part: number) => `${((100 * part) / parameters.total).toFixed(1)} %`;
  return formatTable(
    [
      ["parameters", "total", "active", "share"],
      ...kinds.map(([kind, { total, active }]) => [kind, formatInteger(total), formatInteger(active), share(total)]),
      ["all", formatInteger(parameters.total), formatInteger(parameters.active), ""],
    ],
    { right: [1, 2, 3] },
  );
}

function stateTable({ kvCachePerToken, convState, ssmState }: StateBytes, contextLength: number | null): string {
  const rows: readonly (readonly [string, number])[] = [
    ["KV cache, per token", kvCachePerToken],
    ...(contextLength === null ? [] : [[`KV cache, at ${formatInteger(contextLength)} tokens`, kvCachePerToken * contextLength] as const]),
    ["conv state", convState],
    ["SSM state", ssmState],
  ];
  const carried = rows.filter(([, bytes]) => bytes > 0);
  const title = [carried.length > 0 ? `state of one sequence (${portable.stateDtypes.key})` : "no state"];
  return formatTable([title, ...carried.map(([name, bytes]) => [name, formatBytes(bytes)])], { right: [1] });
}
