import type { Dtype } from "../dtype.js";
import type { Manifest, StateSlot, WeightKind } from "../manifest.js";
import type { Profile } from "./profile.js";

/** A weight as it is stored. */
export interface PlannedWeight {
  readonly name: string;
  readonly kind: WeightKind;
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  readonly bytes: number;
  /** Follows the storage type of the model, and may be quantised. */
  readonly matrix: boolean;
  /** The int8 weight whose scales these are. */
  readonly scalesOf?: string | undefined;
}

/** What the planner knows of a model: of a compiled one by its manifest, of a layout by the compiler (`planModel`). */
export interface PlanModel {
  readonly name: string;
  readonly vocabSize: number;
  readonly dModel: number;
  /** Longest context the model was made for, in tokens; null: no such limit is known. */
  readonly contextLength: number | null;
  readonly parameters: { readonly total: number; readonly active: number };
  readonly weights: readonly PlannedWeight[];
  /** The output projection is the embedding. */
  readonly tiedEmbeddings: boolean;
  readonly state: readonly StateSlot[];
  readonly profile: Profile;
}

export function planModelOf({ model, weights, state, profile }: Manifest): PlanModel {
  return {
    name: model.name,
    vocabSize: model.vocabSize,
    dModel: model.dModel,
    contextLength: model.contextLength,
    parameters: model.parameters,
    weights,
    tiedEmbeddings: !weights.some((w) => w.kind === "lm-head"),
    state,
    profile,
  };
}
