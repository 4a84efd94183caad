import type { ChannelMixer, ChannelMixerKind } from "../../dsl/channel-mixers/index.js";
import type { Mixer, MixerKind } from "../../dsl/mixers/index.js";
import { attentionRules } from "./attention.js";
import type { Rules } from "./definition.js";
import { mambaRules } from "./mamba.js";
import { mlpRules } from "./mlp.js";
import { moeRules } from "./moe.js";

/** What is known of each kind; a new kind adds a line, and TypeScript names the kinds that lack one. */
const mixerRules: { readonly [K in MixerKind]: Rules<Extract<Mixer, { kind: K }>> } = {
  attention: attentionRules,
  mamba: mambaRules,
};

const channelMixerRules: { readonly [K in ChannelMixerKind]: Rules<Extract<ChannelMixer, { kind: K }>> } = {
  mlp: mlpRules,
  moe: moeRules,
};

/** The rules of a mixer's or channel mixer's kind. */
export function rulesOf<S extends Mixer | ChannelMixer>(spec: S): Rules<S> {
  return { ...mixerRules, ...channelMixerRules }[spec.kind] as unknown as Rules<S>;
}
