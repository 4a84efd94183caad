import { fail, invariant } from "../core/diagnostics.js";
import type { DeviceSampling, SamplerId } from "./backends/backend.js";
import { untilAborted } from "./abort.js";
import { runtimeDiagnostics } from "./diagnostics.js";
import type { Model } from "./model.js";
import { Sampler, type ResolvedSampling } from "./sampling.js";
import type { State } from "./state.js";

/** Where tokens are chosen: both choose the same ones. */
export type ChosenOn = "host" | "device";

/** How far steps may go. */
export interface StepLimits {
  /** [B] tokens that each row may still be given. */
  readonly limits: readonly number[];
  /** Steps that may be under way before the tokens of the first are asked for. */
  readonly ahead: number;
  readonly stopTokenIds: ReadonlySet<number>;
  readonly signal: AbortSignal | undefined;
}

/** Feeds the rows of a batch and chooses the tokens that follow. */
export interface TokenChooser extends AsyncDisposable {
  readonly on: ChosenOn;
  /** Feeds tokens as `State.advance` does, after which `next` can be asked about the rows for which `ends` holds. */
  advance(state: State, rows: readonly (readonly number[])[], ends: readonly boolean[]): Promise<void>;
  /**
   * Feeds each row its token of `next` (undefined: none, it has ended), and a device what that leads to, step by step. After each
   * `next` can be asked about the rows for which what is yielded holds. A row ends at its limit or with a stop token. Leaving the
   * loop early begins no more steps; the state may then hold up to `ahead` tokens more than were asked about.
   */
  steps(state: State, next: readonly (number | undefined)[], limits: StepLimits): AsyncGenerator<readonly boolean[], void, undefined>;
  /**
   * The token after what row `row` was fed, `position` + 1 tokens in all (named in errors only); to be asked once an advance.
   * @throws LayerweaveError `runtime/not-finite`
   */
  next(row: number, position: number): number;
}

/** Bytes on the card for each token of the vocabulary and each row that draws: sample_workspace of kernels/include/sample.cuh. */
const workspaceBytes = 8;

/** @throws LayerweaveError `plan/over-budget`; `runtime/bad-option` for a device that can't choose, or can't under these options */
export async function chooserFor({ session, reservation, manifest }: Model, prompts: readonly (readonly number[])[], options: ResolvedSampling, on: ChosenOn): Promise<TokenChooser> {
  if (on === "host") return new HostChooser(prompts.map((prompt) => new Sampler(options, prompt)));
  const { sampling } = session;
  if (!sampling) fail(runtimeDiagnostics["bad-option"], { option: "chooseOn", expected: '"host": only a card chooses tokens, and of at most 262,144', found: on });
  if (options.repetitionPenalty !== 1) fail(runtimeDiagnostics["bad-option"], { option: "chooseOn", expected: '"host" with a repetition penalty, which looks at all tokens before', found: on });
  const memory = reservation.claimBytes(options.temperature > 0 ? prompts.length * manifest.model.vocabSize * workspaceBytes : 0);
  try {
    return new DeviceChooser(sampling, await sampling.create(prompts.map(() => options)), memory);
  } catch (error) {
    memory[Symbol.dispose]();
    throw error;
  }
}

class HostChooser implements TokenChooser {
  readonly on = "host";
  readonly #logits: Float32Array[] = [];

  constructor(private readonly samplers: readonly Sampler[]) {}

  async advance(state: State, rows: readonly (readonly number[])[], ends: readonly boolean[]): Promise<void> {
    const logits = await state.advance(rows, ends.includes(true) ? "last" : "none");
    logits.forEach((row, b) => {
      if (ends[b]) this.#logits[b] = row;
    });
  }

  async *steps(state: State, next: readonly (number | undefined)[], { signal }: StepLimits): AsyncGenerator<readonly boolean[], void, undefined> {
    const logits = await untilAborted(state.advance(fedOf(next), "last", { transient: true }), signal);
    logits.forEach((row, b) => {
      if (next[b] !== undefined) this.#logits[b] = row;
    });
    yield next.map((token) => token !== undefined);
  }

  next(row: number, position: number): number {
    const [sampler, logits] = [this.samplers[row], this.#logits[row]];
    invariant(sampler && logits, "a row that is asked about has logits");
    return sampler.next(logits, row, position);
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}

class DeviceChooser implements TokenChooser {
  readonly on = "device";
  readonly #tokens: number[] = [];

  constructor(
    private readonly sampling: DeviceSampling,
    private readonly sampler: SamplerId,
    private readonly memory: Disposable,
  ) {}

  async advance(state: State, rows: readonly (readonly number[])[], ends: readonly boolean[]): Promise<void> {
    if (!ends.includes(true)) {
      await state.advance(rows, "none");
      return;
    }
    const tokens = await state.advanceSampled(rows, this.sampling, this.sampler, ends);
    tokens.forEach((token, b) => {
      if (ends[b]) this.#tokens[b] = token;
    });
  }

  async *steps(state: State, next: readonly (number | undefined)[], { limits, ahead, stopTokenIds, signal }: StepLimits): AsyncGenerator<readonly boolean[], void, undefined> {
    const arrived: (readonly (number | undefined)[])[] = [];
    let more = (): void => undefined;
    const left = new AbortController();
    const decoding = state.decode(next, {
      limits: limits.map((limit) => Math.min(limit, ahead)),
      stopTokenIds: [...stopTokenIds],
      sampling: this.sampling,
      sampler: this.sampler,
      onTokens: (tokens) => {
        arrived.push(tokens);
        more();
      },
      signal: left.signal,
    });
    // Every step's tokens are told of before it settles.
    let ended = false;
    const done = decoding.finally(() => {
      ended = true;
      more();
    });
    // Where the loop is left, nobody is there to be told.
    done.catch(() => undefined);
    try {
      for (;;) {
        const [tokens] = arrived.splice(0, 1);
        if (tokens) {
          tokens.forEach((token, b) => {
            if (token !== undefined) this.#tokens[b] = token;
          });
          yield tokens.map((token) => token !== undefined);
        } else if (ended) break;
        else await untilAborted(new Promise<void>((resolve) => (more = resolve)), signal);
      }
      await done;
    } finally {
      left.abort();
    }
  }

  next(row: number, position: number): number {
    const token = this.#tokens[row];
    invariant(token !== undefined, "a row that is asked about has a token");
    if (token < 0) fail(runtimeDiagnostics["not-finite"], { row, position });
    return token;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.memory[Symbol.dispose]();
    this.sampling.release(this.sampler);
  }
}

/** What to feed each row. */
const fedOf = (next: readonly (number | undefined)[]): readonly (readonly number[])[] => next.map((token) => (token === undefined ? [] : [token]));
