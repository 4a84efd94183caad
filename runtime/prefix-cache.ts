import { createHash } from "node:crypto";
import { fail, LayerweaveError } from "../core/diagnostics.js";
import { runtimeDiagnostics } from "./diagnostics.js";
import type { Model, PrefillOptions } from "./model.js";
import type { Snapshot, State } from "./state.js";

export interface CachedPrefillOptions extends PrefillOptions {
  /**
   * Lengths of this prompt's beginnings worth keeping, such as the end of a system prompt or of a conversation so far.
   * A recurrent state can't be shortened, so a beginning is found again only where it was kept.
   */
  readonly boundaries: readonly number[];
}

/** What became of a prompt: how much of it was found, and if nothing was, why. */
export interface PrefixReport {
  /** Tokens whose state was found in the cache. */
  readonly reused: number;
  /** `hit`; or nothing was found because the cache is `empty`, because what was kept was `evicted`, because no kept beginning has these tokens (`no-match`). */
  readonly outcome: "hit" | "empty" | "evicted" | "no-match";
  /** With `no-match`: how many tokens the prompt shares with the kept beginning that is nearest; a boundary there would have helped. */
  readonly shared: number;
  /** Boundaries whose beginning was not kept: the cache's budget or the model's has no room for it, or it is all in use. */
  readonly notKept: readonly number[];
}

export interface PrefixCacheStats {
  readonly hits: number;
  readonly misses: number;
  readonly reusedTokens: number;
  readonly entries: number;
  readonly bytes: number;
}

interface Kept {
  readonly tokens: readonly number[];
  readonly snapshot: Snapshot;
  readonly bytes: number;
  /** Prompts that are taking the state over at this moment: it can't go now. */
  readers: number;
}

/** Names a beginning without keeping its tokens. */
const keyOf = (tokens: readonly number[]): string => createHash("sha256").update(Int32Array.from(tokens)).digest("base64");

/** Remembered of beginnings that had to go: enough to tell a budget that is too small from prompts that differ. */
const rememberedEvictions = 10_000;

/**
 * States of prompts' beginnings, so that what prompts have in common is computed once. Keeps to a budget of bytes: what
 * was not used for longest goes first.
 */
export class PrefixCache implements AsyncDisposable {
  /** In the order of use: a Map iterates in the order of insertion. */
  readonly #kept = new Map<string, Kept>();
  readonly #evicted = new Set<string>();
  #bytes = 0;
  #hits = 0;
  #misses = 0;
  #reusedTokens = 0;

  /** @throws LayerweaveError `runtime/bad-option` */
  constructor(
    private readonly model: Model,
    private readonly budget: number,
  ) {
    if (!(budget >= 0)) fail(runtimeDiagnostics["bad-option"], { option: "budget", expected: "a number of bytes", found: String(budget) });
  }

  get stats(): PrefixCacheStats {
    return { hits: this.#hits, misses: this.#misses, reusedTokens: this.#reusedTokens, entries: this.#kept.size, bytes: this.#bytes };
  }

  /**
   * A state that holds a prompt, its longest kept beginning taken from the cache and the rest fed; keeps the beginnings
   * at `boundaries`.
   * @returns the state (the caller's to close), the logits [V] of the prompt's last token, and what was found.
   * @throws LayerweaveError as `model.prefill`, and `runtime/bad-option`; the signal's reason when it fires.
   */
  async prefill(prompt: readonly number[], { boundaries, ...options }: CachedPrefillOptions): Promise<{ state: State; logits: Float32Array; report: PrefixReport }> {
    const wrong = boundaries.find((boundary) => !Number.isInteger(boundary) || boundary < 1 || boundary > prompt.length);
    if (wrong !== undefined) fail(runtimeDiagnostics["bad-option"], { option: "boundaries", expected: `whole numbers from 1 to ${prompt.length}, the prompt's length`, found: String(wrong) });
    const state = await this.model.createState();
    try {
      const found = this.#longest(prompt);
      const outcome = found ? "hit" : this.#missed(prompt, boundaries);
      const shared = found?.tokens.length ?? Math.max(0, ...[...this.#kept.values()].map(({ tokens }) => commonLength(tokens, prompt)));
      if (found) await this.#restore(state, found);
      const reused = found?.tokens.length ?? 0;
      if (found) this.#hits++;
      else this.#misses++;
      this.#reusedTokens += reused;
      const notKept: number[] = [];
      let logits: Float32Array | undefined;
      const stops = new Set([...boundaries.filter((boundary) => boundary > reused), prompt.length]);
      let at = reused;
      for (const stop of [...stops].sort((a, b) => a - b)) {
        [logits] = await this.model.prefill(state, [prompt.slice(at, stop)], options);
        at = stop;
        if (boundaries.includes(stop) && !(await this.#keep(prompt.slice(0, stop), state))) notKept.push(stop);
      }
      return { state, logits: logits as Float32Array, report: { reused, outcome, shared, notKept } };
    } catch (error) {
      await state[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Frees everything that was kept. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const [key, kept] of [...this.#kept]) await this.#drop(key, kept);
  }

  /** The longest kept beginning that leaves a token to be fed: logits come from feeding one. Counts as a use. */
  #longest(prompt: readonly number[]): Kept | undefined {
    let best: [string, Kept] | undefined;
    for (const [key, kept] of this.#kept) {
      const { length } = kept.tokens;
      if (length < prompt.length && length > (best?.[1].tokens.length ?? 0) && commonLength(kept.tokens, prompt) === length) best = [key, kept];
    }
    if (best) this.#use(...best);
    return best?.[1];
  }

  #missed(prompt: readonly number[], boundaries: readonly number[]): "empty" | "evicted" | "no-match" {
    if (boundaries.some((boundary) => this.#evicted.has(keyOf(prompt.slice(0, boundary))))) return "evicted";
    return this.#kept.size === 0 ? "empty" : "no-match";
  }

  async #restore(state: State, kept: Kept): Promise<void> {
    kept.readers++;
    try {
      await state.restore(kept.snapshot);
    } finally {
      kept.readers--;
    }
  }

  /** Whether there is room for a beginning; if so it is kept, and others go for it. */
  async #keep(tokens: readonly number[], state: State): Promise<boolean> {
    const key = keyOf(tokens);
    const known = this.#kept.get(key);
    if (known) {
      this.#use(key, known);
      return true;
    }
    const bytes = state.compactBytes;
    if (bytes > this.budget) return false;
    for (const [oldest, kept] of [...this.#kept]) {
      if (this.#bytes + bytes <= this.budget) break;
      if (kept.readers > 0) continue;
      await this.#drop(oldest, kept);
      this.#evicted.add(oldest);
    }
    if (this.#bytes + bytes > this.budget) return false;
    for (const forgotten of this.#evicted) {
      if (this.#evicted.size <= rememberedEvictions) break;
      this.#evicted.delete(forgotten);
    }
    // Counted before it is there, so that prompts fed at the same time don't exceed the budget together.
    this.#bytes += bytes;
    try {
      const snapshot = await state.compactSnapshot();
      const meanwhile = this.#kept.get(key);
      if (meanwhile) await this.#drop(key, meanwhile);
      this.#evicted.delete(key);
      this.#kept.set(key, { tokens, snapshot, bytes, readers: 0 });
    } catch (error) {
      this.#bytes -= bytes;
      if (error instanceof LayerweaveError && error.diagnostics.every(({ code }) => code === "plan/over-budget")) return false;
      throw error;
    }
    return true;
  }

  #use(key: string, kept: Kept): void {
    this.#kept.delete(key);
    this.#kept.set(key, kept);
  }

  async #drop(key: string, kept: Kept): Promise<void> {
    this.#kept.delete(key);
    this.#bytes -= kept.bytes;
    await kept.snapshot[Symbol.asyncDispose]();
  }
}

function commonLength(a: readonly number[], b: readonly number[]): number {
  const limit = Math.min(a.length, b.length);
  for (let i = 0; i < limit; i++) if (a[i] !== b[i]) return i;
  return limit;
}
