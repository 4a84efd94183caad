import type { StorageDtype } from "../../core/dtype.js";
import type { StateSlot } from "../../core/manifest.js";

/** What can be compiled for: capabilities only; passes and rules ask these and never for the target's name. */
export interface Target {
  readonly name: string;
  readonly irVersion: number;
  readonly opset: number;
  /** Type of activations, and of weights once they are read. */
  readonly computeDtype: StorageDtype;
  readonly stateDtypes: Readonly<Record<StateSlot["role"], StorageDtype>>;
  /** Whether past and present state may be one buffer, for state that grows and for state of constant size. */
  readonly stateUpdate: Readonly<Record<StateSlot["growth"], StateSlot["update"]>>;
  /**
   * How weights that are not quantised are stored. `as-given`: matrices in the type the user or the checkpoint says, the rest in
   * the checkpoint's, and a Cast follows what is not of the compute type. `as-used`: in the type that kernels read.
   */
  readonly weightStorage: "as-given" | "as-used";
  /** What lies between the projections of a mixer is one op, and so is a dense MLP; else there are smaller ones, and reshapes between them. */
  readonly fusedMixers: boolean;
  /** The same of a Mamba and of a dense MLP whose weights are int8, whatever `fusedMixers` says. */
  readonly fusedInt8: boolean;
  /** A residual addition and the norm after it are one op. */
  readonly fusedNorms: boolean;
  /** Matrices of our own ops lie in the order in which their kernels stream them. */
  readonly packedWeights: boolean;
  /** Our ops carry a body in standard ops for a runtime that has no kernels for them. */
  readonly functionBodies: boolean;
  /** The runtime rewrites the graph before it runs it. */
  readonly optimisedWhenLoaded: boolean;
  /** Sizes that the kernels take; absent: any. */
  readonly limits?: KernelLimits;
}

export interface KernelLimits {
  /** Widths of activations are multiples of this: rows are read 16 bytes at a time. */
  readonly widthMultiple: number;
  readonly dConv: number;
  readonly dState: number;
  readonly headDim: number;
  readonly nExperts: number;
  readonly topK: number;
}
