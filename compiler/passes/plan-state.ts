import type { BlockModel } from "../ir/block.js";
import { rulesOf } from "../rules/index.js";
import type { Target } from "../targets/target.js";

/** Gives every piece of state that the mixers' rules declare its names, type and way of being updated. */
export function planState(model: BlockModel, target: Target): BlockModel {
  return {
    ...model,
    ops: model.ops.map((op) => ({
      ...op,
      state: rulesOf(op.spec)
        .state(op.spec)
        .map((spec) => ({
          layer: op.layer,
          role: spec.role,
          past: `past_key_values.${op.layer}.${spec.role}`,
          present: `present.${op.layer}.${spec.role}`,
          dtype: target.stateDtypes[spec.role],
          shape: spec.shape,
          growth: spec.growth,
          rewind: spec.rewind,
          update: target.stateUpdate[spec.growth],
          ...(spec.window === undefined ? {} : { window: spec.window }),
        })),
    })),
  };
}
