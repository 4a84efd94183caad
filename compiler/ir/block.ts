import type { StateSlot } from "../../core/manifest.js";
import type { Origin } from "../../core/origin.js";
import type { ChannelMixer } from "../../dsl/channel-mixers/index.js";
import type { Mixer } from "../../dsl/mixers/index.js";
import type { RmsNorm } from "../../dsl/norms.js";
import type { Parameter } from "./parameter.js";

/** Half a layer: x + mixer(norm(x)). A mixer is one op here. */
export interface BlockOp {
  /** `layers.4.attention` */
  readonly name: string;
  readonly layer: number;
  readonly role: "mixer" | "channel-mixer";
  readonly spec: Mixer | ChannelMixer;
  readonly norm: { readonly name: string; readonly spec: RmsNorm };
  readonly parameters: readonly Parameter[];
  /** Filled in by plan-state. */
  readonly state: readonly StateSlot[];
  readonly origin: Origin;
}

/** Block IR: an embedding, a list of residual ops on one stream of width dModel, a final norm and an output projection. */
export interface BlockModel {
  readonly name: string;
  readonly vocabSize: number;
  readonly dModel: number;
  readonly tieEmbeddings: boolean;
  readonly finalNorm: RmsNorm;
  readonly ops: readonly BlockOp[];
  /** Embedding, final norm and output projection; each op has its own. */
  readonly parameters: readonly Parameter[];
  readonly origin: Origin;
}

export function allParameters(model: BlockModel): readonly Parameter[] {
  const [embedding, ...rest] = model.parameters;
  return [...(embedding ? [embedding] : []), ...model.ops.flatMap((op) => op.parameters), ...rest];
}
