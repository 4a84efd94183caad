import { fail, invariant, Diagnostics } from "../core/diagnostics.js";
import { bytesPerElement } from "../core/dtype.js";
import type { Manifest, StateSlot } from "../core/manifest.js";
import type { BackendSession, DeviceSampling, ForwardRequest, SamplerId, SlotContent, StateId, StepTimes } from "./backends/backend.js";
import { runtimeDiagnostics } from "./diagnostics.js";
import { StateFile, writeStateFile } from "./state-file.js";

/** Which logits a run returns: of no token, of each row's last token, or of all its tokens. */
export type LogitsWanted = "none" | "last" | "all";

/** Tokens that follow one another, chosen on a session's device. */
export interface DecodingOptions {
  /** Most tokens that each row is given; 0: it takes no part. Where the context is full sooner, it ends there. */
  readonly limits: readonly number[];
  /** A row ends with one of these. */
  readonly stopTokenIds: readonly number[];
  readonly sampling: DeviceSampling;
  /** Of as many rows. */
  readonly sampler: SamplerId;
  /** Told of each step's tokens [B], when the state holds what led to them: undefined for rows that took no part, -1 where logits were not finite. */
  readonly onTokens: (tokens: readonly (number | undefined)[]) => void;
  /** No more steps begin once it has fired; this is no error. */
  readonly signal: AbortSignal;
}

/** What a state needs of the model it belongs to. */
export interface StateOwner {
  readonly manifest: Manifest;
  readonly session: BackendSession;
  readonly isOpen: boolean;
  /** Positions a KV cache starts with room for. */
  readonly initialCapacity: number;
  /** Claims memory for a snapshot. @throws LayerweaveError `plan/over-budget` */
  claimSnapshot(bytes: number): Disposable;
}

/** A copy of a state at one point, to come back to. Made by {@link State.snapshot}. */
export class Snapshot implements AsyncDisposable {
  #open = true;

  constructor(
    private readonly owner: StateOwner,
    private readonly id: StateId,
    private readonly memory: Disposable,
    /** Tokens each row held when the snapshot was taken. */
    readonly lengths: readonly number[],
  ) {}

  /** The tensors behind this snapshot, for a state of the same model and batch size. */
  tensorsFor(owner: StateOwner, batch: number): StateId {
    if (!this.#open) fail(runtimeDiagnostics.closed, { what: "snapshot" });
    if (owner !== this.owner || batch !== this.lengths.length) fail(runtimeDiagnostics["foreign-state"], { what: "snapshot" });
    return this.id;
  }

  /** Frees the copy. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#open) return;
    this.#open = false;
    this.memory[Symbol.dispose]();
    this.owner.session.releaseState(this.id);
  }
}

/**
 * What a model remembers of the tokens it was fed, for a batch of B sequences: KV caches, conv states, SSM states.
 * The tensors stay beside the model; this object knows their lengths. Operations on one state run one after another
 * in the order they were called. Made by `model.createState`.
 */
export class State implements AsyncDisposable {
  #id: StateId;
  #lengths: readonly number[];
  #open = true;
  #queue: Promise<unknown> = Promise.resolve();
  /** Lent to the runs whose logits are needed until the next one only. */
  #lent: Float32Array | undefined;

  private constructor(
    private readonly owner: StateOwner,
    readonly batch: number,
    id: StateId,
    private readonly memory: Disposable,
  ) {
    this.#id = id;
    this.#lengths = new Array<number>(batch).fill(0);
  }

  /** @param memory claimed for it; given back when the state is closed or can't be made */
  static create(owner: StateOwner, batch: number, memory: Disposable, capacity = owner.initialCapacity): Promise<State> {
    return claimed(memory, async () => new State(owner, batch, await owner.session.createState(batch, capacity), memory));
  }

  /**
   * @param claim claims memory for a state of so many rows, before any is taken; what it throws is thrown
   * @throws LayerweaveError `runtime/bad-state-file`, `runtime/other-model-state`, `runtime/context-exceeded`,
   *   `runtime/state-failed`, `runtime/worker-stopped`
   */
  static async fromFile(owner: StateOwner, path: string, claim: (batch: number) => Disposable): Promise<State> {
    await using file = await StateFile.open(path, owner.manifest);
    const { lengths } = file;
    const { contextLength } = owner.manifest.model;
    lengths.forEach((past, row) => {
      if (contextLength !== null && past > contextLength) fail(runtimeDiagnostics["context-exceeded"], { row, tokens: 0, past, contextLength });
    });
    const state = await State.create(owner, lengths.length, claim(lengths.length), Math.max(owner.initialCapacity, ...lengths));
    try {
      for (const slot of owner.manifest.state.keys())
        for await (const { from, bytes } of file.pieces(slot)) await owner.session.writeBytes(state.#id, slot, lengths, from, bytes);
    } catch (error) {
      await state[Symbol.asyncDispose]();
      throw error;
    }
    state.#lengths = lengths;
    return state;
  }

  /** Tokens in the state of each row. */
  get lengths(): readonly number[] {
    return this.#lengths;
  }

  belongsTo(owner: StateOwner): boolean {
    return owner === this.owner;
  }

  /**
   * Feeds new tokens to every row. Rows may differ in length; an empty row stays as it is, but one row must hold tokens.
   * A run that fails changes nothing.
   * @param transient the logits are needed until the state's next run only, which may overwrite them
   * @returns per row, logits [n, V] row-major with n = 0, 1 or the row's length; n = 0 for an empty row.
   * @throws LayerweaveError `runtime/row-count`, `runtime/bad-token`, `runtime/context-exceeded`, `runtime/empty-prompt`,
   *   `runtime/run-failed`, `runtime/worker-stopped`, `runtime/closed`
   */
  advance(rows: readonly (readonly number[])[], wanted: LogitsWanted, { transient = false }: { readonly transient?: boolean } = {}): Promise<Float32Array[]> {
    return this.#feed(rows, wanted, async (request) => {
      const { vocabSize } = this.owner.manifest.model;
      const perRow = request.logitIndices.length / this.batch;
      const logits = await this.owner.session.forward(request, transient ? await this.#lentFor(this.batch * perRow * vocabSize) : undefined);
      invariant(logits.length === this.batch * perRow * vocabSize, "the graph returns logits [B, L, V]");
      return rows.map((row, b) => logits.subarray(b * perRow * vocabSize, (b * perRow + Math.min(perRow, row.length)) * vocabSize));
    });
  }

  /**
   * As `advance`, with the tokens that follow chosen on the session's device by a sampler of as many rows; rows that are
   * not `chosen` draw none.
   * @returns [B] tokens, as `DeviceSampling.forward` says.
   * @throws LayerweaveError as `advance`
   */
  advanceSampled(rows: readonly (readonly number[])[], sampling: DeviceSampling, sampler: SamplerId, chosen: readonly boolean[]): Promise<readonly number[]> {
    return this.#feed(rows, "last", (request) => sampling.forward(request, sampler, chosen));
  }

  async #lentFor(count: number): Promise<Float32Array | undefined> {
    const { session } = this.owner;
    if (count > 0 && count > (this.#lent?.length ?? 0)) this.#lent = await session.lendLogits?.(count);
    return this.#lent;
  }

  /**
   * Feeds each row that has a limit its token of `next`, then what that leads to, and so on, without coming back between the
   * steps. The last token of a row is not fed: `lengths` counts those that were, while it goes on too.
   * @throws LayerweaveError as `advance`; what was told to `onTokens` is then in the state, and no more than that
   */
  decode(next: readonly (number | undefined)[], { limits, stopTokenIds, sampling, sampler, onTokens, signal }: DecodingOptions): Promise<void> {
    return this.#inOrder(async () => {
      this.check(next.map((token, row) => ((limits[row] ?? 0) > 0 && token !== undefined ? [token] : [])));
      const { contextLength } = this.owner.manifest.model;
      const request = {
        state: this.#id,
        inputIds: next.map((token) => token ?? 0),
        pastLengths: this.#lengths,
        limits: limits.map((limit, row) => (next[row] === undefined ? 0 : Math.min(limit, (contextLength ?? Infinity) - (this.#lengths[row] ?? 0)))),
        stopTokenIds,
      };
      if (signal.aborted) return;
      const decoding = sampling.decode(request, sampler, (tokens) => {
        this.#lengths = this.#lengths.map((length, row) => length + (tokens[row] === undefined ? 0 : 1));
        onTokens(tokens);
      });
      const stop = (): void => decoding.stop();
      signal.addEventListener("abort", stop, { once: true });
      await decoding.done.finally(() => signal.removeEventListener("abort", stop));
    });
  }

  #feed<T>(rows: readonly (readonly number[])[], wanted: LogitsWanted, run: (request: ForwardRequest) => Promise<T>): Promise<T> {
    return this.#inOrder(async () => {
      this.check(rows);
      const tokens = Math.max(...rows.map((row) => row.length));
      const perRow = wanted === "none" ? 0 : wanted === "last" ? 1 : tokens;
      const inputIds = new BigInt64Array(this.batch * tokens);
      const logitIndices = new BigInt64Array(this.batch * perRow);
      rows.forEach((row, b) => {
        inputIds.set(row.map(BigInt), b * tokens);
        for (let l = 0; l < perRow; l++) logitIndices[b * perRow + l] = BigInt(wanted === "all" ? l : Math.max(row.length - 1, 0));
      });
      const lengths = rows.map((row) => row.length);
      const result = await run({ state: this.#id, inputIds, pastLengths: this.#lengths, lengths, logitIndices });
      this.#lengths = this.#lengths.map((past, b) => past + (lengths[b] ?? 0));
      return result;
    });
  }

  /**
   * Where the time of the model's steps of one token went since this was last asked; null on the CPU.
   * @throws LayerweaveError `runtime/state-failed`, `runtime/closed`
   */
  stepTimes(): Promise<StepTimes | null> {
    return this.#inOrder(() => this.owner.session.stepTimes(this.#id));
  }

  /** Keeps the present content. @throws LayerweaveError `plan/over-budget`, `runtime/closed`, `runtime/worker-stopped` */
  snapshot(): Promise<Snapshot> {
    return this.#inOrder(() => {
      const memory = this.owner.claimSnapshot(this.compactBytes);
      return claimed(memory, async () => new Snapshot(this.owner, await this.owner.session.copyState(this.#id), memory, this.#lengths));
    });
  }

  /**
   * Goes back to a snapshot; the snapshot stays usable.
   * @throws LayerweaveError `runtime/foreign-state`, `runtime/closed`, `runtime/worker-stopped`
   */
  restore(snapshot: Snapshot): Promise<void> {
    return this.#inOrder(async () => {
      const restored = await this.owner.session.copyState(snapshot.tensorsFor(this.owner, this.batch));
      this.owner.session.releaseState(this.#id);
      this.#id = restored;
      this.#lengths = snapshot.lengths;
    });
  }

  /**
   * Drops the last `tokens` tokens of every row, which only a model without recurrent layers can do.
   * @throws LayerweaveError `runtime/rewind-needs-snapshot`, `runtime/rewind-too-far`, `runtime/closed`
   */
  rewind(tokens: number): Promise<void> {
    return this.#inOrder(async () => {
      const found = new Diagnostics();
      const recurrent = this.owner.manifest.state.filter((slot) => slot.rewind === "snapshot").map((slot) => slot.past);
      if (recurrent.length > 0) found.report(runtimeDiagnostics["rewind-needs-snapshot"], { slots: recurrent, tokens });
      this.#lengths.forEach((length, row) => {
        if (!Number.isInteger(tokens) || tokens < 0 || tokens > length) found.report(runtimeDiagnostics["rewind-too-far"], { row, tokens, length });
      });
      found.throwIfErrors();
      this.#lengths = this.#lengths.map((length) => length - tokens);
    });
  }

  /**
   * Copies one layer's state out, for inspection and tests. Of a buffer with room for S positions only the positions
   * some row uses are returned, and those beyond a row's length are zero.
   * @throws LayerweaveError `runtime/unknown-slot`, `runtime/closed`, `runtime/worker-stopped`
   */
  read(layer: number, role: StateSlot["role"]): Promise<SlotContent> {
    return this.#inOrder(async () => {
      const slots = this.owner.manifest.state;
      const index = slots.findIndex((slot) => slot.layer === layer && slot.role === role);
      const slot = slots[index];
      if (!slot) fail(runtimeDiagnostics["unknown-slot"], { layer, role, known: slots.map((s) => `${s.layer}.${s.role}`) });
      const content = await this.owner.session.readState(this.#id, index, Math.max(...this.#lengths));
      const axis = slot.shape.indexOf("S");
      return axis < 0 ? content : trim(content, axis, this.#lengths);
    });
  }

  /**
   * Writes the state to a file, from which `model.loadState` makes it again: safetensors of the types that the state has, with a
   * checksum of the numbers and a fingerprint of the model. The file is there whole or not at all.
   * @throws LayerweaveError `runtime/state-file-unwritable`, `runtime/state-failed`, `runtime/closed`, `runtime/worker-stopped`
   */
  save(file: string): Promise<void> {
    return this.#inOrder(() => writeStateFile(file, this.owner.manifest, this.#lengths, (slot, from, count) => this.owner.session.readBytes(this.#id, slot, this.#lengths, from, count)));
  }

  /**
   * Makes row `row` a copy of row `fromRow` of another state of the same model: so a sequence that was prefilled by
   * itself joins a running batch. The other state stays as it is. A row that left the batch is fed no tokens, or cleared.
   * @throws LayerweaveError `runtime/unknown-row`, `runtime/foreign-state`, `runtime/state-failed`, `runtime/closed`, `runtime/worker-stopped`
   */
  setRow(row: number, from: State, fromRow = 0): Promise<void> {
    // Neither state moves on before both are where they were when this was called. Calls only ever wait for earlier
    // ones, so two states that copy from each other don't wait in a circle.
    const ready = from.#queue;
    const done = this.#inOrder(async () => {
      await ready;
      if (from.owner !== this.owner) fail(runtimeDiagnostics["foreign-state"], { what: "state" });
      if (!from.#open) fail(runtimeDiagnostics.closed, { what: "state" });
      this.#checkRow(row);
      from.#checkRow(fromRow);
      const tokens = from.#lengths[fromRow] ?? 0;
      await this.owner.session.copyRow(from.#id, fromRow, tokens, this.#id, row);
      this.#lengths = this.#lengths.with(row, tokens);
    });
    if (from !== this) from.#queue = Promise.allSettled([ready, done]);
    return done;
  }

  /**
   * Empties row `row`, so that another sequence can begin there.
   * @throws LayerweaveError `runtime/unknown-row`, `runtime/state-failed`, `runtime/closed`, `runtime/worker-stopped`
   */
  async clearRow(row: number): Promise<void> {
    // It lives for the length of this call, and its KV cache has room for one token.
    await using empty = await State.create(this.owner, 1, { [Symbol.dispose]: () => undefined }, 1);
    await this.setRow(row, empty);
  }

  /** Bytes that `compactSnapshot` would take now. */
  get compactBytes(): number {
    const positions = Math.max(...this.#lengths, 1);
    const bytes = this.owner.manifest.state.map(({ shape, dtype }) =>
      shape.reduce<number>((n, d) => n * (d === "B" ? this.batch : d === "S" ? positions : Number(d)), bytesPerElement[dtype]),
    );
    return bytes.reduce((sum, n) => sum + n, 0);
  }

  /** A snapshot that keeps room only for the tokens it holds, and shares nothing. @throws LayerweaveError as `snapshot` */
  async compactSnapshot(): Promise<Snapshot> {
    return this.#inOrder(() => {
      const { session } = this.owner;
      const memory = this.owner.claimSnapshot(this.compactBytes);
      return claimed(memory, async () => {
        const copy = await session.createState(this.batch, Math.max(...this.#lengths, 1));
        try {
          for (const [row, tokens] of this.#lengths.entries()) await session.copyRow(this.#id, row, tokens, copy, row);
        } catch (error) {
          session.releaseState(copy);
          throw error;
        }
        return new Snapshot(this.owner, copy, memory, this.#lengths);
      });
    });
  }

  /** Frees the state's tensors; a run already under way is finished first. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#open) return;
    this.#open = false;
    this.memory[Symbol.dispose]();
    this.owner.session.releaseState(this.#id);
  }

  #checkRow(row: number): void {
    if (!Number.isInteger(row) || row < 0 || row >= this.batch) fail(runtimeDiagnostics["unknown-row"], { row, batch: this.batch });
  }

  #inOrder<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#queue.then(() => {
      if (!this.owner.isOpen) fail(runtimeDiagnostics.closed, { what: "model" });
      if (!this.#open) fail(runtimeDiagnostics.closed, { what: "state" });
      return work();
    });
    this.#queue = result.catch(() => undefined);
    return result;
  }

  /**
   * Checks rows as `advance` would, without feeding them.
   * @throws LayerweaveError `runtime/row-count`, `runtime/bad-token`, `runtime/context-exceeded`, `runtime/empty-prompt`
   */
  check(rows: readonly (readonly number[])[]): void {
    const { vocabSize, contextLength } = this.owner.manifest.model;
    if (rows.length !== this.batch) fail(runtimeDiagnostics["row-count"], { rows: rows.length, batch: this.batch });
    const found = new Diagnostics();
    if (rows.every((row) => row.length === 0)) rows.forEach((_, row) => found.report(runtimeDiagnostics["empty-prompt"], { row }));
    rows.forEach((ids, row) => {
      const past = this.#lengths[row] ?? 0;
      if (contextLength !== null && past + ids.length > contextLength)
        found.report(runtimeDiagnostics["context-exceeded"], { row, tokens: ids.length, past, contextLength });
      const position = ids.findIndex((id) => !(Number.isInteger(id) && id >= 0 && id < vocabSize));
      if (position >= 0) found.report(runtimeDiagnostics["bad-token"], { row, position, token: ids[position] ?? NaN, vocabSize });
    });
    found.throwIfErrors();
  }
}

/** What `make` makes holds on to the memory; when it fails, the memory is given back. */
async function claimed<T>(memory: Disposable, make: () => Promise<T>): Promise<T> {
  try {
    return await make();
  } catch (error) {
    memory[Symbol.dispose]();
    throw error;
  }
}

function trim({ shape, data }: SlotContent, axis: number, lengths: readonly number[]): SlotContent {
  const capacity = shape[axis] ?? 0;
  const used = Math.max(...lengths);
  const inner = shape.slice(axis + 1).reduce((n, d) => n * d, 1);
  const outer = shape.slice(0, axis).reduce((n, d) => n * d, 1);
  const kept = new Float32Array(outer * used * inner);
  for (let o = 0; o < outer; o++) {
    const row = Math.floor(o / (outer / lengths.length));
    const from = o * capacity * inner;
    kept.set(data.subarray(from, from + (lengths[row] ?? 0) * inner), o * used * inner);
  }
  return { shape: shape.map((d, i) => (i === axis ? used : d)), data: kept };
}
