import { toBlocks } from "../compiler/lower.js";
import { portable } from "../compiler/targets/portable.js";
import { evaluateDim, elementCount } from "../core/dim.js";
import { bytesPerElement } from "../core/dtype.js";
import type { StateSlot, WeightKind } from "../core/manifest.js";
import type { Layout } from "../dsl/resolve.js";

export interface ParameterCount {
  total: number;
  /** Those that one token uses. */
  active: number;
}

/** Bytes of state of one sequence, in the element type that the compiled graph carries. */
export interface StateBytes {
  /** Keys and values, for each token of the context. */
  kvCachePerToken: number;
  convState: number;
  ssmState: number;
}

export interface Cost {
  readonly parameters: ParameterCount;
  readonly byKind: ReadonlyMap<WeightKind, ParameterCount>;
  /** By index in the stack; embedding, final norm and output projection belong to none. */
  readonly layers: readonly { readonly parameters: ParameterCount; readonly state: StateBytes }[];
  readonly state: StateBytes;
}

/** What a layout's parameters and state amount to, from the block IR it is compiled through. */
export function costOf(layout: Layout): Cost {
  const { ops, parameters } = toBlocks(layout, portable);
  const total: ParameterCount = { total: 0, active: 0 };
  const byKind = new Map<WeightKind, ParameterCount>();
  const layers = layout.layers.map(() => ({ parameters: { total: 0, active: 0 }, state: noState() }));
  for (const { kind, shape, active = 1, layer } of [...parameters, ...ops.flatMap((op) => op.parameters)]) {
    const elements = shape.reduce((a, b) => a * b, 1);
    const ofKind = byKind.get(kind) ?? { total: 0, active: 0 };
    byKind.set(kind, ofKind);
    for (const count of [total, ofKind, layer === undefined ? undefined : layers[layer]?.parameters]) {
      if (!count) continue;
      count.total += elements;
      count.active += elements * active;
    }
  }
  const state = noState();
  for (const slot of ops.flatMap((op) => op.state)) for (const sum of [state, layers[slot.layer]?.state]) if (sum) addSlot(sum, slot);
  return { parameters: rounded(total), byKind: new Map([...byKind].map(([kind, count]) => [kind, rounded(count)])), layers: layers.map((l) => ({ ...l, parameters: rounded(l.parameters) })), state };
}

const noState = (): StateBytes => ({ kvCachePerToken: 0, convState: 0, ssmState: 0 });

// topK / nExperts has no exact binary form for most counts.
const rounded = ({ total, active }: ParameterCount): ParameterCount => ({ total, active: Math.round(active) });

const fieldOf: Readonly<Record<StateSlot["role"], keyof StateBytes>> = { key: "kvCachePerToken", value: "kvCachePerToken", conv_state: "convState", ssm_state: "ssmState" };

function addSlot(sum: StateBytes, { role, shape, dtype }: StateSlot): void {
  sum[fieldOf[role]] += evaluateDim(elementCount(shape), { B: 1, S: 1 }) * bytesPerElement[dtype];
}
