import type { Manifest } from "../../core/manifest.js";
import type { ResolvedSampling } from "../sampling.js";

/** What a backend needs to open a compiled model. */
export interface OpenRequest {
  readonly folder: string;
  readonly manifest: Manifest;
  /** Threads that compute one operator together. */
  readonly threads: number;
  /** Repeats decode steps as captured CUDA graphs; for a CUDA backend only. */
  readonly cudaGraphs: boolean;
  /** Leaves weights that kernels could read from a copy in their mapped files; for the native backend on the CPU only. */
  readonly mappedWeights: boolean;
  /** Planned for activations and workspace; on a card taken at once. */
  readonly arenaBytes: number;
  /** Told of the bytes of weights loaded so far and of those in all, by a backend that loads them itself. */
  readonly onProgress?: ((loaded: number, total: number) => void) | undefined;
}

/** Names the state tensors of one batch inside the session that made them; only the session can look inside. */
export type StateId = number;

/** Names what chooses the tokens of one batch inside the session that made it. */
export type SamplerId = number;

/** How the tokens of one row are chosen: as on the host, but for the repetition penalty. */
export type DeviceSamplingOptions = Omit<ResolvedSampling, "repetitionPenalty">;

/** Chooses tokens where the logits are, so that these don't cross over. Each row's random sequence lies there too. */
export interface DeviceSampling {
  /** A sampler for as many rows as there are options, each at the start of its random sequence. */
  create(rows: readonly DeviceSamplingOptions[]): Promise<SamplerId>;
  /** Frees it once the calls made before this one are done. */
  release(sampler: SamplerId): void;
  /**
   * A run as `BackendSession.forward` of one logit index a row, after which every row of `chosen` draws: those and no
   * others move on in their random sequences.
   * @returns [B] tokens, as the host would choose them: -1 where it would find the logits not finite, anything for other rows.
   */
  forward(request: ForwardRequest, sampler: SamplerId, chosen: readonly boolean[]): Promise<readonly number[]>;
  /**
   * Steps as `forward` of one token a row, each fed what the one before chose, without coming back in between. A row takes part
   * until it has been given its limit of tokens, a stop token, or -1.
   * @param onTokens is called after each step with its tokens [B], undefined for rows that took no part; what a step chose is
   *   fed by the next one only
   */
  decode(request: DecodeRequest, sampler: SamplerId, onTokens: (tokens: readonly (number | undefined)[]) => void): Decoding;
}

/** Steps of one token a row, one after another. */
export interface DecodeRequest {
  readonly state: StateId;
  /** [B] tokens to begin with. */
  readonly inputIds: readonly number[];
  /** [B] tokens already in the state of each row. */
  readonly pastLengths: readonly number[];
  /** [B] most tokens that each row is given; 0: it takes no part. */
  readonly limits: readonly number[];
  readonly stopTokenIds: readonly number[];
}

/** Steps under way. */
export interface Decoding {
  /** Settles when no more steps follow, and all tokens were told of. When it rejects, the step that failed counts as not made. */
  readonly done: Promise<void>;
  /** Begins no more steps; the one under way is finished. */
  stop(): void;
}

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

/** Bytes a session holds outside JavaScript, now and at most since it was opened. */
export interface SessionMemory {
  /** ONNX Runtime's allocator: weights it copied or packed, and activations. Weights used where the file is mapped don't count. */
  readonly arena: number;
  readonly arenaPeak: number;
  /** Buffers of all states, at their full size: pages that no token has reached take no memory. */
  readonly state: number;
  readonly statePeak: number;
  /** The largest run's logits, which then belong to JavaScript. */
  readonly logitsPeak: number;
  /** On a card: the weights, which lie beside ONNX Runtime's allocator, and what the driver says of the card's memory. */
  readonly card?: CardMemory;
}

/** Bytes of a card's memory. */
export interface CardMemory {
  readonly weights: number;
  /** What ONNX Runtime's allocator has taken to hand out; it keeps what it took. */
  readonly arenaReserved: number;
  /** Buffers for token ids, logits and samplers. */
  readonly exchange: number;
  /** Seconds that loading the weights took, from the first read to the last copy. */
  readonly loadSeconds: number;
  /** Used by anybody, before the session was opened and now. */
  readonly usedBefore: number;
  readonly usedNow: number;
  readonly total: number;
}

/** Where the time of steps of one token went, on a card. */
export interface StepTimes {
  readonly steps: number;
  /** In the session, until everything was handed to the card. */
  readonly hostSeconds: number;
  /** Waiting for the card after that. */
  readonly waitSeconds: number;
  /** Kernels that one step launches. */
  readonly launches: number;
}

/** What a device reaches, measured the way a session uses it. */
export interface DeviceRates {
  /** Bytes read and bytes written, added up: a copy of n bytes moves 2 · n. */
  readonly copyBytesPerSecond: number;
  /** Of a large matrix product in the type that activations have; a multiplication and an addition are two. */
  readonly gemmOperationsPerSecond: number;
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
   * @param into from `lendLogits`, with room for the logits
   * @returns logits [B, L, V], row-major; in `into` if that was given.
   */
  forward(request: ForwardRequest, into?: Float32Array): Promise<Float32Array>;
  /** Memory for so many logits that runs can be given again and again. Absent where that would save nothing. */
  readonly lendLogits?: ((count: number) => Promise<Float32Array>) | undefined;
  /** Absent where tokens are chosen on the host. */
  readonly sampling?: DeviceSampling | undefined;
  /**
   * Copies slot `slot` (an index into the manifest's `state`) out, as float32 whatever it is stored in. Of a slot that
   * grows, `positions` are wanted, and those behind may be left out.
   */
  readState(state: StateId, slot: number, positions?: number): Promise<SlotContent>;
  /**
   * Copies out `count` bytes of slot `slot` as it is stored, from byte `from` on: of a slot that grows the positions of the
   * longest row, zeros behind the `lengths` of each.
   */
  readBytes(state: StateId, slot: number, lengths: readonly number[], from: number, count: number): Promise<Uint8Array>;
  /** Fills a part of what `readBytes` reads, in a state that is no copy of another. */
  writeBytes(state: StateId, slot: number, lengths: readonly number[], from: number, bytes: Uint8Array): Promise<void>;
  /** Makes row `toRow` of one state a copy of row `fromRow` of another, which holds `tokens` tokens; makes room where needed. */
  copyRow(from: StateId, fromRow: number, tokens: number, to: StateId, toRow: number): Promise<void>;
  /** What the session holds; null where the backend can't tell. */
  memory(): Promise<SessionMemory | null>;
  /** Of the steps of one token since this was last asked, `state`'s among them; null on the CPU. */
  stepTimes(state: StateId): Promise<StepTimes | null>;
  /** Measures the device, on the CPU with as many threads as the session has, for a few seconds; meaningful while nothing else runs on it. */
  measureDevice(): Promise<DeviceRates>;
  /** Finishes the calls already made, then frees everything. Calling it again waits for the same end. */
  close(): Promise<void>;
}

/** A way to run compiled models on some device. */
export interface Backend {
  readonly name: string;
  /** @throws LayerweaveError `runtime/load-failed`, `runtime/unsupported-state` */
  open(request: OpenRequest): Promise<BackendSession>;
}

/** The card that a model runs on. */
export interface Card {
  readonly ordinal: number;
  /** As the driver calls it. */
  readonly name: string;
  /** Such as 9.0. */
  readonly computeCapability: string;
  readonly bytes: number;
  /** Of those, what nobody used when this was asked. */
  readonly freeBytes: number;
}

/** Which backend runs a model, and why that one. */
export interface BackendChoice {
  readonly name: "native" | "portable" | "cuda";
  /** Absent: the CPU. */
  readonly card?: Card;
  /** Whether our ops run as the kernels made for them or as the function bodies that the graph carries. */
  readonly ops: "kernels" | "function-bodies";
  readonly why: string;
}
