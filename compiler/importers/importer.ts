import type { Layout } from "../../dsl/resolve.js";
import type { ModelSpec } from "../../dsl/model.js";
import type { ConfigReader } from "./config-reader.js";

/** Where a checkpoint keeps a parameter: a whole tensor, or a run of elements of one that packs several. */
export interface TensorSource {
  readonly tensor: string;
  /** Counted in elements of the flattened tensor, which must have shape `of`. */
  readonly slice?: { readonly start: number; readonly length: number; readonly of: readonly number[] };
}

/** One family of published checkpoints. It accounts for every config key and for every tensor. */
export interface Importer {
  /** Values of `model_type` in config.json. */
  readonly modelTypes: readonly string[];
  /** The layout a config describes; problems are reported to the reader, keys it does not ask for are reported as unknown. */
  readonly toModel: (config: ConfigReader) => ModelSpec;
  /** Where to look for a parameter (`layers.4.attention.q_proj.weight`), best first: published spellings differ. */
  readonly sources: (parameter: string, layout: Layout) => readonly TensorSource[];
  /** Tensors that published checkpoints carry and no parameter needs, each for a reason. */
  readonly ignoredTensors: readonly { readonly pattern: RegExp; readonly reason: string }[];
}
