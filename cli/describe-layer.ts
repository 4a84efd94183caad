import type { ChannelMixer, ChannelMixerKind } from "../dsl/channel-mixers/index.js";
import type { Mixer, MixerKind } from "../dsl/mixers/index.js";
import type { Position } from "../dsl/positions.js";

type Describe<S extends { readonly kind: string }, K extends S["kind"]> = (spec: Extract<S, { kind: K }>) => readonly (string | false)[];

/** What sets one mixer of a kind apart from another, for `inspect`. A new mixer adds a line. */
const mixers: { readonly [K in MixerKind]: Describe<Mixer, K> } = {
  attention: ({ nHeads, nKvHeads, headDim, position, window }) => [
    `${nHeads} heads × ${headDim}`,
    nKvHeads !== nHeads && `${nKvHeads} KV heads`,
    describePosition(position),
    window !== null && `window ${window}`,
  ],
  mamba: ({ dInner, dState, dConv, dtRank, innerNorm }) => [`dInner ${dInner}`, `dState ${dState}`, `dConv ${dConv}`, `dtRank ${dtRank}`, innerNorm !== null && "inner norms"],
};

const channelMixers: { readonly [K in ChannelMixerKind]: Describe<ChannelMixer, K> } = {
  mlp: ({ dFf }) => [`dFf ${dFf}`],
  moe: ({ nExperts, topK, dFf }) => [`${topK} of ${nExperts} experts`, `dFf ${dFf}`],
};

export const describeMixer = <K extends MixerKind>(spec: Extract<Mixer, { kind: K }> | null): string => (spec ? sentence(spec.kind, mixers[spec.kind as K](spec)) : "–");

export const describeChannelMixer = <K extends ChannelMixerKind>(spec: Extract<ChannelMixer, { kind: K }> | null): string =>
  spec ? sentence(spec.kind, channelMixers[spec.kind as K](spec)) : "–";

const sentence = (kind: string, parts: readonly (string | false)[]): string => `${kind} ${parts.filter(Boolean).join(", ")}`;

function describePosition(position: Position): string {
  if (position.kind === "none") return "no positions";
  return `rope ${position.theta}${position.scaling ? ` (${position.scaling.kind})` : ""}`;
}
