import { type Mlp, type MlpSpec, resolveMlp } from "./mlp.js";
import { type Moe, type MoeSpec, resolveMoe } from "./moe.js";

/** What a layout says of a channel mixer, and what it means. A new channel mixer adds a line to each. */
export type ChannelMixerSpec = MlpSpec | MoeSpec;
export type ChannelMixer = Mlp | Moe;
export type ChannelMixerKind = ChannelMixerSpec["kind"];

type Resolve<K extends ChannelMixerKind> = (spec: Extract<ChannelMixerSpec, { kind: K }>) => Extract<ChannelMixer, { kind: K }>;

const resolvers: { readonly [K in ChannelMixerKind]: Resolve<K> } = {
  mlp: resolveMlp,
  moe: resolveMoe,
};

export function resolveChannelMixer<K extends ChannelMixerKind>(spec: Extract<ChannelMixerSpec, { kind: K }>): ChannelMixer {
  const resolve = resolvers[spec.kind as K];
  return resolve(spec);
}
