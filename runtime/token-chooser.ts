import { fail, invariant } from "../core/diagnostics.js";
import type { DeviceSampling, SamplerId } from "./backends/backend.js";
import { runtimeDiagnostics } from "./diagnostics.js";
import type { Model } from "./model.js";
import { Sampler, type ResolvedSampling } from "./sampling.js";
import type { State } from "./state.js";

/** Where tokens are chosen: both choose the same ones. */
export type ChosenOn = "host" | "device";

/** Feeds the rows of a batch and chooses the tokens that follow. */
export interface TokenChooser extends AsyncDisposable {
  readonly on: ChosenOn;
  /** Feeds tokens as `State.advance` does, after which `next` can be asked about the rows for which `ends` holds. */
  advance(state: State, rows: readonly (readonly number[])[], ends: readonly boolean[]): Promise<void>;
  /**
   * The token after what row `row` was fed, `position` + 1 tokens in all (named in errors only); to be asked once an advance.
   * @throws LayerweaveError `runtime/not-finite`
   */
  next(row: number, position: number): number;
}

/** @throws LayerweaveError `runtime/bad-option` for a device that can't choose, or can't under these options */
export async function chooserFor({ session, manifest }: Model, prompts: readonly (readonly number[])[], options: ResolvedSampling, on: ChosenOn): Promise<TokenChooser> {
  if (on === "host") return new HostChooser(prompts.map((prompt) => new Sampler(options, prompt)), manifest.model.vocabSize);
  const { sampling } = session;
  if (!sampling) fail(runtimeDiagnostics["bad-option"], { option: "chooseOn", expected: '"host": only a card chooses tokens, and of at most 262,144', found: on });
  if (options.repetitionPenalty !== 1) fail(runtimeDiagnostics["bad-option"], { option: "chooseOn", expected: '"host" with a repetition penalty, which looks at all tokens before', found: on });
  return new DeviceChooser(sampling, await sampling.create(prompts.map(() => options)));
}

class HostChooser implements TokenChooser {
  readonly on = "host";
  /** Of the rows that are yet to be asked about. */
  readonly #logits = new Map<number, Float32Array>();
  /** Logits of the last run that had any: once they are used, the next one's take their place. */
  #memory: Float32Array | undefined;

  constructor(
    private readonly samplers: readonly Sampler[],
    private readonly vocabSize: number,
  ) {}

  async advance(state: State, rows: readonly (readonly number[])[], ends: readonly boolean[]): Promise<void> {
    if (!ends.includes(true)) {
      await state.advance(rows, "none");
      return;
    }
    if (!this.#memory || this.#logits.size > 0) this.#memory = new Float32Array(rows.length * this.vocabSize);
    const logits = await state.advance(rows, "last", this.#memory);
    logits.forEach((row, b) => {
      if (ends[b]) this.#logits.set(b, row);
    });
  }

  next(row: number, position: number): number {
    const [sampler, logits] = [this.samplers[row], this.#logits.get(row)];
    invariant(sampler && logits, "a row that is asked about has logits");
    this.#logits.delete(row);
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

  next(row: number, position: number): number {
    const token = this.#tokens[row];
    invariant(token !== undefined, "a row that is asked about has a token");
    if (token < 0) fail(runtimeDiagnostics["not-finite"], { row, position });
    return token;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.sampling.release(this.sampler);
  }
}
