import type { ResolveContext } from "../resolve.js";
import { type Attention, type AttentionSpec, resolveAttention } from "./attention.js";
import { type Mamba, type MambaSpec, resolveMamba } from "./mamba.js";

/** What a layout says of a token mixer, and what it means once defaults are filled in. A new mixer adds a line to each. */
export type MixerSpec = AttentionSpec | MambaSpec;
export type Mixer = Attention | Mamba;
export type MixerKind = MixerSpec["kind"];

type Resolve<K extends MixerKind> = (spec: Extract<MixerSpec, { kind: K }>, context: ResolveContext) => Extract<Mixer, { kind: K }>;

const resolvers: { readonly [K in MixerKind]: Resolve<K> } = {
  attention: resolveAttention,
  mamba: resolveMamba,
};

export const mixerKinds = Object.keys(resolvers) as readonly MixerKind[];

export function resolveMixer<K extends MixerKind>(spec: Extract<MixerSpec, { kind: K }>, context: ResolveContext): Mixer {
  const resolve = resolvers[spec.kind as K];
  return resolve(spec, context);
}
