import type { Dtype } from "../../core/dtype.js";
import type { StateSlot } from "../../core/manifest.js";

/** What can be compiled for: capabilities only; passes ask these and never for the target's name. */
export interface Target {
  readonly name: string;
  readonly irVersion: number;
  readonly opset: number;
  /** Type of activations, and of weights once they are read. */
  readonly computeDtype: Dtype;
  readonly stateDtype: Dtype;
  readonly stateUpdate: StateSlot["update"];
}
