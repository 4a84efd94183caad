import { Diagnostics, fail, invariant } from "../core/diagnostics.js";
import { runtimeDiagnostics } from "./diagnostics.js";
import type { Model } from "./model.js";
import { resolveSampling, type ResolvedSampling, type SamplingOptions } from "./sampling.js";
import type { TextStream } from "./text-stream.js";
import { chooserFor, type ChosenOn } from "./token-chooser.js";
import type { Message } from "./tokenizer.js";

/** What to continue: text, token ids, or the messages of a conversation. */
export type Prompt = string | readonly number[] | readonly Message[];

/** Steps that a device makes in one go, before the first's token is taken perhaps: few enough to be no loss where the loop is left, and to let others' steps in between. */
const stepsAhead = 32;

export interface GenerateOptions extends SamplingOptions {
  /** Most tokens to generate. Default 256. */
  readonly maxTokens?: number;
  /** Text ends before the first of these strings to be complete. */
  readonly stop?: readonly string[];
  /** Generation ends with the first of these tokens. Default: the end-of-sequence tokens the model was published with. */
  readonly stopTokenIds?: readonly number[];
  /**
   * Where tokens are chosen. `host`, the default: logits come back from every step. `device`: a card chooses the same tokens, and
   * only they come back; not with a repetition penalty. Without stop strings it goes on by itself meanwhile, up to 32 tokens
   * beyond the one that was taken.
   */
  readonly chooseOn?: ChosenOn;
  /** Tokens per run while the prompt is fed. Default 512. */
  readonly chunk?: number;
  /** Ends the generation: the pending step rejects with the signal's reason. The model stays usable. */
  readonly signal?: AbortSignal;
}

/** `length`: `maxTokens` were generated. `context`: the model's context is full. */
export type StopReason = "stop-token" | "stop-string" | "length" | "context";

export interface GeneratedToken {
  readonly tokenId: number;
  /** The text that became certain with this token; often empty, and always empty without a tokenizer. */
  readonly text: string;
}

export interface GenerationStats {
  readonly promptTokens: number;
  readonly generatedTokens: number;
  /** From the first run to the logits of the prompt's last token, or on a device to the token after it; in a batch, of the longest prompt. */
  readonly prefillSeconds: number;
  /** From there to the end of this sequence. */
  readonly decodeSeconds: number;
  readonly stopReason: StopReason;
  /** What the random sequence started with, to repeat it. */
  readonly seed: number;
  /** Where tokens were chosen. */
  readonly chosenOn: ChosenOn;
}

export interface Completion {
  readonly text: string;
  readonly tokenIds: readonly number[];
  readonly stats: GenerationStats;
}

/** A generation that runs while it is iterated; leaving the loop early ends it. */
export class Generation implements AsyncIterable<GeneratedToken> {
  #stats: GenerationStats | undefined;

  constructor(
    private readonly model: Model,
    private readonly prompt: Prompt,
    private readonly options: GenerateOptions,
  ) {}

  /** Counts and times; undefined until the iteration has ended by itself. */
  get stats(): GenerationStats | undefined {
    return this.#stats;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<GeneratedToken, void, undefined> {
    for await (const { tokenId, text, stats } of decode(this.model, [this.prompt], this.options)) {
      this.#stats = stats;
      yield { tokenId, text };
    }
  }
}

export async function generateBatch(model: Model, prompts: readonly Prompt[], options: GenerateOptions): Promise<Completion[]> {
  if (prompts.length === 0) fail(runtimeDiagnostics["bad-option"], { option: "prompts", expected: "a list of at least one prompt", found: "an empty list" });
  const rows = prompts.map(() => ({ text: "", tokenIds: [] as number[], stats: undefined as GenerationStats | undefined }));
  for await (const { row, tokenId, text, stats } of decode(model, prompts, options)) {
    const completion = rows[row];
    invariant(completion, "a token belongs to a row");
    completion.text += text;
    completion.tokenIds.push(tokenId);
    completion.stats = stats;
  }
  return rows.map(({ text, tokenIds, stats }) => {
    invariant(stats, "every row ends with its stats");
    return { text, tokenIds, stats };
  });
}

interface BatchToken extends GeneratedToken {
  readonly row: number;
  /** With the last token of its row. */
  readonly stats: GenerationStats | undefined;
}

/** One sequence of the batch while it is being continued. */
interface Sequence {
  readonly prompt: readonly number[];
  readonly stream: TextStream | undefined;
  generated: number;
  /** The token to feed next; undefined once the sequence has ended. */
  pending: number | undefined;
}

async function* decode(model: Model, prompts: readonly Prompt[], options: GenerateOptions): AsyncGenerator<BatchToken, void, undefined> {
  const { signal } = options;
  const { maxTokens, stop, stopTokenIds, sampling } = resolve(model, options);
  signal?.throwIfAborted();
  const ids = prompts.map((prompt) => encode(model, prompt));
  const sequences = ids.map((prompt): Sequence => ({ prompt, stream: model.tokenizer?.stream({ stop }), generated: 0, pending: undefined }));
  const contextLength = model.manifest.model.contextLength ?? Infinity;
  await using state = await model.createState({ batch: prompts.length });
  await using chooser = await chooserFor(model, ids, sampling, options.chooseOn ?? "host");
  const started = performance.now();
  await model.feedInChunks(state, ids, { signal, ...(options.chunk === undefined ? {} : { chunk: options.chunk }) }, (rows, ends) => chooser.advance(state, rows, ends));
  const prefilled = performance.now();

  const choose = (sequence: Sequence, row: number): BatchToken => {
    const { prompt, stream } = sequence;
    const tokenId = chooser.next(row, prompt.length + sequence.generated - 1);
    sequence.generated++;
    const isStopToken = stopTokenIds.has(tokenId);
    let text = isStopToken ? "" : (stream?.push(tokenId) ?? "");
    const reason: StopReason | undefined = isStopToken
      ? "stop-token"
      : stream?.stoppedBy !== undefined
        ? "stop-string"
        : sequence.generated >= maxTokens
          ? "length"
          : prompt.length + sequence.generated >= contextLength
            ? "context"
            : undefined;
    sequence.pending = reason === undefined ? tokenId : undefined;
    if (reason !== undefined) text += stream?.flush() ?? "";
    const stats = reason && {
      promptTokens: prompt.length,
      generatedTokens: sequence.generated,
      prefillSeconds: (prefilled - started) / 1000,
      decodeSeconds: (performance.now() - prefilled) / 1000,
      stopReason: stream?.stoppedBy !== undefined ? "stop-string" : reason,
      seed: sampling.seed,
      chosenOn: chooser.on,
    };
    return { row, tokenId, text, stats };
  };

  for (const [row, sequence] of sequences.entries()) yield choose(sequence, row);
  while (sequences.some(({ pending }) => pending !== undefined)) {
    signal?.throwIfAborted();
    const next = sequences.map(({ pending }) => pending);
    const limits = sequences.map(({ prompt, generated }) => Math.min(maxTokens, contextLength - prompt.length) - generated);
    // Only the host knows where a string ends; a row that has ended must not be in the next step, which may round differently with it.
    for await (const given of chooser.steps(state, next, { limits, ahead: stop.length > 0 ? 1 : stepsAhead, stopTokenIds, signal })) {
      signal?.throwIfAborted();
      for (const [row, sequence] of sequences.entries()) if (given[row] === true) yield choose(sequence, row);
    }
  }
}

function resolve(model: Model, options: GenerateOptions): { maxTokens: number; stop: readonly string[]; stopTokenIds: ReadonlySet<number>; sampling: ResolvedSampling } {
  const { maxTokens = 256, stop = [], stopTokenIds = model.manifest.generation.eosTokenIds } = options;
  const { vocabSize } = model.manifest.model;
  const found = new Diagnostics();
  const expect = (option: keyof GenerateOptions, holds: boolean, expected: string, value: unknown): void => {
    if (!holds) found.report(runtimeDiagnostics["bad-option"], { option, expected, found: JSON.stringify(value) ?? String(value) });
  };
  expect("maxTokens", Number.isInteger(maxTokens) && maxTokens >= 1, "a positive integer", maxTokens);
  expect("stop", stop.every((text) => text.length > 0), "a list of strings that are not empty", stop);
  expect("stopTokenIds", stopTokenIds.every((id) => Number.isInteger(id) && id >= 0 && id < vocabSize), `a list of token ids below ${vocabSize}`, stopTokenIds);
  const sampling = resolveSampling(options, found);
  if (stop.length > 0 && !model.tokenizer) found.report(runtimeDiagnostics["no-tokenizer"], { folder: model.folder, wanted: "a stop string" });
  found.throwIfErrors();
  return { maxTokens, stop, stopTokenIds: new Set(stopTokenIds), sampling };
}

function isTokenIds(prompt: readonly number[] | readonly Message[]): prompt is readonly number[] {
  return prompt.every((part) => typeof part === "number");
}

function encode(model: Model, prompt: Prompt): readonly number[] {
  if (typeof prompt !== "string" && isTokenIds(prompt)) return prompt;
  const { tokenizer, folder } = model;
  if (!tokenizer) fail(runtimeDiagnostics["no-tokenizer"], { folder, wanted: "a text prompt" });
  return typeof prompt === "string" ? tokenizer.encode(prompt) : tokenizer.encode(tokenizer.applyChatTemplate(prompt), { addSpecialTokens: false });
}
