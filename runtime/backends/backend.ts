import type { Manifest } from "../../core/manifest.js";

/** What a backend needs to open a compiled model. */
export interface OpenRequest {
  readonly folder: string;
  readonly manifest: Manifest;
  /** Threads that compute one operator together. */
  readonly threads: number;
}

/** Names the state tensors of one batch inside the session that made them; only the session can look inside. */
export type StateId = number;

/** One run of the graph over a batch of B rows, each padded on the right to T tokens. */
export interface ForwardRequest {
  readonly state: StateId;
  /** [B, T] row-major. */
  readonly inputIds: BigInt64Array;
  /** [B] tokens already in the state of each row. */
  readonly pastLengths: readonly number[];
  /** [B] tokens of each row that count, 0 … T. */
  readonly lengths: readonly number[];
  /** [B, L] row-major positions (0 … T-1) whose logits are wanted; empty for none. */
  readonly logitIndices: BigInt64Array;
}

/** The content of one state slot, copied out of the session. */
export interface SlotContent {
  /** The slot's shape with the batch and the present capacity filled in. */
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

/**
 * A loaded model together with the states of its sequences. Calls are carried out in the order they are made.
 * State stays on the session's side: what crosses over in normal running is token ids and logits.
 */
export interface BackendSession {
  /** A zeroed state for `batch` rows; buffers that grow per token start with room for `capacity` positions. */
  createState(batch: number, capacity: number): Promise<StateId>;
  /** An independent state with the same content. */
  copyState(state: StateId): Promise<StateId>;
  /** Frees the state's tensors once the calls made before this one are done. */
  releaseState(state: StateId): void;
  /**
   * Runs the graph and replaces the state with what it returns; buffers that are too small for
   * `max(pastLengths) + T` positions grow first. When it rejects, the state counts as unchanged.
   * @returns logits [B, L, V], row-major.
   */
  forward(request: ForwardRequest): Promise<Float32Array>;
  /** Copies slot `slot` (an index into the manifest's `state`) out, for inspection and tests. */
  readState(state: StateId, slot: number): Promise<SlotContent>;
  /** Finishes the calls already made, then frees everything. Calling it again waits for the same end. */
  close(): Promise<void>;
}

/** A way to run compiled models on some device. */
export interface Backend {
  readonly name: string;
  /** @throws LayerweaveError `runtime/load-failed`, `runtime/unsupported-state` */
  open(request: OpenRequest): Promise<BackendSession>;
}
