import { Diagnostics, fail } from "../core/diagnostics.js";
import type { Manifest } from "../core/manifest.js";
import { untilAborted } from "./abort.js";
import type { BackendChoice, BackendSession, CardMemory } from "./backends/backend.js";
import type { MemoryReservation, StateClaim } from "./budget.js";
import { runtimeDiagnostics } from "./diagnostics.js";
import { generateBatch, Generation, type Completion, type GenerateOptions, type Prompt } from "./generate.js";
import { State, type LogitsWanted, type StateOwner } from "./state.js";
import type { Tokenizer } from "./tokenizer.js";

/** Positions that KV caches which are copied by every run, or for which there may be no memory, start with room for. */
const growingCapacity = 256;

export interface PrefillOptions {
  /** Tokens of each row fed per run: more is faster, and needs more memory. Default: what memory was reserved for. */
  readonly chunk?: number;
  /** Ends the prefill, at the latest between two chunks; the state then holds the chunks fed so far. */
  readonly signal?: AbortSignal | undefined;
}

/** Bytes of a model outside JavaScript, by who holds them. The process itself comes on top. */
export interface MemoryParts {
  /**
   * On the CPU weights used in their files, or widened while loading. No allocator counts them: in a measurement too they are what
   * the plan says. On a card all weights.
   */
  readonly weights: number;
  /** ONNX Runtime's allocator: weights packed for matrix products, activations, kernels' workspace. */
  readonly arena: number;
  /** Buffers of states and snapshots. */
  readonly state: number;
  readonly logits: number;
  readonly total: number;
}

export interface ModelMemory {
  /** What was reserved: the plan, and states and snapshots beyond it. */
  readonly planned: MemoryParts;
  /** What is held now, and the most that was since the model was loaded; null on the portable backend, which can't tell. */
  readonly measured: { readonly now: MemoryParts; readonly peak: MemoryParts } | null;
  /** What else is known of the memory of the card that the model runs on. */
  readonly card?: CardMemory;
}

/** A compiled model, ready to run. Made by `load`; any number of states can be used on it at once. */
export class Model implements AsyncDisposable, StateOwner {
  #open = true;

  constructor(
    readonly folder: string,
    readonly manifest: Manifest,
    readonly session: BackendSession,
    /** null when the folder has none; such a model takes token ids only. */
    readonly tokenizer: Tokenizer | null,
    readonly backend: BackendChoice,
    /** Memory that the model was promised; closing the model releases it. */
    readonly reservation: MemoryReservation,
  ) {}

  /**
   * An empty state for `batch` sequences (default 1).
   * @throws LayerweaveError `runtime/bad-option`, `runtime/closed`; `plan/over-budget` when there is no memory for that many sequences
   */
  async createState({ batch = 1 }: { readonly batch?: number } = {}): Promise<State> {
    this.#checkOpen();
    if (!Number.isInteger(batch) || batch < 1) fail(runtimeDiagnostics["bad-option"], { option: "batch", expected: "a positive integer", found: String(batch) });
    return State.create(this, batch, this.reservation.claimState(batch));
  }

  /**
   * The state that `state.save` wrote: of this model as it was compiled, on any backend and machine.
   * @throws LayerweaveError `runtime/bad-state-file`, `runtime/other-model-state`, `runtime/context-exceeded`, `runtime/state-failed`,
   *   `runtime/closed`, `plan/over-budget`
   */
  async loadState(file: string): Promise<State> {
    this.#checkOpen();
    return State.fromFile(this, file, (batch) => this.reservation.claimState(batch));
  }

  /**
   * Feeds one run of new tokens to every row of a state. Rows may differ in length, but none may be empty.
   * A run that fails leaves the state as it was.
   * @param options `transient`: the logits are needed until the state's next run only, which may overwrite them: they don't take
   *   memory that is new each time, and on a card aren't copied once more.
   * @returns per row, logits [n, V] row-major: n = 0 (`none`), 1 (`last`, default), or the row's length (`all`).
   * @throws LayerweaveError `runtime/row-count`, `runtime/empty-prompt`, `runtime/bad-token`, `runtime/context-exceeded`,
   *   `runtime/foreign-state`, `runtime/run-failed`, `runtime/worker-stopped`, `runtime/closed`
   */
  async forward(state: State, rows: readonly (readonly number[])[], { logits = "last", transient = false }: { readonly logits?: LogitsWanted; readonly transient?: boolean } = {}): Promise<Float32Array[]> {
    this.#checkState(state);
    checkNotEmpty(rows);
    return state.advance(rows, logits, { transient });
  }

  /**
   * Feeds whole prompts in chunks, so that memory follows the chunk and not the prompt.
   * @returns per row, the logits [V] of its prompt's last token.
   * @throws LayerweaveError as `forward`, and `runtime/bad-option`; the signal's reason when it fires.
   */
  async prefill(state: State, prompts: readonly (readonly number[])[], options: PrefillOptions = {}): Promise<Float32Array[]> {
    const last = new Array<Float32Array>(prompts.length);
    await this.feedInChunks(state, prompts, options, async (rows, ends) => {
      const logits = await state.advance(rows, ends.includes(true) ? "last" : "none");
      logits.forEach((row, b) => {
        if (ends[b]) last[b] = row;
      });
    });
    return last;
  }

  /**
   * Cuts prompts into chunks, with which it calls `feed` one after another; `ends` tells it the rows whose prompt ends with the chunk.
   * @throws LayerweaveError as `prefill`, and what `feed` throws
   */
  async feedInChunks(
    state: State,
    prompts: readonly (readonly number[])[],
    { chunk = this.reservation.plan.chunk, signal }: PrefillOptions,
    feed: (rows: readonly (readonly number[])[], ends: readonly boolean[]) => Promise<void>,
  ): Promise<void> {
    this.#checkState(state);
    if (!Number.isInteger(chunk) || chunk < 1) fail(runtimeDiagnostics["bad-option"], { option: "chunk", expected: "a positive integer", found: String(chunk) });
    checkNotEmpty(prompts);
    // Checked for the whole prompts, so that a mistake in the last chunk doesn't surface after minutes.
    state.check(prompts);
    const longest = Math.max(...prompts.map((prompt) => prompt.length));
    for (let start = 0; start < longest; start += chunk) {
      signal?.throwIfAborted();
      const rows = prompts.map((prompt) => prompt.slice(start, start + chunk));
      const ends = prompts.map((prompt) => prompt.length > start && prompt.length <= start + chunk);
      await untilAborted(feed(rows, ends), signal);
    }
  }

  /**
   * Continues a prompt: text, token ids, or messages for the model's chat template. Iterate to receive the tokens;
   * `stats` is there once the iteration has ended. Each generation has a state of its own.
   * @throws LayerweaveError from the iteration: `runtime/bad-option`, `runtime/no-tokenizer`, `runtime/no-chat-template`,
   *   `runtime/chat-template-failed`, `runtime/not-finite`, and as `prefill`; the signal's reason when it fires.
   */
  generate(prompt: Prompt, options: GenerateOptions = {}): Generation {
    return new Generation(this, prompt, options);
  }

  /**
   * Continues several prompts in one batch. They may differ in length, and each stops on its own; every row is what
   * `generate` would give with the same options.
   * @throws LayerweaveError as `generate`; the signal's reason when it fires.
   */
  generateBatch(prompts: readonly Prompt[], options: GenerateOptions = {}): Promise<Completion[]> {
    return generateBatch(this, prompts, options);
  }

  /**
   * Bytes of the model as they were planned, beside what the allocators saw.
   * @throws LayerweaveError `runtime/closed`
   */
  async memory(): Promise<ModelMemory> {
    this.#checkOpen();
    const { plan, beyondPlan } = this.reservation;
    const { weights, arena, state, logits } = plan.holders;
    const parts = (weights: number, arena: number, state: number, logits: number): MemoryParts => ({ weights, arena, state, logits, total: weights + arena + state + logits });
    const seen = await this.session.memory();
    const planned = parts(weights, arena, state + beyondPlan, logits);
    if (!seen) return { planned, measured: null };
    const { card } = seen;
    // On a card counts what the allocator took, which it keeps. Logits lie in buffers that stay; those of the CPU then belong to JavaScript.
    const held = (arena: number, state: number, logits: number) => parts(card?.weights ?? weights, card?.arenaReserved ?? arena, state, card?.exchange ?? logits);
    return { planned, measured: { now: held(seen.arena, seen.state, 0), peak: held(seen.arenaPeak, seen.statePeak, seen.logitsPeak) }, ...(card ? { card } : {}) };
  }

  /**
   * Positions a KV cache starts with room for: all that are reserved where untouched pages cost nothing and runs write in place,
   * and on a card, where captured steps need it to stay where it is.
   */
  get initialCapacity(): number {
    const { plan, refusal } = this.reservation;
    return this.backend.name !== "portable" && !refusal ? plan.context : Math.min(growingCapacity, plan.context);
  }

  /** Claims memory for a snapshot. @throws LayerweaveError `plan/over-budget` */
  claimSnapshot(bytes: number): StateClaim {
    return this.reservation.claimBytes(bytes);
  }

  /** Ends the model once the runs under way are done, and frees its memory. */
  async close(): Promise<void> {
    this.#open = false;
    try {
      await this.session.close();
    } finally {
      this.reservation[Symbol.dispose]();
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  get isOpen(): boolean {
    return this.#open;
  }

  #checkOpen(): void {
    if (!this.#open) fail(runtimeDiagnostics.closed, { what: "model" });
  }

  #checkState(state: State): void {
    this.#checkOpen();
    if (!state.belongsTo(this)) fail(runtimeDiagnostics["foreign-state"], { what: "state" });
  }
}

function checkNotEmpty(rows: readonly (readonly number[])[]): void {
  const found = new Diagnostics();
  rows.forEach((ids, row) => {
    if (ids.length === 0) found.report(runtimeDiagnostics["empty-prompt"], { row });
  });
  found.throwIfErrors();
}
