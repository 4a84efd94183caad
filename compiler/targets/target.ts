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
  /** Whether past and present state may be one buffer, for state that grows and for state of constant size. */
  readonly stateUpdate: Readonly<Record<StateSlot["growth"], StateSlot["update"]>>;
}
